//! How a connection comes to an end, or to a pause from which it can go on elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;

use crate::passing::message::Discard;

/// Tells every connection of a server that it is shutting down.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closing {
    /// Read per wake-up, so a plain flag; the token only wakes.
    flag: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Closing {
    pub(crate) fn close(&self) {
        self.flag.store(true, Ordering::Release);
        self.token.cancel();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client said `DISC`.
    Disconnected,
    /// The client closed its end.
    ClientClosed,
    /// The server is shutting down.
    Shutdown,
    /// Requests or replies were left when the time to drain was over.
    DrainTimedOut,
    /// The client sent a part of a request and then nothing.
    Stalled,
}

/// Why the loop returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Ended(End),
    /// The gate is closed, and nothing is in flight.
    Paused,
}

/// How a connection stands between two requests, or inside of one that has not come whole.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// What was read and not consumed.
    pub(crate) input: BytesMut,
    /// What is to be sent before anything else.
    pub(crate) unsent: Vec<u8>,
    pub(crate) discard: Option<Discard>,
}

/// Why a connection broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("{0}")]
    Malformed(#[from] crate::proto::Malformed),
}
