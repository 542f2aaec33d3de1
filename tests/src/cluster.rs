//! A cluster of real processes for tests: `helio up` in a directory of its own, on free ports, ended when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::tools::{LOOK, Owned};

/// How long a start may take before the test gives up: recovery and an election on a busy machine.
const READY_PATIENCE: Duration = Duration::from_secs(90);

/// Where the `helio` binary is: `HELIO_BIN`, or beside the test.
///
/// # Errors
/// When it was not built.
pub fn helio() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("HELIO_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    // Tests lie in `deps/`, binaries one above.
    let path = test.parent().and_then(Path::parent).context("the test lies in a target directory")?.join("helio");
    ensure!(path.exists(), "{} is not built; `make unit` builds it, or set HELIO_BIN", path.display());
    Ok(path)
}

/// What comes of a `helio` command that finds no cluster.
///
/// # Panics
/// When it cannot be run.
#[must_use]
pub fn output(arguments: &[&str]) -> Output {
    Command::new(helio().expect("is built")).args(arguments).env("HELIO_DATA", "nowhere").output().expect("runs")
}

/// What `helio` says when it must fail: one line, exit code 1, nothing on standard output.
///
/// # Panics
/// When it does anything else.
#[must_use]
pub fn refusal(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
    let said = String::from_utf8(output.stderr).expect("is UTF-8");
    assert!(said.starts_with("helio: ") && said.lines().count() == 1, "{arguments:?}: {said}");
    said
}

/// `helio up` in a directory that outlives its processes.
pub struct Up {
    directory: tempfile::TempDir,
    arguments: Vec<String>,
    process: Option<Owned>,
}

impl Up {
    /// Starts a cluster with these further arguments and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; its log is in the message.
    pub fn start(arguments: &[&str]) -> anyhow::Result<Up> {
        Up::start_in(tempfile::tempdir()?, arguments)
    }

    /// The same in a directory of the caller's choice, on another file system perhaps.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_in(directory: tempfile::TempDir, arguments: &[&str]) -> anyhow::Result<Up> {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut up = Up { directory, arguments, process: None };
        up.restart()?;
        Ok(up)
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// What it has logged since it was started last.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.directory.path().join("log"))?)
    }

    /// The NBD socket of a provider.
    #[must_use]
    pub fn socket(&self, provider: &str) -> PathBuf {
        self.data().join(provider).join("nbd.sock")
    }

    /// A volume's addresses at a provider: over TCP and over the Unix socket. No volume lists them all.
    ///
    /// # Errors
    /// When the cluster does not say where it listens.
    pub fn uris(&self, provider: &str, volume: &str) -> anyhow::Result<[String; 2]> {
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(self.data().join("cluster.json"))?)?;
        let nodes = file["nodes"].as_array().context("cluster.json has nodes")?;
        let node = nodes.iter().find(|node| node["name"] == provider).context("there is no such provider")?;
        let address = node["nbd_tcp"].as_str().context("it listens on TCP")?;
        let unix = format!("nbd+unix:///{volume}?socket={}", self.socket(provider).display());
        Ok([format!("nbd://{address}/{volume}"), unix])
    }

    /// Starts it again on the same directory.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let (out, log) = (self.directory.path().join("out"), self.directory.path().join("log"));
        let mut command = Command::new(helio()?);
        // In its own directory, which other commands are not in: the way to the secret was told as it was given, and from anywhere else every command
        // failed.
        command.current_dir(self.directory.path());
        command.args(["up", "--nbd-port", "0", "--http-port", "0", "--data", "data"]).args(&self.arguments);
        self.process = Some(start_ready(&mut command, &out, &log)?);
        Ok(())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("it runs")?.kill()
    }

    /// SIGTERM, and waits for a clean end.
    ///
    /// # Errors
    /// When it does not run, does not end, or ends with a failure.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().context("it runs")?;
        process.terminate()?;
        ensure!(process.wait(READY_PATIENCE)?, "it ended with a failure");
        Ok(())
    }

    /// Runs a `helio` command against the cluster; returns what it printed.
    ///
    /// # Errors
    /// What the command said when it failed.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(helio()?).args(arguments).arg("--data").arg(self.data()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same for a command that prints JSON.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when it prints something else.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.run(arguments)?)?)
    }
}

/// Starts a process of `helio` and waits for its line that starts with `ready`; what it prints goes to these files.
pub(crate) fn start_ready(command: &mut Command, out: &Path, log: &Path) -> anyhow::Result<Owned> {
    start_ready_fed(command.stdin(Stdio::null()), out, log)
}

/// The same with the standard input that was chosen for it.
pub(crate) fn start_ready_fed(command: &mut Command, out: &Path, log: &Path) -> anyhow::Result<Owned> {
    command.stdout(File::create(out)?).stderr(File::create(log)?);
    let mut process = Owned::start_fed(command, "helio")?;
    let begun = Instant::now();
    while !std::fs::read_to_string(out)?.lines().any(|line| line.starts_with("ready")) {
        if let Some(status) = process.ended()? {
            bail!("helio ended with {status}: {}", std::fs::read_to_string(log)?);
        }
        ensure!(begun.elapsed() < READY_PATIENCE, "helio is not ready: {}", std::fs::read_to_string(log)?);
        std::thread::sleep(LOOK);
    }
    Ok(process)
}
