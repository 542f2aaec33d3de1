//! The C library as its users have it: installed, found by pkg-config, linked by a C compiler and loaded by Python, against nodes that are
//! processes, which end now and then. What it exports is what is kept, and nothing else.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use client_lib::client::{OpenOptions, Volume, blocking};
use rustix::time::{ClockId, clock_gettime};
use tests::cluster::helio;
use tests::nodes::Nodes;
use tests::tools::{Owned, count, run};

const PATIENCE: Duration = Duration::from_secs(120);

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../client-lib/c")
}

/// The library, installed below a directory that ends with this.
struct Installed {
    directory: tempfile::TempDir,
}

impl Installed {
    fn new() -> Installed {
        let archive = helio().expect("is built").with_file_name("libclient_lib.a");
        assert!(
            archive.exists(),
            "{} is not built; `make unit` builds it, and so does `cargo rustc -p client-lib --lib --crate-type staticlib`",
            archive.display()
        );
        let directory = tempfile::tempdir().expect("temporary directory");
        run(Command::new(sources().join("install")).arg(archive).arg(directory.path())).expect("is linked");
        Installed { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn library(&self) -> PathBuf {
        self.path().join("lib/libheliotrope.so")
    }

    fn pkg_config(&self, arguments: &[&str]) -> String {
        let directory = self.path().join("lib/pkgconfig");
        let told = run(Command::new("pkg-config").args(arguments).arg("heliotrope").env("PKG_CONFIG_PATH", directory));
        told.expect("pkg-config knows it").trim().to_owned()
    }

    /// Compiles a program with all warnings as errors, and links it as the documentation says.
    fn compile(&self, compiler: &str, arguments: &[&str], source: &Path) -> PathBuf {
        let program = self.path().join(source.file_stem().expect("a file"));
        let flags = self.pkg_config(&["--cflags", "--libs"]);
        let mut command = Command::new(compiler);
        command.args(["-Wall", "-Wextra", "-Werror"]).args(arguments).arg("-o").arg(&program).arg(source);
        run(command.args(flags.split_whitespace())).expect("compiles without a warning");
        program
    }

    /// A command that finds the library.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.path().join("lib"));
        command
    }
}

/// A node with a volume `disk`, and credentials for it.
fn node(size: &str) -> (Nodes, PathBuf) {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", size, "--owner", "a"]).expect("is created");
    let credentials = nodes.credentials("program").expect("are issued");
    (nodes, credentials)
}

#[test]
fn it_exports_the_kept_symbols_with_their_version_and_nothing_else() {
    let installed = Installed::new();
    let map = std::fs::read_to_string(sources().join("heliotrope.map")).expect("is there");
    let (version, rest) = map.split_once(" {").expect("a version");
    let (_, names) = rest.split_once("global:").expect("what is seen");
    let (names, hidden) = names.split_once("local:").expect("what is not");
    assert_eq!(hidden.split_whitespace().collect::<String>(), "*;};");
    let mut kept: Vec<String> = names.split(';').map(|name| format!("{}@@{version}", name.trim())).collect();
    assert_eq!(kept.pop(), Some(format!("@@{version}")), "behind the last semicolon is nothing");
    assert!(kept.len() > 20 && kept.iter().all(|name| name.starts_with("helio_")), "{kept:?}");
    // The version itself is one, too.
    kept.push(format!("{version}@@{version}"));
    let told = run(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(installed.library()));
    let told = told.expect("nm reads it");
    let mut exported: Vec<&str> = told.lines().filter_map(|line| line.split(' ').next()).collect();
    exported.sort_unstable();
    kept.sort_unstable();
    // Some versions of nm tell the version of a version, others do not.
    let plain = exported.iter().position(|name| *name == version);
    if let Some(at) = plain {
        exported.remove(at);
        kept.retain(|name| !name.starts_with(version));
    }
    assert_eq!(exported, kept);
    let dynamic = run(Command::new("readelf").args(["-d", "-W"]).arg(installed.library())).expect("readelf reads it");
    assert!(dynamic.contains("Library soname: [libheliotrope.so.0]"), "{dynamic}");
    let needed: Vec<&str> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    let is_system =
        |line: &&str| ["libc.so", "libm.so", "libgcc_s.so", "ld-linux"].iter().any(|own| line.contains(own));
    assert!(needed.iter().all(is_system), "{needed:?}");
    assert_eq!(installed.pkg_config(&["--modversion"]), env!("CARGO_PKG_VERSION"));
    let links = ["libheliotrope.so", "libheliotrope.so.0"].map(|name| installed.path().join("lib").join(name));
    let whole = installed.path().join(format!("lib/libheliotrope.so.{}", env!("CARGO_PKG_VERSION")));
    for link in links {
        assert_eq!(link.canonicalize().expect("leads somewhere"), whole.canonicalize().expect("is there"));
    }
}

/// What a program that was compiled with this header relies on, for the compiler to check.
const RELIED_ON: &str = include_str!("../c_library/relied_on.c");

#[test]
fn the_header_is_c_and_cpp_its_layout_is_kept_and_a_forked_child_is_refused() {
    let installed = Installed::new();
    for (compiler, name, arguments) in [
        ("cc", "c11.c", ["-std=c11", "-pedantic"]),
        ("c++", "cpp11.cpp", ["-std=c++11", "-pedantic"]),
        ("c++", "cpp20.cpp", ["-std=c++20", "-pedantic"]),
    ] {
        let source = installed.path().join(name);
        std::fs::write(&source, RELIED_ON).expect("is written");
        let program = installed.compile(compiler, &arguments, &source);
        run(&mut installed.command(program)).expect("what it was compiled with is what it finds");
    }
}

#[test]
fn the_c_example_does_not_see_its_node_killed_and_started_again() {
    let installed = Installed::new();
    let example = installed.compile("cc", &["-std=c11"], &sources().join("example.c"));
    let (mut nodes, credentials) = node("256M");
    // A C program dies of a signal if it writes to a socket whose other end is gone, and nobody takes care.
    for way in [&credentials, &nodes.path().join("a/client.sock")] {
        let mut command = installed.command(&example);
        command.arg(way).args(["disk", "20000", "128"]).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut running = Owned::start(&mut command, "the example").expect("starts");
        let mut lines = BufReader::new(running.stdout().expect("once")).lines();
        let mut until = |wanted: &str| {
            lines.by_ref().map(|line| line.expect("is read")).find(|line| line.contains(wanted)).expect("is said")
        };
        until("disk: 268435456 bytes");
        until("half is written");
        nodes.kill("a").expect("it runs");
        assert!(running.ended().expect("is known").is_none(), "it has the other half to write, and all to read");
        nodes.start_node("a").expect("starts");
        until("20000 blocks are durable, owner a, epoch 1");
        until("all is well");
        assert!(running.wait(PATIENCE).expect("ends"), "it failed");
    }
    // Told what is the matter, and what to do.
    let failed = run(installed.command(&example).arg(&credentials).arg("disc")).expect_err("no such volume");
    assert!(failed.to_string().contains("disc: ") && failed.to_string().contains("no volume"), "{failed}");
    let failed = run(installed.command(&example).arg("/nowhere").arg("disk")).expect_err("no such file");
    assert!(failed.to_string().contains("helio cluster client NAME --out FILE"), "{failed}");
}

#[test]
fn the_python_example_writes_reads_and_is_told_of_mistakes() {
    let installed = Installed::new();
    let (nodes, credentials) = node("16M");
    nodes.run("a", &["volume", "snapshot", "create", "disk@monday"]).expect("is made");
    let mut python = installed.command("python3");
    let said = run(python.arg(sources().join("example.py")).arg(&credentials).arg("disk")).expect("all is well");
    for wanted in [
        "volumes: [('disk', 16777216), ('disk@monday', 16777216)]",
        "beyond the end: [Errno 22]",
        "opened for reading: [Errno 30]",
        "all is well",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let key = nodes.path().join("prod.key").display().to_string();
    nodes.run("a", &["volume", "key", "generate", "--out", &key]).expect("is made");
    let encrypted = ["--encrypt", "--key-file", &key];
    nodes.run("a", &[&["volume", "create", "vault", "--size", "16M"][..], &encrypted].concat()).expect("is created");
    let python = |arguments: &[&str]| {
        let mut command = installed.command("python3");
        run(command.arg(sources().join("example.py")).arg(&credentials).args(arguments))
    };
    assert!(python(&["vault", &key]).expect("all is well").contains("all is well"));
    let refused = python(&["vault"]).expect_err("without the key").to_string();
    assert!(refused.contains("is encrypted"), "{refused}");
}

#[test]
fn every_call_does_what_the_header_says() {
    let installed = Installed::new();
    let (nodes, credentials) = node("64M");
    nodes.run("a", &["volume", "snapshot", "create", "disk@monday"]).expect("is made");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("c_library/every_call.py");
    let said = run(installed.command("python3").arg(script).arg(credentials).env("PYTHONPATH", sources()));
    assert!(said.expect("no exception").contains("every call is well"));
}

const BLOCK: u64 = 4096;

/// Nanoseconds of an operation, and those of them that threads of the process used a processor.
type Cost = (u64, u64);

/// What an operation costs in Rust, as `client-lib/c/cost.c` measures it in C.
fn cost_in_rust(credentials: &Path, operations: u64) -> BTreeMap<String, Cost> {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let mut costs = BTreeMap::new();
    let mut note = |name: &str, (begun, before): (Instant, Duration)| {
        let each = |time: Duration| (time.as_nanos() / u128::from(operations)) as u64;
        costs.insert(name.to_owned(), (each(begun.elapsed()), each(cpu() - before)));
    };
    let begin = || (Instant::now(), cpu());
    let cluster = blocking::Cluster::from_credentials(credentials).expect("is one");
    let disk = cluster.open("disk", OpenOptions::default()).expect("opens");
    let blocks = disk.size() / BLOCK;
    let begun = begin();
    for number in 0..operations {
        disk.write(number % blocks * BLOCK, Bytes::from(vec![0; BLOCK as usize]), false).expect("is written");
    }
    note("write", begun);
    let (begun, mut buffer) = (begin(), vec![0; BLOCK as usize]);
    for number in 0..operations {
        buffer.copy_from_slice(&disk.read(number % blocks * BLOCK, BLOCK as u32).expect("is read"));
    }
    note("read", begun);
    disk.close().expect("is flushed");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread");
    runtime.block_on(async {
        let cluster = client_lib::client::Cluster::from_credentials(credentials).expect("is one");
        let disk = Arc::new(cluster.open("disk", OpenOptions::default()).await.expect("opens"));
        disk.flush().await.expect("is attached");
        for (name, is_write) in [("write 32", true), ("read 32", false)] {
            let slot = |disk: Arc<Volume>, slot: u64| async move {
                for number in (slot..operations).step_by(32) {
                    let offset = number % blocks * BLOCK;
                    if is_write {
                        disk.write(offset, Bytes::from(vec![0; BLOCK as usize])).await.expect("is written");
                    } else {
                        disk.read(offset, BLOCK as u32).await.expect("is read");
                    }
                }
            };
            let begun = begin();
            let slots: Vec<_> = (0..32).map(|number| tokio::spawn(slot(disk.clone(), number))).collect();
            for slot in slots {
                slot.await.expect("no panic");
            }
            note(name, begun);
        }
    });
    costs
}

/// Prints what an operation costs in C and in Rust; `HELIO_C_OPERATIONS` for figures worth a look (10000), of an optimised build.
#[test]
fn what_c_costs_over_rust_is_shown() {
    let installed = Installed::new();
    let cost = installed.compile("cc", &["-std=c11", "-O2"], &sources().join("cost.c"));
    let (_nodes, credentials) = node("16M");
    let operations = count("HELIO_C_OPERATIONS", 200);
    let rounds = if operations > 1000 { 5 } else { 1 };
    let least = |costs: &mut BTreeMap<String, Cost>, name: String, found: Cost| {
        let cost = costs.entry(name).or_insert(found);
        *cost = (cost.0.min(found.0), cost.1.min(found.1));
    };
    let (mut in_c, mut in_rust) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..rounds {
        let mut command = installed.command(&cost);
        let said = run(command.arg(&credentials).arg("disk").arg(operations.to_string())).expect("runs");
        for line in said.lines() {
            let mut words = line.rsplitn(3, ' ');
            let (cpu, elapsed, name) = (words.next(), words.next(), words.next().expect("a name"));
            let figure = |word: Option<&str>| word.expect("three words").parse().expect("a figure");
            least(&mut in_c, name.to_owned(), (figure(elapsed), figure(cpu)));
        }
        for (name, cost) in cost_in_rust(&credentials, operations) {
            least(&mut in_rust, name, cost);
        }
    }
    println!("ns per operation of 4 KiB, and of processor time; the least of {rounds} rounds of {operations}");
    for (name, (elapsed, cpu)) in &in_c {
        let (rust_elapsed, rust_cpu) = in_rust[name];
        println!("{name:>8}: C {elapsed:>7} {cpu:>7}, Rust {rust_elapsed:>7} {rust_cpu:>7}");
    }
    assert_eq!(in_c.keys().collect::<Vec<_>>(), ["read", "read 32", "write", "write 32"].iter().collect::<Vec<_>>());
    assert!(in_c.keys().eq(in_rust.keys()));
}
