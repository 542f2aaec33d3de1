//! A log of lines on a volume, without `async`: each line is a sector, and is durable when `append` returns.
//!
//!     cargo run --package client-lib --example append_log -- host-7.helio notes "bought milk"

use std::error::Error;
use std::path::Path;

use client_lib::client::OpenOptions;
use client_lib::client::blocking::{Cluster, Volume};

const SECTOR: u64 = 512;

/// The lines, in order.
///
/// # Errors
/// What the cluster says.
pub(crate) fn lines(volume: &Volume) -> Result<Vec<String>, Box<dyn Error>> {
    let mut lines = Vec::new();
    for at in (0..volume.size()).step_by(SECTOR as usize) {
        let sector = volume.read(at, SECTOR as u32)?;
        let length = usize::from(sector[0]);
        if length == 0 {
            break;
        }
        lines.push(String::from_utf8_lossy(&sector[1..=length]).into_owned());
    }
    Ok(lines)
}

/// Adds a line of at most 255 bytes behind the others.
///
/// # Errors
/// When it is empty or too long, or the volume is full; what the cluster says.
pub(crate) fn append(volume: &Volume, line: &str) -> Result<(), Box<dyn Error>> {
    let length = u8::try_from(line.len()).ok().filter(|length| *length > 0).ok_or("a line has 1 to 255 bytes")?;
    let mut sector = vec![0; SECTOR as usize];
    sector[0] = length;
    sector[1..=line.len()].copy_from_slice(line.as_bytes());
    let at = lines(volume)?.len() as u64 * SECTOR;
    Ok(volume.write(at, sector.into(), true)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [credentials, name, rest @ ..] = arguments.as_slice() else {
        return Err("usage: append_log CREDENTIALS VOLUME [LINE]".into());
    };
    let volume = Cluster::from_credentials(Path::new(credentials))?.open(name, OpenOptions::default())?;
    for line in rest {
        append(&volume, line)?;
    }
    lines(&volume)?.iter().for_each(|line| println!("{line}"));
    volume.close()?;
    Ok(())
}
