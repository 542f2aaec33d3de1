//! What may be asked of a volume, once for calls that block and for requests with callbacks.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::failure::Failure;
use super::memory::{Landing, Source};
use super::types::HELIO_FUA;
use crate::client::Volume;
use crate::error::{Error, ErrorKind};
use crate::geometry::{IO_SIZE_MAX, SECTOR_SIZE};
use crate::read_part::ReadPart;

/// Bytes of reads and writes of a volume that are carried out at a time, and held in memory for that; more wait. What is acked and
/// not durable yet is held beside that, by the volume's journal.
const UNDER_WAY_MAX: u32 = 2 * IO_SIZE_MAX;

/// Room for the bytes of reads and writes that are carried out.
#[derive(Debug)]
pub(super) struct Budget(Semaphore);

impl Budget {
    pub(super) fn new() -> Budget {
        Budget(Semaphore::new((UNDER_WAY_MAX / SECTOR_SIZE) as usize))
    }

    /// Waits for room for at most [`IO_SIZE_MAX`] bytes, taken until the permit is dropped.
    async fn room(&self, bytes: u64) -> Result<SemaphorePermit<'_>, Error> {
        let sectors = (bytes / u64::from(SECTOR_SIZE)) as u32;
        self.0
            .acquire_many(sectors)
            .await
            .map_err(|error| Error::new(ErrorKind::Closed, "no room any more").caused_by(error))
    }
}

/// An operation with the memory that it needs.
#[derive(Debug)]
pub(super) enum Operation {
    /// Read from an offset.
    Read(u64, Landing),
    /// Write to an offset; durable when done, if so.
    Write(u64, Source, bool),
    /// Zero so many bytes at an offset; durable when done, if so.
    Zero(u64, u64, bool),
    /// Make durable what was acked.
    Flush,
    /// Have the owner fetch so many bytes at an offset.
    Cache(u64, u64),
}

impl Operation {
    /// Carries it out. Nothing of the caller's memory is touched once this is done or dropped.
    pub(super) async fn carry_out(self, volume: &Volume, budget: &Budget) -> Result<(), Error> {
        match self {
            Operation::Read(offset, landing) => read(volume, budget, offset, landing).await,
            Operation::Write(offset, source, is_durable) => write(volume, budget, offset, source, is_durable).await,
            Operation::Zero(offset, length, is_durable) => {
                require_range(offset, length)?;
                volume.zero(offset, length, is_durable).await
            }
            Operation::Flush => volume.flush().await,
            Operation::Cache(offset, length) => {
                require_range(offset, length)?;
                volume.cache(offset, length).await
            }
        }
    }
}

/// None of `flags` is another one than those.
pub(super) fn require_flags(flags: u32, allowed: u32) -> Result<(), Failure> {
    if flags & !allowed != 0 {
        return Err(Failure::invalid(format!("unknown flags {:#x}", flags & !allowed)));
    }
    Ok(())
}

/// Whether the flags of a write want it durable.
pub(super) fn is_durable(flags: u32) -> Result<bool, Failure> {
    require_flags(flags, HELIO_FUA)?;
    Ok(flags & HELIO_FUA != 0)
}

/// No part of a longer request is begun that cannot be carried out as a whole.
pub(super) fn require_range(offset: u64, length: u64) -> Result<(), Error> {
    let sector = u64::from(SECTOR_SIZE);
    if offset.is_multiple_of(sector) && length.is_multiple_of(sector) && offset.checked_add(length).is_some() {
        return Ok(());
    }
    let text = format!("{length} bytes at {offset} are not whole sectors of {sector} bytes, or end beyond any volume");
    Err(Error::new(ErrorKind::InvalidRequest, text))
}

async fn read(volume: &Volume, budget: &Budget, offset: u64, mut landing: Landing) -> Result<(), Error> {
    require_range(offset, landing.length() as u64)?;
    let end = offset + landing.length() as u64;
    let mut at = offset;
    while at < end {
        let piece = (end - at).min(u64::from(IO_SIZE_MAX)) as u32;
        let _room = budget.room(u64::from(piece)).await?;
        for part in volume.read_parts(at, piece).await? {
            match part {
                ReadPart::Data(data) => landing.put(&data),
                ReadPart::Zero(length) => landing.put_zeroes(length as usize),
            }
        }
        at += u64::from(piece);
    }
    Ok(())
}

async fn write(
    volume: &Volume,
    budget: &Budget,
    offset: u64,
    mut source: Source,
    is_durable: bool,
) -> Result<(), Error> {
    let length = source.length() as u64;
    require_range(offset, length)?;
    let is_one = length <= u64::from(IO_SIZE_MAX);
    let mut done = 0;
    // Once at least: nothing at all is refused, too, where nothing may be written.
    loop {
        let piece = (length - done).min(u64::from(IO_SIZE_MAX));
        let _room = budget.room(piece).await?;
        let data = source.take(piece as usize);
        volume.write_with(offset + done, data, is_durable && is_one).await?;
        done += piece;
        if done == length {
            break;
        }
    }
    if is_durable && !is_one { volume.flush().await } else { Ok(()) }
}
