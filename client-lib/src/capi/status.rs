//! How a volume stands, as C has it.

use std::ffi::c_char;

use super::types::{
    HELIO_BLOCK_BYTES, HELIO_CONNECTED, HELIO_FAILED, HELIO_READ_ONLY, HELIO_REQUEST_BYTES_MAX, HELIO_SECTOR_BYTES,
    HELIO_WAITING, Status,
};
use crate::client::{VolumeState, VolumeStatus};

/// How a volume stands, as C has it.
pub(super) fn status(state: &VolumeState, is_read_only: bool) -> Status {
    let (number, reason) = match &state.status {
        VolumeStatus::Connected => (HELIO_CONNECTED, ""),
        VolumeStatus::Waiting(why) => (HELIO_WAITING, why.as_str()),
        VolumeStatus::Failed(why) => (HELIO_FAILED, why.as_str()),
    };
    Status {
        size: size_of::<Status>() as u32,
        state: number,
        flags: if is_read_only { HELIO_READ_ONLY } else { 0 },
        sector_bytes: HELIO_SECTOR_BYTES,
        block_bytes: HELIO_BLOCK_BYTES,
        request_bytes_max: HELIO_REQUEST_BYTES_MAX,
        volume_bytes: state.size,
        epoch: state.epoch.0,
        journal_bytes: state.journal_bytes,
        owner: fitted(state.owner.as_deref().unwrap_or_default()),
        reason: fitted(reason),
    }
}

/// A text with its end, cut at a character where it does not fit.
fn fitted<const LENGTH: usize>(text: &str) -> [c_char; LENGTH] {
    let mut fitted = [0; LENGTH];
    let end = text.floor_char_boundary(LENGTH - 1);
    for (place, byte) in fitted.iter_mut().zip(text.as_bytes()[..end].iter()) {
        *place = *byte as c_char;
    }
    fitted
}
