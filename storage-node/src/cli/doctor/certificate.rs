//! The node's certificate: whether it counts, and whether it is renewed in time.

use client_lib::clock::{Clock, SystemClock};
use client_lib::pki::{NodeIdentity, Validity, date};

use super::Finding;
use crate::config::NodeConfig;
use crate::data_dir::DataDir;

/// Of the node of these settings, if it belongs to a cluster.
pub(super) fn findings(config: &NodeConfig) -> Option<Finding> {
    let directory = DataDir::identity(&config.data);
    if !directory.join(client_lib::pki::NODE_CERTIFICATE_FILE).exists() {
        return None;
    }
    Some(match NodeIdentity::load(&directory) {
        Ok(identity) => judged(identity.validity(), SystemClock::new().unix_ms()),
        Err(error) => Finding::wrong(
            "certificate",
            error.to_string(),
            "restore `identity/` of the data directory, or remove the node (docs/membership.md)",
        ),
    })
}

fn judged(validity: Validity, now_ms: u64) -> Finding {
    let what = "certificate";
    let Some(due_ms) = validity.renewal_ms() else {
        return Finding::ok(what, "has no end; the node takes one that has when every member renews its own");
    };
    // A fifth of the time that is left for it is more than any restart takes.
    let late_ms = due_ms + validity.until_ms.saturating_sub(due_ms) / 5;
    let until = format!("counts until {validity}");
    match now_ms {
        now_ms if now_ms < validity.from_ms => {
            Finding::wrong(what, format!("counts from {} on only", date(validity.from_ms)), "set this machine's clock")
        }
        now_ms if validity.has_ended(now_ms) => Finding::wrong(
            what,
            format!("ended on {validity}"),
            "a join token, and `helio cluster join --config FILE -`, give the node another one (docs/membership.md)",
        ),
        now_ms if now_ms > late_ms => Finding::warning(
            what,
            format!("{until}, and was to be renewed on {}", date(due_ms)),
            "the node and the one that has the cluster's authority must run, and reach each other",
        ),
        _ => Finding::ok(what, until),
    }
}

#[cfg(test)]
mod tests {
    use client_lib::pki::NODE_LIFETIME;

    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn a_certificate_is_well_until_it_should_long_have_been_renewed() {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let issued_ms = 1_800_000_000_000;
        let validity = Validity::starting(issued_ms, NODE_LIFETIME);
        for (day, level, told) in [
            (0, Level::Ok, "2027-04-15"),
            (65, Level::Ok, "2027-04-15"),
            (67, Level::Warning, "was to be renewed on 2027-03-16"),
            (91, Level::Wrong, "ended on 2027-04-15"),
        ] {
            let found = judged(validity, issued_ms + day * DAY_MS);
            assert!(found.level == level && found.found.contains(told), "{day}: {found:?}");
        }
        let early = judged(validity, issued_ms - DAY_MS);
        assert!(early.level == Level::Wrong && early.advice.expect("says what to do").contains("clock"));
        assert_eq!(judged(Validity::ENDLESS, issued_ms).level, Level::Ok);
    }
}
