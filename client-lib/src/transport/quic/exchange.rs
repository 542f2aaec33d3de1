//! One call on one stream: the request behind a small header, then the reply until the stream's end.
//!
//! The header carries the class and the request's length, so that the server reserves memory before it reads,
//! and so that a request which was cut off (its caller gave up) is never taken for a whole one.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::Semaphore;

use super::hold::Carrier;
use crate::transport::answers::Answers;
use crate::transport::{Class, FRAME_SIZE_MAX, Service};
use crate::types::{ClientName, NodeId};

const HEADER_SIZE: usize = 8;
/// The reply is larger than a frame may be.
pub(super) const CODE_TOO_LARGE: VarInt = VarInt::from_u32(1);
/// The stream's header makes no sense, or the caller may not send it.
const CODE_REFUSED: VarInt = VarInt::from_u32(2);
const CHUNK_MAX: usize = 1 << 20;

/// Who calls, as its certificate says.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// A node of the cluster.
    Node(NodeId),
    /// A client of the cluster.
    Client(ClientName),
    /// Somebody without a certificate.
    Nobody,
}

/// A call that has come.
pub(super) struct Incoming {
    pub(super) send: SendStream,
    pub(super) receive: RecvStream,
    pub(super) caller: Caller,
    /// To be told when the connection carries bulk, if somebody wants to know.
    pub(super) carrier: Option<Carrier>,
}

/// What the calls of one connection may have in memory together.
#[derive(Clone)]
pub(super) struct Budgets {
    /// In bytes of requests.
    pub(super) requests: Arc<Semaphore>,
    pub(super) answers: Answers,
}

/// How far a call came before it failed.
pub(super) enum CallError {
    /// The peer cannot have received the whole request.
    NotSent(String),
    /// It may have.
    Sent(String),
}

pub(super) async fn call(connection: &Connection, class: Class, request: Bytes) -> Result<Bytes, CallError> {
    let (send, receive) = connection.open_bi().await.map_err(|error| CallError::NotSent(error.to_string()))?;
    send_request(send, class, request).await.map_err(CallError::NotSent)?;
    receive_reply(receive).await.map_err(CallError::Sent)
}

async fn send_request(mut send: SendStream, class: Class, request: Bytes) -> Result<(), String> {
    let fail = |error: quinn::WriteError| error.to_string();
    let _ = send.set_priority(priority(class));
    let mut header = [0; HEADER_SIZE];
    header[0] = class_number(class);
    header[4..].copy_from_slice(&(request.len() as u32).to_le_bytes());
    send.write_all(&header).await.map_err(fail)?;
    send.write_chunk(request).await.map_err(fail)?;
    send.finish().map_err(|error| error.to_string())
}

async fn receive_reply(mut receive: RecvStream) -> Result<Bytes, String> {
    receive.read_to_end(FRAME_SIZE_MAX).await.map(Bytes::from).map_err(|error| error.to_string())
}

/// Answers one call. Reserves the request's size of the budget for as long as it is being served, and that of a client's answer
/// until it is acknowledged.
pub(super) async fn serve(call: Incoming, request_size_max: usize, budgets: Budgets, service: Arc<dyn Service>) {
    let Incoming { mut send, mut receive, caller, carrier } = call;
    let mut header = [0; HEADER_SIZE];
    if receive.read_exact(&mut header).await.is_err() {
        return;
    }
    let length = u32::from_le_bytes(header[4..].try_into().expect("four bytes")) as usize;
    let class = Class::ALL.into_iter().find(|class| class_number(*class) == header[0]);
    let (Some(class), [0, 0, 0], true) = (class, [header[1], header[2], header[3]], length <= request_size_max) else {
        let _ = receive.stop(CODE_REFUSED);
        let _ = send.reset(CODE_REFUSED);
        return;
    };
    if class == Class::Bulk
        && let Some(carrier) = carrier
    {
        carrier.carries_bulk();
    }
    // All at once: requests that wait for memory hold none.
    let Ok(reserved) = budgets.requests.acquire_many(length as u32).await else {
        return;
    };
    let Some(request) = receive_request(&mut receive, length).await else {
        let _ = send.reset(CODE_REFUSED);
        return;
    };
    let answer_bytes = match &caller {
        Caller::Client(_) => service.answer_bytes_max(&request),
        Caller::Node(_) | Caller::Nobody => 0,
    };
    let room = tokio::select! {
        biased;
        room = budgets.answers.set_aside(answer_bytes) => room,
        // Nobody waits for it any more.
        _ = send.stopped() => return,
    };
    let reply = match &caller {
        Caller::Node(node) => service.serve(Some(*node), class, request),
        Caller::Client(name) => service.serve_client(name, class, request),
        Caller::Nobody => service.serve(None, class, request),
    };
    // What is read for nobody is dropped, with what it holds and waits for. Whatever else was asked is carried out: the caller may have seen
    // the connection break and nothing more.
    let reply = tokio::select! {
        biased;
        reply = reply => room.hold(reply),
        _ = send.stopped(), if answer_bytes > 0 => return,
    };
    if reply.len() > FRAME_SIZE_MAX {
        tracing::error!(?caller, bytes = reply.len(), "a reply is over the frame limit and was not sent");
        let _ = send.reset(CODE_TOO_LARGE);
        return;
    }
    let _ = send.set_priority(priority(class));
    drop(reserved);
    if send.write_chunk(reply).await.is_ok() && send.finish().is_ok() {
        // Until the reply is acknowledged, closing the endpoint would drop it.
        let _ = send.stopped().await;
    }
}

async fn receive_request(receive: &mut RecvStream, length: usize) -> Option<Bytes> {
    let mut request = Vec::with_capacity(length);
    while let Some(chunk) = receive.read_chunk(CHUNK_MAX, true).await.ok()? {
        if request.len() + chunk.bytes.len() > length {
            return None;
        }
        request.extend_from_slice(&chunk.bytes);
    }
    (request.len() == length).then(|| Bytes::from(request))
}

fn class_number(class: Class) -> u8 {
    match class {
        Class::Control => 1,
        // By its number a reply goes before others on its connection, also where the other end runs an older program.
        Class::Pull | Class::Ahead => 2,
        Class::Bulk => 3,
    }
}

fn priority(class: Class) -> i32 {
    match class {
        Class::Control => 2,
        Class::Pull | Class::Ahead => 1,
        Class::Bulk => 0,
    }
}
