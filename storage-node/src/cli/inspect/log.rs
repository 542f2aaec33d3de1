//! The records of the log as rows, or as lines of JSON.

use std::ops::ControlFlow;

use client_lib::Epoch;
use serde_json::json;

use super::super::output::{Output, Unprinted};
use super::{Damage, Start, counted, heading};
use crate::inspect::Shard;
use crate::inspect::log::{Data, Record, files, walk};
use crate::log::Entry;
use crate::size;
use crate::volume::ledger::LedgerNews;

/// Prints the log, as far as it was asked for.
pub(super) struct LogPrinter {
    from: Option<Start>,
    volume: Option<u64>,
    json: bool,
    out: Output,
    /// Where to begin, while that was not met.
    awaited: Option<Start>,
    /// Records that may still be shown.
    left: u64,
    failed: Option<Unprinted>,
}

impl LogPrinter {
    pub(super) fn new(from: Option<Start>, volume: Option<u64>, json: bool) -> LogPrinter {
        LogPrinter { from, volume, json, out: Output::new(), awaited: None, left: 0, failed: None }
    }

    /// Prints the log of `shard`, at most `limit` records of it.
    pub(super) fn print(&mut self, shard: &Shard, limit: Option<u64>, damage: &mut Damage) -> anyhow::Result<()> {
        (self.awaited, self.left) = (self.from, limit.unwrap_or(u64::MAX));
        let mut found = shard.damage.clone();
        if !self.json {
            self.out.line(format_args!("{}\n{LOG_HEADING}", heading(shard)))?;
        }
        let walked = walk(&files(shard, &mut found)?, shard.checkpoint, Data::Verified, &mut |record| match self
            .record(shard, record)
        {
            Ok(flow) => flow,
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = self.failed.take() {
            return Err(error.into());
        }
        found.extend(walked.damage);
        if let Some((at, reason)) = walked.end {
            let cut: Vec<u32> = walked.cut.into_iter().collect();
            if self.json {
                let end = json!({
                    "segment": at.segment, "block": at.block, "next_record": at.sequence, "reason": reason, "cut_segments": cut,
                });
                self.out.line(json!({ "shard": shard.name, "end": end, "damage": found }))?;
            } else {
                let (segment, block, sequence) = (at.segment, at.block, at.sequence);
                self.out.line(format_args!("the log ends at {segment}:{block}, before record {sequence}: {reason}"))?;
                for segment in cut {
                    self.out
                        .line(format_args!("segment {segment} holds records that do not continue it, and is free"))?;
                }
            }
        }
        damage.of(shard, found);
        Ok(self.out.flush()?)
    }

    fn record(&mut self, shard: &Shard, record: &Record) -> Result<ControlFlow<()>, Unprinted> {
        let at = record.at;
        let is_before = match self.awaited {
            Some(Start::Record(sequence)) => at.sequence < sequence,
            // Segments are not in the order of their numbers: from the place on is from the record there on.
            Some(Start::Place(segment, block)) => (at.segment, at.block) != (segment, block),
            None => false,
        };
        let is_asked = |entry: &Entry| self.volume.is_none_or(|volume| entry.volume().0 == volume);
        if is_before || !record.entries.iter().any(is_asked) {
            return Ok(ControlFlow::Continue(()));
        }
        self.awaited = None;
        if self.left == 0 {
            return Ok(ControlFlow::Break(()));
        }
        self.left -= 1;
        let entries = record.entries().filter(|(entry, _)| is_asked(entry));
        if self.json {
            let entries: Vec<_> = entries
                .map(|(entry, block)| json!({ "entry": entry, "data_block": (entry.data_blocks() > 0).then_some(block) }))
                .collect();
            let line = json!({
                "shard": shard.name, "segment": at.segment, "block": at.block, "generation": at.generation,
                "record": at.sequence, "chain": format!("{:08x}", at.chain), "checksum": format!("{:08x}", record.checksum),
                "blocks": record.blocks, "entries": entries,
            });
            self.out.line(line)?;
            return Ok(ControlFlow::Continue(()));
        }
        for (number, (entry, first_block)) in entries.enumerate() {
            let (place, sequence, chain) = match number {
                0 => (format!("{}:{}", at.segment, at.block), at.sequence.to_string(), format!("{:08x}", at.chain)),
                // One line per entry; those of a record stand together.
                _ => Default::default(),
            };
            let (name, lsn, what) = describe(entry);
            let data = match entry.data_blocks() {
                0 => String::new(),
                1 => format!(", data at {}:{first_block}", at.segment),
                count => format!(", data at {}:{first_block}..{}", at.segment, first_block + count - 1),
            };
            let volume = entry.volume();
            self.out.line(format_args!(
                "{place:<14} {sequence:<10} {chain:<8}  {name:<9} {volume:<8} {lsn:<14} {what}{data}"
            ))?;
        }
        Ok(ControlFlow::Continue(()))
    }
}

const LOG_HEADING: &str = "PLACE          RECORD     CHAIN     ENTRY     VOLUME   LSN            WHAT";

/// The entry's name, its LSN, and the rest in words.
fn describe(entry: &Entry) -> (&'static str, String, String) {
    let none = || "-".to_owned();
    let span = |first: u32, count: usize| match count {
        0 => "no block".to_owned(),
        1 => format!("block {first}"),
        count => format!("blocks {first}..{}", u64::from(first) + count as u64 - 1),
    };
    match entry {
        Entry::Write { lsn, start, checksums, .. } => ("write", lsn.to_string(), span(start.0, checksums.len())),
        Entry::Zero { lsn, start, count, .. } => ("zero", lsn.to_string(), span(start.0, *count as usize)),
        Entry::Received { blocks, .. } => {
            let first = blocks.iter().map(|(block, ..)| block.0).min().unwrap_or(0);
            let last = blocks.iter().map(|(block, ..)| block.0).max().unwrap_or(0);
            let all = span(first, blocks.len());
            let is_run = u64::from(last - first) + 1 == blocks.len() as u64;
            ("received", none(), if is_run { all } else { format!("{} blocks of {first}..{last}", blocks.len()) })
        }
        Entry::Manifest { manifest, seal, .. } | Entry::Told { manifest, seal, .. } => {
            let blocks: u64 = manifest.runs.iter().map(|run| u64::from(run.blocks())).sum();
            let sealed = if *seal { ", sealed" } else { "" };
            (
                "manifest",
                manifest.to.to_string(),
                format!("{} after {}{sealed}", counted(blocks, "block"), manifest.from),
            )
        }
        Entry::Applied { to, .. } => ("applied", to.to_string(), "the sealed delta".to_owned()),
        Entry::Role { epoch, owner, .. } => {
            ("role", none(), format!("{} in epoch {epoch}", if *owner { "owner" } else { "replica" }))
        }
        Entry::Opened { size, .. } => ("opened", none(), size::human(size.bytes())),
        Entry::Deleted { .. } => ("deleted", none(), String::new()),
        Entry::Resized { size, .. } => ("resized", none(), size::human(size.bytes())),
        Entry::Snapshot { snapshot, .. } => ("snapshot", none(), format!("{snapshot} made")),
        Entry::Cloned { origin, snapshot, .. } => {
            ("cloned", none(), format!("from snapshot {snapshot} of volume {origin}"))
        }
        Entry::Writers { news, .. } => ("writers", none(), describe_writers(news)),
        Entry::Rewound { to, .. } => ("rewound", none(), format!("up to {to}")),
        Entry::Discarded { to, .. } => ("discarded", none(), format!("beyond {to}")),
        Entry::SyncPart { manifest, end, .. } => {
            let end = end.map_or("the last".to_owned(), |end| format!("before block {}", end.0));
            ("sync part", none(), format!("up to {}, {end}", manifest.to))
        }
        Entry::SnapshotDeleted { snapshot, .. } => ("snapshot", none(), format!("{snapshot} deleted")),
        Entry::RolledBack { lsn, snapshot, .. } => ("rolled back", lsn.to_string(), format!("to snapshot {snapshot}")),
        Entry::Relocated { segment, block, moves, .. } => {
            ("relocated", none(), format!("{} to {segment}:{block} and behind", counted(moves.len() as u64, "block")))
        }
    }
}

/// `claimed in epoch 3; session 7: 0..299, 302`
fn describe_writers(news: &LedgerNews) -> String {
    let claim = (news.claim > Epoch(0)).then(|| format!("claimed in epoch {}", news.claim));
    let run = |(from, to): &(u64, u64)| match to - from {
        1 => from.to_string(),
        _ => format!("{from}..{}", to - 1),
    };
    let session = |(session, runs): &(u64, Vec<(u64, u64)>)| {
        // The first run of a session whose first write it is.
        let runs: Vec<String> = runs.iter().filter(|(from, to)| from < to).map(run).collect();
        format!("session {session}: {}", runs.join(", "))
    };
    claim.into_iter().chain(news.done.iter().map(session)).collect::<Vec<_>>().join("; ")
}
