//! What a new owner fetches after a handover, over the emulated WAN. Figures are printed; what is asserted are counts and never times.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::cluster::Up;
use tests::nbd_client::Client;
use tests::workload::{BLOCK, check, fill};

const SEED: u64 = 11;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(120);
/// Blocks of a request.
const RUN: u64 = 64;

fn status(up: &Up) -> Value {
    up.json(&["volume", "status", "disk", "--json"]).expect("succeeds")
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} is a number in {value}"))
}

/// A cluster with a volume of so many blocks of noise that nodes a and c have, and that b owns since a moment.
fn handed_over(rtt: &str, rate: &str, blocks: u64, hot: std::ops::Range<u64>) -> Up {
    let up = Up::start(&["--rtt", rtt, "--rate", rate]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "256M", "--owner", "a"]).expect("is created");
    up.run(&["link", "set", "a", "b", "--rate", "0"]).expect("is set");
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    for block in (0..blocks).step_by(RUN as usize) {
        let bytes: Vec<u8> = (block..block + RUN).flat_map(|block| fill(SEED, block, 1)).collect();
        client.write(block * BLOCK as u64, &bytes).expect("is written");
    }
    for _ in 0..8 {
        for block in hot.clone().step_by(RUN as usize) {
            client.read(block * BLOCK as u64, (RUN as usize * BLOCK) as u32).expect("is read");
        }
    }
    client.flush().expect("is flushed");
    // What c lacks b would have to fetch for it.
    let begun = Instant::now();
    let has_all = |status: &Value| {
        let replicas = status["replicas"].as_array().expect("a list");
        replicas.iter().any(|replica| replica["node"] == "c" && replica["watermark"] == status["head"])
    };
    while !has_all(&status(&up)) {
        assert!(begun.elapsed() < PATIENCE, "c does not follow");
        std::thread::sleep(Duration::from_millis(50));
    }
    up.run(&["volume", "migrate", "disk", "--to", "b"]).expect("is handed over");
    up
}

/// What became of what b lacked, once it lacks nothing.
fn fetched(up: &Up) -> Value {
    let begun = Instant::now();
    loop {
        let now = status(up);
        if now["owner"] == "b" && now["stale_bytes"] == 0 {
            return now["fetch"].clone();
        }
        assert!(begun.elapsed() < PATIENCE, "b lacks {}", now["stale_bytes"]);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn accounted(fetch: &Value) -> u64 {
    ["demanded_bytes", "near_bytes", "hot_bytes", "rest_bytes", "overwritten_bytes"]
        .iter()
        .map(|key| number(fetch, key))
        .sum()
}

#[test]
fn a_cold_sequential_read_is_fetched_ahead() {
    let (blocks, mbit) = (49_152, 200);
    let up = handed_over("150", &mbit.to_string(), blocks, 0..0);
    let mut client = Client::connect(&up.socket("b"), "disk").expect("connects");
    let begun = Instant::now();
    let mut marks = Vec::new();
    for block in (0..blocks).step_by(RUN as usize) {
        if block % (blocks / 6) == 0 {
            marks.push(begun.elapsed().as_secs_f64());
        }
        let bytes = client.read(block * BLOCK as u64, (RUN as usize * BLOCK) as u32).expect("is read");
        for (index, bytes) in bytes.chunks(BLOCK).enumerate() {
            assert_eq!(check(bytes, SEED, block + index as u64), Ok(1));
        }
    }
    let (took, bytes) = (begun.elapsed().as_secs_f64(), blocks * BLOCK as u64);
    let share = bytes as f64 * 8.0 / took / (f64::from(mbit) * 1e6);
    println!(
        "{} MiB in {took:.2} s, {share:.2} of the link's rate, 150 ms round trip; a sixth each at {marks:.2?}",
        bytes >> 20
    );
    let fetch = fetched(&up);
    println!("{fetch}");
    assert_eq!(accounted(&fetch), number(&fetch, "lacked_bytes"));
    // The guest seldom had to ask by itself.
    assert!(number(&fetch, "demanded_bytes") < number(&fetch, "lacked_bytes") / 4, "{fetch}");
    assert!(number(&fetch, "near_bytes") > 0, "{fetch}");
    assert!(up.run(&["volume", "status", "disk"]).expect("succeeds").contains("ahead of their reads"));
}

#[test]
fn what_was_hot_comes_first_and_what_is_overwritten_does_not_come() {
    let (blocks, overwritten) = (8192, 4096..5120);
    let up = handed_over("40", "20", blocks, 6144..6656);
    let mut client = Client::connect(&up.socket("b"), "disk").expect("connects");
    // Beyond what is under way at once.
    for block in overwritten.clone().step_by(RUN as usize) {
        let bytes: Vec<u8> = (block..block + RUN).flat_map(|block| fill(SEED, block, 2)).collect();
        client.write(block * BLOCK as u64, &bytes).expect("is written");
    }
    let fetch = fetched(&up);
    println!("{fetch}");
    assert_eq!(accounted(&fetch), number(&fetch, "lacked_bytes"));
    assert!(number(&fetch, "hot_bytes") >= 512 * BLOCK as u64, "{fetch}");
    assert!(number(&fetch, "overwritten_bytes") > 0, "{fetch}");
    for block in 0..blocks {
        let bytes = client.read(block * BLOCK as u64, BLOCK as u32).expect("is read");
        assert_eq!(check(&bytes, SEED, block), Ok(if overwritten.contains(&block) { 2 } else { 1 }));
    }
    let links = up.run(&["link", "list"]).expect("lists");
    assert!(links.contains("LATE"), "{links}");
}

/// After two instant moves in a row everything was at the first owner alone. The second, which had fetched nothing yet, was called the one to keep
/// running; `helio node drain` said of the first that nobody needed it, and the guest hung when it was stopped.
#[test]
fn the_node_that_has_what_the_owner_lacks_is_the_one_that_is_needed() {
    let up = Up::start(&["--rate", "2"]).expect("starts");
    up.run(&["volume", "create", "disk", "--size", "64M", "--owner", "a"]).expect("is created");
    for to in ["b", "c"] {
        up.run(&["link", "set", "a", to, "--rate", "0"]).expect("is set");
    }
    let mut client = Client::connect(&up.socket("a"), "disk").expect("connects");
    for block in (0..8192).step_by(RUN as usize) {
        let bytes: Vec<u8> = (block..block + RUN).flat_map(|block| fill(SEED, block, 1)).collect();
        client.write(block * BLOCK as u64, &bytes).expect("is written");
    }
    client.flush().expect("is flushed");
    for to in ["b", "c"] {
        up.run(&["volume", "migrate", "disk", "--to", to]).expect("is handed over");
    }
    let begun = Instant::now();
    while status(&up)["elsewhere"]["all_at"] != serde_json::json!(["a"]) {
        assert!(begun.elapsed() < PATIENCE, "{}", status(&up));
        std::thread::sleep(Duration::from_millis(50));
    }
    let told = up.run(&["volume", "status", "disk"]).expect("is told");
    assert!(told.contains("still come from node a: keep it running"), "{told}");
    let refused = up.run(&["node", "drain", "a"]).expect_err("it is needed").to_string();
    assert!(refused.contains("from node a: keep it running"), "{refused}");
    let told = up.run(&["node", "drain", "b"]).expect("nobody needs that");
    assert!(told.contains("b: owns nothing, and nobody needs it"), "{told}");
}
