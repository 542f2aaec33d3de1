//! The copying itself: pieces in flight, their results taken in order.
//!
//! At most [`PIECES_IN_FLIGHT_MAX`] pieces are read, looked at and written at a time, on as many processors as there
//! are. Their results come in order, so that one position says what is done and the checksum is a running one. Every
//! [`Target::checkpoint_bytes`] read, the target is flushed beside the copying, and what is durable then is noted. A flush that
//! failed is never asked for again: a system tells an error once, and the next flush would say that all is well.

use anyhow::{anyhow, bail};
use futures_util::future::OptionFuture;
use futures_util::stream::{self, Stream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::signal::unix::{SignalKind, signal};

use super::ends::{End, Extent, Target};
use super::piece::{PIECE_LEN, Piece};
use super::state::Progress;

/// Pieces at a time, and so MiB of memory: enough to keep disk and server busy while results wait for their turn.
const PIECES_IN_FLIGHT_MAX: usize = 16;

/// Whoever follows a copy.
pub(super) trait Observer {
    /// So far it got; not durable yet.
    fn at(&mut self, progress: &Progress);
    /// So far it is durable.
    fn durable(&mut self, progress: &Progress) -> anyhow::Result<()>;
}

/// What to do next, in the order of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// One piece, the last one perhaps shorter.
    Piece { at: u64, length: u64 },
    /// Whole pieces of zeroes.
    Zeroes { at: u64, length: u64 },
}

/// What a step came to.
enum Done {
    Piece { piece: blake3::Hash, end: u64, read_bytes: u64, written_bytes: u64 },
    Zeroes { length: u64 },
}

/// Cuts the rest of an image into steps, asking its source where zeroes are.
struct Steps<'a> {
    source: &'a End,
    size: u64,
    at: u64,
    /// What is known of the source, from `at` on.
    known: std::vec::IntoIter<Extent>,
    current: Extent,
}

impl Steps<'_> {
    /// The next step; `None` at the end.
    async fn next(&mut self) -> anyhow::Result<Option<Step>> {
        let left = self.size - self.at;
        if left == 0 {
            return Ok(None);
        }
        if self.current.length == 0 {
            self.learn().await?;
        }
        let length = left.min(PIECE_LEN);
        let step = if self.current.zero && self.current.length >= length {
            let run = self.current.length.min(left);
            // Whole pieces, or all that is left.
            let whole = if run == left { run } else { run - run % PIECE_LEN };
            Step::Zeroes { at: self.at, length: whole }
        } else {
            Step::Piece { at: self.at, length }
        };
        let (Step::Piece { length, .. } | Step::Zeroes { length, .. }) = step;
        self.pass(length);
        Ok(Some(step))
    }

    async fn learn(&mut self) -> anyhow::Result<()> {
        self.known = self.source.extents(self.at).await?.into_iter();
        self.current = self.known.next().unwrap_or(Extent { length: PIECE_LEN, zero: false });
        self.join_alike();
        Ok(())
    }

    /// Takes what follows the current extent and is like it into it: servers may tell them apart.
    fn join_alike(&mut self) {
        while let Some(next) = self.known.as_slice().first()
            && next.zero == self.current.zero
        {
            self.current.length = self.current.length.saturating_add(next.length);
            self.known.next();
        }
    }

    /// Moves on by `length` bytes.
    fn pass(&mut self, length: u64) {
        self.at += length;
        let mut left = length;
        while left > 0 {
            let some = left.min(self.current.length);
            left -= some;
            self.current.length -= some;
            if self.current.length == 0 {
                match self.known.next() {
                    Some(next) => {
                        self.current = next;
                        self.join_alike();
                    }
                    // Nothing more is known; the next step asks.
                    None => break,
                }
            }
        }
    }
}

fn steps(source: &End, from: u64, size: u64) -> impl Stream<Item = anyhow::Result<Step>> + '_ {
    let current = Extent { length: 0, zero: false };
    let steps = Steps { source, size, at: from, known: Vec::new().into_iter(), current };
    stream::try_unfold(steps, |mut steps| async move { Ok(steps.next().await?.map(|step| (step, steps))) })
}

/// Carries out a step; without a target it only reads.
async fn carry_out(step: Step, source: &End, target: Option<&Target>) -> anyhow::Result<Done> {
    match step {
        Step::Zeroes { at, length } => {
            if let Some(target) = target {
                target.zero(at, length).await?;
            }
            Ok(Done::Zeroes { length })
        }
        Step::Piece { at, length } => {
            let granularity = target.map_or(super::piece::ZERO_LEN_MIN, Target::granularity);
            let read: Piece = source.piece(at, length, granularity).await?;
            let (piece, end, written_bytes) = (read.hash, read.end, read.data_bytes());
            if let Some(target) = target {
                target.write(at, read).await?;
            }
            Ok(Done::Piece { piece, end, read_bytes: length, written_bytes })
        }
    }
}

/// Copies the bytes of `source` from `progress` up to `size` to `target`, and flushes it; without a target it only reads.
/// SIGINT and SIGTERM end it in order: what is done is flushed and noted first.
///
/// # Errors
/// What an end says, or that it was interrupted. What was done until then was noted, as far as the target still answers.
pub(super) async fn copy(
    source: &End,
    target: Option<&Target>,
    size: u64,
    mut progress: Progress,
    observer: &mut impl Observer,
) -> anyhow::Result<Progress> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let work = steps(source, progress.position_bytes, size)
        .map(|step| async { carry_out(step?, source, target).await })
        .buffered(PIECES_IN_FLIGHT_MAX);
    let mut work = std::pin::pin!(work);
    let flushed = |progress: Progress| {
        async move {
            if let Some(target) = target {
                target.flush().await?;
            }
            anyhow::Ok(progress)
        }
        .boxed()
    };
    let checkpoint_bytes = target.map_or(u64::MAX, Target::checkpoint_bytes);
    // What is durable at the target, while that becomes so.
    let mut checkpoint = None;
    let mut noted = progress;
    let outcome = loop {
        tokio::select! {
            _ = interrupt.recv() => break Err(anyhow!("it was interrupted")),
            _ = terminate.recv() => break Err(anyhow!("it was interrupted")),
            Some(flushed) = OptionFuture::from(checkpoint.as_mut()) => {
                checkpoint = None;
                // What was to become durable may be lost. What was noted before is not, and nothing more is.
                observer.durable(&flushed?)?;
            }
            done = work.try_next() => match done {
                Ok(Some(done)) => {
                    advance(&mut progress, done);
                    observer.at(&progress);
                    if checkpoint.is_none() && progress.read_bytes - noted.read_bytes >= checkpoint_bytes {
                        noted = progress;
                        checkpoint = Some(flushed(progress));
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        }
    };
    // The last checkpoint, also of what was done before a failure. One that is under way has its say first: given up, it
    // would take an error along that the next one is not told.
    let last = async {
        if let Some(checkpoint) = checkpoint {
            checkpoint.await?;
        }
        flushed(progress).await
    };
    // Who interrupts again does not want to wait for it.
    let last = tokio::select! {
        flushed = last => flushed,
        _ = interrupt.recv() => Err(anyhow!("it was interrupted")),
        _ = terminate.recv() => Err(anyhow!("it was interrupted")),
    };
    match (outcome, last) {
        (Ok(()), last) => observer.durable(&last?)?,
        // When the target does not answer any more, the failure is what counts.
        (Err(error), Err(_)) => return Err(error),
        (Err(error), Ok(durable)) => {
            return Err(match observer.durable(&durable) {
                Ok(()) => error,
                Err(unnoted) => error.context(format!("{unnoted:#}; before that")),
            });
        }
    }
    if progress.position_bytes != size {
        bail!("it ended at {} of {size} bytes", progress.position_bytes);
    }
    Ok(progress)
}

fn advance(progress: &mut Progress, done: Done) {
    match done {
        Done::Piece { piece, end, read_bytes, written_bytes } => {
            progress.checksum.push(&piece);
            progress.position_bytes = end;
            progress.read_bytes += read_bytes;
            progress.written_bytes += written_bytes;
        }
        Done::Zeroes { length } => {
            progress.checksum.push_zeroes(length);
            progress.position_bytes += length;
        }
    }
}

#[cfg(test)]
mod tests;
