//! The node's certificate: whether it counts, and whether it is renewed in time.

use std::path::Path;

use client_lib::clock::{Clock, SystemClock};
use client_lib::pki::{NODE_CERTIFICATE_FILE, NodeIdentity, Validity, date};

use super::Finding;
use crate::config::NodeConfig;
use crate::data_dir::{DataDir, IDENTITY_ADVICE};
use crate::membership::Membership;

/// Of the node of these settings, if it belongs to a cluster.
pub(super) fn findings(config: &NodeConfig) -> Option<Finding> {
    of_directory(&config.data)
}

/// Of the node with this data directory.
fn of_directory(data: &Path) -> Option<Finding> {
    let directory = DataDir::identity(data);
    let unusable = |error: String| Finding::wrong("certificate", format!("cannot be read: {error}"), IDENTITY_ADVICE);
    match Membership::load(data) {
        // It has yet to join.
        Ok(None) if matches!(directory.join(NODE_CERTIFICATE_FILE).try_exists(), Ok(false)) => return None,
        Ok(_) => {}
        Err(error) => return Some(unusable(error.to_string())),
    }
    Some(match NodeIdentity::load(&directory) {
        Ok(identity) => judged(identity.validity(), SystemClock::new().unix_ms()),
        Err(error) => unusable(error.to_string()),
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
        now_ms if now_ms < validity.from_ms => Finding::wrong(
            what,
            format!(
                "does not count yet, but from {} on, and by this machine's clock it is {}",
                date(validity.from_ms),
                date(now_ms)
            ),
            "set this machine's clock; if it is right, restart the node where the cluster's authority is, which renews it, and elsewhere a join \
             token, and `helio cluster join --config FILE -`, give the node another one (docs/membership.md)",
        ),
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
    use client_lib::NodeId;
    use client_lib::pki::{ClusterAuthority, ClusterId, NODE_LIFETIME};

    use super::*;
    use crate::cli::doctor::Level;

    /// Nothing was said of the certificate of a member when it was not there.
    #[test]
    fn a_member_without_its_certificate_is_told_of() {
        let root = tempfile::tempdir().expect("a directory");
        let data = root.path();
        assert!(of_directory(data).is_none(), "it has yet to join");
        Membership::of_founder("a").save(data).expect("is written");
        let identity = DataDir::identity(data);
        std::fs::create_dir(&identity).expect("is made");
        let authority = ClusterAuthority::create(ClusterId::random().expect("random")).expect("made");
        let validity = Validity::starting(SystemClock::new().unix_ms(), NODE_LIFETIME);
        authority.issue(NodeId(1), validity).expect("issued").save(&identity).expect("saved");
        assert_eq!(of_directory(data).expect("is looked at").level, Level::Ok);
        let certificate = identity.join(NODE_CERTIFICATE_FILE);
        for damage in [|path: &Path| std::fs::write(path, ""), |path: &Path| std::fs::remove_file(path)] {
            damage(&certificate).expect("is damaged");
            let found = of_directory(data).expect("is looked at");
            assert!(found.level == Level::Wrong && found.found.contains(&*identity.to_string_lossy()), "{found:?}");
        }
    }

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
        for part in ["does not count yet, but from 2027-01-15 07:55:00 UTC on", "it is 2027-01-14 08:00:00 UTC"] {
            assert!(early.found.contains(part), "{early:?}");
        }
        assert!(early.level == Level::Wrong && early.advice.expect("says what to do").contains("clock"));
        assert_eq!(judged(Validity::ENDLESS, issued_ms).level, Level::Ok);
    }
}
