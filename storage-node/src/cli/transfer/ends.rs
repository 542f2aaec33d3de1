//! The two ends of a transfer: where bytes come from and where they go, a local image or an NBD export.

use std::io;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use client_lib::ReadPart;
use nbd_frontend::client::Client;

use super::image::Image;
use super::piece::{Piece, ZERO_LEN_MIN};

/// Zeroes are written in buffers of this many bytes where a server cannot be told to write them.
const ZERO_BUFFER_LEN: usize = 1 << 20;

/// An image or an export.
#[derive(Clone)]
pub(in crate::cli) enum End {
    Image(Arc<Image>),
    Nbd(Arc<Client>),
}

/// Bytes that are alike, as an end tells them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) length: u64,
    /// Whether they are zeroes that need not be read.
    pub(super) zero: bool,
}

impl End {
    /// Size in bytes.
    pub(in crate::cli) fn size(&self) -> u64 {
        match self {
            End::Image(image) => image.size(),
            End::Nbd(client) => client.size(),
        }
    }

    /// What is at `at` and after it, at least one extent. Beyond the end are zeroes without end.
    pub(super) async fn extents(&self, at: u64) -> anyhow::Result<Vec<Extent>> {
        if at >= self.size() {
            return Ok(vec![Extent { length: u64::MAX - at, zero: true }]);
        }
        match self {
            End::Image(image) => {
                let image = Arc::clone(image);
                let (length, zero) = blocking(move || image.extent(at)).await.context("the image cannot be read")?;
                Ok(vec![Extent { length, zero }])
            }
            End::Nbd(client) => {
                let extents = client.allocation(at, client.size() - at).await?;
                Ok(extents.into_iter().map(|extent| Extent { length: extent.length, zero: extent.zero }).collect())
            }
        }
    }

    /// Reads and looks at `length` bytes at `at`, for a target that allocates in units of `granularity`. What lies beyond
    /// the end is zeroes.
    pub(super) async fn piece(&self, at: u64, length: u64, granularity: u32) -> anyhow::Result<Piece> {
        let read = match self {
            End::Image(image) => {
                let image = Arc::clone(image);
                blocking(move || {
                    let data = image.read(at, length as usize)?;
                    Ok(Piece::new(at, vec![ReadPart::Data(data.into())], granularity))
                })
                .await
            }
            End::Nbd(client) => {
                let within = client.size().saturating_sub(at).min(length);
                let mut parts = client.read(at, within as u32).await?;
                if within < length {
                    parts.push(ReadPart::Zero((length - within) as u32));
                }
                blocking(move || Ok(Piece::new(at, parts, granularity))).await
            }
        };
        read.with_context(|| format!("{length} bytes at {at} cannot be read"))
    }
}

/// Where bytes go.
#[derive(Clone)]
pub(in crate::cli) enum Target {
    /// An image that this transfer made, or the one that it goes on with: it reads as zeroes where nothing was written.
    Image(Arc<Image>),
    /// An export; `zeroed` says that it reads as zeroes where this transfer, or the one that it goes on with, wrote nothing.
    Nbd { client: Arc<Client>, zeroed: bool },
}

impl Target {
    /// The same, to be read back.
    pub(super) fn end(&self) -> End {
        match self {
            Target::Image(image) => End::Image(Arc::clone(image)),
            Target::Nbd { client, .. } => End::Nbd(Arc::clone(client)),
        }
    }

    /// In which units to write, in bytes.
    pub(super) fn granularity(&self) -> u32 {
        match self {
            Target::Image(image) => image.format().granularity(),
            Target::Nbd { client, .. } => client.block_size_min().max(ZERO_LEN_MIN),
        }
    }

    /// After how many bytes read a checkpoint is worth its flush. More are done again when the process is killed. A
    /// node's log has written its data already and flushes in no time; a file system writes all of it then, and holds
    /// up writers meanwhile: with a flush every 64 MiB an export took 1.6 times as long (2026-11-25).
    pub(super) fn checkpoint_bytes(&self) -> u64 {
        match self {
            Target::Image(_) => 256 << 20,
            Target::Nbd { .. } => 64 << 20,
        }
    }

    /// Writes the piece that begins at `at`.
    pub(super) async fn write(&self, at: u64, piece: Piece) -> anyhow::Result<()> {
        match self {
            Target::Image(image) => {
                let image = Arc::clone(image);
                let written = blocking(move || piece.runs.iter().try_for_each(|(at, run)| image.write(*at, run)));
                written.await.map_err(cannot_write)
            }
            Target::Nbd { client, .. } => {
                for (at, length) in piece.zeroes(at) {
                    self.zero(at, length).await?;
                }
                let runs = piece.runs.into_iter().map(|(at, run)| client.write(at, run));
                futures_util::future::try_join_all(runs).await?;
                Ok(())
            }
        }
    }

    /// Makes a range read as zeroes.
    pub(super) async fn zero(&self, at: u64, length: u64) -> anyhow::Result<()> {
        match self {
            Target::Image(_) | Target::Nbd { zeroed: true, .. } => {}
            Target::Nbd { client, .. } if client.can_write_zeroes() => client.write_zeroes(at, length).await?,
            Target::Nbd { client, .. } => {
                let zeroes = Bytes::from(vec![0; ZERO_BUFFER_LEN]);
                let mut written = 0;
                while written < length {
                    let some = (length - written).min(ZERO_BUFFER_LEN as u64);
                    client.write(at + written, zeroes.slice(..some as usize)).await?;
                    written += some;
                }
            }
        }
        Ok(())
    }

    /// Makes all that lies at `at` and behind it read as zeroes, where that is counted on. What an earlier process wrote there may
    /// have been rolled back since to what was there before.
    pub(super) async fn empty_from(&self, at: u64) -> anyhow::Result<()> {
        match self {
            Target::Nbd { client, zeroed: true } if at < client.size() => {
                Ok(client.write_zeroes(at, client.size() - at).await?)
            }
            // Zeroes are written there, or the file is this transfer's alone.
            Target::Nbd { .. } | Target::Image(_) => Ok(()),
        }
    }

    /// Makes what was written durable.
    pub(super) async fn flush(&self) -> anyhow::Result<()> {
        match self {
            Target::Image(image) => {
                let image = Arc::clone(image);
                blocking(move || image.sync()).await.map_err(cannot_write)
            }
            Target::Nbd { client, .. } => Ok(client.flush().await?),
        }
    }
}

fn cannot_write(error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull => "the file system is full",
        io::ErrorKind::QuotaExceeded => "the quota of the file system is used up",
        io::ErrorKind::FileTooLarge => "the file system does not take files of this size",
        _ => "the file cannot be written",
    };
    anyhow::Error::new(error).context(hint)
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
