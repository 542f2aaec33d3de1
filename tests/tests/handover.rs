//! A handover while a client writes: nothing is lost, nothing fails, and how long the client waits does not depend on
//! what was still on the way. The waits are printed, not asserted: machines differ.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::cluster::{Up, helio};
use tests::http::{self, Admin};
use tests::nbd_client::Client;
use tests::tools::{run, until};
use tests::workload::{check, fill};
use tests::writer::Writer;

const BLOCK: u64 = 4096;
/// The blocks that the writer overwrites: few, so that they are no backlog.
const HOT: u64 = 16;
/// The blocks behind them.
const COLD_SEED: u64 = 5;
const HOT_SEED: u64 = 6;
/// So many of the cold blocks are read back through the slow link.
const SAMPLES: u64 = 200;

/// Mebibytes that are unpropagated at the second handover, unless `HELIO_BACKLOG_MIB` says otherwise.
const BACKLOG_MIB: u64 = 192;
const LARGE_BACKLOG_MIB: u64 = 2048;

/// Hands `volume` from a to b under a writer, checks the writer's blocks at b, and returns the report and the wait.
fn hand_over(up: &Up, volume: &str) -> (Value, Duration) {
    let (socket, writer) = (up.socket("a"), Writer::new(0..HOT, HOT_SEED));
    let report = std::thread::scope(|scope| {
        let running = writer.start(scope, &socket, volume);
        let until = |acked: u64| {
            while writer.acked() < acked {
                assert!(!running.has_ended(), "the writer writes");
                std::thread::yield_now();
            }
        };
        until(100);
        writer.watch();
        let report = up.json(&["volume", "migrate", volume, "--to", "b", "--json"]).expect("succeeds");
        // On, until it has written through the new owner.
        until(writer.acked() + 10);
        running.finish().expect("the writer's client sees no error");
        report
    });
    writer.check(&mut Client::connect(&up.socket("b"), volume).expect("connects")).expect("what was acked is at b");
    (report, writer.longest_wait())
}

fn compare_waits(rtt_ms: u64, backlog_mib: u64) {
    let up = Up::start(&["--rtt", &rtt_ms.to_string(), "--rate", "20"]).expect("starts");
    let mib = std::env::var("HELIO_BACKLOG_MIB").map_or(backlog_mib, |text| text.parse().expect("is a number"));
    let image = up.data().join("image");
    let mut file = BufWriter::new(File::create(&image).expect("is made"));
    for block in 0..mib << 8 {
        // The hot blocks are left as they are: zeroes.
        let bytes = if block < HOT { vec![0; BLOCK as usize] } else { fill(COLD_SEED, block, 1) };
        file.write_all(&bytes).expect("is written");
    }
    file.into_inner().expect("is written");
    for volume in ["empty", "full"] {
        up.run(&["volume", "create", volume, "--size", &format!("{mib}M"), "--owner", "a"]).expect("is created");
    }
    let (empty, empty_wait) = hand_over(&up, "empty");
    let full = format!("nbd+unix:///full?socket={}", up.socket("a").display());
    run(Command::new("nbdcopy").arg(&image).arg(full)).expect("is copied");
    let (full, full_wait) = hand_over(&up, "full");

    assert_eq!((&empty["epoch"], &full["epoch"]), (&Value::from(2), &Value::from(2)));
    let stale = full["stale_bytes_at_handover"].as_u64().expect("is a number");
    assert!(stale > mib << 19, "{stale} bytes are no backlog of {mib} MiB");
    let mut client = Client::connect(&up.socket("b"), "full").expect("connects");
    for block in (HOT..mib << 8).step_by(((mib << 8) / SAMPLES) as usize | 1) {
        let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is fetched");
        assert_eq!(check(&bytes, COLD_SEED, block), Ok(1));
    }
    for (what, report, wait) in [("empty", empty, empty_wait), ("full", full, full_wait)] {
        let round_trips = match rtt_ms {
            0 => String::new(),
            rtt => format!(" = {:.1} round trips", wait.as_secs_f64() * 1000.0 / rtt as f64),
        };
        println!(
            "rtt {rtt_ms} ms, {what:>5} backlog of {:>5} MiB: writers held {:>6.1} ms, longest wait {:>6.1} ms{round_trips}",
            report["stale_bytes_at_handover"].as_u64().unwrap_or(0) >> 20,
            report["handover_ms"].as_f64().unwrap_or(0.0),
            wait.as_secs_f64() * 1000.0,
        );
    }
}

/// Writes so many mebibytes to `volume` at node a.
fn write_mib(up: &Up, volume: &str, mib: u64) {
    let mut client = Client::connect(&up.socket("a"), volume).expect("connects");
    for block in 0..mib << 8 {
        client.write(block * BLOCK, &fill(COLD_SEED, block, 1)).expect("is written");
    }
    client.flush().expect("is flushed");
}

/// A command that asks node c, which is neither the owner nor the next one.
fn at_c(up: &Up, arguments: &[&str]) -> Command {
    let address = Admin::find(&up.data(), "c").expect("is told").address;
    let mut command = Command::new(helio().expect("was built"));
    command.args(arguments).args(["--cluster", &address]).arg("--data").arg(up.data());
    command
}

/// The changes of the volume's owner, the newest first.
fn changes(up: &Up, volume: &str) -> Vec<Value> {
    let admin = Admin::find(&up.data(), "a").expect("is told");
    let request = format!(
        "GET /v1/volumes/{volume}/timeline HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n{}\r\n\r\n",
        admin.header()
    );
    let answer = http::send(&admin.address, request.as_bytes()).expect("is answered");
    let timeline: Value = serde_json::from_str(&answer.body).expect("is JSON");
    timeline["changes"].as_array().expect("are told").clone()
}

/// Nothing was to be sent to the next owner by day, and a volume that was to go there synced never went. The command looked on until the new owner would lack
/// little, and asked the old one, which keeps to no limit of a link while it is waited for, only then.
#[test]
fn a_synced_handover_hurries_from_its_beginning() {
    let up = Up::start(&[]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "16M", "--owner", "a"]).expect("is created");
    up.run(&["link", "set", "a", "b", "--rate", "0"]).expect("is set");
    write_mib(&up, "disk", 12);
    let migrate = ["volume", "migrate", "disk", "--to", "b", "--mode", "synced", "--deadline", "60", "--json"];
    let report = up.json(&migrate).expect("moves");
    assert_eq!(report["stale_bytes_at_handover"], 0, "{report}");
}

/// Asked at a node that is not the owner, a synced handover of much was told to have failed: the owner was given up after 15 s. It went on, and the volume
/// moved when nobody thought of it any more. Here it takes longer than that, and than an answer may take.
#[test]
fn a_synced_handover_that_takes_long_is_waited_for_at_any_node() {
    let up = Up::start(&["--rate", "5"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "32M", "--owner", "a"]).expect("is created");
    write_mib(&up, "disk", 30);
    let told = run(&mut at_c(&up, &["volume", "migrate", "disk", "--to", "b", "--mode", "synced"])).expect("moves");
    assert!(told.contains("volume disk is at node b (epoch 2)"), "{told}");
    let changes = changes(&up, "disk");
    assert_eq!((changes.len(), &changes[0]["outcome"]), (1, &Value::from("moved")), "one handover: {changes:?}");
}

/// Ctrl-C was to give a synced handover up, and ended nothing but the command once the owner had been asked: the volume moved all the same.
#[test]
fn an_interrupted_synced_handover_leaves_the_volume_where_it_is() {
    let up = Up::start(&["--rate", "1"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    write_mib(&up, "disk", 48);
    let mut command = at_c(&up, &["volume", "migrate", "disk", "--to", "b", "--mode", "synced"]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    until("the owner waits", Duration::from_secs(60), || {
        changes(&up, "disk").first().is_some_and(|change| change["outcome"] == "running")
    });
    kill_process(Pid::from_child(&command), Signal::INT).expect("is sent");
    let ended = command.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("the handover was cancelled"), "{said}");
    let changes = changes(&up, "disk");
    assert_eq!((changes.len(), &changes[0]["outcome"]), (1, &Value::from("failed")), "{changes:?}");
    // Nothing of it is left that would be in the way of another one.
    let report = up.json(&["volume", "migrate", "disk", "--to", "b", "--json"]).expect("moves");
    assert_eq!(report["epoch"], 2, "{report}");
}

#[test]
fn a_handover_at_0_ms_waits_for_round_trips_and_not_for_bytes() {
    compare_waits(0, BACKLOG_MIB);
}

#[test]
fn a_handover_at_60_ms_waits_for_round_trips_and_not_for_bytes() {
    compare_waits(60, LARGE_BACKLOG_MIB);
}

#[test]
fn a_handover_at_150_ms_waits_for_round_trips_and_not_for_bytes() {
    compare_waits(150, BACKLOG_MIB);
}
