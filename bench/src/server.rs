//! The servers that are compared: started on the same file system, stopped by id.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Kernel ticks per second in `/proc/PID/stat` (`sysconf(_SC_CLK_TCK)`, 100 on every Linux).
const TICKS_PER_SECOND: f64 = 100.0;

/// A running NBD server with one disk.
pub(crate) struct Server {
    /// What the table calls it.
    pub(crate) name: &'static str,
    /// Where fio connects.
    pub(crate) uri: String,
    child: Child,
}

impl Server {
    /// Heliotrope with one provider: the data path without propagation.
    pub(crate) fn helio(root: &Path, size: u64, binary: &Path) -> anyhow::Result<Server> {
        let data = root.join("helio");
        let mut command = Command::new(binary);
        command.args(["up", "--providers", "a", "--nbd-port", "0", "--http-port", "0", "--data"]).arg(&data);
        let server = start("helio", &mut command, data.join("a/nbd.sock"), "disk", root)?;
        let begun = Instant::now();
        loop {
            let created = Command::new(binary)
                .args(["volume", "create", "disk", "--size", &size.to_string(), "--data"])
                .arg(&data)
                .output()?;
            if created.status.success() {
                return Ok(server);
            }
            ensure!(begun.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&created.stderr));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// `qemu-nbd` on a raw file, without the host's cache.
    pub(crate) fn qemu_nbd(root: &Path, size: u64) -> anyhow::Result<Server> {
        let (image, socket) = (image(root, "qemu.img", size)?, root.join("qemu.sock"));
        let mut command = Command::new("qemu-nbd");
        command.args(["--format=raw", "--cache=none", "--aio=native", "--persistent", "--shared=4"]);
        command.arg("--socket").arg(&socket).arg(image);
        start("qemu-nbd", &mut command, socket, "", root)
    }

    /// `nbdkit file`, through the page cache as it comes.
    pub(crate) fn nbdkit_file(root: &Path, size: u64) -> anyhow::Result<Server> {
        let (image, socket) = (image(root, "nbdkit.img", size)?, root.join("nbdkit.sock"));
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(image);
        start("nbdkit file", &mut command, socket, "", root)
    }

    /// CPU seconds the server has used so far, all threads.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name may hold anything up to the last parenthesis; utime and stime are fields 14 and 15 (proc(5)).
        let fields: Vec<&str> = stat.rsplit(')').next().context("no fields")?.split_whitespace().collect();
        let ticks: f64 =
            fields.get(11).context("utime")?.parse::<f64>()? + fields.get(12).context("stime")?.parse::<f64>()?;
        Ok(ticks / TICKS_PER_SECOND)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already is fine too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn image(root: &Path, name: &str, size: u64) -> anyhow::Result<PathBuf> {
    let path = root.join(name);
    File::create(&path)?.set_len(size)?;
    Ok(path)
}

/// Starts a server and waits until its socket answers.
fn start(
    name: &'static str,
    command: &mut Command,
    socket: PathBuf,
    export: &str,
    root: &Path,
) -> anyhow::Result<Server> {
    let log = File::create(root.join(format!("{name}.log")))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("{name} cannot be started; `make tools` installs what is missing"))?;
    let mut server = Server { name, uri: format!("nbd+unix:///{export}?socket={}", socket.display()), child };
    let begun = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        if let Some(status) = server.child.try_wait()? {
            bail!("{name} ended with {status}");
        }
        ensure!(begun.elapsed() < PATIENCE, "{name} does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(server)
}
