//! How a node's data directory belongs to a cluster: the file `membership.json` beside its identity.
//!
//! Written by `helio cluster init|join`, marked as entered once the node has taken part. Guards against the one
//! mistake that consensus cannot survive: a voter that lost its log and votes again under its old id.

use std::path::Path;
use std::{fs, io};

use client_lib::wire::join::Contact;
use client_lib::{Error, ErrorKind, NodeName, ProviderId, files};
use serde::{Deserialize, Serialize};

const FILE: &str = "membership.json";

/// What to do about one that cannot be read.
const ADVICE: &str = "read it as the user as whom the node runs; if it is damaged, put the copy back that was kept of the data directory, or else \
     remove the node and have its machine join as a new one (docs/membership.md, *A damaged identity*)";

/// A node's place in its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// What it is called there.
    pub name: NodeName,
    /// Its failure domain there.
    pub provider: ProviderId,
    /// Whether it begins the cluster, as the first voter.
    pub founder: bool,
    /// Whether it has taken part: from then on its metadata directory must be there.
    pub entered: bool,
    /// Whom it turns to at its first start.
    pub contacts: Vec<Contact>,
    /// Whether it was removed from the cluster: it does nothing any more.
    #[serde(default)]
    pub removed: bool,
}

impl Membership {
    /// That of a node which founded a cluster and is in it, for tests.
    #[cfg(test)]
    pub(crate) fn of_founder(name: &str) -> Membership {
        Membership {
            name: name.parse().expect("a name"),
            provider: "eu".parse().expect("a name"),
            founder: true,
            entered: true,
            contacts: Vec::new(),
            removed: false,
        }
    }

    /// Reads the file in `directory`; `None` when there is none.
    ///
    /// # Errors
    /// `Corrupt` when it cannot be read.
    pub fn load(directory: &Path) -> Result<Option<Membership>, Error> {
        let path = directory.join(FILE);
        let unreadable = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Corrupt, format!("{} cannot be read: {ADVICE}", path.display())).caused_by(error)
        };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| unreadable(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(error.into())),
        }
    }

    /// Writes the file in `directory`.
    ///
    /// # Durability
    /// The file and the directory are synced on return; a crash leaves the old file or the new one.
    ///
    /// # Errors
    /// `Internal`, with what the system said.
    pub fn save(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join(FILE);
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        text.and_then(|text| files::replace(&path, &text, files::PUBLIC)).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("{} cannot be written", path.display())).caused_by(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_read_and_nonsense_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(Membership::load(directory.path()).expect("reads"), None);
        let membership = Membership {
            name: "a".parse().expect("a name"),
            provider: "eu".parse().expect("a name"),
            founder: true,
            entered: false,
            contacts: vec![Contact {
                node: client_lib::NodeId(1),
                name: "b".parse().expect("a name"),
                address: ([127, 0, 0, 1], 9).into(),
            }],
            removed: false,
        };
        membership.save(directory.path()).expect("is written");
        assert_eq!(Membership::load(directory.path()).expect("reads"), Some(membership));
        fs::write(directory.path().join(FILE), "{").expect("is written");
        let error = Membership::load(directory.path()).expect_err("nonsense");
        assert!(error.to_string().contains(FILE) && error.to_string().contains("docs/membership.md"), "{error}");
    }
}
