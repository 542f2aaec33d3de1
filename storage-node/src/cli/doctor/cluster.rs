//! The cluster, if it runs: who is there, whether stores take writes, and whose volumes have lost their owner.

use client_lib::clock::{Clock, SystemClock};
use client_lib::error::whole;
use client_lib::rights::Role;
use client_lib::wire::admin::{ClientList, ClientStatus, ClusterStatus, NodeSpace, StoreSpace, VolumeSummary};

use super::Finding;
use crate::cli::client::Client;
use crate::cli::members::Voters;
use crate::cli::space;
use crate::cli::{Common, credentials};
use crate::config::NodeConfig;
use crate::size::human;
use crate::stores::FULL;

/// A store with less than this part of its room left is short of it.
const SHORT_SHARE: u64 = 10;

/// A cluster that answers.
pub(super) struct Running {
    status: ClusterStatus,
    volumes: Result<Vec<VolumeSummary>, String>,
    /// Of the nodes that answer.
    spaces: Vec<NodeSpace>,
    /// As far as it says.
    clients: ClientList,
}

/// The cluster of the settings, of `--cluster` or of the data directory, if it answers.
pub(super) fn find(config: Option<&NodeConfig>, common: &Common) -> Option<Running> {
    let mut common = common.clone();
    if let Some(config) = config {
        common.data.get_or_insert_with(|| config.data.clone());
    }
    let client = Client::find(&common).ok()?;
    let status: ClusterStatus = client.get("/v1/cluster").ok()?;
    let volumes = client.get("/v1/volumes").map_err(|error| whole(error.as_ref()));
    let reached = status.members.iter().filter(|member| member.reachable);
    let spaces =
        reached.filter_map(|member| client.get::<NodeSpace>(&format!("/v1/space?node={}", member.name)).ok()).collect();
    let clients = client.get("/v1/clients").unwrap_or_default();
    Some(Running { status, volumes, spaces, clients })
}

pub(super) fn findings(running: Option<&Running>) -> Vec<Finding> {
    let Some(Running { status, volumes, spaces, clients }) = running else {
        return vec![Finding::ok("cluster", "none runs here, or none was named")];
    };
    let mut findings = vec![leader(status), voters(status)];
    findings.extend(unreachable(status));
    findings.extend(match volumes {
        Ok(volumes) => lost_owners(volumes, status),
        Err(error) => vec![Finding::wrong("volumes", error.clone(), "see `helio cluster status`")],
    });
    findings.extend(
        spaces.iter().flat_map(|space| space.stores.iter().filter_map(|store| full_or_faulty(&space.node, store))),
    );
    findings.extend(unlimited(clients));
    findings.extend(ending(&credentials::ending(clients, SystemClock::new().unix_ms())));
    findings
}

/// Clients that may use every volume because nobody gave them a rule.
fn unlimited(clients: &ClientList) -> Option<Finding> {
    const NAMED_MAX: usize = 5;
    let is_unlimited = |client: &&ClientStatus| {
        client.role == Role::Volume && client.rules.is_none() && !client.certificates.is_empty()
    };
    let names: Vec<&str> = clients.clients.iter().filter(is_unlimited).map(|client| client.name.as_str()).collect();
    let found = match names.as_slice() {
        [] => return None,
        [one] => format!("{one} has no rules, and may use every volume"),
        more if more.len() > NAMED_MAX => {
            let (named, others) = more.split_at(NAMED_MAX);
            format!("{} and {} more have no rules, and may use every volume", named.join(", "), others.len())
        }
        _ => format!("{} have no rules, and may use every volume", names.join(", ")),
    };
    let advice = "`helio cluster client allow NAME VOL[:ro]` limits one to what its rules are for (docs/security.md)";
    Some(Finding::warning("clients", found, advice))
}

/// Clients that are soon let in no more, or are not any more.
fn ending(clients: &[String]) -> Option<Finding> {
    let advice = "`helio cluster client NAME --out FILE --force` issues new ones, where the cluster's authority is; helio-nbd takes them up without a restart";
    let found = format!("end within a month, or have ended: {}", clients.join(", "));
    (!clients.is_empty()).then(|| Finding::warning("credentials of clients", found, advice))
}

fn leader(status: &ClusterStatus) -> Finding {
    match status.members.iter().find(|member| member.leader) {
        Some(leader) => Finding::ok("metadata", format!("node {} leads", leader.name)),
        None => Finding::wrong(
            "metadata",
            "no node leads",
            "most of the voters must reach one another; until then leases run out and I/O waits",
        ),
    }
}

fn voters(status: &ClusterStatus) -> Finding {
    let voters = Voters::of(status);
    let found = format!("{} of {} voters answer", voters.reached, voters.count());
    if voters.missing() > 0 {
        let advice = "that is no majority: the metadata stands still, no volume changes its owner, and leases run out. Bring the others back";
        return Finding::wrong("voters", found, advice);
    }
    match (voters.count(), voters.reached - voters.majority()) {
        (..=2, _) => {
            Finding::warning("voters", found, "the loss of one stops the metadata: a third node makes it survive one")
        }
        (_, 0) => Finding::warning("voters", found, "the loss of one more stops the metadata: bring the others back"),
        (_, losable) => Finding::ok("voters", format!("{found}; {losable} may be lost")),
    }
}

fn unreachable(status: &ClusterStatus) -> Vec<Finding> {
    let lost = status.members.iter().filter(|member| !member.reachable);
    let finding = |name: &str, address: &str| {
        Finding::warning(
            format!("node {name}"),
            format!("does not answer node {} at {address} (UDP)", status.node),
            "start it, or look at what is between them; what it owns can be taken over (docs/takeover.md)",
        )
    };
    lost.map(|member| finding(&member.name, &member.address)).collect()
}

fn full_or_faulty(node: &str, store: &StoreSpace) -> Option<Finding> {
    let what = format!("store {} of node {node}", store.directory);
    if let Some(fault) = &store.fault {
        return Some(Finding::wrong(what, format!("takes no writes: {fault}"), space::FAULT_ADVICE));
    }
    if store.is_full {
        return Some(Finding::wrong(what, FULL, space::FULL_ADVICE));
    }
    let whole = store.available_bytes + store.live_bytes;
    let is_short = store.available_bytes < whole / SHORT_SHARE;
    is_short.then(|| {
        let found = format!("{} left of {}", human(store.available_bytes), human(whole));
        Finding::warning(
            what,
            found,
            "writes fail when it is full: `helio node space` says what takes it (docs/space.md)",
        )
    })
}

fn lost_owners(volumes: &[VolumeSummary], status: &ClusterStatus) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("volumes", format!("{} known", volumes.len()))];
    let is_lost = |name: &str| status.members.iter().any(|member| member.name == name && !member.reachable);
    let lost = volumes.iter().filter(|volume| is_lost(&volume.owner));
    findings.extend(lost.map(|volume| {
        Finding::wrong(
            format!("volume {}", volume.name),
            format!("its owner {} does not answer", volume.owner),
            format!("`helio why {}` says what happens next", volume.name),
        )
    }));
    findings
}

#[cfg(test)]
mod tests {
    use client_lib::wire::admin::{CertificateStatus, MemberStatus, NbdAddresses};

    use super::super::Level;
    use super::*;

    fn status(members: &[(&str, bool, bool)]) -> ClusterStatus {
        let member = |(id, (name, leader, reachable)): (usize, &(&str, bool, bool))| MemberStatus {
            id: id as u64 + 1,
            name: (*name).to_owned(),
            provider: (*name).to_owned(),
            address: "192.0.2.1:10810".to_owned(),
            voter: true,
            leader: *leader,
            reachable: *reachable,
            rtt_ms: None,
        };
        ClusterStatus {
            node: "a".to_owned(),
            nbd: NbdAddresses { tcp: None, unix: None },
            term: 1,
            members: members.iter().enumerate().map(member).collect(),
            wan_bytes: 0,
        }
    }

    #[test]
    fn what_may_still_be_lost_of_the_voters_is_told() {
        let all = status(&[("a", true, true), ("b", false, true), ("c", false, true)]);
        assert_eq!((leader(&all).level, voters(&all).level), (Level::Ok, Level::Ok));
        assert_eq!(voters(&all).found, "3 of 3 voters answer; 1 may be lost");
        let fewer = status(&[("a", true, true), ("b", false, true), ("c", false, false)]);
        assert_eq!((voters(&fewer).level, unreachable(&fewer).len()), (Level::Warning, 1));
        let none = status(&[("a", false, true), ("b", false, false), ("c", false, false)]);
        assert_eq!((leader(&none).level, voters(&none).level), (Level::Wrong, Level::Wrong));
        assert!(
            voters(&none).found.contains("1 of 3"),
            "it was told that the loss of one more would stop the metadata"
        );
        assert_eq!(voters(&status(&[("a", true, true)])).level, Level::Warning);
    }

    #[test]
    fn clients_that_may_use_everything_are_told_of() {
        let client = |name: &str, role, rules| ClientStatus {
            name: name.to_owned(),
            certificates: vec![CertificateStatus { fingerprint: "aa".to_owned(), issued_ms: 1, until_ms: None }],
            revoked_ms: None,
            role,
            rules,
        };
        let limited = client("limited", Role::Volume, Some(vec!["disk".to_owned()]));
        let (looks, open) = (client("looks", Role::Viewer, None), client("open", Role::Volume, None));
        let list = |clients: Vec<ClientStatus>| ClientList { clients, revoked: Vec::new() };
        assert_eq!(unlimited(&list(vec![limited.clone(), looks.clone()])), None);
        let found = unlimited(&list(vec![limited, looks, open.clone()])).expect("is told");
        assert_eq!(
            (found.level, found.found.as_str()),
            (Level::Warning, "open has no rules, and may use every volume")
        );
        let two =
            unlimited(&list(vec![open.clone(), ClientStatus { name: "other".to_owned(), ..open }])).expect("is told");
        assert_eq!(two.found, "open, other have no rules, and may use every volume");
    }

    #[test]
    fn a_volume_whose_owner_is_lost_is_wrong() {
        let members = status(&[("a", true, true), ("b", false, false)]);
        let volume = |name: &str, owner: &str| VolumeSummary {
            encrypted: false,
            name: name.to_owned(),
            size_bytes: 1,
            owner: owner.to_owned(),
            epoch: 1,
            replicas: Vec::new(),
            durability: "local".to_owned(),
        };
        let findings = lost_owners(&[volume("disk", "a"), volume("other", "b")], &members);
        let wrong: Vec<&str> = findings
            .iter()
            .filter(|finding| finding.level == Level::Wrong)
            .map(|finding| finding.what.as_str())
            .collect();
        assert_eq!(wrong, ["volume other"]);
    }
}
