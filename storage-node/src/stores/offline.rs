//! The disks of a node that does not run: where its stores are, what each has, and going on without one that is lost.
//!
//! What a lost store held nobody can read any more. The node has it written down ([`super::placements`]); one of an earlier version, or with one
//! store, has not, and there it is told from the rest: the volumes that metadata gives this node, less those in the stores that are there. Giving up a store is refused while anything says that it is not lost, and as
//! long as a volume that this node owned on it is not named: an empty store in its place knows nothing of what was written.
//! What is given up is remembered in the data directory ([`Lost`]), so that the node never serves such a volume empty.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use client_lib::{Epoch, Error, ErrorKind, GroupId, NodeId, VolumeId};
use consensus::MetaState;
use consensus::store::state_machine;
use serde::{Deserialize, Serialize};

use super::placements::Placements;
use super::{LIST_FILE, Listed, StoresError, marker, read, write};
use crate::data_dir::DataDir;
use crate::inspect::Shard;

/// Volumes whose data was given up, in the node's data directory.
const LOST_FILE: &str = "lost.json";

/// Whether a store is where the node's list says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Here,
    /// It is in another directory, which the settings name.
    Moved(PathBuf),
    /// It is nowhere.
    Missing,
    /// Something else is in its place, or it cannot be read.
    Unreadable(String),
}

/// A store of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Where the list has it.
    pub directory: PathBuf,
    /// Whether it is there.
    pub presence: Presence,
    /// The volumes in it: as it says itself, or as is written down of one that cannot be asked.
    pub volumes: BTreeSet<VolumeId>,
}

/// A volume as metadata has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Whether this node owns it.
    pub owned: bool,
    /// In which epoch.
    pub epoch: Epoch,
    /// The other nodes that have it, by name.
    pub others: Vec<String>,
}

impl Disk {
    fn is_there(&self) -> bool {
        matches!(self.presence, Presence::Here | Presence::Moved(_))
    }
}

/// The stores of a node that does not run, and what metadata says of them. The node cannot be started meanwhile.
#[derive(Debug)]
pub struct Disks {
    data: DataDir,
    listed: Vec<Listed>,
    /// Whether it is written down which volumes are in which store.
    is_recorded: bool,
    /// The stores.
    pub disks: Vec<Disk>,
    /// The volumes that this node has or should have, by id; as far as it had heard when it ended.
    pub volumes: BTreeMap<VolumeId, Known>,
    /// The names of those of the cluster that it neither owns nor follows. A store has nothing of them, or what is on its way out.
    pub others: BTreeMap<VolumeId, String>,
}

impl Disks {
    /// Looks at the node in `data`, whose settings name the directories `named`, if any.
    ///
    /// # Errors
    /// `Busy` when it runs; otherwise what cannot be read.
    pub fn open(data: &Path, named: &[PathBuf]) -> Result<Disks, Error> {
        let wrong = |what: String| Error::new(ErrorKind::InvalidRequest, what);
        if !data.join(LIST_FILE).exists() {
            return Err(wrong(format!("no node was ever started on {}: it has no stores", data.display())));
        }
        let held = DataDir::open(data)?;
        let listed: Vec<Listed> = read(&data.join(LIST_FILE)).map_err(refuse)?.unwrap_or_default();
        let me = DataDir::load_identity(data)?.node();
        let state = state_machine::peek(&data.join("meta"), GroupId::META)
            .map_err(|error| wrong("what the disks held is not known".to_owned()).caused_by(error))?
            .ok_or_else(|| wrong(format!("the node in {} knows no metadata yet", data.display())))?;
        // A damaged one is none: the rest is told without it.
        let recorded = Placements::of(data).read().ok().flatten();
        let disks = listed.iter().map(|listed| look(listed, named, recorded.as_ref())).collect();
        let volumes = volumes_of(&state, me);
        let others = state.volumes().filter(|volume| !volumes.contains_key(&volume.id));
        let others = others.map(|volume| (volume.id, volume.name.to_string())).collect();
        Ok(Disks { data: held, listed, is_recorded: recorded.is_some(), disks, volumes, others })
    }

    /// What the stores held that are not there: the volumes that are in no other one.
    #[must_use]
    pub fn lost(&self) -> Vec<&Known> {
        let is_here =
            |id: &VolumeId| self.disks.iter().filter(|disk| disk.is_there()).any(|disk| disk.volumes.contains(id));
        self.volumes.values().filter(|known| !is_here(&known.id)).collect()
    }

    /// What is lost with the store in `directory`; without a record and with several that are not there, what is lost with any of them.
    #[must_use]
    pub fn lost_with(&self, directory: &Path) -> Vec<&Known> {
        let others = self.disks.iter().filter(|disk| self.is_recorded && disk.directory != directory);
        let elsewhere: BTreeSet<&VolumeId> = others.flat_map(|disk| &disk.volumes).collect();
        self.lost().into_iter().filter(|known| !elsewhere.contains(&known.id)).collect()
    }

    /// Strikes the store in `directory` from the node's list: at its next start the node makes an empty one where its settings
    /// name a directory without one, and the owners of the volumes send it what it followed. Volumes that it owned must be
    /// named in `given_up`; it does not serve them again before another node has owned them.
    ///
    /// # Errors
    /// `InvalidRequest` when the store is not lost, or volumes were owned on it that are not named. Nothing was changed.
    pub fn give_up(&mut self, directory: &Path, given_up: &[String]) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidRequest, what));
        let Some(disk) = self.disks.iter().find(|disk| disk.directory == directory) else {
            let known = self.disks.iter().map(|disk| disk.directory.display().to_string()).collect::<Vec<_>>();
            return wrong(format!(
                "{} is no store of this node; its stores are {}",
                directory.display(),
                known.join(", ")
            ));
        };
        match &disk.presence {
            Presence::Missing => {}
            Presence::Here => {
                return wrong(format!(
                    "the store in {} is there and not lost; nothing was changed. If it is damaged beyond use, keep it: move it elsewhere first (docs/damage.md)",
                    directory.display()
                ));
            }
            Presence::Moved(to) => {
                return wrong(format!(
                    "the store of {} is in {} and not lost: start the node, whose settings name that directory",
                    directory.display(),
                    to.display()
                ));
            }
            Presence::Unreadable(why) => {
                return wrong(format!(
                    "what is in {} cannot be told, so nothing was changed: {why}",
                    directory.display()
                ));
            }
        }
        let unreadable = self.disks.iter().find(|disk| matches!(disk.presence, Presence::Unreadable(_)));
        if let Some(disk) = unreadable.filter(|_| !self.is_recorded) {
            return wrong(format!(
                "the store in {} cannot be read, so it cannot be told what was lost; nothing was changed",
                disk.directory.display()
            ));
        }
        let lost: Vec<Known> = self.lost_with(directory).into_iter().cloned().collect();
        let owned: Vec<&Known> = lost.iter().filter(|known| known.owned).collect();
        if let Some(name) = given_up.iter().find(|name| !owned.iter().any(|known| known.name == **name)) {
            return wrong(format!("volume {name:?} is not among those that this node owned on a lost disk"));
        }
        let unnamed: Vec<&str> = owned
            .iter()
            .map(|known| known.name.as_str())
            .filter(|name| !given_up.iter().any(|it| it == name))
            .collect();
        if !unnamed.is_empty() {
            return wrong(format!(
                "this node owned {} on it, by the last it heard: what was written there and is at no replica is lost. Have a replica take it over first; then, or to go on without its data here, add --lose {}",
                unnamed.join(", "),
                unnamed.join(",")
            ));
        }
        let mut remembered = Lost::load(self.data.path()).map_err(refuse)?;
        for known in owned {
            let epoch = remembered.volumes.entry(known.id.0).or_default();
            *epoch = (*epoch).max(known.epoch.0);
        }
        remembered.followed.extend(lost.iter().filter(|known| !known.owned).map(|known| known.id.0));
        // First what keeps the node from serving them empty.
        write(&self.data.path().join(LOST_FILE), &remembered).map_err(refuse)?;
        self.listed.retain(|listed| listed.directory != directory);
        write(&self.data.path().join(LIST_FILE), &self.listed).map_err(refuse)
    }
}

fn refuse(error: StoresError) -> Error {
    Error::new(ErrorKind::InvalidRequest, error.to_string())
}

/// Where a store is, and what is in it.
fn look(listed: &Listed, named: &[PathBuf], recorded: Option<&BTreeMap<VolumeId, String>>) -> Disk {
    let is_it = |directory: &Path| marker(directory).ok().flatten().is_some_and(|marker| marker.store == listed.store);
    let presence = match marker(&listed.directory) {
        Ok(Some(marker)) if marker.store == listed.store => Presence::Here,
        Err(error) => Presence::Unreadable(error.to_string()),
        Ok(_) => match named.iter().find(|directory| is_it(directory)) {
            Some(directory) => Presence::Moved(directory.clone()),
            None => Presence::Missing,
        },
    };
    let recorded = || -> BTreeSet<VolumeId> {
        let all = recorded.into_iter().flatten();
        all.filter(|(_, store)| **store == listed.store).map(|(volume, _)| *volume).collect()
    };
    let place = match &presence {
        Presence::Here => Some(&listed.directory),
        Presence::Moved(to) => Some(to),
        Presence::Missing | Presence::Unreadable(_) => None,
    };
    let (presence, volumes) = match place.map(|place| Shard::open(place).and_then(|shard| shard.volume_ids())) {
        None => (presence, recorded()),
        Some(Ok(volumes)) => (presence, volumes),
        Some(Err(error)) => (Presence::Unreadable(error.to_string()), recorded()),
    };
    Disk { directory: listed.directory.clone(), presence, volumes }
}

/// The volumes that `me` owns or follows.
fn volumes_of(state: &MetaState, me: NodeId) -> BTreeMap<VolumeId, Known> {
    let name = |node: NodeId| state.node(node).map_or_else(|| format!("#{node}"), |node| node.name.to_string());
    let mine = state.volumes().filter(|volume| volume.owner == me || volume.replicas.contains(&me));
    mine.map(|volume| {
        let holders = std::iter::once(volume.owner).chain(volume.replicas.iter().copied());
        let known = Known {
            id: volume.id,
            name: volume.name.to_string(),
            owned: volume.owner == me,
            epoch: volume.epoch,
            others: holders.filter(|holder| *holder != me).map(name).collect(),
        };
        (volume.id, known)
    })
    .collect()
}

/// Volumes that this node owned on a disk that was given up, and in which epoch: it has nothing of them and may not serve them
/// under that ownership or an earlier one. And those that it followed there: it has of them what has come since, though the metadata takes it for a
/// complete replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    volumes: BTreeMap<u64, u64>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    followed: BTreeSet<u64>,
}

impl Lost {
    /// What is remembered in the data directory of a node.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(data: &Path) -> Result<Lost, StoresError> {
        Ok(read(&data.join(LOST_FILE))?.unwrap_or_default())
    }

    /// Whether it owned nothing there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.volumes.is_empty()
    }

    /// Whether a copy of `volume` is, whoever owned it.
    #[must_use]
    pub fn has_copy_of(&self, volume: VolumeId) -> bool {
        self.volumes.contains_key(&volume.0) || self.followed.contains(&volume.0)
    }

    /// Whether what this node wrote to `volume` as the owner of `epoch` is lost.
    #[must_use]
    pub fn has(&self, volume: VolumeId, epoch: Epoch) -> bool {
        self.volumes.get(&volume.0).is_some_and(|lost| epoch.0 <= *lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_lost_until_another_node_has_owned_it() {
        let lost = Lost { volumes: BTreeMap::from([(7, 3)]), ..Lost::default() };
        assert!(lost.has(VolumeId(7), Epoch(1)) && lost.has(VolumeId(7), Epoch(3)));
        assert!(!lost.has(VolumeId(7), Epoch(4)) && !lost.has(VolumeId(8), Epoch(1)));
        let data = tempfile::tempdir().expect("a directory");
        assert_eq!(Lost::load(data.path()).expect("nothing"), Lost::default());
        write(&data.path().join(LOST_FILE), &lost).expect("is written");
        assert_eq!(Lost::load(data.path()).expect("reads"), lost);
        let followed = Lost { followed: BTreeSet::from([8]), ..lost.clone() };
        assert!(followed.has_copy_of(VolumeId(7)) && followed.has_copy_of(VolumeId(8)));
        assert!(
            !followed.has_copy_of(VolumeId(9))
                && !followed.has(VolumeId(8), Epoch(1))
                && !lost.has_copy_of(VolumeId(8))
        );
        write(&data.path().join(LOST_FILE), &followed).expect("is written");
        assert_eq!(Lost::load(data.path()).expect("reads"), followed);
        std::fs::write(data.path().join(LOST_FILE), r#"{"volumes":{"7":3}}"#).expect("is written");
        assert_eq!(Lost::load(data.path()).expect("reads what older programs wrote"), lost);
        std::fs::write(data.path().join(LOST_FILE), "?").expect("is written");
        Lost::load(data.path()).expect_err("never taken for nothing");
    }
}
