//! Keys of encrypted volumes, as administrators ask for them: sealed. What is sealed is made by who has the keys, and is not opened here.

use client_lib::cipher::VolumeKeys;
use client_lib::wire::admin::AddVolumeKey;
use client_lib::{Error, ErrorKind, KeyName, VolumeId};
use consensus::{Command, MetaState, Response, Volume};

use super::names::volume_named;
use super::{NodeAdmin, out_of_turn};
use crate::node::METADATA_DEADLINE;

impl NodeAdmin {
    /// What opens a volume.
    pub(super) async fn keys_of(&self, name: &str) -> Result<VolumeKeys, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        keys(&state, volume_named(&state, name)?).cloned()
    }

    /// Has another key open a volume, too.
    pub(super) async fn add_key_of(&self, name: &str, request: AddVolumeKey) -> Result<VolumeKeys, Error> {
        let AddVolumeKey { check, key } = request;
        let (key_name, fingerprint) = (key.name.clone(), key.fingerprint);
        self.change_keys(name, |volume| Command::AddVolumeKey { volume, check, key }).await?;
        tracing::info!(volume = name, key = %key_name, %fingerprint, "another key opens the volume");
        self.keys_of(name).await
    }

    /// Has a key open a volume no more. Who has opened it goes on.
    pub(super) async fn remove_key_of(&self, name: &str, key: &str) -> Result<VolumeKeys, Error> {
        let key: KeyName = key.parse()?;
        self.change_keys(name, |volume| Command::RemoveVolumeKey { volume, name: key.clone() }).await?;
        tracing::warn!(volume = name, %key, "a key opens the volume no more");
        self.keys_of(name).await
    }

    async fn change_keys(&self, name: &str, command: impl FnOnce(VolumeId) -> Command + Send) -> Result<(), Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        keys(&state, volume)?;
        self.require_keys_known_to_all(&state).await?;
        match self.meta.carry_out(command(volume.id), METADATA_DEADLINE).await? {
            Response::VolumeKeysChanged => Ok(()),
            other => Err(out_of_turn(&other)),
        }
    }
}

fn keys<'a>(state: &'a MetaState, volume: &Volume) -> Result<&'a VolumeKeys, Error> {
    state.keys(volume.id).ok_or_else(|| {
        let text = format!(
            "volume {} is not encrypted: that is said when a volume is made, `helio volume create NAME --encrypt …`; copy it into such a one",
            volume.name
        );
        Error::new(ErrorKind::InvalidRequest, text)
    })
}
