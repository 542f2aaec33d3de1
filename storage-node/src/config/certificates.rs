//! Settings of the certificates that a node signs, where it has the cluster's authority.

use std::time::Duration;

use client_lib::pki::NODE_LIFETIME;
use serde::Deserialize;
use serde::de::Deserializer;

use super::Text;

/// The shortest lifetime. Far too short for a cluster that is to be relied on: whoever is off for longer needs a token to come back.
const LIFETIME_MIN: Duration = Duration::from_secs(10);
/// The longest.
const LIFETIME_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);
/// A node that is off for so long should not need anybody to come back: shorter lifetimes are warned of.
pub const LIFETIME_ADVISED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Certificates that the node signs, if it has the cluster's authority.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CertificateSettings {
    /// For how long a node's certificate counts: 10 s to 3650 d. Each node renews its own at two thirds of it. Shorter ones are of less use to
    /// whoever steals one; for the last third of it nodes can do without the authority, and for all of it a node can be off.
    #[serde(deserialize_with = "lifetime")]
    pub node_lifetime: Duration,
}

impl Default for CertificateSettings {
    fn default() -> CertificateSettings {
        CertificateSettings { node_lifetime: NODE_LIFETIME }
    }
}

fn lifetime<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    const EXPECTED: &str = "a time from \"10s\" to \"3650d\": a number, and s, min, h or d";
    let parse = |text: &str| {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit_s = match unit.trim() {
            "s" => 1,
            "min" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            _ => 0,
        };
        let seconds = number.parse().ok().and_then(|number: u64| number.checked_mul(unit_s)).unwrap_or(0);
        let found = Duration::from_secs(seconds);
        let is_right = (LIFETIME_MIN..=LIFETIME_MAX).contains(&found);
        is_right.then_some(found).ok_or_else(|| format!("{text:?} is not {EXPECTED}"))
    };
    deserializer.deserialize_str(Text(EXPECTED, parse))
}
