//! `helio volume import` and `export` at a cluster of two providers: files, qcow2, other NBD servers, interruptions.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::cluster::{Up, helio};
use tests::nbd_client::Client;
use tests::nodes::Nodes;
use tests::tools::{Owned, run};
use tests::workload::{BLOCK, check, fill};

const MIB: u64 = 1 << 20;
const SEED: u64 = 41;
/// Whatever takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(60);

fn tool(program: &str, arguments: &[&str]) -> String {
    run(Command::new(program).args(arguments)).unwrap_or_else(|error| panic!("{error}"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("is UTF-8")
}

fn up() -> Up {
    Up::start(&["--providers", "a,b"]).expect("starts")
}

/// What a command says that must fail.
fn refused(up: &Up, arguments: &[&str]) -> String {
    match up.run(arguments) {
        Ok(said) => panic!("{arguments:?} must fail: {said}"),
        Err(error) => error.to_string(),
    }
}

/// A sparse raw image of `mib` MiB: every other MiB has blocks that say what they are, with one of zeroes among them.
fn image(path: &Path, mib: u64) -> String {
    let file = File::create(path).expect("is made");
    file.set_len(mib * MIB).expect("is sized");
    for at in (0..mib).step_by(2) {
        for block in (at * 256..(at + 1) * 256).filter(|block| block % 256 != 7) {
            file.write_all_at(&fill(SEED, block, 1), block * BLOCK as u64).expect("is written");
        }
    }
    text(path).to_owned()
}

/// Bytes of such an image that are not zero.
fn data_bytes(mib: u64) -> u64 {
    mib.div_ceil(2) * (MIB - BLOCK as u64)
}

fn same(raw: &str, other: &str, format: &str) {
    tool("qemu-img", &["compare", "-f", "raw", "-F", format, raw, other]);
}

/// Starts an NBD server at a socket and waits until it listens.
fn serve(program: &str, arguments: &[&str], socket: &Path) -> (Owned, String) {
    let mut command = Command::new(program);
    let mut server = Owned::start(command.args(arguments).arg(socket).stdout(Stdio::null()), program).expect("starts");
    let begun = Instant::now();
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(server.ended().expect("is ours").is_none() && begun.elapsed() < PATIENCE, "{program} does not listen");
        std::thread::yield_now();
    }
    (server, format!("nbd+unix:///?socket={}", text(socket)))
}

#[test]
fn images_come_in_and_go_out_in_both_formats_and_holes_stay_holes() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| text(&directory.path().join(name)).to_owned();
    let raw = image(&directory.path().join("in.raw"), 64);
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &path("in.qcow2")]);
    tool("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &path("packed.qcow2")]);
    let mut checksums = Vec::new();
    for (volume, source) in [("one", "in.raw"), ("two", "in.qcow2"), ("three", "packed.qcow2")] {
        let report = up
            .json(&["volume", "import", volume, &path(source), "--owner", "a", "--verify", "--json"])
            .expect("succeeds");
        assert_eq!(report["size_bytes"], 64 * MIB, "{report}");
        assert_eq!(report["written_bytes"], data_bytes(64), "{report}");
        assert!(report["read_bytes"].as_u64() <= Some(32 * MIB), "holes are not read: {report}");
        assert_eq!(report["verified"], true);
        checksums.push(report["checksum"].clone());
        let status = up.json(&["volume", "status", volume, "--json"]).expect("succeeds");
        assert_eq!(status["mapped_bytes"], data_bytes(64), "zeroes take no space");
        same(&raw, &up.uris("a", volume).expect("listens")[0], "raw");
    }
    assert!(checksums.iter().all(|checksum| *checksum == checksums[0]), "{checksums:?}");

    // Handed over, it goes out from the other node.
    up.run(&["volume", "migrate", "one", "--to", "b"]).expect("is handed over");
    for (name, format) in [("out.raw", "raw"), ("out.qcow2", "qcow2")] {
        let report = up.json(&["volume", "export", "one", &path(name), "--verify", "--json"]).expect("succeeds");
        assert_eq!(report["checksum"], checksums[0], "{report}");
        same(&raw, &path(name), format);
    }
    let taken = fs::metadata(path("out.raw")).expect("is there").blocks() * 512;
    assert!(taken < 33 * MIB, "the raw image is sparse: {taken}");
    tool("qemu-img", &["check", &path("out.qcow2")]);
    let left: Vec<_> = fs::read_dir(directory.path()).expect("is there").flatten().map(|it| it.file_name()).collect();
    assert_eq!(left.len(), 5, "no state file is left: {left:?}");
    let said = up.run(&["volume", "export", "two", &path("more.raw")]).expect("is exported");
    assert!(said.starts_with("exported volume two to ") && said.contains("checksum blake3-1m:"), "{said}");
}

#[test]
fn other_nbd_servers_are_sources_and_targets() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 32);
    let (_file, file) = serve("nbdkit", &["-f", "-r", "file", &raw, "-U"], &directory.path().join("file"));
    let report = up.json(&["volume", "import", "disk", &file, "--size", "40M", "--json"]).expect("succeeds");
    assert_eq!(report["written_bytes"], data_bytes(32), "{report}");
    let checksum = &report["checksum"];

    // A target that holds something is overwritten with zeroes too, as far as the volume reaches.
    let (_memory, memory) = serve("nbdkit", &["-f", "memory", "48M", "-U"], &directory.path().join("memory"));
    tool("qemu-io", &["-f", "raw", "-c", "write -P 7 0 48M", &memory]);
    up.run(&["volume", "export", "disk", &memory, "--verify"]).expect("is exported");
    let first = directory.path().join("first");
    tool("nbdcopy", &[&memory, text(&first)]);
    let back = fs::read(&first).expect("is there");
    assert!(back[..(32 << 20)] == fs::read(&raw).expect("is there"));
    assert!(back[32 << 20..40 << 20].iter().all(|byte| *byte == 0), "the rest of the volume");
    assert!(back[40 << 20..].iter().all(|byte| *byte == 7), "behind the volume nothing is touched");

    let out = directory.path().join("out.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", text(&out), "40M"]);
    let (_qemu, qemu) = serve("qemu-nbd", &["-t", "-f", "qcow2", text(&out), "-k"], &directory.path().join("qemu"));
    up.run(&["volume", "export", "disk", &qemu]).expect("is exported");
    let again = up.json(&["volume", "import", "again", &qemu, "--json"]).expect("succeeds");
    assert_eq!(again["written_bytes"], data_bytes(32));
    assert_ne!(&again["checksum"], checksum, "of 40 MiB, not of 32");

    for (arguments, expected) in [
        (["import", "x", "nbd+unix:///?socket=/nowhere"], "/nowhere cannot be reached: No such file"),
        (["export", "disk", &file], "is read-only"),
    ] {
        let said = refused(&up, &[&["volume"], &arguments[..]].concat());
        assert!(said.contains(expected), "{said}");
    }
    let (_small, small) = serve("nbdkit", &["-f", "memory", "8M", "-U"], &directory.path().join("small"));
    assert!(
        refused(&up, &["volume", "export", "disk", &small]).contains("of 8 MiB is too small for the volume of 40 MiB")
    );
}

/// Starts an import or export, and returns once it has noted that it is some way; what it says goes to `log`.
fn on_its_way(up: &Up, arguments: &[&str], state: &Path, log: &Path) -> Owned {
    let process = paused_on_its_way(up, arguments, state, log);
    process.resume().expect("goes on");
    process
}

/// The same, and it is paused. It is let go on in small steps: on a busy machine it was over, time and again, before anybody had looked.
fn paused_on_its_way(up: &Up, arguments: &[&str], state: &Path, log: &Path) -> Owned {
    let mut command = Command::new(helio().expect("is built"));
    command.args(arguments).arg("--data").arg(up.data());
    command.stdout(Stdio::null()).stderr(File::create(log).expect("is made"));
    let mut process = Owned::start(&mut command, "helio").expect("runs");
    let begun = Instant::now();
    loop {
        let said = || fs::read_to_string(log).expect("is there");
        assert!(process.ended().expect("is ours").is_none(), "it ended before it noted anything: {}", said());
        process.pause().expect("is paused");
        if position(state) > 0 {
            return process;
        }
        assert!(begun.elapsed() < PATIENCE, "no progress");
        process.resume().expect("goes on");
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn killed_on_its_way(up: &Up, arguments: &[&str], state: &Path) {
    let log = tempfile::NamedTempFile::new().expect("a file");
    paused_on_its_way(up, arguments, state, log.path()).kill().expect("was running");
}

/// How far a transfer is, as its state file says.
fn position(state: &Path) -> u64 {
    let state = fs::read(state).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    state.and_then(|state| state["position_bytes"].as_u64()).unwrap_or(0)
}

/// A source that delivers so slowly that whoever reads it can be stopped on its way. In the place of an earlier one.
fn slow(raw: &str, socket: &Path) -> (Owned, String) {
    let _ = fs::remove_file(socket);
    serve("nbdkit", &["-f", "-r", "--filter=rate", "file", raw, "rate=800M", "-U"], socket)
}

#[test]
fn a_killed_import_and_one_that_lost_its_source_go_on_to_the_whole_image() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 512);
    let (socket, log) = (directory.path().join("slow"), directory.path().join("log"));
    let state = up.data().join("transfers/disk.helio-import");
    let (mut server, uri) = slow(&raw, &socket);
    let mut import = on_its_way(&up, &["volume", "import", "disk", &uri], &state, &log);
    server.kill().expect("was running");
    assert!(!import.wait(PATIENCE).expect("ends"), "without its source it is no success");
    let said = fs::read_to_string(&log).expect("is there");
    assert!(said.contains("the connection was lost") && said.contains("with --resume goes on at "), "{said}");
    let lost_at = position(&state);
    assert!(lost_at > 0 && lost_at < 512 * MIB, "{lost_at}");

    // The server is made anew after each kill: nbdkit 1.32 ends itself when its client dies at a bad moment.
    let (_server, uri) = slow(&raw, &socket);
    let said = refused(&up, &["volume", "import", "disk", &uri]);
    assert!(said.contains("go on with the interrupted import with --resume"), "{said}");
    let mut import = on_its_way(&up, &["volume", "import", "disk", &uri, "--resume"], &state, &log);
    while position(&state) == lost_at && import.ended().expect("is ours").is_none() {
        std::thread::yield_now();
    }
    import.kill().expect("was running");
    let at = position(&state);
    assert!(at > lost_at && at < 512 * MIB, "{at}");

    let (_server, uri) = slow(&raw, &socket);
    let report = up.json(&["volume", "import", "disk", &uri, "--resume", "--verify", "--json"]).expect("succeeds");
    assert_eq!(report["resumed_at_bytes"], at, "{report}");
    assert_eq!(report["written_bytes"], data_bytes(512), "of both together");
    same(&raw, &up.uris("a", "disk").expect("listens")[0], "raw");
    let whole = up.json(&["volume", "import", "whole", &raw, "--json"]).expect("succeeds");
    assert_eq!(report["checksum"], whole["checksum"]);
    assert!(refused(&up, &["volume", "import", "disk", &uri, "--resume"]).contains("there is nothing to resume"));
}

#[test]
fn a_killed_export_goes_on_unless_the_volume_was_written_since_or_the_image_is_qcow2() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 768);
    up.run(&["volume", "import", "disk", &raw]).expect("is imported");
    let path = |name: &str| text(&directory.path().join(name)).to_owned();
    for (name, format) in [("out.raw", "raw"), ("out.qcow2", "qcow2")] {
        let state = directory.path().join(format!("{name}.disk.helio-export"));
        killed_on_its_way(&up, &["volume", "export", "disk", &path(name)], &state);
        let at = position(&state);
        let said = refused(&up, &["volume", "export", "disk", &path(name)]);
        assert!(said.contains("--force begins anew"), "{said}");
        // Handed over meanwhile: it is the same volume with the same content.
        let other = if format == "raw" { "b" } else { "a" };
        up.run(&["volume", "migrate", "disk", "--to", other]).expect("is handed over");
        if format == "raw" {
            let report = up
                .json(&["volume", "export", "disk", &path(name), "--resume", "--verify", "--json"])
                .expect("succeeds");
            assert_eq!(report["resumed_at_bytes"], at, "{report}");
        } else {
            // A resumed image had other blocks in it than the volume, one time in four: a cluster that the killed export had
            // taken, and not yet counted as taken, was given to another block as well.
            let said = refused(&up, &["volume", "export", "disk", &path(name), "--resume"]);
            assert!(said.contains("cannot be gone on with"), "{said}");
            up.run(&["volume", "export", "disk", &path(name), "--force", "--verify"]).expect("begins anew");
        }
        same(&raw, &path(name), format);
    }
    let checked = Command::new("qemu-img").args(["check", &path("out.qcow2")]).status().expect("runs");
    assert!(checked.success(), "{checked}");
    let state = directory.path().join("late.raw.disk.helio-export");
    killed_on_its_way(&up, &["volume", "export", "disk", &path("late.raw")], &state);
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 2)).expect("is written");
    let said = refused(&up, &["volume", "export", "disk", &path("late.raw"), "--resume"]);
    assert!(said.contains("the source is another than when it was begun"), "{said}");
    up.run(&["volume", "export", "disk", &path("late.raw"), "--force", "--verify"]).expect("begins anew");
    let block = fs::read(path("late.raw")).expect("is there")[..BLOCK].to_vec();
    assert_eq!(check(&block, SEED, 0), Ok(2));
}

#[test]
fn an_export_of_a_volume_that_is_written_meanwhile_fails() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 512);
    up.run(&["volume", "import", "disk", &raw]).expect("is imported");
    let slow = ["-f", "--filter=rate", "memory", "512M", "rate=800M", "-U"];
    let (_slow, uri) = serve("nbdkit", &slow, &directory.path().join("slow"));
    let (state, log) = (directory.path().join("state"), directory.path().join("log"));
    let arguments = ["volume", "export", "disk", &uri, "--state", text(&state)];
    let mut export = on_its_way(&up, &arguments, &state, &log);
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 2)).expect("is written");
    assert!(!export.wait(PATIENCE).expect("ends"), "it is a copy of no moment");
    let said = fs::read_to_string(&log).expect("is there");
    assert!(said.contains("volume disk was written while it was exported"), "{said}");
}

#[test]
fn an_interrupted_import_notes_where_it_is_and_a_changed_source_is_refused() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 768);
    let state = directory.path().join("in.raw.disk.helio-import");
    let log = directory.path().join("log");
    let mut process = on_its_way(&up, &["volume", "import", "disk", &raw], &state, &log);
    process.terminate().expect("was running");
    assert!(!process.wait(PATIENCE).expect("ends"), "an interrupted import is no success");
    let said = fs::read_to_string(&log).expect("is there");
    assert!(said.contains("it was interrupted") && said.contains("with --resume goes on at "), "{said}");
    assert_eq!(said.lines().count(), 1, "no bar where there is no terminal: {said}");

    let kept = fs::read(&state).expect("is there");
    File::options().write(true).open(&raw).expect("opens").write_all_at(&fill(SEED, 0, 9), 0).expect("is changed");
    let said = refused(&up, &["volume", "import", "disk", &raw, "--resume"]);
    assert!(said.contains("the source is another") && said.contains("begin anew with --overwrite"), "{said}");

    // Another volume of the same name is no place to go on.
    up.run(&["volume", "delete", "disk", "--yes"]).expect("is deleted");
    assert!(refused(&up, &["volume", "import", "disk", &raw, "--resume"]).contains("there is no volume disk"));
    up.run(&["volume", "create", "disk", "--size", "768M"]).expect("is made anew");
    fs::write(&state, &kept).expect("is written");
    assert!(refused(&up, &["volume", "import", "disk", &raw, "--resume"]).contains("is another"));
    up.run(&["volume", "import", "disk", &raw, "--verify"]).expect("an empty volume is imported into");
    same(&raw, &up.uris("a", "disk").expect("listens")[0], "raw");
    assert!(!state.exists());
}

/// It went on behind what a takeover, a rollback or another writer had taken away, and said that the image was imported.
#[test]
fn an_import_does_not_go_on_in_a_volume_that_lacks_what_was_copied() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 512);
    let state = directory.path().join("in.raw.disk.helio-import");
    killed_on_its_way(&up, &["volume", "import", "disk", &raw], &state);
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 2)).expect("is written");
    drop(client);
    let said = refused(&up, &["volume", "import", "disk", &raw, "--resume"]);
    assert!(said.contains("does not hold any more what was copied to it"), "{said}");
    assert!(said.contains("begin anew with --overwrite") && said.lines().count() == 1, "{said}");
    up.run(&["volume", "import", "disk", &raw, "--overwrite", "--verify"]).expect("begins anew");
    same(&raw, &up.uris("a", "disk").expect("listens")[0], "raw");
}

/// It became a volume with pieces of before and after, and the command succeeded.
#[test]
fn an_image_that_is_changed_while_it_is_imported_is_told() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 768);
    let (state, log) = (directory.path().join("in.raw.disk.helio-import"), directory.path().join("log"));
    let mut import = paused_on_its_way(&up, &["volume", "import", "disk", &raw], &state, &log);
    File::options().write(true).open(&raw).expect("opens").write_all_at(&fill(SEED, 0, 9), 0).expect("is changed");
    import.resume().expect("goes on");
    assert!(!import.wait(PATIENCE).expect("ends"), "it is a copy of no moment");
    let said = fs::read_to_string(&log).expect("is there");
    assert!(said.contains("the image was changed while it was copied") && said.contains("--overwrite"), "{said}");
    assert!(refused(&up, &["volume", "import", "disk", &raw, "--resume"]).contains("there is nothing to resume"));
}

/// The state file lies beside the image. When their share went away together with it, that was taken for an import that had copied nothing, and the
/// volume was deleted.
#[test]
fn a_volume_stays_that_was_filled_when_how_far_it_is_cannot_be_seen_any_more() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 512);
    let (share, log) = (directory.path().join("share"), directory.path().join("log"));
    fs::create_dir(&share).expect("is made");
    let state = share.join("state");
    let (mut server, uri) = slow(&raw, &directory.path().join("slow"));
    let arguments = ["volume", "import", "disk", &uri, "--state", text(&state)];
    let mut import = paused_on_its_way(&up, &arguments, &state, &log);
    fs::remove_dir_all(&share).expect("is removed");
    server.kill().expect("was running");
    import.resume().expect("goes on");
    assert!(!import.wait(PATIENCE).expect("ends"), "without its source it is no success");
    let said = fs::read_to_string(&log).expect("is there");
    assert!(said.contains("how far it is cannot be noted in ") && !said.contains("deleted"), "{said}");
    let status = up.json(&["volume", "status", "disk", "--json"]).expect("is there");
    assert!(status["mapped_bytes"].as_u64() > Some(0), "{status}");
}

#[test]
fn what_a_volume_holds_is_replaced_only_when_asked_for() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 8);
    up.run(&["volume", "create", "disk", "--size", "16M", "--owner", "b"]).expect("is created");
    let mut client = Client::connect(&up.socket("b"), "disk").expect("connects");
    for at in [1, 12] {
        client.write(at * MIB, &fill(SEED, at, 5)).expect("is written");
    }
    let said = refused(&up, &["volume", "import", "disk", &raw]);
    assert!(said.contains("holds 8 KiB already") && said.contains("--overwrite"), "{said}");
    up.run(&["volume", "import", "disk", &raw, "--overwrite", "--verify"]).expect("is replaced");
    assert!(client.read(0, 8 << 20).expect("is read") == fs::read(&raw).expect("is there"));
    assert!(client.read(8 * MIB, 8 << 20).expect("is read").iter().all(|byte| *byte == 0), "nothing old is left");
    let status = up.json(&["volume", "status", "disk", "--json"]).expect("succeeds");
    assert_eq!(status["mapped_bytes"], data_bytes(8));
}

/// The volume that it had made stayed, and the same command was refused: the name was taken.
#[test]
fn an_import_that_fails_before_anything_is_copied_leaves_no_volume() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let failing = ["-f", "--filter=error", "--filter=noextents", "memory", "8M", "error-pread-rate=100%", "-U"];
    let (server, uri) = serve("nbdkit", &failing, &directory.path().join("failing"));
    let said = refused(&up, &["volume", "import", "disk", &uri]);
    assert!(said.contains("volume disk, which was made for it, is deleted again"), "{said}");
    drop(server);
    let raw = image(&directory.path().join("in.raw"), 8);
    up.run(&["volume", "import", "disk", &raw, "--verify"]).expect("the name is free, and nothing is to be resumed");
    // One that was there before stays.
    let (_server, uri) = serve("nbdkit", &failing, &directory.path().join("again"));
    let said = refused(&up, &["volume", "import", "disk", &uri, "--overwrite"]);
    assert!(!said.contains("deleted"), "{said}");
    assert!(up.json(&["volume", "status", "disk", "--json"]).is_ok());
}

#[test]
fn what_cannot_be_done_is_said_with_what_to_do() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| text(&directory.path().join(name)).to_owned();
    let raw = image(&directory.path().join("in.raw"), 8);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &raw, "-F", "raw", &path("child.qcow2")]);
    // Not LUKS: to choose its parameters qemu-img measures how fast the processor is, and fails where time is told too coarsely for that.
    let secret = ["--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s"];
    tool("qemu-img", &[&["create", "-q", "-f", "qcow2"], &secret[..], &[&path("secret.qcow2"), "8M"]].concat());
    tool("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", &raw, &path("other.vmdk")]);
    File::create(path("empty")).expect("is made");
    up.run(&["volume", "create", "small", "--size", "4M"]).expect("is created");
    let (child, secret, vmdk, empty) = (path("child.qcow2"), path("secret.qcow2"), path("other.vmdk"), path("empty"));
    let (nothing, out) = (path("nothing"), path("no/such/place"));
    let there = directory.path().join("there");
    fs::write(&there, "precious").expect("is written");
    let cases: [(&[&str], &str); 14] = [
        (&["import", "x", &nothing], "No such file"),
        (&["import", "x", text(directory.path())], "is a directory, not an image"),
        (&["import", "x", &empty], "is empty"),
        (&["import", "x", &child], "needs its backing file"),
        (&["import", "x", &secret], "is encrypted: make a plain copy first"),
        (&["import", "x", &vmdk], "is a VMDK image: convert it first"),
        (&["import", "x", &raw, "--format", "qcow2"], "is not a qcow2 image"),
        (&["import", "x", &raw, "--size", "4M"], "--size 4 MiB is less than"),
        (&["import", "x", &raw, "--owner", "zz"], "there is no node zz; the cluster has a of "),
        (&["import", "x", &raw, "--resume"], "there is no volume x to go on with"),
        (&["import", "small", &raw], "volume small of 4 MiB is too small for"),
        (&["export", "nope", &nothing], "there is no volume \"nope\""),
        (&["export", "small", &out], "No such file"),
        (&["export", "small", text(&there)], "exists already: choose another name, or --force"),
    ];
    for (arguments, expected) in cases {
        let said = refused(&up, &[&["volume"], arguments].concat());
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    }
    assert_eq!(fs::read(&there).expect("is there"), b"precious");
    let volumes = up.json(&["volume", "list", "--json"]).expect("succeeds");
    assert_eq!(volumes.as_array().map(Vec::len), Some(1), "nothing was made: {volumes}");

    let output = Command::new(helio().expect("is built")).args(["volume", "import", "x", "nbd://h:x/"]).output();
    let output = output.expect("runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("its port is not a number"), "{output:?}");
}

#[test]
fn separate_nodes_import_where_the_volume_is_owned() {
    let nodes = Nodes::start(&["a", "b"]).expect("two nodes start");
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 8);
    let said = nodes.run("a", &["volume", "import", "disk", &raw, "--owner", "b"]).expect_err("b is elsewhere");
    assert!(
        said.to_string().contains("cannot be reached over NBD from here (only a): run this at that node"),
        "{said}"
    );
    nodes.run("b", &["volume", "import", "disk", &raw, "--verify"]).expect("is imported at its owner");
    // Any node exports.
    let out: PathBuf = directory.path().join("out.raw");
    nodes.run("a", &["volume", "export", "disk", text(&out), "--verify"]).expect("is read through");
    same(&raw, text(&out), "raw");

    // Asked through the admin API alone, which knows where its node serves NBD.
    let file: Value =
        serde_json::from_slice(&fs::read(nodes.path().join("b/cluster.json")).expect("is there")).expect("is JSON");
    let http = file["http"][0].as_str().expect("has an address");
    let again = directory.path().join("again.raw");
    let secret = nodes.path().join("b/admin.secret");
    let mut export = Command::new(helio().expect("is built"));
    export.args(["volume", "export", "disk", text(&again), "--cluster", http, "--secret-file", text(&secret)]);
    run(&mut export).expect("is exported");
    same(&raw, text(&again), "raw");
}

/// A file system of 4 MiB; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Small {
        fs::create_dir(&at).expect("is made");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4M", "small"]).arg(&at)).expect("mounts");
        Small(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_target_is_named_and_gone_on_with_once_there_is_room() {
    let up = up();
    let directory = tempfile::tempdir().expect("a directory");
    let raw = image(&directory.path().join("in.raw"), 16);
    up.run(&["volume", "import", "disk", &raw]).expect("is imported");
    let full = ["-f", "--filter=error", "memory", "16M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%", "-U"];
    let (_full, full) = serve("nbdkit", &full, &directory.path().join("full"));
    let said = refused(&up, &["volume", "export", "disk", &full]);
    assert!(said.contains("the target has no space left: make room"), "{said}");

    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a small file system of its own needs root to be mounted");
        return;
    }
    let small = Small::mount(directory.path().join("small"));
    let out = small.0.join("out.raw");
    let said = refused(&up, &["volume", "export", "disk", text(&out)]);
    assert!(said.contains("the file system is full") && said.contains("with --resume goes on at "), "{said}");
    run(Command::new("mount").args(["-o", "remount,size=32M"]).arg(&small.0)).expect("grows");
    up.run(&["volume", "export", "disk", text(&out), "--resume", "--verify"]).expect("goes on");
    same(&raw, text(&out), "raw");
    assert_eq!(fs::read_dir(&small.0).expect("is there").count(), 1, "nothing but the image is left");
}
