//! What a volume's owner promises beyond its own disk: how durable a flush is, and how far replicas may fall behind.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind};

/// Most other places that a class can ask for: more replicas than a volume sensibly has.
pub const COPIES_MAX: u8 = 8;

/// How long a class may be unmet before a volume degrades, if its policy says so and names no time, in milliseconds.
pub const DEGRADE_AFTER_MS: u64 = 10_000;

/// What FLUSH and FUA wait for. Written as `local`, `site:N` or `geo:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Class {
    /// The owner's own disk.
    #[default]
    Local,
    /// So many other nodes in the owner's provider as well: the loss of as many nodes loses nothing that was flushed.
    Site(u8),
    /// Nodes in so many other providers as well: the loss of as many providers loses nothing that was flushed.
    Geo(u8),
}

impl Class {
    /// How many copies there are besides one.
    #[must_use]
    pub fn others(self) -> usize {
        match self {
            Class::Local => 0,
            Class::Site(others) | Class::Geo(others) => usize::from(others),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Class::Local => f.write_str("local"),
            Class::Site(others) => write!(f, "site:{others}"),
            Class::Geo(others) => write!(f, "geo:{others}"),
        }
    }
}

impl FromStr for Class {
    type Err = Error;

    fn from_str(text: &str) -> Result<Class, Error> {
        let wrong = || {
            Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "{text:?} is no durability class: use `local`, `site:N` (N other nodes at the owner's provider) or `geo:N` (N \
                     other providers), with N from 1 to {COPIES_MAX}"
                ),
            )
        };
        let (class, others) = match text.split_once(':') {
            None if text == "local" => return Ok(Class::Local),
            None => return Err(wrong()),
            Some(parts) => parts,
        };
        let others: u8 = others.parse().map_err(|_| wrong())?;
        match class {
            _ if others == 0 || others > COPIES_MAX => Err(wrong()),
            "site" => Ok(Class::Site(others)),
            "geo" => Ok(Class::Geo(others)),
            _ => Err(wrong()),
        }
    }
}

/// What happens while a class cannot be met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unmet {
    /// FLUSH and FUA wait for as long as it takes.
    #[default]
    Block,
    /// When they have waited for so long they are answered as in class `local`, until the replicas have caught up.
    Degrade {
        /// How long, in milliseconds.
        after_ms: u64,
    },
}

/// A volume's class, and what happens while it cannot be met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Durability {
    /// The class.
    pub class: Class,
    /// What happens while it cannot be met.
    pub unmet: Unmet,
}

/// What happens when a volume's replicas are further behind than they may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RpoAction {
    /// It is told.
    #[default]
    Alarm,
    /// It is told, and writes are slowed so that the lag comes back to the target.
    Throttle,
}

/// How far the best replica of a volume may be behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rpo {
    /// The age of the oldest write that it lacks, in milliseconds.
    pub target_ms: u64,
    /// What happens beyond that.
    pub action: RpoAction,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_read_back_as_they_are_written() {
        for class in [Class::Local, Class::Site(1), Class::Geo(1), Class::Geo(COPIES_MAX)] {
            assert_eq!(class.to_string().parse::<Class>().expect("reads"), class);
        }
    }

    #[test]
    fn what_is_no_class_is_refused_with_those_there_are() {
        for text in ["", "geo", "geo:", "geo:0", "geo:9", "geo:-1", "site:1:1", "local:1", "Geo:1", "planet:1"] {
            let refused = text.parse::<Class>().expect_err(text);
            assert!(refused.message().contains("`site:N`"), "{refused}");
        }
    }
}
