//! An earlier release and this program in one cluster (docs/operations.md): upgraded node by node while disks are written, and no way back.
//!
//! `HELIO_OLD_BIN` names the earlier `helio`, beside its `helio-nbd`; `make upgrade` builds both of an earlier commit. Without it these tests are
//! skipped, and say so.

use std::path::PathBuf;
use std::time::Duration;

use client_lib::pki::NodeIdentity;
use tests::cluster::helio;
use tests::nbd_client::Client;
use tests::nodes::Nodes;
use tests::tools;
use tests::writer::Writer;

const NAMES: [&str; 3] = ["a", "b", "c"];
const SEED: u64 = 97;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// The earlier program; without one the test has nothing to do.
fn earlier() -> Option<PathBuf> {
    let earlier = std::env::var_os("HELIO_OLD_BIN").map(PathBuf::from);
    if earlier.is_none() {
        eprintln!("skipped: HELIO_OLD_BIN names no earlier helio");
    }
    earlier
}

fn has_end(nodes: &Nodes, name: &str) -> bool {
    let identity = NodeIdentity::load(&nodes.path().join(name).join("identity")).expect("is there");
    identity.validity().has_end()
}

/// Each node is stopped and started as the newer program, with a disk that an earlier `helio-nbd` has and one that a newer one has, and in each
/// mixture volumes move between all nodes, snapshots are made, and both disks get on. No client is told of anything.
#[test]
fn nodes_are_upgraded_one_after_another_under_their_clients() {
    let Some(earlier) = earlier() else { return };
    let newer = helio().expect("is built");
    let mut nodes = Nodes::none().expect("is made");
    nodes.use_program(&earlier);
    NAMES.iter().for_each(|name| nodes.add(name).expect("starts"));
    // Those of programs before certificates ended have none.
    let has_end_first = NAMES.map(|name| has_end(&nodes, name));
    for (volume, owner) in [("disk", "a"), ("far", "b"), ("still", "c")] {
        nodes.run("a", &["volume", "create", volume, "--size", "64M", "--owner", owner]).expect("is created");
    }
    tools::qemu_io(&nodes.uri("c", "still"), false, &["write -P 1 0 32M"]).expect("is written");
    nodes.run("a", &["volume", "snapshot", "create", "still@before"]).expect("is made");
    tools::qemu_io(&nodes.uri("c", "still"), false, &["write -P 2 0 16M"]).expect("is written");
    let mut by_earlier = nodes.helio_nbd("host", &["--export", "disk"]).expect("starts");
    nodes.use_program(&newer);
    let by_newer = nodes.helio_nbd("newer", &["--export", "far"]).expect("starts");
    let writers = [Writer::new(0..400, SEED), Writer::new(0..400, SEED + 1)];
    let sockets = [by_earlier.socket().to_owned(), by_newer.socket().to_owned()];
    std::thread::scope(|scope| {
        let running = [writers[0].start(scope, &sockets[0], "disk"), writers[1].start(scope, &sockets[1], "far")];
        let get_on = |nodes: &Nodes| {
            for (writer, running) in writers.iter().zip(&running) {
                let target = writer.acked() + 100;
                nodes.until("a writer does not get on", PATIENCE, || {
                    assert!(!running.has_ended(), "its client is told of an error");
                    writer.acked() >= target
                });
            }
        };
        get_on(&nodes);
        for upgraded in NAMES {
            nodes.stop(upgraded).expect("stops");
            nodes.start_node(upgraded).expect("starts with what the earlier one has left");
            get_on(&nodes);
            for to in NAMES {
                for volume in ["disk", "far", "still"] {
                    nodes.run(upgraded, &["volume", "migrate", volume, "--to", to]).expect("is handed over");
                }
                get_on(&nodes);
            }
            nodes.run(upgraded, &["volume", "snapshot", "create", &format!("disk@{upgraded}")]).expect("is made");
            for name in NAMES {
                tools::qemu_io(&nodes.uri(name, "still"), false, &["read -P 2 0 16M", "read -P 1 16M 16M"])
                    .expect(name);
                tools::qemu_io(&nodes.uri(name, "still@before"), true, &["read -P 1 0 32M"]).expect(name);
            }
            if upgraded != "c" {
                assert_eq!(
                    NAMES.map(|name| has_end(&nodes, name)),
                    has_end_first,
                    "a node that goes back to the earlier program needs its certificate"
                );
            }
        }
        by_earlier.use_program(&nodes.helio_nbd_program().expect("is built"));
        by_earlier.replace().expect("the newer program takes over from the earlier one");
        get_on(&nodes);
        for running in running {
            running.finish().expect("its client is told of nothing");
        }
    });
    for (writer, volume) in writers.iter().zip(["disk", "far"]) {
        for name in NAMES {
            let mut client = Client::connect(&nodes.socket(name), volume).expect("connects");
            writer.check(&mut client).expect("every byte is right");
        }
    }
    nodes.until("nobody takes a certificate that ends", PATIENCE, || has_end(&nodes, "c"));
    by_earlier.stop().expect("stops");
    by_newer.stop().expect("stops");
}

/// There is no way back once a newer program has written: the earlier one says so and changes nothing, or, where it knows all that was
/// written, it serves that.
#[test]
fn an_earlier_program_that_cannot_read_what_a_newer_one_wrote_says_so_and_harms_nothing() {
    let Some(earlier) = earlier() else { return };
    let newer = helio().expect("is built");
    let mut nodes = Nodes::start(&["a", "b"]).expect("start");
    nodes.run("a", &["volume", "create", "disk", "--size", "64M", "--owner", "b"]).expect("is created");
    tools::qemu_io(&nodes.uri("b", "disk"), false, &["write -P 1 0 32M", "flush"]).expect("is written");
    nodes.stop("b").expect("stops");
    nodes.use_program(&earlier);
    match nodes.start_node("b") {
        Ok(()) => {
            println!("the earlier program knows all formats");
            tools::qemu_io(&nodes.uri("b", "disk"), false, &["read -P 1 0 32M"]).expect("is read");
            nodes.stop("b").expect("stops");
        }
        Err(error) => {
            let text = format!("{error:#}");
            println!("{text}");
            // Of a record, or of the store as a whole; programs before this test called what they did not know damaged.
            let said = ["newer program", "use the version that wrote it, or a newer one", "is damaged"];
            assert!(said.iter().any(|said| text.contains(said)), "{text}");
        }
    }
    nodes.use_program(&newer);
    nodes.start_node("b").expect("starts");
    for name in ["a", "b"] {
        tools::qemu_io(&nodes.uri(name, "disk"), false, &["read -P 1 0 32M"]).expect(name);
    }
}
