//! The state in records, as the store keeps it: one for each row of each table, so that a change writes what it changes.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MetaState;
use super::access::Access;
use super::places::Places;
use super::table::Table;

/// What a record is of. The numbers are part of the store's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Node = 1,
    Volume = 2,
    Lease = 3,
    Link = 4,
    Group = 5,
    Enclosure = 6,
    RemovedNode = 7,
    Client = 8,
    RevokedCertificate = 9,
    Joining = 10,
    Labels = 11,
    Placement = 12,
    Rights = 13,
    Keys = 14,
    SteppedDown = 15,
    Rescues = 16,
}

/// Where records are.
pub(crate) trait Records {
    /// All records of a kind.
    fn load<K: DeserializeOwned, V: DeserializeOwned>(&self, kind: Kind) -> io::Result<Vec<(K, V)>>;
}

/// Where changes of records go.
pub(crate) trait Changes {
    fn put<K: Serialize, V: Serialize>(&mut self, kind: Kind, key: &K, value: &V) -> io::Result<()>;
    fn delete<K: Serialize>(&mut self, kind: Kind, key: &K) -> io::Result<()>;
}

fn load<K, V>(records: &impl Records, kind: Kind) -> io::Result<Table<K, V>>
where
    K: Ord + Clone + DeserializeOwned,
    V: Clone + DeserializeOwned,
{
    records.load(kind).map(Table::stored)
}

fn store<K, V>(table: &mut Table<K, V>, kind: Kind, changes: &mut impl Changes) -> io::Result<()>
where
    K: Ord + Clone + Serialize,
    V: Clone + Serialize,
{
    for key in table.take_changed() {
        match table.get(&key) {
            Some(value) => changes.put(kind, &key, value)?,
            None => changes.delete(kind, &key)?,
        }
    }
    Ok(())
}

impl MetaState {
    /// The state of which these are the records.
    pub(crate) fn load(records: &impl Records) -> io::Result<MetaState> {
        let removed = load(records, Kind::RemovedNode)?;
        let clients = load(records, Kind::Client)?;
        let revoked = load(records, Kind::RevokedCertificate)?;
        let joining = load(records, Kind::Joining)?;
        let labels = load(records, Kind::Labels)?;
        let wanted = load(records, Kind::Placement)?;
        Ok(MetaState {
            nodes: load(records, Kind::Node)?,
            volumes: load(records, Kind::Volume)?,
            leases: load(records, Kind::Lease)?,
            links: load(records, Kind::Link)?,
            groups: load(records, Kind::Group)?,
            enclosures: load(records, Kind::Enclosure)?,
            access: Access { removed, clients, revoked },
            places: Places { joining, labels, wanted },
            rights: load(records, Kind::Rights)?,
            keys: load(records, Kind::Keys)?,
            stepped_down: load(records, Kind::SteppedDown)?,
            rescues: load(records, Kind::Rescues)?,
        })
    }

    /// Tells of every record that has changed since this was asked last, or since the state was loaded.
    pub(crate) fn store_changes(&mut self, changes: &mut impl Changes) -> io::Result<()> {
        let MetaState { nodes, volumes, leases, links, groups, enclosures, access, places, rights, keys, .. } = self;
        let MetaState { stepped_down, rescues, .. } = self;
        let Access { removed, clients, revoked } = access;
        let Places { joining, labels, wanted } = places;
        store(nodes, Kind::Node, changes)?;
        store(volumes, Kind::Volume, changes)?;
        store(leases, Kind::Lease, changes)?;
        store(links, Kind::Link, changes)?;
        store(groups, Kind::Group, changes)?;
        store(enclosures, Kind::Enclosure, changes)?;
        store(removed, Kind::RemovedNode, changes)?;
        store(clients, Kind::Client, changes)?;
        store(revoked, Kind::RevokedCertificate, changes)?;
        store(joining, Kind::Joining, changes)?;
        store(labels, Kind::Labels, changes)?;
        store(wanted, Kind::Placement, changes)?;
        store(rights, Kind::Rights, changes)?;
        store(keys, Kind::Keys, changes)?;
        store(stepped_down, Kind::SteppedDown, changes)?;
        store(rescues, Kind::Rescues, changes)
    }
}
