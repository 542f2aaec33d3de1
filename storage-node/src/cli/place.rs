//! `helio volume place`, `helio group place` and `helio node label`: where copies are to be.

use clap::Args;
use client_lib::policy::placement::Placement;
use client_lib::wire::admin::{ChangeLabels, ChangePlacement, NodeLabels, PlacementStatus};
use client_lib::{GroupName, Label, NodeName, VolumeName};

use super::Common;
use super::client::{Client, print_json};

/// Say where copies are to be, or see how they stand to that
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio volume place disk \"2 in eu, 1 elsewhere, never cloud-3\"\n  helio volume place disk \"3 anywhere\" --dry-run\n  helio volume place disk\n  helio volume place disk --none\n  helio group place db \"2 in eu, 1 elsewhere\"\n\nA rule says how many copies go where, the owner's among them: `N in WORD`, `N elsewhere`, `N anywhere`, `never WORD`. Words are providers or labels of nodes \
                  (`helio node label`); `eu+ssd` means both. The owner keeps to it: copies are added first, and what is too much is given up when they are complete."
)]
pub(super) struct Place {
    /// The volume, or the group
    name: String,
    /// The rule; without one, how it stands now
    rule: Option<Placement>,
    /// Leave copies where they are from now on
    #[arg(long, conflicts_with = "rule")]
    none: bool,
    /// Show what would change, and change nothing
    #[arg(long, requires = "rule")]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Say what a node is, for rules of placement
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio node label a eu ssd\n  helio node label a --remove ssd\n  helio node label a            # which it has\n\nA label is a word, such as a region or a kind of disk. `helio volume place` uses them. A node that is `leaving` gets no further copies by rules, and others take the place of those it has; `helio node remove` says so of it, too."
)]
pub(super) struct SetLabels {
    /// The node
    node: NodeName,
    /// The labels that it has from now on, too
    labels: Vec<Label>,
    /// A label that it has no more; may be given several times
    #[arg(long, value_name = "LABEL")]
    remove: Vec<Label>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Places the volume `name`.
pub(super) fn run_volume(arguments: &Place, common: &Common) -> anyhow::Result<()> {
    let name: VolumeName = arguments.name.parse()?;
    run(arguments, &format!("volume {name}"), &format!("/v1/volumes/{name}/placement"), common)
}

/// Places all volumes of the group `name`.
pub(super) fn run_group(arguments: &Place, common: &Common) -> anyhow::Result<()> {
    let name: GroupName = arguments.name.parse()?;
    run(arguments, &format!("group {name}"), &format!("/v1/groups/{name}/placement"), common)
}

fn run(arguments: &Place, what: &str, path: &str, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let rule = arguments.rule.as_ref().map(ToString::to_string);
    let status: PlacementStatus = match rule.is_some() || arguments.none {
        true => client.post(path, &ChangePlacement { rule, dry_run: arguments.dry_run })?,
        false => client.get(path)?,
    };
    if arguments.json {
        return print_json(&status);
    }
    for line in lines(what, &status) {
        println!("{line}");
    }
    Ok(())
}

/// How copies stand to their rule, in sentences.
pub(super) fn lines(what: &str, status: &PlacementStatus) -> Vec<String> {
    let copies = format!("copies at {}", status.copies.join(", "));
    let Some(rule) = &status.rule else { return vec![format!("{what} has no rule of placement; {copies}")] };
    let mut lines = vec![format!("{what}: {rule}; {copies}")];
    lines.extend(departures(status));
    if lines.len() == 1 {
        lines.push("they are where they are to be".to_owned());
    }
    lines
}

/// What is not as the rule wants it.
pub(super) fn departures(status: &PlacementStatus) -> Vec<String> {
    let mut lines = Vec::new();
    if !status.add.is_empty() {
        lines.push(format!("to get a copy: {}", status.add.join(", ")));
    }
    if !status.surplus.is_empty() {
        lines.push(format!("to give theirs up, when the others are complete: {}", status.surplus.join(", ")));
    }
    if !status.lacking.is_empty() {
        lines.push(format!(
            "lacking, as no node that is up fits: {}; add or label nodes (`helio node label`), or choose another rule",
            status.lacking.join(", ")
        ));
    }
    lines.extend(status.waits_for.iter().map(|what| format!("the owner waits: {what}")));
    if status.owner_is_misplaced {
        let owner = status.copies.first().map_or("", String::as_str);
        lines.push(format!(
            "the owner, node {owner}, is where the rule wants no copy: hand it over with `helio volume migrate` or `helio group migrate`"
        ));
    }
    lines
}

pub(super) fn label(arguments: &SetLabels, common: &Common) -> anyhow::Result<()> {
    let words = |labels: &[Label]| labels.iter().map(ToString::to_string).collect();
    let request = ChangeLabels { add: words(&arguments.labels), remove: words(&arguments.remove) };
    let path = format!("/v1/nodes/{}/labels", arguments.node);
    let labels: NodeLabels = Client::find(common)?.post(&path, &request)?;
    if arguments.json {
        return print_json(&labels);
    }
    match labels.labels.is_empty() {
        true => println!("node {} has no labels", labels.node),
        false => println!("node {} is {}", labels.node, labels.labels.join(", ")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_should_be_is_told_with_what_to_do() {
        let copies = vec!["a".to_owned(), "b".to_owned()];
        let none = PlacementStatus { copies, ..PlacementStatus::default() };
        assert_eq!(lines("volume disk", &none), ["volume disk has no rule of placement; copies at a, b"]);
        let met = PlacementStatus { rule: Some("2 anywhere".to_owned()), ..none };
        assert_eq!(
            lines("volume disk", &met),
            ["volume disk: 2 anywhere; copies at a, b", "they are where they are to be"]
        );
        let not = PlacementStatus {
            add: vec!["c".to_owned()],
            surplus: vec!["b".to_owned()],
            lacking: vec!["1 in eu".to_owned()],
            owner_is_misplaced: true,
            waits_for: vec!["no copy is given up before node c answers".to_owned()],
            ..met
        };
        let told = lines("volume disk", &not);
        assert_eq!(told.len(), 6, "{told:?}");
        assert!(told[3].contains("1 in eu; add or label nodes") && told[5].contains("node a, is where"), "{told:?}");
        assert_eq!(told[4], "the owner waits: no copy is given up before node c answers");
    }
}
