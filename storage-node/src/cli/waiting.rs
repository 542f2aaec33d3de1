//! Requests that are asked again until nothing stands against them any more: a node, or a replica, that is needed for a while yet.

use anyhow::bail;

/// What stands against a request, and whether it is waited for.
pub(super) trait Waits {
    /// What is waited for; `None` when it was carried out, or will not be.
    fn waits_for(&self) -> Option<&[String]>;
}

/// Asks until nothing is waited for, and says on standard error for what. Each request waits for some seconds itself. With `no_wait` it
/// fails instead, and says that `what` is still needed.
pub(super) fn until_over<T: Waits>(
    what: &str,
    no_wait: bool,
    ask: impl Fn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut told = Vec::new();
    loop {
        let report = ask()?;
        let Some(waiting_for) = report.waits_for() else { return Ok(report) };
        if no_wait {
            bail!("{what} is still needed: {}", waiting_for.join("; "));
        }
        if told != waiting_for {
            waiting_for.iter().for_each(|what| eprintln!("waiting: {what}"));
            told = waiting_for.to_vec();
        }
    }
}
