//! What a node tells monitoring: the families of metrics, and the text that they make.
//!
//! Owns names, units and meanings ([`families`], of which `docs/metrics.md` is written), how the plain numbers of a node
//! ([`figures`]) become samples ([`fill`]), and how those are written down ([`exposition`], the only user of `prometheus-client`).
//! Counts nothing itself: every module counts what is its own and gives its numbers as a plain struct, which is read when somebody
//! scrapes. So nothing here costs anything while nobody does, and nothing outside knows this module but who gathers the numbers.

pub mod exposition;
pub mod families;
pub mod figures;
pub mod fill;
pub mod process;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

/// What precedes every name.
pub const PREFIX: &str = "helio";

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, and begins anew with the process.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts in buckets.
    Histogram,
}

/// What a metric is measured in; base units only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A count of what the name says, or 1 for yes and 0 for no.
    Number,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Bytes in a second.
    BytesPerSecond,
}

impl Unit {
    /// As it ends a name.
    #[must_use]
    pub fn suffix(self) -> Option<&'static str> {
        match self {
            Unit::Number => None,
            Unit::Seconds => Some("seconds"),
            Unit::Bytes => Some("bytes"),
            Unit::BytesPerSecond => Some("bytes_per_second"),
        }
    }
}

/// Metrics of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Without the prefix, the unit, and what a counter ends with.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it is measured in.
    pub unit: Unit,
    /// What tells its samples apart.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

impl Family {
    /// The whole name as it is scraped; of a histogram without what its parts end with.
    #[must_use]
    pub fn full_name(&self) -> String {
        let unit = self.unit.suffix().map(|unit| format!("_{unit}")).unwrap_or_default();
        let total = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{PREFIX}_{}{unit}{total}", self.name)
    }
}

/// The value of a sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// Any number.
    Real(f64),
    /// How many there are in each bucket, each for itself, by its upper bound, and the sum of all. The last bound is infinite.
    Buckets {
        /// The buckets.
        buckets: Vec<(f64, u64)>,
        /// The sum.
        sum: f64,
    },
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Whole(number)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Value {
        Value::Whole(u64::from(yes))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::Real(number)
    }
}

impl From<std::time::Duration> for Value {
    fn from(duration: std::time::Duration) -> Value {
        Value::Real(duration.as_secs_f64())
    }
}

/// A value, and the values of its family's labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// As many as the family has labels.
    pub labels: Vec<String>,
    /// What was measured.
    pub value: Value,
}

/// Everything that is told at one moment.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// The samples of each of [`families::ALL`].
    samples: Vec<Vec<Sample>>,
}

impl Default for Sheet {
    fn default() -> Sheet {
        Sheet { samples: vec![Vec::new(); families::ALL.len()] }
    }
}

impl Sheet {
    /// Adds a sample.
    ///
    /// # Panics
    /// When the labels are not as many as the family has.
    pub fn put(&mut self, family: families::Id, labels: &[&str], value: impl Into<Value>) {
        let known = families::ALL[family as usize].labels;
        assert_eq!(labels.len(), known.len(), "{family:?} has the labels {known:?}");
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.samples[family as usize].push(Sample { labels, value: value.into() });
    }

    /// Adds a sample, if there is a value.
    pub fn put_some(&mut self, family: families::Id, labels: &[&str], value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(family, labels, value);
        }
    }

    /// Every family with its samples, also those without any.
    pub fn families(&self) -> impl Iterator<Item = (&'static Family, &[Sample])> {
        families::ALL.iter().zip(self.samples.iter().map(Vec::as_slice))
    }
}
