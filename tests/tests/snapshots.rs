//! Snapshots as their users see them: the command, exports at every node, real clients, images, handover, restart,
//! the way back, volumes made of them.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::cluster::Up;
use tests::tools::{self, run};

/// A replica holds all of a snapshot a moment after its data was sent; one that does not by now never will.
const PATIENCE: Duration = Duration::from_secs(60);

fn qemu_io(up: &Up, provider: &str, export: &str, commands: &[&str]) -> anyhow::Result<String> {
    let [_, uri] = up.uris(provider, export)?;
    tools::qemu_io(&uri, export.contains('@'), commands)
}

fn list(up: &Up) -> Vec<Value> {
    let said = up.run(&["volume", "snapshot", "list", "disk", "--json"]).expect("lists");
    serde_json::from_str(&said).expect("is JSON")
}

#[test]
fn a_snapshot_is_an_export_of_its_own_at_every_node() {
    let mut up = Up::start(&["--providers", "a,b"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    qemu_io(&up, "a", "disk", &["write -P 1 0 32M"]).expect("is written");
    let said = up.run(&["volume", "snapshot", "create", "disk@monday"]).expect("is made");
    assert!(said.starts_with("snapshot disk@monday has everything up to 1."), "{said}");
    qemu_io(&up, "a", "disk", &["write -P 2 8M 48M", "discard 0 4M"]).expect("is written");
    let as_it_was = ["read -P 1 0 32M", "read -P 0 32M 32M"];
    for provider in ["a", "b"] {
        qemu_io(&up, provider, "disk@monday", &as_it_was).expect(provider);
    }
    let [_, uri] = up.uris("b", "disk@monday").expect("listens");
    let info = run(Command::new("nbdinfo").args(["--json", &uri])).expect("tells");
    let info: Value = serde_json::from_str(&info).expect("is JSON");
    assert_eq!(info["exports"][0]["is_read_only"], Value::Bool(true));

    // Another one, and the way to the other provider and back through a restart.
    up.run(&["volume", "resize", "disk", "--size", "96M"]).expect("grows");
    up.run(&["volume", "migrate", "disk", "--to", "b"]).expect("is handed over");
    up.run(&["volume", "snapshot", "create", "disk@tuesday", "--json"]).expect("is made");
    qemu_io(&up, "b", "disk", &["write -P 3 0 96M"]).expect("is written");
    up.kill().expect("runs");
    up.restart().expect("comes back");
    for provider in ["a", "b"] {
        qemu_io(&up, provider, "disk@monday", &as_it_was).expect(provider);
        let second = ["read -P 0 0 4M", "read -P 1 4M 4M", "read -P 2 8M 48M", "read -P 0 56M 40M"];
        qemu_io(&up, provider, "disk@tuesday", &second).expect(provider);
        qemu_io(&up, provider, "disk", &["read -P 3 0 96M"]).expect(provider);
    }
    let begun = Instant::now();
    while list(&up).iter().any(|snapshot| snapshot["complete_at"].as_array().is_none_or(|at| at.len() < 2)) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", list(&up));
    }
    let listed = list(&up);
    assert_eq!(listed.iter().map(|it| it["name"].as_str()).collect::<Vec<_>>(), [Some("monday"), Some("tuesday")]);
    assert_eq!((listed[0]["size_bytes"].as_u64(), listed[1]["size_bytes"].as_u64()), (Some(64 << 20), Some(96 << 20)));
    assert!(listed[1]["held_bytes"].as_u64().is_some_and(|held| held > 0), "{listed:?}");

    // As an image, while the volume is in use.
    let image = up.data().join("monday.qcow2");
    let path = image.display().to_string();
    let said = up.run(&["volume", "export", "disk@monday", &path, "--verify"]).expect("is exported");
    assert!(said.starts_with("exported snapshot disk@monday to "), "{said}");
    run(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2", &uri, &path])).expect("are the same");

    let taken = up.run(&["volume", "snapshot", "create", "disk@monday"]).expect_err("exists").to_string();
    assert!(taken.contains("exists already"), "{taken}");
    let odd = up.run(&["volume", "snapshot", "create", "disk"]).expect_err("names none").to_string();
    assert!(odd.contains("VOLUME@SNAPSHOT"), "{odd}");
    let refused = qemu_io(&up, "a", "disk@friday", &["read 0 512"]).expect_err("is not there").to_string();
    assert!(refused.contains("friday"), "{refused}");

    up.run(&["volume", "snapshot", "delete", "disk@monday"]).expect("is deleted");
    let again = up.run(&["volume", "snapshot", "delete", "disk@monday"]).expect_err("is gone").to_string();
    assert!(again.contains("no snapshot \"monday\""), "{again}");
    qemu_io(&up, "a", "disk@monday", &["read 0 512"]).expect_err("is gone");
    qemu_io(&up, "a", "disk@tuesday", &["read -P 1 4M 4M"]).expect("stays");
}

#[test]
fn a_volume_goes_back_to_a_snapshot_and_forward_again_at_every_node() {
    let mut up = Up::start(&["--providers", "a,b"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    qemu_io(&up, "a", "disk", &["write -P 1 0 32M"]).expect("is written");
    up.run(&["volume", "snapshot", "create", "disk@monday"]).expect("is made");
    qemu_io(&up, "a", "disk", &["write -P 2 8M 48M", "discard 0 4M"]).expect("is written");
    up.run(&["volume", "snapshot", "create", "disk@tuesday"]).expect("is made");
    qemu_io(&up, "a", "disk", &["write -P 3 0 64M"]).expect("is written");

    let refused = up.run(&["volume", "snapshot", "rollback", "disk@monday"]).expect_err("says what is lost");
    assert!(refused.to_string().contains("--discard-changes"), "{refused}");
    let unknown = up.run(&["volume", "snapshot", "rollback", "disk@never", "--discard-changes"]);
    assert!(unknown.expect_err("is unknown").to_string().contains("has no snapshot \"never\""));
    let said = up.run(&["volume", "snapshot", "rollback", "disk@monday", "--discard-changes"]).expect("goes back");
    assert_eq!(said.trim(), "volume disk is what disk@monday is");
    let monday = ["read -P 1 0 32M", "read -P 0 32M 32M"];
    for provider in ["a", "b"] {
        qemu_io(&up, provider, "disk", &monday).expect(provider);
    }
    // At another owner, after a crash, and with the snapshot gone.
    up.run(&["volume", "migrate", "disk", "--to", "b"]).expect("is handed over");
    up.kill().expect("runs");
    up.restart().expect("comes back");
    qemu_io(&up, "b", "disk", &monday).expect("is as it was");
    up.run(&["volume", "snapshot", "delete", "disk@monday"]).expect("is deleted");
    qemu_io(&up, "b", "disk", &monday).expect("needs it no more");
    let deadline = Instant::now() + PATIENCE;
    let forward = || up.run(&["volume", "snapshot", "rollback", "disk@tuesday", "--discard-changes", "--json"]);
    // While the new owner fetches what it lacks it says so.
    let status: Value = loop {
        match forward() {
            Ok(said) => break serde_json::from_str(&said).expect("is JSON"),
            Err(error) => assert!(error.to_string().contains("still fetches") && Instant::now() < deadline, "{error}"),
        }
    };
    assert_eq!(status["name"], "disk");
    let tuesday = ["read -P 0 0 4M", "read -P 1 4M 4M", "read -P 2 8M 48M", "read -P 0 56M 8M"];
    for provider in ["a", "b"] {
        qemu_io(&up, provider, "disk", &tuesday).expect(provider);
    }
}

#[test]
fn a_clone_begins_as_the_snapshot_at_every_node_and_needs_it_no_more() {
    let mut up = Up::start(&["--providers", "a,b"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    qemu_io(&up, "a", "disk", &["write -P 1 0 32M"]).expect("is written");
    up.run(&["volume", "snapshot", "create", "disk@monday"]).expect("is made");
    qemu_io(&up, "a", "disk", &["write -P 2 0 64M"]).expect("is written");

    let said = up.run(&["volume", "snapshot", "clone", "disk@monday", "copy"]).expect("is cloned");
    assert_eq!(said.trim(), "volume copy begins as disk@monday, owned by a");
    let taken = up.run(&["volume", "snapshot", "clone", "disk@monday", "copy"]).expect_err("is taken");
    assert!(taken.to_string().contains("volume copy exists already"), "{taken}");
    let is_told = |up: &Up, line: &str, json: serde_json::Value| {
        let said = up.run(&["volume", "status", "copy"]).expect("tells");
        assert!(said.lines().any(|found| found == line), "{said}");
        let said = up.run(&["volume", "status", "copy", "--json"]).expect("tells");
        let status: serde_json::Value = serde_json::from_str(&said).expect("is JSON");
        assert_eq!(status["clone_of"], json);
    };
    let origin = |volume: Option<&str>, snapshot: Option<&str>| serde_json::json!({ "volume": volume, "snapshot": snapshot, "is_made": true });
    is_told(&up, "clone of disk@monday", origin(Some("disk"), Some("monday")));
    let said = up.run(&["volume", "status", "disk", "--json"]).expect("tells");
    let status: serde_json::Value = serde_json::from_str(&said).expect("is JSON");
    assert_eq!(status["clone_of"], serde_json::Value::Null);
    let monday = ["read -P 1 0 32M", "read -P 0 32M 32M"];
    for provider in ["a", "b"] {
        qemu_io(&up, provider, "copy", &monday).expect(provider);
    }
    qemu_io(&up, "a", "copy", &["write -P 3 16M 32M"]).expect("is written");
    qemu_io(&up, "a", "disk", &["read -P 2 0 64M"]).expect("is as it was");

    // Without what it comes from, at another owner, after a crash.
    up.run(&["volume", "snapshot", "delete", "disk@monday"]).expect("is deleted");
    is_told(&up, "clone of disk, of a snapshot that is deleted", origin(Some("disk"), None));
    up.run(&["volume", "delete", "disk", "--yes"]).expect("is deleted");
    is_told(&up, "clone of a volume that is deleted", origin(None, None));
    let own = ["read -P 1 0 16M", "read -P 3 16M 32M", "read -P 0 48M 16M"];
    up.run(&["volume", "migrate", "copy", "--to", "b"]).expect("is handed over");
    qemu_io(&up, "b", "copy", &own).expect("is there");
    up.kill().expect("runs");
    up.restart().expect("comes back");
    for provider in ["a", "b"] {
        qemu_io(&up, provider, "copy", &own).expect(provider);
    }
    up.run(&["volume", "snapshot", "create", "copy@now"]).expect("is made");
    up.run(&["volume", "snapshot", "clone", "copy@now", "again", "--json"]).expect("a clone of a clone");
    qemu_io(&up, "a", "again", &own).expect("is the same");
}
