//! A strict reader of OpenMetrics text, written from its specification (1.0) and independent of what writes it.
//!
//! Refused is what a scraper might let pass: samples without or before their TYPE, families that are not in one piece, names and
//! suffixes that do not fit the type or the unit, a series that is there twice, buckets that do not rise, a count that is not theirs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};

/// Labels and their values.
pub type Labels = BTreeMap<String, String>;

/// A family.
#[derive(Clone, Debug, Default)]
pub struct Family {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it is measured in.
    pub unit: Option<String>,
    /// What it means.
    pub help: String,
}

/// A scrape.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    /// The families, by name as in `# TYPE`.
    pub families: BTreeMap<String, Family>,
    /// Every sample, by its whole name and labels.
    pub samples: BTreeMap<(String, Labels), f64>,
}

impl Exposition {
    /// Reads a scrape.
    ///
    /// # Errors
    /// The first line that is not as it must be.
    pub fn parse(text: &str) -> anyhow::Result<Exposition> {
        let mut this = Exposition::default();
        let body = text.strip_suffix("# EOF\n").context("it ends with # EOF")?;
        ensure!(body.is_empty() || body.ends_with('\n'), "the last line is whole");
        let mut current = String::new();
        for (number, line) in body.lines().enumerate() {
            this.line(line, &mut current).with_context(|| format!("line {}: {line}", number + 1))?;
        }
        this.check_histograms()?;
        Ok(this)
    }

    fn line(&mut self, line: &str, current: &mut String) -> anyhow::Result<()> {
        let Some(comment) = line.strip_prefix("# ") else { return self.sample(line, current) };
        let (word, rest) = comment.split_once(' ').context("a comment says what it is")?;
        let (name, what) = rest.split_once(' ').context("it says something of a name")?;
        ensure!(is_name(name), "{name} is no name");
        if current != name {
            ensure!(!self.families.contains_key(name), "the family is there already");
            self.families.insert(name.to_owned(), Family::default());
            name.clone_into(current);
        }
        let family = self.families.get_mut(name).context("it was just made")?;
        let is_first = self.samples.keys().all(|(sample, _)| base_of(sample, &family.kind) != Some(name));
        ensure!(is_first, "it comes after samples of its family");
        match word {
            "HELP" => {
                ensure!(family.help.is_empty() && !what.is_empty(), "there is one help");
                what.clone_into(&mut family.help);
            }
            "TYPE" => {
                ensure!(family.kind.is_empty(), "there is one type");
                ensure!(["counter", "gauge", "histogram"].contains(&what), "the type is known");
                ensure!(what != "counter" || !name.ends_with("_total"), "the suffix is the sample's");
                what.clone_into(&mut family.kind);
            }
            "UNIT" => {
                ensure!(family.unit.is_none() && name.ends_with(&format!("_{what}")), "the name ends with its unit");
                family.unit = Some(what.to_owned());
            }
            word => bail!("{word} is not known"),
        }
        Ok(())
    }

    fn sample(&mut self, line: &str, current: &str) -> anyhow::Result<()> {
        let end = line.find(['{', ' ']).context("a name, and something behind it")?;
        let (name, rest) = line.split_at(end);
        ensure!(is_name(name), "{name} is no name");
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Labels::new(), rest),
        };
        let value = rest.strip_prefix(' ').context("a space before the value")?;
        let value: f64 = value.parse().context("the value is a number, without a time behind it")?;
        let family = self.families.get(current).context("a family is begun")?;
        ensure!(base_of(name, &family.kind) == Some(current), "it is of family {current}, a {:?}", family.kind);
        ensure!(labels.contains_key("le") == name.ends_with("_bucket"), "le is for buckets");
        ensure!(family.kind == "gauge" || value >= 0.0, "it counts");
        ensure!(self.samples.insert((name.to_owned(), labels), value).is_none(), "the series is there already");
        Ok(())
    }

    fn check_histograms(&self) -> anyhow::Result<()> {
        for (name, _) in self.families.iter().filter(|(_, family)| family.kind == "histogram") {
            let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for ((_, labels), count) in
                self.samples.iter().filter(|((sample, _), _)| *sample == format!("{name}_bucket"))
            {
                let mut labels = labels.clone();
                let bound = labels.remove("le").context("a bucket has a bound")?.parse()?;
                series.entry(labels).or_default().push((bound, *count));
            }
            let count = |labels: &Labels| self.samples.get(&(format!("{name}_count"), labels.clone()));
            for (labels, mut buckets) in series {
                buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
                ensure!(buckets.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1), "{name} {labels:?} rises");
                let last = buckets.last().context("it has buckets")?;
                ensure!(last.0 == f64::INFINITY, "the last bucket of {name} {labels:?} has no bound");
                ensure!(count(&labels) == Some(&last.1), "{name} {labels:?} has as many as its buckets");
                ensure!(self.samples.contains_key(&(format!("{name}_sum"), labels.clone())), "{name} has a sum");
            }
        }
        Ok(())
    }

    /// The one sample of this name that has these labels among its own; `None` without one.
    ///
    /// # Panics
    /// When there are several.
    #[must_use]
    pub fn get(&self, name: &str, wanted: &[(&str, &str)]) -> Option<f64> {
        let found = self.all(name, wanted);
        assert!(found.len() <= 1, "{name} {wanted:?} is {found:?}");
        found.first().copied()
    }

    /// The values of this name that have these labels among their own.
    #[must_use]
    pub fn all(&self, name: &str, wanted: &[(&str, &str)]) -> Vec<f64> {
        let fits =
            |labels: &Labels| wanted.iter().all(|(label, value)| labels.get(*label).is_some_and(|it| it == value));
        self.samples.iter().filter(|((sample, labels), _)| sample == name && fits(labels)).map(|(_, it)| *it).collect()
    }

    /// The names that samples of the families have.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        let endings = |kind: &str| match kind {
            "counter" => &["_total"][..],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let of = |(name, family): (&String, &Family)| {
            endings(&family.kind).iter().map(move |end| format!("{name}{end}")).collect::<Vec<_>>()
        };
        self.families.iter().flat_map(of).collect()
    }
}

/// The family that a sample of this name has, if it is of this type.
fn base_of<'a>(sample: &'a str, kind: &str) -> Option<&'a str> {
    match kind {
        "counter" => sample.strip_suffix("_total"),
        "gauge" => Some(sample),
        "histogram" => ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.strip_suffix(end)),
        _ => None,
    }
}

fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    text.bytes().next().is_some_and(letter) && text.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
}

/// Labels up to the brace that ends them, and what is behind it.
fn labels(text: &str) -> anyhow::Result<(Labels, &str)> {
    let (mut labels, mut rest) = (Labels::new(), text);
    loop {
        let (name, after) = rest.split_once("=\"").context("a label has a value")?;
        ensure!(is_name(name), "{name} is no label");
        let (mut value, mut letters) = (String::new(), after.char_indices());
        let end = loop {
            match letters.next().context("a value ends")? {
                (at, '"') => break at,
                (_, '\\') => match letters.next().context("an escape is whole")?.1 {
                    'n' => value.push('\n'),
                    letter @ ('\\' | '"') => value.push(letter),
                    letter => bail!("\\{letter} is no escape"),
                },
                (_, letter) => value.push(letter),
            }
        };
        ensure!(labels.insert(name.to_owned(), value).is_none(), "label {name} is there twice");
        rest = &after[end + 1..];
        if let Some(behind) = rest.strip_prefix('}') {
            return Ok((labels, behind));
        }
        rest = rest.strip_prefix(',').context("a comma between labels")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_bytes What.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{x=\"1\\\"\"} 2\n\
        # TYPE h histogram\nh_sum 1.5\nh_count 3\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 3\n# EOF\n";

    #[test]
    fn what_is_right_is_read() {
        let read = Exposition::parse(GOOD).expect("is right");
        assert_eq!(read.get("a_bytes_total", &[("x", "1\"")]), Some(2.0));
        assert_eq!(read.get("h_bucket", &[("le", "+Inf")]), Some(3.0));
        assert!(read.names().contains("h_sum") && !read.names().contains("h"));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (wrong, right) in [
            ("# EOF\n", ""),
            ("a_bytes_total{x=\"1\\\"\"} 2", "a_bytes{x=\"1\"} 2"),
            ("a_bytes_total{x=\"1\\\"\"} 2", "a_bytes_total{x=\"1\",x=\"2\"} 2"),
            ("a_bytes_total{x=\"1\\\"\"} 2", "a_bytes_total{x=\"1\"} -2"),
            ("a_bytes_total{x=\"1\\\"\"} 2", "a_bytes_total{x=\"1\"} two"),
            ("a_bytes_total{x=\"1\\\"\"} 2", "a_bytes_total{x=\"1\"} 2\na_bytes_total{x=\"1\"} 2"),
            ("UNIT a_bytes bytes", "UNIT a_bytes seconds"),
            ("# TYPE a_bytes counter\n", ""),
            ("# TYPE h histogram\n", "\n# TYPE h histogram\n"),
            ("h_count 3", "h_count 4"),
            ("h_bucket{le=\"0.5\"} 1", "h_bucket{le=\"0.5\"} 9"),
            ("h_bucket{le=\"+Inf\"} 3", "h_bucket{le=\"1\"} 3"),
            ("# EOF\n", "# HELP a_bytes Again.\n# EOF\n"),
        ] {
            let text = GOOD.replacen(wrong, right, 1);
            assert!(text != GOOD && Exposition::parse(&text).is_err(), "{text}");
        }
    }
}
