//! One request in flight: the session's future and what its reply needs.
//!
//! A thin future of its own so that requests of all kinds share one set, without a second allocation around the
//! session's boxed future.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use client_lib::Error;
use client_lib::transport::BoxFuture;

use crate::export::{AllocationExtent, ReadPart, Session};
use crate::proto::request::RequestHeader;
use crate::validate::Request;

enum Work<'a> {
    Read {
        offset: u64,
        length: u32,
        one_chunk: bool,
        future: BoxFuture<'a, Result<Vec<ReadPart>, Error>>,
    },
    Unit(BoxFuture<'a, Result<(), Error>>),
    Status {
        offset: u64,
        length: u32,
        one_extent: bool,
        future: BoxFuture<'a, Result<Vec<AllocationExtent>, Error>>,
    },
    /// Nothing to do but to answer.
    Nothing,
}

/// A request that was handed to the session.
pub(super) struct Operation<'a> {
    cookie: u64,
    command: u16,
    cost: u64,
    work: Work<'a>,
}

/// A request that the session has answered.
pub(super) struct Done {
    pub(super) cookie: u64,
    pub(super) command: u16,
    /// What the request had counted as bytes in flight.
    pub(super) cost: u64,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    Done(Result<(), Error>),
    Nothing,
    Read { offset: u64, length: u32, one_chunk: bool, result: Result<Vec<ReadPart>, Error> },
    Status { offset: u64, length: u32, one_extent: bool, result: Result<Vec<AllocationExtent>, Error> },
}

impl Done {
    pub(super) fn nothing(header: &RequestHeader) -> Done {
        Done { cookie: header.cookie, command: header.command, cost: 0, outcome: Outcome::Nothing }
    }
}

impl<'a> Operation<'a> {
    /// Hands a request without payload to the session.
    pub(super) fn new(session: &'a dyn Session, header: &RequestHeader, request: Request) -> Operation<'a> {
        let mut cost = 0;
        let work = match request {
            Request::Read { offset, length, one_chunk } => {
                cost = u64::from(length);
                Work::Read { offset, length, one_chunk, future: session.read(offset, length) }
            }
            Request::Flush => Work::Unit(session.flush()),
            Request::Trim { offset, length, fua } => Work::Unit(session.trim(offset, length, fua)),
            Request::WriteZeroes { offset, length, options } => {
                Work::Unit(session.write_zeroes(offset, length, options))
            }
            Request::BlockStatus { offset, length, one_extent } => {
                Work::Status { offset, length, one_extent, future: session.allocation(offset, length) }
            }
            // A write comes through `write`, a disconnect has no reply; neither reaches this.
            Request::Write { .. } | Request::Nothing | Request::Disconnect => Work::Nothing,
        };
        Operation { cookie: header.cookie, command: header.command, cost, work }
    }

    /// Hands a write to the session.
    pub(super) fn write(
        session: &'a dyn Session,
        header: &RequestHeader,
        offset: u64,
        payload: Bytes,
        fua: bool,
    ) -> Operation<'a> {
        let cost = payload.len() as u64;
        let work = Work::Unit(session.write(offset, payload, fua));
        Operation { cookie: header.cookie, command: header.command, cost, work }
    }
}

impl Future for Operation<'_> {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let outcome = match &mut self.work {
            Work::Read { offset, length, one_chunk, future } => {
                let Poll::Ready(result) = future.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                Outcome::Read { offset: *offset, length: *length, one_chunk: *one_chunk, result }
            }
            Work::Unit(future) => {
                let Poll::Ready(result) = future.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                Outcome::Done(result)
            }
            Work::Status { offset, length, one_extent, future } => {
                let Poll::Ready(result) = future.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                Outcome::Status { offset: *offset, length: *length, one_extent: *one_extent, result }
            }
            Work::Nothing => Outcome::Nothing,
        };
        Poll::Ready(Done { cookie: self.cookie, command: self.command, cost: self.cost, outcome })
    }
}
