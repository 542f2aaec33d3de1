//! Programs of others against a cluster: libnbd's, QEMU's and fio, over TCP and over Unix sockets.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::cluster::Up;
use tests::tools::run;
use tests::workload::{BLOCK, fill};

fn tool(program: &str, arguments: &[&str]) -> String {
    run(Command::new(program).args(arguments)).unwrap_or_else(|error| panic!("{error}"))
}

/// What a program says that must fail.
fn failure(program: &str, arguments: &[&str]) -> String {
    run(Command::new(program).args(arguments)).expect_err("must fail").to_string()
}

fn json(program: &str, arguments: &[&str]) -> Value {
    serde_json::from_str(&tool(program, arguments)).expect("is JSON")
}

fn cluster(size: &str) -> Up {
    let up = Up::start(&["--providers", "a,b"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", size, "--owner", "a"]).expect("is created");
    up
}

/// Runs `qemu-io` commands; each must succeed, and a pattern that does not match fails too.
fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(uri);
    let said = tool("qemu-io", &arguments);
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    said
}

/// An image of some blocks with data, each saying what it is, and holes between them.
fn image(path: &Path, mib: u64) -> String {
    let mut bytes = vec![0; (mib << 20) as usize];
    for (index, block) in bytes.chunks_mut(BLOCK).enumerate().filter(|(index, _)| index / 100 % 3 != 1) {
        block.copy_from_slice(&fill(3, index as u64, 1));
    }
    fs::write(path, bytes).expect("is written");
    path.to_str().expect("is UTF-8").to_owned()
}

#[test]
fn every_volume_is_listed_and_described() {
    let up = cluster("64M");
    up.run(&["volume", "create", "other.disk_2", "--size", "1G", "--owner", "b"]).expect("is created");
    for provider in ["a", "b"] {
        for uri in up.uris(provider, "").expect("listens") {
            let listed = json("nbdinfo", &["--list", "--json", &uri]);
            let mut names: Vec<&str> = listed["exports"]
                .as_array()
                .expect("a list")
                .iter()
                .filter_map(|it| it["export-name"].as_str())
                .collect();
            names.sort_unstable();
            assert_eq!(names, ["disk", "other.disk_2"], "{uri}");
        }
        for uri in up.uris(provider, "disk").expect("listens") {
            let found = &json("nbdinfo", &["--json", &uri])["exports"][0];
            assert_eq!(found["export-size"], 64 << 20);
            for can in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_df"] {
                assert_eq!(found[can], true, "{can} at {uri}");
            }
            assert_eq!(found["is_read_only"], false);
            assert_eq!((&found["block_size_minimum"], &found["block_size_preferred"]), (&512.into(), &4096.into()));
            assert_eq!(found["contexts"][0], "base:allocation");
        }
        for uri in up.uris(provider, "nothing").expect("listens") {
            let said = failure("nbdinfo", &[&uri]);
            assert!(said.contains("nothing"), "names what is not there: {said}");
        }
    }
}

#[test]
fn nbdcopy_carries_an_image_there_and_back_over_many_connections() {
    let up = cluster("32M");
    let directory = tempfile::tempdir().expect("a directory");
    let sent = image(&directory.path().join("sent"), 32);
    for uri in up.uris("a", "disk").expect("listens") {
        let back = directory.path().join("back");
        tool("nbdcopy", &["--connections=4", "--flush", &sent, &uri]);
        tool("nbdcopy", &["--connections=4", &uri, back.to_str().expect("is UTF-8")]);
        assert!(fs::read(&sent).expect("is there") == fs::read(&back).expect("is there"), "{uri}");
        // For the next round: what is there must come from it.
        qemu_io(&uri, &["discard 0 32M"]);
    }
    for uri in up.uris("b", "disk").expect("listens") {
        assert!(json("nbdinfo", &["--map", "--json", &uri]).as_array().is_some_and(|map| map.len() == 1), "all a hole");
    }
}

#[test]
fn maps_show_what_was_written_and_what_was_trimmed() {
    let up = cluster("16M");
    for uri in up.uris("a", "disk").expect("listens") {
        let map = || {
            let extents = json("nbdinfo", &["--map", "--json", &uri]);
            let extents = extents.as_array().expect("a list").clone();
            extents.iter().map(|it| (it["length"].as_u64().unwrap_or(0) >> 20, it["type"].as_u64())).collect::<Vec<_>>()
        };
        // base:allocation: 0 is data, 1 a hole, 2 zeroes, 3 a hole that reads as zeroes.
        assert_eq!(map(), [(16, Some(3))]);
        qemu_io(&uri, &["write -P 7 4M 2M"]);
        assert_eq!(map(), [(4, Some(3)), (2, Some(0)), (10, Some(3))]);
        qemu_io(&uri, &["discard 5M 1M", "read -P 0 5M 1M", "read -P 7 4M 1M"]);
        assert_eq!(map(), [(4, Some(3)), (1, Some(0)), (11, Some(3))]);
        qemu_io(&uri, &["write -z -u 0 16M"]);
        assert_eq!(map(), [(16, Some(3))]);
    }
}

#[test]
fn qemus_tools_read_what_they_wrote() {
    let up = cluster("16M");
    let directory = tempfile::tempdir().expect("a directory");
    let sent = image(&directory.path().join("sent"), 16);
    for uri in up.uris("a", "disk").expect("listens") {
        tool("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &sent, &uri]);
        tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &sent, &uri]);
        assert!(
            json("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).as_array().is_some_and(|it| it.len() > 3)
        );
        let commands = [
            "write -P 1 0 1M",
            "write -f -P 2 512 512",
            "read -P 1 0 512",
            "read -P 2 512 512",
            "read -P 1 1024 3072",
            "aio_write -P 3 3584 9728",
            "aio_flush",
            "read -P 3 3584 9728",
            "write -z 8k 4k",
            "read -P 0 8k 4k",
            "write -z -u -f 64k 1M",
            "read -P 0 64k 1M",
            "flush",
            "read -P 1 32k 32k",
        ];
        qemu_io(&uri, &commands);
    }
}

#[test]
fn fio_verifies_what_it_wrote() {
    let up = cluster("64M");
    for uri in up.uris("a", "disk").expect("listens") {
        let directory = tempfile::tempdir().expect("a directory");
        let job = Command::new("fio")
            .args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0"])
            .args(["--blockalign=512", "--size=48M", "--iodepth=16", "--fsync=50", "--thread"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"])
            .arg(format!("--uri={uri}"))
            .current_dir(directory.path())
            .output()
            .expect("fio runs: `make tools` installs it");
        assert!(
            job.status.success(),
            "{}{}",
            String::from_utf8_lossy(&job.stdout),
            String::from_utf8_lossy(&job.stderr)
        );
    }
}

#[test]
fn where_the_volume_is_not_owned_it_is_read_and_not_written() {
    let up = cluster("16M");
    for (owner, other) in up.uris("a", "disk").expect("listens").iter().zip(up.uris("b", "disk").expect("listens")) {
        qemu_io(owner, &["write -P 5 1M 1M", "flush"]);
        qemu_io(&other, &["read -P 5 1M 1M", "read -P 0 0 1M", "flush"]);
        let said = failure("qemu-io", &["-f", "raw", "-c", "read 0 4k", "-c", "write -P 6 0 4k", &other]);
        assert!(said.contains("write failed: Operation not permitted"), "{said}");
        qemu_io(owner, &["read -P 0 0 1M"]);
    }
}
