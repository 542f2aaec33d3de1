//! One look at a cluster, and what follows from two of them.

use std::collections::BTreeMap;
use std::time::Instant;

use client_lib::wire::admin::{ClusterStatus, LinkList, Overview};
use serde_json::{Value, json};

use super::screen::Asked;
use crate::cli::client::Client;

/// What a cluster told.
pub(super) struct Sample {
    pub(super) overview: Overview,
    pub(super) cluster: ClusterStatus,
    pub(super) links: LinkList,
    pub(super) taken: Instant,
}

impl Sample {
    pub(super) fn take(client: &Client, asked: &Asked) -> anyhow::Result<Sample> {
        let overview = client.get(&format!("/v1/overview?{}", asked.query()))?;
        let (cluster, links) = (client.get("/v1/cluster")?, client.get("/v1/links")?);
        Ok(Sample { overview, cluster, links, taken: Instant::now() })
    }

    pub(super) fn told(&self) -> Value {
        json!({ "overview": self.overview, "cluster": self.cluster, "links": self.links })
    }
}

/// Bytes per second over each link, from node to node, between two looks. A node that was started meanwhile counts anew, and is left
/// out once.
pub(super) fn rates(before: &Sample, now: &Sample) -> BTreeMap<(String, String), u64> {
    let seconds = now.taken.saturating_duration_since(before.taken).as_secs_f64();
    let key = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    let counted: BTreeMap<_, _> =
        before.links.links.iter().map(|link| (key(&link.from, &link.to), link.freight.wire_bytes)).collect();
    let each = now.links.links.iter().filter_map(|link| {
        let key = key(&link.from, &link.to);
        let bytes = link.freight.wire_bytes.checked_sub(*counted.get(&key)?)?;
        (seconds > 0.0).then(|| (key, (bytes as f64 / seconds) as u64))
    });
    each.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use client_lib::wire::admin::{
        Backlog, FreightStatus, LinkStatus, MemberStatus, NbdAddresses, OwnerRow, ReplicaRow, VolumeRow,
    };

    use super::*;

    /// Two nodes, of which one does not answer, and two volumes, of which one waits.
    pub(in crate::cli::top) fn sample(taken: Instant, wire_bytes: u64) -> Sample {
        let member = |id: u64, name: &str, leader, reachable| MemberStatus {
            id,
            name: name.to_owned(),
            provider: format!("cloud-{id}"),
            address: String::new(),
            voter: true,
            leader,
            reachable,
            rtt_ms: (id > 1).then_some(60.25),
        };
        let volume = |name: &str, waits: &[&str]| VolumeRow {
            name: name.to_owned(),
            size_bytes: 10 << 30,
            owner: "a".to_owned(),
            durability: "geo:1".to_owned(),
            rpo_seconds: Some(75.0),
            stale_bytes: Some(1 << 20),
            replicas: vec![ReplicaRow { node: "b".to_owned(), bytes_behind: Some(3 << 20), ..ReplicaRow::default() }],
            waits: waits.iter().map(|why| (*why).to_owned()).collect(),
            ..VolumeRow::default()
        };
        let freight = FreightStatus { wire_bytes, ..FreightStatus::default() };
        Sample {
            overview: Overview {
                node: "a".to_owned(),
                volumes: 2,
                matching: 2,
                waiting: 1,
                rows: vec![volume("disk", &["replica b does not answer"]), volume("other", &[])],
                owners: vec![OwnerRow { node: "a".to_owned(), volumes: 2, ..OwnerRow::default() }],
                backlogs: vec![Backlog {
                    from: "a".to_owned(),
                    to: "b".to_owned(),
                    bytes: 6 << 20,
                    volumes: 2,
                    seconds: 75.0,
                }],
                ..Overview::default()
            },
            cluster: ClusterStatus {
                node: "a".to_owned(),
                nbd: NbdAddresses { tcp: None, unix: None },
                term: 1,
                members: vec![member(1, "a", true, true), member(2, "b", false, false)],
                wan_bytes: 0,
            },
            links: LinkList {
                links: vec![LinkStatus { from: "a".to_owned(), to: "b".to_owned(), freight, ..LinkStatus::default() }],
                silent: Vec::new(),
            },
            taken,
        }
    }

    #[test]
    fn rates_are_what_came_between_two_looks() {
        let begun = Instant::now();
        let link = ("a".to_owned(), "b".to_owned());
        let (first, second) = (sample(begun, 1000), sample(begun + Duration::from_secs(2), 5000));
        assert_eq!(rates(&first, &second).get(&link), Some(&2000));
        let anew = sample(begun + Duration::from_secs(3), 10);
        assert_eq!(rates(&second, &anew).get(&link), None, "it was started anew");
        assert_eq!(rates(&first, &first).get(&link), None, "no time has passed");
    }
}
