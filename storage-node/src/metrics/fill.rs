//! From numbers to samples: one function for each part of a node. Pure.

use std::time::Duration;

use client_lib::BLOCK_SIZE;

use super::families::Id;
use super::figures::{LinkFigures, NodeFigures, OWN_CERTIFICATE, OwnedFigures, VolumeView, VolumesFigures};
use super::{Sheet, Value};
use crate::shard::figures::ShardFigures;
use crate::shard::operations::{Answered, BOUNDS, bound};
use crate::shards::StoreFigures;

/// Everything that `figures` has, as samples.
#[must_use]
pub fn sheet(figures: &NodeFigures) -> Sheet {
    let mut sheet = Sheet::default();
    node(&mut sheet, figures);
    metadata(&mut sheet, figures);
    figures.links.iter().for_each(|link| self::link(&mut sheet, link));
    if let Some(nbd) = figures.nbd {
        sheet.put(Id::NbdConnections, &[], nbd.open);
        sheet.put(Id::NbdConnectionsMax, &[], nbd.most);
        sheet.put(Id::NbdAccepted, &[], nbd.accepted);
        sheet.put(Id::NbdRefused, &[], nbd.refused);
    }
    figures.stores.iter().for_each(|store| self::store(&mut sheet, store));
    let changes = figures.changes;
    sheet.put(Id::Handovers, &["done"], changes.handed_over);
    sheet.put(Id::Handovers, &["failed"], changes.handovers_failed);
    sheet.put(Id::HandoverHeld, &[], changes.held);
    sheet.put(Id::Takeovers, &["done"], changes.taken_over);
    sheet.put(Id::Takeovers, &["failed"], changes.takeovers_failed);
    if let Some(spans) = figures.exported {
        sheet.put(Id::TraceSpans, &["exported"], spans.exported);
        sheet.put(Id::TraceSpans, &["dropped"], spans.dropped);
    }
    volumes(&mut sheet, &figures.volumes);
    sheet
}

fn bytes(blocks: u64) -> u64 {
    blocks * u64::from(BLOCK_SIZE)
}

fn node(sheet: &mut Sheet, figures: &NodeFigures) {
    sheet.put(Id::BuildInfo, &[env!("CARGO_PKG_VERSION")], true);
    sheet.put(Id::NodeInfo, &[&figures.node, &figures.provider], true);
    let process = figures.process;
    sheet.put(Id::ProcessCpu, &[], process.cpu_seconds);
    sheet.put(Id::ProcessMemory, &[], process.resident_bytes);
    sheet.put(Id::ProcessFds, &[], process.open_fds);
    sheet.put_some(Id::ProcessFdsMax, &[], process.max_fds);
    sheet.put(Id::ProcessStart, &[], process.started_seconds);
    sheet.put(Id::Ready, &[], figures.health.is_ok());
    for check in &figures.health.checks {
        sheet.put(Id::ReadyCheck, &[check.name], check.failure.is_none());
    }
    for (certificate, validity) in &figures.certificates {
        sheet.put(Id::CertificateExpiry, &[certificate], (validity.until_ms / 1000) as f64);
        // The others are renewed by whoever made them, when he likes.
        let renewal_ms = validity.renewal_ms().filter(|_| *certificate == OWN_CERTIFICATE);
        sheet.put_some(Id::CertificateRenewal, &[certificate], renewal_ms.map(|ms| (ms / 1000) as f64));
    }
}

fn metadata(sheet: &mut Sheet, figures: &NodeFigures) {
    let (view, lease) = (&figures.metadata, &figures.lease);
    sheet.put(Id::MetadataHasLeader, &[], view.figures.leader.is_some());
    sheet.put(Id::MetadataIsLeader, &[], view.is_leader);
    sheet.put(Id::MetadataIsVoter, &[], view.is_voter);
    sheet.put(Id::MetadataVoters, &[], view.figures.voters.len() as u64);
    sheet.put(Id::MetadataNodes, &[], view.nodes);
    sheet.put(Id::MetadataTerm, &[], view.figures.term);
    sheet.put(Id::MetadataLogIndex, &[], view.figures.last_log_index);
    sheet.put(Id::MetadataApplied, &[], view.figures.applied_index);
    sheet.put(Id::MetadataSnapshot, &[], view.figures.snapshot_index);
    sheet.put(Id::LeaseNeeded, &[], lease.is_needed);
    sheet.put(Id::LeaseRemaining, &[], lease.remaining);
    sheet.put(Id::LeaseDuration, &[], lease.duration);
    sheet.put(Id::LeaseLapses, &[], lease.lapses);
}

fn link(sheet: &mut Sheet, link: &LinkFigures) {
    let LinkFigures { peer, rtt, link, limit } = link;
    let (peer, freight) = (peer.as_str(), link.freight);
    sheet.put(Id::LinkConnected, &[peer], rtt.is_some());
    sheet.put_some(Id::LinkRoundTrip, &[peer], *rtt);
    sheet.put(Id::LinkWritten, &[peer], freight.written);
    sheet.put(Id::LinkSent, &[peer], freight.sent);
    sheet.put(Id::LinkWire, &[peer], freight.wire);
    let saved = [
        ("zero", freight.zero),
        ("overwritten", freight.overwritten),
        ("same", freight.same),
        ("relayed", freight.relayed),
    ];
    for (how, saved) in saved {
        sheet.put(Id::LinkSaved, &[peer, how], saved);
    }
    sheet.put_some(Id::LinkRate, &[peer], link.rate());
    sheet.put_some(Id::LinkLimit, &[peer], *limit);
    sheet.put_some(Id::LinkFetchP95, &[peer], link.p95());
    sheet.put(Id::LinkHedged, &[peer], link.hedged);
}

fn store(sheet: &mut Sheet, store: &StoreFigures) {
    let directory = store.directory.display().to_string();
    let name = directory.as_str();
    for answered in &store.operations {
        let labels = [name, answered.kind.name()];
        sheet.put(Id::OperationDuration, &labels, durations(answered));
        sheet.put(Id::OperationBytes, &labels, answered.bytes);
        sheet.put(Id::OperationErrors, &labels, answered.errors);
    }
    sheet.put(Id::StoreAnswers, &[name], store.shard.is_some());
    sheet.put(Id::StoreFaulted, &[name], store.is_faulted);
    sheet.put(Id::StoreQueued, &[name], store.queued);
    sheet.put(Id::StoreSize, &[name], store.file_system_bytes);
    sheet.put(Id::StoreFree, &[name], store.file_system_free_bytes);
    sheet.put_some(Id::StoreCapacity, &[name], store.capacity_bytes);
    sheet.put(Id::StoreMap, &[name], store.map_bytes);
    sheet.put_some(Id::StoreAvailable, &[name], store.available_bytes());
    if let Some(shard) = &store.shard {
        self::shard(sheet, name, shard);
    }
}

fn shard(sheet: &mut Sheet, store: &str, shard: &ShardFigures) {
    let ShardFigures { space, traffic, turns, scrub, .. } = shard;
    sheet.put(Id::StoreVolumes, &[store], shard.volumes.len() as u64);
    sheet.put(Id::StoreHeld, &[store], shard.held_answers);
    sheet.put(Id::StoreLog, &[store], space.log_bytes);
    sheet.put(Id::StoreLive, &[store], space.live_bytes);
    sheet.put(Id::StoreGarbage, &[store], space.garbage_bytes);
    sheet.put(Id::StorePooled, &[store], space.pooled_bytes);
    sheet.put(Id::StoreReserve, &[store], space.reserve_bytes);
    let written = [
        ("data", traffic.data),
        ("headers", traffic.headers),
        ("copies", traffic.copies),
        ("copy_headers", traffic.copy_headers),
        ("prepared", traffic.prepared),
    ];
    for (what, blocks) in written {
        sheet.put(Id::StoreWritten, &[store, what], bytes(blocks));
    }
    sheet.put(Id::StoreRecords, &[store], turns.records);
    sheet.put(Id::StoreEntries, &[store], turns.entries);
    sheet.put(Id::StoreSyncs, &[store], turns.syncs);
    sheet.put(Id::StoreCheckpoints, &[store], shard.checkpoints);
    sheet.put(Id::StoreCheckpointFailures, &[store], shard.failed_checkpoints);
    sheet.put(Id::StoreCleaned, &[store], shard.cleaned_segments);
    sheet.put(Id::ScrubRunning, &[store], scrub.is_running);
    sheet.put(Id::ScrubVerified, &[store], bytes(scrub.verified_blocks));
    let seconds = |at_ms: u64| at_ms as f64 / 1000.0;
    sheet.put_some(Id::ScrubFinished, &[store], scrub.finished_ms.map(seconds));
    sheet.put_some(Id::ScrubBegan, &[store], scrub.began_ms.map(seconds));
}

fn durations(answered: &Answered) -> Value {
    let seconds = |at| if at < BOUNDS { bound(at).as_secs_f64() } else { f64::INFINITY };
    let buckets = answered.buckets.iter().enumerate().map(|(at, count)| (seconds(at), *count)).collect();
    Value::Buckets { buckets, sum: answered.total.as_secs_f64() }
}

fn volumes(sheet: &mut Sheet, volumes: &VolumesFigures) {
    sheet.put(Id::VolumesOwned, &[], volumes.owned);
    sheet.put(Id::VolumesFollowed, &[], volumes.followed);
    sheet.put(Id::VolumesTroubled, &[], volumes.troubled);
    sheet.put(Id::VolumesSteppedDown, &[], volumes.stepped_down);
    for volume in &volumes.each_stepped_down {
        sheet.put(Id::VolumeSteppedDown, &[volume], true);
    }
    sheet.put(Id::VolumesOmitted, &[], volumes.omitted);
    volumes.each.iter().for_each(|volume| self::volume(sheet, volume));
}

fn volume(sheet: &mut Sheet, volume: &VolumeView) {
    let name = volume.name.as_str();
    sheet.put(Id::VolumeOwned, &[name], volume.owned.is_some());
    sheet.put(Id::VolumeEpoch, &[name], volume.epoch);
    if let Some(stored) = &volume.stored {
        sheet.put(Id::VolumeSize, &[name], stored.size.bytes());
        sheet.put(Id::VolumeMapped, &[name], bytes(stored.mapped));
        sheet.put(Id::VolumeSnapshots, &[name], bytes(stored.snapshots));
        sheet.put(Id::VolumeStale, &[name], bytes(stored.stale));
        sheet.put(Id::VolumeDamaged, &[name], stored.damaged);
        sheet.put(Id::VolumeRepaired, &[name], stored.repaired);
    }
    sheet.put_some(Id::VolumeTail, &[name], volume.tail_bytes);
    if let Some(owned) = &volume.owned {
        self::owned(sheet, name, owned);
    }
}

fn owned(sheet: &mut Sheet, name: &str, owned: &OwnedFigures) {
    sheet.put(Id::VolumeWritten, &[name], owned.written_bytes);
    if let Some(fetched) = owned.fetched {
        let whys = [("demand", fetched.demand), ("near", fetched.near), ("hot", fetched.hot), ("rest", fetched.rest)];
        for (why, blocks) in whys {
            sheet.put(Id::VolumeFetched, &[name, why], bytes(blocks));
        }
    }
    sheet.put_some(Id::VolumeRpo, &[name], owned.rpo);
    if let Some(target) = owned.rpo_target {
        sheet.put(Id::VolumeRpoTarget, &[name], target);
        sheet.put(Id::VolumeRpoMissed, &[name], owned.rpo_missed.unwrap_or(Duration::ZERO));
    }
    sheet.put_some(Id::VolumeWriteLimit, &[name], owned.write_limit);
    sheet.put(Id::VolumeFlushesWaiting, &[name], owned.flushes_waiting);
    sheet.put(Id::VolumeDegraded, &[name], owned.is_degraded);
    for replica in &owned.replicas {
        let labels = [name, replica.replica.as_str()];
        sheet.put(Id::ReplicaLag, &labels, replica.lag);
        sheet.put(Id::ReplicaReachable, &labels, replica.is_reachable);
        sheet.put(Id::ReplicaStale, &labels, replica.stale_bytes);
        sheet.put(Id::ReplicaRejoining, &labels, replica.is_rejoining);
        sheet.put_some(Id::ReplicaTail, &labels, replica.tail_bytes);
    }
}
