//! From our errors to the protocol's: the one map.
//!
//! A pure table. What is said beside the number (the message of an error chunk, the log line) is for the caller.

use client_lib::ErrorKind;

use crate::proto::constants::{
    EINVAL, EIO, ENOSPC, EPERM, ESHUTDOWN, REP_ERR_POLICY, REP_ERR_SHUTDOWN, REP_ERR_UNKNOWN,
};

/// The error number for a request of the transmission phase that an export failed with `kind`.
///
/// Sections are those of the protocol document; clients act on few numbers, so most kinds are `EIO` and the
/// message tells them apart.
#[must_use]
pub fn of_request(kind: ErrorKind) -> u32 {
    match kind {
        // "Error values": EPERM is "operation not permitted", the number of a write that is not allowed here.
        ErrorKind::NotOwner | ErrorKind::Fenced => EPERM,
        // "Error values": ENOSPC, "no space left on device".
        ErrorKind::OutOfSpace => ENOSPC,
        // "Error values": EINVAL, "invalid argument".
        ErrorKind::InvalidRequest => EINVAL,
        // "Error values" and "Terminating the transmission phase": ESHUTDOWN, "server is in the process of being shut down".
        ErrorKind::Closed => ESHUTDOWN,
        // "Error values": EIO; the protocol has no "try later", and a vanished volume is an I/O error to a disk.
        ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::Busy
        | ErrorKind::Unavailable
        | ErrorKind::Corrupt
        | ErrorKind::Internal => EIO,
        // `ErrorKind` may grow; what we do not know is an I/O error until a row says otherwise.
        _ => EIO,
    }
}

/// The option reply for an export that could not be described or opened because of `kind` ("Option reply types").
#[must_use]
pub fn of_option(kind: ErrorKind) -> u32 {
    match kind {
        // NBD_REP_ERR_UNKNOWN, "the requested export is not available".
        ErrorKind::NotFound => REP_ERR_UNKNOWN,
        // NBD_REP_ERR_SHUTDOWN, "the server is in the process of being shut down".
        ErrorKind::Closed => REP_ERR_SHUTDOWN,
        // NBD_REP_ERR_POLICY, "forbidden by policy"; the nearest to "not now", and the message says what is the matter.
        // A key that cannot be had is one of those (`InvalidRequest`): the export is there.
        ErrorKind::InvalidRequest
        | ErrorKind::AlreadyExists
        | ErrorKind::NotOwner
        | ErrorKind::Fenced
        | ErrorKind::Busy
        | ErrorKind::Unavailable
        | ErrorKind::OutOfSpace
        | ErrorKind::Corrupt
        | ErrorKind::Internal => REP_ERR_POLICY,
        _ => REP_ERR_POLICY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_numbers() {
        for (kind, request, option) in [
            (ErrorKind::InvalidRequest, EINVAL, REP_ERR_POLICY),
            (ErrorKind::NotFound, EIO, REP_ERR_UNKNOWN),
            (ErrorKind::AlreadyExists, EIO, REP_ERR_POLICY),
            (ErrorKind::NotOwner, EPERM, REP_ERR_POLICY),
            (ErrorKind::Fenced, EPERM, REP_ERR_POLICY),
            (ErrorKind::Busy, EIO, REP_ERR_POLICY),
            (ErrorKind::Unavailable, EIO, REP_ERR_POLICY),
            (ErrorKind::OutOfSpace, ENOSPC, REP_ERR_POLICY),
            (ErrorKind::Corrupt, EIO, REP_ERR_POLICY),
            (ErrorKind::Closed, ESHUTDOWN, REP_ERR_SHUTDOWN),
            (ErrorKind::Internal, EIO, REP_ERR_POLICY),
        ] {
            assert_eq!((of_request(kind), of_option(kind)), (request, option), "{kind:?}");
        }
    }
}
