//! What keeps a shard from taking writes, where everybody sees it without asking the shard. Whoever finds the fault sets it
//! before anybody hears of what came of it: who is refused and looks for another shard shall not come back to this one.

use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

/// Why a shard takes no more writes until the node is restarted: told once, seen by everybody.
#[derive(Clone, Debug, Default)]
pub struct FaultCell(Arc<OnceLock<(String, Instant)>>);

impl FaultCell {
    /// The shard has this fault. The first one counts.
    pub fn set(&self, reason: &str) {
        self.0.get_or_init(|| (reason.to_owned(), Instant::now()));
    }

    /// The fault, if there is one.
    #[must_use]
    pub fn get(&self) -> Option<&str> {
        self.0.get().map(|(reason, _)| reason.as_str())
    }

    /// When it was found.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.0.get().map(|(_, since)| *since)
    }
}
