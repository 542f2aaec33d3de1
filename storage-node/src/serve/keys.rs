//! The keys of encrypted volumes at a node: sealed, as metadata has them, and opened where this node has what opens them.
//!
//! A node needs none for anything but its own exports. What opens a volume comes from the node's settings; without it the
//! volume is not exported here, and everything else goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use client_lib::cipher::keys::KeyFingerprint;
use client_lib::cipher::{KeySource, VolumeCipher, VolumeKeys};
use client_lib::{Error, ErrorKind};
use nbd_frontend::EncryptedSession;
use nbd_frontend::export::Session;

use super::metadata::NewestMetadata;
use super::volume::ServedVolume;

/// The sealed keys of a volume, as this node has heard of them. Whether there are any is known before the volume is served, and never
/// changes.
#[derive(Default)]
pub struct SealedKeys(Mutex<Option<Arc<VolumeKeys>>>);

impl SealedKeys {
    /// They are these.
    pub fn follow(&self, keys: Option<&VolumeKeys>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != keys {
            *known = keys.cloned().map(Arc::new);
        }
    }

    /// Those of an encrypted volume.
    #[must_use]
    pub fn get(&self) -> Option<Arc<VolumeKeys>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Opens volumes with the keys that this node has.
#[derive(Default)]
pub struct Unlocker {
    source: Option<KeySource>,
    /// Of volumes in use, by the check values of their keys: further connections need not ask for the keys again.
    open: Mutex<BTreeMap<KeyFingerprint, Weak<VolumeCipher>>>,
}

impl Unlocker {
    /// With the keys of `source`, if there are any here.
    #[must_use]
    pub fn new(source: Option<KeySource>) -> Unlocker {
        Unlocker { source, open: Mutex::default() }
    }

    /// The session of `volume` as its user sees it: of an encrypted one the plaintext.
    ///
    /// # Errors
    /// `InvalidRequest` when this node has no key that opens it, which says which do; `Corrupt` when what is sealed is damaged.
    pub async fn readable(
        &self,
        volume: &ServedVolume,
        session: Arc<dyn Session>,
        metadata: &NewestMetadata,
    ) -> Result<Arc<dyn Session>, Error> {
        let Some(keys) = volume.keys.get() else { return Ok(session) };
        let name = volume.name.as_str();
        let cipher = match self.unlocked(name, &keys).await {
            Ok(cipher) => cipher,
            Err(error) => match metadata.get().await.ok().and_then(|state| state.keys(volume.id).cloned()) {
                // Another key opens it since, and this node has yet to hear of it.
                Some(newest) if newest != *keys => self.unlocked(name, &newest).await?,
                _ => return Err(error),
            },
        };
        Ok(Arc::new(EncryptedSession::new(session, cipher)))
    }

    async fn unlocked(&self, name: &str, keys: &VolumeKeys) -> Result<Arc<VolumeCipher>, Error> {
        let Some(source) = &self.source else {
            let text = format!(
                "volume {name} is encrypted, and this node has no keys: it takes one of {}; name a place for it in [keys] of the node's \
                 settings, or use helio-nbd with the key",
                keys.openers()
            );
            return Err(Error::new(ErrorKind::InvalidRequest, text));
        };
        let known = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&keys.check).and_then(Weak::upgrade);
        if let Some(cipher) = known {
            return Ok(cipher);
        }
        // Two that come at once both ask, and either is right.
        let cipher = VolumeCipher::unlocked(source, name, keys).await?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, cipher| cipher.strong_count() > 0);
        open.insert(keys.check, Arc::downgrade(&cipher));
        Ok(cipher)
    }
}
