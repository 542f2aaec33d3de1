//! The container image: laid out of built programs, and run with its files as the whole file system. There is no container runtime here:
//! `chroot` is what shows whether anything is missing. Needs root.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::cluster::helio;
use tests::page::tree;
use tests::tools::{Owned, run, tool, until_or};

const PATIENCE: Duration = Duration::from_secs(90);
/// The user of the image.
const USER: &str = "10810:10810";

#[test]
fn a_cluster_runs_with_nothing_but_the_files_of_the_image() {
    let directory = tempfile::tempdir().expect("a directory");
    let helio = helio().expect("is built");
    let mut build = Command::new(tree().join("storage-node/container/build"));
    build.arg(helio.parent().expect("lies in a directory")).arg(directory.path());
    run(&mut build).expect("is laid out");

    let recipe = fs::read_to_string(directory.path().join("Containerfile")).expect("is there");
    let lines: Vec<&str> = recipe.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines[..2], ["FROM scratch", "COPY files/ /"], "nothing else comes into it");
    assert!(lines.contains(&format!("USER {USER}").as_str()), "{recipe}");
    let root = directory.path().join("files");
    for shell in ["bin/sh", "usr/bin/sh", "bin/bash"] {
        assert!(!root.join(shell).exists(), "{shell} is in it");
    }
    if !rustix::process::geteuid().is_root() {
        return eprintln!("not run: chroot needs root");
    }

    let inside = || {
        let mut command = tool("chroot");
        command.arg(format!("--userspec={USER}")).arg(&root).env_clear().env("HELIO_DATA", "/var/lib/heliotrope");
        command
    };
    let version = run(inside().args(["/usr/bin/helio", "--version"])).expect("it runs");
    assert_eq!(version.trim(), format!("helio {}", env!("CARGO_PKG_VERSION")));
    run(inside().args(["/usr/bin/helio-nbd", "--help"])).expect("it runs");

    // Everyone may go as far as the data, and it is that user's.
    run(Command::new("chmod").arg("755").arg(directory.path())).expect("is set");
    run(Command::new("chown").arg("-R").arg(USER).arg(root.join("var/lib/heliotrope"))).expect("is given");
    let (out, log) = (directory.path().join("out"), directory.path().join("log"));
    let mut up = inside();
    up.args(["/usr/bin/helio", "up", "--nbd-port", "0", "--http-port", "0", "--data", "/var/lib/heliotrope"]);
    up.stdout(File::create(&out).expect("is made")).stderr(File::create(&log).expect("is made"));
    let process = Owned::start(&mut up, "helio in chroot").expect("starts");
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    until_or("it is ready", PATIENCE, || text(&out).contains("\nready"), || text(&log));
    run(inside().args(["/usr/bin/helio", "volume", "create", "disk", "--size", "16M", "--owner", "a"]))
        .expect("is made");
    let socket = root.join("var/lib/heliotrope/a/nbd.sock");
    let told = run(Command::new("nbdinfo").arg("--size").arg(format!("nbd+unix:///disk?socket={}", socket.display())));
    assert_eq!(told.expect("is served").trim(), (16 << 20).to_string());
    run(inside().args(["/usr/bin/helio", "volume", "migrate", "disk", "--to", "b"])).expect("moves");
    drop(process);
}
