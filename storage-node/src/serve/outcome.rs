//! What the tasks share that keep a volume as metadata says: a failure is told once, and tried again.

use std::time::Duration;

use client_lib::{Error, ErrorKind};

/// Pause before what could not be done is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The failure that was told last.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    told: Option<String>,
}

impl Outcomes {
    /// Calls `tell` with a failure that is not the one before. Those of the kinds `passing` end by themselves: nothing is
    /// wrong.
    pub(super) fn note(&mut self, outcome: &Result<(), Error>, passing: &[ErrorKind], tell: impl FnOnce(&str)) {
        let failure = outcome.as_ref().err().filter(|error| !passing.contains(&error.kind())).map(Error::to_string);
        if failure != self.told {
            if let Some(error) = &failure {
                tell(error);
            }
            self.told = failure;
        }
    }
}

/// Returns when it is time to try again: after a pause, or never after a success.
///
/// # Cancel safety
/// Safe.
pub(super) async fn retry(outcome: &Result<(), Error>) {
    match outcome {
        Ok(()) => std::future::pending().await,
        Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
    }
}
