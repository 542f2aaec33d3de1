//! What a writer was promised: the newest acked generation of each thing it wrote, and the one that was on its way.

use std::collections::BTreeMap;

/// The promises made to one writer, who does one thing at a time.
#[derive(Debug, Default)]
pub struct Ledger {
    acked: BTreeMap<u64, u64>,
    pending: Option<(u64, u64)>,
    generation: u64,
}

impl Ledger {
    /// Begins to write `key`; returns the generation to write.
    pub fn begin(&mut self, key: u64) -> u64 {
        self.generation += 1;
        self.pending = Some((key, self.generation));
        self.generation
    }

    /// What was begun is acked.
    pub fn ack(&mut self) {
        if let Some((key, generation)) = self.pending.take() {
            self.acked.insert(key, generation);
        }
    }

    /// How many writes were acked or begun so far.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Compares with what is there: each key must have its acked generation, or the one that was begun and never
    /// answered. What is there counts from now on.
    ///
    /// # Errors
    /// Names the first key that is otherwise, or what `found` says.
    pub fn check(&mut self, mut found: impl FnMut(u64) -> Result<u64, String>) -> Result<(), String> {
        if let Some((key, generation)) = self.pending.take()
            && found(key)? == generation
        {
            self.acked.insert(key, generation);
        }
        for (key, acked) in &self.acked {
            let found = found(*key)?;
            if found != *acked {
                return Err(format!("{key} holds generation {found}, but {acked} was acked"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acked_writes_must_be_there_and_begun_ones_may() {
        let mut ledger = Ledger::default();
        ledger.begin(7);
        ledger.ack();
        ledger.begin(7);
        ledger.check(|_| Ok(1)).expect("the acked one");
        ledger.begin(7);
        ledger.check(|_| Ok(3)).expect("the begun one");
        assert!(ledger.check(|_| Ok(1)).is_err(), "once seen it must stay");
        ledger.begin(8);
        ledger.check(|key| Ok(if key == 7 { 3 } else { 0 })).expect("never written");
        assert!(ledger.check(|_| Err("unreadable".into())).is_err());
    }
}
