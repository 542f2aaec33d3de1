//! `helio link`: the ways from node to node, what went over them, and how much they may take.

use anyhow::bail;
use clap::{Args, Subcommand};
use client_lib::NodeName;
use client_lib::policy::parse_minute;
use client_lib::wire::admin::{ChangeLink, FetchStatus, FreightStatus, LinkList, LinkStatus, LinkWindow};

use super::Common;
use super::client::{Client, print_json, print_table};
use crate::size::{self, human};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the links: what each node has sent to each other one, and what it had not to send
    #[command(
        after_help = "Counted since each node was started, of all volumes. docs/links.md explains every column.\n\nExamples:\n  helio link list\n  helio link list --json"
    )]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Set(Set),
}

/// Say how much bulk data may go from one node to another, always or at times of the day
///
/// Manifests, flushes in a class of durability, and what is fetched on demand are not held up; writes never are. A handover with
/// --mode synced does not wait for it either.
#[derive(Debug, Args)]
#[command(
    after_help = "Rates are bytes per second: a number with K, M or G, `unlimited`, or 0 for nothing. Times are UTC; the first window that fits counts.\n\nExamples:\n  helio link set a b --rate 20M\n  helio link set a b --rate 0 --window 22:00-06:00=unlimited     # at night only\n  helio link set a b --rate unlimited --no-windows"
)]
pub(super) struct Set {
    /// The node that sends
    from: NodeName,
    /// The node that it sends to
    to: NodeName,
    /// How much it may take outside all windows
    #[arg(long, value_parser = rate)]
    rate: Option<Rate>,
    /// Another rate at a time of the day; replaces the windows there are
    #[arg(long = "window", value_name = "FROM-TO=RATE", value_parser = window, conflicts_with = "no_windows")]
    windows: Vec<LinkWindow>,
    /// The same rate all day
    #[arg(long)]
    no_windows: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Bytes per second, or as many as come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate(Option<u64>);

fn rate(text: &str) -> Result<Rate, String> {
    match text {
        "unlimited" => Ok(Rate(None)),
        text => size::parse(text).map(|bytes| Rate(Some(bytes))).map_err(|_| {
            format!("{text:?} is no rate: use bytes per second, such as 20M, `unlimited`, or 0 for nothing")
        }),
    }
}

fn window(text: &str) -> Result<LinkWindow, String> {
    let wrong = || format!("{text:?} is no window: write it as 22:00-06:00=20M, in UTC");
    let (times, allowed) = text.split_once('=').ok_or_else(wrong)?;
    let (from, to) = times.split_once('-').ok_or_else(wrong)?;
    for time in [from, to] {
        parse_minute(time).map_err(|error| error.to_string())?;
    }
    Ok(LinkWindow { from: from.to_owned(), to: to.to_owned(), rate_bytes_per_second: rate(allowed)?.0 })
}

pub(super) fn run(verb: Verb, common: &Common) -> anyhow::Result<()> {
    match verb {
        Verb::List { json } => list(json, common),
        Verb::Set(set) => self::set(&set, common),
    }
}

fn list(json: bool, common: &Common) -> anyhow::Result<()> {
    let list: LinkList = Client::find(common)?.get("/v1/links")?;
    if json {
        return print_json(&list);
    }
    let heading = [
        "from",
        "to",
        "rtt",
        "rate",
        "limit",
        "written",
        "sent",
        "on the wire",
        "zero",
        "overwritten",
        "same",
        "relayed",
        "compressed",
        "late",
    ];
    print_table(&heading, list.links.iter().map(row).collect());
    for link in list.links.iter().filter(|link| link.rate_bytes_per_second.is_some() || !link.windows.is_empty()) {
        println!("{}; now {}", limit_sentence(link), allowed(link.limit_bytes_per_second));
    }
    for node in &list.silent {
        println!("node {node} does not answer: the links from it are not shown");
    }
    Ok(())
}

fn set(set: &Set, common: &Common) -> anyhow::Result<()> {
    let windows = (set.no_windows || !set.windows.is_empty()).then(|| set.windows.clone());
    let change = ChangeLink { rate_bytes_per_second: set.rate.map(|rate| rate.0), windows };
    if change == ChangeLink::default() {
        bail!("what is the link to take? --rate, --window or --no-windows; `helio link list` shows how it is");
    }
    let link: LinkStatus = Client::find(common)?.post(&format!("/v1/links/{}/{}", set.from, set.to), &change)?;
    if set.json {
        return print_json(&link);
    }
    println!("{}", limit_sentence(&link));
    Ok(())
}

/// How much a link may take, and when.
fn limit_sentence(link: &LinkStatus) -> String {
    let (from, to) = (&link.from, &link.to);
    let mut sentence = format!("from {from} to {to}: {}", allowed(link.rate_bytes_per_second));
    for window in &link.windows {
        let LinkWindow { from, to, rate_bytes_per_second } = window;
        sentence.push_str(&format!(", {from} to {to} UTC {}", allowed(*rate_bytes_per_second)));
    }
    sentence
}

fn allowed(rate: Option<u64>) -> String {
    match rate {
        None => "unlimited".to_owned(),
        Some(0) => "nothing".to_owned(),
        Some(rate) => format!("{}/s", human(rate)),
    }
}

fn row(link: &LinkStatus) -> Vec<String> {
    let freight = &link.freight;
    vec![
        link.from.clone(),
        link.to.clone(),
        link.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1} ms")),
        link.measured_bytes_per_second.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", human(rate))),
        link.limit_bytes_per_second.map_or_else(|| "-".to_owned(), |limit| allowed(Some(limit))),
        human(freight.written_bytes),
        human(freight.sent_bytes),
        human(freight.wire_bytes),
        human(freight.zero_bytes),
        human(freight.overwritten_bytes),
        human(freight.same_bytes),
        human(freight.relayed_bytes),
        human(freight.compressed_bytes),
        link.hedged_calls.to_string(),
    ]
}

/// Those of `parts` that are any bytes, with what they are; `None` when there are none.
fn enumerated(parts: &[(u64, &str)]) -> Option<String> {
    let told = parts.iter().filter(|(bytes, _)| *bytes > 0).map(|(bytes, what)| format!("{} {what}", human(*bytes)));
    let told: Vec<String> = told.collect();
    (!told.is_empty()).then(|| told.join(", "))
}

/// What a new owner lacked, and how it comes by it; nothing where it lacked nothing.
pub(super) fn fetch_sentence(owner: &str, fetch: &FetchStatus) -> Option<String> {
    let parts = [
        (fetch.demanded_bytes, "as guests asked for it"),
        (fetch.near_bytes, "ahead of their reads"),
        (fetch.hot_bytes, "because it was hot at the last owner"),
        (fetch.rest_bytes, "in the background"),
        (fetch.overwritten_bytes, "not needed, it was written again"),
    ];
    let parts = enumerated(&parts)?;
    let hedged = match fetch.hedged_calls {
        0 => String::new(),
        calls => format!("; {calls} answers were late, and another node was asked as well"),
    };
    Some(format!("{owner} lacked {}; fetched: {}{hedged}", human(fetch.lacked_bytes), parts))
}

/// What was sent to a replica, and why not more; nothing where nothing was written.
pub(super) fn sentence(replica: &str, freight: &FreightStatus) -> Option<String> {
    if freight.written_bytes + freight.sent_bytes == 0 {
        return None;
    }
    let saved = [
        (freight.overwritten_bytes, "written again before it was sent"),
        (freight.zero_bytes, "zeroes"),
        (freight.same_bytes, "there already"),
        (freight.relayed_bytes, "had from a node beside it"),
        (freight.compressed_bytes, "by compression"),
    ];
    let saved = enumerated(&saved).map_or_else(String::new, |saved| format!("; saved: {saved}"));
    let wire = human(freight.wire_bytes);
    let of = match freight.written_bytes {
        0 => "of what was written before".to_owned(),
        written => format!("for {} written", human(written)),
    };
    Some(format!("to {replica} went {wire} {of}{saved}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_windows_are_read_and_told() {
        assert_eq!(rate("20M"), Ok(Rate(Some(20 << 20))));
        assert_eq!((rate("unlimited"), rate("0")), (Ok(Rate(None)), Ok(Rate(Some(0)))));
        assert!(rate("fast").expect_err("no rate").contains("20M"));
        let night = window("22:00-06:00=unlimited").expect("reads");
        assert_eq!(night, LinkWindow { from: "22:00".into(), to: "06:00".into(), rate_bytes_per_second: None });
        for text in ["", "22:00", "22:00-06:00", "22:00=5M", "22-06=5M", "22:00-06:00=x"] {
            assert!(window(text).is_err(), "{text}");
        }
        let rate_bytes_per_second = Some(0);
        let (from, to) = ("a".to_owned(), "b".to_owned());
        let link = LinkStatus { from, to, rate_bytes_per_second, windows: vec![night], ..LinkStatus::default() };
        assert_eq!(limit_sentence(&link), "from a to b: nothing, 22:00 to 06:00 UTC unlimited");
    }

    #[test]
    fn what_a_new_owner_fetches_is_told_by_its_reasons() {
        assert_eq!(fetch_sentence("b", &FetchStatus::default()), None);
        let fetch = FetchStatus {
            lacked_bytes: 8 << 20,
            demanded_bytes: 1 << 20,
            hot_bytes: 2 << 20,
            overwritten_bytes: 5 << 20,
            hedged_calls: 3,
            ..FetchStatus::default()
        };
        assert_eq!(
            fetch_sentence("b", &fetch).as_deref(),
            Some(
                "b lacked 8 MiB; fetched: 1 MiB as guests asked for it, 2 MiB because it was hot at the last owner, 5 MiB not needed, it was written again; 3 answers were late, and another node was asked as well"
            )
        );
    }

    #[test]
    fn what_was_saved_is_told_by_its_means() {
        assert_eq!(sentence("b", &FreightStatus::default()), None);
        let freight = FreightStatus {
            written_bytes: 10 << 20,
            sent_bytes: 6 << 20,
            wire_bytes: 2 << 20,
            zero_bytes: 1 << 20,
            overwritten_bytes: 3 << 20,
            same_bytes: 5 << 20,
            relayed_bytes: 7 << 20,
            compressed_bytes: 4 << 20,
        };
        assert_eq!(
            sentence("b", &freight).as_deref(),
            Some(
                "to b went 2 MiB for 10 MiB written; saved: 3 MiB written again before it was sent, 1 MiB zeroes, 5 MiB there already, 7 MiB had from a node beside it, 4 MiB by compression"
            )
        );
        let plain =
            FreightStatus { written_bytes: 4096, sent_bytes: 4096, wire_bytes: 4096, ..FreightStatus::default() };
        assert_eq!(sentence("b", &plain).as_deref(), Some("to b went 4 KiB for 4 KiB written"));
        let earlier = FreightStatus { sent_bytes: 4096, wire_bytes: 4096, ..FreightStatus::default() };
        assert_eq!(sentence("b", &earlier).as_deref(), Some("to b went 4 KiB of what was written before"));
    }
}
