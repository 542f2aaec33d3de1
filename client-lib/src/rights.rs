//! What a client may do: which volumes it may use, and what it may ask of the admin API.
//!
//! Pure words and their meaning. Who has which right is in the cluster's metadata, and nodes see to it (docs/security.md).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::types::NAME_LEN_MAX;

/// What a client is there for. Stored and sent by its place in this list: new ones go to the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Uses volumes, as its rules say, and asks nothing of the admin API.
    #[default]
    Volume,
    /// Looks at everything in the admin API, and changes nothing. Uses no volume.
    Viewer,
    /// Looks, moves volumes, makes snapshots, sets policies, drains. Neither deletes, nor says who belongs to the cluster or may do what.
    /// Uses no volume.
    Operator,
    /// Everything, and every volume.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Volume, Role::Viewer, Role::Operator, Role::Admin];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Volume => "volume",
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Role, Error> {
        let found = Role::ALL.into_iter().find(|role| role.to_string() == text);
        found.ok_or_else(|| {
            let text = format!("{text:?} is no role: use `volume`, `viewer`, `operator` or `admin`");
            Error::new(ErrorKind::InvalidRequest, text)
        })
    }
}

/// What may be done with a volume. The greater one includes the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Right {
    /// It may be read.
    Read,
    /// It may be read and written.
    Write,
}

/// Names of volumes: one, or all that match, where `*` stands for any characters, or none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumePattern(String);

impl VolumePattern {
    /// Whether it means the volume of this name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut in_name) = (0, 0);
        // The last star, and up to where of the name it stands for: that grows when what follows it does not fit.
        let mut star: Option<(usize, usize)> = None;
        while in_name < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, in_name));
                    at += 1;
                }
                Some(byte) if *byte == name[in_name] => {
                    at += 1;
                    in_name += 1;
                }
                _ => match star {
                    Some((place, taken)) => {
                        star = Some((place, taken + 1));
                        (at, in_name) = (place + 1, taken + 1);
                    }
                    None => return false,
                },
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }

    /// The name, if it is that of one volume.
    #[must_use]
    pub fn as_name(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&self.0)
    }
}

impl TryFrom<String> for VolumePattern {
    type Error = Error;

    fn try_from(text: String) -> Result<VolumePattern, Error> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.*".contains(c);
        let begins = text.chars().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == '*');
        if begins && text.len() <= NAME_LEN_MAX && text.chars().all(is_plain) {
            return Ok(VolumePattern(text));
        }
        let what = format!(
            "{text:?} names no volumes: use the name of one, or a pattern such as `vm-*`, where `*` stands for any characters; \
             snapshots are those of their volume"
        );
        Err(Error::new(ErrorKind::InvalidRequest, what))
    }
}

impl FromStr for VolumePattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<VolumePattern, Error> {
        VolumePattern::try_from(text.to_owned())
    }
}

impl From<VolumePattern> for String {
    fn from(pattern: VolumePattern) -> String {
        pattern.0
    }
}

impl fmt::Display for VolumePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A right to volumes. As text `VOL` for reading and writing, `VOL:ro` for reading.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeRule {
    /// To which volumes.
    pub pattern: VolumePattern,
    /// Which right.
    pub right: Right,
}

impl FromStr for VolumeRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<VolumeRule, Error> {
        let (pattern, right) = match text.split_once(':') {
            None => (text, Right::Write),
            Some((pattern, "ro")) => (pattern, Right::Read),
            Some((pattern, "rw")) => (pattern, Right::Write),
            Some((_, other)) => {
                let text = format!("{text:?} is no rule: `{other}` is neither `ro` (reading) nor `rw`");
                return Err(Error::new(ErrorKind::InvalidRequest, text));
            }
        };
        Ok(VolumeRule { pattern: pattern.parse()?, right })
    }
}

impl fmt::Display for VolumeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.right {
            Right::Read => write!(f, "{}:ro", self.pattern),
            Right::Write => write!(f, "{}", self.pattern),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<VolumePattern>().expect(pattern).matches(name)
    }

    #[test]
    fn a_star_stands_for_any_characters_and_nothing_else_does() {
        for (pattern, name) in [
            ("disk", "disk"),
            ("*", "disk"),
            ("vm-*", "vm-1"),
            ("vm-*", "vm-"),
            ("*-data", "vm-1-data"),
            ("vm-*-data", "vm-a-data-b-data"),
            ("*a*b*", "xxaxxbxx"),
            ("**", "x"),
            ("a*a", "aa"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("disk", "disk2"),
            ("disk", "adisk"),
            ("disk", "Disk"),
            ("vm-*", "vm"),
            ("vm-*", "xvm-1"),
            ("*-data", "vm-1-data2"),
            ("vm.1", "vm-1"),
            ("a*a", "a"),
            ("*a*b*", "ba"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        // In a time that grows with the product of both, whatever the pattern is like.
        assert!(!matches(&format!("{}b", "a*".repeat(31)), &"a".repeat(63)));
    }

    #[test]
    fn a_rule_reads_back_what_it_prints_and_what_is_none_is_refused() {
        for (text, told) in [("disk", "disk"), ("disk:rw", "disk"), ("vm-*:ro", "vm-*:ro"), ("*", "*")] {
            let rule: VolumeRule = text.parse().expect(text);
            assert_eq!(rule.to_string(), told);
            assert_eq!(told.parse::<VolumeRule>().expect(told), rule);
        }
        for odd in
            ["", ":ro", "disk:", "disk:w", "disk:ro:ro", "disk@monday", "a b", "-x", "vm-?", "ä*", &"x".repeat(64)]
        {
            let error = odd.parse::<VolumeRule>().expect_err(odd);
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        }
    }

    #[test]
    fn roles_read_back_and_others_are_named() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse::<Role>().expect("reads back"), role);
        }
        assert!("root".parse::<Role>().expect_err("is none").to_string().contains("operator"));
        assert!(Right::Read < Right::Write);
    }
}
