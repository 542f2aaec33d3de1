//! A volume with a target of lag, written faster than its link: writes are slowed and never refused, and the lag that is told stays near
//! the target. The figures are printed, not asserted: machines differ.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::cluster::Up;
use tests::nbd_client::{Client, Error};
use tests::workload::{BLOCK, fill};

const CHUNK: u64 = 256 << 10;
const SIZE_MIB: u64 = 1024;
/// What takes longer than this fails the test.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ends the writer, also when something is not as it should be: it would be waited for for ever.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn write(socket: &Path, written: &AtomicU64, stop: &AtomicBool) -> Result<Duration, Error> {
    let mut client = Client::connect(socket, "disk")?;
    let mut longest = Duration::ZERO;
    let mut at = 0;
    while !stop.load(Ordering::SeqCst) {
        let begun = Instant::now();
        // What would shrink would cross the link in no time.
        let blocks = at / BLOCK as u64..(at + CHUNK) / BLOCK as u64;
        let chunk: Vec<u8> = blocks.flat_map(|block| fill(1, block, at)).collect();
        client.write(at % (SIZE_MIB << 20), &chunk)?;
        longest = longest.max(begun.elapsed());
        at += CHUNK;
        written.fetch_add(CHUNK, Ordering::SeqCst);
    }
    Ok(longest)
}

#[test]
fn writes_beyond_the_link_are_slowed_to_the_target_and_never_refused() {
    let up = Up::start(&["--rtt", "20", "--rate", "40"]).expect("starts");
    let size = format!("{SIZE_MIB}M");
    up.run(&["volume", "create", "disk", "--size", &size, "--owner", "a"]).expect("is created");
    let policy =
        up.run(&["volume", "policy", "disk", "--rpo-target", "2", "--rpo-action", "throttle"]).expect("is set");
    assert!(policy.contains("slowed when no replica is within 2 s"), "{policy}");
    let status = || -> Value {
        serde_json::from_str(&up.run(&["volume", "status", "disk", "--json"]).expect("succeeds")).expect("is JSON")
    };
    let (written, stop, socket) = (AtomicU64::new(0), AtomicBool::new(false), up.socket("a"));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&socket, &written, &stop));
        let ended = Ended(&stop);
        let mut limited = 0;
        while limited < 100 {
            assert!(begun.elapsed() < PATIENCE, "it is not slowed");
            assert!(!writer.is_finished(), "a write failed");
            let status = status();
            let rpo = &status["rpo"];
            limited += u32::from(rpo["limit_bytes_per_second"].is_u64());
            let replicas = status["replicas"].as_array().expect("a list");
            for replica in replicas.iter().filter(|replica| replica["seconds_behind"].as_f64() > Some(0.0)) {
                // Found where the newest write had its position and was not carried out yet: seconds were told, and no bytes.
                assert!(replica["bytes_behind"].as_u64() > Some(0), "{replica}");
                assert!(replica["consistent_ms"].is_u64(), "it followed in this ownership: {replica}");
            }
            if limited % 10 == 1 {
                println!(
                    "{:>5.1} s: {:>5} MiB written, best replica {:>4.1} s behind, {} B/s allowed",
                    begun.elapsed().as_secs_f64(),
                    written.load(Ordering::SeqCst) >> 20,
                    rpo["seconds"].as_f64().unwrap_or(0.0),
                    rpo["limit_bytes_per_second"]
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(ended);
        let longest = writer.join().expect("no panic").expect("no write is refused");
        println!("longest write {longest:?}");
    });
    let calm = Instant::now();
    while status()["rpo"]["seconds"].as_f64() > Some(0.0) || status()["rpo"]["limit_bytes_per_second"].is_u64() {
        assert!(calm.elapsed() < PATIENCE, "it goes on though nothing is written");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(status()["rpo"]["missed_seconds"].is_null());
    up.run(&["volume", "policy", "disk", "--rpo-target", "none"]).expect("is taken back");
    assert!(status()["rpo"]["target_ms"].is_null());
}
