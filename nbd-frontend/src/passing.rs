//! A server that passes its sockets and connections on to a newer process, without its clients noticing.
//!
//! The *predecessor* listens on a control socket; a *successor* comes there. What they say to each other is in [`message`], how
//! descriptors travel in [`channel`], how the connections of a server are held in [`gate`]. The order of events, and what
//! becomes of the connections when either of both dies in any step, is this (docs/decisions/0035):
//!
//! ```text
//! successor                                predecessor
//!   Hello: versions, sockets       ──►       looks whether that fits; flushes what its clients have written
//!                                  ◄──     Prepare: what is in use
//!   looks that up in its cluster
//!   Ready                          ──►       closes its gate: nothing is read any more, what is under way is answered,
//!                                            what was acked is flushed
//!                                  ◄──     Session…, Connection…, Sockets
//!   takes everything up, reads nothing
//!   Prepared                       ──►     ─── until here either may fail, and the predecessor goes on
//!                                  ◄──     Go
//!   Serving                        ──►     ─── from here on the successor serves
//!   opens its gate                           goes, or serves those that cannot be passed on until they end
//! ```
//!
//! Exactly one of both reads from the connections, because
//!
//! - the successor reads nothing before it has sent `Serving`: when its end closes without that, the predecessor goes on;
//! - the predecessor reads nothing after it has sent `Go`, and says `Refused` before it goes on: a successor that has everything and finds the
//!   other end closed without a word serves if, and only if, the predecessor's process has ended.

pub(crate) mod channel;
pub(crate) mod gate;
pub mod message;
pub(crate) mod predecessor;
pub(crate) mod successor;

use std::time::Duration;

/// How long the other side may take for what needs no preparation.
const STEP_PATIENCE: Duration = Duration::from_secs(10);
/// How long the successor may take to look up what is in use, and the predecessor to flush it, while all are being served.
const PREPARE_PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
