//! Answers other nodes' requests about volumes.
//!
//! Dispatch only: guest I/O passed on goes to [`ServedVolume`], propagation to its receiver, administrative
//! requests to whoever implements [`ForwardedAdmin`]. Every request gets an answer; an error is one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::trace::{OperationKind, Trace, What};
use client_lib::transport::{BoxFuture, Class, Transport};
use client_lib::wire::frame::Frame;
use client_lib::{BLOCK_SIZE, Epoch, Error, ErrorKind, Lsn, NodeId, ReadPart};

use super::alike::take_alike;
use super::message::{AdminForward, Alike, ENCODINGS, Message, PeerReply, PeerRequest};
use super::packing::{PackedBlocks, unpack_blocks, unpack_zstd};
use crate::node::admission::Admission;
use crate::ownership::enclosure::Enclosure;
use crate::ownership::writers::Refusal;
use crate::propagation::manifest::{BlockRun, VersionRun, VersionedBlock};
use crate::propagation::pull::PULL_BLOCKS_MAX;
use crate::propagation::receiver;
use crate::serve::client::ClientService;
use crate::serve::volume::{Asker, Change, Forwarded, ServedVolume, store_failure};
use crate::serve::volumes::Volumes;
use crate::shard::handle::StoreError;
use crate::volume::Moment;
use crate::volume::ledger::Writer;

/// Carries out what only the owner of a volume can do for an administrator; answers in JSON.
pub trait ForwardedAdmin: Send + Sync + 'static {
    /// Carries out `request` at this node.
    fn forwarded(&self, request: AdminForward) -> BoxFuture<'_, Result<String, Error>>;
}

/// The answering end of [`super::client::PeerClient`].
pub struct PeerServer {
    volumes: Arc<Volumes>,
    admin: Arc<dyn ForwardedAdmin>,
    transport: Arc<dyn Transport>,
    clients: Option<Arc<ClientService>>,
    admission: Option<Arc<Admission>>,
}

impl PeerServer {
    /// A server of `volumes`, called over `transport`.
    #[must_use]
    pub fn new(volumes: Arc<Volumes>, admin: Arc<dyn ForwardedAdmin>, transport: Arc<dyn Transport>) -> PeerServer {
        PeerServer { volumes, admin, transport, clients: None, admission: None }
    }

    /// The same, which also answers what clients asked of other nodes.
    #[must_use]
    pub fn with_clients(self, clients: Arc<ClientService>) -> PeerServer {
        PeerServer { clients: Some(clients), ..self }
    }

    /// The same, which also signs certificates, if it can.
    #[must_use]
    pub fn with_admission(self, admission: Arc<Admission>) -> PeerServer {
        PeerServer { admission: Some(admission), ..self }
    }

    /// Answers one frame from `peer`.
    pub async fn serve(&self, peer: NodeId, frame: Frame) -> Bytes {
        let (head, payload) = match Message::<PeerRequest>::decode(frame) {
            Ok(request) => match self.answer(peer, request).await {
                Ok(answer) => answer,
                Err(error) => (PeerReply::Failed(self.volumes.told(error)), Bytes::new()),
            },
            Err(error) => (PeerReply::Failed(error), Bytes::new()),
        };
        encode_reply(Message { head, payload })
    }

    async fn answer(&self, peer: NodeId, request: Message<PeerRequest>) -> Result<(PeerReply, Bytes), Error> {
        let Message { head, payload } = request;
        let reply = match head {
            PeerRequest::Ping => PeerReply::Done,
            PeerRequest::Encodings => PeerReply::Encodings(ENCODINGS),
            PeerRequest::HoldBulk { for_ms } => {
                self.transport.hold_bulk(Duration::from_millis(u64::from(for_ms)));
                // What it does not have it fetches from there.
                self.transport.connect(peer, Class::Pull);
                PeerReply::Done
            }
            PeerRequest::Read { volume, epoch, moment, offset, length } => {
                let volume = self.volumes.require(volume)?;
                volume.require_inside(moment, offset, u64::from(length), false).await?;
                let trace = match moment {
                    Moment::Now => {
                        let bytes = u64::from(length);
                        volume.tracer.begin_now(What { kind: OperationKind::Read, offset, bytes })
                    }
                    _ => Trace::default(),
                };
                match volume.read_for_peer(&trace, moment, epoch, offset, length).await? {
                    Some(chunks) => {
                        trace.answered(true);
                        let (parts, payload) = ReadPart::pack(&chunks);
                        return Ok((PeerReply::Read(parts), payload));
                    }
                    None => PeerReply::NotOwner(volume.gate.view().epoch),
                }
            }
            PeerRequest::Write { volume, epoch, writer, offset, fua } => {
                let volume = self.volumes.require(volume)?;
                volume.require_inside(Moment::Now, offset, payload.len() as u64, true).await?;
                write(&volume, epoch, writer, Change::Data { offset, data: payload, fua }).await?
            }
            PeerRequest::Zero { volume, epoch, writer, offset, length, fua } => {
                let volume = self.volumes.require(volume)?;
                volume.require_inside(Moment::Now, offset, length, true).await?;
                write(&volume, epoch, writer, Change::Zero { offset, length, fua }).await?
            }
            PeerRequest::Flush { volume, epoch } => {
                let volume = self.volumes.require(volume)?;
                let trace = volume.tracer.begin_now(What { kind: OperationKind::Flush, offset: 0, bytes: 0 });
                match volume.flush_for_peer(&trace, epoch).await? {
                    Some(true) => {
                        trace.answered(true);
                        PeerReply::Done
                    }
                    Some(false) => PeerReply::Waiting,
                    None => PeerReply::NotOwner(volume.gate.view().epoch),
                }
            }
            PeerRequest::Extents { volume, epoch, moment, offset, length } => {
                let volume = self.volumes.require(volume)?;
                volume.require_inside(moment, offset, length, false).await?;
                match volume.extents_for_peer(moment, epoch, offset, length).await? {
                    Some(extents) => {
                        PeerReply::Extents(extents.iter().map(|extent| (extent.length, extent.mapped)).collect())
                    }
                    None => PeerReply::NotOwner(volume.gate.view().epoch),
                }
            }
            PeerRequest::Pull { volume, moment, runs, visited } => {
                return pull(&*self.volumes.require(volume)?, (peer, false), moment, runs, &visited).await;
            }
            PeerRequest::PullZstd { volume, moment, runs, visited } => {
                return pull(&*self.volumes.require(volume)?, (peer, true), moment, runs, &visited).await;
            }
            PeerRequest::Ahead { volume: id, epoch, after, operation } => {
                let volume = self.volumes.require(id)?;
                if volume.begins(epoch, after).await? {
                    let request = Message { head: operation.for_owner(id, epoch), payload };
                    return Box::pin(self.answer(peer, request)).await;
                }
                PeerReply::NotOwner(volume.gate.view().epoch)
            }
            PeerRequest::PullHeld { volume, moment, wanted, offers } => {
                return pull_held(&*self.volumes.require(volume)?, peer, moment, &wanted, &offers).await;
            }
            PeerRequest::FetchFrom { volume, epoch, holder, patience_ms } => {
                let patience = Duration::from_millis(u64::from(patience_ms));
                receiver::fetch_from(&*self.volumes.require(volume)?, peer, epoch, holder, patience).await
            }
            PeerRequest::HotSet { volume, epoch, extents } => {
                let volume = self.volumes.require(volume)?;
                if volume.gate.view().epoch <= epoch {
                    volume.puller.is_hot(extents);
                }
                PeerReply::Done
            }
            PeerRequest::Client { epoch, request } => {
                let none = || Error::new(ErrorKind::Unavailable, "this node does not serve clients");
                let Message { head, payload } =
                    self.clients.as_ref().ok_or_else(none)?.serve_peer(epoch, &request, &payload).await?;
                return Ok((head, payload));
            }
            PeerRequest::Renew { request_pem } => {
                let none = || Error::new(ErrorKind::NotFound, "this node signs nothing");
                let admission = self.admission.as_ref().ok_or_else(none)?;
                PeerReply::Signed { certificate_pem: admission.renew(peer, &request_pem).await? }
            }
            PeerRequest::Admin { request } => PeerReply::Admin(self.admin.forwarded(request).await?),
            propagation => return Ok((self.propagate(peer, propagation, payload).await?, Bytes::new())),
        };
        Ok((reply, Bytes::new()))
    }

    /// Requests of the owner to a replica.
    async fn propagate(&self, peer: NodeId, request: PeerRequest, payload: Bytes) -> Result<PeerReply, Error> {
        let (id, epoch) = match &request {
            PeerRequest::ReplicaStatus { volume, epoch }
            | PeerRequest::Manifest { volume, epoch, .. }
            | PeerRequest::Missing { volume, epoch, .. }
            | PeerRequest::Lacking { volume, epoch, .. }
            | PeerRequest::ManifestPart { volume, epoch, .. }
            | PeerRequest::ManifestLast { volume, epoch, .. }
            | PeerRequest::SyncPart { volume, epoch, .. }
            | PeerRequest::MissingOffered { volume, epoch, .. }
            | PeerRequest::BlocksAlike { volume, epoch, .. }
            | PeerRequest::Blocks { volume, epoch, .. }
            | PeerRequest::Apply { volume, epoch, .. }
            | PeerRequest::Deliver { volume, epoch, .. }
            | PeerRequest::BlocksZstd { volume, epoch, .. }
            | PeerRequest::DeliverZstd { volume, epoch, .. }
            | PeerRequest::Prepare { volume, epoch, .. } => (*volume, *epoch),
            other => return Err(Error::new(ErrorKind::Internal, format!("not a request of propagation: {other:?}"))),
        };
        let volume = self.volumes.require(id)?;
        let _entered = match receiver::admit(&volume, peer, epoch).await {
            Ok(entered) => entered,
            Err(refusal) => return Ok(refusal),
        };
        let reply = match request {
            PeerRequest::Manifest { manifest, seal, durable, prune, .. } => {
                receiver::manifest(&volume, manifest, seal, durable, prune).await
            }
            PeerRequest::ManifestPart { telling, number, runs, .. } => {
                volume.tellings().part(telling, number, runs);
                PeerReply::Done
            }
            PeerRequest::ManifestLast { telling, parts, mut manifest, seal, durable, prune, .. } => {
                manifest.runs = volume.tellings().whole(telling, parts)?;
                receiver::manifest(&volume, manifest, seal, durable, prune).await
            }
            PeerRequest::SyncPart { telling, parts, mut manifest, end, .. } => {
                manifest.runs = volume.tellings().whole(telling, parts)?;
                receiver::sync_part(&volume, manifest, end).await
            }
            PeerRequest::Missing { after, limit, .. } => receiver::missing(&volume, after, limit).await,
            PeerRequest::Lacking { after, limit, .. } => receiver::lacking(&volume, after, limit).await,
            PeerRequest::MissingOffered { after, limit, .. } => receiver::offered(&volume, after, limit).await,
            PeerRequest::BlocksAlike { blocks, is_zstd, alike, .. } => {
                let blocks = match is_zstd {
                    true => unpack_zstd(&blocks, &payload)?,
                    false => unpack_blocks(&blocks, payload)?,
                };
                receiver::blocks_alike(&volume, blocks, &alike).await
            }
            PeerRequest::Blocks { blocks, .. } => receiver::blocks(&volume, unpack_blocks(&blocks, payload)?).await,
            PeerRequest::BlocksZstd { blocks, .. } => receiver::blocks(&volume, unpack_zstd(&blocks, &payload)?).await,
            PeerRequest::Apply { to, .. } => receiver::apply(&volume, to).await,
            PeerRequest::Deliver { manifest, blocks, prune, .. } => {
                receiver::deliver(&volume, manifest, unpack_blocks(&blocks, payload)?, prune).await
            }
            PeerRequest::DeliverZstd { manifest, blocks, prune, .. } => {
                receiver::deliver(&volume, manifest, unpack_zstd(&blocks, &payload)?, prune).await
            }
            PeerRequest::Prepare { manifest, ledger, .. } => {
                Enclosure { manifest, ledger }.take(&volume, true).await?;
                receiver::reply_position(&volume).await
            }
            _ => receiver::status(&volume).await,
        };
        if let PeerReply::Position(position) | PeerReply::Delivered { position, .. } = &reply {
            volume.hearing.heard(*position);
        }
        Ok(reply)
    }
}

/// The reply as a frame; one that is too large is answered with the reason instead.
#[must_use]
pub fn encode_reply(reply: Message<PeerReply>) -> Bytes {
    reply.encode().unwrap_or_else(|error| {
        let small = Message { head: PeerReply::Failed(error), payload: Bytes::new() };
        small.encode().expect("an error is far below the limit of a frame")
    })
}

/// Carries out a forwarded write, if its writer still may.
async fn write(volume: &ServedVolume, epoch: Epoch, writer: Writer, change: Change) -> Result<PeerReply, Error> {
    let trace = volume.tracer.begin_now(change.what());
    Ok(match volume.write_from_afar(&trace, Asker::Patient(epoch), &change, writer).await? {
        Forwarded::Written(lsn) if volume.is_settled_for_peer(&trace, &change, lsn).await? => {
            trace.answered(true);
            PeerReply::Written(lsn.epoch)
        }
        Forwarded::Written(_) => PeerReply::Waiting,
        Forwarded::NotOwner => PeerReply::NotOwner(volume.gate.view().epoch),
        Forwarded::Refused(Refusal::Claimed(epoch)) => PeerReply::Superseded(epoch),
        Forwarded::Refused(Refusal::Outrun) => PeerReply::Done,
    })
}

/// Sends those of `wanted` that are here.
async fn pull_held(
    volume: &ServedVolume,
    peer: NodeId,
    moment: Moment,
    wanted: &[VersionRun],
    offers: &[Alike],
) -> Result<(PeerReply, Bytes), Error> {
    require_few(wanted.iter().map(|run| u64::from(run.count)).sum())?;
    if let Some(tail) = volume.standing.tail() {
        return Ok((PeerReply::Left(tail), Bytes::new()));
    }
    let wanted: Vec<(u32, Lsn)> = wanted.iter().flat_map(VersionRun::versions).collect();
    let held = match volume.shard.read_held(volume.id, moment, wanted.clone()).await {
        // Noted by now: it is left out.
        Err(StoreError::Corrupt { .. } | StoreError::Damaged { .. }) => {
            volume.shard.read_held(volume.id, moment, wanted).await
        }
        held => held,
    };
    let mut blocks = held.map_err(store_failure)?;
    let alike = take_alike(&mut blocks, offers);
    let PackedBlocks { heads: blocks, payload, is_zstd, mut freight } = volume.peers.pack_as(peer, &blocks, true);
    freight.same = alike.len() as u64 * u64::from(BLOCK_SIZE);
    volume.peers.links().carried(peer, freight);
    Ok((PeerReply::Held { blocks, is_zstd, alike }, payload))
}

/// Refuses a pull of more blocks than one may have.
fn require_few(blocks: u64) -> Result<(), Error> {
    if blocks > u64::from(PULL_BLOCKS_MAX) {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("a pull of {blocks} blocks is over the limit of {PULL_BLOCKS_MAX}"),
        ));
    }
    Ok(())
}

/// Blocks as the answer to a pull.
fn send_blocks(
    volume: &ServedVolume,
    peer: NodeId,
    blocks: &[VersionedBlock],
    accepts_zstd: bool,
) -> (PeerReply, Bytes) {
    let PackedBlocks { heads, payload, is_zstd, freight } = volume.peers.pack_as(peer, blocks, accepts_zstd);
    volume.peers.links().carried(peer, freight);
    (if is_zstd { PeerReply::BlocksZstd(heads) } else { PeerReply::Blocks(heads) }, payload)
}

/// Sends the newest versions held here, or a snapshot's, fetching first what this node itself knows to be stale.
async fn pull(
    volume: &ServedVolume,
    (peer, accepts_zstd): (NodeId, bool),
    moment: Moment,
    runs: Vec<BlockRun>,
    visited: &[NodeId],
) -> Result<(PeerReply, Bytes), Error> {
    require_few(runs.iter().map(|run| u64::from(run.count)).sum())?;
    if let Some(tail) = volume.standing.tail() {
        return Ok((PeerReply::Left(tail), Bytes::new()));
    }
    if moment == Moment::Now && volume.shard.report(volume.id).await.map_err(store_failure)?.rejoining.is_some() {
        let what =
            format!("node {} comes back to the volume, and has nobody's newest version to give", volume.my_name());
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    loop {
        match volume.shard.read_versions(volume.id, moment, runs.clone()).await {
            Ok(blocks) => return Ok(send_blocks(volume, peer, &blocks, accepts_zstd)),
            Err(StoreError::Stale { runs }) => volume.puller.pull(moment, &runs, Class::Bulk, visited).await?,
            // Noted by now: the next attempt is told all of them, or finds a newer version.
            Err(StoreError::Corrupt { .. }) => {}
            Err(StoreError::Damaged { runs, .. }) => volume.puller.repair(moment, &runs, Class::Bulk, visited).await?,
            Err(error) => return Err(store_failure(error)),
        }
    }
}
