//! Machines with addresses of their own, and routes between them: network namespaces behind one that routes. Needs root.
//!
//! A machine is a shell in its own network and its own directory, which is told one block of commands after the other, as somebody at a
//! terminal would. Everything that it has started ends with it, and the namespaces go with the last of their processes: nothing on the
//! host has to be taken back.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::tools::{LOOK, run, tool};

/// How long a namespace may take to be made.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a shell prints when it has carried out a block; nothing else prints it.
const DONE: &str = "-- done --";

/// A process in a network of its own; ended, with all that it has started, when dropped.
#[derive(Debug)]
struct Namespace {
    child: Child,
}

impl Namespace {
    /// Starts this program in a network in which there is nothing but loopback.
    fn start(program: &[&str], directory: &Path, path: &str) -> anyhow::Result<Namespace> {
        let mut command = Command::new("unshare");
        command.arg("--net").arg("--").args(program).current_dir(directory).env("PATH", path).env("HOME", directory);
        // What this process is told must not be what a user of the page is told.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HELIO_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut this = Namespace { child: command.spawn().context("unshare")? };
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let begun = Instant::now();
        while std::fs::read_link(format!("/proc/{}/ns/net", this.child.id())).map_or(true, |found| found == own) {
            ensure!(this.child.try_wait()?.is_none(), "a network namespace cannot be made here");
            ensure!(begun.elapsed() < PATIENCE, "a network namespace is not made");
            std::thread::sleep(LOOK);
        }
        this.inside(&["ip", "link", "set", "lo", "up"])?;
        Ok(this)
    }

    /// Runs a command in this network.
    fn inside(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(tool("nsenter").arg("--net").arg(format!("--target={}", self.child.id())).arg("--").args(arguments))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Ended already is fine too.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Networks that reach each other through one router. Each has a gateway, which is `.254`.
#[derive(Debug)]
pub struct Internet {
    router: Namespace,
}

/// A machine in a network of its own.
#[derive(Debug)]
pub struct Machine {
    name: String,
    directory: PathBuf,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    // Last: what it reads and writes is closed before it is ended.
    namespace: Namespace,
}

impl Internet {
    /// A router without networks. `None`, with the reason, where namespaces cannot be made.
    ///
    /// # Errors
    /// What the system says while it is set up.
    pub fn new() -> anyhow::Result<Result<Internet, String>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Err("only root makes network namespaces".to_owned()));
        }
        let tried = Command::new("unshare").args(["--net", "true"]).output();
        if !tried.is_ok_and(|output| output.status.success()) || tool("ip").arg("-V").output().is_err() {
            return Ok(Err("network namespaces cannot be made here, or iproute2 is missing".to_owned()));
        }
        // It ends when nobody holds the other end of its input.
        let router = Namespace::start(&["cat"], Path::new("/"), "/usr/sbin:/usr/bin:/sbin:/bin")?;
        router.inside(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        Ok(Ok(Internet { router }))
    }

    /// A machine with this address, `A.B.C.D`, in a network of 256; its shell starts in `directory` and finds programs in `path` first.
    ///
    /// # Errors
    /// What the system says.
    pub fn machine(&self, name: &str, address: &str, directory: &Path, path: &Path) -> anyhow::Result<Machine> {
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", path.display());
        let mut namespace = Namespace::start(&["bash", "--noprofile", "--norc"], directory, &path)?;
        let (network, _) = address.rsplit_once('.').context("an address has dots")?;
        let gateway = format!("{network}.254");
        let (inner, outer) = ("wan", format!("to-{name}"));
        let (machine, router) = (namespace.child.id().to_string(), self.router.child.id().to_string());
        let link = ["link", "add", inner, "netns", &machine, "type", "veth", "peer", "name", &outer, "netns", &router];
        run(tool("ip").args(link))?;
        for (side, device, own) in [(&namespace, inner, address), (&self.router, outer.as_str(), &gateway)] {
            side.inside(&["ip", "address", "add", &format!("{own}/24"), "dev", device])?;
            side.inside(&["ip", "link", "set", device, "up"])?;
        }
        namespace.inside(&["ip", "route", "add", "default", "via", &gateway])?;
        let input = namespace.child.stdin.take().context("its input is ours")?;
        let output = BufReader::new(namespace.child.stdout.take().context("its output is ours")?);
        let mut this = Machine { name: name.to_owned(), directory: directory.to_owned(), input, output, namespace };
        // It ends at the first failure, also within a pipe, and what it started with it.
        this.tell("exec 2>&1; set -e -o pipefail; trap 'kill -9 $(jobs -p) 2>/dev/null' EXIT")?;
        Ok(this)
    }
}

impl Machine {
    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Has its shell carry this out, and returns what was printed meanwhile.
    ///
    /// # Errors
    /// With what was printed, when a command fails.
    pub fn tell(&mut self, commands: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{commands}\necho '{DONE}'").with_context(|| format!("{} has ended", self.name))?;
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                let status = self.namespace.child.wait()?;
                bail!("at {}, {status}:\n{commands}\nit printed:\n{printed}", self.name);
            }
            if line.trim_end() == DONE {
                return Ok(printed);
            }
            printed.push_str(&line);
        }
    }
}
