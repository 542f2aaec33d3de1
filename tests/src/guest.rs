//! Virtual machines for tests: QEMU by emulation, Debian's cloud kernel, one program of ours as `/init`, and a disk over NBD.
//!
//! The program (`tests/guest/init.rs`) writes its disk without pause and checks what it finds there; its console tells. The machine is
//! steered over QMP, as libvirt does.
//!
//! Both ends of a migration map one file as the guest's memory, and no page of it is sent. QEMU's emulation loses pages that are written
//! while it sends them (7.2.22, one migration in some 180 on a busy machine, with nothing of ours in it: the disk was nbdkit's). Such a guest
//! has forgotten what it wrote, and takes a right disk for a wrong one.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::tools::{LOOK, Owned, run};

/// How long a guest may take for anything: it is emulated, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// A kernel, and the initramfs of our program.
pub struct Image {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl Image {
    /// Builds it in `dir`; the kernel is fetched once per machine.
    ///
    /// # Errors
    /// When the kernel cannot be fetched or the program not be built.
    pub fn build(dir: &Path) -> anyhow::Result<Image> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace lies above")?;
        let kernel = PathBuf::from(run(&mut Command::new(root.join(".ci/guest-kernel")))?.trim());
        let init = dir.join("init");
        let source = root.join("tests/guest/init.rs");
        let options =
            ["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols"];
        run(Command::new("rustc").args(options).arg("-o").arg(&init).arg(source))?;
        let mut archive = Cpio::default();
        archive.add("init", 0o100_755, &fs::read(init)?);
        for directory in ["dev", "modules"] {
            archive.add(directory, 0o040_755, &[]);
        }
        for module in fs::read_dir(kernel.join("modules"))? {
            let module = module?;
            archive.add(&format!("modules/{}", module.file_name().display()), 0o100_644, &fs::read(module.path())?);
        }
        let initramfs = dir.join("initramfs");
        fs::write(&initramfs, archive.finish())?;
        Ok(Image { kernel: kernel.join("vmlinuz"), initramfs })
    }
}

/// An archive in cpio's `newc` format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    count: u32,
}

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.count += 1;
        // inode, mode, uid, gid, links, mtime, size, four device numbers, bytes of the name, checksum.
        let fields = [self.count, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        fields.iter().for_each(|field| self.bytes.extend_from_slice(format!("{field:08x}").as_bytes()));
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(data);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// A QEMU process with our guest, or room for it. Ended when dropped.
pub struct Guest {
    process: Owned,
    console: PathBuf,
    qmp: Qmp,
}

/// What a guest said last of its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Blocks that it has written since it began.
    pub wrote: u64,
    /// How long the longest write since the word before took, in milliseconds.
    pub longest_ms: u64,
}

impl Guest {
    /// Starts a machine whose disk is `export` at `socket`; with `incoming` it waits there for another one to come in, whose `dir` is
    /// the same.
    ///
    /// # Errors
    /// When QEMU does not start, with what it said.
    pub fn start(
        dir: &Path,
        name: &str,
        image: &Image,
        (socket, export): (&Path, &str),
        incoming: Option<&Path>,
    ) -> anyhow::Result<Guest> {
        let [console, control, log] = ["console", "qmp", "log"].map(|what| dir.join(format!("{name}.{what}")));
        let disk = json!({
            "driver": "nbd", "node-name": "disk", "export": export,
            "server": { "type": "unix", "path": socket },
        });
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"]);
        let memory = dir.join("memory");
        command.args(["-m", "128", "-M", "pc,memory-backend=memory", "-object"]);
        command.arg(format!("memory-backend-file,id=memory,size=128M,share=on,mem-path={}", memory.display()));
        command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
        command.args(["-append", "console=ttyS0 quiet panic=-1"]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", control.display()));
        command.arg("-blockdev").arg(disk.to_string());
        command.args(["-device", "virtio-blk-pci,drive=disk"]);
        if let Some(path) = incoming {
            command.arg("-incoming").arg(format!("unix:{}", path.display()));
        }
        command.stdout(Stdio::null()).stderr(fs::File::create(&log)?);
        let mut process = Owned::start(&mut command, "qemu-system-x86_64; `make tools` installs it")?;
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(&control) {
                Ok(stream) => break stream,
                Err(_) if process.ended()?.is_none() && begun.elapsed() < PATIENCE => std::thread::sleep(LOOK),
                Err(error) => bail!("QEMU does not answer ({error}): {}", fs::read_to_string(&log)?),
            }
        };
        let mut guest = Guest { process, console, qmp: Qmp::greet(stream)? };
        guest.set("x-ignore-shared", true)?;
        Ok(guest)
    }

    /// Carries out a QMP command and returns what it returned.
    ///
    /// # Errors
    /// What QEMU says.
    pub fn ask(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        self.qmp.ask(command, arguments)
    }

    /// Begins to migrate the machine to the one that waits at `to`.
    ///
    /// # Errors
    /// What QEMU says.
    pub fn migrate(&mut self, to: &Path, pauses: bool) -> anyhow::Result<()> {
        self.set("pause-before-switchover", pauses)?;
        self.ask("migrate", json!({ "uri": format!("unix:{}", to.display()) })).map(drop)
    }

    /// Turns a capability of migrations on or off.
    fn set(&mut self, capability: &str, state: bool) -> anyhow::Result<()> {
        let capability = json!({ "capability": capability, "state": state });
        self.ask("migrate-set-capabilities", json!({ "capabilities": [capability] })).map(drop)
    }

    /// Waits until the migration is in this state, and returns what QEMU knows of it.
    ///
    /// # Errors
    /// When it fails, or does not come to that.
    pub fn until_migration_is(&mut self, wanted: &str) -> anyhow::Result<Value> {
        let begun = Instant::now();
        loop {
            let state = self.ask("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some(status) if status == wanted => return Ok(state),
                Some("failed") => bail!("the migration failed: {state}"),
                _ => ensure!(begun.elapsed() < PATIENCE, "the migration is not {wanted} but {state}"),
            }
            std::thread::sleep(LOOK);
        }
    }

    /// All that was said on the console.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn console(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.console)?).into_owned())
    }

    /// The words of the guest here, oldest first.
    ///
    /// # Errors
    /// When the guest found something wrong.
    pub fn words(&self) -> anyhow::Result<Vec<Word>> {
        let console = self.console()?;
        if let Some(wrong) = console.lines().find(|line| line.contains("WRONG")) {
            bail!("the guest found: {wrong}");
        }
        let word = |line: &str| {
            let (wrote, longest) = line.trim().strip_prefix("wrote ")?.split_once(", longest ")?;
            Some(Word { wrote: wrote.parse().ok()?, longest_ms: longest.strip_suffix(" ms")?.parse().ok()? })
        };
        Ok(console.lines().filter_map(word).collect())
    }

    /// Waits until the guest has written so many blocks here, and returns its words here.
    ///
    /// # Errors
    /// When it finds something wrong, or does not come to that.
    pub fn until_wrote(&mut self, blocks: u64) -> anyhow::Result<Vec<Word>> {
        let begun = Instant::now();
        loop {
            let words = self.words()?;
            if words.last().is_some_and(|word| word.wrote >= blocks) {
                return Ok(words);
            }
            if let Some(status) = self.process.ended()? {
                bail!("QEMU has ended ({status}); the console says: {}", self.console()?);
            }
            ensure!(begun.elapsed() < PATIENCE, "the guest does not write; the console says: {}", self.console()?);
            std::thread::sleep(LOOK);
        }
    }
}

/// The control connection (QEMU, docs/interop/qmp-spec.rst).
struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    fn greet(stream: UnixStream) -> anyhow::Result<Qmp> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Qmp { reader: BufReader::new(stream) };
        ensure!(qmp.line()?.get("QMP").is_some(), "QEMU greets");
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line)? > 0, "QEMU has closed the control connection");
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.reader.get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
            // Anything else is an event.
        }
    }
}
