//! What a handover tells the new owner in its proposal: the end of the last epoch's manifests, and who wrote the volume.
//!
//! It is committed with the transfer, so the new owner knows everything as soon as it is the owner, and nobody has to wait for
//! it to say so before (docs/decisions/0032). Metadata keeps it until it is durable there; nobody else looks at it.

use std::time::Duration;

use client_lib::{Epoch, Error, ErrorKind};
use serde::{Deserialize, Serialize};

use super::driver::OwnershipLog;
use crate::propagation::manifest::Manifest;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::volume::ledger::LedgerNews;

/// The version in front of what is enclosed.
const VERSION: u8 = 1;

/// Pause before metadata is told again that something is durable here.
const TELL_PAUSE: Duration = Duration::from_millis(500);

/// What the owner of an epoch must know to begin it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enclosure {
    /// From what the new owner had been told to the end of the last epoch.
    pub manifest: Manifest,
    /// All that is known of the volume's writers.
    pub ledger: LedgerNews,
}

impl Enclosure {
    /// As it is enclosed.
    ///
    /// # Errors
    /// `Internal` for what cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let body = postcard::to_stdvec(self);
        let body = body.map_err(|error| Error::new(ErrorKind::Internal, "it cannot be enclosed").caused_by(error))?;
        Ok([&[VERSION][..], &body].concat())
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Enclosure, Error> {
        match bytes.split_first() {
            Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "what a handover enclosed cannot be read").caused_by(error)
            }),
            found => {
                let found = found.map_or(0, |(version, _)| *version);
                let what = format!("what a handover enclosed has version {found}, this program reads {VERSION}");
                Err(Error::new(ErrorKind::Corrupt, what))
            }
        }
    }

    /// Has the replica of `volume` here take note of it; durable on return only if `durable`.
    ///
    /// # Errors
    /// `Unavailable` when something before it is missing here; what the store says.
    pub async fn take(self, volume: &ServedVolume, durable: bool) -> Result<(), Error> {
        volume.writers.claim(self.ledger.claim);
        volume.shard.note_ledger(volume.id, self.ledger).await.map_err(store_failure)?;
        volume.shard.apply_manifest(volume.id, self.manifest, false, durable).await.map_err(store_failure)?;
        Ok(())
    }
}

/// Makes what was enclosed for the owner of `epoch`, and was taken here, durable, and lets metadata forget it.
///
/// # Cancel safety
/// Safe: metadata keeps it, then.
pub async fn settle(volume: &ServedVolume, epoch: Epoch, log: &dyn OwnershipLog) {
    if let Err(error) = volume.shard.sync(volume.id).await {
        // Metadata keeps it for when the store is opened again.
        tracing::error!(volume = %volume.name, %error, "what a handover enclosed is not durable here");
        return;
    }
    while volume.gate.view().epoch == epoch {
        match log.enclosure_taken(volume.id, epoch).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(volume = %volume.name, %error, "what a handover enclosed is kept for now"),
        }
        tokio::time::sleep(TELL_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use client_lib::{BlockIndex, Lsn};

    use super::*;
    use crate::golden;
    use crate::propagation::manifest::{ManifestRun, RunContent};

    #[test]
    fn what_is_enclosed_is_read_and_another_version_named() {
        let (from, to) = (Lsn::new(Epoch(1), 2), Lsn::new(Epoch(1), 5));
        let run = ManifestRun { start: BlockIndex(7), lsn: to, content: RunContent::Data(vec![0xdead_beef]) };
        let manifest = Manifest { from, to, runs: vec![run], mark: None };
        let ledger = LedgerNews { claim: Epoch(1), done: vec![(2571, vec![(0, 300)])] };
        let enclosure = Enclosure { manifest, ledger };
        let mut bytes = golden::check("enclosure.hex", &enclosure.encode().expect("plain data"));
        assert_eq!(Enclosure::decode(&bytes).expect("reads"), enclosure);
        bytes[0] = 9;
        let error = Enclosure::decode(&bytes).expect_err("another version").to_string();
        assert!(error.contains("version 9, this program reads 1"), "{error}");
        assert!(Enclosure::decode(&[]).is_err());
        assert!(Enclosure::decode(&[VERSION]).is_err());
    }
}
