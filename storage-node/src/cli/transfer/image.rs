//! A local image: raw, or qcow2 through imago, whose only user this is.
//!
//! Owns opening, making and checking image files. Everything blocks. What an image refers to outside of itself (backing
//! files, external data) is refused, never opened: an image may come from a stranger.

mod whole;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, bail};
use clap::ValueEnum;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping};

use self::whole::Whole;

/// How an image lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Format {
    /// Byte for byte
    Raw,
    /// QEMU's format, without backing file and encryption
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        })
    }
}

impl Format {
    /// The format that a new file's name asks for.
    pub(in crate::cli) fn of_name(path: &Path) -> Format {
        if path.extension().is_some_and(|extension| extension == "qcow2") { Format::Qcow2 } else { Format::Raw }
    }

    /// The format that a new file's name asks for, where that is one that is not written.
    pub(in crate::cli) fn foreign_of_name(path: &Path) -> Option<&str> {
        let extension = path.extension()?.to_str()?;
        ["vmdk", "vhd", "vhdx", "vdi", "qcow", "qed"].contains(&extension).then_some(extension)
    }

    /// Whether an image that was cut off may be gone on with. Of a qcow2 image the tables may count clusters as free that
    /// others of them use.
    pub(in crate::cli) fn can_go_on(self) -> bool {
        self == Format::Raw
    }

    /// Allocation unit of a new file, in bytes: writing less would only make it write more.
    pub(super) fn granularity(self) -> u32 {
        match self {
            Format::Raw => super::piece::ZERO_LEN_MIN,
            // imago's default cluster, as QEMU's.
            Format::Qcow2 => 64 << 10,
        }
    }
}

/// The start of a qcow2 file (QEMU, docs/interop/qcow2.txt, "Header").
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";
/// Where its encryption method is, four bytes; 0 is none. imago 0.2 reads an encrypted image as though it were not.
const QCOW2_CRYPT_METHOD: usize = 32;

/// What other formats start with. Imported as raw, they would be garbage that nobody notices.
const FOREIGN: [(&[u8], &str); 6] = [
    (b"KDMV", "a VMDK image"),
    (b"vhdxfile", "a VHDX image"),
    (b"conectix", "a VHD image"),
    (b"\x1f\x8b\x08", "compressed with gzip"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
];

type Qcow2File = FormatAccess<imago::file::File>;

/// An open image.
pub(in crate::cli) struct Image {
    content: Content,
    /// Size of the disk in it, in bytes.
    size: u64,
    format: Format,
    /// The file, to tell what it is and to sync it.
    file: File,
}

enum Content {
    Raw,
    /// And the file's extent, where it is read.
    Qcow2(Box<Qcow2File>, Option<Whole>),
}

impl Image {
    /// Opens an image to read it; `format` is found out where it is not given.
    pub(in crate::cli) fn open(path: &Path, format: Option<Format>) -> anyhow::Result<Image> {
        let named = || path.display().to_string();
        let mut file = File::open(path).with_context(named)?;
        let kind = file.metadata().with_context(named)?.file_type();
        if kind.is_dir() {
            bail!("{} is a directory, not an image", named());
        }
        if !kind.is_file() && !kind.is_block_device() {
            bail!("{} is neither a file nor a block device: copy it into a file first", named());
        }
        let mut head = [0; QCOW2_CRYPT_METHOD + 4];
        let have = read_up_to(&file, &mut head, 0).with_context(named)?;
        let found = if head[..have].starts_with(QCOW2_MAGIC) { Format::Qcow2 } else { Format::Raw };
        if format.is_none()
            && let Some((_, what)) = FOREIGN.iter().find(|(magic, _)| head[..have].starts_with(magic))
        {
            bail!(
                "{} is {what}: convert it first, with `qemu-img convert -O qcow2` or by unpacking it; --format raw takes its bytes as they are",
                named()
            );
        }
        match format.unwrap_or(found) {
            Format::Raw => {
                // A device has no length of its own.
                let size = file.seek(SeekFrom::End(0)).with_context(named)?;
                Ok(Image { content: Content::Raw, size, format: Format::Raw, file })
            }
            Format::Qcow2 if found == Format::Raw => bail!("{} is not a qcow2 image", named()),
            Format::Qcow2 => {
                if head[QCOW2_CRYPT_METHOD..] != [0; 4] {
                    bail!("{} is encrypted: make a plain copy first, with `qemu-img convert` and its secret", named());
                }
                Image::open_qcow2(file, false).with_context(named)
            }
        }
    }

    /// Makes an image of `size` bytes that reads as zeroes; with `replace` in the place of a file that is there.
    pub(in crate::cli) fn create(path: &Path, format: Format, size: u64, replace: bool) -> anyhow::Result<Image> {
        let named = || path.display().to_string();
        if path.is_dir() {
            bail!("{} is a directory: name a file in it", named());
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if replace {
            options.create(true).truncate(true)
        } else {
            options.create_new(true)
        };
        let file = match options.open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("{} exists already: choose another name, or --force to replace it", named())
            }
            opened => opened.with_context(named)?,
        };
        only_file(&file, path)?;
        match format {
            Format::Raw => {
                file.set_len(size).with_context(named)?;
                Ok(Image { content: Content::Raw, size, format, file })
            }
            Format::Qcow2 => {
                let storage = file.try_clone().and_then(imago::file::File::try_from).with_context(named)?;
                let builder = Qcow2::<imago::file::File>::create_builder(storage).size(size);
                let made = builder.create_open(DenyImplicitOpenGate::default(), |storage| {
                    Ok(Qcow2::builder(storage).backing(None).write(true))
                });
                let access = Box::new(FormatAccess::new(made.with_context(named)?));
                Ok(Image { content: Content::Qcow2(access, None), size, format, file })
            }
        }
    }

    /// Opens an image to go on writing it.
    pub(in crate::cli) fn reopen(path: &Path, format: Format) -> anyhow::Result<Image> {
        let named = || path.display().to_string();
        let mut file = OpenOptions::new().read(true).write(true).open(path).with_context(named)?;
        only_file(&file, path)?;
        match format {
            Format::Raw => {
                let size = file.seek(SeekFrom::End(0)).with_context(named)?;
                Ok(Image { content: Content::Raw, size, format, file })
            }
            Format::Qcow2 => Image::open_qcow2(file, true).with_context(named),
        }
    }

    fn open_qcow2(file: File, write: bool) -> anyhow::Result<Image> {
        let storage = file.try_clone().and_then(imago::file::File::try_from)?;
        let mut qcow2 = Qcow2::<imago::file::File>::open_image(storage, write).context(
            "the qcow2 image cannot be read; `qemu-img convert -O qcow2` makes one without features that are not known here",
        )?;
        if let Some(backing) = qcow2.implicit_backing_file() {
            bail!("it needs its backing file {backing}: make it whole first, with `qemu-img convert -O qcow2`");
        }
        if qcow2.requires_external_data_file() {
            bail!("its data is in another file: make it whole first, with `qemu-img convert -O qcow2`");
        }
        qcow2.open_implicit_dependencies_gated(DenyImplicitOpenGate::default())?;
        let access = Box::new(FormatAccess::new(qcow2));
        let whole = if write { None } else { Some(Whole::require(&file)?) };
        Ok(Image { size: access.size(), content: Content::Qcow2(access, whole), format: Format::Qcow2, file })
    }

    /// Size of the disk in it, in bytes.
    pub(in crate::cli) fn size(&self) -> u64 {
        self.size
    }

    pub(in crate::cli) fn format(&self) -> Format {
        self.format
    }

    /// What tells it from another file and from itself after a change.
    pub(in crate::cli) fn identity(&self) -> io::Result<String> {
        let file = self.file.metadata()?;
        let what = if file.file_type().is_block_device() {
            // Its length is not in its metadata, and those of all devices are alike.
            let (major, minor) = (rustix::fs::major(file.rdev()), rustix::fs::minor(file.rdev()));
            format!("device {major}:{minor} of {} bytes", (&self.file).seek(SeekFrom::End(0))?)
        } else {
            format!("file of {} bytes", file.len())
        };
        Ok(format!("{what}, changed at {}.{:09}, read as {}", file.mtime(), file.mtime_nsec(), self.format))
    }

    /// What tells it from another file, while it is being written.
    pub(in crate::cli) fn place(&self) -> io::Result<String> {
        let file = self.file.metadata()?;
        Ok(format!("file {} of device {}, written as {}", file.ino(), file.dev(), self.format))
    }

    /// How many bytes from `at` on are alike, and whether they are zeroes that need not be read. `at` is below
    /// the size.
    pub(super) fn extent(&self, at: u64) -> io::Result<(u64, bool)> {
        let rest = self.size - at;
        let (length, zero) = match &self.content {
            Content::Raw => {
                let data = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
                    Ok(data) => data,
                    // lseek(2): no data from here to the end, which is nearer than it was if the file was cut off.
                    Err(rustix::io::Errno::NXIO) if self.file.metadata()?.len() < self.size => return Err(shorter()),
                    Err(rustix::io::Errno::NXIO) => return Ok((rest, true)),
                    // A device, or a file system without holes.
                    Err(_) => return Ok((rest, false)),
                };
                if data > at {
                    (data - at, true)
                } else {
                    (rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(at))? - at, false)
                }
            }
            Content::Qcow2(access, whole) => {
                let (mapping, length) = access.get_mapping(at, rest)?;
                if let (Mapping::Raw { offset, .. }, Some(whole)) = (&mapping, whole) {
                    whole.require_data(*offset, length)?;
                }
                (length, matches!(mapping, Mapping::Zero { .. }))
            }
        };
        if length == 0 {
            return Err(shorter());
        }
        Ok((length.min(rest), zero))
    }

    /// Reads `length` bytes at `at`; what lies beyond the end is zeroes.
    pub(super) fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; length];
        match &self.content {
            Content::Raw => {
                let within = self.size.saturating_sub(at).min(length as u64) as usize;
                self.file.read_exact_at(&mut data[..within], at)?;
            }
            Content::Qcow2(access, _) => access.read(&mut data, at)?,
        }
        Ok(data)
    }

    /// Writes `data` at `at`.
    pub(super) fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        match &self.content {
            Content::Raw => self.file.write_all_at(data, at),
            Content::Qcow2(access, _) => access.write(data, at),
        }
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        if let Content::Qcow2(access, _) = &self.content {
            access.flush()?;
        }
        self.file.sync_data()
    }

    /// Has the next reads come from the disk and not from memory; call it after [`sync`](Self::sync).
    pub(super) fn forget_cached(&self) {
        // Advice: where it is not taken, the reads are from memory.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

fn shorter() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "it became shorter while it was read")
}

/// Refuses to write into devices, pipes and the like.
fn only_file(file: &File, path: &Path) -> anyhow::Result<()> {
    if !file.metadata()?.is_file() {
        bail!("{} is not a regular file; a device can be written through `qemu-nbd`, as nbd://…", path.display());
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], at + have as u64)? {
            0 => break,
            some => have += some,
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(path: &Path) -> Image {
        Image::create(path, Format::Qcow2, 8 << 20, false).expect("is made")
    }

    #[test]
    fn both_formats_hold_what_was_written_and_tell_their_holes() {
        let directory = tempfile::tempdir().expect("a directory");
        for format in [Format::Raw, Format::Qcow2] {
            let path = directory.path().join(format.to_string());
            let image = Image::create(&path, format, 8 << 20, false).expect("is made");
            image.write(3 << 20, &[7; 1 << 16]).expect("is written");
            image.sync().expect("is synced");
            drop(image);
            let image = Image::reopen(&path, format).expect("opens");
            image.write(4 << 20, &[8; 1 << 16]).expect("is written");
            image.sync().expect("is synced");
            let image = Image::open(&path, None).expect("opens");
            assert_eq!((image.size(), image.format()), (8 << 20, format));
            assert_eq!(image.extent(0).expect("is told"), (3 << 20, true));
            assert_eq!(image.extent(3 << 20).expect("is told"), (1 << 16, false));
            assert!(image.extent((4 << 20) + (1 << 16)).expect("is told").1);
            let read = image.read((3 << 20) - 512, 1024).expect("is read");
            assert_eq!(read, [[0; 512], [7; 512]].concat());
            assert_eq!(image.read((8 << 20) - 512, 1024).expect("beyond the end are zeroes"), [0; 1024]);
        }
    }

    /// It was imported as zeroes from where it was cut off, and verified as equal to itself.
    #[test]
    fn a_qcow2_image_that_was_cut_off_is_refused_wherever_that_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, cut) = (directory.path().join("whole"), directory.path().join("cut"));
        let image = qcow2(&path);
        (0..8u64).for_each(|mebibyte| image.write(mebibyte << 20, &[7; 1 << 16]).expect("is written"));
        image.sync().expect("is synced");
        drop(image);
        let read_all = |path: &Path| -> anyhow::Result<u64> {
            let image = Image::open(path, None)?;
            let (mut at, mut data) = (0, 0);
            while at < image.size() {
                let (length, zero) = image.extent(at)?;
                data += if zero { 0 } else { length };
                at += length;
            }
            Ok(data)
        };
        assert_eq!(read_all(&path).expect("is whole"), 8 << 16);
        let whole = std::fs::read(&path).expect("is there");
        for clusters in 4..whole.len() / (64 << 10) {
            std::fs::write(&cut, &whole[..clusters * (64 << 10)]).expect("is written");
            let told = format!("{:#}", read_all(&cut).expect_err("lacks something"));
            assert!(told.contains("was cut off") || told.contains("cannot be read"), "{clusters}: {told}");
        }
    }

    /// What is asked about behind the end of a file has no data, as in a hole: the rest of an image that was cut off while it was imported
    /// became zeroes, at once and with success.
    #[test]
    fn a_raw_image_that_is_cut_off_while_it_is_read_has_no_hole_at_its_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        std::fs::write(&path, vec![7; 8 << 20]).expect("is written");
        let image = Image::open(&path, None).expect("opens");
        let before = image.identity().expect("is told");
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        file.set_len(1 << 20).expect("is cut off");
        for at in [1 << 20, 2 << 20] {
            assert_eq!(image.extent(at).expect_err("is gone").kind(), ErrorKind::UnexpectedEof, "{at}");
        }
        assert!(image.extent(0).is_ok(), "what is there");
        assert_ne!(image.identity().expect("is told"), before);
        // A hole stays one.
        file.set_len(8 << 20).expect("grows");
        assert_eq!(image.extent(2 << 20).expect("is told"), (6 << 20, true));
    }

    #[test]
    fn what_cannot_be_read_as_it_is_meant_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        let refused = |format| match Image::open(&path, format) {
            Ok(_) => panic!("must be refused"),
            Err(error) => format!("{error:#}"),
        };
        assert!(refused(None).contains("No such file"));
        drop(qcow2(&path));
        let whole = std::fs::read(&path).expect("is there");
        let with = |at: usize, bytes: &[u8]| {
            let mut changed = whole.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            std::fs::write(&path, changed).expect("is written");
        };
        with(QCOW2_CRYPT_METHOD, &2u32.to_be_bytes());
        assert!(refused(None).contains("is encrypted: make a plain copy first"));
        // The backing file's name, at the end of the first cluster.
        with(60_000, b"/etc/shadow");
        let named = std::fs::read(&path).expect("is there");
        std::fs::write(&path, [&named[..8], &60_000u64.to_be_bytes(), &11u32.to_be_bytes(), &named[20..]].concat())
            .expect("is written");
        assert!(refused(None).contains("backing file /etc/shadow: make it whole first"), "{}", refused(None));
        // An incompatible feature that nobody has invented yet.
        with(72, &(1u64 << 40).to_be_bytes());
        assert!(refused(None).contains("features that are not known here"), "{}", refused(None));
        std::fs::write(&path, b"KDMV and so on").expect("is written");
        assert!(refused(None).contains("a VMDK image: convert it first"));
        assert!(refused(Some(Format::Qcow2)).contains("is not a qcow2 image"));
        assert_eq!(Image::open(&path, Some(Format::Raw)).expect("as they are").size(), 14);
        std::fs::remove_file(&path).expect("is removed");
        std::fs::create_dir(&path).expect("is made");
        assert!(refused(None).contains("is a directory"));
        let made = Image::create(&path, Format::Raw, 512, true).err().expect("must be refused");
        assert!(made.to_string().contains("name a file in it"));
    }

    #[test]
    fn files_are_replaced_only_when_that_is_asked_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image.qcow2");
        assert_eq!(Format::of_name(&path), Format::Qcow2);
        std::fs::write(&path, "precious").expect("is written");
        let refused = Image::create(&path, Format::Raw, 512, false).err().expect("must be refused");
        assert!(refused.to_string().contains("--force"));
        assert_eq!(std::fs::read(&path).expect("is there"), b"precious");
        assert_eq!(Image::create(&path, Format::Raw, 512, true).expect("is made").size(), 512);
        let null = Image::create(Path::new("/dev/null"), Format::Raw, 512, true).err().expect("must be refused");
        assert!(null.to_string().contains("not a regular file"));
    }
}
