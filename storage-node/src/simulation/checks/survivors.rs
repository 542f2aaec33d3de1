//! Which writes are part of the volume, and since when the others are not.

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::{Lsn, VolumeId};

use crate::simulation::history::{Book, Content, Logged};

/// A version of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) lsn: Lsn,
    pub(crate) content: Content,
    /// When it was put into the owner's log.
    pub(crate) logged: Duration,
    /// From when on it is no part of the volume: its node died before it was durable, or a takeover cut it off.
    pub(crate) gone: Option<Duration>,
}

/// From when on `logged` is no part of its volume.
pub(crate) fn gone(book: &Book, logged: &Logged) -> Option<Duration> {
    let lost = logged.lost.map(|death| death.at());
    let cuts = book.cuts.values().filter(|cut| cut.volume == logged.volume);
    let cut = cuts.filter(|cut| logged.lsn.epoch <= cut.epoch && logged.lsn > cut.end).map(|cut| cut.seen);
    lost.into_iter().chain(cut).min()
}

/// The versions of each block of `volume`, oldest first.
pub(crate) fn versions(book: &Book, volume: VolumeId) -> BTreeMap<u32, Vec<Version>> {
    let mut blocks: BTreeMap<u32, Vec<Version>> = BTreeMap::new();
    for logged in book.logged.iter().filter(|logged| logged.volume == volume) {
        let gone = gone(book, logged);
        for (block, content) in (logged.start..).zip(&logged.contents) {
            let version = Version { lsn: logged.lsn, content: *content, logged: logged.at, gone };
            blocks.entry(block).or_default().push(version);
        }
    }
    for versions in blocks.values_mut() {
        versions.sort_by_key(|version| version.lsn);
    }
    blocks
}

/// What each block of `volume` that was ever written holds in the end.
pub(crate) fn newest(book: &Book, volume: VolumeId) -> BTreeMap<u32, Version> {
    let newest = |(block, versions): (u32, Vec<Version>)| {
        Some((block, versions.into_iter().rev().find(|version| version.gone.is_none())?))
    };
    versions(book, volume).into_iter().filter_map(newest).collect()
}
