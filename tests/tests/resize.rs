//! Another size for a volume in use, as its users see it: the command, connected clients, new clients, handover, restart.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::cluster::Up;
use tests::nbd_client::{Client, EINVAL, ENOSPC, Error};
use tests::tools::{self, run};
use tests::workload::{check, fill};

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
const SEED: u64 = 31;
/// Other nodes hear of a size with the next heartbeat; one that has not by now never will.
const PATIENCE: Duration = Duration::from_secs(60);

fn size_at(up: &Up, provider: &str) -> u64 {
    let [_, uri] = up.uris(provider, "disk").expect("listens");
    let info = run(Command::new("nbdinfo").args(["--json", &uri])).expect("tells");
    let info: Value = serde_json::from_str(&info).expect("is JSON");
    info["exports"][0]["export-size"].as_u64().expect("is a number")
}

fn sees(up: &Up, provider: &str, size: u64) {
    let begun = Instant::now();
    while size_at(up, provider) != size {
        assert!(begun.elapsed() < PATIENCE, "{provider} shows {} and not {size}", size_at(up, provider));
    }
}

fn qemu_io(up: &Up, provider: &str, commands: &[&str]) {
    let [_, uri] = up.uris(provider, "disk").expect("listens");
    tools::qemu_io(&uri, false, commands).expect("succeeds");
}

fn resize(up: &Up, arguments: &[&str]) -> anyhow::Result<u64> {
    let said = up.run(&[&["volume", "resize", "disk", "--json", "--size"], arguments].concat())?;
    let status: Value = serde_json::from_str(&said)?;
    Ok(status["size_bytes"].as_u64().expect("is a number"))
}

#[test]
fn a_volume_grows_and_shrinks_under_its_clients() {
    let mut up = Up::start(&["--providers", "a,b"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    client.write(0, &fill(SEED, 0, 1)).expect("is written");

    assert_eq!(resize(&up, &["96M"]).expect("grows"), 96 * MIB);
    assert_eq!(size_at(&up, "a"), 96 * MIB, "for whoever connects from now on");
    let last = 96 * MIB / BLOCK - 1;
    client.write(last * BLOCK, &fill(SEED, last, 2)).expect("the connected client goes on, up to the new end");
    assert!(matches!(client.write(96 * MIB, &[1; 512]), Err(Error::Refused(ENOSPC))));
    qemu_io(&up, "a", &["write -P 7 94M 1M", "read -P 0 64M 1M", "flush"]);

    up.run(&["volume", "migrate", "disk", "--to", "b"]).expect("is handed over");
    sees(&up, "b", 96 * MIB);
    qemu_io(&up, "b", &["read -P 7 94M 1M", "write -P 8 95M 4k"]);
    client.write(0, &fill(SEED, 0, 3)).expect_err("somebody writes at the new owner");
    assert_eq!(check(&client.read(last * BLOCK, BLOCK as u32).expect("is read"), SEED, last), Ok(2));

    up.kill().expect("runs");
    up.restart().expect("comes back");
    sees(&up, "b", 96 * MIB);
    qemu_io(&up, "b", &["read -P 8 95M 4k", "write -P 9 20M 40M"]);

    let mut client = Client::connect(&up.socket("b"), "disk").expect("connects");
    let refused = resize(&up, &["32M"]).expect_err("would drop data").to_string();
    assert!(refused.contains("--shrink") && refused.contains("96 MiB"), "says what to do: {refused}");
    assert_eq!(size_at(&up, "b"), 96 * MIB);
    assert_eq!(resize(&up, &["32M", "--shrink"]).expect("shrinks"), 32 * MIB);
    assert_eq!(size_at(&up, "b"), 32 * MIB);
    assert!(matches!(client.write(40 * MIB, &[1; 4096]), Err(Error::Refused(ENOSPC))));
    assert!(matches!(client.read(40 * MIB, 4096), Err(Error::Refused(EINVAL))));
    assert_eq!(client.read(31 * MIB, 4096).expect("goes on below the end"), [9; 4096]);
    let odd = resize(&up, &["1000"]).expect_err("no multiple of 512").to_string();
    assert!(odd.contains("multiple of 512"), "{odd}");

    assert_eq!(resize(&up, &["64M"]).expect("grows"), 64 * MIB);
    qemu_io(&up, "b", &["read -P 9 31M 1M", "read -P 0 32M 32M", "write -P 5 63M 1M"]);
    up.run(&["volume", "migrate", "disk", "--to", "a"]).expect("goes back");
    sees(&up, "a", 64 * MIB);
    qemu_io(&up, "a", &["read -P 9 31M 1M", "read -P 0 32M 31M", "read -P 5 63M 1M"]);
}
