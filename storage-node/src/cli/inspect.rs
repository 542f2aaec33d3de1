//! `helio inspect`: what lies in a data directory, without a node. All reading is in [`crate::inspect`].
//!
//! Tables have fixed widths and are printed row by row: a log does not fit in memory. Damage goes to standard error
//! behind what could be shown, and makes the exit code 1.

mod log;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};
use client_lib::VolumeId;
use serde_json::json;

use self::log::LogPrinter;
use super::client::{print_json, print_table};
use super::output::{Output, Unprinted};
use crate::inspect::map::MapRun;
use crate::inspect::volume::VolumeReport;
use crate::inspect::{InspectError, Inspected, Shard, map, segments, volume};
use crate::size;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the segment files, with how much of each the map still needs
    #[command(after_help = "Example:\n  helio inspect segments /var/lib/heliotrope")]
    Segments {
        #[command(flatten)]
        common: InspectArguments,
    },
    /// List the records of the log in order, and tell where and why it ends
    #[command(
        after_help = "Example:\n  helio inspect log /var/lib/heliotrope --from 3:1 --volume 7 --limit 20\n\nWith --json there is one line per record, and one for the end of each shard's log."
    )]
    Log {
        #[command(flatten)]
        common: InspectArguments,
        /// Begin at this record: its number, or SEGMENT:BLOCK
        #[arg(long, value_name = "POSITION", value_parser = parse_position)]
        from: Option<Start>,
        /// Only entries of this volume
        #[arg(long, value_name = "ID")]
        volume: Option<u64>,
        /// Stop after this many records
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// List where the blocks of a volume are, in which version, with which checksum
    #[command(after_help = "Example:\n  helio inspect map /var/lib/heliotrope 7 --range 0..255")]
    Map {
        #[command(flatten)]
        common: InspectArguments,
        /// The volume's id
        volume: u64,
        /// Only these blocks of 4 KiB, the last included
        #[arg(long, value_name = "FIRST..LAST", value_parser = parse_range)]
        range: Option<RangeInclusive<u32>>,
    },
    /// Show what the last checkpoint says of the volumes, or all it says of one
    #[command(after_help = "Example:\n  helio inspect volume /var/lib/heliotrope 7 --json")]
    Volume {
        #[command(flatten)]
        common: InspectArguments,
        /// The volume's id [default: all, one a line]
        volume: Option<u64>,
    },
}

#[derive(Debug, Args)]
pub(super) struct InspectArguments {
    /// The data directory of a node that does not run, a copy of one, or one shard in it
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The first record to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Record(u64),
    Place(u32, u32),
}

pub(super) fn run(verb: Verb) -> anyhow::Result<()> {
    let (Verb::Segments { common } | Verb::Log { common, .. } | Verb::Map { common, .. } | Verb::Volume { common, .. }) =
        &verb;
    let inspected = Inspected::open(&common.directory)?;
    let json = common.json;
    let mut damage = Damage { found: inspected.damage.clone() };
    match verb {
        Verb::Segments { .. } => show_segments(&inspected, json, &mut damage)?,
        Verb::Log { from, volume, limit, .. } => {
            let mut printer = LogPrinter::new(from, volume, json);
            for shard in &inspected.shards {
                printer.print(shard, limit, &mut damage)?;
            }
        }
        Verb::Map { volume, range, .. } => {
            let range = range.unwrap_or(0..=u32::MAX);
            show_map(&inspected, VolumeId(volume), range, json, &mut damage)?;
        }
        Verb::Volume { volume, .. } => show_volumes(&inspected, volume.map(VolumeId), json, &mut damage)?,
    }
    damage.report()
}

/// What was found damaged, over all shards.
struct Damage {
    found: Vec<String>,
}

impl Damage {
    fn of(&mut self, shard: &Shard, damage: Vec<String>) {
        self.found.extend(damage.into_iter().map(|what| format!("{}: {what}", shard.name)));
    }

    fn report(self) -> anyhow::Result<()> {
        for what in &self.found {
            eprintln!("damage: {what}");
        }
        match self.found.len() {
            0 => Ok(()),
            1 => bail!("1 thing in the directory is damaged; it was not changed"),
            count => bail!("{count} things in the directory are damaged; they were not changed"),
        }
    }
}

/// The line above a shard's table.
fn heading(shard: &Shard) -> String {
    match shard.checkpoint {
        Some(at) => format!(
            "{}: checkpoint at segment {}, block {}, before record {}",
            shard.name, at.segment, at.block, at.sequence
        ),
        None => format!("{}: no checkpoint", shard.name),
    }
}

fn show_segments(inspected: &Inspected, json: bool, damage: &mut Damage) -> anyhow::Result<()> {
    let mut reports = Vec::new();
    for shard in &inspected.shards {
        let report = segments::report(shard)?;
        damage.of(shard, report.damage.clone());
        if json {
            reports.push(report);
            continue;
        }
        println!("{}", heading(shard));
        let rows = report.segments.iter().map(|segment| {
            vec![
                segment.segment.to_string(),
                segment.generation.map_or_else(|| "-".to_owned(), |generation| generation.to_string()),
                size::human(segment.bytes),
                segment.state.name().to_owned(),
                segment.records.to_string(),
                segment.data_blocks.to_string(),
                segment.live_blocks.to_string(),
                segment.dead_blocks.to_string(),
                segment.new_blocks.to_string(),
            ]
        });
        print_table(
            &["segment", "generation", "size", "state", "records", "data blocks", "live", "dead", "new"],
            rows.collect(),
        );
    }
    if json { print_json(&json!({ "shards": reports })) } else { Ok(()) }
}

fn show_volumes(inspected: &Inspected, only: Option<VolumeId>, json: bool, damage: &mut Damage) -> anyhow::Result<()> {
    let mut reports = Vec::new();
    for shard in &inspected.shards {
        let report = volume::report(shard, only)?;
        damage.of(shard, report.damage.clone());
        reports.push((shard, report));
    }
    if let Some(only) = only
        && reports.iter().all(|(_, report)| report.volumes.is_empty())
    {
        return Err(InspectError::NoVolume(only).into());
    }
    if json {
        let reports: Vec<_> = reports.into_iter().map(|(_, report)| report).collect();
        return print_json(&json!({ "shards": reports }));
    }
    for (shard, report) in &reports {
        println!("{}", heading(shard));
        if only.is_some() {
            report.volumes.iter().for_each(print_volume);
            continue;
        }
        let rows = report.volumes.iter().map(|volume| {
            let state = volume.state.as_ref();
            let or_damaged = |text: Option<String>| text.unwrap_or_else(|| "damaged".to_owned());
            vec![
                volume.volume.to_string(),
                or_damaged(state.map(|state| size::human(state.size_bytes))),
                or_damaged(state.map(|state| state.role.to_owned())),
                or_damaged(state.map(|state| state.epoch.to_string())),
                or_damaged(state.map(|state| state.known.clone())),
                or_damaged(state.map(|state| state.watermark.clone())),
                size::human(volume.mapped_bytes),
                or_damaged(state.map(|state| state.stale_blocks.to_string())),
            ]
        });
        print_table(
            &["volume", "size", "role", "epoch", "known", "watermark", "in use", "stale blocks"],
            rows.collect(),
        );
    }
    Ok(())
}

fn print_volume(volume: &VolumeReport) {
    let pages = counted(volume.pages, "page");
    println!("volume {}: {} in use, {pages} of map", volume.volume, size::human(volume.mapped_bytes));
    let Some(state) = &volume.state else { return };
    println!("  size       {}", size::human(state.size_bytes));
    println!("  role       {} in epoch {}", state.role, state.epoch);
    println!("  known      {}", state.known);
    println!("  watermark  {}", state.watermark);
    if let Some(base) = &state.rejoins_from {
        println!("  rejoins    from {base}: the blocks that it lacks besides are in the layers");
    }
    if let Some(to) = &state.sealed_to {
        println!("  sealed to  {to}");
    }
    println!("  stale      {}", counted(state.stale_blocks, "block"));
    println!("  history    from {}", state.history_start);
    println!();
    let layers = state.layers.iter().map(|layer| {
        vec![layer.layer.to_owned(), layer.id.to_string(), layer.blocks.to_string(), layer.stale_blocks.to_string()]
    });
    print_table(&["layer", "id", "blocks", "stale"], layers.collect());
    if !state.history.is_empty() {
        println!();
        let history = state
            .history
            .iter()
            .map(|interval| vec![interval.from.clone(), interval.to.clone(), interval.blocks.to_string()]);
        print_table(&["changed after", "up to", "blocks"], history.collect());
    }
    if !volume.segments.is_empty() {
        println!();
        let segments = volume.segments.iter().map(|used| vec![used.segment.to_string(), used.live_blocks.to_string()]);
        print_table(&["segment", "live blocks"], segments.collect());
    }
}

fn show_map(
    inspected: &Inspected,
    volume: VolumeId,
    range: RangeInclusive<u32>,
    json: bool,
    damage: &mut Damage,
) -> anyhow::Result<()> {
    let mut is_here = false;
    let mut shards = Vec::new();
    let mut out = Output::new();
    for shard in &inspected.shards {
        let mut failed = None;
        let mut collected = Vec::new();
        let mut is_first = true;
        let shown = map::runs(shard, volume, range.clone(), &mut |run| {
            if json {
                collected.push(run);
            } else if failed.is_none() {
                let title = std::mem::take(&mut is_first).then(|| heading(shard));
                failed = print_run(&mut out, title, &run).err();
            }
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        match shown {
            Ok(found) => {
                is_here = true;
                if is_first && !json {
                    let heading = heading(shard);
                    out.line(format_args!("{heading}\nno block of volume {volume} in this range is mapped"))?;
                }
                shards.push(json!({ "shard": shard.name, "runs": collected, "damage": found }));
                damage.of(shard, found);
            }
            Err(InspectError::NoVolume(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !is_here {
        return Err(InspectError::NoVolume(volume).into());
    }
    if json {
        out.line(serde_json::to_string_pretty(&json!({ "volume": volume, "shards": shards }))?)?;
    }
    Ok(out.flush()?)
}

fn print_run(out: &mut Output, title: Option<String>, run: &MapRun) -> Result<(), Unprinted> {
    let columns = |blocks: &dyn Display, layer: &str, kind: &str, lsn: &str, place: &str, checksum: &str| {
        let row = format!("{blocks:<22} {layer:<8} {kind:<7} {lsn:<14} {place:<14} {checksum}");
        row.trim_end().to_owned()
    };
    if let Some(title) = title {
        let heading = columns(&"BLOCKS", "LAYER", "KIND", "VERSION", "PLACE", "CHECKSUM");
        out.line(format_args!("{title}\n{heading}"))?;
    }
    let place = run.place().map_or_else(|| "-".to_owned(), |place| format!("{}:{}", place.segment, place.block));
    let checksum = match run.checksums.as_slice() {
        [] => "-".to_owned(),
        [one] => format!("{one:08x}"),
        [first, rest @ ..] => format!("{first:08x} and {} more", rest.len()),
    };
    let blocks = blocks(run.first, run.last);
    out.line(columns(&blocks, run.layer, run.kind, &run.lsn.to_string(), &place, &checksum))
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn blocks(first: u32, last: u32) -> String {
    if first == last { first.to_string() } else { format!("{first}..{last}") }
}

fn parse_position(text: &str) -> Result<Start, String> {
    let wrong =
        || format!("{text:?} is no position; write a record's number, as in 1042, or SEGMENT:BLOCK, as in 3:17");
    match text.split_once(':') {
        Some((segment, block)) => {
            Ok(Start::Place(segment.parse().map_err(|_| wrong())?, block.parse().map_err(|_| wrong())?))
        }
        None => text.parse().map(Start::Record).map_err(|_| wrong()),
    }
}

fn parse_range(text: &str) -> Result<RangeInclusive<u32>, String> {
    let wrong = || format!("{text:?} is no range of blocks; write FIRST..LAST, as in 0..255, or one block");
    let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
    let (first, last) = match text.split_once("..") {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if first <= last { Ok(first..=last) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_ranges_are_read_or_refused() {
        assert_eq!(parse_position("12"), Ok(Start::Record(12)));
        assert_eq!(parse_position("3:17"), Ok(Start::Place(3, 17)));
        assert_eq!(parse_range("0..255"), Ok(0..=255));
        assert_eq!(parse_range("7"), Ok(7..=7));
        for text in ["", ":", "3:", "a", "-1", "5..1", "1..", "..", "1...2"] {
            assert!(parse_position(text).is_err(), "{text}");
            assert!(parse_range(text).is_err(), "{text}");
        }
    }
}
