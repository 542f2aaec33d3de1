//! A service manager for tests: it holds a listening socket, passes it to the programs that it starts, as sd_listen_fds(3) has it,
//! and hears what they tell, as sd_notify(3) has it.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::cluster::start_ready_fed;
use crate::tools::Owned;

/// How long a program may take to tell something.
const TOLD_PATIENCE: Duration = Duration::from_secs(60);

/// A command that starts `program` with `socket` as the one that the service manager passes, under this name. The shell in
/// between puts it where it is looked for, and becomes the program, so that the process id is the right one.
#[must_use]
pub fn passing(socket: impl Into<OwnedFd>, name: &str, program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg("exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"").arg("sh").arg(program);
    command.env("LISTEN_FDNAMES", name).stdin(Stdio::from(socket.into()));
    command
}

/// A service with a Unix socket.
pub struct Service {
    directory: PathBuf,
    listener: UnixListener,
    hears: UnixDatagram,
}

impl Service {
    /// Listens in `directory`, where logs go as well.
    ///
    /// # Errors
    /// As the system says.
    pub fn new(directory: &Path) -> anyhow::Result<Service> {
        let directory = directory.to_owned();
        let listener = UnixListener::bind(directory.join("passed.sock"))?;
        let hears = UnixDatagram::bind(directory.join("notify"))?;
        hears.set_read_timeout(Some(TOLD_PATIENCE))?;
        Ok(Service { directory, listener, hears })
    }

    /// The path of the socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("passed.sock")
    }

    /// A command that starts `program` with the socket.
    ///
    /// # Errors
    /// As the system says.
    pub fn command(&self, program: &Path) -> anyhow::Result<Command> {
        let mut command = passing(self.listener.try_clone()?, "test.socket", program);
        command.env("NOTIFY_SOCKET", self.directory.join("notify"));
        Ok(command)
    }

    /// Starts `program` with the socket and waits until it is ready; its output goes to files of this name.
    ///
    /// # Errors
    /// When it does not become ready; its log is in the message.
    pub fn start<A: AsRef<OsStr>>(
        &self,
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Owned> {
        let (out, log) = (self.directory.join(format!("{name}.out")), self.directory.join(format!("{name}.log")));
        start_ready_fed(self.command(program)?.args(arguments), &out, &log)
    }

    /// What a program tells next.
    ///
    /// # Errors
    /// When it tells nothing.
    pub fn told(&self) -> anyhow::Result<String> {
        let mut bytes = [0; 1024];
        let length = self.hears.recv(&mut bytes).context("the service manager is told something")?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }
}
