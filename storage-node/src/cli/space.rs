//! `helio node space`: where the space of a node's disks goes.

use clap::Args;
use client_lib::NodeName;
use client_lib::wire::admin::{NodeSpace, StoreFault, StoreSpace, VolumeSpace};

use super::Common;
use super::client::{Client, print_json, print_table};
use super::snapshot::age;
use crate::size::human;
use crate::stores::FULL;

/// Show where the space of a node's disks goes: segments, live data, garbage, map, and each volume
#[derive(Debug, Args)]
#[command(
    after_help = "docs/space.md explains every column.\n\nExamples:\n  helio node space\n  helio node space --node b --json"
)]
pub(super) struct Space {
    /// The node [default: the one asked]
    #[arg(long)]
    node: Option<NodeName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is to be said of a store of `node` that takes no writes, since when, and what to do about it.
pub(super) fn faulted(node: &str, fault: &StoreFault) -> String {
    let since = fault.since_ms.map_or_else(String::new, |since_ms| format!(", found {}", age(since_ms)));
    format!("store {} of node {node} {}{since}; {FAULT_ADVICE}", fault.store, fault.fault)
}

/// What to do about a store that takes no writes.
pub(super) const FAULT_ADVICE: &str = "restart the node when the disk is sound; until then `helio volume takeover` gives what it owns there to a replica \
                                       (docs/damage.md); if the disk is lost: docs/disks.md";

/// What is to be said of a full store, called `store`, and what to do about it.
pub(super) fn full(store: &str) -> String {
    format!("{store} {FULL}; {FULL_ADVICE}")
}

/// What to do about a full store.
pub(super) const FULL_ADVICE: &str = "make room: TRIM in the guests, delete snapshots or volumes, or grow the file system (docs/space.md); \
                                      writes go on by themselves";

pub(super) fn run(arguments: &Space, common: &Common) -> anyhow::Result<()> {
    let of = arguments.node.as_ref().map_or_else(String::new, |node| format!("?node={node}"));
    let space: NodeSpace = Client::find(common)?.get(&format!("/v1/space{of}"))?;
    if arguments.json {
        return print_json(&space);
    }
    println!("node {}", space.node);
    let heading =
        ["store", "disk", "free", "log", "segments", "pooled", "live", "garbage", "map", "reserve", "available"];
    print_table(&heading, space.stores.iter().map(store_row).collect());
    for store in &space.stores {
        if let Some(fault) = &store.fault {
            let since = store.fault_since_ms.map_or_else(String::new, |at_ms| format!(", found {}", age(at_ms)));
            println!("{} takes no writes until the node is restarted: {fault}{since}; {FAULT_ADVICE}", store.directory);
        }
        if store.is_full {
            println!("{}", full(&format!("store {}", store.directory)));
        }
    }
    if !space.volumes.is_empty() {
        println!();
        let heading = ["volume", "role", "size", "mapped", "snapshots", "unapplied", "held", "store"];
        print_table(&heading, space.volumes.iter().map(volume_row).collect());
    }
    Ok(())
}

fn store_row(store: &StoreSpace) -> Vec<String> {
    vec![
        store.directory.clone(),
        human(store.file_system_bytes),
        human(store.file_system_free_bytes),
        human(store.log_bytes),
        store.segments.to_string(),
        store.pooled_segments.to_string(),
        human(store.live_bytes),
        human(store.garbage_bytes),
        human(store.map_bytes),
        human(store.reserve_bytes),
        human(store.available_bytes),
    ]
}

fn volume_row(volume: &VolumeSpace) -> Vec<String> {
    let name = if volume.volume.is_empty() { format!("(deleted, id {})", volume.id) } else { volume.volume.clone() };
    vec![
        name,
        match (volume.owner, volume.follows) {
            (true, _) => "owner",
            (false, Some(false)) => "-",
            (false, _) => "replica",
        }
        .to_owned(),
        human(volume.size_bytes),
        human(volume.mapped_bytes),
        human(volume.snapshot_bytes),
        human(volume.unapplied_bytes),
        human(volume.held_bytes),
        volume.store.clone(),
    ]
}

/// What `helio volume status` says of the space of a volume at its owner.
pub(super) fn print_of_volume(space: &VolumeSpace) {
    let mut more = Vec::new();
    let mut add = |bytes: u64, what: &str| {
        if bytes > 0 {
            more.push(format!("{} {what}", human(bytes)));
        }
    };
    add(space.snapshot_bytes - space.deleted_bytes.min(space.snapshot_bytes), "only in snapshots");
    add(space.deleted_bytes, "of deleted snapshots coming back");
    add(space.unapplied_bytes, "received and not applied yet");
    add(space.held_bytes, "kept for replicas being sent to (about)");
    let more = if more.is_empty() { String::new() } else { format!(", {}", more.join(", ")) };
    println!("space at the owner: {} mapped{more}; in {}", human(space.mapped_bytes), space.store);
}
