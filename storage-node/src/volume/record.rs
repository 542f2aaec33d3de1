//! A volume's state as values of the map store, and back.
//!
//! Fixed layouts with a version and a checksum; `docs/format.md` has the tables. What does not decode is reported
//! as damaged, never guessed.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BufMut};
use client_lib::{Epoch, Lsn, SnapshotId, VolumeId, VolumeSize};

use super::Volume;
use super::changes::{Changes, Interval};
use super::clone::Filling;
use super::initial::InitialSync;
use super::layers::{ClosedShape, Layers, LayersShape};
use super::ledger::{Ledger, LedgerNews};
use super::pins::Pins;
use super::rollback::Rollback;
use super::tally::Tally;
use crate::map::cache::{decode_set, encode_set};
use crate::map::page::{PAGE_ENTRIES, Page};
use crate::map::snapshot::{Snapshot, Snapshots};
use crate::map::store::{Change, MapError, StoredVolume};
use crate::propagation::manifest::{ManifestRun, SnapshotMark};
use crate::shard::handle::Role;

/// The layout of the record. Since this version it has runs of a manifest that did not come whole; one that has none is written as the
/// version before.
const RECORD_VERSION: u16 = 9;
/// Since when it has how far an initial sync has come.
const INITIAL_VERSION: u16 = 8;
/// Since when it has who comes back to the volume.
const REJOIN_VERSION: u16 = 7;
/// Since when it has who writes from afar.
const LEDGER_VERSION: u16 = 6;
/// Since when it has the newest write and clones.
const CLONE_VERSION: u16 = 5;
/// Since when it has rollbacks. Older ones are read, down to the one before.
const ROLLBACK_VERSION: u16 = 4;

/// What a checkpoint writes of `volume`, and marks as written.
pub fn checkpoint(volume: &mut Volume, changes: &mut Vec<Change>) {
    let id = volume.id;
    for (layer, chunk, value) in {
        let delta = volume.layers.take_delta();
        changes.extend(delta.dropped.into_iter().map(|layer| Change::DropLayer(id, layer)));
        delta.chunks
    } {
        changes.push(Change::Layer(id, layer, chunk, value));
    }
    let delta = volume.changes.take_delta();
    changes.extend(delta.deletes.into_iter().map(|interval| Change::History(id, interval, None)));
    for interval in delta.puts {
        changes.push(Change::History(id, interval.id, Some(encode_interval(&interval))));
    }
    changes.push(Change::Volume(id, encode_record(volume)));
}

/// The volume from its values.
///
/// # Errors
/// `Value` names what is damaged; `Newer` what a later program wrote.
pub fn restore(id: VolumeId, stored: &StoredVolume) -> Result<Volume, MapError> {
    let damaged = |what| MapError::Value { what, volume: id };
    if let Some(found) = newer_format(&stored.record) {
        return Err(MapError::Newer { what: "record", volume: id, found, known: RECORD_VERSION });
    }
    let record = decode_record(&stored.record).ok_or_else(|| damaged("record"))?;
    let mut chunks: BTreeMap<u64, BTreeMap<u32, Page>> = BTreeMap::new();
    for (layer, chunk, value) in &stored.layers {
        chunk.checked_mul(PAGE_ENTRIES).ok_or_else(|| damaged("layer"))?;
        let page = Page::decode(value).map_err(|_| damaged("layer"))?;
        chunks.entry(*layer).or_default().insert(*chunk, page);
    }
    let mut intervals = Vec::with_capacity(stored.history.len());
    for (interval, value) in &stored.history {
        intervals.push(decode_interval(*interval, value).ok_or_else(|| damaged("history"))?);
    }
    Ok(Volume {
        id,
        size: record.size,
        role: record.role,
        epoch: record.epoch,
        known: record.known,
        layers: Layers::restore(id, &record.shape, |layer| chunks.remove(&layer).unwrap_or_default()),
        changes: Changes::restore(record.history_start, intervals),
        pins: Pins::default(),
        snapshots: Snapshots::restore(record.snapshots, record.has_aliases),
        ledger: record.ledger,
        rollback: record.rollback,
        filling: record.filling,
        tally: Tally::default(),
        ancestors: record.ancestors,
        watermark: record.watermark,
        written: record.written,
        rejoin: record.rejoin,
        initial: record.initial,
        part: record.part,
        partial: record.partial,
    })
}

struct Record {
    size: VolumeSize,
    role: Role,
    epoch: Epoch,
    known: Lsn,
    watermark: Lsn,
    history_start: Lsn,
    shape: LayersShape,
    snapshots: Vec<Snapshot>,
    has_aliases: bool,
    rollback: Option<Rollback>,
    written: Lsn,
    filling: Option<Filling>,
    ancestors: Vec<VolumeId>,
    ledger: Ledger,
    rejoin: Option<Lsn>,
    initial: Option<InitialSync>,
    part: Option<u32>,
    partial: Vec<ManifestRun>,
}

fn encode_record(volume: &Volume) -> Vec<u8> {
    let shape = volume.layers.shape();
    let mut bytes = Vec::with_capacity(128);
    let partial =
        (!volume.partial.is_empty()).then(|| postcard::to_stdvec(&volume.partial).expect("runs are plain data"));
    bytes.put_u16_le(if partial.is_some() { RECORD_VERSION } else { INITIAL_VERSION });
    bytes.put_u8(match volume.role {
        Role::Replica => 0,
        Role::Owner => 1,
    });
    bytes.put_u8(0);
    bytes.put_u32_le(shape.folding.len() as u32);
    bytes.put_u64_le(volume.size.bytes());
    bytes.put_u64_le(volume.epoch.0);
    for lsn in [volume.known, volume.watermark, volume.changes.start()] {
        put_lsn(&mut bytes, lsn);
    }
    for id in [shape.next_id, shape.open] {
        bytes.put_u64_le(id);
    }
    bytes.put_u32_le(shape.sealed.len() as u32);
    bytes.put_u32_le(volume.snapshots.iter().len() as u32);
    bytes.put_u64_le(volume.rollback.map_or(0, |rollback| rollback.snapshot.0));
    put_lsn(&mut bytes, volume.rollback.map_or(Lsn::ZERO, |rollback| rollback.lsn));
    bytes.put_u32_le(volume.rollback.map_or(0, |rollback| rollback.next_page));
    bytes.put_u32_le(u32::from(volume.snapshots.has_aliases()));
    put_lsn(&mut bytes, volume.written);
    bytes.put_u64_le(volume.filling.map_or(0, |filling| filling.origin.0));
    bytes.put_u64_le(volume.filling.map_or(0, |filling| filling.snapshot.0));
    bytes.put_u32_le(volume.filling.map_or(0, |filling| filling.next_page));
    bytes.put_u32_le(volume.ancestors.len() as u32);
    let ledger = volume.ledger.all();
    bytes.put_u64_le(ledger.claim.0);
    bytes.put_u64_le(ledger.done.len() as u64);
    bytes.put_u64_le(u64::from(volume.rejoin.is_some()));
    put_lsn(&mut bytes, volume.rejoin.unwrap_or(Lsn::ZERO));
    let initial = volume.initial.unwrap_or(InitialSync::BEGUN);
    let flags = [volume.initial.is_some(), volume.part.is_some(), initial.is_told];
    bytes.put_u32_le((0..).zip(flags).map(|(bit, flag)| u32::from(flag) << bit).sum());
    put_lsn(&mut bytes, initial.base);
    bytes.put_u32_le(initial.next);
    bytes.put_u32_le(volume.part.unwrap_or(0));
    if let Some(partial) = &partial {
        bytes.put_u32_le(partial.len() as u32);
    }
    for closed in shape.folding.iter().chain(&shape.sealed) {
        bytes.put_u64_le(closed.id);
        put_lsn(&mut bytes, closed.to);
        bytes.put_u64_le(closed.mark.map_or(0, |mark| mark.snapshot.0));
        bytes.put_u64_le(closed.mark.map_or(0, |mark| mark.size.bytes()));
    }
    for snapshot in volume.snapshots.iter() {
        bytes.put_u64_le(snapshot.id.0);
        put_lsn(&mut bytes, snapshot.lsn);
        bytes.put_u64_le(snapshot.size.bytes());
        bytes.put_u64_le(u64::from(snapshot.is_deleted));
    }
    volume.ancestors.iter().for_each(|ancestor| bytes.put_u64_le(ancestor.0));
    if let Some(partial) = &partial {
        bytes.put_slice(partial);
    }
    for (session, runs) in &ledger.done {
        bytes.put_u64_le(*session);
        bytes.put_u64_le(runs.len() as u64);
        runs.iter().flat_map(|(from, to)| [from, to]).for_each(|number| bytes.put_u64_le(*number));
    }
    seal(bytes)
}

/// Bytes of the record before the layers: 2+1+1+4, size and epoch, three LSNs, two ids, numbers of layers and snapshots.
const RECORD_LEN: usize = 8 + 16 + 3 * 16 + 2 * 8 + 8;
/// Bytes behind them since version 4: a rollback's snapshot, LSN and page, whether there are aliases.
const ROLLBACK_LEN: usize = 8 + 16 + 4 + 4;
/// Bytes behind those since version 5: the newest write made here; a clone's origin, snapshot and page, the number of its
/// ancestors.
const SINCE_5_LEN: usize = 16 + (8 + 8 + 4 + 4);
/// Bytes behind those since version 6: the claim of the ledger, and the number of its sessions.
const SINCE_6_LEN: usize = 8 + 8;
/// Bytes behind those since version 7: whether the node comes back to the volume, and the base for that.
const SINCE_7_LEN: usize = 8 + 16;
/// Bytes behind those since version 8: whether an initial sync is under way, whether a part of it is sealed that is not the last, and whether
/// the last is told; its base, its next block, and the end of that part.
const SINCE_8_LEN: usize = 4 + 16 + 4 + 4;
/// Bytes behind those since version 9: how many bytes the runs of a manifest take that did not come whole.
const SINCE_9_LEN: usize = 4;
/// Bytes of an ancestor in the record: id.
const ANCESTOR_LEN: usize = 8;
/// Bytes of a run of numbers in the record: from, to.
const RUN_LEN: usize = 8 + 8;
/// Bytes of a closed layer in the record: id, LSN, snapshot, size.
const CLOSED_LEN: usize = 8 + 16 + 8 + 8;
/// Bytes of a snapshot in the record: id, LSN, size, whether it is deleted.
const SNAPSHOT_LEN: usize = 8 + 16 + 8 + 8;

/// The format of a record that is whole, and of a later program.
fn newer_format(bytes: &[u8]) -> Option<u16> {
    let version = unseal(bytes)?.first_chunk().map(|version| u16::from_le_bytes(*version))?;
    (version > RECORD_VERSION).then_some(version)
}

fn decode_record(bytes: &[u8]) -> Option<Record> {
    let mut bytes = unseal(bytes)?;
    if bytes.len() < RECORD_LEN {
        return None;
    }
    let version = bytes.get_u16_le();
    let (has_rollback, has_written, has_ledger) =
        (version >= ROLLBACK_VERSION, version >= CLONE_VERSION, version >= LEDGER_VERSION);
    let len = match version {
        RECORD_VERSION => {
            RECORD_LEN + ROLLBACK_LEN + SINCE_5_LEN + SINCE_6_LEN + SINCE_7_LEN + SINCE_8_LEN + SINCE_9_LEN
        }
        INITIAL_VERSION => RECORD_LEN + ROLLBACK_LEN + SINCE_5_LEN + SINCE_6_LEN + SINCE_7_LEN + SINCE_8_LEN,
        REJOIN_VERSION => RECORD_LEN + ROLLBACK_LEN + SINCE_5_LEN + SINCE_6_LEN + SINCE_7_LEN,
        LEDGER_VERSION => RECORD_LEN + ROLLBACK_LEN + SINCE_5_LEN + SINCE_6_LEN,
        CLONE_VERSION => RECORD_LEN + ROLLBACK_LEN + SINCE_5_LEN,
        ROLLBACK_VERSION => RECORD_LEN + ROLLBACK_LEN,
        version if version == ROLLBACK_VERSION - 1 => RECORD_LEN,
        _ => return None,
    };
    if bytes.len() < len - 2 {
        return None;
    }
    let role = match bytes.get_u8() {
        0 => Role::Replica,
        1 => Role::Owner,
        _ => return None,
    };
    if bytes.get_u8() != 0 {
        return None;
    }
    let folding = bytes.get_u32_le() as usize;
    let size = VolumeSize::try_from(bytes.get_u64_le()).ok()?;
    let epoch = Epoch(bytes.get_u64_le());
    let [known, watermark, history_start] = std::array::from_fn(|_| get_lsn(&mut bytes));
    let [next_id, open] = std::array::from_fn(|_| bytes.get_u64_le());
    let [sealed, snapshots] = std::array::from_fn(|_| bytes.get_u32_le() as usize);
    let (rollback, has_aliases) = if has_rollback { get_rollback(&mut bytes)? } else { (None, false) };
    // Not told of: an owner has written all that it knows, or holds it.
    let unsaid = if role == Role::Owner { known } else { watermark };
    let written = if has_written { get_lsn(&mut bytes) } else { unsaid };
    let (filling, ancestors) = if has_written { get_filling(&mut bytes) } else { (None, 0) };
    let (claim, sessions) = if has_ledger { (Epoch(bytes.get_u64_le()), bytes.get_u64_le()) } else { (Epoch(0), 0) };
    let rejoin = if version >= REJOIN_VERSION { get_rejoin(&mut bytes)? } else { None };
    let (initial, part) = if version >= INITIAL_VERSION { get_initial(&mut bytes)? } else { (None, None) };
    let partial_len = if version >= RECORD_VERSION { bytes.get_u32_le() as usize } else { 0 };
    let closed_len = folding.checked_add(sealed)?.checked_mul(CLOSED_LEN)?;
    let lists_len = closed_len.checked_add(snapshots.checked_mul(SNAPSHOT_LEN)?)?;
    let lists_len = lists_len.checked_add(ancestors.checked_mul(ANCESTOR_LEN)?)?.checked_add(partial_len)?;
    if bytes.len() < lists_len || (!has_ledger && bytes.len() > lists_len) {
        return None;
    }
    let mut closed = |count: usize| (0..count).map(|_| get_closed(&mut bytes)).collect::<Option<Vec<_>>>();
    let (folding, sealed) = (closed(folding)?, closed(sealed)?);
    let snapshots = (0..snapshots)
        .map(|_| {
            let (id, lsn) = (SnapshotId(bytes.get_u64_le()), get_lsn(&mut bytes));
            let size = VolumeSize::try_from(bytes.get_u64_le()).ok()?;
            Some(Snapshot { id, lsn, size, is_deleted: bytes.get_u64_le() == 1 })
        })
        .collect::<Option<_>>()?;
    let ancestors = (0..ancestors).map(|_| VolumeId(bytes.get_u64_le())).collect();
    let (partial, bytes) = bytes.split_at_checked(partial_len)?;
    let partial = if partial.is_empty() { Vec::new() } else { postcard::from_bytes(partial).ok()? };
    let ledger = get_ledger(bytes, claim, sessions)?;
    let shape = LayersShape { next_id, open, sealed, folding };
    Some(Record {
        size,
        role,
        epoch,
        known,
        watermark,
        history_start,
        shape,
        snapshots,
        has_aliases,
        rollback,
        written,
        filling,
        ancestors,
        ledger,
        rejoin,
        initial,
        part,
        partial,
    })
}

/// The ledger's sessions, which are the rest of the record.
fn get_ledger(mut bytes: &[u8], claim: Epoch, sessions: u64) -> Option<Ledger> {
    let mut ledger = Ledger::default();
    ledger.note(&LedgerNews::claim(claim));
    for _ in 0..sessions {
        let session = bytes.try_get_u64_le().ok()?;
        let len = usize::try_from(bytes.try_get_u64_le().ok()?).ok()?.checked_mul(RUN_LEN)?;
        let (runs, rest) = bytes.split_at_checked(len)?;
        let number = |at| u64::from_le_bytes(at);
        let run = |run: &[u8]| {
            let (from, to) = (run.first_chunk()?, run.last_chunk()?);
            Some((number(*from), number(*to)))
        };
        let runs = runs.chunks_exact(RUN_LEN).map(run).collect::<Option<Vec<_>>>()?;
        ledger.note(&LedgerNews { claim, done: vec![(session, runs)] });
        bytes = rest;
    }
    bytes.is_empty().then_some(ledger)
}

/// The base of a node that comes back.
fn get_rejoin(bytes: &mut &[u8]) -> Option<Option<Lsn>> {
    let (is_some, base) = (bytes.get_u64_le(), get_lsn(bytes));
    match is_some {
        0 => Some(None),
        1 => Some(Some(base)),
        _ => None,
    }
}

/// How far an initial sync has come, and where the part of it ends that is sealed.
fn get_initial(bytes: &mut &[u8]) -> Option<(Option<InitialSync>, Option<u32>)> {
    let (flags, base) = (bytes.get_u32_le(), get_lsn(bytes));
    let (next, end) = (bytes.get_u32_le(), bytes.get_u32_le());
    let [has_initial, has_part, is_told] = std::array::from_fn(|bit| flags >> bit & 1 == 1);
    let initial = has_initial.then_some(InitialSync { base, next, is_told });
    (flags < 8).then_some((initial, has_part.then_some(end)))
}

/// Where a clone is filled from, and how many ancestors it has.
fn get_filling(bytes: &mut &[u8]) -> (Option<Filling>, usize) {
    let (origin, snapshot) = (VolumeId(bytes.get_u64_le()), SnapshotId(bytes.get_u64_le()));
    let (next_page, ancestors) = (bytes.get_u32_le(), bytes.get_u32_le() as usize);
    ((snapshot != SnapshotId(0)).then_some(Filling { origin, snapshot, next_page }), ancestors)
}

fn get_rollback(bytes: &mut &[u8]) -> Option<(Option<Rollback>, bool)> {
    let (snapshot, lsn, next_page) = (SnapshotId(bytes.get_u64_le()), get_lsn(bytes), bytes.get_u32_le());
    let has_aliases = match bytes.get_u32_le() {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(((snapshot != SnapshotId(0)).then_some(Rollback { snapshot, lsn, next_page }), has_aliases))
}

fn get_closed(bytes: &mut &[u8]) -> Option<ClosedShape> {
    let (id, to) = (bytes.get_u64_le(), get_lsn(bytes));
    let (snapshot, size) = (SnapshotId(bytes.get_u64_le()), bytes.get_u64_le());
    let mark = match snapshot {
        SnapshotId(0) => None,
        snapshot => Some(SnapshotMark { snapshot, size: VolumeSize::try_from(size).ok()? }),
    };
    Some(ClosedShape { id, to, mark })
}

fn encode_interval(interval: &Interval) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    put_lsn(&mut bytes, interval.from);
    put_lsn(&mut bytes, interval.to);
    bytes.extend(encode_set(&interval.blocks));
    seal(bytes)
}

fn decode_interval(id: u64, bytes: &[u8]) -> Option<Interval> {
    let mut bytes = unseal(bytes)?;
    if bytes.len() < 32 {
        return None;
    }
    let (from, to) = (get_lsn(&mut bytes), get_lsn(&mut bytes));
    Some(Interval { id, from, to, blocks: Arc::new(decode_set(bytes)?) })
}

fn put_lsn(bytes: &mut Vec<u8>, lsn: Lsn) {
    bytes.put_u64_le(lsn.epoch.0);
    bytes.put_u64_le(lsn.sequence);
}

fn get_lsn(bytes: &mut &[u8]) -> Lsn {
    Lsn::new(Epoch(bytes.get_u64_le()), bytes.get_u64_le())
}

/// Appends the checksum.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&bytes);
    bytes.put_u32_le(crc);
    bytes
}

/// The bytes before a checksum that fits.
fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    let (body, mut crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    (crc32fast::hash(body) == crc.get_u32_le()).then_some(body)
}

#[cfg(test)]
mod tests {
    use client_lib::BlockIndex;

    use super::*;
    use crate::propagation::manifest::RunContent;

    /// It was called damaged: who had gone back to an earlier program would have looked for a copy of a disk that lacks nothing.
    #[test]
    fn a_record_of_a_later_program_is_told_from_a_damaged_one() {
        let volume = Volume::new(VolumeId(3), VolumeSize::try_from(1 << 30).expect("valid"));
        let mut record = encode_record(&volume);
        let told = |record: &[u8]| {
            let stored = StoredVolume { record: record.to_vec(), ..StoredVolume::default() };
            restore(VolumeId(3), &stored).expect_err("cannot be read").to_string()
        };
        record[0] = RECORD_VERSION as u8 + 1;
        assert!(told(&record).contains("is damaged"), "its checksum does not fit");
        let body = record.len() - 4;
        let later = told(&seal(record[..body].to_vec()));
        assert_eq!(later, "the map's record of volume 3 has format 10, this program reads 9: use the newer program");
    }

    #[test]
    fn a_record_reads_back_and_damage_is_noticed() {
        let size = VolumeSize::try_from(1 << 30).expect("valid");
        let mut volume = Volume::new(VolumeId(3), size);
        volume.known = Lsn::new(Epoch(2), 9);
        volume.watermark = Lsn::new(Epoch(1), 4);
        volume.written = Lsn::new(Epoch(1), 6);
        for (id, is_deleted) in [(7, false), (9, true)] {
            volume.snapshots.add(Snapshot { id: SnapshotId(id), lsn: Lsn::new(Epoch(1), id), size, is_deleted });
        }
        volume.snapshots.note_aliases();
        volume.rollback = Some(Rollback { snapshot: SnapshotId(7), lsn: volume.known, next_page: 5 });
        volume.filling = Some(Filling { origin: VolumeId(2), snapshot: SnapshotId(4), next_page: 6 });
        volume.ancestors = vec![VolumeId(1), VolumeId(2)];
        volume.ledger.note(&LedgerNews { claim: Epoch(2), done: vec![(5, vec![(0, 3), (4, 6)]), (8, vec![(0, 1)])] });
        volume.rejoin = Some(Lsn::ZERO);
        volume.initial = Some(InitialSync { base: Lsn::new(Epoch(1), 3), next: 512, is_told: false });
        volume.part = Some(1024);
        let bytes = encode_record(&volume);
        let record = decode_record(&bytes).expect("decodes");
        assert_eq!((record.rollback, record.has_aliases), (volume.rollback, true));
        assert!(record.snapshots.iter().eq(volume.snapshots.iter()));
        assert_eq!((record.size, record.known, record.watermark), (size, volume.known, volume.watermark));
        assert_eq!((record.written, &record.ledger), (volume.written, &volume.ledger));
        assert_eq!((&record.shape, record.rejoin), (&volume.layers.shape(), volume.rejoin));
        assert_eq!((record.initial, record.part), (volume.initial, volume.part));
        let content = RunContent::Data(vec![1, u32::MAX]);
        volume.partial = vec![ManifestRun { start: BlockIndex(70_000), lsn: volume.known, content }];
        let with_partial = encode_record(&volume);
        assert_eq!(decode_record(&with_partial).expect("decodes").partial, volume.partial);
        for bytes in [bytes, with_partial] {
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x10;
                assert!(decode_record(&damaged).is_none(), "byte {at}");
                assert!(decode_record(&bytes[..at]).is_none(), "cut at {at}");
            }
        }
    }
}

#[cfg(test)]
mod golden {
    use client_lib::BlockIndex;

    use super::*;
    use crate::golden;
    use crate::map::page::{Content, Version};
    use crate::map::usage::Usage;
    use crate::propagation::manifest::RunContent;

    fn lsn(sequence: u64) -> Lsn {
        Lsn::new(Epoch(3), sequence)
    }

    /// With a folding layer and two sealed ones, of which one ends at a snapshot, so that every field says something.
    #[test]
    fn a_volume_record_has_these_bytes() {
        let mut volume = Volume::new(VolumeId(7), VolumeSize::try_from(1 << 40).expect("valid"));
        let mut usage = Usage::default();
        for sequence in [40, 41, 42] {
            volume.layers.note(sequence as u32, Version { lsn: lsn(sequence), content: Content::Zero }, &mut usage);
            if sequence == 41 {
                let (id, size) = (SnapshotId(8), volume.size);
                let snapshot = Snapshot { id, lsn: lsn(sequence), size, is_deleted: false };
                volume.layers.seal_at(snapshot, &mut usage);
            } else {
                volume.layers.seal(lsn(sequence), &mut usage);
            }
            assert!(sequence > 40 || volume.layers.apply_sealed(lsn(sequence), &mut usage));
        }
        (volume.role, volume.epoch) = (Role::Owner, Epoch(3));
        (volume.known, volume.watermark, volume.written) = (lsn(42), lsn(40), lsn(41));
        volume.changes = Changes::restore(lsn(39), Vec::new());
        volume.snapshots.note_aliases();
        volume.rollback = Some(Rollback { snapshot: SnapshotId(5), lsn: lsn(42), next_page: 3 });
        volume.filling = Some(Filling { origin: VolumeId(4), snapshot: SnapshotId(2), next_page: 1 });
        volume.ancestors = vec![VolumeId(3), VolumeId(4)];
        volume.ledger.note(&LedgerNews { claim: Epoch(2), done: vec![(0x0a0b, vec![(0, 300), (302, 303)])] });
        volume.rejoin = Some(lsn(38));
        volume.initial = Some(InitialSync { base: lsn(37), next: 300, is_told: true });
        volume.part = Some(70_000);
        let kept = golden::check("volume-record.hex", &encode_record(&volume));
        let record = decode_record(&kept).expect("decodes");
        assert_eq!((record.rollback, record.has_aliases, record.written), (volume.rollback, true, lsn(41)));
        assert_eq!((record.filling, &record.ancestors), (volume.filling, &volume.ancestors));
        assert_eq!((&record.ledger, record.rejoin), (&volume.ledger, volume.rejoin));
        assert_eq!((record.initial, record.part), (volume.initial, volume.part));
        let content = RunContent::Zero(300);
        volume.partial = vec![ManifestRun { start: BlockIndex(9), lsn: lsn(41), content }];
        let newest = decode_record(&golden::check("volume-record-9.hex", &encode_record(&volume))).expect("decodes");
        assert_eq!((&newest.partial, &newest.ledger), (&volume.partial, &volume.ledger));
        volume.partial.clear();
        // As the versions before have it: what they do not say of the newest write is taken from the role.
        let mut seven = kept[..kept.len() - 4].to_vec();
        seven[0] = 7;
        let since_8 = RECORD_LEN + ROLLBACK_LEN + SINCE_5_LEN + SINCE_6_LEN + SINCE_7_LEN;
        seven.drain(since_8..since_8 + SINCE_8_LEN);
        let old = decode_record(&golden::check("volume-record-7.hex", &seal(seven.clone()))).expect("decodes");
        assert_eq!((old.rejoin, old.initial, old.part, &old.shape), (volume.rejoin, None, None, &record.shape));
        let mut six = seven;
        six[0] = 6;
        let since_7 = RECORD_LEN + ROLLBACK_LEN + SINCE_5_LEN + SINCE_6_LEN;
        six.drain(since_7..since_7 + SINCE_7_LEN);
        let old = decode_record(&golden::check("volume-record-6.hex", &seal(six.clone()))).expect("decodes");
        assert_eq!((&old.ledger, old.rejoin, &old.shape), (&volume.ledger, None, &record.shape));
        let ledger_len = 2 * 8 + 2 * RUN_LEN;
        let mut five = six[..six.len() - ledger_len].to_vec();
        five[0] = 5;
        five.drain(RECORD_LEN + ROLLBACK_LEN + SINCE_5_LEN..RECORD_LEN + ROLLBACK_LEN + SINCE_5_LEN + SINCE_6_LEN);
        let old = golden::check("volume-record-5.hex", &seal(five.clone()));
        let old = decode_record(&old).expect("decodes");
        assert_eq!((&old.ancestors, old.written, &old.ledger), (&volume.ancestors, lsn(41), &Ledger::default()));
        for (version, len, rollback) in [(4, RECORD_LEN + ROLLBACK_LEN, volume.rollback), (3, RECORD_LEN, None)] {
            let mut before = five.clone();
            before[0] = version;
            before.truncate(before.len() - volume.ancestors.len() * ANCESTOR_LEN);
            before.drain(len..RECORD_LEN + ROLLBACK_LEN + SINCE_5_LEN);
            let before = golden::check(&format!("volume-record-{version}.hex"), &seal(before));
            let old = decode_record(&before).expect("decodes");
            assert_eq!((old.rollback, old.has_aliases, &old.shape), (rollback, rollback.is_some(), &record.shape));
            assert_eq!((old.known, old.watermark, old.written), (record.known, record.watermark, lsn(42)));
            assert_eq!((old.filling, old.ancestors.len()), (None, 0));
        }
        assert_eq!((record.size, record.role, record.epoch), (volume.size, volume.role, volume.epoch));
        assert_eq!((record.known, record.watermark, record.history_start), (lsn(42), lsn(40), lsn(39)));
        assert_eq!(record.shape, volume.layers.shape());
        let ends: Vec<Lsn> = record.shape.sealed.iter().map(|closed| closed.to).collect();
        assert_eq!((record.shape.folding.len(), ends), (1, vec![lsn(41), lsn(42)]));
        assert_eq!(record.shape.sealed[0].mark, Some(SnapshotMark { snapshot: SnapshotId(8), size: volume.size }));
    }

    #[test]
    fn an_interval_has_these_bytes() {
        let blocks = Arc::new((5..9).chain([70_000]).collect());
        let interval = Interval { id: 6, from: lsn(39), to: lsn(42), blocks };
        let kept = golden::check("interval.hex", &encode_interval(&interval));
        assert_eq!(decode_interval(6, &kept), Some(interval));
    }

    #[test]
    fn a_page_set_has_these_bytes() {
        let pages = [0, 1, 2, 0x0001_0000].into_iter().collect();
        assert_eq!(decode_set(&golden::check("page-set.hex", &encode_set(&pages))), Some(pages));
    }
}
