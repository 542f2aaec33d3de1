//! What a volume's owner promises beyond its own disk: how durable a flush is, and how far replicas may fall behind; when replicas are
//! sent data, and how much of it a link may take; where copies are to be ([`placement`]).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, NodeId};

pub mod placement;

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

/// When a replica is sent the data of what was written. What is flushed in a class that it counts toward does not wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// As soon as its link lets it.
    #[default]
    Eager,
    /// Only now and then: what is written again before is sent once. What has changed is told at once all the same.
    Lazy {
        /// How long after the last delta was begun the next one is, at least, in milliseconds.
        interval_ms: u64,
    },
}

/// In which order a lazy replica is sent blocks ahead of its next delta.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Order {
    /// What was written first.
    Log,
    /// What is written least.
    LeastVolatile,
    /// What was written first, without what is written often.
    WriteCount,
    /// What is most likely read before it is written again.
    #[default]
    Benefit,
}

impl Order {
    /// All of them.
    pub const ALL: [Order; 4] = [Order::Log, Order::LeastVolatile, Order::WriteCount, Order::Benefit];
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Order::Log => "log",
            Order::LeastVolatile => "least-volatile",
            Order::WriteCount => "write-count",
            Order::Benefit => "benefit",
        })
    }
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(text: &str) -> Result<Order, Error> {
        Order::ALL.into_iter().find(|order| order.to_string() == text).ok_or_else(|| {
            let names = Order::ALL.map(|order| format!("`{order}`")).join(", ");
            Error::new(ErrorKind::InvalidRequest, format!("{text:?} is no order of sending: use one of {names}"))
        })
    }
}

/// How a volume is propagated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Propagation {
    /// To the replicas that have no mode of their own.
    pub mode: Mode,
    /// To others.
    pub replicas: BTreeMap<NodeId, Mode>,
    /// What lazy ones are sent first.
    pub order: Order,
}

impl Propagation {
    /// To `replica`.
    #[must_use]
    pub fn of(&self, replica: NodeId) -> Mode {
        self.replicas.get(&replica).copied().unwrap_or(self.mode)
    }
}

/// A time of every day, and what a link may take then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RateWindow {
    /// From this minute of the day on, in UTC.
    pub from_minute: u16,
    /// Until this one, exclusive; one that is not after `from_minute` is on the next day.
    pub to_minute: u16,
    /// As in [`LinkPolicy`].
    pub rate: Option<u64>,
}

impl RateWindow {
    /// Whether a minute of the day is in it.
    #[must_use]
    pub fn contains(&self, minute: u16) -> bool {
        match self.from_minute < self.to_minute {
            true => (self.from_minute..self.to_minute).contains(&minute),
            false => minute >= self.from_minute || minute < self.to_minute,
        }
    }
}

/// How much bulk data a link may take. Manifests, flushes, pulls and what guests do at other nodes are not held up by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LinkPolicy {
    /// Bytes per second; `None` is as many as come, 0 is none.
    pub rate: Option<u64>,
    /// Other rates at times of the day; the first that fits counts.
    pub windows: Vec<RateWindow>,
}

/// A minute of the day, written as `HH:MM`.
///
/// # Errors
/// `InvalidRequest` for anything else; `24:00` is the end of the day.
pub fn parse_minute(text: &str) -> Result<u16, Error> {
    let two = |part: &str| (part.len() == 2).then(|| part.parse::<u16>().ok()).flatten();
    let parts = text.split_once(':').and_then(|(hours, minutes)| Some((two(hours)?, two(minutes)?)));
    match parts {
        Some((24, 0)) => Ok(0),
        Some((hours, minutes)) if hours < 24 && minutes < 60 => Ok(hours * 60 + minutes),
        _ => Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("{text:?} is no time of the day: write it as 22:00, in UTC"),
        )),
    }
}

/// A minute of the day as `HH:MM`.
#[must_use]
pub fn minute_text(minute: u16) -> String {
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

/// Most windows of a link.
pub const WINDOWS_MAX: usize = 24;

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
    fn minutes_read_back_as_they_are_written_and_windows_go_over_midnight() {
        for (text, minute) in [("00:00", 0), ("06:05", 365), ("23:59", 1439)] {
            assert_eq!(parse_minute(text).expect("reads"), minute);
            assert_eq!(minute_text(minute), text);
        }
        assert_eq!(parse_minute("24:00").expect("reads"), 0);
        for text in ["", "6:00", "24:01", "12:60", "12", "ab:cd", "-1:00"] {
            assert!(parse_minute(text).is_err(), "{text}");
        }
        let window = |from_minute, to_minute| RateWindow { from_minute, to_minute, rate: None };
        assert!(window(60, 120).contains(60) && !window(60, 120).contains(120));
        assert!(window(120, 60).contains(1439) && window(120, 60).contains(0) && !window(120, 60).contains(60));
        assert!(window(5, 5).contains(4), "a whole day");
    }

    #[test]
    fn orders_read_back_as_they_are_written() {
        for order in Order::ALL {
            assert_eq!(order.to_string().parse::<Order>().expect("reads"), order);
        }
        assert!("random".parse::<Order>().expect_err("is none").message().contains("`least-volatile`"));
    }

    #[test]
    fn what_is_no_class_is_refused_with_those_there_are() {
        for text in ["", "geo", "geo:", "geo:0", "geo:9", "geo:-1", "site:1:1", "local:1", "Geo:1", "planet:1"] {
            let refused = text.parse::<Class>().expect_err(text);
            assert!(refused.message().contains("`site:N`"), "{refused}");
        }
    }
}
