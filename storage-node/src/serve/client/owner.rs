//! A client's request at the owner: carried out if the client is attached to this very tenure, else refused untouched.
//!
//! A client that was attached to an earlier tenure may have writes that this one lacks, and must send them again before
//! anything else of its session is done here: a write would be undone by an older one, a read would show what was before, and a
//! flush would vouch for what is not there.

use std::collections::BTreeMap;

use bytes::Bytes;
use client_lib::trace::{Trace, What};
use client_lib::wire::client::{
    Attached, ClientReply, ClientRequest, ExtentState, ExtentsOf, ForkInfo, Runs, Target, Tenure, WriteId, ZERO_MAX,
};
use client_lib::{Epoch, Error, ErrorKind, ReadPart};
use nbd_frontend::export::Residency;

use super::Answer;
use crate::ownership::gate::View;
use crate::ownership::writers::Refusal;
use crate::serve::residency;
use crate::serve::status::in_steps;
use crate::serve::volume::{Asker, Change, Forwarded, ServedVolume, store_failure};
use crate::shard::operations::{Counted, OperationKind};
use crate::volume::Moment;
use crate::volume::ledger::{Origin, Writer};

/// As [`answer`], and counts what guests ask for.
pub(super) async fn serve(
    volume: &ServedVolume,
    view: View,
    incarnation: u64,
    request: &ClientRequest,
    payload: &Bytes,
) -> Result<Option<Answer>, Error> {
    let (counted, trace) = begin(volume, request, payload);
    let answered = answer(volume, &trace, view, incarnation, request, payload).await;
    // What was not carried out comes again, to this node or to another one.
    let is_carried_out = !matches!(answered, Ok(None | Some((ClientReply::Moved(_) | ClientReply::Outrun, _))));
    if let Some(counted) = counted.filter(|_| is_carried_out) {
        counted.end(answered.is_ok());
        trace.answered(answered.is_ok());
    }
    answered
}

/// As [`read_only`] of a snapshot, and counts what guests ask for.
pub(super) async fn serve_kept(volume: &ServedVolume, moment: Moment, request: ClientRequest) -> Result<Answer, Error> {
    let (counted, _) = begin(volume, &request, &Bytes::new());
    let answered = read_only(volume, moment, request).await;
    if let Some(counted) = counted {
        counted.end(answered.is_ok());
    }
    answered
}

/// What a guest asks for begins, if that is what a request is.
fn begin<'a>(volume: &'a ServedVolume, request: &ClientRequest, payload: &Bytes) -> (Option<Counted<'a>>, Trace) {
    let Some(what) = operation(request, payload) else { return (None, Trace::default()) };
    (Some(volume.shard.operations().begin(what.kind, what.bytes)), volume.tracer.begin_now(what))
}

/// Which operation of a guest a request is.
fn operation(request: &ClientRequest, payload: &Bytes) -> Option<What> {
    let (kind, offset, bytes) = match request {
        ClientRequest::Read { offset, length, .. } => (OperationKind::Read, *offset, u64::from(*length)),
        ClientRequest::Write { offset, .. } => (OperationKind::Write, *offset, payload.len() as u64),
        ClientRequest::Zero { offset, length, .. } => (OperationKind::Zero, *offset, *length),
        ClientRequest::Flush { .. } => (OperationKind::Flush, 0, 0),
        _ => return None,
    };
    Some(What { kind, offset, bytes })
}

/// Answers `request` as the owner under `view`; `None` when this node is not the owner any more.
async fn answer(
    volume: &ServedVolume,
    trace: &Trace,
    view: View,
    incarnation: u64,
    request: &ClientRequest,
    payload: &Bytes,
) -> Result<Option<Answer>, Error> {
    let here = Tenure { epoch: view.epoch, incarnation };
    let wanted = match request {
        ClientRequest::Read { target, .. }
        | ClientRequest::Extents { target, .. }
        | ClientRequest::Cache { target, .. } => match target {
            Target::Live { tenure, .. } => *tenure,
            Target::Snapshot { .. } => return Err(Error::new(ErrorKind::Internal, "any node has snapshots")),
        },
        ClientRequest::Write { tenure, .. }
        | ClientRequest::Zero { tenure, .. }
        | ClientRequest::Flush { tenure, .. } => *tenure,
        ClientRequest::Attach { sessions, .. } => return attach(volume, view, here, sessions).await,
        ClientRequest::Members
        | ClientRequest::Volumes
        | ClientRequest::Open { .. }
        | ClientRequest::OpenFor { .. }
        | ClientRequest::List => {
            return Err(Error::new(ErrorKind::Internal, "not a request about a volume"));
        }
    };
    if wanted != here {
        return Ok(moved(here));
    }
    let written = |id: &WriteId, change| write(volume, trace, view.epoch, *id, change);
    match request {
        ClientRequest::Write { id, offset, fua, .. } => {
            written(id, Change::Data { offset: *offset, data: payload.clone(), fua: *fua }).await
        }
        ClientRequest::Zero { length, .. } if *length > ZERO_MAX => {
            Err(Error::new(ErrorKind::InvalidRequest, format!("{length} bytes of zeroes are more than {ZERO_MAX}")))
        }
        ClientRequest::Zero { id, offset, length, fua, .. } => {
            written(id, Change::Zero { offset: *offset, length: *length, fua: *fua }).await
        }
        other => {
            let answer = match other {
                ClientRequest::Flush { .. } => {
                    let flushed = volume.flush_for_peer(trace, view.epoch).await?;
                    flushed.map(|durable| (ClientReply::Flushed(durable), Bytes::new()))
                }
                ClientRequest::Read { offset, length, .. } => {
                    volume.require_inside(Moment::Now, *offset, u64::from(*length), false).await?;
                    let read = volume.read_for_peer(trace, Moment::Now, view.epoch, *offset, *length).await?;
                    read.map(|chunks| {
                        let (parts, payload) = ReadPart::pack(&chunks);
                        (ClientReply::Read(parts), payload)
                    })
                }
                other => Some(read_only(volume, Moment::Now, other.clone()).await?),
            };
            // It went and came back meanwhile: what was seen is of another tenure.
            Ok(if volume.gate.view().epoch == view.epoch { answer } else { None })
        }
    }
}

fn moved(here: Tenure) -> Option<Answer> {
    Some((ClientReply::Moved(here), Bytes::new()))
}

async fn attach(volume: &ServedVolume, view: View, here: Tenure, sessions: &[u64]) -> Result<Option<Answer>, Error> {
    // In this order: what is done is in the volume up to the head then, where its client will take it to be.
    let known = volume.shard.ledger(volume.id).await.map_err(store_failure)?;
    let report = volume.shard.report(volume.id).await.map_err(store_failure)?;
    let mut known_of: BTreeMap<u64, Runs> = known.done.into_iter().collect();
    let done = sessions.iter().filter_map(|session| known_of.remove_entry(session)).collect();
    let forks = volume.standing.forks().into_iter();
    let attached = Attached {
        tenure: here,
        owner: view.owner,
        size: volume.size().bytes(),
        // What is under way is neither there nor lost: the store may fail before it is applied, and the volume go on elsewhere without it.
        head: report.applied,
        forks: forks.map(|fork| ForkInfo { epoch: fork.epoch, end: fork.end }).collect(),
        // Not the one of the writers: a takeover ends the rights of the nodes' sessions, which do not know what is gone.
        claimed: known.claim,
        done,
    };
    Ok((volume.gate.view() == view).then(|| (ClientReply::Attached(attached), Bytes::new())))
}

/// Carries out a write once, if its session still may.
async fn write(
    volume: &ServedVolume,
    trace: &Trace,
    epoch: Epoch,
    id: WriteId,
    change: Change,
) -> Result<Option<Answer>, Error> {
    let (offset, length) = match &change {
        Change::Data { offset, data, .. } => (*offset, data.len() as u64),
        Change::Zero { offset, length, .. } => (*offset, *length),
    };
    volume.require_inside(Moment::Now, offset, length, true).await?;
    let WriteId { session, number, answered, generation, right } = id;
    let writer = Writer { origin: Origin { session, number, answered }, generation, right };
    match volume.write_from_afar(trace, Asker::Tenant(epoch), &change, writer).await? {
        Forwarded::Written(lsn) => {
            let durable = volume.is_settled_for_peer(trace, &change, lsn).await?;
            Ok(Some((ClientReply::Written { lsn, durable }, Bytes::new())))
        }
        Forwarded::NotOwner => Ok(None),
        Forwarded::Refused(Refusal::Outrun) => Ok(Some((ClientReply::Outrun, Bytes::new()))),
        Forwarded::Refused(Refusal::Claimed(epoch)) => {
            let text = format!(
                "volume {} is written at its owner's node {} since epoch {epoch}: this client lost its right to write; close what \
                 uses the disk here, and open the volume anew if it is to be used here again",
                volume.name,
                volume.my_name()
            );
            Err(Error::new(ErrorKind::Fenced, text))
        }
    }
}

/// What changes nothing: of the volume, at its owner, or of a snapshot, anywhere.
async fn read_only(volume: &ServedVolume, moment: Moment, request: ClientRequest) -> Result<Answer, Error> {
    match request {
        ClientRequest::Read { offset, length, .. } => {
            let (parts, payload) = ReadPart::pack(&volume.read(Trace::NONE, moment, offset, length).await?);
            Ok((ClientReply::Read(parts), payload))
        }
        ClientRequest::Extents { of: ExtentsOf::Allocation, offset, length, .. } => {
            volume.require_inside(moment, offset, length, false).await?;
            let extents = in_steps(offset, length, |at, piece| volume.extents(moment, at, piece)).await?;
            let state = |mapped| if mapped { ExtentState::Data } else { ExtentState::Zero };
            let extents = extents.into_iter().map(|extent| (extent.length, state(extent.mapped))).collect();
            Ok((ClientReply::Extents(extents), Bytes::new()))
        }
        ClientRequest::Extents { of: ExtentsOf::Residency, offset, length, .. } => {
            volume.require_inside(moment, offset, length, false).await?;
            let extents = residency::residency(volume, moment, offset, length).await?;
            let state = |residency| match residency {
                Residency::Local => ExtentState::Data,
                Residency::Stale => ExtentState::Stale,
                Residency::Zero => ExtentState::Zero,
            };
            let extents = extents.into_iter().map(|extent| (extent.length, state(extent.residency))).collect();
            Ok((ClientReply::Extents(extents), Bytes::new()))
        }
        ClientRequest::Cache { offset, length, .. } => {
            volume.require_inside(moment, offset, length, false).await?;
            residency::cache(volume, moment, offset, length).await?;
            Ok((ClientReply::Done, Bytes::new()))
        }
        other => Err(Error::new(ErrorKind::Internal, format!("not a request that only reads: {other:?}"))),
    }
}
