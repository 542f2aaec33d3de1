//! A shard whose loop panics takes its process with it.
//!
//! The panic is a bug, and the log is as it was: the process that starts next recovers from it. One that lived on without the shard would keep
//! its node's lease, so that its volumes could neither be used nor be taken over.

use std::path::Path;

/// Ends the process when it is dropped by a panic.
pub(super) struct EndsProcess<'a> {
    /// The shard's.
    pub(super) directory: &'a Path,
}

impl Drop for EndsProcess<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let directory = self.directory.display();
            tracing::error!(%directory, "the store's thread has panicked, which is a bug: the process ends; start it again");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const IS_CHILD: &str = "HELIO_TEST_PANICS";

    /// A node whose shard had panicked went on without it: it kept the lease, and its volumes were neither served nor taken over.
    #[test]
    fn the_process_of_a_shard_that_panics_ends() {
        if std::env::var_os(IS_CHILD).is_some() {
            let _ends = EndsProcess { directory: Path::new("shard-0") };
            panic!("on purpose");
        }
        let mut child = Command::new(std::env::current_exe().expect("has a path"));
        child.args(["--exact", "shard::fatal::tests::the_process_of_a_shard_that_panics_ends"]);
        let ended = child.env(IS_CHILD, "1").output().expect("runs");
        assert_eq!(ended.status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{ended:?}");
    }
}
