//! What tells a certificate from every other one.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{hex, sha256};
use crate::error::{Error, ErrorKind};

/// SHA-256 of a certificate; as text 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of this certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Fingerprint {
        Fingerprint(sha256(certificate))
    }
}

impl From<[u8; 32]> for Fingerprint {
    fn from(digest: [u8; 32]) -> Fingerprint {
        Fingerprint(digest)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    /// Takes upper case and the colons of other tools, too.
    fn from_str(text: &str) -> Result<Fingerprint, Error> {
        let wrong = || {
            let what = "is no fingerprint: use the 64 hexadecimal digits that `helio cluster client list` shows";
            Error::new(ErrorKind::InvalidRequest, format!("{text:?} {what}"))
        };
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        let nibble = |digit: &u8| char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let nibbles: Vec<u8> = digits.iter().map(nibble).collect::<Option<_>>().ok_or_else(wrong)?;
        let bytes: Vec<u8> = nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        let is_even = nibbles.len().is_multiple_of(2);
        <[u8; 32]>::try_from(bytes).ok().filter(|_| is_even).map(Fingerprint).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_reads_back_and_what_is_none_is_refused() {
        let fingerprint = Fingerprint(std::array::from_fn(|index| index as u8 * 7));
        let text = fingerprint.to_string();
        assert_eq!(text.parse::<Fingerprint>().expect("reads back"), fingerprint);
        let pairs: Vec<&str> = (0..64).step_by(2).map(|at| &text[at..at + 2]).collect();
        assert_eq!(pairs.join(":").to_uppercase().parse::<Fingerprint>().expect("as openssl writes it"), fingerprint);
        for odd in ["", "00", &text[1..], &format!("{text}0"), &format!("{text}00"), &text.replace('0', "g")] {
            assert!(odd.parse::<Fingerprint>().is_err(), "{odd:?}");
        }
    }
}
