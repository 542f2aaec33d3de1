//! A fresh Debian with systemd as its first process, in a container: what is installed and started there is as on a new machine, but for
//! the kernel. Needs root, mmdebstrap, systemd-nspawn, and an archive to have packages from.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::tools::{LOOK, Owned, run};

/// How long it may take to boot.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);
/// And to end, its services first.
const HALT_PATIENCE: Duration = Duration::from_secs(60);
/// Where this machine's apt has packages from, the newer form first.
const SOURCES: [&str; 2] = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
/// What is there beside the packages that every Debian has.
const PACKAGES: &str = "systemd-sysv,dbus,procps";

/// A machine that runs; it is halted, and its files are gone, when dropped.
#[derive(Debug)]
pub struct Debian {
    process: Owned,
    /// Its first process, as this machine numbers it.
    first: u32,
    directory: TempDir,
}

impl Debian {
    /// Boots one. `None`, and a word about it, where that cannot be done.
    ///
    /// # Errors
    /// When it is made, and does not boot.
    pub fn boot() -> anyhow::Result<Option<Debian>> {
        let skip = |why: &str| {
            eprintln!("skipped: {why}");
            Ok(None)
        };
        if !rustix::process::geteuid().is_root() {
            return skip("a container with systemd needs root");
        }
        for program in ["mmdebstrap", "systemd-nspawn"] {
            if Command::new(program).arg("--version").output().is_err() {
                return skip(&format!("{program} is not installed"));
            }
        }
        let directory = tempfile::tempdir()?;
        if let Err(error) = make(&directory.path().join("root")) {
            return skip(&format!("no Debian can be made here: {error:#}"));
        }
        let log = File::create(directory.path().join("log"))?;
        let mut command = Command::new("systemd-nspawn");
        command
            .args(["--quiet", "--boot", "--console=pipe", "--register=no", "--keep-unit", "--private-network"])
            .arg(format!("--machine=helio-test-{}", std::process::id()))
            .arg("--directory")
            .arg(directory.path().join("root"))
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = Owned::start(&mut command, "systemd-nspawn")?;
        let mut this = Debian { process, first: 0, directory };
        this.wait_until_booted()
            .with_context(|| std::fs::read_to_string(this.directory.path().join("log")).unwrap_or_default())?;
        Ok(Some(this))
    }

    fn wait_until_booted(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        loop {
            ensure!(begun.elapsed() < BOOT_PATIENCE, "the container does not boot");
            if let Some(status) = self.process.ended()? {
                bail!("the container ended while it booted: {status}");
            }
            let first = std::fs::read_to_string(&children)?.split(' ').find_map(|pid| pid.parse().ok());
            self.first = first.unwrap_or(0);
            // What runs there fails until there is a bus to ask.
            if self.first > 0 && self.run("systemctl is-system-running --wait").is_ok() {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Has a shell of root carry this out, up to the first command that fails; returns what it printed.
    ///
    /// # Errors
    /// What it said when it failed.
    pub fn run(&self, script: &str) -> anyhow::Result<String> {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target"]).arg(self.first.to_string()).args(["--", "bash", "-euc", script]);
        // What this process is told is not for what runs there.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root").env("LANG", "C.UTF-8");
        run(&mut command)
    }

    /// Puts a file of this machine there.
    ///
    /// # Errors
    /// As the system says.
    pub fn copy(&self, from: &Path, to: &str) -> anyhow::Result<()> {
        std::fs::copy(from, self.path(to)).with_context(|| to.to_owned())?;
        Ok(())
    }

    /// How a path of it is called here, also of a socket or in a file system that only it has.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // That halts it. What has ended already, or does not end, is killed with its parent.
        let _ = self.process.terminate();
        let _ = self.process.wait(HALT_PATIENCE);
    }
}

/// Makes a Debian of this machine's release in a directory.
fn make(root: &Path) -> anyhow::Result<()> {
    let release = std::fs::read_to_string("/etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).context("of no release")?;
    let sources = SOURCES.iter().find(|path| Path::new(path).exists()).context("apt has no sources")?;
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES}"), suite]).arg(root).arg("-");
    let output = command.stdin(Stdio::from(File::open(sources)?)).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
