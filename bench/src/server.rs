//! The servers that are compared: started on the same file system, stopped by id.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::load::Target;
use crate::process::Process;

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);
/// The volume of a node.
pub(crate) const VOLUME: &str = "disk";

/// How a server is started.
struct Plan {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    socket: PathBuf,
    export: &'static str,
    log: PathBuf,
    /// Where a node has its data.
    data: PathBuf,
}

/// A server that does not run.
pub(crate) struct Stopped(Plan);

/// A running NBD server with one disk.
pub(crate) struct Server {
    plan: Plan,
    process: Process,
}

impl Server {
    /// Heliotrope with one provider: the data path without propagation.
    pub(crate) fn helio(root: &Path, size: u64, binary: &Path) -> anyhow::Result<Server> {
        let server = Server::helio_bare(root, binary, "a")?;
        server.create_volume(size)?;
        Ok(server)
    }

    /// Heliotrope without a volume, with a node for each of `providers`; it has a leader already.
    pub(crate) fn helio_bare(root: &Path, binary: &Path, providers: &str) -> anyhow::Result<Server> {
        Server::helio_with(root, binary, providers, &[])
    }

    /// The same with more options of `helio up`.
    pub(crate) fn helio_with(root: &Path, binary: &Path, providers: &str, more: &[&str]) -> anyhow::Result<Server> {
        let data = root.join("helio");
        let mut arguments: Vec<String> =
            ["up", "--providers", providers, "--nbd-port", "0", "--http-port", "0"].map(String::from).to_vec();
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        arguments.extend(["--data".to_owned(), data.display().to_string()]);
        let socket = data.join("a/nbd.sock");
        let plan = Plan { program: binary.to_owned(), arguments, data, ..Plan::new("helio", root, socket) };
        let server = Stopped(Plan { export: VOLUME, ..plan }).start()?;
        let begun = Instant::now();
        while !server.helio_command(&["volume", "list"])?.status.success() {
            ensure!(begun.elapsed() < PATIENCE, "the node takes no commands");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    /// `helio-nbd` for the volume of `node`, through its socket for clients; the program lies beside the node's.
    pub(crate) fn helio_nbd(root: &Path, node: &Server, binary: &Path) -> anyhow::Result<Server> {
        let (socket, client) = (root.join("helio-nbd.sock"), node.plan.data.join("a/client.sock"));
        let arguments = ["--node", &client.display().to_string(), "--socket", &socket.display().to_string()];
        let arguments =
            arguments.map(String::from).into_iter().chain(["--export".to_owned(), VOLUME.to_owned()]).collect();
        let program = binary.with_file_name("helio-nbd");
        Stopped(Plan { program, arguments, export: VOLUME, ..Plan::new("helio-nbd", root, socket) }).start()
    }

    /// A [`relay`](crate::relay) before the NBD socket of `node`: this program, as a process of its own.
    pub(crate) fn relay(root: &Path, node: &Server) -> anyhow::Result<Server> {
        let socket = root.join("relay.sock");
        let arguments = vec!["relay".to_owned(), socket.display().to_string(), node.plan.socket.display().to_string()];
        let plan = Plan { program: std::env::current_exe()?, arguments, ..Plan::new("relay", root, socket) };
        Stopped(Plan { export: VOLUME, ..plan }).start()
    }

    /// `qemu-nbd` on a raw file, without the host's cache.
    pub(crate) fn qemu_nbd(root: &Path, size: u64) -> anyhow::Result<Server> {
        let (image, socket) = (image(root, "qemu.img", size)?, root.join("qemu.sock"));
        let mut arguments: Vec<String> =
            ["--format=raw", "--cache=none", "--aio=native", "--persistent", "--shared=4", "--socket"]
                .map(String::from)
                .to_vec();
        arguments.extend([socket.display().to_string(), image.display().to_string()]);
        Stopped(Plan { arguments, ..Plan::new("qemu-nbd", root, socket) }).start()
    }

    /// `nbdkit file`, through the page cache as it comes.
    pub(crate) fn nbdkit_file(root: &Path, size: u64) -> anyhow::Result<Server> {
        Server::nbdkit(root, size, "default")
    }

    /// `nbdkit file` that keeps its file out of the page cache, as far as it can.
    pub(crate) fn nbdkit_none(root: &Path, size: u64) -> anyhow::Result<Server> {
        Server::nbdkit(root, size, "none")
    }

    fn nbdkit(root: &Path, size: u64, cache: &str) -> anyhow::Result<Server> {
        let image = image(root, &format!("nbdkit-{cache}.img"), size)?;
        let socket = root.join(format!("nbdkit-{cache}.sock"));
        let mut arguments: Vec<String> = ["--foreground", "--unix"].map(String::from).to_vec();
        arguments.extend([socket.display().to_string(), "file".to_owned(), image.display().to_string()]);
        arguments.push(format!("cache={cache}"));
        Stopped(Plan { arguments, ..Plan::new("nbdkit", root, socket) }).start()
    }

    /// Our NBD server over memory: this program, as a process of its own.
    pub(crate) fn memory(root: &Path, size: u64) -> anyhow::Result<Server> {
        let socket = root.join("memory.sock");
        let arguments = vec!["memory-server".to_owned(), socket.display().to_string(), size.to_string()];
        let plan = Plan { program: std::env::current_exe()?, arguments, ..Plan::new("memory", root, socket) };
        Stopped(Plan { export: VOLUME, ..plan }).start()
    }

    /// `nbdkit memory`.
    pub(crate) fn nbdkit_memory(root: &Path, size: u64) -> anyhow::Result<Server> {
        let socket = root.join("nbdkit-memory.sock");
        let mut arguments: Vec<String> = ["--foreground", "--unix"].map(String::from).to_vec();
        arguments.extend([socket.display().to_string(), "memory".to_owned(), size.to_string()]);
        Stopped(Plan { arguments, ..Plan::new("nbdkit", root, socket) }).start()
    }

    /// Creates the node's volume.
    pub(crate) fn create_volume(&self, size: u64) -> anyhow::Result<()> {
        self.create_named(VOLUME, size)
    }

    /// Creates a volume of the first node.
    pub(crate) fn create_named(&self, name: &str, size: u64) -> anyhow::Result<()> {
        self.run(&["volume", "create", name, "--size", &size.to_string(), "--owner", "a"]).map(drop)
    }

    /// Runs a `helio` command at its nodes; returns what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let told = self.helio_command(arguments)?;
        ensure!(told.status.success(), "helio {}: {}", arguments.join(" "), String::from_utf8_lossy(&told.stderr));
        Ok(String::from_utf8(told.stdout)?)
    }

    fn helio_command(&self, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        let mut command = Command::new(&self.plan.program);
        Ok(command.args(arguments).arg("--data").arg(&self.plan.data).output()?)
    }

    /// Where a node has its map.
    pub(crate) fn map_directory(&self) -> PathBuf {
        self.plan.data.join("a/shard-0/map")
    }

    /// The server as fio's.
    pub(crate) fn target(&self) -> Target {
        self.target_of(self.plan.export)
    }

    /// The same of another export of it.
    pub(crate) fn target_of(&self, export: &str) -> Target {
        Target::Nbd(format!("nbd+unix:///{export}?socket={}", self.plan.socket.display()))
    }

    /// Its process id, for the kernel's counts.
    pub(crate) fn id(&self) -> String {
        self.process.0.id().to_string()
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn killed(self) -> Stopped {
        drop(self.process);
        Stopped(self.plan)
    }
}

impl Plan {
    fn new(name: &'static str, root: &Path, socket: PathBuf) -> Plan {
        let (program, arguments, export) = (PathBuf::from(name), Vec::new(), "");
        let (log, data) = (root.join(format!("{name}.log")), root.to_owned());
        Plan { name, program, arguments, socket, export, log, data }
    }
}

impl Stopped {
    /// Starts it and waits until its socket answers.
    pub(crate) fn start(self) -> anyhow::Result<Server> {
        let Stopped(plan) = self;
        let log = File::options().create(true).append(true).open(&plan.log)?;
        let child = Command::new(&plan.program)
            .args(&plan.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} cannot be started; `make tools` installs what is missing", plan.name))?;
        let mut server = Server { plan, process: Process(child) };
        let begun = Instant::now();
        while UnixStream::connect(&server.plan.socket).is_err() {
            if let Some(status) = server.process.0.try_wait()? {
                bail!("{} ended with {status}", server.plan.name);
            }
            ensure!(begun.elapsed() < PATIENCE, "{} does not listen", server.plan.name);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

fn image(root: &Path, name: &str, size: u64) -> anyhow::Result<PathBuf> {
    let path = root.join(name);
    File::create(&path)?.set_len(size)?;
    Ok(path)
}
