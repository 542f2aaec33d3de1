//! The one place where a request is accepted or refused.
//!
//! Judges a request header against what was negotiated: command, flags, range, alignment, payload. Pure. What
//! comes out as a [`Request`] keeps every promise that [`crate::export::Session`] makes to its implementers; whether
//! the export then carries it out (owner, space) is not decided here.

use crate::contexts::Contexts;
use crate::export::{ExportInfo, ZeroOptions};
use crate::proto::constants::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE,
    CMD_FLAG_PAYLOAD_LEN, CMD_FLAG_REQ_ONE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, EINVAL, ENOSPC,
    ENOTSUP, EPERM,
};
use crate::proto::request::{RequestHeader, status_filter};
use crate::proto::style::Style;

/// What the requests of one connection are judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constraints {
    /// Size of the export in bytes; may grow.
    pub size: u64,
    /// Whether every write is refused.
    pub read_only: bool,
    /// Smallest unit in bytes, a power of two.
    pub block_size_min: u32,
    /// Largest payload in bytes.
    pub payload_max: u32,
    /// Which requests and replies were negotiated.
    pub style: Style,
    /// The metadata contexts that were negotiated for this export.
    pub contexts: Contexts,
}

impl Constraints {
    /// The constraints of `info`, before anything was negotiated.
    #[must_use]
    pub fn of(info: &ExportInfo) -> Constraints {
        Constraints {
            size: info.size,
            read_only: info.read_only,
            block_size_min: info.block_size_min,
            payload_max: info.block_size_max,
            style: Style::Simple,
            contexts: Contexts::default(),
        }
    }
}

/// A request that may be carried out. Lengths are above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
        /// The whole answer in one chunk.
        one_chunk: bool,
    },
    /// Write the payload that follows the header.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
        /// Durable before the reply.
        fua: bool,
    },
    /// Make earlier writes durable.
    Flush,
    /// Forget a range.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Durable before the reply.
        fua: bool,
    },
    /// Write zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// How.
        options: ZeroOptions,
    },
    /// Bring a range near.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Tell what metadata contexts say.
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// One extent of each only, not longer than asked.
        one_extent: bool,
        /// Which, at least one.
        contexts: Contexts,
    },
    /// The range and the contexts of a BLOCK_STATUS are in its payload: judge that with [`validate_filter`].
    FilteredStatus {
        /// Bytes of payload.
        payload: usize,
    },
    /// An empty range: nothing to do but to answer.
    Nothing,
    /// Finish what is in flight and close.
    Disconnect,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The protocol's number.
    pub errno: u32,
    /// The reason, for the error chunk and the log.
    pub reason: &'static str,
}

const fn refusal(errno: u32, reason: &'static str) -> Refusal {
    Refusal { errno, reason }
}

/// The range reaches past the end of the export. The caller may look whether the export has grown and ask again.
pub const READ_BEYOND_END: Refusal = refusal(EINVAL, "the range lies beyond the end of the export");
/// As [`READ_BEYOND_END`], for writes.
pub const WRITE_BEYOND_END: Refusal = refusal(ENOSPC, "the range to write lies beyond the end of the export");

/// Judges `header`.
///
/// # Errors
/// The number and the reason to answer with. The payload of a refused request is still on its way.
pub fn validate(header: &RequestHeader, constraints: &Constraints) -> Result<Request, Refusal> {
    let &RequestHeader { flags, command, offset, length, .. } = header;
    let extended = constraints.style == Style::Extended;
    let allowed_flags = match command {
        // "Command flags": DF is for reads, and only after structured replies were negotiated.
        CMD_READ if constraints.style.is_chunked() => CMD_FLAG_DF,
        CMD_WRITE_ZEROES => CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
        CMD_BLOCK_STATUS if extended => CMD_FLAG_REQ_ONE | CMD_FLAG_PAYLOAD_LEN,
        CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE,
        // "Command flags", PAYLOAD_LEN: with extended headers it is on every write (and not missed where it is not, as its payload
        // is there all the same), and on what takes a payload by choice.
        CMD_WRITE if extended => CMD_FLAG_PAYLOAD_LEN,
        // "Request types", NBD_CMD_CACHE: it has no flags, and unknown ones must be refused.
        CMD_READ | CMD_WRITE | CMD_FLUSH | CMD_TRIM | CMD_CACHE => 0,
        // "Request types", NBD_CMD_DISC: has no reply, so there is nothing to refuse it with.
        CMD_DISC => return Ok(Request::Disconnect),
        // "Error values": "The server SHOULD return NBD_EINVAL if it receives an unknown command."
        _ => return Err(refusal(EINVAL, "the command is not known")),
    };
    // "Command flags": where FUA was advertised it is valid on every command, and without meaning on those that do not write.
    if flags & !(allowed_flags | CMD_FLAG_FUA) != 0 {
        // "Error values": EINVAL for an unknown command flag.
        return Err(refusal(EINVAL, "a flag is not known for this command"));
    }
    if command == CMD_FLUSH {
        // "Request types", NBD_CMD_FLUSH: length and offset are reserved and must be zero.
        return if offset == 0 && length == 0 {
            Ok(Request::Flush)
        } else {
            Err(refusal(EINVAL, "a flush has neither offset nor length"))
        };
    }
    if command == CMD_BLOCK_STATUS && flags & CMD_FLAG_PAYLOAD_LEN != 0 {
        // A longer list than there are contexts repeats one or names an unknown one.
        let longest = FILTER_LEN_MIN + 4 * constraints.contexts.len() as u64;
        return match usize::try_from(length) {
            Ok(payload) if (FILTER_LEN_MIN..=longest).contains(&length) => Ok(Request::FilteredStatus { payload }),
            _ => Err(WRONG_FILTER),
        };
    }

    let writes = matches!(command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
    // "Error values": EPERM for a write or trim of a read-only export.
    if writes && constraints.read_only {
        return Err(refusal(EPERM, "the export is read-only"));
    }
    // "Block size constraints": the maximum limits payloads. Commands without payload may cover more.
    if matches!(command, CMD_READ | CMD_WRITE) && length > u64::from(constraints.payload_max) {
        return Err(refusal(EINVAL, "the length is over the advertised maximum"));
    }
    // "Block size constraints": offset and length are multiples of the minimum. Before the range, so that
    // a range that is wrong in both ways has one answer whatever the size.
    let mask = u64::from(constraints.block_size_min.max(1)) - 1;
    if (offset | length) & mask != 0 {
        return Err(refusal(EINVAL, "offset or length is not a multiple of the minimum block size"));
    }
    // `>`: a range may end exactly at the end of the export.
    if offset.checked_add(length).is_none_or(|end| end > constraints.size) {
        // "Error values": ENOSPC for writes beyond the end, EINVAL for reads and trims.
        return Err(if matches!(command, CMD_WRITE | CMD_WRITE_ZEROES) { WRITE_BEYOND_END } else { READ_BEYOND_END });
    }
    let fua = flags & CMD_FLAG_FUA != 0;
    // Of reads and writes, whose length is not above the maximum, which has 32 bits.
    let short = length as u32;
    match command {
        CMD_BLOCK_STATUS if constraints.contexts.is_empty() => {
            // "Metadata querying": EINVAL without a selected context.
            Err(refusal(EINVAL, "no metadata context was negotiated for this export, or none is asked for"))
        }
        // "Request types", NBD_CMD_BLOCK_STATUS: the length must not be zero; an answer has at least one extent.
        CMD_BLOCK_STATUS if length == 0 => Err(refusal(EINVAL, "the range is empty")),
        CMD_BLOCK_STATUS => Ok(Request::BlockStatus {
            offset,
            length,
            one_extent: flags & CMD_FLAG_REQ_ONE != 0,
            contexts: constraints.contexts,
        }),
        // "Command flags", FAST_ZERO: NBD_ENOTSUP where zeroing would be no faster than writing. Zeroes are a
        // record of the map unless space must be held for them.
        CMD_WRITE_ZEROES if flags & CMD_FLAG_FAST_ZERO != 0 && flags & CMD_FLAG_NO_HOLE != 0 => {
            Err(refusal(ENOTSUP, "zeroes that must stay allocated cannot be written fast"))
        }
        // The effect of an empty read or write is unspecified ("Request types"); doing nothing suits every client.
        _ if length == 0 => Ok(Request::Nothing),
        CMD_READ => Ok(Request::Read { offset, length: short, one_chunk: flags & CMD_FLAG_DF != 0 }),
        CMD_WRITE => Ok(Request::Write { offset, length: short, fua }),
        CMD_TRIM => Ok(Request::Trim { offset, length, fua }),
        CMD_CACHE => Ok(Request::Cache { offset, length }),
        // All other commands were refused above.
        _ => Ok(Request::WriteZeroes {
            offset,
            length,
            options: ZeroOptions { fua, no_hole: flags & CMD_FLAG_NO_HOLE != 0 },
        }),
    }
}

/// The bytes of a filter before its list ("Request types", `NBD_CMD_BLOCK_STATUS`).
const FILTER_LEN_MIN: u64 = 8;
const WRONG_FILTER: Refusal = refusal(
    EINVAL,
    "the payload of a query for block status does not list metadata contexts that were negotiated, each once",
);

/// Judges a BLOCK_STATUS whose range and contexts are in its `payload`, after [`validate`] has asked for that.
///
/// # Errors
/// The number and the reason to answer with. The payload was consumed.
pub fn validate_filter(header: &RequestHeader, payload: &[u8], constraints: &Constraints) -> Result<Request, Refusal> {
    // "Request types", NBD_CMD_BLOCK_STATUS: EINVAL for numbers that are repeated or unknown.
    let (length, ids) = status_filter(payload).map_err(|_| WRONG_FILTER)?;
    let contexts = constraints.contexts.filtered(&ids).ok_or(WRONG_FILTER)?;
    let header = RequestHeader { flags: header.flags & !CMD_FLAG_PAYLOAD_LEN, length, ..*header };
    validate(&header, &Constraints { contexts, ..*constraints })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::contexts::Context;

    const SIZE: u64 = 1 << 20;
    const MAX: u32 = 64 << 10;

    fn constraints() -> Constraints {
        Constraints {
            size: SIZE,
            read_only: false,
            block_size_min: 512,
            payload_max: MAX,
            style: Style::Structured,
            contexts: Contexts::of(&Context::ALL),
        }
    }

    fn header(command: u16, flags: u16, offset: u64, length: u64) -> RequestHeader {
        RequestHeader { flags, command, cookie: 1, offset, length }
    }

    fn errno(command: u16, flags: u16, offset: u64, length: u64, constraints: &Constraints) -> u32 {
        validate(&header(command, flags, offset, length), constraints).map_or_else(|refusal| refusal.errno, |_| 0)
    }

    #[test]
    fn requests_are_judged_as_the_document_says() {
        let all = constraints();
        for (command, flags, offset, length, expected) in [
            (CMD_READ, 0, 0, 512, 0),
            (CMD_READ, 0, SIZE - 512, 512, 0),
            (CMD_READ, 0, SIZE, 512, EINVAL),
            (CMD_READ, 0, SIZE, 0, 0),
            (CMD_READ, 0, u64::MAX - 511, 512, EINVAL),
            (CMD_READ, 0, 1, 512, EINVAL),
            (CMD_READ, 0, 0, 511, EINVAL),
            (CMD_READ, 0, 0, u64::from(MAX), 0),
            (CMD_READ, 0, 0, u64::from(MAX) + 512, EINVAL),
            (CMD_READ, CMD_FLAG_FUA | CMD_FLAG_DF, 0, 512, 0),
            (CMD_READ, CMD_FLAG_NO_HOLE, 0, 512, EINVAL),
            (CMD_WRITE, CMD_FLAG_FUA, 0, 512, 0),
            (CMD_WRITE, CMD_FLAG_DF, 0, 512, EINVAL),
            (CMD_WRITE, 0, SIZE, 512, ENOSPC),
            (CMD_WRITE, 0, 0, u64::from(MAX) + 512, EINVAL),
            (CMD_FLUSH, 0, 0, 0, 0),
            (CMD_FLUSH, 0, 512, 0, EINVAL),
            (CMD_FLUSH, 0, 0, 512, EINVAL),
            (CMD_TRIM, CMD_FLAG_FUA, 0, SIZE, 0),
            (CMD_TRIM, 0, 512, SIZE, EINVAL),
            (CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 0, SIZE, 0),
            (CMD_WRITE_ZEROES, CMD_FLAG_FAST_ZERO, 0, SIZE, 0),
            (CMD_WRITE_ZEROES, CMD_FLAG_FAST_ZERO | CMD_FLAG_NO_HOLE, 0, 512, ENOTSUP),
            (CMD_WRITE_ZEROES, 0, 512, SIZE, ENOSPC),
            (CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, 0, 512, 0),
            (CMD_BLOCK_STATUS, 0, 0, 0, EINVAL),
            (CMD_CACHE, 0, 0, SIZE, 0),
            (CMD_CACHE, CMD_FLAG_NO_HOLE, 0, 512, EINVAL),
            (CMD_CACHE, 0, 512, SIZE, EINVAL),
            (CMD_CACHE, 0, 0, 0, 0),
            (99, 0, 0, 512, EINVAL),
            (CMD_DISC, 0xffff, 7, 7, 0),
        ] {
            assert_eq!(
                errno(command, flags, offset, length, &all),
                expected,
                "command {command} flags {flags:#x} {offset}+{length}"
            );
        }
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        let plain = Constraints { style: Style::Simple, contexts: Contexts::default(), ..constraints() };
        assert_eq!(errno(CMD_READ, CMD_FLAG_DF, 0, 512, &plain), EINVAL);
        assert_eq!(errno(CMD_BLOCK_STATUS, 0, 0, 512, &plain), EINVAL);
    }

    #[test]
    fn with_extended_headers_lengths_have_64_bits_and_payloads_a_flag() {
        let size = 1 << 44;
        let extended = Constraints { style: Style::Extended, size, ..constraints() };
        let payload = CMD_FLAG_PAYLOAD_LEN;
        for (command, flags, offset, length, expected) in [
            (CMD_WRITE, payload, 0, 512, 0),
            (CMD_WRITE, payload | CMD_FLAG_FUA, 0, 512, 0),
            (CMD_WRITE, 0, 0, 512, 0),
            (CMD_READ, payload, 0, 512, EINVAL),
            (CMD_FLUSH, payload, 0, 0, EINVAL),
            (CMD_TRIM, payload, 0, 512, EINVAL),
            (CMD_TRIM, 0, 0, size, 0),
            (CMD_WRITE_ZEROES, 0, 512, size - 512, 0),
            (CMD_WRITE_ZEROES, 0, 512, size, ENOSPC),
            (CMD_BLOCK_STATUS, 0, 0, size, 0),
            (CMD_READ, 0, 0, 1 << 33, EINVAL),
            (CMD_READ, 0, u64::MAX - 511, u64::MAX - 511, EINVAL),
            (CMD_BLOCK_STATUS, payload, 0, 8, 0),
            (CMD_BLOCK_STATUS, payload, 0, 7, EINVAL),
            (CMD_BLOCK_STATUS, payload, 0, 1 << 40, EINVAL),
        ] {
            assert_eq!(errno(command, flags, offset, length, &extended), expected, "{command} {flags:#x} {length}");
        }
        assert_eq!(errno(CMD_WRITE, payload, 0, 512, &constraints()), EINVAL, "a flag of extended headers only");
        assert_eq!(errno(CMD_BLOCK_STATUS, payload, 0, 12, &constraints()), EINVAL);
    }

    #[test]
    fn a_filter_chooses_among_the_negotiated_contexts() {
        let extended = Constraints { style: Style::Extended, ..constraints() };
        let header = header(CMD_BLOCK_STATUS, CMD_FLAG_PAYLOAD_LEN | CMD_FLAG_REQ_ONE, 512, 12);
        let filter = |length: u64, ids: &[u32]| {
            let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
            validate_filter(&header, &[&length.to_be_bytes()[..], &ids].concat(), &extended)
        };
        let contexts = Contexts::of(&[Context::Residency]);
        let expected = Request::BlockStatus { offset: 512, length: 1024, one_extent: true, contexts };
        assert_eq!(filter(1024, &[2]), Ok(expected));
        for (length, ids) in [(1024, &[][..]), (1024, &[9]), (1024, &[1, 1]), (0, &[1]), (SIZE, &[1]), (511, &[1])] {
            assert_eq!(filter(length, ids).map_err(|refusal| refusal.errno), Err(EINVAL), "{length} {ids:?}");
        }
        assert!(validate_filter(&header, &[0; 5], &extended).is_err());
    }

    #[test]
    fn a_read_only_export_refuses_all_that_writes() {
        let read_only = Constraints { read_only: true, ..constraints() };
        assert_eq!(errno(CMD_CACHE, 0, 0, 512, &read_only), 0);
        for command in [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
            assert_eq!(errno(command, 0, 0, 512, &read_only), EPERM);
        }
        assert_eq!(errno(CMD_READ, 0, 0, 512, &read_only), 0);
        assert_eq!(errno(CMD_FLUSH, 0, 0, 0, &read_only), 0);
    }

    proptest! {
        #[test]
        fn an_accepted_range_is_aligned_and_inside(
            flags in 0..64u16, command in 0..9u16, offset in 0..2 * SIZE, length in 0..2 * SIZE, aligned: bool, extended: bool,
        ) {
            let style = if extended { Style::Extended } else { Style::Structured };
            let constraints = Constraints { style, ..constraints() };
            let (offset, length) = if aligned { (offset & !511, length & !511) } else { (offset, length) };
            match validate(&header(command, flags, offset, length), &constraints) {
                Ok(Request::Read { offset, length, .. } | Request::Write { offset, length, .. }) => {
                    prop_assert!(length > 0 && length <= MAX && offset + u64::from(length) <= SIZE);
                    prop_assert!(offset % 512 == 0 && length % 512 == 0);
                }
                Ok(
                    Request::Trim { offset, length, .. }
                    | Request::WriteZeroes { offset, length, .. }
                    | Request::Cache { offset, length }
                    | Request::BlockStatus { offset, length, .. },
                ) => {
                    prop_assert!(length > 0 && offset + length <= SIZE);
                    prop_assert!(offset % 512 == 0 && length % 512 == 0);
                }
                Ok(Request::FilteredStatus { payload }) => {
                    prop_assert!(extended && (8..=8 + 4 * Context::ALL.len()).contains(&payload));
                }
                Ok(Request::Flush | Request::Nothing | Request::Disconnect) => {}
                Err(refusal) => prop_assert!(refusal.errno != 0 && !refusal.reason.is_empty()),
            }
        }
    }
}
