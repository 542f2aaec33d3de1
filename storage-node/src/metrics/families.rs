//! The families, in the order in which they are told. `docs/metrics.md` is written from this table.
//!
//! A name is never given another meaning: rules and boards of operators are built on it. What is removed is said in `CHANGELOG.md`.

use super::{Family, Kind, Unit};

/// Declares the families: an [`Id`] for each, and [`ALL`] of them in the same order.
macro_rules! families {
    ($($id:ident: $kind:ident $name:literal in $unit:ident by [$($label:literal),*] = $help:literal;)*) => {
        /// Names a family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Id {
            $(#[doc = $help] $id,)*
        }

        /// Every family, in the places of their [`Id`]s.
        pub const ALL: &[Family] = &[
            $(Family { name: $name, kind: Kind::$kind, unit: Unit::$unit, labels: &[$($label),*], help: $help },)*
        ];
    };
}

families! {
    // The process and the node.
    BuildInfo: Gauge "build_info" in Number by ["version"] = "1; the version of the program is the label";
    NodeInfo: Gauge "node_info" in Number by ["node", "provider"] = "1; who the node is";
    ProcessCpu: Counter "process_cpu" in Seconds by [] = "CPU time of the process, in user and system mode";
    ProcessMemory: Gauge "process_resident_memory" in Bytes by [] = "Memory of the process that is in RAM";
    ProcessFds: Gauge "process_open_fds" in Number by [] = "File descriptors that the process has open";
    ProcessFdsMax: Gauge "process_max_fds" in Number by [] = "File descriptors that the process may have open";
    ProcessStart: Gauge "process_start_time" in Seconds by [] = "When the process was started, since 1970";
    Ready: Gauge "ready" in Number by [] = "1 while /health/ready says so: every check holds";
    ReadyCheck: Gauge "ready_check" in Number by ["check"] = "1 while this check of /health/ready holds";
    CertificateExpiry: Gauge "certificate_expiry_timestamp" in Seconds by ["certificate"] = "When the certificate expires, since 1970: node for other nodes, nbd for NBD clients with TLS, if there is one";
    CertificateRenewal: Gauge "certificate_renewal_timestamp" in Seconds by ["certificate"] = "When the node renews the certificate by itself, since 1970: node; none for one that has no end";

    // Metadata and the lease.
    MetadataHasLeader: Gauge "metadata_has_leader" in Number by [] = "1 while the node knows who leads the metadata";
    MetadataIsLeader: Gauge "metadata_is_leader" in Number by [] = "1 while the node leads the metadata";
    MetadataIsVoter: Gauge "metadata_is_voter" in Number by [] = "1 if the node votes";
    MetadataVoters: Gauge "metadata_voters" in Number by [] = "Nodes that vote";
    MetadataNodes: Gauge "metadata_nodes" in Number by [] = "Nodes of the cluster, as far as this one has heard";
    MetadataTerm: Gauge "metadata_term" in Number by [] = "The term of consensus; it rises with every election";
    MetadataLogIndex: Gauge "metadata_last_log_index" in Number by [] = "The newest entry of the metadata's log here";
    MetadataApplied: Gauge "metadata_applied_index" in Number by [] = "The newest entry of the metadata's log that is carried out here";
    MetadataSnapshot: Gauge "metadata_snapshot_index" in Number by [] = "The newest entry in the snapshot of the metadata here";
    LeaseNeeded: Gauge "lease_needed" in Number by [] = "1 if the node owns or follows volumes, and so must have its lease";
    LeaseRemaining: Gauge "lease_remaining" in Seconds by [] = "For how long the node may go on acting as an owner if its lease is not renewed; 0 while reads and writes wait";
    LeaseDuration: Gauge "lease_duration" in Seconds by [] = "How long a renewed lease lasts";
    LeaseLapses: Counter "lease_lapses" in Number by [] = "How often the node's lease was found to be out, in the life of the cluster; its volumes may have been taken over then";

    // Links to other nodes.
    LinkConnected: Gauge "link_connected" in Number by ["peer"] = "1 while there is a connection to the other node";
    LinkRoundTrip: Gauge "link_round_trip" in Seconds by ["peer"] = "The smoothed round-trip time; without a connection there is none";
    LinkWritten: Counter "link_written" in Bytes by ["peer"] = "Blocks that were written, as far as replicas at the other node have reached; what was not sent of them is in helio_link_saved_bytes_total";
    LinkSent: Counter "link_sent" in Bytes by ["peer"] = "Blocks that were sent as data, before compression; what was sent again counts again";
    LinkWire: Counter "link_wire" in Bytes by ["peer"] = "What these were on the wire";
    LinkSaved: Counter "link_saved" in Bytes by ["peer", "how"] = "Blocks that were not sent: zero, overwritten before, same content there already, relayed by another node at its provider";
    LinkRate: Gauge "link_rate" in BytesPerSecond by ["peer"] = "How fast bulk data goes there, where that was measured";
    LinkLimit: Gauge "link_limit" in BytesPerSecond by ["peer"] = "How fast it may go now, where the link has a limit";
    LinkFetchP95: Gauge "link_fetch_p95" in Seconds by ["peer"] = "How long 19 of 20 calls take that fetch blocks from there, beside their bytes";
    LinkHedged: Counter "link_hedged_calls" in Number by ["peer"] = "Calls that fetch blocks from there and were so late that another node was asked as well";

    // NBD.
    NbdConnections: Gauge "nbd_connections" in Number by [] = "NBD connections, handshakes included";
    NbdConnectionsMax: Gauge "nbd_connections_max" in Number by [] = "As many may be open; more are closed at once";
    NbdAccepted: Counter "nbd_connections_accepted" in Number by [] = "NBD connections that were accepted";
    NbdRefused: Counter "nbd_connections_refused" in Number by [] = "NBD connections that were closed at once because as many were open as may be";

    // What guests ask for.
    OperationDuration: Histogram "operation_duration" in Seconds by ["store", "kind"] = "Operations of guests that were answered, by how long that took at this node: read, write, flush, trim, zero. Of an NBD client at the node that it is connected to, of helio-nbd and the client library at the owner; failed ones too";
    OperationBytes: Counter "operation" in Bytes by ["store", "kind"] = "Bytes of those that succeeded";
    OperationErrors: Counter "operation_errors" in Number by ["store", "kind"] = "Those that failed";

    TraceSpans: Counter "trace_spans" in Number by ["outcome"] = "Spans for the collector of traces that it has taken (exported), or that were dropped because it did not, or there were too many at once (dropped); missing where there is no collector (docs/trace.md)";

    // Stores: a disk each.
    StoreAnswers: Gauge "store_answers" in Number by ["store"] = "1 if the store has answered this scrape in time; else what it counts is missing from it";
    StoreFaulted: Gauge "store_faulted" in Number by ["store"] = "1 if the store takes no more writes until the node is restarted (docs/damage.md)";
    StoreVolumes: Gauge "store_volumes" in Number by ["store"] = "Volumes that the store has something of";
    StoreQueued: Gauge "store_queued_requests" in Number by ["store"] = "Requests that wait for the store's thread";
    StoreHeld: Gauge "store_held_answers" in Number by ["store"] = "Answers that wait until the node's lease is in force";
    StoreSize: Gauge "store_file_system" in Bytes by ["store"] = "Size of the file system that the store is on";
    StoreFree: Gauge "store_file_system_free" in Bytes by ["store"] = "What is free there";
    StoreCapacity: Gauge "store_capacity" in Bytes by ["store"] = "Most bytes of log files, where that is set";
    StoreAvailable: Gauge "store_available" in Bytes by ["store"] = "What guests may still write before anything must be cleaned";
    StoreLog: Gauge "store_log" in Bytes by ["store"] = "Log files";
    StoreLive: Gauge "store_live" in Bytes by ["store"] = "What of them volumes and snapshots need";
    StoreGarbage: Gauge "store_garbage" in Bytes by ["store"] = "What of them nothing needs, and the cleaner gets back when space is wanted";
    StorePooled: Gauge "store_pooled" in Bytes by ["store"] = "Log files that wait to be used again";
    StoreReserve: Gauge "store_reserve" in Bytes by ["store"] = "What guests' data may not take, so that a full disk can be cleaned";
    StoreMap: Gauge "store_map" in Bytes by ["store"] = "Files of the block map";
    StoreWritten: Counter "store_written" in Bytes by ["store", "what"] = "Written to log files: data, headers, copies by the cleaner, copy_headers, prepared files. The block map's come on top";
    StoreRecords: Counter "store_log_records" in Number by ["store"] = "Appends to the log; one takes what has gathered meanwhile";
    StoreEntries: Counter "store_log_entries" in Number by ["store"] = "Entries in them";
    StoreSyncs: Counter "store_log_syncs" in Number by ["store"] = "Syncs of log files that were no part of an append";
    StoreCheckpoints: Counter "store_checkpoints" in Number by ["store"] = "Checkpoints that were written";
    StoreCheckpointFailures: Counter "store_checkpoint_failures" in Number by ["store"] = "Attempts to write one that failed, and are repeated";
    StoreCleaned: Counter "store_cleaned_segments" in Number by ["store"] = "Log files that the cleaner has emptied";
    ScrubRunning: Gauge "scrub_running" in Number by ["store"] = "1 while a scrub is under way";
    ScrubVerified: Counter "scrub_verified" in Bytes by ["store"] = "Read and compared with their checksums by scrubs";
    ScrubFinished: Gauge "scrub_finished_timestamp" in Seconds by ["store"] = "When the last scrub of everything was through, since 1970; missing while one is under way or none was";
    ScrubBegan: Gauge "scrub_began_timestamp" in Seconds by ["store"] = "When the scrub of everything that is under way began, since 1970; missing while none is";

    // Volumes, as a whole and one by one.
    VolumesOwned: Gauge "volumes_owned" in Number by [] = "Volumes that this node owns and serves";
    VolumesFollowed: Gauge "volumes_followed" in Number by [] = "Volumes that this node has as a replica";
    VolumesTroubled: Gauge "volumes_troubled" in Number by [] = "Volumes that this node should serve and cannot; its log says why";
    VolumesSteppedDown: Gauge "volumes_stepped_down" in Number by [] = "Volumes of which this node is the owner or a replica, and whose owner has stepped down, since its store has failed: nothing is read or written of them until they are taken over (docs/takeover.md)";
    VolumesOmitted: Gauge "volumes_omitted" in Number by [] = "Volumes of which nothing is told by name below, because there are more than 2000";
    Handovers: Counter "handovers" in Number by ["outcome"] = "Handovers from this node that were carried out (done), or came to nothing and left the volume here (failed); one of a group counts once";
    HandoverHeld: Counter "handover_held" in Seconds by [] = "For how long writers were held by those that were carried out";
    Takeovers: Counter "takeovers" in Number by ["outcome"] = "Takeovers by this node that were carried out (done) or came to nothing (failed)";
    VolumeOwned: Gauge "volume_owned" in Number by ["volume"] = "1 if this node owns the volume, 0 if it has it as a replica";
    VolumeEpoch: Gauge "volume_epoch" in Number by ["volume"] = "The epoch of the ownership that this node has heard of; it rises with every handover and takeover";
    VolumeSteppedDown: Gauge "volume_stepped_down" in Number by ["volume"] = "At the owner and the replicas: 1 while the owner has stepped down; missing otherwise";
    VolumeSize: Gauge "volume_size" in Bytes by ["volume"] = "Its size here";
    VolumeMapped: Gauge "volume_mapped" in Bytes by ["volume"] = "What it occupies here as it is now";
    VolumeSnapshots: Gauge "volume_snapshots" in Bytes by ["volume"] = "What only its snapshots occupy here";
    VolumeStale: Gauge "volume_stale" in Bytes by ["volume"] = "Known here in a version that is elsewhere: on the way, or fetched when it is read";
    VolumeDamaged: Gauge "volume_damaged_blocks" in Number by ["volume"] = "Blocks here that are damaged and not repaired from another node";
    VolumeRepaired: Counter "volume_repaired_blocks" in Number by ["volume"] = "Damaged blocks here that were repaired";
    VolumeTail: Gauge "volume_tail" in Bytes by ["volume"] = "What this node keeps that a takeover cut off (docs/takeover.md); missing where it keeps nothing";
    VolumeWritten: Counter "volume_written" in Bytes by ["volume"] = "At the owner: written by guests";
    VolumeFetched: Counter "volume_fetched" in Bytes by ["volume", "why"] = "At the owner: fetched under this ownership from nodes that have it, for a guest that waited (demand), ahead of one (near), because it was hot at the last owner (hot), or in the background (rest); missing if it had everything when it began";
    VolumeRpo: Gauge "volume_rpo" in Seconds by ["volume"] = "At the owner: the age of the oldest write that the best replica lacks, which is what the loss of this node would cost now; missing without replicas";
    VolumeRpoTarget: Gauge "volume_rpo_target" in Seconds by ["volume"] = "At the owner: what that may be, where there is a target (docs/rpo.md)";
    VolumeRpoMissed: Gauge "volume_rpo_missed" in Seconds by ["volume"] = "At the owner: for how long the target has been missed, where there is one; 0 while it is met";
    VolumeWriteLimit: Gauge "volume_write_limit" in BytesPerSecond by ["volume"] = "At the owner: how fast it may be written now, while it is slowed for its target";
    VolumeFlushesWaiting: Gauge "volume_flushes_waiting" in Number by ["volume"] = "At the owner: flushes that wait for other nodes, in a class other than local (docs/durability.md)";
    VolumeDegraded: Gauge "volume_degraded" in Number by ["volume"] = "At the owner: 1 while flushes are answered though the class is not met";
    ReplicaLag: Gauge "replica_lag" in Seconds by ["volume", "replica"] = "At the owner: the age of the oldest write that the replica lacks; 0 when it lacks none";
    ReplicaReachable: Gauge "replica_reachable" in Number by ["volume", "replica"] = "At the owner: 1 if the replica is in reach: it has answered last, and less than 15 s ago";
    ReplicaStale: Gauge "replica_stale" in Bytes by ["volume", "replica"] = "At the owner: known at the replica in a version that it does not hold";
    ReplicaRejoining: Gauge "replica_rejoining" in Number by ["volume", "replica"] = "At the owner: 1 while the replica comes back to the volume, and holds no prefix of it";
    ReplicaTail: Gauge "replica_tail" in Bytes by ["volume", "replica"] = "At the owner: what the replica keeps that a takeover cut off; missing where it keeps nothing";
}
