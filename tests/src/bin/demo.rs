//! The demo: a real file system written at one provider, changed through a mount, handed over twice
//! under load, read back elsewhere and compared file by file.
//!
//! Owns everything it starts and ends it by id when it leaves, on success, failure and Ctrl-C alike. It talks
//! to the cluster only through the `helio` command and independent NBD clients.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a report for people")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::mount::Mounted;
use tests::tools::{self, Owned, tool};

/// Directories that a Debian has; those present are copied until [`TREE_LIMIT`] is reached.
const SOURCES: &[&str] = &[
    "/usr/share/perl",
    "/usr/share/perl5",
    "/usr/share/i18n",
    "/usr/share/zoneinfo",
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/lib/python3",
    "/usr/share/locale",
];
/// Bytes after which no further source directory is added.
const TREE_LIMIT: u64 = 250 << 20;
/// Size of the image and its volume.
const IMAGE_MIB: u64 = 768;
/// For people.
const MIB: f64 = (1u64 << 20) as f64;
/// How long `helio up`, a mount or a process end may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime
            && runtime.block_on(tokio::signal::ctrl_c()).is_ok()
        {
            INTERRUPTED.store(true, Ordering::SeqCst);
        }
    });
    match demo() {
        Ok(()) => println!("\nverdict: PASS, every file is the same at provider c"),
        Err(error) => {
            eprintln!("\nverdict: FAIL, {error:#}");
            std::process::exit(1);
        }
    }
}

fn demo() -> Result<()> {
    let work = tempfile::Builder::new().prefix("helio-demo-").tempdir()?;
    let dir = work.path();
    let root = rustix::process::geteuid().is_root();

    step("building an ext4 image from directories of this machine");
    let (tree, image) = (dir.join("tree"), dir.join("image"));
    fs::create_dir(&tree)?;
    let mut bytes = 0;
    for source in SOURCES.iter().filter(|s| Path::new(s).is_dir()) {
        if bytes >= TREE_LIMIT {
            break;
        }
        run(Command::new("cp").args(["-r", "--no-dereference", "--parents", source]).arg(&tree))?;
        bytes = hashes(&tree)?.1;
    }
    let (mut expected, bytes) = hashes(&tree)?;
    println!("   {} files, {} MiB", expected.len(), bytes >> 20);
    run(tool("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&image).arg(format!("{IMAGE_MIB}M")))?;

    step("starting three providers, 60 ms round trip apart");
    let helio = helio_binary()?;
    let data = dir.join("data");
    let log = dir.join("helio.log");
    // Port 0 asks for free ports; the demo itself uses the Unix sockets.
    let mut up = Command::new(&helio);
    up.args(["up", "--rtt", "60", "--nbd-port", "0", "--http-port", "0", "--data"]).arg(&data);
    up.stdout(Stdio::piped()).stderr(File::create(&log)?);
    let mut up = Owned::start(&mut up, "helio up")?;
    wait_ready(&mut up).with_context(|| format!("helio up said: {}", fs::read_to_string(&log).unwrap_or_default()))?;
    let cli = |args: &[&str]| {
        run(Command::new(&helio).args(args).env("HELIO_DATA", &data).current_dir(dir).args(["--data"]).arg(&data))
    };
    cli(&["volume", "create", "disk", "--size", &format!("{IMAGE_MIB}M"), "--owner", "a"])?;
    cli(&["volume", "create", "load", "--size", "128M", "--owner", "a"])?;
    let uri = |node: &str, volume: &str| {
        format!("nbd+unix:///{volume}?socket={}", data.join(node).join("nbd.sock").display())
    };

    step("writing the image at provider a (nbdcopy)");
    run(Command::new("nbdcopy").args(["--connections=4", "--flush"]).arg(&image).arg(uri("a", "disk")))?;

    let changes = [("/demo-new", dir.join("new-1")), ("/demo-second", dir.join("new-2"))];
    for (index, (_, file)) in changes.iter().enumerate() {
        fs::write(file, format!("written through a mount, {index}\n").repeat(200_000))?;
    }
    let removed = expected.keys().next().context("the tree is empty")?.clone();
    if root {
        step("changing it through a real mount (nbdfuse, loop, ext4)");
        let mount = Mounted::new(dir, &uri("a", "disk"))?;
        for (name, file) in &changes {
            fs::copy(file, mount.point().join(&name[1..]))?;
        }
        fs::remove_file(mount.point().join(&removed))?;
        mount.finish()?;
    } else {
        step("changing it with debugfs (not root: no mount), copied back with nbdcopy");
        run(Command::new("nbdcopy").arg(uri("a", "disk")).arg(dir.join("edit")))?;
        let mut script = format!("rm \"/{removed}\"\n");
        for (name, file) in &changes {
            script += &format!("write {} {name}\n", file.display());
        }
        fs::write(dir.join("script"), script)?;
        run(tool("debugfs").args(["-w", "-f"]).arg(dir.join("script")).arg(dir.join("edit")))?;
        run(Command::new("nbdcopy").arg("--flush").arg(dir.join("edit")).arg(uri("a", "disk")))?;
    }
    expected.remove(&removed);
    for (name, file) in &changes {
        expected.insert(name[1..].to_owned(), sum(file)?);
    }

    step("starting a verifying writer at a (fio), then handing both volumes to b and to c");
    let fio_log = dir.join("fio.log");
    let mut fio = Command::new("fio");
    fio.args([
        "--name=demo",
        "--ioengine=nbd",
        "--rw=randrw",
        "--bs=4k",
        "--size=32M",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        // Every block once, so verification has a defined end; the rate makes it outlast both handovers.
        "--rate_iops=600,600",
        // In fio's own process: ending the one child ends the job.
        "--thread",
    ]);
    fio.arg(format!("--uri={}", uri("a", "load"))).current_dir(dir);
    fio.stdout(File::create(&fio_log)?).stderr(File::create(dir.join("fio.err"))?);
    let mut fio = Owned::start(&mut fio, "fio")?;
    pause(Duration::from_secs(5))?;
    let mut report = Vec::new();
    for to in ["b", "c"] {
        for volume in ["load", "disk"] {
            ensure!(fio.ended()?.is_none(), "fio ended before the handover to {to}");
            let reply: Value = serde_json::from_str(&cli(&["volume", "migrate", volume, "--to", to, "--json"])?)?;
            let number = |field: &str| reply[field].as_f64().with_context(|| format!("no {field} in {reply}"));
            report.push(format!(
                "{volume:<8}{to:<4}{:<6}{:>12.1} ms{:>14.1} MiB",
                number("epoch")?,
                number("handover_ms")?,
                number("stale_bytes_at_handover")? / MIB,
            ));
        }
        pause(Duration::from_secs(3))?;
    }
    step("waiting for fio to finish its verification");
    let end = Instant::now() + PATIENCE * 3;
    let status = loop {
        if let Some(status) = fio.ended()? {
            break status;
        }
        ensure!(Instant::now() < end, "fio did not end");
        pause(Duration::from_millis(50))?;
    };
    ensure!(
        status.success(),
        "fio found an error: {}",
        fs::read_to_string(&fio_log)? + &fs::read_to_string(dir.join("fio.err"))?
    );

    step("reading the image back at provider c (nbdcopy) and checking it");
    let back = dir.join("back");
    run(Command::new("nbdcopy").arg("--connections=4").arg(uri("c", "disk")).arg(&back))?;
    run(tool("e2fsck").args(["-f", "-n"]).arg(&back))?;
    let out = dir.join("out");
    fs::create_dir(&out)?;
    run(tool("debugfs").arg("-R").arg(format!("rdump / {}", out.display())).arg(&back))?;
    let (found, _) = hashes(&out)?;
    let different: Vec<_> =
        expected.iter().filter(|(name, hash)| found.get(*name) != Some(hash)).map(|(n, _)| n).collect();
    let extra: Vec<_> = found.keys().filter(|name| !expected.contains_key(*name)).collect();

    println!("\nreport");
    println!("   volume  to  epoch writers waited  data to follow");
    report.iter().for_each(|line| println!("   {line}"));
    let cluster: Value = serde_json::from_str(&cli(&["cluster", "status", "--json"])?)?;
    let wan_bytes = cluster["wan_bytes"].as_f64().context("the cluster reports no WAN bytes")?;
    println!("   {:.1} MiB crossed the emulated WAN", wan_bytes / MIB);
    println!("   e2fsck clean, fio without error, {} files compared", expected.len());
    ensure!(different.is_empty() && extra.is_empty(), "files differ: {different:?}; not expected: {extra:?}");
    Ok(())
}

fn step(text: &str) {
    println!("== {text}");
}

/// Lets the load run for a while; the only effect of a different length is more or less load.
fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Runs a tool, unless the demo was told to stop.
fn run(command: &mut Command) -> Result<String> {
    ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
    tools::run(command)
}

/// `HELIO` if set, else the binary beside this one.
fn helio_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HELIO") {
        return Ok(path.into());
    }
    let beside = std::env::current_exe()?.with_file_name("helio");
    ensure!(beside.exists(), "{} is not built: `make demo` builds it", beside.display());
    Ok(beside)
}

fn wait_ready(up: &mut Owned) -> Result<()> {
    let output = up.stdout().context("no output pipe")?;
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            println!("   {line}");
            if line.starts_with("ready") {
                let _ = send.send(());
            }
        }
    });
    receive.recv_timeout(PATIENCE).context("helio up never said ready")
}

/// SHA-256 of a file, by coreutils.
fn sum(file: &Path) -> Result<String> {
    let text = run(Command::new("sha256sum").arg("--").arg(file))?;
    Ok(text.trim_start_matches('\\').chars().take(64).collect())
}

/// Hash of every regular file below `tree`, by relative path, and their bytes.
fn hashes(tree: &Path) -> Result<(BTreeMap<String, String>, u64)> {
    let text = run(Command::new("find").args([".", "-type", "f", "-exec", "sha256sum", "{}", "+"]).current_dir(tree))?;
    let mut map = BTreeMap::new();
    let mut bytes = 0;
    for line in text.lines() {
        let (hash, name) = line.split_once("  ./").with_context(|| format!("odd line {line}"))?;
        bytes += fs::metadata(tree.join(name)).map_or(0, |m| m.len());
        map.insert(name.to_owned(), hash.to_owned());
    }
    Ok((map, bytes))
}
