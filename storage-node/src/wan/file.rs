//! What a file says of the links between providers: `helio up --wan FILE`.
//!
//! TOML. What stands at the top is of all links; `[[link]]` is of some, and what comes later counts.

use std::time::Duration;

use serde::Deserialize;

use super::DirectionSettings;

/// Longest delay and jitter.
const MILLISECONDS_MAX: f64 = 60_000.0;
/// Fastest link: beyond what one process carries.
const MBIT_MAX: f64 = 100_000.0;

/// What is said of a direction; the rest is as it was.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Behaviour {
    /// Round trip in milliseconds, half in each direction.
    rtt_ms: Option<f64>,
    jitter_ms: Option<f64>,
    /// 0 is unlimited.
    rate_mbit: Option<f64>,
    queue_kib: Option<u64>,
    datagram_max: Option<usize>,
    loss_percent: Option<f64>,
    reorder_percent: Option<f64>,
    duplicate_percent: Option<f64>,
    partition: Option<bool>,
}

impl Behaviour {
    fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: Option<f64>, max: f64| match value {
            Some(value) if !(0.0..=max).contains(&value) => Err(format!("{name} is {value}: 0 to {max} is possible")),
            _ => Ok(()),
        };
        within("rtt_ms", self.rtt_ms, MILLISECONDS_MAX)?;
        within("jitter_ms", self.jitter_ms, MILLISECONDS_MAX)?;
        within("rate_mbit", self.rate_mbit, MBIT_MAX)?;
        within("loss_percent", self.loss_percent, 100.0)?;
        within("reorder_percent", self.reorder_percent, 100.0)?;
        within("duplicate_percent", self.duplicate_percent, 100.0)?;
        match self.datagram_max {
            // RFC 9000 §14: QUIC does not work with less.
            Some(bytes) if bytes < 1200 => Err(format!("datagram_max is {bytes}: 1200 at least")),
            _ => Ok(()),
        }
    }

    fn apply(&self, to: &mut DirectionSettings) {
        let milliseconds = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
        let set = |field: &mut f64, percent: Option<f64>| *field = percent.map_or(*field, |percent| percent / 100.0);
        to.delay = self.rtt_ms.map_or(to.delay, |ms| milliseconds(ms / 2.0));
        to.jitter = self.jitter_ms.map_or(to.jitter, milliseconds);
        to.rate_bits = self.rate_mbit.map_or(to.rate_bits, |mbit| (mbit * 1e6) as u64);
        to.queue_bytes = self.queue_kib.map_or(to.queue_bytes, |kib| kib.saturating_mul(1024));
        to.datagram_max = self.datagram_max.unwrap_or(to.datagram_max);
        set(&mut to.loss, self.loss_percent);
        set(&mut to.reorder, self.reorder_percent);
        set(&mut to.duplicate, self.duplicate_percent);
        to.partition = self.partition.unwrap_or(to.partition);
    }
}

/// Of which links something is said.
#[derive(Clone, Debug, PartialEq)]
struct Links {
    ends: [String; 2],
    /// Not only from the first end to the second.
    both_ways: bool,
}

impl Links {
    fn parse(table: &mut toml::Table, providers: &[&str]) -> Result<Links, String> {
        let (ends, both_ways) = match (table.remove("between"), table.remove("from"), table.remove("to")) {
            (Some(toml::Value::Array(both)), None, None) => (both, true),
            (None, Some(from), Some(to)) => (vec![from, to], false),
            _ => return Err(r#"it needs `between = ["a", "b"]`, or `from = "a"` and `to = "b"`"#.to_owned()),
        };
        let name = |value: toml::Value| match value {
            toml::Value::String(name) if providers.contains(&name.as_str()) => Ok(name),
            other => Err(format!("{other} is not a provider; there are {}", providers.join(", "))),
        };
        let ends = ends.into_iter().map(name).collect::<Result<Vec<String>, String>>()?;
        match <[String; 2]>::try_from(ends) {
            Ok(ends) if ends[0] != ends[1] => Ok(Links { ends, both_ways }),
            _ => Err("a link is between two providers".to_owned()),
        }
    }

    fn contain(&self, from: &str, to: &str) -> bool {
        let [one, other] = &self.ends;
        (one == from && other == to) || (self.both_ways && one == to && other == from)
    }
}

/// How links behave, as a file says it.
#[derive(Clone, Debug, PartialEq)]
pub struct WanFile {
    all: Behaviour,
    some: Vec<(Links, Behaviour)>,
}

impl WanFile {
    /// As a file does that says only these two, of all links.
    #[must_use]
    pub fn alike(rtt_ms: f64, rate_mbit: f64) -> WanFile {
        let (rtt_ms, rate_mbit) = (Some(rtt_ms), Some(rate_mbit));
        WanFile { all: Behaviour { rtt_ms, rate_mbit, ..Behaviour::default() }, some: Vec::new() }
    }

    /// Reads the text of a file, in which links are between these providers.
    ///
    /// # Errors
    /// A sentence for people, when it cannot be understood or says what cannot be.
    pub fn parse(text: &str, providers: &[&str]) -> Result<WanFile, String> {
        let behaviour = |table: toml::Table| {
            let behaviour: Behaviour = table.try_into().map_err(|error| error.to_string().trim().to_owned())?;
            behaviour.check().map(|()| behaviour)
        };
        let mut all: toml::Table =
            text.parse().map_err(|error: toml::de::Error| error.to_string().trim().to_owned())?;
        let links = match all.remove("link") {
            None => Vec::new(),
            Some(toml::Value::Array(links)) => links,
            Some(_) => return Err("links are written as [[link]]".to_owned()),
        };
        let some = links.into_iter().enumerate().map(|(index, link)| {
            let read = |link: toml::Value| {
                let toml::Value::Table(mut table) = link else { return Err("it is not a table".to_owned()) };
                Ok((Links::parse(&mut table, providers)?, behaviour(table)?))
            };
            read(link).map_err(|error| format!("[[link]] number {}: {error}", index + 1))
        });
        Ok(WanFile { some: some.collect::<Result<_, _>>()?, all: behaviour(all)? })
    }

    /// How the direction from one provider to another behaves.
    #[must_use]
    pub fn direction(&self, from: &str, to: &str) -> DirectionSettings {
        let mut settings = DirectionSettings::default();
        self.all.apply(&mut settings);
        let some = self.some.iter().filter(|(links, _)| links.contain(from, to));
        some.for_each(|(_, behaviour)| behaviour.apply(&mut settings));
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROVIDERS: [&str; 3] = ["a", "b", "c"];

    #[test]
    fn links_behave_as_the_last_word_on_them_says() {
        let text = r#"
            rtt_ms = 60
            rate_mbit = 200
            loss_percent = 0.5

            [[link]]
            between = ["b", "a"]
            rtt_ms = 150
            queue_kib = 512

            [[link]]
            from = "a"
            to = "b"
            partition = true
            datagram_max = 8900
        "#;
        let file = WanFile::parse(text, &PROVIDERS).expect("is understood");
        let other = file.direction("c", "a");
        assert_eq!((other.delay, other.rate_bits, other.loss), (Duration::from_millis(30), 200_000_000, 0.005));
        let back = file.direction("b", "a");
        assert_eq!((back.delay, back.queue_bytes, back.partition), (Duration::from_millis(75), 512 << 10, false));
        let forth = file.direction("a", "b");
        assert_eq!(forth, DirectionSettings { partition: true, datagram_max: 8900, ..back });
        let nothing = WanFile::parse("", &PROVIDERS).expect("is understood");
        assert_eq!(nothing.direction("a", "b"), DirectionSettings::default());
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_place_and_what_can() {
        for (text, says) in [
            ("rtt = 60", "unknown field `rtt`"),
            ("rtt_ms = -1", "rtt_ms is -1: 0 to 60000"),
            ("rtt_ms = nan", "rtt_ms is NaN"),
            ("loss_percent = 101", "loss_percent is 101: 0 to 100"),
            ("datagram_max = 1000", "1200 at least"),
            ("rtt_ms = \"far\"", "expected f64"),
            ("rtt_ms = ", "line 1"),
            ("link = 3", "links are written as [[link]]"),
            ("[[link]]\nrtt_ms = 3", "[[link]] number 1: it needs `between"),
            ("[[link]]\nbetween = [\"a\", \"x\"]", "\"x\" is not a provider; there are a, b, c"),
            ("[[link]]\nbetween = [\"a\"]", "a link is between two providers"),
            ("[[link]]\nfrom = \"a\"\nto = \"a\"", "a link is between two providers"),
            ("[[link]]\nfrom = \"a\"\nto = \"b\"\nbetween = [\"a\", \"b\"]", "it needs `between"),
            ("[[link]]\nfrom = \"a\"\nto = \"b\"\ndelay = 3", "[[link]] number 1: unknown field `delay`"),
        ] {
            let error = WanFile::parse(text, &PROVIDERS).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
