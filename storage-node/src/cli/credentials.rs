//! `helio cluster client`: credentials of clients, issued, listed and taken back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use client_lib::clock::{Clock, SystemClock};
use client_lib::pki::{CLIENT_LIFETIME, ClientIdentity, ClusterAuthority, Fingerprint, NodePlace, Validity, date};
use client_lib::rights::{Role, VolumeRule};
use client_lib::wire::admin::{
    AccessReport, CertificateStatus, ChangeRights, ClientList, ClientStatus, ClusterStatus, MemberStatus, NoteClient,
    RevokeClient,
};
use client_lib::{ClientName, NodeId};

use super::Common;
use super::client::{Client, print_json, print_table};
use super::rights::{self, RightsVerb, may_use};
use super::snapshot::age;
use crate::data_dir::DataDir;

const DAY: Duration = Duration::from_secs(24 * 3600);
const CLIENT_DAYS: u16 = (CLIENT_LIFETIME.as_secs() / DAY.as_secs()) as u16;

/// Let a client in: write the credentials by which programs and helio-nbd use the cluster's volumes from other machines
#[derive(Debug, Args)]
#[command(
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    after_help = "Example, with the data directory of the node that began the cluster, while it runs:\n  helio cluster client host-7 --out host-7.helio --data /var/lib/heliotrope\n  helio-nbd --cluster host-7.helio --socket /run/disk.sock --export disk   # at host-7\n  helio cluster client list\n  helio cluster client revoke host-7\n  helio cluster client host-8 --out host-8.helio --allow 'vm-8-*' --allow images:ro\n\nWhoever has the file may do what its client may, until it is revoked: with the role `volume`, which is the usual one, use the volumes that its rules are for, and every volume if it was never given a rule."
)]
pub(super) struct ClientArguments {
    /// What the client is called in logs and lists
    #[arg(required = true)]
    name: Option<ClientName>,
    /// The file to write; it is readable by its owner only
    #[arg(long, value_name = "FILE", required = true)]
    out: Option<PathBuf>,
    /// For how many days the credentials count, 1 to 3650
    #[arg(long, value_name = "N", default_value_t = CLIENT_DAYS, value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
    /// Overwrite the file
    #[arg(long)]
    force: bool,
    /// Volumes that the client may use, and no others: a name or a pattern (`vm-*`), for reading only with `:ro`
    #[arg(long, value_name = "VOL[:ro]")]
    allow: Vec<VolumeRule>,
    /// What the client is there for: volume, viewer, operator or admin [default: as it is, volume at first]
    #[arg(long)]
    role: Option<Role>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what was issued to clients, and what was taken back
    #[command(
        after_help = "Examples:\n  helio cluster client list\n  helio cluster client list --file host-7.helio   # does it count?"
    )]
    List {
        /// Show what becomes of who comes with this file
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take back what was issued to a client; connections that exist are ended
    #[command(
        after_help = "Examples:\n  helio cluster client revoke host-7                  # everything that was issued under that name\n  helio cluster client revoke --fingerprint 5f0c…     # one of several; `helio cluster client list` shows them"
    )]
    Revoke {
        /// The client: everything that was issued under its name until now
        #[arg(required_unless_present = "fingerprint", conflicts_with = "fingerprint")]
        name: Option<ClientName>,
        /// SHA-256 of one certificate, in hexadecimal
        #[arg(long, value_name = "HEX")]
        fingerprint: Option<Fingerprint>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Rights(RightsVerb),
}

pub(super) fn run(arguments: ClientArguments, common: &Common) -> anyhow::Result<()> {
    let ClientArguments { name, out, days, force, allow, role, json, verb } = arguments;
    match verb {
        Some(Verb::List { file, json }) => list(common, file.as_deref(), json),
        Some(Verb::Revoke { name, fingerprint, json }) => revoke(common, name, fingerprint, json),
        None => {
            let (name, out) = (name.context("NAME is missing")?, out.context("--out FILE is missing")?);
            let allow = allow.iter().map(VolumeRule::to_string).collect();
            let rights = ChangeRights { client: name.to_string(), role, allow, deny: Vec::new() };
            issue(common, Issue { name: &name, out: &out, rights: &rights, days, force, json })
        }
        Some(Verb::Rights(verb)) => rights::run(verb, common),
    }
}

/// What is to be issued, and how that is told.
struct Issue<'a> {
    name: &'a ClientName,
    out: &'a Path,
    rights: &'a ChangeRights,
    days: u16,
    force: bool,
    json: bool,
}

fn issue(common: &Common, Issue { name, out, rights, days, force, json }: Issue<'_>) -> anyhow::Result<()> {
    let data = common.data();
    let directory = DataDir::authority(&data);
    if !directory.exists() {
        bail!(
            "{} does not hold the cluster's authority; use --data DIR, with the data directory of the node that began the cluster",
            data.display()
        );
    }
    if out.exists() && !force {
        bail!("{} exists; choose another file, or --force to overwrite it", out.display());
    }
    // A client has to begin somewhere; it learns of later members by itself.
    let client = Client::find(common)?;
    let status: ClusterStatus = client.get("/v1/cluster")?;
    let place = |member: &MemberStatus| -> anyhow::Result<NodePlace> {
        Ok(NodePlace { id: NodeId(member.id), name: member.name.parse()?, address: member.address.parse()? })
    };
    let nodes = status.members.iter().map(place).collect::<anyhow::Result<Vec<_>>>()?;
    let authority = match DataDir::identity(&data) {
        identity if identity.exists() => ClusterAuthority::load_of(&directory, &identity)?,
        // That of `helio up`, whose nodes have theirs each.
        _ => ClusterAuthority::load(&directory)?,
    };
    // Before there is a certificate: it never lets anybody do more than it is to.
    if rights.role.is_some() || !rights.allow.is_empty() {
        let changed: AccessReport = client.post("/v1/clients/rights", rights)?;
        if !changed.unconfirmed.is_empty() {
            eprintln!("these nodes have yet to hear what the client may do: {}", changed.unconfirmed.join(", "));
        }
    }
    let validity = Validity::starting(SystemClock::new().unix_ms(), u32::from(days) * DAY);
    let identity = authority.issue_client(name, nodes.clone(), validity)?;
    let fingerprint = identity.fingerprint().to_string();
    // Listed first: whoever has the file is let in, also where everything of that name was taken back before.
    let note = NoteClient { client: name.to_string(), fingerprint: fingerprint.clone(), days: Some(days) };
    // A node that was upgraded and not restarted yet knows of no ends: it lists the certificate without.
    let noted =
        client.post("/v1/clients", &note).or_else(|error| match error.to_string().contains("unknown field `days`") {
            true => client.post("/v1/clients", &NoteClient { days: None, ..note }),
            false => Err(error),
        });
    let noted: AccessReport = noted?;
    identity.save(out)?;
    if let Some(why) = &noted.unlisted_because {
        eprintln!("the certificate counts, and is not in `helio cluster client list`: {why}");
    }
    if json {
        let nodes: Vec<String> = nodes.iter().map(|node| node.address.to_string()).collect();
        return print_json(&serde_json::json!({
            "cluster": authority.cluster().to_string(), "client": name, "fingerprint": fingerprint, "file": out, "nodes": nodes,
            "until_ms": validity.until_ms, "unconfirmed": noted.unconfirmed,
        }));
    }
    let list: ClientList = client.get("/v1/clients")?;
    println!("client {name} of cluster {} is let in with {} until {validity}", authority.cluster(), out.display());
    let status = list.clients.iter().find(|status| status.name == name.as_str());
    if let Some(status) = status {
        println!("role {}: {}", status.role, may_use(status));
    }
    match status.map(|status| status.role) {
        Some(Role::Viewer | Role::Operator) => println!("there: helio --cluster FILE cluster status"),
        _ => println!("there: helio-nbd --cluster FILE --socket PATH"),
    }
    Ok(())
}

fn list(common: &Common, file: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let list: ClientList = Client::find(common)?.get("/v1/clients")?;
    if let Some(file) = file {
        return tell_of(file, &list, json);
    }
    if json {
        return print_json(&list);
    }
    let now_ms = SystemClock::new().unix_ms();
    let heading = ["client", "role", "volumes", "certificate", "issued", "ends", "counts"];
    print_table(&heading, list.clients.iter().flat_map(|client| rows(client, now_ms)).collect());
    let ending = ending(&list, now_ms);
    if !ending.is_empty() {
        let next = "`helio cluster client NAME --out FILE --force` issues new ones";
        println!("\nThese end within a month, or have ended; {next}: {}", ending.join(", "));
    }
    if list.clients.iter().any(|client| client.role == Role::Volume && client.rules.is_none()) {
        println!(
            "\nClients without rules may use every volume: `helio cluster client allow NAME VOL[:ro]` limits one to what its rules are for."
        );
    }
    if !list.revoked.is_empty() {
        println!();
        let row = |revoked: &client_lib::wire::admin::RevokedCertificate| {
            vec![revoked.fingerprint.clone(), age(revoked.revoked_ms)]
        };
        print_table(&["revoked certificate", "when"], list.revoked.iter().map(row).collect());
    }
    Ok(())
}

fn rows(client: &ClientStatus, now_ms: u64) -> Vec<Vec<String>> {
    let row = |certificate: &str, issued: String, ends: String, counts: &str| {
        let (role, volumes) = (client.role.to_string(), rights::volumes(client));
        vec![client.name.clone(), role, volumes, certificate.to_owned(), issued, ends, counts.to_owned()]
    };
    let listed = |it: &CertificateStatus| {
        let counts = if has_ended(it, now_ms) { "no, it has ended" } else { "yes" };
        row(&it.fingerprint, age(it.issued_ms), it.until_ms.map_or_else(|| "never".to_owned(), date), counts)
    };
    let mut rows: Vec<_> = client.certificates.iter().map(listed).collect();
    let none = || "-".to_owned();
    if let Some(at_ms) = client.revoked_ms {
        rows.push(row("all others", none(), none(), &format!("no, revoked {}", age(at_ms))));
    } else if rows.is_empty() {
        rows.push(row("none listed", none(), none(), "-"));
    }
    rows
}

fn has_ended(certificate: &CertificateStatus, now_ms: u64) -> bool {
    certificate.until_ms.is_some_and(|until_ms| until_ms < now_ms)
}

/// Clients all of whose certificates end within a month, or have ended.
pub(super) fn ending(list: &ClientList, now_ms: u64) -> Vec<String> {
    let soon_ms = now_ms + 30 * DAY.as_millis() as u64;
    let is_ending = |client: &&ClientStatus| {
        !client.certificates.is_empty() && client.certificates.iter().all(|it| has_ended(it, soon_ms))
    };
    let told = |client: &ClientStatus| {
        let last = client.certificates.iter().filter_map(|it| it.until_ms).max().unwrap_or(0);
        format!("{} ({})", client.name, date(last))
    };
    list.clients.iter().filter(is_ending).map(told).collect()
}

/// Why a certificate counts or not, as far as the metadata says.
fn standing(name: &ClientName, fingerprint: &str, list: &ClientList) -> (bool, &'static str) {
    let client = list.clients.iter().find(|client| client.name == name.as_str());
    if list.revoked.iter().any(|revoked| revoked.fingerprint == fingerprint) {
        (false, "it was revoked")
    } else if client.is_some_and(|it| it.certificates.iter().any(|listed| listed.fingerprint == fingerprint)) {
        (true, "it is listed")
    } else if client.is_some_and(|client| client.revoked_ms.is_some()) {
        (false, "everything that had been issued under that name was revoked")
    } else {
        (true, "it is not listed, and was not revoked")
    }
}

fn tell_of(file: &Path, list: &ClientList, json: bool) -> anyhow::Result<()> {
    let identity = ClientIdentity::load(file)?;
    let fingerprint = identity.fingerprint().to_string();
    let validity = identity.validity();
    let (counts, why) = match validity.has_ended(SystemClock::new().unix_ms()) {
        true => (false, "it has ended"),
        false => standing(identity.name(), &fingerprint, list),
    };
    if json {
        let until_ms = validity.has_end().then_some(validity.until_ms);
        return print_json(&serde_json::json!({
            "client": identity.name(), "cluster": identity.cluster().to_string(), "fingerprint": fingerprint, "counts": counts,
            "why": why, "until_ms": until_ms,
        }));
    }
    println!("client {} of cluster {}", identity.name(), identity.cluster());
    println!("certificate {fingerprint}");
    println!("ends: {validity}");
    println!("{}: {why}", if counts { "counts" } else { "counts no more" });
    Ok(())
}

fn revoke(
    common: &Common,
    name: Option<ClientName>,
    fingerprint: Option<Fingerprint>,
    json: bool,
) -> anyhow::Result<()> {
    ensure!(name.is_some() || fingerprint.is_some(), "name a client or a fingerprint");
    let (client, fingerprint) = (name.map(|name| name.to_string()), fingerprint.map(|it| it.to_string()));
    let request = RevokeClient { client: client.clone(), fingerprint: fingerprint.clone() };
    let cluster = Client::find(common)?;
    // For what is said afterwards: when it is revoked nothing is listed any more. It must not keep anybody from revoking.
    let before = cluster.get::<ClientList>("/v1/clients");
    let report: AccessReport = cluster.post("/v1/clients/revoke", &request)?;
    if json {
        return print_json(&report);
    }
    let was_listed = before.map(|list| is_listed(&list, client.as_deref(), fingerprint.as_deref()));
    match (client, fingerprint) {
        (Some(client), _) => println!(
            "whatever was issued to client {client} until now counts no more; `helio cluster client {client} --out FILE` issues it anew"
        ),
        (None, fingerprint) => println!("certificate {} counts no more", fingerprint.unwrap_or_default()),
    }
    println!("in force at {}", report.confirmed.join(", "));
    if !report.unconfirmed.is_empty() {
        println!("not confirmed by {}: it is in force there as soon as they hear of it", report.unconfirmed.join(", "));
    }
    match was_listed {
        Ok(true) => {}
        Ok(false) => eprintln!("nothing of that name is listed as issued: `helio cluster client list` shows what is"),
        Err(error) => eprintln!("whether anything of that name was listed as issued is not known: {error:#}"),
    }
    Ok(())
}

/// Whether the list has anything that was issued to this client, or this certificate.
fn is_listed(list: &ClientList, client: Option<&str>, fingerprint: Option<&str>) -> bool {
    list.clients.iter().any(|it| {
        let is_its = |certificate: &CertificateStatus| Some(certificate.fingerprint.as_str()) == fingerprint;
        // One that was given rules may never have been issued anything.
        let is_issued = !it.certificates.is_empty() || it.revoked_ms.is_some();
        (Some(it.name.as_str()) == client && is_issued) || it.certificates.iter().any(is_its)
    })
}

#[cfg(test)]
mod tests {
    use client_lib::wire::admin::RevokedCertificate;
    use nbd_frontend::service::log::LogFormat;

    use super::super::client::tests::answering;
    use super::*;

    #[test]
    fn what_a_file_is_worth_is_told_as_nodes_see_it() {
        let certificate =
            |fingerprint: &str| CertificateStatus { fingerprint: fingerprint.into(), issued_ms: 1, until_ms: None };
        let client = |name: &str, listed: &[&str], revoked_ms| ClientStatus {
            name: name.into(),
            certificates: listed.iter().map(|it| certificate(it)).collect(),
            revoked_ms,
            role: Role::Volume,
            rules: None,
        };
        let list = ClientList {
            clients: vec![client("open", &["aa"], None), client("closed", &["bb"], Some(7))],
            revoked: vec![RevokedCertificate { fingerprint: "cc".into(), revoked_ms: 8 }],
        };
        for (name, fingerprint, expected) in [
            ("open", "aa", true),
            ("open", "dd", true),
            ("closed", "bb", true),
            ("closed", "dd", false),
            ("open", "cc", false),
            ("unknown", "dd", true),
        ] {
            let found = standing(&name.parse().expect("a name"), fingerprint, &list);
            assert_eq!(found.0, expected, "{name} {fingerprint}: {}", found.1);
        }
        assert_eq!(rows(&list.clients[1], 9).len(), 2, "what is listed, and all others");
    }

    /// Revoking read the whole list first, and was refused where that could not be had, as when it was too long to be read.
    #[test]
    fn what_is_listed_need_not_be_known_to_be_revoked() {
        let report = serde_json::to_string(&AccessReport::default()).expect("is plain data");
        let (address, node) = answering(vec![(500, "too much".to_owned()), (200, report)]);
        let directory = tempfile::tempdir().expect("a directory");
        let common = Common {
            data: Some(directory.path().to_owned()),
            cluster: Some(address),
            secret_file: None,
            log: None,
            log_format: LogFormat::Text,
        };
        revoke(&common, Some("host".parse().expect("a name")), None, false).expect("is revoked");
        let asked = node.join().expect("has answered");
        assert_eq!(asked, ["get /v1/clients http/1.1", "post /v1/clients/revoke http/1.1"]);
    }

    #[test]
    fn clients_whose_last_certificate_ends_soon_are_named() {
        let day_ms = DAY.as_millis() as u64;
        let client = |name: &str, ends: &[Option<u64>]| ClientStatus {
            name: name.into(),
            certificates: ends
                .iter()
                .map(|until_ms| CertificateStatus { fingerprint: "aa".into(), issued_ms: 1, until_ms: *until_ms })
                .collect(),
            revoked_ms: None,
            role: Role::Volume,
            rules: None,
        };
        let now_ms = 1_800_000_000_000;
        let (soon, late, over) = (Some(now_ms + 29 * day_ms), Some(now_ms + 31 * day_ms), Some(now_ms - 1));
        let clients = vec![
            client("soon", &[soon, over]),
            client("renewed", &[soon, late]),
            client("endless", &[soon, None]),
            client("ended", &[over]),
            client("unlisted", &[]),
        ];
        let list = ClientList { clients, revoked: Vec::new() };
        let named = ending(&list, now_ms);
        assert_eq!(named, ["soon (2027-02-13 08:00:00 UTC)", "ended (2027-01-15 07:59:59 UTC)"]);
        let shown = rows(&list.clients[0], now_ms);
        assert_eq!(shown.iter().filter(|row| row[6] == "yes").count(), 1);
        assert!(shown.iter().any(|row| row[6] == "no, it has ended"), "{shown:?}");
        assert_eq!(rows(&list.clients[2], now_ms)[1][5], "never");
    }
}
