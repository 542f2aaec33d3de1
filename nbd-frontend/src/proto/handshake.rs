//! The messages of the handshake phase ("Fixed newstyle negotiation", "Option types", "Option reply types").

use super::Malformed;
use super::constants::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, INIT_MAGIC,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, REP_INFO, REP_META_CONTEXT, REP_SERVER, STRING_LEN_MAX,
};

/// Length of the client's flags.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Length of an option before its data: magic 8, option 4, length 4.
pub const OPTION_HEADER_LEN: usize = 16;
/// The zeroes after `EXPORT_NAME`'s answer ("Newstyle negotiation").
pub const EXPORT_NAME_ZEROES: usize = 124;

/// The server's greeting.
#[must_use]
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[0..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..18].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    bytes
}

/// Reads big-endian fields off the front of a message; whatever is missing is [`Malformed`].
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("the option's data is too short"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// A string with its length before it.
    fn string(&mut self) -> Result<&'a str, Malformed> {
        let length = self.u32()? as usize;
        if length > self.0.len() {
            return Err(Malformed("a string is longer than the option's data"));
        }
        let (head, rest) = self.0.split_at(length);
        self.0 = rest;
        string(head)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("the option's data is too long")) }
    }
}

/// Checks a string of the protocol ("Conventions").
///
/// # Errors
/// Over 4096 bytes, not UTF-8, or with a NUL.
pub fn string(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_LEN_MAX {
        return Err(Malformed("a string is longer than 4096 bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed("a string is not UTF-8"))?;
    if text.contains('\0') {
        return Err(Malformed("a string contains a NUL"));
    }
    Ok(text)
}

/// The head of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// One of `OPT_*`, or anything else.
    pub option: u32,
    /// Length of the data that follows, in bytes.
    pub length: u32,
}

impl OptionHeader {
    /// Decodes the header at the start of `bytes`; `None` asks for more bytes.
    ///
    /// # Errors
    /// A wrong magic: the stream is out of step and cannot go on.
    pub fn decode(bytes: &[u8]) -> Result<Option<OptionHeader>, Malformed> {
        let magic = OPTION_MAGIC.to_be_bytes();
        let seen = bytes.len().min(magic.len());
        if bytes[..seen] != magic[..seen] {
            return Err(Malformed("an option does not start with IHAVEOPT"));
        }
        if bytes.len() < OPTION_HEADER_LEN {
            return Ok(None);
        }
        let mut fields = Fields(&bytes[magic.len()..]);
        Ok(Some(OptionHeader { option: fields.u32()?, length: fields.u32()? }))
    }
}

/// The data of `OPT_INFO` and `OPT_GO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export.
    pub name: &'a str,
    /// The details asked for, `INFO_*` or anything else.
    pub requests: Vec<u16>,
}

impl InfoRequest<'_> {
    /// Decodes the whole data of the option.
    ///
    /// # Errors
    /// Lengths that do not add up, or a bad name.
    pub fn decode(data: &[u8]) -> Result<InfoRequest<'_>, Malformed> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = usize::from(fields.u16()?);
        // Checked before anything is allocated: the count is the peer's word.
        if fields.0.len() != 2 * count {
            return Err(Malformed("the number of information requests does not fit the option's length"));
        }
        let requests = (0..count).map(|_| fields.u16()).collect::<Result<_, _>>()?;
        Ok(InfoRequest { name, requests })
    }
}

/// The data of `OPT_LIST_META_CONTEXT` and `OPT_SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContextRequest<'a> {
    /// The export.
    pub name: &'a str,
    /// The queries; none at all lists everything.
    pub queries: Vec<&'a str>,
}

impl MetaContextRequest<'_> {
    /// Decodes the whole data of the option.
    ///
    /// # Errors
    /// Lengths that do not add up, or bad strings.
    pub fn decode(data: &[u8]) -> Result<MetaContextRequest<'_>, Malformed> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = fields.u32()? as usize;
        // A query takes at least its length field; checked before anything is allocated.
        if count > fields.0.len() / 4 {
            return Err(Malformed("the number of queries does not fit the option's length"));
        }
        let queries = (0..count).map(|_| fields.string()).collect::<Result<_, _>>()?;
        fields.end()?;
        Ok(MetaContextRequest { name, queries })
    }
}

/// Appends an option reply with its data.
pub fn option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let length: usize = data.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
    for part in data {
        out.extend_from_slice(part);
    }
}

/// Appends one export of a list.
pub fn rep_server(out: &mut Vec<u8>, option: u32, name: &str, description: &str) {
    let length = (name.len() as u32).to_be_bytes();
    option_reply(out, option, REP_SERVER, &[&length, name.as_bytes(), description.as_bytes()]);
}

/// Appends size and transmission flags.
pub fn info_export(out: &mut Vec<u8>, option: u32, size: u64, flags: u16) {
    option_reply(out, option, REP_INFO, &[&INFO_EXPORT.to_be_bytes(), &size.to_be_bytes(), &flags.to_be_bytes()]);
}

/// Appends the export's canonical name.
pub fn info_name(out: &mut Vec<u8>, option: u32, name: &str) {
    option_reply(out, option, REP_INFO, &[&INFO_NAME.to_be_bytes(), name.as_bytes()]);
}

/// Appends the export's description.
pub fn info_description(out: &mut Vec<u8>, option: u32, description: &str) {
    option_reply(out, option, REP_INFO, &[&INFO_DESCRIPTION.to_be_bytes(), description.as_bytes()]);
}

/// Appends the block size constraints.
pub fn info_block_size(out: &mut Vec<u8>, option: u32, min: u32, preferred: u32, max: u32) {
    let kind = INFO_BLOCK_SIZE.to_be_bytes();
    option_reply(out, option, REP_INFO, &[&kind, &min.to_be_bytes(), &preferred.to_be_bytes(), &max.to_be_bytes()]);
}

/// Appends one metadata context.
pub fn rep_meta_context(out: &mut Vec<u8>, option: u32, id: u32, name: &str) {
    option_reply(out, option, REP_META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
}

/// Appends the answer to `OPT_EXPORT_NAME`.
pub fn export_name_answer(out: &mut Vec<u8>, size: u64, flags: u16, no_zeroes: bool) {
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    if !no_zeroes {
        out.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = OptionHeader::decode(&bytes);
            let _ = InfoRequest::decode(&bytes);
            let _ = MetaContextRequest::decode(&bytes);
        }

        #[test]
        fn requests_read_back_and_every_prefix_is_refused(
            name in "[a-z]{0,8}", requests: Vec<u16>, queries in proptest::collection::vec("[a-z:]{0,8}", 0..5),
        ) {
            let mut info = field(&name);
            info.extend((requests.len() as u16).to_be_bytes());
            info.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
            prop_assert_eq!(InfoRequest::decode(&info), Ok(InfoRequest { name: &name, requests }));
            let mut meta = field(&name);
            meta.extend((queries.len() as u32).to_be_bytes());
            meta.extend(queries.iter().flat_map(|query| field(query)));
            let queries = queries.iter().map(String::as_str).collect();
            prop_assert_eq!(MetaContextRequest::decode(&meta), Ok(MetaContextRequest { name: &name, queries }));
            for cut in 0..info.len() {
                prop_assert!(InfoRequest::decode(&info[..cut]).is_err());
            }
            for cut in 0..meta.len() {
                prop_assert!(MetaContextRequest::decode(&meta[..cut]).is_err());
            }
        }
    }

    #[test]
    fn counts_that_do_not_fit_are_refused_before_allocation() {
        let mut info = field("x");
        info.extend(u16::MAX.to_be_bytes());
        assert!(InfoRequest::decode(&info).is_err());
        let mut meta = field("x");
        meta.extend(u32::MAX.to_be_bytes());
        assert!(MetaContextRequest::decode(&meta).is_err());
        assert!(MetaContextRequest::decode(&u32::MAX.to_be_bytes()).is_err());
    }

    #[test]
    fn strings_are_short_utf8_without_nul() {
        assert_eq!(string(b"disk"), Ok("disk"));
        assert!(string(&[0xff]).is_err());
        assert!(string(b"a\0").is_err());
        assert!(string(&[b'a'; STRING_LEN_MAX]).is_ok());
        assert!(string(&[b'a'; STRING_LEN_MAX + 1]).is_err());
    }

    #[test]
    fn option_headers_wait_for_sixteen_bytes() {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 7, 0, 0, 0, 9]);
        for cut in 0..bytes.len() {
            assert_eq!(OptionHeader::decode(&bytes[..cut]), Ok(None));
        }
        assert_eq!(OptionHeader::decode(&bytes), Ok(Some(OptionHeader { option: 7, length: 9 })));
        assert!(OptionHeader::decode(b"x").is_err());
    }
}
