//! Keys of encrypted volumes: sealed, so that the metadata opens nothing by itself (docs/decisions/0045).
//!
//! Whether a volume is encrypted is said when it is made, and never changes. A clone has the keys that its origin has when it is made:
//! it shares blocks with it. From then on each volume's are its own.

use client_lib::cipher::keys::{KEYS_MAX, KeyFingerprint};
use client_lib::cipher::{SealedKey, VolumeKeys};
use client_lib::{KeyName, VolumeId};

use super::MetaState;
use super::volumes::Create;
use crate::command::{Refusal, Response};

impl MetaState {
    /// The keys of a volume; `None` if it is not encrypted.
    #[must_use]
    pub fn keys(&self, volume: VolumeId) -> Option<&VolumeKeys> {
        self.keys.get(&volume)
    }

    /// The encrypted volumes and their keys.
    pub(crate) fn all_keys(&self) -> impl Iterator<Item = (VolumeId, &VolumeKeys)> {
        self.keys.iter().map(|(volume, keys)| (*volume, keys))
    }

    pub(super) fn create_encrypted_volume(
        &mut self,
        log_index: u64,
        create: Create,
        keys: VolumeKeys,
    ) -> Result<Response, Refusal> {
        if !keys.is_sound() {
            return Err(Refusal::NotItsKey(create.name));
        }
        let response = self.create_volume(log_index, create)?;
        // A repeated proposal is answered with what the first one made.
        if response == (Response::VolumeCreated { volume: VolumeId(log_index) }) {
            self.keys.insert(VolumeId(log_index), keys);
        }
        Ok(response)
    }

    /// A clone is opened by what opens its origin now.
    pub(super) fn inherit_keys(&mut self, origin: VolumeId, clone: VolumeId) {
        if let Some(keys) = self.keys.get(&origin).cloned() {
            self.keys.insert(clone, keys);
        }
    }

    pub(super) fn forget_keys(&mut self, volume: VolumeId) {
        self.keys.remove(&volume);
    }

    pub(super) fn add_volume_key(
        &mut self,
        id: VolumeId,
        check: KeyFingerprint,
        key: SealedKey,
    ) -> Result<Response, Refusal> {
        let volume = self.volumes.get(&id).ok_or(Refusal::UnknownVolume(id))?.name.clone();
        let keys = self.keys.get(&id).ok_or_else(|| Refusal::NotEncrypted(volume.clone()))?;
        if keys.check != check {
            return Err(Refusal::NotItsKey(volume));
        }
        let is_taken = |other: &&SealedKey| other.name == key.name || other.fingerprint == key.fingerprint;
        match keys.sealed.iter().find(is_taken) {
            // A repeated proposal.
            Some(known) if *known == key => return Ok(Response::VolumeKeysChanged),
            Some(known) => {
                let (name, fingerprint) = (known.name.clone(), known.fingerprint);
                return Err(Refusal::VolumeKeyTaken { volume, name, fingerprint });
            }
            None if keys.sealed.len() >= KEYS_MAX => return Err(Refusal::TooManyVolumeKeys(volume)),
            None => {}
        }
        self.keys.get_mut(&id).ok_or(Refusal::NotEncrypted(volume))?.sealed.push(key);
        Ok(Response::VolumeKeysChanged)
    }

    pub(super) fn remove_volume_key(&mut self, id: VolumeId, name: &KeyName) -> Result<Response, Refusal> {
        let volume = self.volumes.get(&id).ok_or(Refusal::UnknownVolume(id))?.name.clone();
        let keys = self.keys.get(&id).ok_or_else(|| Refusal::NotEncrypted(volume.clone()))?;
        let name = name.clone();
        let Some(at) = keys.sealed.iter().position(|sealed| sealed.name == name) else {
            return Err(Refusal::UnknownVolumeKey { volume, name });
        };
        if keys.sealed.len() == 1 {
            return Err(Refusal::LastVolumeKey { volume, name });
        }
        self.keys.get_mut(&id).ok_or(Refusal::NotEncrypted(volume))?.sealed.remove(at);
        Ok(Response::VolumeKeysChanged)
    }
}
