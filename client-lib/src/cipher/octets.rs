//! Bytes of a fixed number that are no secret: hexadecimal digits for people and in JSON, bytes in stored formats.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Error, ErrorKind};

/// So many bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Octets<const LENGTH: usize>([u8; LENGTH]);

impl<const LENGTH: usize> Octets<LENGTH> {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

impl<const LENGTH: usize> From<[u8; LENGTH]> for Octets<LENGTH> {
    fn from(bytes: [u8; LENGTH]) -> Octets<LENGTH> {
        Octets(bytes)
    }
}

impl<const LENGTH: usize> fmt::Display for Octets<LENGTH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const LENGTH: usize> fmt::Debug for Octets<LENGTH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const LENGTH: usize> FromStr for Octets<LENGTH> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Octets<LENGTH>, Error> {
        let wrong = || Error::new(ErrorKind::InvalidRequest, format!("not {} hexadecimal digits", 2 * LENGTH));
        let mut bytes = [0; LENGTH];
        decode_hex(text, &mut bytes).then_some(Octets(bytes)).ok_or_else(wrong)
    }
}

/// Reads hexadecimal digits, two for each byte and no more; whether they were that.
pub(super) fn decode_hex(text: &str, bytes: &mut [u8]) -> bool {
    let nibble = |digit: &u8| char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return false;
    }
    bytes.iter_mut().zip(pairs).all(|(byte, [high, low])| match (nibble(high), nibble(low)) {
        (Some(high), Some(low)) => {
            *byte = high << 4 | low;
            true
        }
        _ => false,
    })
}

impl<const LENGTH: usize> Serialize for Octets<LENGTH> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_bytes(&self.0) }
    }
}

impl<'de, const LENGTH: usize> Deserialize<'de> for Octets<LENGTH> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Octets<LENGTH>, D::Error> {
        struct Read<const LENGTH: usize>;

        impl<const LENGTH: usize> Visitor<'_> for Read<LENGTH> {
            type Value = Octets<LENGTH>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{LENGTH} bytes, as text {} hexadecimal digits", 2 * LENGTH)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                bytes.try_into().map(Octets).map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }

        if deserializer.is_human_readable() {
            deserializer.deserialize_str(Read)
        } else {
            deserializer.deserialize_bytes(Read)
        }
    }
}
