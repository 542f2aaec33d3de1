//! What a client is told of a range, put together from steps that a shard answers quickly.
//!
//! A client with extended headers asks about a whole disk at once. A shard looks at every page of the map in a range, and
//! its other requests wait meanwhile: it is asked piece by piece.

use std::time::Duration;

use client_lib::Error;
use tokio::time::Instant;

/// Bytes of one step: as much as a client without extended headers can ask for, and many times what is answered of a range
/// that is full.
const STEP_BYTES: u64 = 4 << 30;
/// Steps of one answer: a tebibyte of holes. The client asks again for the rest.
const STEPS_MAX: usize = 256;
/// After so much time an answer ends with the step that is done: where the owner is far away, each is a round trip.
const ANSWER_TIME: Duration = Duration::from_millis(200);

/// A run of bytes in one state.
pub(super) trait Extent {
    /// Bytes.
    fn length(&self) -> u64;

    /// Whether both are in the same state.
    fn is_like(&self, other: &Self) -> bool;

    /// Makes it longer.
    fn lengthen(&mut self, bytes: u64);
}

/// The states of `length` bytes at `offset`, as `ask` tells them of pieces; what an answer leaves out ends it.
pub(super) async fn in_steps<E: Extent, F>(
    offset: u64,
    length: u64,
    mut ask: impl FnMut(u64, u64) -> F,
) -> Result<Vec<E>, Error>
where
    F: Future<Output = Result<Vec<E>, Error>>,
{
    let end = offset.saturating_add(length);
    let (mut at, mut told) = (offset, Vec::<E>::new());
    let begun = Instant::now();
    for _ in 0..STEPS_MAX {
        let piece = (end - at).min(STEP_BYTES);
        let extents = ask(at, piece).await?;
        let covered: u64 = extents.iter().map(Extent::length).sum();
        for extent in extents {
            match told.last_mut() {
                Some(last) if last.is_like(&extent) => last.lengthen(extent.length()),
                _ => told.push(extent),
            }
        }
        at += covered;
        if covered < piece || at >= end || begun.elapsed() >= ANSWER_TIME {
            break;
        }
    }
    Ok(told)
}

/// Cuts a range that is to be written with zeroes: a shard's other requests wait while it carries out one piece.
pub(super) fn zero_pieces(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset.saturating_add(length);
    let mut at = offset;
    std::iter::from_fn(move || {
        let piece = (end - at).min(STEP_BYTES);
        at += piece;
        (piece > 0).then_some((at - piece, piece))
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Run(u64, bool);

    impl Extent for Run {
        fn length(&self) -> u64 {
            self.0
        }

        fn is_like(&self, other: &Run) -> bool {
            self.1 == other.1
        }

        fn lengthen(&mut self, bytes: u64) {
            self.0 += bytes;
        }
    }

    /// Asks about a disk that holds data from `data` on, and at most 8192 bytes of it are told at once.
    async fn asked(data: u64, offset: u64, length: u64) -> (Vec<Run>, Vec<(u64, u64)>) {
        let asked = RefCell::new(Vec::new());
        let told = in_steps(offset, length, |at, piece| {
            asked.borrow_mut().push((at, piece));
            let hole = data.saturating_sub(at).min(piece);
            let runs = vec![Run(hole, false), Run((piece - hole).min(8192), true)];
            async move { Ok(runs.into_iter().filter(|run| run.0 > 0).collect()) }
        });
        (told.await.expect("is told"), asked.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn holes_are_told_over_many_steps_and_data_ends_the_answer() {
        let (told, steps) = asked(5 * STEP_BYTES + 512, 512, 10 * STEP_BYTES).await;
        assert_eq!(told, [Run(5 * STEP_BYTES, false), Run(8192, true)]);
        assert_eq!(steps.len(), 6);
        assert!(steps.iter().all(|(_, piece)| *piece == STEP_BYTES));
        let (told, steps) = asked(1 << 50, 0, 1 << 50).await;
        assert_eq!((told, steps.len()), (vec![Run(STEPS_MAX as u64 * STEP_BYTES, false)], STEPS_MAX));
        let (told, steps) = asked(0, 0, 4096).await;
        assert_eq!((told, steps), (vec![Run(4096, true)], vec![(0, 4096)]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_far_away_is_asked_a_few_times_only() {
        let told = in_steps(0, 1 << 40, |_, piece| async move {
            tokio::time::sleep(Duration::from_millis(60)).await;
            Ok(vec![Run(piece, false)])
        });
        assert_eq!(told.await.expect("is told"), [Run(4 * STEP_BYTES, false)]);
    }

    #[test]
    fn zeroes_are_cut_into_pieces_that_cover_the_range() {
        let pieces: Vec<_> = zero_pieces(512, 2 * STEP_BYTES + 1024).collect();
        assert_eq!(pieces, [(512, STEP_BYTES), (512 + STEP_BYTES, STEP_BYTES), (512 + 2 * STEP_BYTES, 1024)]);
        assert_eq!(zero_pieces(0, 0).count(), 0);
    }
}
