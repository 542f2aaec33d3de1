//! The cluster, if it runs: who is there, whether stores take writes, and whose volumes have lost their owner.

use std::time::Duration;

use client_lib::clock::{Clock, SystemClock};
use client_lib::error::whole;
use client_lib::rights::Role;
use client_lib::wire::admin::{
    ClientList, ClientStatus, ClusterStatus, MemberStatus, NodeSpace, Overview, StoreSpace, VolumeRow, VolumeSummary,
};

use super::Finding;
use crate::cli::client::{CLUSTER_FILE, Client};
use crate::cli::members::Voters;
use crate::cli::space;
use crate::cli::{Common, credentials};
use crate::config::NodeConfig;
use crate::size::human;
use crate::stores::FULL;

/// A store with less than this part of its room left is short of it.
const SHORT_SHARE: u64 = 10;

/// How often, and after how long, owners are looked at again that have not told anything of their volumes yet.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(200);
/// Most volumes that are told of because something of them waits.
const WAITING_MAX: usize = 10;

/// A cluster that answers.
pub(super) struct Running {
    status: ClusterStatus,
    volumes: Result<Vec<VolumeSummary>, String>,
    waiting: Result<Overview, String>,
    /// By their names, of the nodes that answer others.
    spaces: Vec<(String, Result<NodeSpace, String>)>,
    clients: Result<ClientList, String>,
}

/// The cluster of the settings, of `--cluster` or of the data directory, or why it says nothing; `None` where none was named and
/// none runs.
pub(super) fn find(config: Option<&NodeConfig>, common: &Common) -> Option<Result<Running, String>> {
    let mut common = common.clone();
    if let Some(config) = config {
        common.data.get_or_insert_with(|| config.data.clone());
    }
    // Where that cannot be seen, because of rights perhaps, one may run.
    let is_announced = || common.data().join(CLUSTER_FILE).try_exists().unwrap_or(true);
    (common.cluster.is_some() || is_announced()).then(|| ask(&common).map_err(|error| whole(error.as_ref())))
}

fn ask(common: &Common) -> anyhow::Result<Running> {
    let client = Client::find(common)?;
    let status: ClusterStatus = client.get("/v1/cluster")?;
    let volumes = client.get("/v1/volumes").map_err(|error| whole(error.as_ref()));
    let waiting = waiting(&client).map_err(|error| whole(error.as_ref()));
    let reached = status.members.iter().filter(|member| member.reachable);
    let space = |name: &str| client.get(&format!("/v1/space?node={name}")).map_err(|error| whole(error.as_ref()));
    let spaces = reached.map(|member| (member.name.clone(), space(&member.name))).collect();
    let clients = client.get("/v1/clients").map_err(|error| whole(error.as_ref()));
    Ok(Running { status, volumes, waiting, spaces, clients })
}

/// The volumes of which something waits, as soon as each owner that answers has told.
fn waiting(client: &Client) -> anyhow::Result<Overview> {
    let mut left = LOOKS;
    loop {
        let overview: Overview = client.get(&format!("/v1/overview?waiting=true&limit={WAITING_MAX}"))?;
        let is_untold =
            overview.owners.iter().any(|it| it.volumes > 0 && it.seconds_old.is_none() && it.silence.is_none());
        left -= 1;
        if !is_untold || left == 0 {
            return Ok(overview);
        }
        std::thread::sleep(LOOK);
    }
}

pub(super) fn findings(running: Option<&Result<Running, String>>) -> Vec<Finding> {
    let Running { status, volumes, waiting, spaces, clients } = match running {
        None => return vec![Finding::ok("cluster", "none runs here, or none was named")],
        Some(Err(error)) => return vec![silent(error)],
        Some(Ok(running)) => running,
    };
    let mut findings = vec![leader(status), voters(status)];
    findings.extend(unreachable(status));
    findings.extend(match volumes {
        Ok(volumes) => lost_owners(volumes, status),
        Err(error) => vec![Finding::wrong("volumes", error.clone(), "see `helio cluster status`")],
    });
    findings.extend(match waiting {
        Ok(waiting) => waits(waiting, status),
        Err(error) => vec![untold("what volumes wait for", error, "`helio top` asks again")],
    });
    findings.extend(spaces.iter().flat_map(|(node, space)| stores(node, space)));
    match clients {
        Ok(clients) => {
            findings.extend(unlimited(clients));
            findings.extend(ending(&credentials::ending(clients, SystemClock::new().unix_ms())));
        }
        Err(error) => findings.push(untold("clients", error, "`helio cluster client list` asks again")),
    }
    findings
}

/// One that was named, or that says where it is, and cannot be looked at.
fn silent(error: &str) -> Finding {
    let advice = "start it, or see its log; --cluster, --data and --secret-file say who is asked, and with what";
    Finding::wrong("cluster", error, advice)
}

/// What could not be looked at of a cluster that answers.
fn untold(what: impl Into<String>, error: &str, advice: impl Into<String>) -> Finding {
    Finding::warning(what, format!("not looked at: {error}"), advice)
}

fn stores(node: &str, space: &Result<NodeSpace, String>) -> Vec<Finding> {
    match space {
        Ok(space) => space.stores.iter().filter_map(|store| full_or_faulty(node, store)).collect(),
        Err(error) => {
            let advice = format!("`helio node space --node {node}` asks again");
            vec![untold(format!("stores of node {node}"), error, advice)]
        }
    }
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
        (..=2, _) => Finding::warning("voters", found, too_few(status)),
        (_, 0) => Finding::warning("voters", found, "the loss of one more stops the metadata: bring the others back"),
        (_, losable) => Finding::ok("voters", format!("{found}; {losable} may be lost")),
    }
}

/// What to do where the loss of one voter stops the metadata because there are too few of them.
fn too_few(status: &ClusterStatus) -> String {
    let no_voters = status.members.iter().filter(|member| !member.voter);
    let (there, off): (Vec<_>, Vec<_>) = no_voters.partition(|member| member.reachable);
    let named =
        |members: &[&MemberStatus]| members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ");
    let next = match (status.members.len(), there.is_empty()) {
        (..=2, _) => "a third node makes it survive one".to_owned(),
        (_, true) => format!("start {}, which is to vote, too", named(&off)),
        (_, false) => format!(
            "{} follows without a vote, and gets one by itself within a minute; if not, see the leader's log{}",
            named(&there),
            if off.is_empty() { String::new() } else { format!(", and start {}", named(&off)) }
        ),
    };
    format!("the loss of one stops the metadata: {next}")
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
    // As the alert has it (`HelioDiskNearlyFull`): nearly everything of a store that was written through for long is garbage.
    let room = store.available_bytes.saturating_add(store.garbage_bytes);
    let whole = room.saturating_add(store.live_bytes);
    let is_short = room < whole / SHORT_SHARE;
    is_short.then(|| {
        let found = format!("{} left of {}, with what can be cleaned", human(room), human(whole));
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

/// Volumes that are not as they should be, but for those that have lost their owner.
fn waits(overview: &Overview, status: &ClusterStatus) -> Vec<Finding> {
    let answers = |row: &&VolumeRow| status.members.iter().any(|member| member.name == row.owner && member.reachable);
    let told = |row: &VolumeRow| {
        let advice = format!("`helio why {}` says more", row.name);
        Finding::warning(format!("volume {}", row.name), row.waits.join("; "), advice)
    };
    let mut findings: Vec<Finding> = overview.rows.iter().filter(answers).map(told).collect();
    let more = overview.matching.saturating_sub(overview.rows.len() as u64);
    if more > 0 {
        let advice = "`helio top` lists them: w shows those that wait";
        findings.push(Finding::warning("volumes", format!("something waits of {more} more"), advice));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use client_lib::wire::admin::{CertificateStatus, NbdAddresses};
    use nbd_frontend::service::log::LogFormat;

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

    /// "A third node makes it survive one" was said of three nodes, of which one voted.
    #[test]
    fn who_follows_without_a_vote_is_told_from_a_node_that_is_not_there() {
        let advice = |members: &[(&str, bool, bool)]| {
            let mut status = status(members);
            status.members.iter_mut().skip(1).for_each(|member| member.voter = false);
            let finding = voters(&status);
            assert_eq!((finding.level, finding.found.as_str()), (Level::Warning, "1 of 1 voters answer"));
            finding.advice.expect("it says what to do")
        };
        assert!(advice(&[("a", true, true)]).ends_with("a third node makes it survive one"));
        assert!(advice(&[("a", true, true), ("b", false, true)]).ends_with("a third node makes it survive one"));
        let follows = advice(&[("a", true, true), ("b", false, true), ("c", false, false)]);
        assert!(follows.contains(": b follows without a vote") && follows.ends_with(", and start c"), "{follows}");
        let off = advice(&[("a", true, true), ("b", false, false), ("c", false, false)]);
        assert!(off.ends_with(": start b, c, which is to vote, too"), "{off}");
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

    /// What the cleaner gets back was not counted: a store that was written through once, with nine tenths of it free to be
    /// cleaned, was called short of room.
    #[test]
    fn a_store_is_short_of_room_when_cleaning_would_not_help() {
        let level = |available_bytes, garbage_bytes, live_bytes| {
            let store = StoreSpace { available_bytes, garbage_bytes, live_bytes, ..StoreSpace::default() };
            full_or_faulty("a", &store).map(|finding| finding.level)
        };
        assert_eq!(level(5, 900, 95), None);
        assert_eq!(level(5, 94, 901), Some(Level::Warning));
        assert_eq!(level(5, 95, 900), None, "a tenth");
    }

    /// A node whose stores could not be asked for had none, as it seemed.
    #[test]
    fn what_a_cluster_does_not_tell_of_itself_is_a_warning() {
        let (status, why) = (status(&[("a", true, true)]), || "no reply from node a".to_owned());
        let spaces = vec![("a".to_owned(), Err(why()))];
        let running = Ok(Running { status, volumes: Ok(Vec::new()), waiting: Err(why()), spaces, clients: Err(why()) });
        let found = findings(Some(&running));
        for what in ["stores of node a", "clients", "what volumes wait for"] {
            let finding = found.iter().find(|finding| finding.what == what).expect("is told");
            assert_eq!(
                (finding.level, finding.found.as_str()),
                (Level::Warning, "not looked at: no reply from node a")
            );
        }
    }

    /// Three blocks were damaged that nobody had any more, and nothing was wrong.
    #[test]
    fn a_volume_that_is_not_as_it_should_be_is_told_of_once() {
        let members = status(&[("a", true, true), ("b", false, false)]);
        let row = |name: &str, owner: &str, waits: &[&str]| VolumeRow {
            name: name.to_owned(),
            owner: owner.to_owned(),
            waits: waits.iter().map(|wait| (*wait).to_owned()).collect(),
            ..VolumeRow::default()
        };
        let rows = vec![
            row("disk", "a", &["3 blocks are damaged", "a flush waits"]),
            row("lost", "b", &["its owner is silent"]),
        ];
        let overview = Overview { matching: 5, rows, ..Overview::default() };
        let found = waits(&overview, &members);
        let told: Vec<(&str, &str)> =
            found.iter().map(|finding| (finding.what.as_str(), finding.found.as_str())).collect();
        assert_eq!(
            told,
            [("volume disk", "3 blocks are damaged; a flush waits"), ("volumes", "something waits of 3 more")]
        );
        assert!(found.iter().all(|finding| finding.level == Level::Warning));
    }

    fn common(data: &Path, cluster: Option<&str>) -> Common {
        Common {
            data: Some(data.to_owned()),
            cluster: cluster.map(str::to_owned),
            secret_file: None,
            log: None,
            log_format: LogFormat::Text,
        }
    }

    /// "ok cluster: none runs here" was said of one that did not answer, of one that refused, and of a file that could not be
    /// read: of just those that there is something wrong with.
    #[test]
    fn a_cluster_that_was_named_or_says_where_it_is_and_does_not_answer_is_wrong() {
        let directory = tempfile::tempdir().expect("a directory");
        let judged = |cluster: Option<&str>| {
            let found = findings(find(None, &common(directory.path(), cluster)).as_ref());
            assert_eq!(found.len(), 1, "{found:?}");
            (found[0].what.clone(), found[0].level)
        };
        let (fine, wrong) = (("cluster".to_owned(), Level::Ok), ("cluster".to_owned(), Level::Wrong));
        assert_eq!(judged(None), fine);
        let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("an address");
        assert_eq!(judged(Some(&closed.to_string())), wrong);
        let file = directory.path().join("host.helio");
        std::fs::write(&file, "no credentials").expect("is written");
        assert_eq!(judged(file.to_str()), wrong);
        std::fs::write(directory.path().join(CLUSTER_FILE), "{").expect("is written");
        assert_eq!(judged(None), wrong);
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
