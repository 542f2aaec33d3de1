//! Copies a volume or a snapshot into a sparse file:
//!
//!     cargo run --package client-lib --example copy_volume -- host-7.helio disk@monday disk.raw

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use client_lib::ReadPart;
use client_lib::client::{Cluster, OpenOptions};
use client_lib::wire::client::ExtentState;

/// Bytes read at a time.
const PIECE: u32 = 4 << 20;

/// Copies `name` into `file`, without what reads as zeroes; returns how many bytes that were.
///
/// # Errors
/// What the cluster or the file system says.
pub(crate) async fn copy(cluster: &Cluster, name: &str, file: &Path) -> Result<u64, Box<dyn Error>> {
    let volume = cluster.open(name, OpenOptions { is_read_only: true, ..OpenOptions::default() }).await?;
    let file = File::create(file)?;
    file.set_len(volume.size())?;
    let (mut at, mut copied) = (0, 0);
    while at < volume.size() {
        for extent in volume.extents(at, volume.size() - at).await? {
            let end = at + extent.length;
            while at < end && extent.state != ExtentState::Zero {
                let length = (end - at).min(u64::from(PIECE)) as u32;
                for part in volume.read_parts(at, length).await? {
                    match part {
                        ReadPart::Data(data) => {
                            file.write_all_at(&data, at)?;
                            copied += data.len() as u64;
                            at += data.len() as u64;
                        }
                        ReadPart::Zero(length) => at += u64::from(length),
                    }
                }
            }
            at = end;
        }
    }
    file.sync_all()?;
    Ok(copied)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [credentials, name, file] = arguments.as_slice() else {
        return Err("usage: copy_volume CREDENTIALS VOLUME[@SNAPSHOT] FILE".into());
    };
    let cluster = Cluster::from_credentials(Path::new(credentials))?;
    let copied = copy(&cluster, name, Path::new(file)).await?;
    println!("{copied} bytes of data");
    Ok(())
}
