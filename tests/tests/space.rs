//! Where the space of a node goes, as its operator sees it, and that it comes back.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::nbd_client::Client;
use tests::nodes::Nodes;

const MIB: u64 = 1 << 20;
/// Far longer than it takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn space(nodes: &Nodes) -> Value {
    let json = nodes.run("a", &["node", "space", "--json"]).expect("tells");
    serde_json::from_str(&json).expect("is JSON")
}

fn bytes(of: &Value, field: &str) -> u64 {
    of[field].as_u64().unwrap_or_else(|| panic!("{field} in {of}"))
}

/// Waits until the only store is as it should be.
fn wait(nodes: &Nodes, what: &str, is_so: impl Fn(&Value, &Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let space = space(nodes);
        if is_so(&space["stores"][0], &space["volumes"][0]) {
            return space;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {space:#}");
        std::thread::yield_now();
    }
}

#[test]
fn space_is_shown_where_it_goes_and_when_it_comes_back() {
    let nodes = Nodes::start(&["a"]).expect("a node starts");
    nodes.run("a", &["volume", "create", "disk", "--size", "256M"]).expect("is created");
    let mut client = Client::connect(&nodes.socket("a"), "disk").expect("connects");
    let mut write = |mibs: std::ops::Range<u64>, fill: u8| {
        for mib in mibs {
            client.write(mib * MIB, &vec![fill; MIB as usize]).expect("writes");
        }
    };
    write(0..64, 1);
    let full = space(&nodes);
    let (store, volume) = (&full["stores"][0], &full["volumes"][0]);
    assert_eq!((volume["volume"].as_str(), volume["owner"].as_bool()), (Some("disk"), Some(true)));
    assert_eq!((bytes(volume, "mapped_bytes"), bytes(store, "live_bytes")), (64 * MIB, 64 * MIB));
    assert!(bytes(store, "log_bytes") >= 64 * MIB && bytes(store, "map_bytes") > 0, "{store}");
    assert!(bytes(store, "file_system_free_bytes") <= bytes(store, "file_system_bytes"), "{store}");
    assert!(bytes(store, "available_bytes") > 0 && store["fault"].is_null(), "{store}");
    let directory = nodes.path().join("a/shard-0");
    assert_eq!(volume["store"].as_str(), directory.to_str());

    nodes.run("a", &["volume", "snapshot", "create", "disk@old"]).expect("is made");
    write(0..16, 2);
    wait(&nodes, "the snapshot holds what was overwritten", |_, volume| {
        bytes(volume, "snapshot_bytes") == 16 * MIB && bytes(volume, "mapped_bytes") == 64 * MIB
    });
    let status = nodes.run("a", &["volume", "status", "disk"]).expect("tells");
    assert!(status.contains("space at the owner: 64 MiB mapped, 16 MiB only in snapshots"), "{status}");
    nodes.run("a", &["volume", "snapshot", "delete", "disk@old"]).expect("is deleted");
    wait(&nodes, "a deleted snapshot lets go", |store, volume| {
        bytes(volume, "snapshot_bytes") == 0 && bytes(store, "live_bytes") == 64 * MIB
    });

    client.trim(0, 32 << 20).expect("trims");
    assert_eq!(bytes(&space(&nodes)["volumes"][0], "mapped_bytes"), 32 * MIB);
    client.write_zeroes(32 * MIB, 16 << 20).expect("zeroes");
    // Free segments are kept for writers until there are none.
    let zeroed = wait(&nodes, "what is empty comes free, and goes back to the file system", |store, _| {
        bytes(store, "emptied_bytes") == 0 && bytes(store, "log_bytes") < bytes(&full["stores"][0], "log_bytes")
    });
    assert_eq!(bytes(&zeroed["volumes"][0], "mapped_bytes"), 16 * MIB);

    drop(client);
    nodes.run("a", &["volume", "delete", "disk", "--yes"]).expect("is deleted");
    wait(&nodes, "a deleted volume lets go, and its files go back to the file system", |store, volume| {
        let is_empty = bytes(store, "live_bytes") == 0 && bytes(store, "emptied_bytes") == 0;
        volume.is_null() && is_empty && bytes(store, "log_bytes") < 64 * MIB
    });
    let table = nodes.run("a", &["node", "space"]).expect("tells");
    assert!(table.starts_with("node a\nSTORE") && table.contains("GARBAGE"), "{table}");
    let error = nodes.run("a", &["node", "space", "--node", "nobody"]).expect_err("there is none").to_string();
    assert!(error.contains("there is no node"), "{error}");
}
