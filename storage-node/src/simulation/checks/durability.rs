//! Durability in the class `local`: a killed process loses nothing that it acked, a power cut nothing that a FLUSH or FUA
//! had made durable. A rollback that was answered is durable.

use client_lib::VolumeId;

use crate::simulation::history::{Book, Death, Logged, Operation, What};

pub(crate) fn check(book: &Book, volume: VolumeId) -> Result<(), String> {
    let of_volume = |operation: &&Operation| operation.volume == volume;
    let flushes: Vec<&Operation> = book
        .operations
        .iter()
        .filter(of_volume)
        .filter(|operation| operation.what == What::Flush && operation.done().is_some())
        .collect();
    for lost in book.logged.iter().filter(|logged| logged.volume == volume) {
        let Some(death) = lost.lost else { continue };
        if lost.back_to.is_some() {
            let its = |operation: &&Operation| {
                let is_in_time = |done| (operation.asked..=done).contains(&lost.at);
                operation.what == What::RollBack && operation.done().is_some_and(is_in_time)
            };
            if let Some(back) = book.operations.iter().filter(of_volume).find(its) {
                return Err(format!("{back:?}, logged as {lost:?}, was lost"));
            }
        }
        let Some(write) = book.operations.iter().filter(of_volume).find(|operation| is_of(operation, lost)) else {
            continue;
        };
        let Some(acked) = write.done().filter(|acked| *acked < death.at()) else { continue };
        let because = match death {
            Death::Killed(_) => Some("it was acked, and the process was only killed".to_owned()),
            Death::PowerCut(_) if matches!(write.what, What::Write { is_durable: true, .. }) => {
                Some("it was acked as durable".to_owned())
            }
            Death::PowerCut(at) => {
                let covers = |flush: &&&Operation| {
                    flush.session == write.session && flush.asked > acked && flush.done().is_some_and(|done| done < at)
                };
                flushes.iter().find(covers).map(|flush| format!("it was flushed by {flush:?}"))
            }
        };
        if let Some(because) = because {
            return Err(format!("{write:?}, logged as {lost:?}, was lost, but {because}"));
        }
    }
    Ok(())
}

/// Whether `operation` is what brought `logged`. Zeroes, which others may have written too, are nobody's.
pub(super) fn is_of(operation: &Operation, logged: &Logged) -> bool {
    match &operation.what {
        What::Write { start, contents, .. } => {
            *start == logged.start && *contents == logged.contents && contents.iter().all(Option::is_some)
        }
        _ => false,
    }
}
