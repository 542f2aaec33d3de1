//! What clients may do: `helio cluster client allow|deny|role|show`.

use anyhow::Context;
use clap::Subcommand;
use client_lib::ClientName;
use client_lib::pki::date;
use client_lib::rights::{Right, Role, VolumeRule};
use client_lib::wire::admin::{AccessReport, ChangeRights, ClientList, ClientStatus, VolumeSummary};

use super::Common;
use super::client::{Client, print_json};
use super::snapshot::age;

#[derive(Debug, Subcommand)]
pub(super) enum RightsVerb {
    /// Let a client use volumes; from its first rule on it may use nothing else
    #[command(
        after_help = "Examples:\n  helio cluster client allow host-7 disk            # read and write\n  helio cluster client allow host-7 'vm-7-*' images:ro\n  helio cluster client allow host-7 '*'             # everything, as without rules\n\nA rule of the same name or pattern is replaced. It counts at once, for what is in use, too."
    )]
    Allow {
        /// The client
        name: ClientName,
        /// Volumes: a name or a pattern, for reading only with `:ro`
        #[arg(required = true, value_name = "VOL[:ro]")]
        rules: Vec<VolumeRule>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Withdraw rules of a client; what it has in use of these volumes ends
    #[command(
        after_help = "Example:\n  helio cluster client deny host-7 'vm-7-*'\n\nRules are withdrawn as they were given; `helio cluster client show NAME` shows them. Without any rule left the client may use no volume."
    )]
    Deny {
        /// The client
        name: ClientName,
        /// Rules, as they were given; with `:ro` only if they are for reading
        #[arg(required = true, value_name = "VOL[:ro]")]
        rules: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what a client is there for
    #[command(
        after_help = "Roles:\n  volume    uses volumes, as its rules say; may ask nothing of the admin API\n  viewer    looks at everything in the admin API, and changes nothing; uses no volume\n  operator  looks, moves volumes, makes snapshots, sets policies, drains; uses no volume\n  admin     everything\n\nExample:\n  helio cluster client role monitoring viewer"
    )]
    Role {
        /// The client
        name: ClientName,
        /// volume, viewer, operator or admin
        role: Role,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a client may do, and what was issued to it
    Show {
        /// The client
        name: ClientName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(verb: RightsVerb, common: &Common) -> anyhow::Result<()> {
    let request = |name: &ClientName| ChangeRights { client: name.to_string(), ..ChangeRights::default() };
    match verb {
        RightsVerb::Allow { name, rules, json } => {
            let allow = rules.iter().map(VolumeRule::to_string).collect();
            change(common, &ChangeRights { allow, ..request(&name) }, json)
        }
        RightsVerb::Deny { name, rules, json } => change(common, &ChangeRights { deny: rules, ..request(&name) }, json),
        RightsVerb::Role { name, role, json } => {
            change(common, &ChangeRights { role: Some(role), ..request(&name) }, json)
        }
        RightsVerb::Show { name, json } => show(common, &name, json),
    }
}

fn change(common: &Common, request: &ChangeRights, json: bool) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let report: AccessReport = client.post("/v1/clients/rights", request)?;
    if json {
        return print_json(&report);
    }
    let list: ClientList = client.get("/v1/clients")?;
    let status = list.clients.iter().find(|status| status.name == request.client);
    let status = status.with_context(|| format!("client {} is not listed", request.client))?;
    println!("client {}, role {}: {}", status.name, status.role, may_use(status));
    for still in request.deny.iter().filter_map(|rule| still_allowed(status, rule)) {
        println!("{still}");
    }
    if status.certificates.is_empty() && status.revoked_ms.is_none() {
        println!(
            "nothing is listed that was issued to a client of that name; `helio cluster client {} --out FILE` does that",
            status.name
        );
    }
    println!("in force at {}", report.confirmed.join(", "));
    if !report.unconfirmed.is_empty() {
        println!("not confirmed by {}: it is in force there as soon as they hear of it", report.unconfirmed.join(", "));
    }
    Ok(())
}

/// Warns of a volume whose rule was withdrawn, and that another rule is for.
fn still_allowed(status: &ClientStatus, denied: &str) -> Option<String> {
    let denied: VolumeRule = denied.parse().ok()?;
    let name = denied.pattern.as_name()?;
    let rule = rules(status).find(|rule| rule.pattern.matches(name))?;
    Some(format!("volume {name} may still be used, by rule {rule}"))
}

fn rules(status: &ClientStatus) -> impl Iterator<Item = VolumeRule> {
    status.rules.iter().flatten().filter_map(|rule| rule.parse().ok())
}

/// The volumes that a client may use, in a word or its rules.
pub(super) fn volumes(status: &ClientStatus) -> String {
    match (status.role, &status.rules) {
        (Role::Viewer | Role::Operator, _) => "none".to_owned(),
        (Role::Admin, _) => "all".to_owned(),
        (Role::Volume, None) => "all (no rules)".to_owned(),
        (Role::Volume, Some(rules)) if rules.is_empty() => "none".to_owned(),
        (Role::Volume, Some(rules)) => rules.join(" "),
    }
}

/// The same as a sentence.
pub(super) fn may_use(status: &ClientStatus) -> String {
    match (status.role, &status.rules) {
        (Role::Viewer | Role::Operator, Some(rules)) if !rules.is_empty() => {
            format!("may use no volume; its rules, {}, are for the role `volume`", rules.join(", "))
        }
        (Role::Viewer | Role::Operator, _) => "may use no volume".to_owned(),
        (Role::Admin, _) => "may use every volume".to_owned(),
        (Role::Volume, None) => format!(
            "has no rules, so it may use every volume; `helio cluster client allow {} VOL[:ro]` limits it to what its rules are for",
            status.name
        ),
        (Role::Volume, Some(rules)) if rules.is_empty() => "has no rule left, so it may use no volume".to_owned(),
        (Role::Volume, Some(rules)) => format!("may use {}, and nothing else", rules.join(", ")),
    }
}

fn show(common: &Common, name: &ClientName, json: bool) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let list: ClientList = client.get("/v1/clients")?;
    let status = list.clients.into_iter().find(|status| status.name == name.as_str());
    let status = status.with_context(|| {
        format!("nothing was issued to client {name}, and it was given no rules; `helio cluster client list` shows those that there are")
    })?;
    if json {
        return print_json(&status);
    }
    println!("client {name}, role {}: {}", status.role, may_use(&status));
    if status.role == Role::Volume {
        let volumes: Vec<VolumeSummary> = client.get("/v1/volumes")?;
        let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        rules(&status).for_each(|rule| println!("rule {}", told(&rule, &names)));
    }
    for certificate in &status.certificates {
        let ends = certificate.until_ms.map_or_else(|| "no end".to_owned(), |ms| format!("ends {}", date(ms)));
        println!("certificate {}, issued {}, {ends}", certificate.fingerprint, age(certificate.issued_ms));
    }
    if let Some(at_ms) = status.revoked_ms {
        println!("all other certificates were revoked {}", age(at_ms));
    }
    Ok(())
}

/// A rule, and the volumes that it is for now.
fn told(rule: &VolumeRule, volumes: &[&str]) -> String {
    const NAMED_MAX: usize = 8;
    let meant: Vec<&str> = volumes.iter().copied().filter(|name| rule.pattern.matches(name)).collect();
    let what = if rule.right == Right::Read { "reading" } else { "reading and writing" };
    let which = match meant.len() {
        0 => "no volume is called so now".to_owned(),
        more if more > NAMED_MAX => format!("{}, and {} more", meant[..NAMED_MAX].join(", "), more - NAMED_MAX),
        _ => meant.join(", "),
    };
    format!("{rule}: {what}; {which}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(role: Role, rules: Option<&[&str]>) -> ClientStatus {
        let rules = rules.map(|rules| rules.iter().map(|rule| (*rule).to_owned()).collect());
        ClientStatus { name: "host".into(), certificates: Vec::new(), revoked_ms: None, role, rules }
    }

    #[test]
    fn it_is_told_plainly_what_may_be_used() {
        for (role, rules, volumes_told, sentence) in [
            (Role::Volume, None, "all (no rules)", "every volume"),
            (Role::Volume, Some(&[][..]), "none", "no volume"),
            (Role::Volume, Some(&["disk:ro", "vm-*"][..]), "disk:ro vm-*", "disk:ro, vm-*, and nothing else"),
            (Role::Viewer, None, "none", "no volume"),
            (Role::Operator, Some(&["disk"][..]), "none", "no volume"),
            (Role::Admin, Some(&["disk"][..]), "all", "every volume"),
        ] {
            let status = status(role, rules);
            assert_eq!(volumes(&status), volumes_told, "{role}");
            assert!(may_use(&status).contains(sentence), "{role}: {}", may_use(&status));
        }
    }

    #[test]
    fn a_rule_that_is_left_for_a_volume_is_named() {
        let status = status(Role::Volume, Some(&["vm-*:ro"]));
        let told = still_allowed(&status, "vm-1").expect("a pattern is for it");
        assert_eq!(told, "volume vm-1 may still be used, by rule vm-*:ro");
        assert_eq!((still_allowed(&status, "disk"), still_allowed(&status, "disk-*")), (None, None));
    }

    #[test]
    fn a_rule_is_shown_with_the_volumes_that_it_is_for() {
        let rule: VolumeRule = "vm-*:ro".parse().expect("a rule");
        assert_eq!(told(&rule, &["disk", "vm-1"]), "vm-*:ro: reading; vm-1");
        assert!(told(&rule, &["disk"]).contains("no volume is called so now"));
        let many: Vec<String> = (0..10).map(|number| format!("vm-{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(told(&rule, &many).ends_with("vm-7, and 2 more"));
    }
}
