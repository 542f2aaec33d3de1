//! Durability in a class: what a FLUSH or FUA has covered is never cut off by a takeover, whoever is lost within the class. No
//! takeover may begin behind while anything can be waited for, so what would lose it is to be refused instead.

use std::time::Duration;

use client_lib::VolumeId;

use super::durability::is_of;
use super::survivors::gone;
use crate::simulation::history::{Book, Logged, Operation, What};

/// Looks for writes to `volume` that were flushed, all the time in a class other than `local`, and are no part of it any more.
pub(crate) fn check(book: &Book, volume: VolumeId) -> Result<usize, String> {
    let operations = || book.operations.iter().filter(|operation| operation.volume == volume);
    let flushes: Vec<&Operation> =
        operations().filter(|operation| operation.what == What::Flush && operation.done().is_some()).collect();
    let mut covered = 0;
    for write in operations() {
        let (What::Write { is_durable, .. }, Some(acked)) = (&write.what, write.done()) else { continue };
        let covers = |flush: &&&Operation| flush.session == write.session && flush.asked > acked;
        let because = match is_durable {
            true => Some(write),
            false => flushes.iter().find(covers).copied(),
        };
        let Some(because) = because else { continue };
        let logged: Vec<&Logged> =
            book.logged.iter().filter(|logged| logged.volume == volume && is_of(write, logged)).collect();
        covered += 1;
        let is_given_up = |at: Duration| book.behind.get(&volume).is_some_and(|behind| at > *behind);
        let is_gone = |logged: &&Logged| gone(book, logged).is_some_and(|at| !is_given_up(at));
        // A write whose answer was lost may be in the log several times.
        if !logged.is_empty() && logged.iter().all(is_gone) {
            return Err(format!("{write:?} was lost, {logged:?}, but it was flushed by {because:?}"));
        }
    }
    Ok(covered)
}
