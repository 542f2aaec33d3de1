//! One request in flight: the session's future and what its reply needs.
//!
//! A thin future of its own so that requests of all kinds share one set, without a second allocation around the
//! session's boxed future.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use client_lib::trace::{OperationKind, Stage, Trace, What};
use client_lib::transport::BoxFuture;
use client_lib::{Error, ReadPart};
use tokio::time::Instant;

use crate::contexts::{Context as MetaContext, Contexts};
use crate::export::{Residency, Session, Traced};
use crate::proto::constants::{RESIDENCY_STALE, RESIDENCY_ZERO, STATE_HOLE, STATE_ZERO};
use crate::proto::request::RequestHeader;
use crate::validate::Request;

/// What one metadata context says of a range: runs of (length, flags), from the start of the range on.
pub(super) type Told = (MetaContext, Vec<(u64, u32)>);

enum Work<'a> {
    Read {
        length: u32,
        one_chunk: bool,
        future: BoxFuture<'a, Result<Vec<ReadPart>, Error>>,
    },
    Unit(BoxFuture<'a, Result<(), Error>>),
    Status {
        length: u64,
        one_extent: bool,
        future: BoxFuture<'a, Result<Vec<Told>, Error>>,
    },
    /// Nothing to do but to answer.
    Nothing,
}

/// A request that was handed to the session.
pub(super) struct Operation<'a> {
    cookie: u64,
    command: u16,
    offset: u64,
    cost: u64,
    trace: Trace,
    work: Work<'a>,
}

/// A request that the session has answered.
pub(super) struct Done {
    pub(super) cookie: u64,
    pub(super) command: u16,
    /// Where the request began.
    pub(super) offset: u64,
    /// What the request had counted as bytes in flight.
    pub(super) cost: u64,
    pub(super) trace: Trace,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    Done(Result<(), Error>),
    Nothing,
    Read { length: u32, one_chunk: bool, result: Result<Vec<ReadPart>, Error> },
    Status { length: u64, one_extent: bool, result: Result<Vec<Told>, Error> },
}

impl Done {
    pub(super) fn nothing(header: &RequestHeader) -> Done {
        let &RequestHeader { cookie, command, offset, .. } = header;
        Done { cookie, command, offset, cost: 0, trace: Trace::default(), outcome: Outcome::Nothing }
    }
}

impl<'a> Operation<'a> {
    /// Hands a request without payload to the session; it came at `arrived`, where that is of interest.
    pub(super) fn new(
        session: &'a dyn Session,
        header: &RequestHeader,
        request: Request,
        arrived: Option<Instant>,
    ) -> Operation<'a> {
        let &RequestHeader { cookie, command, offset, .. } = header;
        let cost = match request {
            Request::Read { length, .. } => u64::from(length),
            _ => 0,
        };
        if let Some(Traced { session, trace }) = traced(session, &request, arrived) {
            let work = traced_work(session, request);
            return Operation { cookie, command, offset, cost, trace, work };
        }
        let work = match request {
            Request::Read { offset, length, one_chunk } => {
                Work::Read { length, one_chunk, future: session.read(offset, length) }
            }
            Request::Flush => Work::Unit(session.flush()),
            Request::Cache { offset, length } => Work::Unit(session.cache(offset, length)),
            Request::Trim { offset, length, fua } => Work::Unit(session.trim(offset, length, fua)),
            Request::WriteZeroes { offset, length, options } => {
                Work::Unit(session.write_zeroes(offset, length, options))
            }
            Request::BlockStatus { offset, length, one_extent, contexts } => {
                Work::Status { length, one_extent, future: Box::pin(status(session, offset, length, contexts)) }
            }
            // A write comes through `write`, a filter was judged before, a disconnect has no reply; none reaches this.
            Request::Write { .. } | Request::FilteredStatus { .. } | Request::Nothing | Request::Disconnect => {
                Work::Nothing
            }
        };
        Operation { cookie, command, offset, cost, trace: Trace::default(), work }
    }

    /// Hands a write to the session, as [`new`](Self::new).
    pub(super) fn write(
        session: &'a dyn Session,
        header: &RequestHeader,
        offset: u64,
        payload: Bytes,
        fua: bool,
        arrived: Option<Instant>,
    ) -> Operation<'a> {
        let cost = payload.len() as u64;
        let &RequestHeader { cookie, command, .. } = header;
        let request = Request::Write { offset, length: payload.len() as u32, fua };
        let (trace, work) = match traced(session, &request, arrived) {
            None => (Trace::default(), Work::Unit(session.write(offset, payload, fua))),
            Some(Traced { session, trace }) => {
                (trace, Work::Unit(Box::pin(async move { session.write(offset, payload, fua).await })))
            }
        };
        Operation { cookie, command, offset, cost, trace, work }
    }
}

/// Whether a request is to be looked at closely, which has come from the socket now.
fn traced(session: &dyn Session, request: &Request, arrived: Option<Instant>) -> Option<Traced> {
    let arrived = arrived?;
    let (kind, offset, bytes) = match *request {
        Request::Read { offset, length, .. } => (OperationKind::Read, offset, u64::from(length)),
        Request::Write { offset, length, .. } => (OperationKind::Write, offset, u64::from(length)),
        Request::WriteZeroes { offset, length, .. } => (OperationKind::Zero, offset, length),
        Request::Trim { offset, length, .. } => (OperationKind::Trim, offset, length),
        Request::Flush => (OperationKind::Flush, 0, 0),
        _ => return None,
    };
    let traced = session.traced(What { kind, offset, bytes }, arrived)?;
    traced.trace.spent(Stage::Socket);
    Some(traced)
}

/// What has a request without payload carried out by a session that is there for it alone.
fn traced_work(session: Arc<dyn Session>, request: Request) -> Work<'static> {
    match request {
        Request::Read { offset, length, one_chunk } => {
            let future = Box::pin(async move { session.read(offset, length).await });
            Work::Read { length, one_chunk, future }
        }
        Request::Flush => Work::Unit(Box::pin(async move { session.flush().await })),
        Request::Trim { offset, length, fua } => {
            Work::Unit(Box::pin(async move { session.trim(offset, length, fua).await }))
        }
        Request::WriteZeroes { offset, length, options } => {
            Work::Unit(Box::pin(async move { session.write_zeroes(offset, length, options).await }))
        }
        // Nothing else is looked at.
        _ => Work::Nothing,
    }
}

/// What each of `contexts` says of a range.
async fn status(session: &dyn Session, offset: u64, length: u64, contexts: Contexts) -> Result<Vec<Told>, Error> {
    let mut told = Vec::with_capacity(contexts.len());
    for context in contexts.iter() {
        let states = match context {
            MetaContext::Allocation => {
                let extents = session.allocation(offset, length).await?;
                let flags =
                    |allocated, zero| if allocated { 0 } else { STATE_HOLE } | if zero { STATE_ZERO } else { 0 };
                extents.iter().map(|extent| (extent.length, flags(extent.allocated, extent.zero))).collect()
            }
            MetaContext::Residency => {
                let extents = session.residency(offset, length).await?;
                let flags = |residency| match residency {
                    Residency::Local => 0,
                    Residency::Stale => RESIDENCY_STALE,
                    Residency::Zero => RESIDENCY_ZERO,
                };
                extents.iter().map(|extent| (extent.length, flags(extent.residency))).collect()
            }
        };
        told.push((context, states));
    }
    Ok(told)
}

impl Future for Operation<'_> {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let outcome = match &mut self.work {
            Work::Read { length, one_chunk, future } => {
                let Poll::Ready(result) = future.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                Outcome::Read { length: *length, one_chunk: *one_chunk, result }
            }
            Work::Unit(future) => {
                let Poll::Ready(result) = future.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                Outcome::Done(result)
            }
            Work::Status { length, one_extent, future } => {
                let Poll::Ready(result) = future.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                Outcome::Status { length: *length, one_extent: *one_extent, result }
            }
            Work::Nothing => Outcome::Nothing,
        };
        let Operation { cookie, command, offset, cost, .. } = *self;
        let trace = std::mem::take(&mut self.trace);
        Poll::Ready(Done { cookie, command, offset, cost, trace, outcome })
    }
}
