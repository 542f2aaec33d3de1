//! The key of a volume, sealed for whoever may open it.
//!
//! A volume's data is encrypted under its [`VolumeKey`], which nobody chooses and which never changes. The metadata has it sealed
//! ([`SealedKey`]) under each key that may open the volume, a [`Kek`]: with several at a time one is exchanged for another while the
//! volume is in use. Sealing is AES-256-GCM with a random nonce, bound to the cipher and to the check value of the volume's key, so that
//! what was sealed for another volume is not taken for this one's.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::octets::{Octets, decode_hex};
use crate::error::{Error, ErrorKind};
use crate::pki::{hmac_sha256, provider};
use crate::types::KeyName;

/// How many keys may open a volume at most.
pub const KEYS_MAX: usize = 8;

const VOLUME_KEY_BYTES: usize = 64;
const KEK_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const SEALED_BYTES: usize = NONCE_LEN + VOLUME_KEY_BYTES + TAG_BYTES;

/// What tells a key from every other one, and says nothing else about it.
pub type KeyFingerprint = Octets<16>;

/// A cipher for volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum CipherName {
    /// AES-256-XTS in units of 512 bytes, numbered from the beginning of the volume.
    #[serde(rename = "aes-256-xts")]
    Aes256Xts,
}

impl fmt::Display for CipherName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CipherName::Aes256Xts => f.write_str("AES-256-XTS"),
        }
    }
}

/// A volume's key, sealed under another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SealedKey {
    /// What people call the key that opens it; the name of its file, where it is looked for in a directory.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub name: KeyName,
    /// Which key that is.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub fingerprint: KeyFingerprint,
    /// Nonce, ciphertext and tag.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub sealed: Octets<SEALED_BYTES>,
}

/// What the metadata has of an encrypted volume's key: nothing that opens the volume by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeKeys {
    /// The cipher.
    pub cipher: CipherName,
    /// Tells the volume's key from every other one.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub check: KeyFingerprint,
    /// The key, sealed under each that may open the volume; 1 to [`KEYS_MAX`], of different names and different fingerprints.
    pub sealed: Vec<SealedKey>,
}

impl VolumeKeys {
    /// A new volume's, which `kek` opens; and the key itself.
    ///
    /// # Errors
    /// `Internal` when the system gives no randomness.
    pub fn create(name: KeyName, kek: &Kek) -> Result<(VolumeKeys, VolumeKey), Error> {
        let key = VolumeKey::random()?;
        let mut keys = VolumeKeys { cipher: CipherName::Aes256Xts, check: key.check(), sealed: Vec::new() };
        let first = keys.seal(&key, name, kek)?;
        keys.sealed.push(first);
        Ok((keys, key))
    }

    /// The volume's key for another one that is to open it.
    ///
    /// # Errors
    /// `Internal` when the system gives no randomness.
    ///
    /// # Panics
    /// If `key` is another volume's.
    pub fn seal(&self, key: &VolumeKey, name: KeyName, kek: &Kek) -> Result<SealedKey, Error> {
        assert!(key.check() == self.check, "a key is sealed for its own volume");
        let nonce: [u8; NONCE_LEN] = *random()?;
        let mut body = Zeroizing::new(*key.reveal());
        let bound = Aad::from(self.bound());
        let tag = kek.sealing().seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), bound, &mut *body);
        let tag = tag.map_err(|_| Error::new(ErrorKind::Internal, "a key cannot be sealed"))?;
        let mut sealed = [0; SEALED_BYTES];
        sealed[..NONCE_LEN].copy_from_slice(&nonce);
        sealed[NONCE_LEN..][..VOLUME_KEY_BYTES].copy_from_slice(&*body);
        sealed[SEALED_BYTES - TAG_BYTES..].copy_from_slice(tag.as_ref());
        Ok(SealedKey { name, fingerprint: kek.fingerprint(), sealed: sealed.into() })
    }

    /// The volume's key, if `kek` is one of those that open it.
    ///
    /// # Errors
    /// `Corrupt` when it is, and what is sealed for it is damaged or another volume's.
    pub fn open(&self, kek: &Kek) -> Result<Option<VolumeKey>, Error> {
        let fingerprint = kek.fingerprint();
        let Some(found) = self.sealed.iter().find(|sealed| sealed.fingerprint == fingerprint) else { return Ok(None) };
        let damaged = || {
            let text = format!("what is sealed under key {} is damaged, or another volume's", found.name);
            Error::new(ErrorKind::Corrupt, text)
        };
        let (nonce, body) = found.sealed.bytes().split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut body = Zeroizing::new(body.to_vec());
        kek.sealing().open_in_place(nonce, Aad::from(self.bound()), &mut body).map_err(|_| damaged())?;
        let mut key = VolumeKey(Zeroizing::new([0; VOLUME_KEY_BYTES]));
        key.0.copy_from_slice(&body[..VOLUME_KEY_BYTES]);
        if key.check() == self.check { Ok(Some(key)) } else { Err(damaged()) }
    }

    /// The keys that open it, for people.
    #[must_use]
    pub fn openers(&self) -> String {
        let named = self.sealed.iter().map(|sealed| format!("{} ({})", sealed.name, sealed.fingerprint));
        named.collect::<Vec<_>>().join(", ")
    }

    /// Whether there are as many keys as there may be, and each is another one under another name.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let is_other = |at: usize, key: &SealedKey| {
            let others = &self.sealed[..at];
            others.iter().all(|other| other.name != key.name && other.fingerprint != key.fingerprint)
        };
        (1..=KEYS_MAX).contains(&self.sealed.len()) && self.sealed.iter().enumerate().all(|(at, key)| is_other(at, key))
    }

    /// What a sealed key is bound to.
    fn bound(&self) -> Vec<u8> {
        let cipher: &[u8] = match self.cipher {
            CipherName::Aes256Xts => b"aes-256-xts",
        };
        [b"heliotrope volume key 1 ".as_slice(), cipher, b" ", self.check.bytes()].concat()
    }
}

/// The key of a volume's data, in two halves for the cipher. Overwritten when it is dropped, and never printed.
pub struct VolumeKey(Zeroizing<[u8; VOLUME_KEY_BYTES]>);

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(..)")
    }
}

impl VolumeKey {
    fn random() -> Result<VolumeKey, Error> {
        loop {
            let key = VolumeKey(random()?);
            // With equal halves the first tweak would be the encrypted number itself (FIPS 140 implementation guidance, A.9).
            if key.0[..32] != key.0[32..] {
                return Ok(key);
            }
        }
    }

    /// The key itself, for another implementation of the cipher: what is stored is what Linux's dm-crypt calls `aes-xts-plain64`.
    #[must_use]
    pub fn reveal(&self) -> &[u8; VOLUME_KEY_BYTES] {
        &self.0
    }

    fn check(&self) -> KeyFingerprint {
        shortened(hmac_sha256(&*self.0, b"heliotrope volume key check 1"))
    }

    #[cfg(test)]
    pub(super) fn of(bytes: [u8; VOLUME_KEY_BYTES]) -> VolumeKey {
        VolumeKey(Zeroizing::new(bytes))
    }
}

/// A key that opens volumes, and that an operator keeps: 32 random bytes. Overwritten when it is dropped, and never printed.
pub struct Kek(Zeroizing<[u8; KEK_BYTES]>);

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kek({})", self.fingerprint())
    }
}

impl Kek {
    /// A new one.
    ///
    /// # Errors
    /// `Internal` when the system gives no randomness.
    pub fn random() -> Result<Kek, Error> {
        Ok(Kek(random()?))
    }

    /// From the content of a file, or what a command printed: 32 bytes, or 64 hexadecimal digits and an end of line.
    ///
    /// # Errors
    /// `InvalidRequest` when it is something else; what it is is not told.
    pub fn parse(content: &[u8]) -> Result<Kek, Error> {
        let mut key = Kek(Zeroizing::new([0; KEK_BYTES]));
        let is_key = match content.len() {
            KEK_BYTES => {
                key.0.copy_from_slice(content);
                true
            }
            _ => std::str::from_utf8(content).is_ok_and(|text| decode_hex(text.trim_ascii_end(), &mut *key.0)),
        };
        let wrong = || {
            let text = format!(
                "{} bytes that are no key: a key is 32 random bytes, or 64 hexadecimal digits; `helio volume key generate` makes one",
                content.len()
            );
            Error::new(ErrorKind::InvalidRequest, text)
        };
        is_key.then_some(key).ok_or_else(wrong)
    }

    /// As [`parse`](Self::parse) reads it: 64 hexadecimal digits and an end of line.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).expect("a nibble is below 16");
        // Of its full size from the beginning, so that no part of it is left behind where it grew.
        let mut text = Zeroizing::new(String::with_capacity(2 * KEK_BYTES + 1));
        self.0.iter().for_each(|byte| text.extend([digit(byte >> 4), digit(byte & 15)]));
        text.push('\n');
        text
    }

    /// Which key it is.
    #[must_use]
    pub fn fingerprint(&self) -> KeyFingerprint {
        shortened(hmac_sha256(&*self.0, b"heliotrope key fingerprint 1"))
    }

    fn sealing(&self) -> LessSafeKey {
        let key = Zeroizing::new(hmac_sha256(&*self.0, b"heliotrope key sealing 1"));
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).expect("a key for AES-256-GCM has 32 bytes"))
    }
}

fn shortened(digest: [u8; 32]) -> KeyFingerprint {
    let (first, _) = digest.split_first_chunk::<16>().expect("SHA-256 has 32 bytes");
    (*first).into()
}

fn random<const LENGTH: usize>() -> Result<Zeroizing<[u8; LENGTH]>, Error> {
    let mut bytes = Zeroizing::new([0; LENGTH]);
    let none = |_| Error::new(ErrorKind::Internal, "the system gives no randomness");
    provider().secure_random.fill(&mut *bytes).map_err(none)?;
    Ok(bytes)
}
