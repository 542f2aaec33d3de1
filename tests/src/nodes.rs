//! A cluster of separate `helio node` processes for tests, made by `helio cluster init` and `join`.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::cluster::{helio, start_ready};
use crate::tools::{Owned, run, until_or};

/// How long a node may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(90);

/// How much of each node's log a test that fails shows.
const LOG_LINES: usize = 60;

/// Nodes of separate processes, each of a provider of its own; ended when dropped.
pub struct Nodes {
    directory: tempfile::TempDir,
    /// What nodes and commands are from here on.
    program: PathBuf,
    nodes: Vec<(String, Option<Owned>)>,
}

impl Drop for Nodes {
    /// Of a test that fails, its output tells how the nodes saw it.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for (name, _) in &self.nodes {
            let log = std::fs::read_to_string(self.path().join(format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            eprintln!("node {name} said last:\n{last}\n");
        }
    }
}

impl Nodes {
    /// Founds a cluster with the first of `names`, has the others join it, and waits until all serve.
    ///
    /// # Errors
    /// What the programs say.
    pub fn start(names: &[&str]) -> anyhow::Result<Nodes> {
        let mut this = Nodes::none()?;
        for name in names {
            this.add(name)?;
        }
        Ok(this)
    }

    /// No nodes yet.
    ///
    /// # Errors
    /// As the system says.
    pub fn none() -> anyhow::Result<Nodes> {
        Ok(Nodes { directory: tempfile::tempdir()?, program: helio()?, nodes: Vec::new() })
    }

    /// Has nodes that are started from here on be this `helio`, and commands too, and the `helio-nbd` beside it.
    pub fn use_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// Founds the cluster with this node, or has it join, and waits until it serves.
    ///
    /// # Errors
    /// What the programs say.
    pub fn add(&mut self, name: &str) -> anyhow::Result<()> {
        self.add_with(name, "")
    }

    /// The same with further settings of its store, in TOML.
    ///
    /// # Errors
    /// What the programs say.
    pub fn add_with(&mut self, name: &str, store: &str) -> anyhow::Result<()> {
        self.configure_with(name, &own_provider(name), store)?;
        self.join(name)
    }

    /// As [`add`](Self::add), at a provider that may have other nodes.
    ///
    /// # Errors
    /// What the programs say.
    pub fn add_at(&mut self, name: &str, provider: &str) -> anyhow::Result<()> {
        self.configure_with(name, provider, "")?;
        self.join(name)
    }

    /// Writes the settings of a node at a provider, which [`join`](Self::join) starts.
    ///
    /// # Errors
    /// As the system says.
    pub fn configure_at(&self, name: &str, provider: &str) -> anyhow::Result<()> {
        self.configure_with(name, provider, "")
    }

    /// Where a node listens that has its settings.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self, name: &str) -> anyhow::Result<SocketAddr> {
        let text = std::fs::read_to_string(self.config(name))?;
        let line = text.lines().find_map(|line| line.strip_prefix("listen = ")).context("it listens somewhere")?;
        Ok(line.trim_matches('"').parse()?)
    }

    /// Has a node that has its settings, and does not run, reach others at these addresses.
    ///
    /// # Errors
    /// As the system says.
    pub fn route(&self, name: &str, routes: &[(&str, SocketAddr)]) -> anyhow::Result<()> {
        let mut text = std::fs::read_to_string(self.config(name))?;
        text.push_str("\n[routes]\n");
        for (to, address) in routes {
            text.push_str(&format!("{to} = \"{address}\"\n"));
        }
        Ok(std::fs::write(self.config(name), text)?)
    }

    /// Founds the cluster with a node that has its settings, or has it join, and waits until it serves.
    ///
    /// # Errors
    /// What the programs say.
    pub fn join(&mut self, name: &str) -> anyhow::Result<()> {
        match self.nodes.first() {
            None => self.cluster(&["init"], name, "")?,
            Some((first, _)) => self.cluster(&["join"], name, &self.cluster(&["token"], first, "")?)?,
        };
        self.start_node(name)
    }

    /// The directory of everything; a node's data directory has its name.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The settings of a node.
    #[must_use]
    pub fn config(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.toml"))
    }

    /// Writes the settings of a node, with an address that no node had before.
    ///
    /// # Errors
    /// As the system says.
    pub fn configure(&self, name: &str) -> anyhow::Result<()> {
        self.configure_with(name, &own_provider(name), "")
    }

    fn configure_with(&self, name: &str, provider: &str, store: &str) -> anyhow::Result<()> {
        let address = own_address();
        let text = format!(
            "name = \"{name}\"\nprovider = \"{provider}\"\ndata = \"{name}\"\nlisten = \"{address}\"\n\
            [admin]\nhttp = \"127.0.0.1:0\"\n[store]\nsegment_bytes = \"8MiB\"\n{store}"
        );
        Ok(std::fs::write(self.config(name), text)?)
    }

    /// Runs `helio cluster VERB` with the settings of a node, `token` in its environment; returns what it printed.
    ///
    /// # Errors
    /// What the command said when it failed.
    pub fn cluster(&self, verb: &[&str], name: &str, token: &str) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        run(command.arg("cluster").args(verb).arg("--config").arg(self.config(name)).env("HELIO_TOKEN", token.trim()))
    }

    /// A volume's address at a node.
    #[must_use]
    pub fn uri(&self, name: &str, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.socket(name).display())
    }

    /// The NBD socket of a node.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.path().join(name).join("nbd.sock")
    }

    /// Starts a node that does not run, and waits until it serves.
    ///
    /// # Errors
    /// When it does not; its log is in the message.
    pub fn start_node(&mut self, name: &str) -> anyhow::Result<()> {
        let (out, log) = (self.path().join(format!("{name}.out")), self.path().join(format!("{name}.log")));
        let mut command = Command::new(&self.program);
        let process = start_ready(command.args(["node", "--config"]).arg(self.config(name)), &out, &log)?;
        match self.nodes.iter_mut().find(|(known, _)| known == name) {
            Some((_, place)) => *place = Some(process),
            None => self.nodes.push((name.to_owned(), Some(process))),
        }
        Ok(())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let found = self.nodes.iter_mut().find(|(known, _)| known == name);
        found.and_then(|(_, process)| process.take()).context("it runs")?.kill()
    }

    /// Stops a node's process where it is; `resume` lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, name: &str) -> anyhow::Result<()> {
        self.process(name)?.pause()
    }

    /// Lets a node's process go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self, name: &str) -> anyhow::Result<()> {
        self.process(name)?.resume()
    }

    fn process(&self, name: &str) -> anyhow::Result<&Owned> {
        let found = self.nodes.iter().find(|(known, _)| known == name);
        found.and_then(|(_, process)| process.as_ref()).context("it runs")
    }

    /// SIGTERM, and waits for a clean end.
    ///
    /// # Errors
    /// When it does not run, does not end, or ends with a failure.
    pub fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let found = self.nodes.iter_mut().find(|(known, _)| known == name);
        let mut process = found.and_then(|(_, process)| process.take()).context("it runs")?;
        process.terminate()?;
        ensure!(process.wait(STOP_PATIENCE)?, "it ended with a failure");
        Ok(())
    }

    /// Waits until a node's process ends by itself, and returns its exit code and what it logged.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn ended(&mut self, name: &str) -> anyhow::Result<(Option<i32>, String)> {
        let found = self.nodes.iter_mut().find(|(known, _)| known == name);
        let mut process = found.and_then(|(_, process)| process.take()).context("it runs")?;
        process.wait(STOP_PATIENCE)?;
        let code = process.ended()?.and_then(|status| status.code());
        Ok((code, std::fs::read_to_string(self.path().join(format!("{name}.log")))?))
    }

    /// Ends the process of a node that is no member any more, and deletes its data directory: another one may have its name.
    ///
    /// # Errors
    /// As the system says.
    pub fn forget(&mut self, name: &str) -> anyhow::Result<()> {
        self.nodes.retain(|(known, _)| known != name);
        Ok(std::fs::remove_dir_all(self.path().join(name))?)
    }

    /// Issues credentials for a client at the node that began the cluster; returns their file.
    ///
    /// # Errors
    /// What the command said when it failed.
    pub fn credentials(&self, client: &str) -> anyhow::Result<PathBuf> {
        let file = self.path().join(format!("{client}.helio"));
        let (first, _) = self.nodes.first().context("the cluster has a node")?;
        self.run(first, &["cluster", "client", client, "--out", &file.display().to_string()])?;
        Ok(file)
    }

    /// Starts `helio-nbd` with credentials of its own and these further arguments, and waits until it serves on its socket.
    ///
    /// # Errors
    /// When it does not; its log is in the message.
    pub fn helio_nbd(&self, client: &str, arguments: &[&str]) -> anyhow::Result<HelioNbd> {
        let credentials = self.credentials(client)?;
        self.start_helio_nbd(client, "--cluster", &credentials, arguments)
    }

    /// The same with the credentials in this file.
    ///
    /// # Errors
    /// When it does not serve; its log is in the message.
    pub fn helio_nbd_with(&self, file: &Path, client: &str, arguments: &[&str]) -> anyhow::Result<HelioNbd> {
        self.start_helio_nbd(client, "--cluster", file, arguments)
    }

    /// The same through the socket for clients of a node on this machine.
    ///
    /// # Errors
    /// When it does not serve; its log is in the message.
    pub fn helio_nbd_beside(&self, node: &str, client: &str, arguments: &[&str]) -> anyhow::Result<HelioNbd> {
        self.start_helio_nbd(client, "--node", &self.path().join(node).join("client.sock"), arguments)
    }

    fn start_helio_nbd(&self, client: &str, way: &str, by: &Path, arguments: &[&str]) -> anyhow::Result<HelioNbd> {
        let socket = self.path().join(format!("{client}.sock"));
        let mut all: Vec<OsString> =
            [way.as_ref(), by.as_os_str(), "--socket".as_ref(), socket.as_os_str()].map(OsStr::to_owned).into();
        all.extend(arguments.iter().map(OsString::from));
        let program = self.helio_nbd_program()?;
        let (process, log) = start_helio_nbd(&program, &socket, 0, &all)?;
        Ok(HelioNbd { process, program, socket, arguments: all, logs: vec![log] })
    }

    /// The program.
    ///
    /// # Errors
    /// When it was not built.
    pub fn helio_nbd_program(&self) -> anyhow::Result<PathBuf> {
        Ok(self.program.with_file_name("helio-nbd"))
    }

    /// Waits until something is so, or fails with what every node says of volume `disk`.
    ///
    /// # Panics
    /// If it is not within `patience`.
    pub fn until(&self, what: &str, patience: Duration, is_so: impl FnMut() -> bool) {
        until_or(what, patience, is_so, || {
            let told =
                |(name, _): &(String, _)| format!("\n{name}: {:?}", self.run(name, &["volume", "status", "disk"]));
            self.nodes.iter().map(told).collect()
        });
    }

    /// Runs a `helio` command at a node; returns what it printed.
    ///
    /// # Errors
    /// What the command said when it failed.
    pub fn run(&self, name: &str, arguments: &[&str]) -> anyhow::Result<String> {
        run(Command::new(&self.program).args(arguments).arg("--data").arg(self.path().join(name)))
    }

    /// The same for a command that must be refused: what it says.
    ///
    /// # Panics
    /// If it is not.
    pub fn refusal(&self, name: &str, arguments: &[&str]) -> String {
        match self.run(name, arguments) {
            Ok(told) => panic!("{arguments:?} was not refused: {told}"),
            Err(error) => error.to_string(),
        }
    }

    /// The same for a command that prints JSON.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when it prints something else.
    pub fn json(&self, name: &str, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.run(name, arguments)?)?)
    }
}

/// Starts a `helio-nbd`, the one of that number on its socket, and waits until it serves; with its log.
fn start_helio_nbd(
    program: &Path,
    socket: &Path,
    number: usize,
    arguments: &[OsString],
) -> anyhow::Result<(Owned, PathBuf)> {
    let (out, log) = (socket.with_extension(format!("{number}.out")), socket.with_extension(format!("{number}.log")));
    let mut command = Command::new(program);
    Ok((start_ready(command.args(arguments), &out, &log)?, log))
}

/// A `helio-nbd` that runs, and those after it on its socket; ended when dropped.
pub struct HelioNbd {
    process: Owned,
    program: PathBuf,
    socket: PathBuf,
    arguments: Vec<OsString>,
    /// Of each process, the oldest first.
    logs: Vec<PathBuf>,
}

impl HelioNbd {
    /// Its NBD socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it logged so far, and those that it has replaced.
    ///
    /// # Errors
    /// As the system says.
    pub fn log(&self) -> anyhow::Result<String> {
        Ok(self.logs.iter().map(std::fs::read_to_string).collect::<Result<_, _>>()?)
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Owned {
        &self.process
    }

    /// Has those that take over from here on be this `helio-nbd`.
    pub fn use_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// Has a new process take over, and waits until it serves and the old one has ended.
    ///
    /// # Errors
    /// When it does not serve, with its log in the message, or the old one does not end or ends with a failure.
    pub fn replace(&mut self) -> anyhow::Result<()> {
        let mut old = self.replace_with(&[])?;
        ensure!(old.wait(STOP_PATIENCE)?, "it ended with a failure");
        Ok(())
    }

    /// The same with further arguments; the old process goes in its own time.
    ///
    /// # Errors
    /// When the new one does not serve, with its log in the message. The old one goes on then.
    pub fn replace_with(&mut self, arguments: &[&str]) -> anyhow::Result<Owned> {
        let mut all = self.arguments.clone();
        all.retain(|argument| argument != "--replace");
        all.extend(["--replace"].iter().chain(arguments).map(OsString::from));
        let (new, log) = start_helio_nbd(&self.program, &self.socket, self.logs.len(), &all)?;
        self.logs.push(log);
        Ok(std::mem::replace(&mut self.process, new))
    }

    /// Starts a new process that is to take over, and waits for nothing.
    ///
    /// # Errors
    /// As the system says.
    pub fn begin_to_replace(&self) -> anyhow::Result<Owned> {
        let mut command = Command::new(&self.program);
        let arguments = self.arguments.iter().filter(|argument| *argument != "--replace");
        Owned::start(command.args(arguments).arg("--replace"), "a helio-nbd that is to take over")
    }

    /// SIGTERM, and waits for a clean end.
    ///
    /// # Errors
    /// When it does not end, or ends with a failure.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.process.terminate()?;
        ensure!(self.process.wait(STOP_PATIENCE)?, "it ended with a failure");
        Ok(())
    }
}

fn own_provider(name: &str) -> String {
    format!("cloud-{name}")
}

/// An address that no other test has: loopback is a /8, and a process id fits into what is left of it. Not a free
/// port of the system's choice, since a node must have the same one after a restart.
#[must_use]
pub fn own_address() -> SocketAddr {
    static COUNT: AtomicU16 = AtomicU16::new(20_000);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let ip = IpAddr::V4(Ipv4Addr::new(127, 64 | (high & 63), middle, low));
    SocketAddr::new(ip, COUNT.fetch_add(1, Ordering::Relaxed))
}
