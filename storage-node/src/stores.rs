//! Which directories the shards of a node are in, and that each is the one it was.
//!
//! Every store (the directory of a shard) has a marker, `STORE`, that says whose it is; the node's data directory has the
//! list of its stores, `stores.json`. Compared at every start, before anything is opened: a disk that is not mounted,
//! was swapped with another or is another node's is an error that says so, never an empty store in its place. Nothing is
//! written before all of them are right, but that a disk is not there, or does not answer, concerns its own store alone, as long as there is
//! another. What is in a store is the shard's, and [`placements`] tells which volumes are in those that cannot be asked. [`offline`] is for
//! a node that does not run.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use client_lib::pki::{ClusterId, PkiError};
use client_lib::{NodeId, files};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::map::store::{FORMAT_FILE, MapError, format_of, prepare_directory};

pub mod offline;
pub mod placements;

/// The marker in a store.
const MARKER_FILE: &str = "STORE";
/// The list in a node's data directory.
const LIST_FILE: &str = "stores.json";
/// What is locked in a store by whoever uses it; holds the number of the process.
const LOCK_FILE: &str = "lock";
/// The store of a node that names none, in its data directory.
const DEFAULT_STORE: &str = "shard-0";

/// What is said of a store that has refused a write for want of space, behind what it is called.
pub const FULL: &str = "is full: writes to it fail with ENOSPC";

/// Why the stores are not what they must be. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoresError {
    /// A store that is expected at a place is not there.
    #[error(
        "the store in {} is missing: is its disk mounted? `helio node disk list` shows what was on it, and docs/disks.md says what to do when it is lost for good", directory.display()
    )]
    Missing {
        /// Where it should be.
        directory: PathBuf,
    },
    /// A store is where another one should be.
    #[error("{} has the store that belongs in {}: two disks were swapped; mount them where they were", found.display(), belongs.display())]
    Swapped {
        /// Where it is.
        found: PathBuf,
        /// Where it was, which is still in use.
        belongs: PathBuf,
    },
    /// A store is another node's.
    #[error("{} is a store of node {node} of cluster {cluster}, not of this node: name another directory", directory.display())]
    Foreign {
        /// Where it is.
        directory: PathBuf,
        /// Whose.
        node: NodeId,
        /// Of which cluster.
        cluster: String,
    },
    /// A store that the node has is not named in its settings.
    #[error("{} holds volumes of this node, and `[store] directories` does not name it: add it", directory.display())]
    NotNamed {
        /// Where it was.
        directory: PathBuf,
    },
    /// A new store has no place.
    #[error("{} cannot become a store, because {} is no directory: is its disk mounted?", directory.display(), parent.display())]
    NoPlace {
        /// The store.
        directory: PathBuf,
        /// What should hold it.
        parent: PathBuf,
    },
    /// A new store would lie among other files.
    #[error("{} holds other files ({name}): name an empty or new directory in it", directory.display())]
    Occupied {
        /// The store.
        directory: PathBuf,
        /// One of the files.
        name: String,
    },
    /// Two stores say that they are the same one.
    #[error("{} and {} have copies of one store: name only the newer one", first.display(), second.display())]
    Copied {
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Another process uses a store.
    #[error("the store in {} is in use by another process; end that one first", directory.display())]
    Busy {
        /// Its directory.
        directory: PathBuf,
    },
    /// The format of a store.
    #[error(transparent)]
    Format(#[from] MapError),
    /// No random number for a new store.
    #[error(transparent)]
    Random(#[from] PkiError),
    /// A marker or the list cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Whose a store is: what its marker holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    cluster: String,
    node: NodeId,
    /// Drawn at random; no two stores have the same one.
    store: String,
}

/// A store in the node's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    store: String,
    directory: PathBuf,
}

/// A store of a node, at its place.
#[derive(Debug)]
pub struct StorePlace {
    /// Its directory.
    pub directory: PathBuf,
    /// Which store it is, wherever it lies.
    pub store: String,
    /// Why it cannot be used, if it cannot.
    pub trouble: Option<StoresError>,
    lock: Option<File>,
}

impl StorePlace {
    /// One that nobody else knows of, and that is ready.
    #[must_use]
    pub fn alone(directory: PathBuf) -> StorePlace {
        let store = directory.display().to_string();
        StorePlace { directory, store, trouble: None, lock: None }
    }

    /// What keeps other processes away from it, until that is dropped.
    pub fn take_lock(&mut self) -> Option<File> {
        self.lock.take()
    }

    /// Locks it for this process. It may lie far from the node's data directory, whose lock says nothing to
    /// somebody who looks at the store alone. One that cannot be locked cannot be used.
    fn lock(&mut self) -> Result<(), StoresError> {
        let path = self.directory.join(LOCK_FILE);
        match lock(&path) {
            Ok(Some(file)) => self.lock = Some(file),
            Ok(None) => return Err(StoresError::Busy { directory: self.directory.clone() }),
            Err(source) => self.trouble = Some(StoresError::File { path, source }),
        }
        Ok(())
    }
}

/// The node's stores: those in the directories that are `named` (absolute), or the one in `data`. New ones are made; those that can be used
/// are locked.
///
/// # Errors
/// [`StoresError`]; nothing was changed, but when a file cannot be written. When none can be used, why the first cannot.
pub fn prepare(
    data: &Path,
    named: &[PathBuf],
    cluster: &ClusterId,
    node: NodeId,
) -> Result<Vec<StorePlace>, StoresError> {
    let default = data.join(DEFAULT_STORE);
    let directories = if named.is_empty() { vec![default.clone()] } else { named.to_vec() };
    let list_path = data.join(LIST_FILE);
    let listed: Vec<Listed> = read(&list_path)?.unwrap_or_default();
    let mut found = Vec::with_capacity(directories.len());
    for directory in &directories {
        found.push(look(directory, &listed, &directories, (cluster, node))?);
    }
    for (at, one) in found.iter().enumerate() {
        let earlier = found[..at].iter().position(|other| other.id().is_some() && other.id() == one.id());
        if let Some(earlier) = earlier {
            return Err(StoresError::Copied { first: directories[earlier].clone(), second: directories[at].clone() });
        }
    }
    let is_there = |listed: &&Listed| found.iter().any(|found| found.id() == Some(&listed.store));
    let lost = listed.iter().find(|listed| !is_there(listed)).map(|listed| &listed.directory);
    // One of a version that kept no list.
    let unlisted =
        Some(&default).filter(|default| !directories.contains(default) && default.join(FORMAT_FILE).exists());
    if let Some(directory) = lost.or(unlisted) {
        return Err(StoresError::NotNamed { directory: directory.clone() });
    }
    if found.iter().all(|found| matches!(found, Found::Unusable { .. })) {
        let first = found.into_iter().find_map(Found::trouble);
        return Err(first.expect("a node has a store"));
    }

    let mut places = Vec::with_capacity(directories.len());
    for (directory, found) in directories.into_iter().zip(found) {
        let (store, trouble) = match found {
            Found::Store(store) => (store, None),
            Found::Unusable { store, trouble } => (store, Some(trouble)),
            Found::New => {
                prepare_directory(&directory)?;
                let store = ClusterId::random()?.to_string();
                let marker = Marker { cluster: cluster.to_string(), node, store: store.clone() };
                write(&directory.join(MARKER_FILE), &marker)?;
                (store, None)
            }
        };
        let mut place = StorePlace { directory, store, trouble, lock: None };
        if place.trouble.is_none() {
            place.lock()?;
        }
        places.push(place);
    }
    let list: Vec<Listed> =
        places.iter().map(|place| Listed { store: place.store.clone(), directory: place.directory.clone() }).collect();
    if list != listed {
        write(&list_path, &list)?;
    }
    Ok(places)
}

/// What is in a directory that the settings name.
enum Found {
    /// The store of this id.
    Store(String),
    /// Nothing: a store can be made there.
    New,
    /// The store of this id was there, and cannot be used.
    Unusable { store: String, trouble: StoresError },
}

impl Found {
    fn id(&self) -> Option<&String> {
        match self {
            Found::Store(store) | Found::Unusable { store, .. } => Some(store),
            Found::New => None,
        }
    }

    fn trouble(self) -> Option<StoresError> {
        match self {
            Found::Unusable { trouble, .. } => Some(trouble),
            Found::Store(_) | Found::New => None,
        }
    }
}

/// The directories in the list of the node in `data`, whether they are there or not, of which none of `here` is a copy; none before its first
/// start. The list names places: those of a copied data directory are the original's.
///
/// # Errors
/// When the list cannot be read.
pub fn elsewhere(data: &Path, here: &[PathBuf]) -> Result<Vec<PathBuf>, StoresError> {
    let listed: Vec<Listed> = read(&data.join(LIST_FILE))?.unwrap_or_default();
    let own: Vec<String> =
        here.iter().filter_map(|directory| marker(directory).ok().flatten()).map(|marker| marker.store).collect();
    let is_elsewhere = |listed: &Listed| !own.contains(&listed.store) && !here.contains(&listed.directory);
    Ok(listed.into_iter().filter(is_elsewhere).map(|listed| listed.directory).collect())
}

/// Locks a file, which is made, and writes the number of this process into it; `None` when another process has locked it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Some(file))
}

/// What is in `directory`, and whether that may be there.
fn look(
    directory: &Path,
    listed: &[Listed],
    directories: &[PathBuf],
    (cluster, node): (&ClusterId, NodeId),
) -> Result<Found, StoresError> {
    let here = listed.iter().find(|listed| listed.directory == directory);
    let unusable = |here: &Listed, trouble| Found::Unusable { store: here.store.clone(), trouble };
    let marker = match (marker(directory), here) {
        (Ok(Some(marker)), _) => marker,
        (Ok(None), Some(here)) => {
            return Ok(unusable(here, StoresError::Missing { directory: directory.to_owned() }));
        }
        // One that was made before there were markers is taken as it is.
        (Ok(None), None) => {
            return if format_of(directory)?.is_some() {
                Ok(Found::New)
            } else {
                check_new(directory).map(|()| Found::New)
            };
        }
        (Err(error), Some(here)) => return Ok(unusable(here, error)),
        (Err(error), None) => return Err(error),
    };
    if (marker.cluster.as_str(), marker.node) != (cluster.to_string().as_str(), node) {
        return Err(StoresError::Foreign {
            directory: directory.to_owned(),
            node: marker.node,
            cluster: marker.cluster.clone(),
        });
    }
    match listed.iter().find(|listed| listed.store == marker.store) {
        // Moved, by an operator who names the new place instead of the old one.
        Some(known) if known.directory != directory && directories.contains(&known.directory) => {
            Err(StoresError::Swapped { found: directory.to_owned(), belongs: known.directory.clone() })
        }
        _ => Ok(Found::Store(marker.store)),
    }
}

/// Whether a store can be made in `directory`.
fn check_new(directory: &Path) -> Result<(), StoresError> {
    if let Some(parent) = directory.parent().filter(|parent| !parent.is_dir()) {
        return Err(StoresError::NoPlace { directory: directory.to_owned(), parent: parent.to_owned() });
    }
    // A directory that is not there has no files; an unreadable one says so when it is written to.
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    match files.map(|file| file.file_name()).find(|name| name != "FORMAT.new" && name != ".FORMAT.new") {
        None => Ok(()),
        Some(name) => {
            Err(StoresError::Occupied { directory: directory.to_owned(), name: name.to_string_lossy().into_owned() })
        }
    }
}

fn marker(directory: &Path) -> Result<Option<Marker>, StoresError> {
    read(&directory.join(MARKER_FILE))
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, StoresError> {
    let failed = |source| StoresError::File { path: path.to_owned(), source };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), StoresError> {
    let text = serde_json::to_vec_pretty(value);
    let written = text.map_err(io::Error::from).and_then(|text| files::replace(path, &text, files::PUBLIC));
    written.map_err(|source| StoresError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(1);

    struct Place {
        root: tempfile::TempDir,
        cluster: ClusterId,
    }

    impl Place {
        fn new() -> Place {
            let root = tempfile::tempdir().expect("a directory");
            for name in ["data", "a", "b"] {
                std::fs::create_dir(root.path().join(name)).expect("is made");
            }
            Place { root, cluster: "0123456789abcdef".to_owned().try_into().expect("an id") }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.root.path().join(name)
        }

        fn prepare(&self, named: &[&str], node: NodeId) -> Result<Vec<StorePlace>, StoresError> {
            let named: Vec<PathBuf> = named.iter().map(|name| self.at(name)).collect();
            prepare(&self.at("data"), &named, &self.cluster, node)
        }

        fn rename(&self, from: &str, to: &str) {
            std::fs::rename(self.at(from), self.at(to)).expect("is renamed");
        }
    }

    #[test]
    fn without_names_the_store_is_in_the_data_directory_also_an_old_one() {
        let place = Place::new();
        prepare_directory(&place.at("data/shard-0")).expect("is made without a marker");
        for _ in 0..2 {
            let places = place.prepare(&[], NODE).expect("is used");
            assert_eq!(places[0].directory, place.at("data/shard-0"));
            assert!(places[0].trouble.is_none() && places.len() == 1, "{places:?}");
        }
    }

    #[test]
    fn stores_are_made_and_found_again_in_any_order() {
        let place = Place::new();
        place.prepare(&["a", "b/store"], NODE).expect("are made");
        place.prepare(&["b/store", "a"], NODE).expect("are found");
        place.rename("b/store", "b/moved");
        place.prepare(&["a", "b/moved"], NODE).expect("one moved with its name");
        place.prepare(&["a", "b/moved", "b/third"], NODE).expect("one is added");
    }

    /// `helio inspect` of a copy was refused, as the original was in use, or showed the original.
    #[test]
    fn a_store_that_was_copied_with_its_node_is_not_looked_for_elsewhere() {
        let place = Place::new();
        let stores = prepare(&place.at("data"), &[place.at("data/shard-0"), place.at("b")], &place.cluster, NODE)
            .expect("are made");
        std::fs::create_dir_all(place.at("copy/shard-0")).expect("is made");
        for file in [LIST_FILE, &format!("shard-0/{MARKER_FILE}")] {
            std::fs::copy(place.at("data").join(file), place.at("copy").join(file)).expect("is copied");
        }
        let seen = |data: &str| elsewhere(&place.at(data), &[place.at(data).join("shard-0")]).expect("is read");
        assert_eq!(
            (seen("data"), seen("copy")),
            (vec![stores[1].directory.clone()], vec![stores[1].directory.clone()])
        );
    }

    #[test]
    fn a_disk_that_is_not_mounted_is_missed_alone_and_no_store_is_made_in_its_place() {
        let place = Place::new();
        place.prepare(&["a", "b"], NODE).expect("are made");
        place.rename("b", "elsewhere");
        std::fs::create_dir(place.at("b")).expect("the mount point");
        let missing = |places: &[StorePlace]| -> Vec<bool> {
            places.iter().map(|it| matches!(it.trouble, Some(StoresError::Missing { .. }))).collect()
        };
        for _ in 0..2 {
            let places = place.prepare(&["a", "b"], NODE).expect("one is there");
            assert_eq!(missing(&places), [false, true]);
            assert_eq!(std::fs::read_dir(place.at("b")).expect("lists").count(), 0, "untouched");
        }
        place.rename("a", "away");
        let error = place.prepare(&["a", "b"], NODE).expect_err("none is there");
        assert!(matches!(&error, StoresError::Missing { directory } if *directory == place.at("a")), "{error}");
        place.rename("away", "a");
        std::fs::remove_dir(place.at("b")).expect("was untouched");
        place.rename("elsewhere", "b");
        std::fs::write(place.at("b").join(MARKER_FILE), "?").expect("is damaged");
        let places = place.prepare(&["a", "b"], NODE).expect("one can be read");
        assert!(matches!(places[1].trouble, Some(StoresError::File { .. })), "{places:?}");
        let error = place.prepare(&["a", "c/store"], NODE).expect_err("not mounted ever");
        assert!(matches!(error, StoresError::NoPlace { .. }), "{error}");
    }

    #[test]
    fn swapped_foreign_copied_and_forgotten_stores_are_told_apart() {
        let place = Place::new();
        place.prepare(&["a", "b"], NODE).expect("are made");
        let error = place.prepare(&["a"], NODE).expect_err("b is forgotten");
        assert!(matches!(&error, StoresError::NotNamed { directory } if *directory == place.at("b")), "{error}");
        let error = place.prepare(&["a", "b"], NodeId(2)).expect_err("another node's");
        assert!(matches!(error, StoresError::Foreign { node: NODE, .. }), "{error}");
        place.rename("a", "c");
        place.rename("b", "a");
        place.rename("c", "b");
        let error = place.prepare(&["a", "b"], NODE).expect_err("are swapped");
        assert!(matches!(error, StoresError::Swapped { .. }), "{error}");
        std::fs::create_dir(place.at("d")).expect("is made");
        std::fs::copy(place.at("a").join(MARKER_FILE), place.at("d").join(MARKER_FILE)).expect("is copied");
        let error = place.prepare(&["a", "d"], NODE).expect_err("a copy");
        assert!(matches!(error, StoresError::Copied { .. } | StoresError::Swapped { .. }), "{error}");
    }

    #[test]
    fn a_store_among_other_files_and_the_old_one_unnamed_are_refused() {
        let place = Place::new();
        std::fs::write(place.at("a/thesis.tex"), "years of work").expect("is written");
        let error = place.prepare(&["a"], NODE).expect_err("foreign files");
        assert!(error.to_string().contains("thesis.tex"), "{error}");
        prepare_directory(&place.at("data/shard-0")).expect("is made without a marker");
        let error = place.prepare(&["b"], NODE).expect_err("the old store is not named");
        assert!(matches!(error, StoresError::NotNamed { .. }), "{error}");
        place.prepare(&["data/shard-0", "b"], NODE).expect("now it is");
    }

    /// Every user of a machine could read the blocks of every volume in a store outside of the data directory: it was made as the umask left it, and one
    /// that an operator had made before stayed as it was.
    #[test]
    fn nobody_else_may_enter_a_store() {
        use std::os::unix::fs::PermissionsExt;

        let place = Place::new();
        let mode = |name: &str| std::fs::metadata(place.at(name)).expect("is there").permissions().mode() & 0o777;
        let open = |name: &str| {
            let open = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(place.at(name), open).expect("is opened");
        };
        open("a");
        place.prepare(&["a", "new"], NODE).expect("are made");
        assert_eq!((mode("a"), mode("new")), (0o700, 0o700));
        // One of an older program, when its shard starts.
        open("a");
        prepare_directory(&place.at("a")).expect("is there");
        assert_eq!(mode("a"), 0o700);
        // A newer program's is as it was.
        open("a");
        std::fs::write(place.at("a").join(FORMAT_FILE), "heliotrope-shard 9999\n").expect("is written");
        prepare_directory(&place.at("a")).expect_err("is newer");
        assert_eq!(mode("a"), 0o755);
    }
}
