//! How far a transfer is, in a small file that outlives its process.
//!
//! JSON with a version and a CRC-32. It says what is durable at the target: it is written after a flush, by renaming, and
//! removed when all is done. Source and target are texts that name what must be the same when the transfer goes on.
//! Where the file lies is for the callers.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, bail};
use client_lib::files;
use serde::{Deserialize, Serialize};

use super::piece::{Checksum, PIECE_LEN};

/// The version this program writes, and the only one it reads.
const VERSION: u32 = 1;

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct Progress {
    /// Everything before it is done; whole pieces, or the end.
    pub(in crate::cli) position_bytes: u64,
    /// The checksum of that.
    pub(in crate::cli) checksum: Checksum,
    /// Bytes that were read from the source.
    pub(in crate::cli) read_bytes: u64,
    /// Bytes that were written to the target.
    pub(in crate::cli) written_bytes: u64,
}

impl Progress {
    /// Nothing is done.
    pub(in crate::cli) fn none() -> Progress {
        Progress { position_bytes: 0, checksum: Checksum::new(), read_bytes: 0, written_bytes: 0 }
    }
}

/// A transfer between two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct State {
    /// What is read.
    pub(in crate::cli) source: String,
    /// What is written.
    pub(in crate::cli) target: String,
    /// Bytes to transfer.
    pub(in crate::cli) size_bytes: u64,
    /// How far it is.
    #[serde(flatten)]
    pub(in crate::cli) progress: Progress,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    version: u32,
    #[serde(flatten)]
    state: State,
    crc32: u32,
}

/// As [`Sealed`], of any version.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn crc32_of(state: &State) -> anyhow::Result<u32> {
    Ok(crc32fast::hash(&serde_json::to_vec(state)?))
}

impl State {
    /// What of two transfers must be the same for one to go on with the other.
    fn differences(&self, now: &State) -> Option<String> {
        let different = |what: &str, then: &str, now: &str| {
            (then != now).then(|| format!("the {what} is another than when it was begun: then {then}, now {now}"))
        };
        different("source", &self.source, &now.source)
            .or_else(|| different("target", &self.target, &now.target))
            .or_else(|| different("size", &self.size_bytes.to_string(), &now.size_bytes.to_string()))
    }
}

/// The file that a [`State`] is kept in.
#[derive(Clone, Debug)]
pub(in crate::cli) struct StateFile {
    path: PathBuf,
}

impl StateFile {
    pub(in crate::cli) fn new(path: PathBuf) -> StateFile {
        StateFile { path }
    }

    /// Whether it is there, or may be: where that cannot be seen, nothing is concluded from its absence.
    pub(in crate::cli) fn exists(&self) -> bool {
        self.path.try_exists().unwrap_or(true)
    }

    /// How far the transfer is that `now` is to go on with; `begin_anew` says how to begin without it.
    ///
    /// # Errors
    /// When there is none, it is damaged, or it is of another source, target or size.
    pub(in crate::cli) fn resume(&self, now: &State, begin_anew: &str) -> anyhow::Result<Progress> {
        let shown = self.path.display();
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("there is nothing to resume: {shown} is not there; begin anew {begin_anew}")
            }
            Err(error) => return Err(error).with_context(|| shown.to_string()),
        };
        let damaged = || format!("{shown} is damaged: remove it and begin anew {begin_anew}");
        let Versioned { version } = serde_json::from_slice(&text).with_context(damaged)?;
        if version != VERSION {
            bail!("{shown} is of version {version}, this program knows {VERSION}: resume with the helio that wrote it");
        }
        let Sealed { state, crc32, .. } = serde_json::from_slice(&text).with_context(damaged)?;
        let position = state.progress.position_bytes;
        let whole = position == state.size_bytes || position < state.size_bytes && position.is_multiple_of(PIECE_LEN);
        if crc32_of(&state)? != crc32 || !whole {
            bail!("{}", damaged());
        }
        if let Some(difference) = state.differences(now) {
            bail!("it cannot be resumed: {difference}; remove {shown} and begin anew {begin_anew}");
        }
        Ok(state.progress)
    }

    /// Notes how far it is.
    pub(in crate::cli) fn save(&self, state: &State) -> anyhow::Result<()> {
        let sealed = Sealed { version: VERSION, state: state.clone(), crc32: crc32_of(state)? };
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".tmp");
        // Not synced: an older one, or none, only makes a resumed transfer do more.
        let noted = fs::write(&temporary, serde_json::to_vec_pretty(&sealed)?)
            .and_then(|()| fs::rename(&temporary, &self.path));
        if noted.is_err() {
            // Half a file on a full disk; there may be none.
            let _ = fs::remove_file(&temporary);
        }
        noted.with_context(|| {
            format!("how far it is cannot be noted in {}; --state FILE names another place", self.path.display())
        })
    }

    /// All is done.
    pub(in crate::cli) fn remove(&self) -> anyhow::Result<()> {
        files::remove(&self.path).with_context(|| format!("{} is not needed any more", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            source: "file of 4194304 bytes, changed at 1.000000002, read as raw".to_owned(),
            target: "volume disk, id 7".to_owned(),
            size_bytes: 4 << 20,
            progress: Progress {
                position_bytes: 3 << 20,
                checksum: Checksum::new(),
                read_bytes: 2 << 20,
                written_bytes: 1 << 20,
            },
        }
    }

    fn said(outcome: anyhow::Result<Progress>) -> String {
        format!("{:#}", outcome.expect_err("must be refused"))
    }

    #[test]
    fn what_was_noted_is_resumed_and_then_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = StateFile::new(directory.path().join("state"));
        assert!(said(file.resume(&state(), "with --overwrite")).contains("nothing to resume"));
        file.save(&State { progress: Progress::none(), ..state() }).expect("is noted");
        file.save(&state()).expect("is noted again");
        let now = State { progress: Progress::none(), ..state() };
        assert_eq!(file.resume(&now, "").expect("is the same"), state().progress);
        file.remove().expect("is removed");
        file.remove().expect("is gone already");
        assert_eq!(fs::read_dir(directory.path()).expect("is there").count(), 0, "nothing is left");
    }

    #[test]
    fn another_source_target_or_size_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = StateFile::new(directory.path().join("state"));
        file.save(&state()).expect("is noted");
        for (other, what) in [
            (State { source: "another".into(), ..state() }, "the source is another"),
            (State { target: "another".into(), ..state() }, "the target is another"),
            (State { size_bytes: 5 << 20, ..state() }, "the size is another"),
        ] {
            let said = said(file.resume(&other, "with --overwrite"));
            assert!(said.contains(what) && said.contains("begin anew with --overwrite"), "{said}");
        }
    }

    #[test]
    fn damage_and_other_versions_are_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = StateFile::new(directory.path().join("state"));
        file.save(&state()).expect("is noted");
        let text = fs::read_to_string(&file.path).expect("is there");
        for (from, to, expected) in [
            ("3145728", "2097152", "is damaged"),
            ("volume disk", "volume dish", "is damaged"),
            ("\"version\": 1", "\"version\": 2", "is of version 2, this program knows 1"),
            ("{", "", "is damaged"),
        ] {
            fs::write(&file.path, text.replacen(from, to, 1)).expect("is written");
            assert!(said(file.resume(&state(), "")).contains(expected), "{from}");
        }
        // A position in the middle of a piece, well sealed: no checksum can be of it.
        let mut odd = state();
        odd.progress.position_bytes += 512;
        file.save(&odd).expect("is noted");
        assert!(said(file.resume(&state(), "")).contains("is damaged"));
    }

    /// A format: older state files must be read or refused by their version.
    #[test]
    fn the_form_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = StateFile::new(directory.path().join("state"));
        file.save(&state()).expect("is noted");
        let expected = format!(
            r#"{{
  "version": 1,
  "source": "file of 4194304 bytes, changed at 1.000000002, read as raw",
  "target": "volume disk, id 7",
  "size_bytes": 4194304,
  "position_bytes": 3145728,
  "checksum": "blake3-1m:{}",
  "read_bytes": 2097152,
  "written_bytes": 1048576,
  "crc32": {}
}}"#,
            "0".repeat(64),
            crc32_of(&state()).expect("is computed")
        );
        assert_eq!(fs::read_to_string(&file.path).expect("is there"), expected);
    }
}
