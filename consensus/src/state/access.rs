//! Who is let in no more: nodes that were removed, and what was issued to clients and taken back (docs/decisions/0041).
//!
//! A node's id is never used again, so what is said of it here is said for good. A client's certificates are listed under its
//! name; once the name was revoked, only what is listed counts there.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::pki::{CertificateHolder, Fingerprint};
use client_lib::{ClientName, NodeId, NodeName, ProviderId};
use serde::{Deserialize, Serialize};

use super::MetaState;
use super::places::drop_replica;
use super::table::Table;
use crate::command::{Refusal, Response};

/// How many certificates of one client are listed at most.
pub const CLIENT_CERTIFICATES_MAX: usize = 64;

/// For how long a certificate has ended before it is listed no more: clocks differ, and until then it might be let in.
const ENDED_FOR_MS: u64 = DAY_MS;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// How many clients are listed at most, those that were revoked among them.
pub const CLIENTS_MAX: usize = 10_000;

/// How many certificates are revoked one by one at most.
pub const REVOKED_MAX: usize = 10_000;

/// A node that is no member any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedNode {
    /// Its id, which no other node gets.
    pub id: NodeId,
    /// What it was called; another node may be called so now.
    pub name: NodeName,
    /// Its failure domain.
    pub provider: ProviderId,
    /// SHA-256 of the public key it joined with; `None` for a founder.
    pub key: Option<[u8; 32]>,
    /// When, by the clock of the node that was asked, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whether it was given up without being asked for anything.
    pub was_lost: bool,
}

/// When a certificate was issued to a client, and for how long. In one number of 64 bits, of which the upper 16 were always zero when
/// certificates had no end: the number of days for which it counts, and below it the milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Issued {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// For how many days it counts; 0 of one that has no end.
    pub days: u16,
}

impl Issued {
    /// Whether it has ended, and not just now.
    #[must_use]
    pub fn is_long_over(&self, now_ms: u64) -> bool {
        self.until_ms().is_some_and(|until_ms| until_ms.saturating_add(ENDED_FOR_MS) <= now_ms)
    }

    /// Until when it counts, in milliseconds since 1970; `None` of one that has no end.
    #[must_use]
    pub fn until_ms(&self) -> Option<u64> {
        (self.days > 0).then(|| self.at_ms + u64::from(self.days) * DAY_MS)
    }
}

/// Bits of [`Issued::at_ms`] in the number: enough for 8,900 years.
const AT_BITS: u32 = 48;

impl From<u64> for Issued {
    fn from(number: u64) -> Issued {
        Issued { at_ms: number & ((1 << AT_BITS) - 1), days: (number >> AT_BITS) as u16 }
    }
}

impl From<Issued> for u64 {
    fn from(Issued { at_ms, days }: Issued) -> u64 {
        (at_ms & ((1 << AT_BITS) - 1)) | (u64::from(days) << AT_BITS)
    }
}

/// What was issued to a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRecord {
    /// The certificates that count, and of each an [`Issued`].
    pub issued: BTreeMap<Fingerprint, u64>,
    /// When everything was taken back that had been issued until then. Since then only what is listed counts.
    pub revoked_at_ms: Option<u64>,
}

/// Who is let in, as far as that is not said by a certificate alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub(super) removed: Table<NodeId, RemovedNode>,
    pub(super) clients: Table<ClientName, ClientRecord>,
    /// Certificates that were taken back one by one, and when.
    pub(super) revoked: Table<Fingerprint, u64>,
}

impl Access {
    /// Whether it is certain, without a look at it, that both let in the same.
    pub(super) fn is(&self, other: &Access) -> bool {
        self.removed.is(&other.removed) && self.clients.is(&other.clients) && self.revoked.is(&other.revoked)
    }

    /// Whether the holder of a certificate of the cluster is let in with it.
    #[must_use]
    pub fn admits(&self, holder: &CertificateHolder, fingerprint: &Fingerprint) -> bool {
        match holder {
            CertificateHolder::Node(node) => !self.removed.contains_key(node),
            CertificateHolder::Client(name) => {
                let record = self.clients.get(name);
                let is_listed = record.is_some_and(|record| record.issued.contains_key(fingerprint));
                let is_closed = record.is_some_and(|record| record.revoked_at_ms.is_some());
                !self.revoked.contains_key(fingerprint) && (is_listed || !is_closed)
            }
        }
    }

    /// The node `id`, if it was removed.
    #[must_use]
    pub fn removed(&self, id: NodeId) -> Option<&RemovedNode> {
        self.removed.get(&id)
    }

    /// The nodes that were removed, by id.
    pub fn removed_nodes(&self) -> impl Iterator<Item = &RemovedNode> {
        self.removed.values()
    }

    /// The clients to which something was issued since that is noted, or whose names were revoked.
    pub fn clients(&self) -> impl Iterator<Item = (&ClientName, &ClientRecord)> {
        self.clients.iter()
    }

    /// The certificates that were taken back one by one, and when.
    pub fn revoked(&self) -> impl Iterator<Item = (&Fingerprint, u64)> {
        self.revoked.iter().map(|(fingerprint, at_ms)| (fingerprint, *at_ms))
    }

    /// Whether nothing was ever noted here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.clients.is_empty() && self.revoked.is_empty()
    }
}

impl MetaState {
    /// Who is let in no more.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Takes a node out: it follows nothing any more. A repeated proposal finds that done.
    ///
    /// Refused while it owns something. Whether it is the last to hold something is for the proposer to know: no metadata says so.
    pub(super) fn remove_node(&mut self, id: NodeId, was_lost: bool, at_ms: u64) -> Result<Response, Refusal> {
        if self.access.removed.contains_key(&id) {
            return Ok(Response::NodeRemoved);
        }
        let node = self.nodes.get(&id).ok_or(Refusal::UnknownNode(id))?.clone();
        let owned: Vec<_> = self.volumes.values().filter(|volume| volume.owner == id).collect();
        if let Some(first) = owned.first() {
            return Err(Refusal::NodeOwns { node: node.name, volume: first.name.clone(), volumes: owned.len() });
        }
        if self.nodes.len() == 1 {
            return Err(Refusal::LastNode(node.name));
        }
        self.drop_unmade_of(id);
        let touched: BTreeSet<_> = self.volumes.values().filter(|volume| volume.names(id)).map(|it| it.id).collect();
        for volume in touched {
            let keeps_source = self.enclosures.contains_key(&volume);
            let Some(volume) = self.volumes.get_mut(&volume) else { continue };
            drop_replica(volume, id, keeps_source);
        }
        self.forget_node_in_places(id);
        self.links.retain(|(from, to), _| *from != id && *to != id);
        self.leases.remove(&id);
        self.nodes.remove(&id);
        let removed = RemovedNode { id, name: node.name, provider: node.provider, key: node.key, at_ms, was_lost };
        self.access.removed.insert(id, removed);
        Ok(Response::NodeRemoved)
    }

    /// Refuses what is proposed for a node that was removed.
    pub(super) fn require_not_removed(&self, id: NodeId) -> Result<(), Refusal> {
        match self.access.removed.get(&id) {
            Some(removed) => Err(Refusal::NodeRemoved(removed.name.clone())),
            None => Ok(()),
        }
    }

    /// Refuses a key with which a node was a member that was removed.
    pub(super) fn require_new_key(&self, key: [u8; 32]) -> Result<(), Refusal> {
        match self.access.removed.values().find(|removed| removed.key == Some(key)) {
            Some(removed) => Err(Refusal::NodeRemoved(removed.name.clone())),
            None => Ok(()),
        }
    }

    pub(super) fn client_issued(
        &mut self,
        client: ClientName,
        fingerprint: Fingerprint,
        at_ms: u64,
    ) -> Result<Response, Refusal> {
        if self.access.revoked.contains_key(&fingerprint) {
            return Err(Refusal::CertificateRevoked);
        }
        let known = self.access.clients.get(&client);
        if known.is_some_and(|record| record.issued.contains_key(&fingerprint)) {
            return Ok(Response::ClientIssued);
        }
        if known.is_none() && self.access.clients.len() >= CLIENTS_MAX {
            return Err(Refusal::TooManyClients);
        }
        if known.is_some_and(|record| record.issued.len() >= CLIENT_CERTIFICATES_MAX) {
            return Err(Refusal::TooManyCertificates(client));
        }
        self.access.clients.get_or_default(&client).issued.insert(fingerprint, at_ms);
        Ok(Response::ClientIssued)
    }

    /// What has ended is let in by nobody, listed or not.
    pub(super) fn forget_ended(&mut self, client: ClientName, at_ms: u64) -> Result<Response, Refusal> {
        let is_over = |issued: u64| Issued::from(issued).is_long_over(at_ms);
        let has_some = |record: &ClientRecord| record.issued.values().any(|issued| is_over(*issued));
        if let Some(record) = self.access.clients.get(&client).filter(|record| has_some(record)) {
            let mut record = record.clone();
            record.issued.retain(|_, issued| !is_over(*issued));
            self.access.clients.insert(client, record);
        }
        Ok(Response::Revoked)
    }

    /// Everything that was issued under this name so far counts no more, listed or not.
    pub(super) fn revoke_client(&mut self, client: ClientName, at_ms: u64) -> Result<Response, Refusal> {
        if !self.access.clients.contains_key(&client) && self.access.clients.len() >= CLIENTS_MAX {
            return Err(Refusal::TooManyClients);
        }
        let record = self.access.clients.get_or_default(&client);
        record.issued.clear();
        record.revoked_at_ms = Some(at_ms);
        Ok(Response::Revoked)
    }

    /// One certificate counts no more.
    pub(super) fn revoke_certificate(&mut self, fingerprint: Fingerprint, at_ms: u64) -> Result<Response, Refusal> {
        if self.access.revoked.contains_key(&fingerprint) {
            return Ok(Response::Revoked);
        }
        if self.access.revoked.len() >= REVOKED_MAX {
            return Err(Refusal::TooManyRevoked);
        }
        let lists = |record: &ClientRecord| record.issued.contains_key(&fingerprint);
        self.access.clients.update(lists, |record| {
            record.issued.remove(&fingerprint);
        });
        self.access.revoked.insert(fingerprint, at_ms);
        Ok(Response::Revoked)
    }
}
