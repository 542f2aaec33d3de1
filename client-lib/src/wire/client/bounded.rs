//! What requests of clients hold of any number, read up to their bounds and no further: nothing beyond them takes memory or time. The encoding is
//! that of the plain types.

use std::fmt;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::{ATTACH_SESSIONS_MAX, OPEN_NAME_LEN_MAX};

/// Up to [`ATTACH_SESSIONS_MAX`] sessions.
pub(super) fn sessions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    deserializer.deserialize_seq(Sessions)
}

/// A name of up to [`OPEN_NAME_LEN_MAX`] bytes.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    deserializer.deserialize_str(Name)
}

struct Sessions;

impl<'de> Visitor<'de> for Sessions {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {ATTACH_SESSIONS_MAX} sessions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<u64>, A::Error> {
        let mut sessions = Vec::new();
        while let Some(session) = sequence.next_element()? {
            if sessions.len() == ATTACH_SESSIONS_MAX {
                return Err(A::Error::invalid_length(sessions.len() + 1, &self));
            }
            sessions.push(session);
        }
        Ok(sessions)
    }
}

struct Name;

impl Visitor<'_> for Name {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a name of at most {OPEN_NAME_LEN_MAX} bytes")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<String, E> {
        if name.len() > OPEN_NAME_LEN_MAX {
            return Err(E::invalid_length(name.len(), &self));
        }
        Ok(name.to_owned())
    }
}
