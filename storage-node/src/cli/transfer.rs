//! What `volume import` and `volume export` share: a transfer between an image or an NBD export and a volume.
//!
//! Owns the copying ([`copy`]), its two ends ([`ends`], [`image`]), what is read and written of them ([`piece`]), how
//! far a transfer is ([`state`]), the way to a volume's NBD server ([`reach`]), and what a user sees of it ([`report`]).
//! What a verb asks for and refuses is in `import` and `export`.
//!
//! Invariants: nothing is noted as done that is not durable at the target; a transfer goes on only between the ends it
//! was begun between, and only where the target still holds what was copied; one whose source changed meanwhile fails; zeroes are
//! never sent to a target that has them.

mod copy;
mod ends;
mod image;
#[cfg(test)]
pub(super) mod memory;
mod piece;
pub(super) mod reach;
mod report;
mod state;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use client_lib::error::whole;
use nbd_frontend::client::{Client, ClientError, ClientOptions, NbdUri};
use nbd_frontend::proto::constants::{ENOSPC, EPERM};

pub(super) use self::ends::{End, Target};
pub(super) use self::image::{Format, Image};
use self::piece::Checksum;
pub(super) use self::report::{Report, print};
pub(super) use self::state::{Progress, State, StateFile};
use super::Common;

/// What an import and an export are asked alike.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Where to note how far it is [default: beside the image; for NBD in the data directory]
    #[arg(long, value_name = "FILE")]
    pub(super) state: Option<PathBuf>,
    /// Connections to an NBD server, where it allows several
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(super) connections: u8,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What is at the other end than the volume: an image in a file, or an export of any NBD server.
#[derive(Clone, Debug)]
pub(super) enum Place {
    File(PathBuf),
    Nbd(NbdUri),
}

impl Place {
    /// Reads what a user wrote.
    pub(super) fn parse(text: &str) -> Result<Place, String> {
        if NbdUri::is_meant(text) {
            return Ok(Place::Nbd(text.parse().map_err(|error| format!("{error}"))?));
        }
        Ok(Place::File(text.into()))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::File(path) => path.display().fmt(f),
            Place::Nbd(uri) => uri.fmt(f),
        }
    }
}

/// Where a transfer's state is kept: where it was said, beside the file, or in the data directory of the cluster.
pub(super) fn state_file(
    said: Option<&Path>,
    place: &Place,
    volume: &str,
    verb: &str,
    common: &Common,
) -> anyhow::Result<StateFile> {
    let path = match (said, place) {
        (Some(path), _) => path.to_owned(),
        (None, Place::File(path)) => {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{volume}.helio-{verb}"));
            name.into()
        }
        (None, Place::Nbd(_)) => {
            let data = common.data();
            if common.cluster.is_some() || !data.join("FORMAT").exists() {
                bail!("there is no place here to note how far it is: name one with --state FILE");
            }
            let directory = data.join("transfers");
            std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
            directory.join(format!("{volume}.helio-{verb}"))
        }
    };
    Ok(StateFile::new(path))
}

/// Connects to an export.
pub(super) async fn connect(uri: &NbdUri, connections: u8) -> anyhow::Result<Arc<Client>> {
    Ok(Arc::new(Client::connect(uri, ClientOptions { connections: connections.into() }).await?))
}

/// What of a transfer was decided before it begins.
pub(super) struct Transfer<'a> {
    pub(super) source: End,
    pub(super) target: Target,
    pub(super) file: &'a StateFile,
    /// Names the ends; its progress is where to begin, and then what is durable.
    pub(super) state: &'a mut State,
    /// How to begin anew, as in "with --force".
    pub(super) begin_anew: &'static str,
}

impl Transfer<'_> {
    /// Makes sure that an interrupted transfer can go on where it was: the target is read back up to there, and must hold what was
    /// copied. A takeover or a rollback may have taken some of that away, and others may have written since.
    ///
    /// # Errors
    /// When it holds something else; then nothing is written.
    pub(super) async fn go_on(&self) -> anyhow::Result<()> {
        let Progress { position_bytes, checksum: noted, .. } = self.state.progress;
        let found = self.read_back(position_bytes, "looking at what is there").await;
        let found = found.context("what was copied before cannot be read back")?;
        if found != noted {
            bail!(
                "the target does not hold any more what was copied to it (checksum {found} up to {position_bytes} bytes, and {noted} when that was noted): it was written, rolled back, or taken over by a node that did not have all of it; begin anew {}",
                self.begin_anew
            );
        }
        self.target.empty_from(position_bytes).await.context("what lies behind that cannot be emptied")
    }

    /// Carries it out and makes it durable, noting how far it is, and showing that on a terminal.
    ///
    /// # Errors
    /// With how to go on.
    pub(super) async fn run(&mut self) -> anyhow::Result<Report> {
        self.file.save(self.state)?;
        let began_at = self.state.progress;
        let begun = Instant::now();
        let size = self.state.size_bytes;
        let mut follower = Follower { bar: report::bar(size, began_at), transfer: Some((self.file, &mut *self.state)) };
        let copied = copy::copy(&self.source, Some(&self.target), size, began_at, &mut follower).await;
        follower.bar.finish_and_clear();
        let done = copied.map_err(|error| self.explained(error))?;
        self.state.progress = done;
        self.require_unchanged_source()?;
        Ok(Report::new(self.state, began_at, begun.elapsed()))
    }

    /// Refuses an image that is not what it was when it was begun: some of what was copied is of before, and some of after that.
    fn require_unchanged_source(&self) -> anyhow::Result<()> {
        let End::Image(image) = &self.source else { return Ok(()) };
        let (then, now) = (&self.state.source, image.identity().context("whether the image was changed is not known")?);
        if *then != now {
            self.forget();
            bail!(
                "the image was changed while it was copied: then {then}, now {now}; begin anew {}, when nothing writes it",
                self.begin_anew
            );
        }
        Ok(())
    }

    /// Removes what says how far it is: what was copied is of no use.
    fn forget(&self) {
        // What is left of it when that fails is refused when it is looked at: the ends are not what they were.
        let _ = self.file.remove();
    }

    /// Reads the target back and compares it with what was read from the source.
    ///
    /// # Errors
    /// When it is not the same; then there is nothing to go on with.
    pub(super) async fn verify(&self) -> anyhow::Result<()> {
        if let Target::Image(image) = &self.target {
            image.forget_cached();
        }
        let read = self.read_back(self.state.size_bytes, "verifying").await;
        let (found, wanted) = (read.context("it was written, but cannot be read back")?, self.state.progress.checksum);
        if found != wanted {
            self.forget();
            bail!(
                "what was written reads back otherwise: checksum {found}, but the source's is {wanted}; begin anew {}",
                self.begin_anew
            );
        }
        Ok(())
    }

    /// The checksum of what the target holds up to `end_bytes`; the bar says `doing` meanwhile.
    async fn read_back(&self, end_bytes: u64, doing: &'static str) -> anyhow::Result<Checksum> {
        let mut follower = Follower { bar: report::bar(end_bytes, Progress::none()), transfer: None };
        follower.bar.set_message(doing);
        let read = copy::copy(&self.target.end(), None, end_bytes, Progress::none(), &mut follower).await;
        follower.bar.finish_and_clear();
        Ok(read?.checksum)
    }

    /// Adds what to do about a failure.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        let client = error.downcast_ref::<ClientError>();
        let why = match client.and_then(ClientError::errno) {
            Some(ENOSPC) => "the target has no space left: make room, then ",
            Some(EPERM) => "the server does not let this client write: does its node still own the volume? ",
            _ => "",
        };
        let position = self.state.progress.position_bytes;
        let can_go_on = match &self.target {
            Target::Image(image) => image.format().can_go_on(),
            // One that was made for this is gone again.
            Target::Nbd { .. } => position > 0,
        };
        let hint = if can_go_on && self.file.exists() {
            let size = self.state.size_bytes;
            format!(" ({why}the same command with --resume goes on at {position} of {size} bytes)")
        } else if matches!(self.target, Target::Image(_)) {
            format!(" ({why}the same command with --force begins anew)")
        } else if !why.is_empty() {
            format!(" ({why}try again)")
        } else {
            String::new()
        };
        anyhow!("{}{hint}", whole(error.as_ref()))
    }
}

/// Follows a copy: shows it, and notes what is durable.
struct Follower<'a> {
    bar: indicatif::ProgressBar,
    transfer: Option<(&'a StateFile, &'a mut State)>,
}

impl copy::Observer for Follower<'_> {
    fn at(&mut self, progress: &Progress) {
        self.bar.set_position(progress.position_bytes);
    }

    fn durable(&mut self, progress: &Progress) -> anyhow::Result<()> {
        let Some((file, state)) = &mut self.transfer else { return Ok(()) };
        state.progress = *progress;
        file.save(state)
    }
}

#[cfg(test)]
mod tests;
