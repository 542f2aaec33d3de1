//! Programs of the machine that tests and the demo run, and processes that end with whoever started them.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Pause between two looks at something that others do.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// A tool that may live in an sbin directory outside an ordinary user's PATH.
#[must_use]
pub fn tool(name: &str) -> Command {
    let path = ["/usr/sbin", "/sbin"].iter().map(|d| Path::new(d).join(name)).find(|p| p.exists());
    Command::new(path.unwrap_or_else(|| PathBuf::from(name)))
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// When it cannot be run (`make tools` installs what is needed) or fails, with all it said.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{command:?} cannot be run; `make tools` installs what is needed"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Has `qemu-io` carry out `commands` on the export at `uri`, a snapshot's read-only; returns what it printed.
///
/// # Errors
/// When it fails, or says that one of them did.
pub fn qemu_io(uri: &str, is_snapshot: bool, commands: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]).args(is_snapshot.then_some("-r"));
    for it in commands {
        command.args(["-c", it]);
    }
    let said = run(command.arg(uri))?;
    ensure!(!said.contains("failed") && !said.contains("error"), "{said}");
    Ok(said)
}

/// Waits until something is so.
///
/// # Panics
/// If it is not within `patience`, saying `what` should have been.
pub fn until(what: &str, patience: Duration, is_so: impl FnMut() -> bool) {
    until_or(what, patience, is_so, String::new);
}

/// The same, and adds what is told then.
///
/// # Panics
/// As [`until`].
pub fn until_or(what: &str, patience: Duration, mut is_so: impl FnMut() -> bool, tell: impl Fn() -> String) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < patience, "{what}, for {patience:?}{}", tell());
        std::thread::sleep(LOOK);
    }
}

/// How often a test kills what it tests: `usual`, or as often as `HELIO_KILLS` says.
#[must_use]
pub fn kills(usual: u64) -> u64 {
    count("HELIO_KILLS", usual)
}

/// How often a test replaces `helio-nbd`: `usual`, or as often as `HELIO_UPGRADES` says.
#[must_use]
pub fn upgrades(usual: u64) -> u64 {
    count("HELIO_UPGRADES", usual)
}

/// How often a test does what it does: `usual`, or as often as this variable says.
///
/// # Panics
/// If it says no number.
#[must_use]
pub fn count(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// A process in its own group, so that Ctrl-C reaches it only through us; ended when dropped.
#[derive(Debug)]
pub struct Owned {
    child: Child,
}

impl Owned {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, name: &str) -> anyhow::Result<Owned> {
        Owned::start_fed(command.stdin(Stdio::null()), name)
    }

    /// Starts it with the standard input that was chosen for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_fed(command: &mut Command, name: &str) -> anyhow::Result<Owned> {
        let child = command.process_group(0).spawn().with_context(|| name.to_owned())?;
        Ok(Owned { child })
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// As the system says.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it prints, if that was asked for; once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// What it reads, if that was asked for; once.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// As the system says.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, with SIGTERM.
    ///
    /// # Errors
    /// As the system says.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Stops it where it is, until [`resume`](Self::resume). None of its threads runs any more when this returns.
    ///
    /// # Errors
    /// As the system says, and when it has ended.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)?;
        // The signal is only sent by now: threads run on until they meet it. The system tells when the last has.
        let told = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let status = retry_on_intr(|| waitid(WaitId::Pid(Pid::from_child(&self.child)), told))?;
        ensure!(status.is_some_and(|status| status.stopped()), "process {} has ended", self.child.id());
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// As the system says.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits until it ends; whether it succeeded.
    ///
    /// # Errors
    /// When it runs longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<bool> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            std::thread::sleep(LOOK);
        }
        bail!("process {} did not end in {limit:?}", self.child.id())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Ended already is fine too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that was just paused once acked a write: SIGSTOP was sent, and its threads ran on for a while.
    #[test]
    fn a_paused_process_has_stopped() {
        let process =
            Owned::start(Command::new("sh").args(["-c", "while :; do :; done"]), "a busy shell").expect("starts");
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("it is there");
            stat.rsplit_once(") ").expect("a state follows the name").1.chars().next()
        };
        for _ in 0..200 {
            process.pause().expect("it runs");
            assert_eq!(state(), Some('T'));
            process.resume().expect("it is paused");
        }
    }
}
