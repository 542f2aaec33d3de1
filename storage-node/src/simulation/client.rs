//! What tests of the simulation do as clients of a volume, a block at a time.

use bytes::Bytes;
use client_lib::{Error, ReadPart};
use nbd_frontend::export::Session;

pub(super) const BLOCK: u32 = 4096;

/// A block of this byte.
pub(super) fn block(fill: u8) -> Bytes {
    Bytes::from(vec![fill; BLOCK as usize])
}

/// What the block `index` begins with.
pub(super) async fn first_byte(session: &dyn Session, index: u64) -> Result<u8, Error> {
    let parts = session.read(index * u64::from(BLOCK), BLOCK).await?;
    Ok(match parts.first().expect("there is a part") {
        ReadPart::Data(data) => data[0],
        _ => 0,
    })
}
