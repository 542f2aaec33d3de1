//! `helio cluster audit`: what administrators have done.

use clap::Args;
use client_lib::wire::admin::{AuditEntry, AuditList};

use super::Common;
use super::client::{Client, print_json, print_table};
use super::snapshot::age;
use crate::serve::audit::printable;

/// Show what administrators asked of the nodes, and what came of it
#[derive(Debug, Args)]
#[command(
    after_help = "Each node keeps what it was asked itself, in its data directory (audit.jsonl). Who asked is the client that its certificate names, or, on the node's own machine, whoever may read the node's secret; then what his command says he is called is told, too, which nothing proves.\n\nExamples:\n  helio cluster audit\n  helio cluster audit --limit 1000 --json"
)]
pub(super) struct Audit {
    /// How many acts of each node, the newest ones
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Audit, common: &Common) -> anyhow::Result<()> {
    let list: AuditList = Client::find(common)?.get(&format!("/v1/audit?limit={}", arguments.limit))?;
    if arguments.json {
        return print_json(&list);
    }
    print_table(&["when", "at", "who", "act", "outcome"], list.entries.iter().map(row).collect());
    if !list.silent.is_empty() {
        println!("not told by {}", list.silent.join(", "));
    }
    Ok(())
}

fn row(entry: &AuditEntry) -> Vec<String> {
    let outcome = match (&entry.error, entry.status) {
        (Some(error), _) => format!("failed: {error}"),
        (None, 0) => "not waited for".to_owned(),
        (None, _) => "done".to_owned(),
    };
    let who = who(entry);
    let act = if entry.with.is_empty() { entry.act.clone() } else { format!("{} {}", entry.act, entry.with) };
    // Nodes keep them so by now; what earlier ones kept is as it came.
    let printable = [entry.node.as_str(), &who, &act, &outcome].map(printable);
    std::iter::once(age(entry.at_ms)).chain(printable).collect()
}

/// A client, as it has proven to be; else what somebody at the node says that he is called.
fn who(entry: &AuditEntry) -> String {
    match (entry.identity.starts_with("client "), entry.user.is_empty()) {
        (true, _) => entry.identity.clone(),
        (false, true) => "-".to_owned(),
        (false, false) => entry.user.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes noted what they were asked with the escape sequences in it, and it was printed so.
    #[test]
    fn what_was_noted_does_nothing_to_a_terminal() {
        let entry = AuditEntry {
            user: "\u{9b}2J".into(),
            act: "POST /v1/volumes".into(),
            with: "{\u{1b}[1A".into(),
            error: Some("\u{7f}no JSON".into()),
            ..AuditEntry::default()
        };
        let told = row(&entry)[1..].join("|");
        assert_eq!(told, "|\u{fffd}2J|POST /v1/volumes {\u{fffd}[1A|failed: \u{fffd}no JSON");
    }

    #[test]
    fn a_proven_client_goes_before_what_somebody_says() {
        let entry = |identity: &str, user: &str| {
            who(&AuditEntry { identity: identity.into(), user: user.into(), ..AuditEntry::default() })
        };
        assert_eq!(entry("client ops", "root"), "client ops");
        assert_eq!(entry("whoever has this node's secret", "root"), "root");
        assert_eq!((entry("", "root").as_str(), entry("", "").as_str()), ("root", "-"));
    }
}
