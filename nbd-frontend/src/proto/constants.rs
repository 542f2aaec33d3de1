//! The protocol's numbers, named as in the protocol document without the `NBD_` prefix.
//!
//! Every group names the section that defines it. What the EXTENDED_HEADERS extension defines is in the document's branch
//! `extension-ext-header`, under the same section names.

// "Newstyle negotiation"
/// `NBDMAGIC`, the first eight bytes from the server.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the second eight bytes, and the start of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
// "Fixed newstyle negotiation"
/// Start of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
// "Request message", "Simple reply message", "Structured reply chunk message"
/// Start of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of every structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
// "Request message" and "Extended reply chunk message" of the EXTENDED_HEADERS extension
/// Start of every extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of every extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

// "Handshake flags"
/// The server speaks fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// The server can leave out the 124 zeroes after `EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

// "Client flags"
/// The client speaks fixed newstyle.
pub const FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// The client wants the 124 zeroes left out.
pub const FLAG_C_NO_ZEROES: u32 = 1 << 1;

// "Transmission flags"
/// Always set.
pub const FLAG_HAS_FLAGS: u16 = 1 << 0;
/// Writes are refused.
pub const FLAG_READ_ONLY: u16 = 1 << 1;
/// `FLUSH` is understood.
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// The FUA flag is understood.
pub const FLAG_SEND_FUA: u16 = 1 << 3;
/// `TRIM` is understood.
pub const FLAG_SEND_TRIM: u16 = 1 << 5;
/// `WRITE_ZEROES` is understood.
pub const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// The DF flag is understood; only with structured replies.
pub const FLAG_SEND_DF: u16 = 1 << 7;
/// A flush on one connection covers all, so a client may open several.
pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// `CACHE` is understood.
pub const FLAG_SEND_CACHE: u16 = 1 << 10;
/// The FAST_ZERO flag is understood.
pub const FLAG_SEND_FAST_ZERO: u16 = 1 << 11;
/// `BLOCK_STATUS` may carry a list of contexts; only with extended headers.
pub const FLAG_BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

// "Option types"
/// Choose an export and transmit; errors close the connection.
pub const OPT_EXPORT_NAME: u32 = 1;
/// End the handshake.
pub const OPT_ABORT: u32 = 2;
/// List the exports.
pub const OPT_LIST: u32 = 3;
/// Begin TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Details of an export.
pub const OPT_INFO: u32 = 6;
/// Details of an export, and transmit.
pub const OPT_GO: u32 = 7;
/// Use structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// List the metadata contexts of an export.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Choose the metadata contexts of an export.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// Use extended requests and replies.
pub const OPT_EXTENDED_HEADERS: u32 = 11;

// "Option reply types"
/// Done.
pub const REP_ACK: u32 = 1;
/// One export of a list.
pub const REP_SERVER: u32 = 2;
/// One detail of an export.
pub const REP_INFO: u32 = 3;
/// One metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// The option is not known.
pub const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// The server does not allow it.
pub const REP_ERR_POLICY: u32 = (1 << 31) + 2;
/// The option's data is malformed, or the option does not fit the state.
pub const REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// The server demands TLS first.
pub const REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
/// No such export.
pub const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// The server is shutting down.
pub const REP_ERR_SHUTDOWN: u32 = (1 << 31) + 7;
/// The option's data is too long.
pub const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;
/// Extended headers are in use, or would be needed.
pub const REP_ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;

// "Option reply types", NBD_REP_INFO
/// Size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// The export's name.
pub const INFO_NAME: u16 = 1;
/// The export's description.
pub const INFO_DESCRIPTION: u16 = 2;
/// The block size constraints.
pub const INFO_BLOCK_SIZE: u16 = 3;

// "Request types"
/// Read.
pub const CMD_READ: u16 = 0;
/// Write.
pub const CMD_WRITE: u16 = 1;
/// Disconnect; has no reply.
pub const CMD_DISC: u16 = 2;
/// Make writes durable.
pub const CMD_FLUSH: u16 = 3;
/// Tell that data is not needed.
pub const CMD_TRIM: u16 = 4;
/// Bring a range near.
pub const CMD_CACHE: u16 = 5;
/// Write zeroes without sending them.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Query metadata contexts.
pub const CMD_BLOCK_STATUS: u16 = 7;

// "Command flags"
/// Durable before the reply.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
/// Leave no hole where zeroes are written.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Answer a read in one chunk.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// Answer with one extent only.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Fail rather than write zeroes slowly.
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;
/// The length is that of a payload; only with extended headers.
pub const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

// "Structured reply flags"
/// The last chunk of a reply.
pub const REPLY_FLAG_DONE: u16 = 1 << 0;

// "Structured reply types"
/// No content.
pub const REPLY_TYPE_NONE: u16 = 0;
/// Data at an offset.
pub const REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// Zeroes at an offset.
pub const REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/// Extents of one metadata context.
pub const REPLY_TYPE_BLOCK_STATUS: u16 = 5;
/// Extents of one metadata context, with lengths of 64 bits; only with extended headers.
pub const REPLY_TYPE_BLOCK_STATUS_EXT: u16 = 6;
/// The request failed.
pub const REPLY_TYPE_ERROR: u16 = (1 << 15) + 1;

// "Error values"
/// Operation not permitted.
pub const EPERM: u32 = 1;
/// Input/output error.
pub const EIO: u32 = 5;
/// Invalid argument.
pub const EINVAL: u32 = 22;
/// No space left.
pub const ENOSPC: u32 = 28;
/// Operation not supported.
pub const ENOTSUP: u32 = 95;
/// The server is shutting down.
pub const ESHUTDOWN: u32 = 108;

// "`base:allocation` metadata context"
/// The extent is not allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// The extent reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

// Our own `helio:residency` metadata context (docs/nbd-support.md)
/// The newest version of the extent that this node knows of is elsewhere: a read fetches it.
pub const RESIDENCY_STALE: u32 = 1 << 0;
/// The extent reads as zeroes: there is nothing to fetch.
pub const RESIDENCY_ZERO: u32 = 1 << 1;

/// The longest string of the protocol, in bytes ("Conventions"): longer names are refused.
pub const STRING_LEN_MAX: usize = 4096;
/// The largest minimum block size a server may advertise ("Block size constraints").
pub const BLOCK_SIZE_MIN_MAX: u32 = 1 << 16;
/// The payload every server should accept and clients assume ("Block size constraints").
pub const PAYLOAD_CUSTOMARY: u32 = 1 << 25;
