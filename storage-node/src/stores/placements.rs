//! Which store of a node each volume was put into, written down outside of the stores.
//!
//! A store knows its volumes, and that is what counts while it can be asked. One that cannot be opened cannot be asked, and then a volume of
//! which no other store has heard may be in it, with everything that was written, or may be new: this record tells which. So a volume
//! is in the record, synced, before its store hears of it. A node with one store needs none.
//!
//! The file has a line per change: `+ VOLUME STORE CRC` and `- VOLUME CRC`, in order; the checksum is the CRC-32 of what is before the space that
//! precedes it, in eight hexadecimal digits. A last line without its end was not synced when the node ended, and is no line. Every start that
//! opens all stores writes the file anew from what they have.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use client_lib::{VolumeId, files};

use super::StoresError;

/// The record, in a node's data directory.
const FILE: &str = "placements";

/// The record of a node with several stores.
#[derive(Debug)]
pub struct Placements {
    path: PathBuf,
    /// How long it was when the last change was synced that did not fail, if one failed since.
    torn_at: Option<u64>,
}

impl Placements {
    /// The record of the node in `data`, which may have none yet.
    #[must_use]
    pub fn of(data: &Path) -> Placements {
        Placements { path: data.join(FILE), torn_at: None }
    }

    /// What the record says: the volumes, and the id of the store of each. `None` when there is no record.
    ///
    /// # Errors
    /// `File` when it cannot be read, or a line of it is none.
    pub fn read(&self) -> Result<Option<BTreeMap<VolumeId, String>>, StoresError> {
        let failed = |source| StoresError::File { path: self.path.clone(), source };
        match std::fs::read_to_string(&self.path) {
            Ok(text) => parse(&text).map(Some).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The record says this from now on, and nothing else. Synced on return; a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// `File`.
    pub fn replace(&mut self, all: &BTreeMap<VolumeId, String>) -> Result<(), StoresError> {
        let text: String = all.iter().map(|(volume, store)| line(&format!("+ {volume} {store}"))).collect();
        files::replace(&self.path, text.as_bytes(), files::PUBLIC)
            .map_err(|source| StoresError::File { path: self.path.clone(), source })?;
        self.torn_at = None;
        Ok(())
    }

    /// There is no record any more: one store has all.
    ///
    /// # Errors
    /// `File`.
    pub fn remove(&self) -> Result<(), StoresError> {
        files::remove(&self.path).map_err(|source| StoresError::File { path: self.path.clone(), source })
    }

    /// `volume` goes into `store`. Synced on return.
    ///
    /// # Errors
    /// `File`; then the record may or may not say so.
    pub fn note(&mut self, volume: VolumeId, store: &str) -> Result<(), StoresError> {
        self.append(&line(&format!("+ {volume} {store}")))
    }

    /// `volume` is in no store any more.
    ///
    /// # Errors
    /// As [`note`](Self::note).
    pub fn forget(&mut self, volume: VolumeId) -> Result<(), StoresError> {
        self.append(&line(&format!("- {volume}")))
    }

    fn append(&mut self, line: &str) -> Result<(), StoresError> {
        let torn_at = &mut self.torn_at;
        let mut written = || -> io::Result<()> {
            let mut file = File::options().append(true).open(&self.path)?;
            if let Some(length) = *torn_at {
                file.set_len(length)?;
            }
            *torn_at = Some(file.metadata()?.len());
            file.write_all(line.as_bytes())?;
            file.sync_data()
        };
        written().map_err(|source| StoresError::File { path: self.path.clone(), source })?;
        self.torn_at = None;
        Ok(())
    }
}

fn line(change: &str) -> String {
    format!("{change} {:08x}\n", crc32fast::hash(change.as_bytes()))
}

fn parse(text: &str) -> io::Result<BTreeMap<VolumeId, String>> {
    let mut all = BTreeMap::new();
    // What has no end was not synced.
    for (at, line) in text.split_inclusive('\n').filter(|line| line.ends_with('\n')).enumerate() {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("line {} is damaged", at + 1));
        let (change, checksum) = line.trim_end_matches('\n').rsplit_once(' ').ok_or_else(wrong)?;
        if u32::from_str_radix(checksum, 16) != Ok(crc32fast::hash(change.as_bytes())) {
            return Err(wrong());
        }
        let number = |volume: &str| volume.parse().map(VolumeId).map_err(|_| wrong());
        match change.split(' ').collect::<Vec<_>>()[..] {
            ["+", volume, store] => drop(all.insert(number(volume)?, store.to_owned())),
            ["-", volume] => drop(all.remove(&number(volume)?)),
            _ => return Err(wrong()),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(of: &[(u64, &str)]) -> BTreeMap<VolumeId, String> {
        of.iter().map(|(volume, store)| (VolumeId(*volume), (*store).to_owned())).collect()
    }

    #[test]
    fn what_was_noted_is_read_again_and_what_was_forgotten_is_not() {
        let data = tempfile::tempdir().expect("a directory");
        let mut placements = Placements::of(data.path());
        assert_eq!(placements.read().expect("is read"), None);
        placements.note(VolumeId(1), "a").expect_err("a start writes it first");
        placements.replace(&record(&[(1, "a"), (2, "b")])).expect("is written");
        placements.note(VolumeId(3), "a").expect("is noted");
        placements.forget(VolumeId(2)).expect("is forgotten");
        let mut again = Placements::of(data.path());
        again.note(VolumeId(4), "b").expect("is noted by the next process");
        assert_eq!(again.read().expect("is read"), Some(record(&[(1, "a"), (3, "a"), (4, "b")])));
        again.remove().expect("is removed");
        again.remove().expect("there is nothing to remove");
        assert_eq!(again.read().expect("is read"), None);
    }

    #[test]
    fn a_line_that_was_cut_is_none_and_one_that_was_altered_is_found() {
        let data = tempfile::tempdir().expect("a directory");
        let mut placements = Placements::of(data.path());
        placements.replace(&record(&[(1, "a"), (22, "b")])).expect("is written");
        let text = std::fs::read_to_string(data.path().join(FILE)).expect("is read");
        let first = text.find('\n').expect("two lines") + 1;
        for cut in first..text.len() {
            std::fs::write(data.path().join(FILE), &text[..cut]).expect("is cut");
            assert_eq!(placements.read().expect("is read"), Some(record(&[(1, "a")])), "{cut}");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            std::fs::write(data.path().join(FILE), &bytes).expect("is altered");
            // Without the end of the last line it was not synced.
            match at + 1 == text.len() {
                true => drop(placements.read().expect("is read")),
                false => drop(placements.read().expect_err("is damaged")),
            }
        }
    }
}
