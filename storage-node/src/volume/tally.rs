//! How much was written under the present ownership, every block counted each time: what is sent is told beside it.
//!
//! In memory only: it begins anew with every ownership and every start of the node. Pure.

use client_lib::Lsn;

/// What an owner's writes come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes after this position count.
    pub since: Lsn,
    /// Blocks that they changed, to data or to zeroes.
    pub blocks: u64,
}
