//! A session of an encrypted volume: its user has plaintext, and what is behind it ciphertext.
//!
//! Data is encrypted and decrypted on the connection's own thread and in turns, so that neither the volumes of a disk nor other
//! connections wait for it. Holes, TRIM and WRITE_ZEROES go through as they are. Whoever makes one has unlocked the volume before.

use std::sync::Arc;

use bytes::Bytes;
use client_lib::cipher::VolumeCipher;
use client_lib::trace::{Stage, Trace, What};
use client_lib::transport::BoxFuture;
use client_lib::{Error, ReadPart};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::export::{AllocationExtent, ExportInfo, ResidencyExtent, Session, Traced, ZeroOptions};

/// A session, and the cipher of its volume.
pub struct EncryptedSession {
    stored: Arc<dyn Session>,
    cipher: Arc<VolumeCipher>,
    /// Of the operation that this is for alone, if it is.
    trace: Trace,
}

impl EncryptedSession {
    /// What `stored` is under `cipher`. Its requests must be of whole sectors.
    #[must_use]
    pub fn new(stored: Arc<dyn Session>, cipher: Arc<VolumeCipher>) -> EncryptedSession {
        EncryptedSession { stored, cipher, trace: Trace::default() }
    }
}

impl Session for EncryptedSession {
    fn info(&self) -> ExportInfo {
        self.stored.info()
    }

    /// Not where others of the same disk are served: as with TLS, a mebibyte takes a third of a millisecond (docs/decisions/0045).
    fn home(&self) -> Option<Handle> {
        None
    }

    fn waits_for(&self) -> Option<String> {
        self.stored.waits_for()
    }

    fn is_traced(&self) -> bool {
        self.stored.is_traced()
    }

    fn traced(&self, what: What, arrived: Instant) -> Option<Traced> {
        let Traced { session: stored, trace } = self.stored.traced(what, arrived)?;
        let session = EncryptedSession { stored, cipher: self.cipher.clone(), trace: trace.clone() };
        Some(Traced { session: Arc::new(session), trace })
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(async move {
            let mut parts = self.stored.read(offset, length).await?;
            self.cipher.decrypt_parts(offset, &mut parts).await;
            // It takes turns with others.
            self.trace.spent(Stage::Queue);
            Ok(parts)
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let data = self.cipher.encrypt(offset, data).await;
            self.stored.write(offset, data, fua).await
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        self.stored.write_zeroes(offset, length, options)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.stored.trim(offset, length, fua)
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.stored.flush()
    }

    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        self.stored.allocation(offset, length)
    }

    fn residency(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<ResidencyExtent>, Error>> {
        self.stored.residency(offset, length)
    }

    fn cache(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<(), Error>> {
        self.stored.cache(offset, length)
    }
}

#[cfg(test)]
mod tests {
    use client_lib::cipher::{Kek, VolumeKeys};

    use super::*;
    use crate::memory::MemoryExport;

    fn sessions() -> (Arc<MemoryExport>, EncryptedSession) {
        let kek = Kek::random().expect("randomness");
        let (_, key) = VolumeKeys::create("k".parse().expect("a name"), &kek).expect("made");
        let stored = Arc::new(MemoryExport::new("disk", 1 << 20));
        (stored.clone(), EncryptedSession::new(stored, Arc::new(VolumeCipher::new(&key))))
    }

    async fn content(session: &dyn Session, offset: u64, length: u32) -> Vec<u8> {
        ReadPart::joined(session.read(offset, length).await.expect("is read")).to_vec()
    }

    #[tokio::test]
    async fn what_is_behind_has_ciphertext_and_zeroes_where_nothing_was_written() {
        let (stored, session) = sessions();
        let data: Bytes = (0..3 * 512u32).map(|number| (number / 7) as u8).collect();
        session.write(4096 + 512, data.clone(), false).await.expect("is written");
        let mut expected = vec![0; 16384];
        expected[4608..4608 + data.len()].copy_from_slice(&data);
        assert_eq!(content(&session, 0, 16384).await, expected);
        assert_eq!(content(&session, 5120, 512).await, data[512..1024], "a sector of it");
        let behind = content(&*stored, 0, 16384).await;
        assert!(behind[..4608].iter().all(|byte| *byte == 0) && behind[6144..].iter().all(|byte| *byte == 0));
        assert!((4608..6144).step_by(512).all(|at| behind[at..at + 512] != expected[at..at + 512]));
    }

    #[tokio::test]
    async fn equal_sectors_differ_and_zeroes_are_made_as_anywhere() {
        let (stored, session) = sessions();
        session.write(0, Bytes::from(vec![7; 8192]), true).await.expect("is written");
        let behind = content(&*stored, 0, 8192).await;
        assert_ne!(behind[..512], behind[512..1024]);
        session.write_zeroes(0, 4096, ZeroOptions::default()).await.expect("is zeroed");
        session.trim(4096, 512, false).await.expect("is trimmed");
        let mut expected = vec![7; 8192];
        expected[..4608].fill(0);
        assert_eq!(content(&session, 0, 8192).await, expected);
        assert!(content(&*stored, 0, 4608).await.iter().all(|byte| *byte == 0), "what is freed stays free");
    }

    #[tokio::test]
    async fn it_is_not_served_where_others_of_the_disk_are() {
        let (_, session) = sessions();
        assert!(session.home().is_none() && session.share().is_none());
    }
}
