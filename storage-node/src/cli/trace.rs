//! `helio trace`: where the time of a volume's operations goes, stage by stage.
//!
//! The owner is asked to look for a few seconds, again and again until the time is over, so that nobody looks any more soon after this
//! command has gone, and a volume that moves is followed. What was told is put together here ([`sum`]); [`view`] is how it looks.

mod sum;
mod view;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use client_lib::VolumeName;
use client_lib::wire::admin::TraceReport;

use self::sum::Sum;
use super::Common;
use super::client::{Client, print_json};

/// The owner looks for so long at a time.
const SLICE: Duration = Duration::from_secs(2);

/// The longest trace.
const FOR_MAX: Duration = Duration::from_secs(3600);

/// Show where the time of a volume's operations goes: socket, queue, log, disk, network, other nodes
///
/// Looks at operations at the volume's owner for a while, then prints for each kind how long they took and what share each stage has, and the
/// slowest ones. Costs nothing while nobody does this; where there are very many operations, one in so many is looked at.
#[derive(Debug, Args)]
#[command(
    after_help = "docs/trace.md says what each stage is, and what to do about it.\n\nExamples:\n  helio trace disk\n  helio trace disk --for 1m --op flush --slowest 20\n  helio trace disk --json"
)]
pub(super) struct Trace {
    /// The volume
    volume: VolumeName,
    /// For how long, as in 500ms, 10s or 2m
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = time)]
    duration: Duration,
    /// Only operations of these kinds
    #[arg(long = "op", value_name = "KIND", value_delimiter = ',', value_parser = ["read", "write", "flush", "trim", "zero"])]
    kinds: Vec<String>,
    /// How many of the slowest operations to show one by one
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    slowest: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: use a number with ms, s or m, as in 10s");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => return Err(wrong()),
    };
    match ms.map(Duration::from_millis) {
        Some(time) if (Duration::from_millis(100)..=FOR_MAX).contains(&time) => Ok(time),
        _ => Err("a trace takes 100ms to 60m".to_owned()),
    }
}

pub(super) fn run(trace: &Trace, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let (begun, mut sum) = (Instant::now(), Sum::new(trace.slowest as usize));
    let shows_progress = !trace.json && std::io::stderr().is_terminal();
    loop {
        let left = trace.duration.saturating_sub(begun.elapsed());
        let ms = left.min(SLICE).as_millis();
        if ms == 0 {
            break;
        }
        let (volume, slowest, kinds) = (&trace.volume, trace.slowest, trace.kinds.join(","));
        let op = if kinds.is_empty() { String::new() } else { format!("&op={kinds}") };
        let told: TraceReport = client.get(&format!("/v1/volumes/{volume}/trace?for_ms={ms}&slowest={slowest}{op}"))?;
        sum.add(told);
        if shows_progress {
            let (done, all) = (begun.elapsed().min(trace.duration).as_secs_f64(), trace.duration.as_secs_f64());
            eprint!("\r\x1b[K{done:.0} of {all:.0} s, {} operations", sum.count());
        }
    }
    if shows_progress {
        eprint!("\r\x1b[K");
    }
    let report = sum.told();
    if trace.json {
        return print_json(&report);
    }
    print!("{}", view::text(&report));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, ms) in [("500ms", 500), ("10s", 10_000), ("7", 7000), ("2m", 120_000)] {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "1.5s", "-1s", "1h", "0s", "99ms", "61m", "99999999999999999999s"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
