//! A volume mounted as a file system without the kernel's nbd: ext4 over loop over nbdfuse. Needs root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::tools::{LOOK, Owned, run, tool};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An NBD export as a block device, by nbdfuse and loop; undone in reverse when dropped.
#[derive(Debug)]
pub struct Device {
    file: PathBuf,
    fuse: Owned,
    device: String,
}

impl Device {
    /// Shows the export at `uri` as a block device, over the file `disk` in `dir`.
    ///
    /// # Errors
    /// What the tools say.
    pub fn new(dir: &Path, uri: &str) -> anyhow::Result<Device> {
        let file = dir.join("disk");
        File::create(&file)?;
        // What it says when its server is killed under it would only hide what a test says.
        let log = dir.join("nbdfuse.log");
        let mut command = Command::new("nbdfuse");
        let fuse = Owned::start(command.arg(&file).arg(uri).stderr(File::create(&log)?), "nbdfuse")?;
        let mut this = Device { file, fuse, device: String::new() };
        let begun = Instant::now();
        while fs::metadata(&this.file)?.len() == 0 {
            let shows = begun.elapsed() < PATIENCE && this.fuse.ended()?.is_none();
            ensure!(shows, "nbdfuse shows no disk: {}", fs::read_to_string(&log)?);
            std::thread::sleep(LOOK);
        }
        this.device = run(tool("losetup").args(["-f", "--show"]).arg(&this.file))?.trim().to_owned();
        Ok(this)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(&self.device)
    }

    /// Takes it back.
    ///
    /// # Errors
    /// When it is in use, or nbdfuse failed.
    pub fn finish(mut self) -> anyhow::Result<()> {
        run(tool("losetup").arg("-d").arg(&self.device))?;
        self.device.clear();
        run(Command::new("umount").arg(&self.file))?;
        ensure!(self.fuse.wait(PATIENCE)?, "nbdfuse failed");
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.device.is_empty() {
            let _ = tool("losetup").arg("-d").arg(&self.device).status();
        }
        // Lazily: the loop device may let go of it a moment later. Taken back already is fine too.
        let _ = Command::new("umount").arg("-l").arg(&self.file).stderr(Stdio::null()).status();
    }
}

/// An ext4 mount of an NBD export; undone when dropped.
#[derive(Debug)]
pub struct Mounted {
    point: PathBuf,
    device: Option<Device>,
}

impl Mounted {
    /// Mounts the export at `uri` on `mnt` in `dir`.
    ///
    /// # Errors
    /// What the tools say.
    pub fn new(dir: &Path, uri: &str) -> anyhow::Result<Mounted> {
        let point = dir.join("mnt");
        fs::create_dir_all(&point)?;
        let device = Device::new(dir, uri)?;
        run(Command::new("mount").arg(device.path()).arg(&point))?;
        Ok(Mounted { point, device: Some(device) })
    }

    /// Where the file system is.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Unmounts; everything is written then.
    ///
    /// # Errors
    /// What the tools say.
    pub fn finish(mut self) -> anyhow::Result<()> {
        run(Command::new("umount").arg(&self.point))?;
        self.device.take().map_or(Ok(()), Device::finish)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.device.is_some() {
            let _ = Command::new("umount").arg(&self.point).stderr(Stdio::null()).status();
        }
    }
}
