//! What rules and boards for Prometheus name: enough of their languages to compare it with what is told.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};

/// An alert rule.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// Its name.
    pub alert: String,
    /// `expr`, `for`, and by `labels.` and `annotations.` what is below these.
    pub fields: BTreeMap<String, String>,
}

/// The rules of a file, in the plain form of YAML that ours are written in: a key a line, no anchors, no folded text.
///
/// # Errors
/// The first line that is in no such form.
pub fn alerts(text: &str) -> anyhow::Result<Vec<Rule>> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut below = String::new();
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let place = || format!("line {}: {line}", number + 1);
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let indent = line.len() - trimmed.len();
        let (key, value) = trimmed.split_once(':').with_context(place)?;
        let value = plain(value.trim()).with_context(place)?;
        match (indent, key) {
            (0, "groups") | (2, "- name") | (4, "rules") => {}
            (6, "- alert") => {
                rules.push(Rule { alert: value, fields: BTreeMap::new() });
                below.clear();
            }
            (8, "labels" | "annotations") if value.is_empty() => below = format!("{key}."),
            (8, _) if !value.is_empty() => set(&mut rules, key.to_owned(), value).with_context(place)?,
            (10, _) if !value.is_empty() => set(&mut rules, format!("{below}{key}"), value).with_context(place)?,
            _ => bail!("{} is not in the form of ours", place()),
        }
    }
    Ok(rules)
}

fn set(rules: &mut [Rule], key: String, value: String) -> anyhow::Result<()> {
    let rule = rules.last_mut().context("a rule is begun")?;
    ensure!(rule.fields.insert(key, value).is_none(), "the key is there twice");
    Ok(())
}

/// A scalar without its quotes.
fn plain(value: &str) -> anyhow::Result<String> {
    let Some(rest) = value.strip_prefix('"') else {
        // Both would mean something else to YAML.
        ensure!(!value.contains(": ") && !value.contains(" #"), "it needs quotes");
        return Ok(value.to_owned());
    };
    let inner = rest.strip_suffix('"').context("quotes end")?;
    ensure!(!inner.contains(['"', '\\']), "nothing in it is escaped");
    Ok(inner.to_owned())
}

/// What an expression of PromQL names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Metrics of ours, each with the labels that are asked of it in braces.
    pub metrics: BTreeMap<String, BTreeSet<String>>,
    /// Labels of the result and of what is grouped or joined.
    pub labels: BTreeSet<String>,
}

/// Reads an expression.
///
/// # Errors
/// When brackets do not fit each other.
pub fn named(expression: &str) -> anyhow::Result<Named> {
    let mut named = Named::default();
    let mut open = Vec::new();
    // Without what is in quotes: there may be anything.
    let bare: String =
        expression.split('"').enumerate().filter(|(part, _)| part % 2 == 0).map(|(_, text)| text).collect();
    for letter in bare.chars() {
        match letter {
            '(' | '[' | '{' => open.push(letter),
            ')' | ']' | '}' => {
                let opened = open.pop().context("a bracket is opened")?;
                ensure!(
                    matches!((opened, letter), ('(', ')') | ('[', ']') | ('{', '}')),
                    "{opened} ends with {letter}"
                );
            }
            _ => {}
        }
    }
    ensure!(open.is_empty(), "a bracket is closed");
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    for (at, _) in bare.match_indices("helio_") {
        if bare[..at].ends_with(is_part) {
            continue;
        }
        let end = bare[at..].find(|letter| !is_part(letter)).map_or(bare.len(), |length| at + length);
        let asked = named.metrics.entry(bare[at..end].to_owned()).or_default();
        if let Some(selector) = bare[end..].strip_prefix('{') {
            let selector = selector.split_once('}').context("braces end")?.0;
            asked.extend(
                selector.split(',').map(|part| part.split(['=', '!', '~']).next().unwrap_or("").trim().to_owned()),
            );
        }
    }
    for word in ["by", "without", "on", "ignoring"] {
        for part in bare.split(&format!(" {word} (")).skip(1) {
            let list = part.split_once(')').context("a list ends")?.0;
            named.labels.extend(list.split(',').map(|label| label.trim().to_owned()));
        }
    }
    Ok(named)
}

/// The labels that a template names: `{{ $labels.volume }}` of rules, `{{volume}}` of legends.
#[must_use]
pub fn in_template(text: &str) -> BTreeSet<String> {
    let parts = text.split("{{").skip(1).filter_map(|part| part.split_once("}}"));
    parts.map(|(name, _)| name.trim().trim_start_matches("$labels.").to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_of_an_expression_are_found() {
        let expression = "sum by (le, kind) (rate(helio_x_bucket{kind=~\"a{b\", store!=\"c\"}[5m])) / helio_y > 0.5";
        let found = named(expression).expect("is whole");
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(found.metrics["helio_x_bucket"], set(&["kind", "store"]));
        assert_eq!(found.metrics["helio_y"], set(&[]));
        assert_eq!((found.metrics.len(), found.labels), (2, set(&["le", "kind"])));
        assert_eq!(in_template("{{ $labels.a }} at {{b}}"), set(&["a", "b"]));
        assert!(named("sum(helio_x").is_err() && named("sum(helio_x]").is_err());
    }

    #[test]
    fn rules_are_read_and_other_forms_are_refused() {
        let text = "groups:\n  - name: x\n    rules:\n      - alert: A\n        expr: a > 1\n        labels:\n          severity: b\n";
        let rules = alerts(text).expect("are rules");
        assert_eq!((rules.len(), rules[0].fields["labels.severity"].as_str()), (1, "b"));
        for wrong in
            ["        expr: |\n          a\n", "        expr: a: b\n", "       expr: a\n", "        expr: \"a\n"]
        {
            assert!(alerts(&text.replace("        expr: a > 1\n", wrong)).is_err(), "{wrong}");
        }
    }
}
