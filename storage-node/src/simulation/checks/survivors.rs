//! Which writes are part of the volume, and since when the others are not; what rollbacks and clones make of them.

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::{Lsn, VolumeId};

use crate::simulation::guest::BLOCKS;
use crate::simulation::history::{Book, Content, Cut, Logged};

/// A version of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) lsn: Lsn,
    pub(crate) content: Content,
    /// When it was put into the owner's log.
    pub(crate) logged: Duration,
    /// From when on it is no part of the volume: its node died before it was durable, or a takeover cut it off.
    pub(crate) gone: Option<Duration>,
    /// It was put back by a rollback: others may have the same content.
    pub(crate) is_back: bool,
}

impl Version {
    fn is_there(&self, at: Duration) -> bool {
        self.gone.is_none_or(|gone| gone > at)
    }
}

/// From when on `logged` is no part of its volume.
pub(crate) fn gone(book: &Book, logged: &Logged) -> Option<Duration> {
    let lost = logged.lost.map(|death| death.at());
    let dropped = logged.was_refused.then(|| cut_by(book.rescues.values(), logged.volume, logged.lsn)).flatten();
    lost.into_iter().chain(cut(book, logged.volume, logged.lsn)).chain(dropped).min()
}

/// When a takeover cut `lsn` off from `volume`.
fn cut(book: &Book, volume: VolumeId, lsn: Lsn) -> Option<Duration> {
    cut_by(book.cuts.values(), volume, lsn)
}

fn cut_by<'a>(cuts: impl Iterator<Item = &'a Cut>, volume: VolumeId, lsn: Lsn) -> Option<Duration> {
    let cuts = cuts.filter(|cut| cut.volume == volume && lsn.epoch <= cut.epoch && lsn > cut.end);
    cuts.map(|cut| cut.seen).min()
}

type Versions = BTreeMap<u32, Vec<Version>>;

/// The versions of each block of `volume`, oldest first.
pub(crate) fn versions(book: &Book, volume: VolumeId) -> Versions {
    let mut blocks = begun(book, volume);
    let of_volume = || book.logged.iter().filter(|logged| logged.volume == volume);
    for logged in of_volume() {
        let gone = gone(book, logged);
        for (block, content) in (logged.start..).zip(&logged.contents) {
            let version = Version { lsn: logged.lsn, content: *content, logged: logged.at, gone, is_back: false };
            blocks.entry(block).or_default().push(version);
        }
    }
    for versions in blocks.values_mut() {
        versions.sort_by_key(|version| version.lsn);
    }
    let mut backs: Vec<(&Logged, Lsn)> = of_volume().filter_map(|logged| Some((logged, logged.back_to?))).collect();
    backs.sort_by_key(|(back, _)| back.lsn);
    for (back, to) in backs {
        put_back(&mut blocks, back, to, gone(book, back));
    }
    blocks
}

/// What a clone has of its origin.
fn begun(book: &Book, volume: VolumeId) -> Versions {
    let Some(begun) = book.clones.get(&volume) else { return Versions::new() };
    let mut blocks = versions(book, begun.origin);
    for versions in blocks.values_mut() {
        versions.retain(|version| version.lsn <= begun.lsn && version.is_there(begun.at));
        for version in versions {
            (version.gone, version.is_back) = (cut(book, volume, version.lsn), true);
        }
    }
    blocks
}

/// The rollback `back` made of the volume what it was up to `to`.
fn put_back(blocks: &mut Versions, back: &Logged, to: Lsn, gone: Option<Duration>) {
    for block in 0..BLOCKS {
        let versions = blocks.entry(block).or_default();
        let there = || versions.iter().filter(|version| version.is_there(back.at));
        let content = |version: Option<&Version>| version.and_then(|version| version.content);
        let wanted = content(there().rfind(|version| version.lsn <= to));
        let found = content(there().rfind(|version| version.lsn < back.lsn));
        if wanted != found {
            let at = versions.partition_point(|version| version.lsn < back.lsn);
            let version = Version { lsn: back.lsn, content: wanted, logged: back.at, gone, is_back: true };
            versions.insert(at, version);
        }
    }
}

/// What each block of `volume` that was ever written holds in the end.
pub(crate) fn newest(book: &Book, volume: VolumeId) -> BTreeMap<u32, Version> {
    let newest = |(block, versions): (u32, Vec<Version>)| {
        Some((block, versions.into_iter().rev().find(|version| version.gone.is_none())?))
    };
    versions(book, volume).into_iter().filter_map(newest).collect()
}
