//! Reads are linearizable, block by block: every read gives what the newest write had put there at some moment between its
//! question and its answer.
//!
//! The order of the writes is known, it is that of their LSNs. So it is enough that this order agrees with time (a write
//! that was answered before another was asked for comes before it), that no read gives anything older than what was
//! answered before the read was asked for, to any guest, and nothing from its future. What a takeover or a power cut took
//! away counts until then. A rollback is a write of what it puts back.

use std::time::Duration;

use client_lib::{Lsn, VolumeId};

use super::survivors::{Version, versions};
use crate::simulation::history::{Book, Content, Operation, What};

/// A write or a read of one block that was answered.
#[derive(Clone, Copy, Debug)]
struct Known {
    lsn: Lsn,
    asked: Duration,
    done: Duration,
    gone: Option<Duration>,
}

impl Known {
    /// Whether whoever asks from `asked` to `done` must see it or something newer.
    fn binds(&self, asked: Duration, done: Duration) -> bool {
        self.done < asked && self.gone.is_none_or(|gone| gone > done)
    }
}

pub(crate) fn check(book: &Book, volume: VolumeId) -> Result<(), String> {
    let all = versions(book, volume);
    let none = Vec::new();
    let blocks = 0..crate::simulation::guest::BLOCKS;
    for block in blocks {
        let versions = all.get(&block).unwrap_or(&none);
        let mut known: Vec<Known> = Vec::new();
        let mut reads: Vec<(&Operation, Content)> = Vec::new();
        for operation in book.operations.iter().filter(|operation| operation.volume == volume) {
            let Some(done) = operation.done() else { continue };
            match &operation.what {
                What::Write { start, contents, .. } => {
                    let Some(content) = at(*start, contents, block) else { continue };
                    let is_its = |version: &&Version| {
                        let is_in_time = (operation.asked..=done).contains(&version.logged);
                        version.content == content && is_in_time && !version.is_back
                    };
                    let its: Vec<&Version> = versions.iter().filter(is_its).collect();
                    let Some(version) = its.last() else {
                        return Err(format!("block {block}: {operation:?} was answered and is in no log"));
                    };
                    match content {
                        // Several zeroes at a time: nobody can tell them apart.
                        None if its.len() > 1 => continue,
                        None => {}
                        Some(_) => once(block, operation, versions, &its)?,
                    }
                    let (lsn, gone) = (version.lsn, version.gone);
                    known.push(Known { lsn, asked: operation.asked, done, gone });
                }
                What::Read { start, found, .. } => {
                    reads.extend(at(*start, found, block).map(|content| (operation, content)))
                }
                What::RollBack => {
                    let its =
                        |version: &&Version| version.is_back && (operation.asked..=done).contains(&version.logged);
                    let known_of = |version: &Version| Known {
                        lsn: version.lsn,
                        asked: operation.asked,
                        done,
                        gone: version.gone,
                    };
                    known.extend(versions.iter().rfind(its).map(known_of));
                }
                What::Flush | What::Resize { .. } => {}
            }
        }
        in_order_of_time(block, &known)?;
        reads.sort_by_key(|(read, _)| read.done());
        for (read, content) in reads {
            let seen = judge(block, read, content, versions, &known)?;
            known.push(seen);
        }
    }
    Ok(())
}

fn at(start: u32, contents: &[Content], block: u32) -> Option<Content> {
    contents.get(block.checked_sub(start)? as usize).copied()
}

/// A write whose answer was lost is asked for again, and may be in the log several times. To others it must be one: nothing
/// else may have come in between.
fn once(block: u32, operation: &Operation, versions: &[Version], its: &[&Version]) -> Result<(), String> {
    let part = its.first().zip(its.last()).map(|(first, last)| first.lsn..=last.lsn);
    let between = |version: &&Version| part.as_ref().is_some_and(|part| part.contains(&version.lsn));
    match versions.iter().filter(between).find(|version| its.iter().all(|its| its.lsn != version.lsn)) {
        Some(other) => Err(format!("block {block}: {operation:?} was carried out before and after {other:?}: {its:?}")),
        None => Ok(()),
    }
}

fn in_order_of_time(block: u32, writes: &[Known]) -> Result<(), String> {
    for later in writes {
        let early = writes.iter().find(|early| early.binds(later.asked, later.done) && early.lsn >= later.lsn);
        if let Some(early) = early {
            return Err(format!(
                "block {block}: {early:?} was answered before {later:?} was asked for, and comes after it"
            ));
        }
    }
    Ok(())
}

fn judge(
    block: u32,
    read: &Operation,
    content: Content,
    versions: &[Version],
    known: &[Known],
) -> Result<Known, String> {
    let (asked, done) = (read.asked, read.done().expect("was answered"));
    let initial = Version { lsn: Lsn::ZERO, content: None, logged: Duration::ZERO, gone: None, is_back: false };
    let bound = known.iter().filter(|known| known.binds(asked, done)).max_by_key(|known| known.lsn);
    let mut reasons = Vec::new();
    for version in std::iter::once(&initial).chain(versions).filter(|version| version.content == content) {
        if version.logged > done {
            reasons.push(format!("{version:?} was written after it was answered"));
        } else if version.gone.is_some_and(|gone| gone < asked) {
            reasons.push(format!("{version:?} was gone before it was asked for"));
        } else if let Some(bound) = bound.filter(|bound| bound.lsn > version.lsn) {
            reasons.push(format!("{version:?} is older than {bound:?}"));
        } else {
            return Ok(Known { lsn: version.lsn, asked, done, gone: version.gone });
        }
    }
    if reasons.is_empty() {
        reasons.push("nobody ever wrote that".to_owned());
    }
    Err(format!("block {block}: {read:?} found {content:?}, but {}", reasons.join("; ")))
}
