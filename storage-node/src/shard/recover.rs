//! Starting: the state of the last checkpoint, then the log from there.
//!
//! Takes time in proportion to the log since the checkpoint, not to the volumes. Entries are applied by the same code
//! as live ones. A volume that was owned when the process ended comes back as a replica, and the log says so before
//! anything else is appended, so that another recovery decides alike.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use client_lib::VolumeId;

use super::checkpoint::{Checkpoints, decode_cold_end, decode_position};
use super::clone::finish_fillings;
use super::core::Core;
use super::entries::apply_to;
use super::handle::Role;
use super::run::VolumeRun;
use super::scrub::ScrubAction;
use super::sync::Done;
use super::{ShardOptions, StartError};
use crate::data_dir::make_private;
use crate::io::{Bell, IoEngine};
use crate::log::{Entry, Known, Log, LogError, Replayed};
use crate::map::cache::{PageCache, decode_set};
use crate::map::page::Place;
use crate::map::store::{Change, MapError, MapStore, prepare_directory};
use crate::map::usage::Usage;
use crate::map::{Map, MapKey};
use crate::volume::{Volume, record};

/// Checks the format and makes the directories; returns that of the segments.
///
/// # Errors
/// A newer format leaves everything as it is.
pub(super) fn prepare(options: &ShardOptions) -> Result<PathBuf, StartError> {
    prepare_directory(&options.directory)?;
    let segments = options.directory.join("segments");
    make_private(&segments).map_err(|source| StartError::Io { directory: segments.clone(), source })?;
    Ok(segments)
}

/// Brings the shard back to where its log ends. `bell` is the one that `engine` rings.
///
/// # Errors
/// When the map or the log is damaged or cannot be read.
pub(super) fn recover(options: ShardOptions, engine: Box<dyn IoEngine>, bell: Arc<Bell>) -> Result<Core, StartError> {
    let store = MapStore::open(&options.directory.join("map"))?;
    recover_with(options, engine, bell, store)
}

/// As [`recover`], with a map store that is open.
pub(super) fn recover_with(
    options: ShardOptions,
    engine: Box<dyn IoEngine>,
    bell: Arc<Bell>,
    store: MapStore,
) -> Result<Core, StartError> {
    let identity = log_number(&store)?;
    let cache = PageCache::new(store.clone(), options.map_cache_bytes);
    let mut map = Map { cache, usage: Usage::default(), forgotten: Vec::new() };
    let position = store.position()?.map(|bytes| decode_position(&bytes)).transpose()?;
    let mut states: BTreeMap<VolumeId, Volume> = BTreeMap::new();
    for (id, stored) in store.volumes()? {
        for (snapshot, pages) in &stored.page_sets {
            let pages = decode_set(pages).ok_or(MapError::Value { what: "page set", volume: id })?;
            map.cache.restore(MapKey { volume: id, snapshot: *snapshot }, pages);
        }
        for (snapshot, pages) in &stored.sparse_sets {
            let pages = decode_set(pages).ok_or(MapError::Value { what: "sparse set", volume: id })?;
            map.cache.restore_sparse(MapKey { volume: id, snapshot: *snapshot }, pages);
        }
        for (snapshot, segment, live) in &stored.usage {
            map.usage.restore(MapKey { volume: id, snapshot: *snapshot }, *segment, *live);
        }
        states.insert(id, record::restore(id, &stored)?);
    }

    for (segment, aliases) in store.aliases()? {
        map.usage.restore_aliases(segment, aliases);
    }
    let live = map.usage.live_segments();
    let cold = store.cold_end()?.map(|bytes| decode_cold_end(&bytes)).transpose()?;
    let known = Known { identity, life: life_number(), from: position, live: &live, cold };
    let mut forgotten = Vec::new();
    let mut failure: Option<MapError> = None;
    let mut entries = 0u64;
    let log = Log::recover(engine, options.log.clone(), &known, &mut |replayed| {
        if failure.is_none() {
            entries += 1;
            #[cfg(test)]
            crate::simulation::history::replayed(&options.directory, &replayed.entry);
            failure = replay(&replayed, &mut states, &mut map, &mut forgotten).err();
        }
    })
    .map_err(|source: LogError| StartError::Log { directory: options.directory.join("segments"), source })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    tracing::info!(directory = %options.directory.display(), volumes = states.len(), entries, "the shard is recovered");

    let volumes = states.into_iter().map(|(id, state)| (id, VolumeRun::new(state))).collect();
    let checkpoints = Checkpoints::start(store.clone(), options.checkpoint_log_bytes, bell.clone())
        .map_err(|source| StartError::Io { directory: options.directory.clone(), source })?;
    let mut core = Core::new(options, bell, log, map, volumes, forgotten, checkpoints);
    #[cfg(test)]
    for run in core.volumes.values() {
        crate::simulation::history::recovered(&core.options.directory, run.state.id, run.state.known);
    }
    let passes = store.scrubs()?;
    let is_here = |volume| core.volumes.contains_key(&volume);
    core.scrub.restore(passes, is_here);
    if let Some(segment) = core.map.usage.live_segments().into_iter().find(|segment| !core.log.can_read(*segment)) {
        // What lies there is looked for now, while other nodes have it, and not when somebody reads it.
        tracing::error!(
            segment,
            "a segment that holds live blocks is lost: everything stored is verified, to find and repair them"
        );
        if let Err(error) = core.scrub(ScrubAction::Start, None) {
            tracing::error!(%error, "nothing is verified");
        }
    }
    let owned: Vec<Entry> = core
        .volumes
        .values()
        .filter(|run| run.state.role == Role::Owner)
        .map(|run| Entry::Role { volume: run.state.id, epoch: run.state.epoch, owner: false })
        .collect();
    for entry in owned {
        core.append_plain(entry, false, Done::Nothing);
    }
    // What a killed process had appended may be in the device's cache only.
    core.syncs.wait(VolumeId(0), Done::Nothing);
    Ok(core)
}

/// The number of the shard's log; a new one is drawn and kept before the log begins. No guest can know it, so nothing
/// that a guest writes is ever taken for a record.
fn log_number(store: &MapStore) -> Result<u64, MapError> {
    if let Some(number) = store.log_number()? {
        return Ok(number);
    }
    let number = client_lib::random::bits();
    store.commit(&[Change::Log(number)])?;
    Ok(number)
}

/// A number for the life of the log that begins, which earlier ones have hardly had. Not 0, which programs wrote that drew none.
fn life_number() -> u16 {
    (client_lib::random::bits() as u16).max(1)
}

fn replay(
    replayed: &Replayed,
    states: &mut BTreeMap<VolumeId, Volume>,
    map: &mut Map,
    forgotten: &mut Vec<VolumeId>,
) -> Result<(), MapError> {
    finish_fillings(states, &replayed.entry, map)?;
    // Folding is no entry: where these were appended everything up to their snapshot was in the base.
    if let Entry::Cloned { origin: volume, .. } | Entry::RolledBack { volume, .. } = &replayed.entry
        && let Some(state) = states.get_mut(volume)
    {
        state.finish_folding(map)?;
    }
    let place = Place { segment: replayed.segment, block: replayed.first_block };
    match &replayed.entry {
        Entry::Opened { volume, size } => {
            states.entry(*volume).or_insert_with(|| Volume::new(*volume, *size));
        }
        Entry::Deleted { volume } => {
            states.remove(volume);
            map.forget(*volume);
            forgotten.push(*volume);
        }
        Entry::Cloned { volume, origin, snapshot } => {
            if !states.contains_key(volume)
                && let Some(clone) = states.get(origin).and_then(|state| state.clone_of(*snapshot, *volume))
            {
                states.insert(*volume, clone);
            }
        }
        entry @ Entry::Relocated { volume, .. } => {
            map.usage.begin_moves();
            for state in states.values_mut().filter(|state| state.may_hold(*volume)) {
                apply_to(state, entry, place, map)?;
            }
        }
        entry => {
            if let Some(state) = states.get_mut(&entry.volume()) {
                apply_to(state, entry, place, map)?;
            }
        }
    }
    Ok(())
}
