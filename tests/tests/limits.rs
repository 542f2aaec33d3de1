//! Where things end: wrong input, used directories and ports, a full disk. Each is answered with what to do, and harms
//! nothing.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tests::cluster::{Up, helio, output, refusal};
use tests::nbd_client::{Client, ENOSPC, Error};
use tests::tools::{run, tool};

#[test]
fn wrong_input_is_answered_with_what_to_do() {
    let up = Up::start(&["--providers", "a"]).expect("starts");
    let data = up.data();
    let data = data.to_str().expect("is UTF-8");
    let long = "x".repeat(64);
    for (arguments, expected) in [
        (&["status", "nope"][..], "there is no volume \"nope\"; `helio volume list`"),
        (&["migrate", "nope", "--to", "a"], "there is no volume \"nope\""),
        (&["delete", "nope", "--yes"], "there is no volume \"nope\""),
        (&["create", "v", "--size", "0"], "above 0"),
        (&["create", "v", "--size", "1000"], "multiple of 512"),
        (&["create", "v", "--size", "17T"], "16 TiB"),
        (&["create", "a/b", "--size", "1M"], "it contains '/'; use 1 to 63 letters"),
        (&["create", "a b", "--size", "1M"], "it contains ' '"),
        (&["create", "na\u{ef}ve", "--size", "1M"], "it contains '\u{ef}'"),
        (&["create", "v@1", "--size", "1M"], "it contains '@'"),
        (&["create", "", "--size", "1M"], "it is empty"),
        (&["create", &long, "--size", "1M"], "it has 64 bytes"),
        (&["create", "v", "--size", "1M", "--owner", "zz"], "there is no node \"zz\"; the nodes are a"),
        (&["create", "v", "--size", "1M", "--replicas", "a,zz"], "there is no node \"zz\"; the nodes are a"),
    ] {
        let said = refusal(&[&["volume"], arguments, &["--data", data]].concat());
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    up.run(&["volume", "create", "v", "--size", "1M"]).expect("is created");
    for (arguments, expected) in [
        (&["create", "v", "--size", "1M"][..], "exists already; choose another name or delete it first"),
        (&["migrate", "v", "--to", "zz"], "there is no node \"zz\"; the nodes are a"),
        // From a script, or over ssh without a terminal, it went with all of its snapshots, unasked.
        (&["delete", "v"], "nothing was changed: --yes says that it is meant"),
    ] {
        let said = refusal(&[&["volume"], arguments, &["--data", data]].concat());
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    for arguments in [
        &["volume", "list", "--json"][..],
        &["volume", "status", "v", "--json"],
        &["volume", "migrate", "v", "--to", "a", "--json"],
        &["volume", "delete", "v", "--json", "--yes"],
        &["volume", "create", "v", "--size", "1M", "--json"],
        &["cluster", "status", "--json"],
    ] {
        let said = up.run(arguments).expect("succeeds");
        assert!(serde_json::from_str::<Value>(&said).is_ok(), "{arguments:?}: {said}");
    }
}

#[test]
fn wrong_usage_and_no_cluster_are_told_apart() {
    for arguments in [
        &["volume", "list", "--nonsense"][..],
        &["volume", "create", "v", "--size", "1.5G"],
        &["up", "--rtt", "x"],
        &[],
    ] {
        assert_eq!(output(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let said = refusal(&["volume", "list"]);
    assert!(
        said.contains("no cluster runs from nowhere, or it is still starting; start one with `helio up`"),
        "{said}"
    );
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let said = refusal(&["volume", "list", "--cluster", &nobody.to_string()]);
    assert!(said.contains("no node of the cluster can be reached"), "{said}");
}

/// `helio … | head -1` once ended with a panic's message.
#[test]
fn a_command_whose_reader_has_gone_ends_quietly() {
    let up = Up::start(&["--providers", "a"]).expect("starts");
    let mut command = Command::new(helio().expect("is built"));
    command.args(["volume", "list", "--data"]).arg(up.data()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

/// It once ended with a panic's message, and 101.
#[test]
fn a_command_that_cannot_write_its_output_says_so() {
    let up = Up::start(&["--providers", "a"]).expect("starts");
    let full = fs::File::options().write(true).open("/dev/full").expect("is there");
    let mut command = Command::new(helio().expect("is built"));
    command.args(["volume", "list", "--data"]).arg(up.data()).stdout(full).stderr(Stdio::piped());
    let output = command.spawn().expect("runs").wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "helio: cannot write the output: No space left on device\n");
}

/// Paths and contents below a directory, but for the locks, which name the last process.
fn listing(directory: &Path) -> String {
    run(Command::new("find")
        .args([".", "-type", "f", "!", "-name", "lock", "-exec", "sha256sum", "{}", "+"])
        .current_dir(directory))
    .expect("is listed")
}

fn up_refused(data: &Path, more: &[&str]) -> String {
    refusal(
        &[&["up", "--nbd-port", "0", "--http-port", "0", "--data", data.to_str().expect("is UTF-8")], more].concat(),
    )
}

#[test]
fn directories_and_ports_of_others_are_left_alone() {
    let mut up = Up::start(&["--providers", "a"]).expect("starts");
    assert!(up_refused(&up.data(), &[]).contains("is in use by process"));
    assert!(up_refused(&up.data(), &["--fresh"]).contains("is in use by process"), "nor wiped");
    up.run(&["volume", "create", "v", "--size", "1M"]).expect("goes on");

    up.stop().expect("stops");
    let before = listing(&up.data());
    assert!(up_refused(&up.data(), &["--providers", "a,b"]).contains("holds a cluster of providers a, not a,b"));
    fs::write(up.data().join("FORMAT"), "heliotrope 2\n").expect("is written");
    let newer = listing(&up.data());
    let said = up_refused(&up.data(), &[]);
    assert!(said.contains("format 2, this program uses 1") && said.contains("nothing was changed"), "{said}");
    assert!(up_refused(&up.data(), &["--fresh"]).contains("format 2"), "nor wiped");
    assert_eq!(listing(&up.data()), newer);
    fs::write(up.data().join("FORMAT"), "heliotrope 1\n").expect("is written");
    assert_eq!(listing(&up.data()), before);

    // A node inside of it may be of a newer format too.
    fs::write(up.data().join("a/shard-0/FORMAT"), "heliotrope-shard 9\n").expect("is written");
    let newer = listing(&up.data().join("a/shard-0"));
    let output = output(&[
        "up",
        "--nbd-port",
        "0",
        "--http-port",
        "0",
        "--providers",
        "a",
        "--data",
        up.data().to_str().expect("is UTF-8"),
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("node a cannot be started") && said.contains('9'), "{said}");
    assert_eq!(listing(&up.data().join("a/shard-0")), newer);

    let foreign = tempfile::tempdir().expect("a directory");
    fs::write(foreign.path().join("thesis.tex"), "years of work").expect("is written");
    for more in [&[][..], &["--fresh"]] {
        assert!(up_refused(foreign.path(), more).contains("holds other files (thesis.tex)"));
    }
    assert!(foreign.path().join("thesis.tex").exists());

    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let empty = tempfile::tempdir().expect("a directory");
    for option in ["--nbd-port", "--http-port"] {
        let other = if option == "--nbd-port" { "--http-port" } else { "--nbd-port" };
        let said = refusal(&["up", option, &port, other, "0", "--data", empty.path().to_str().expect("is UTF-8")]);
        assert!(said.contains(&format!("port {port} cannot be used")) && said.contains(option), "{said}");
    }
}

/// A small file system of its own; unmounted when dropped.
struct Small {
    directory: tempfile::TempDir,
}

impl Small {
    fn new(size: &str) -> Small {
        let directory = tempfile::tempdir().expect("a directory");
        let (image, point) = (directory.path().join("image"), directory.path().join("mnt"));
        fs::create_dir(&point).expect("is made");
        run(tool("mke2fs").args(["-q", "-t", "ext4", "-m", "0"]).arg(&image).arg(size)).expect("is made");
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point)).expect("mounts");
        Small { directory }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("mnt")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a small file system of its own needs root to be mounted");
        return;
    }
    let small = Small::new("420M");
    let directory = tempfile::tempdir_in(small.path()).expect("a directory");
    let mut up = Up::start_in(directory, &["--providers", "a"]).expect("starts");
    for volume in ["first", "second"] {
        up.run(&["volume", "create", volume, "--size", "1G"]).expect("is created");
    }
    let data = vec![7; 1 << 20];
    let mut first = Client::connect(&up.socket("a"), "first").expect("connects");
    let mut written = 0;
    let refused = loop {
        match first.write(written << 20, &data) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 420, "more than fits is not there");
    };
    assert!(matches!(refused, Error::Refused(ENOSPC)), "{refused:?}");
    assert!(written > 50, "only {written} MiB fit");
    for mib in [0, written / 2, written - 1] {
        assert!(first.read(mib << 20, 1 << 20).expect("is read") == data);
    }
    first.flush().expect("what was acked can be made durable");
    up.run(&["volume", "status", "first"]).expect("tells");
    up.run(&["volume", "create", "third", "--size", "1M"]).expect("a name takes no space");

    up.stop().expect("stops cleanly");
    up.restart().expect("starts again");
    let mut first = Client::connect(&up.socket("a"), "first").expect("connects");
    assert!(first.read(0, 1 << 20).expect("is read") == data);
    drop(first);
    up.run(&["volume", "delete", "first", "--yes"]).expect("is deleted");
    let mut second = Client::connect(&up.socket("a"), "second").expect("connects");
    let begun = std::time::Instant::now();
    while let Err(error) = second.write(0, &data) {
        assert!(matches!(error, Error::Refused(ENOSPC)), "{error:?}");
        assert!(begun.elapsed().as_secs() < 60, "the space of a deleted volume comes back");
        std::thread::yield_now();
    }
    for mib in 1..written / 2 {
        while second.write(mib << 20, &data).is_err() {
            assert!(begun.elapsed().as_secs() < 60, "all of it comes back");
            std::thread::yield_now();
        }
    }
    assert!(second.read((written / 2 - 1) << 20, 1 << 20).expect("is read") == data);
    drop(second);
    up.stop().expect("stops cleanly");
    drop(up);
}
