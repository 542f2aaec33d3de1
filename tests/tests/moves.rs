//! A volume goes there and back, again and again, under two writers that stay where they are: nobody sees an error, nothing is
//! lost, and how long the writers wait is printed beside what the distance asks for. A few moves at one distance here; fifty at each of
//! five in `make soak` (`HELIO_MOVES`), with as much on its way as `HELIO_BACKLOG_MIB` says.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::Command;
use std::time::Duration;

use tests::cluster::Up;
use tests::nbd_client::Client;
use tests::tools::{count, run};
use tests::workload::fill;
use tests::writer::Writer;

const BLOCK: u64 = 4096;
/// The blocks of each writer.
const HOT: u64 = 16;
/// Moves in each direction, but for a soak.
const MOVES: u64 = 2;
/// Round trips between any two providers, in milliseconds; the first one always.
const DISTANCES: [u64; 5] = [20, 0, 60, 150, 300];
/// Mebibytes on their way to the other node when the moves begin, but for a soak.
const BACKLOG_MIB: u64 = 64;
/// Acks of each writer before a move, and after it.
const ACKS: u64 = 20;
/// What a move may take beyond its round trips, by the bar.
const ALLOWANCE_MS: f64 = 15.0;

/// The longest waits of the two writers in each move.
#[derive(Default)]
struct Waits(Vec<Duration>);

impl Waits {
    fn percentile_ms(&mut self, percent: usize) -> f64 {
        self.0.sort();
        let index = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(index).map_or(0.0, |wait| wait.as_secs_f64() * 1000.0)
    }
}

/// What no protocol can do without: half a round trip to tell the destination, one for a majority to agree, and one for a block that is
/// not there yet.
fn physical_ms(rtt: u64) -> f64 {
    rtt as f64 * 2.5 + ALLOWANCE_MS
}

fn move_about(rtt: u64, backlog_mib: u64, moves: u64) {
    // Nothing that is near is behind a slow link.
    let rate = if rtt == 0 { "1000" } else { "20" };
    let up = Up::start(&["--rtt", &rtt.to_string(), "--rate", rate]).expect("starts");
    let size = format!("{}M", backlog_mib + 1);
    up.run(&["volume", "create", "disk", "--size", &size, "--owner", "a"]).expect("is created");
    if backlog_mib > 0 {
        let image = up.data().join("image");
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&image).expect("is made"));
        (0..backlog_mib << 8).for_each(|block| file.write_all(&fill(1, block, 1)).expect("is written"));
        file.flush().expect("is written");
        run(Command::new("nbdcopy").arg(&image).arg(&up.uris("a", "disk").expect("listens")[1])).expect("is copied");
        std::fs::remove_file(&image).expect("is removed");
    }
    let writers = [Writer::new(0..HOT, 2), Writer::new(HOT..2 * HOT, 2)];
    let mut waits = [Waits::default(), Waits::default()];
    let socket = up.socket("a");
    std::thread::scope(|scope| {
        let running: Vec<_> = writers.iter().map(|writer| writer.start(scope, &socket, "disk")).collect();
        let until_acked = |more: u64| {
            for (writer, runs) in writers.iter().zip(&running) {
                let then = writer.acked() + more;
                while writer.acked() < then {
                    assert!(!runs.has_ended(), "the writer writes");
                    std::thread::yield_now();
                }
            }
        };
        for _ in 0..moves {
            for (to, waits) in ["b", "a"].into_iter().zip(&mut waits) {
                until_acked(ACKS);
                writers.iter().for_each(Writer::watch);
                up.run(&["volume", "migrate", "disk", "--to", to]).expect("is handed over");
                until_acked(ACKS);
                waits.0.extend(writers.iter().map(Writer::longest_wait).max());
            }
        }
        for runs in running {
            runs.finish().expect("its client sees no error");
        }
    });
    let mut client = Client::connect(&up.socket("b"), "disk").expect("connects");
    for writer in &writers {
        writer.check(&mut client).expect("what was acked is there");
    }
    for block in (2 * HOT..backlog_mib << 8).step_by(997) {
        let bytes = client.read(block * BLOCK, BLOCK as u32).expect("is read");
        assert!(bytes == fill(1, block, 1), "block {block} of the backlog");
    }
    for (what, mut waits) in ["away from the writers", "to the writers"].into_iter().zip(waits) {
        let (p50, p99) = (waits.percentile_ms(50), waits.percentile_ms(99));
        let round_trips = if rtt > 0 { format!(" = {:.1} round trips", p50 / rtt as f64) } else { String::new() };
        println!(
            "rtt {rtt:>3} ms, backlog {backlog_mib:>4} MiB, {:>3} moves {what:<21}: longest wait p50 {p50:>6.1} ms{round_trips}, p99 {p99:>6.1} ms; \
            physics and {ALLOWANCE_MS} ms: {:.1} ms",
            waits.0.len(),
            physical_ms(rtt)
        );
    }
}

#[test]
fn a_volume_that_moves_again_and_again_loses_nothing_and_no_writer_sees_an_error() {
    let moves = count("HELIO_MOVES", MOVES);
    let backlog_mib = count("HELIO_BACKLOG_MIB", BACKLOG_MIB);
    let distances = if moves > MOVES { &DISTANCES[..] } else { &DISTANCES[..1] };
    for rtt in distances {
        for backlog_mib in [0, backlog_mib] {
            move_about(*rtt, backlog_mib, moves);
        }
    }
}
