//! `helio volume import`: an image or an NBD export becomes a volume.

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use client_lib::cipher::VolumeKeys;
use client_lib::error::whole;
use client_lib::wire::admin::{ClusterStatus, CreateVolume, VolumeStatus};
use client_lib::{SECTOR_SIZE, VolumeName};
use nbd_frontend::client::NbdUri;

use super::client::Client;
use super::transfer::{
    End, Format, Image, Options, Place, Progress, Report, State, StateFile, Target, Transfer, connect, print, reach,
    state_file,
};
use super::{Common, key, members};
use crate::size::{self, human};

/// How an import is begun anew.
const BEGIN_ANEW: &str = "with --overwrite";

/// Copy an image, or an export of any NBD server, into a volume
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio volume import disk debian.qcow2\n  helio volume import disk debian.raw --size 40GiB --owner a\n  helio volume import disk nbd://192.0.2.7/disk\n  helio volume import disk 'nbd+unix:///?socket=/run/nbd.sock'\n\nThe volume is made unless there is an empty one. Holes and zeroes take no space. After Ctrl-C, a crash or a lost connection the same command with --resume goes on."
)]
pub(super) struct Import {
    /// The volume
    name: String,
    /// An image file, nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH
    #[arg(value_parser = Place::parse)]
    source: Place,
    /// Size of the new volume, when larger than the image
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// The node that is to own the new volume [default: the node asked]
    #[arg(long)]
    owner: Option<String>,
    /// How the image lies in its file [default: found out]
    #[arg(long)]
    format: Option<Format>,
    /// Replace what an existing volume holds
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Go on with an import that was interrupted
    #[arg(long)]
    resume: bool,
    /// Read the volume back at the end and compare; takes about as long as reading the image once more
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    encrypt: key::Encrypt,
    #[command(flatten)]
    common: Options,
}

pub(super) fn run(arguments: &Import, common: &Common) -> anyhow::Result<()> {
    let name: VolumeName = arguments.name.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(import(arguments, &name, common))
}

async fn import(arguments: &Import, name: &VolumeName, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let (source, identity) = open(arguments).await?;
    let needed = source.size().next_multiple_of(u64::from(SECTOR_SIZE));
    if needed == 0 {
        bail!("{} is empty", arguments.source);
    }
    let file = state_file(arguments.common.state.as_deref(), &arguments.source, name.as_str(), "import", common)?;
    let found = tokio::task::block_in_place(|| reach::volume(&client, name))?;
    // Before anything is made: whether it can be reached.
    let servers = tokio::task::block_in_place(|| reach::Servers::find(common, &client))?;
    let (volume, is_new) = match found {
        Some(volume) => {
            check(arguments, &volume, needed, &file)?;
            (volume, false)
        }
        None if arguments.resume => bail!("there is no volume {name} to go on with; import it without --resume"),
        None => {
            if let Some(owner) = &arguments.owner {
                let cluster: ClusterStatus = tokio::task::block_in_place(|| client.get("/v1/cluster"))?;
                members::require(&cluster.members, owner)?;
                servers.require(owner)?;
            }
            let keys = arguments.encrypt.keys(name).await?;
            (tokio::task::block_in_place(|| create(arguments, name, needed, keys, &client))?, true)
        }
    };
    let state = State {
        source: identity,
        target: format!("volume {name}, id {}", volume.id),
        size_bytes: needed,
        progress: Progress::none(),
    };
    let progress = if arguments.resume { file.resume(&state, BEGIN_ANEW)? } else { Progress::none() };
    let mut state = State { progress, ..state };
    let copied = async {
        let uri = servers.owner(name.as_str(), &volume.owner)?;
        copy(arguments, source, &uri, &file, &mut state).await
    };
    let mut report = match copied.await {
        // There is nothing to go on with, and the same command would find the name taken.
        Err(error) if is_new && state.progress.position_bytes == 0 => {
            let why = whole(error.as_ref());
            tokio::task::block_in_place(|| client.delete::<()>(&format!("/v1/volumes/{name}")))
                .with_context(|| format!("{why}; and volume {name}, which was made for it, cannot be deleted again"))?;
            bail!("{why}; volume {name}, which was made for it, is deleted again");
        }
        outcome => outcome?,
    };
    report.volume = name.to_string();
    report.image = arguments.source.to_string();
    print(&report, &format!("imported {} into volume {name}", arguments.source), arguments.common.json)
}

/// Copies `source` into the volume at `uri`, from where `state` says. That says what is durable there afterwards, also when it fails.
async fn copy(
    arguments: &Import,
    source: End,
    uri: &NbdUri,
    file: &StateFile,
    state: &mut State,
) -> anyhow::Result<Report> {
    let client = connect(uri, arguments.common.connections).await?;
    if arguments.overwrite {
        // An older state must not outlive what it speaks of.
        file.remove()?;
        // All of it: what lies behind the image must not stay either.
        client.write_zeroes(0, client.size()).await.context("the volume cannot be emptied")?;
    }
    let target = Target::Nbd { client, zeroed: true };
    let mut transfer = Transfer { source, target, file, state, begin_anew: BEGIN_ANEW };
    if arguments.resume {
        transfer.go_on().await?;
    }
    let mut report = match transfer.run().await {
        Err(error) if transfer.state.progress.position_bytes == 0 => {
            // One that stays says that nothing is done, which is so.
            let _ = file.remove();
            return Err(error);
        }
        outcome => outcome?,
    };
    if arguments.verify {
        transfer.verify().await?;
        report.verified = true;
    }
    file.remove()?;
    Ok(report)
}

/// Opens a source; what it is, to be known again.
async fn open(arguments: &Import) -> anyhow::Result<(End, String)> {
    match &arguments.source {
        Place::File(path) => {
            let image = Image::open(path, arguments.format)?;
            let identity = image.identity()?;
            Ok((End::Image(Arc::new(image)), identity))
        }
        Place::Nbd(uri) => {
            if arguments.format.is_some_and(|format| format != Format::Raw) {
                bail!("an NBD export is raw: --format is for files");
            }
            let client = connect(uri, arguments.common.connections).await?;
            let identity = format!("export {uri} of {} bytes", client.size());
            Ok((End::Nbd(client), identity))
        }
    }
}

/// Whether an existing volume can be imported into.
fn check(arguments: &Import, volume: &VolumeStatus, needed: u64, file: &StateFile) -> anyhow::Result<()> {
    let VolumeStatus { name, size_bytes, .. } = volume;
    if *size_bytes < needed {
        bail!(
            "volume {name} of {} is too small for {}, which needs {} ({needed} bytes): import it under another name",
            human(*size_bytes),
            arguments.source,
            human(needed)
        );
    }
    if arguments.size.is_some_and(|size| size != *size_bytes) {
        bail!("volume {name} exists and has {} ({size_bytes} bytes): --size is for a new one", human(*size_bytes));
    }
    if arguments.owner.as_ref().is_some_and(|owner| *owner != volume.owner) {
        bail!("volume {name} exists and is owned by node {}: --owner is for a new one", volume.owner);
    }
    if arguments.encrypt.is_wanted() && volume.encryption.is_none() {
        bail!("volume {name} exists and is not encrypted: --encrypt is for a new one");
    }
    if volume.mapped_bytes > 0 && !arguments.overwrite && !arguments.resume {
        let interrupted = if file.exists() { "go on with the interrupted import with --resume, " } else { "" };
        bail!(
            "volume {name} holds {} already: {interrupted}import under another name, or --overwrite to replace what it holds",
            human(volume.mapped_bytes)
        );
    }
    Ok(())
}

fn create(
    arguments: &Import,
    name: &VolumeName,
    needed: u64,
    keys: Option<VolumeKeys>,
    client: &Client,
) -> anyhow::Result<VolumeStatus> {
    let size_bytes = arguments.size.unwrap_or(needed);
    if size_bytes < needed {
        bail!(
            "--size {} is less than {} needs: {} ({needed} bytes)",
            human(size_bytes),
            arguments.source,
            human(needed)
        );
    }
    let owner = arguments.owner.clone();
    let request = CreateVolume { name: name.to_string(), size_bytes, owner, keys, ..CreateVolume::default() };
    client.post("/v1/volumes", &request)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use client_lib::{Error, ErrorKind};

    use super::super::transfer::memory::{MIB, Memory, Operation};
    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        import: Import,
    }

    fn import(arguments: &[&str]) -> Import {
        Command::parse_from([&["import", "disk", "image"], arguments].concat()).import
    }

    fn state(size_bytes: u64) -> State {
        State { source: "export".into(), target: "volume disk".into(), size_bytes, progress: Progress::none() }
    }

    /// The image and its state file lay on a share that went away when nearly all was copied. That the state file could not be seen any more was
    /// taken for "nothing was copied", and the volume that had been made for the import was deleted.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_copied_counts_also_when_it_cannot_be_noted_any_more() {
        let share = tempfile::tempdir().expect("a directory");
        let path = share.path().join("share");
        std::fs::create_dir(&path).expect("is made");
        let file = StateFile::new(path.join("state"));
        let source = Memory::hooked(8 * MIB, move |operation| match operation {
            Operation::Read(at) if at >= 6 * MIB => {
                // The second one of them finds it gone.
                let _ = std::fs::remove_dir_all(&path);
                Err(Error::new(ErrorKind::Unavailable, "the share is gone"))
            }
            _ => Ok(()),
        });
        let source = source.await;
        source.fill(0, 8 * MIB, 7).await;
        let volume = Memory::new(8 * MIB).await;
        let mut state = state(8 * MIB);
        let copied = copy(&import(&[]), source.end(), &volume.uri, &file, &mut state).await;
        let said = whole(copied.expect_err("its end cannot be read").as_ref());
        assert!(said.contains("how far it is cannot be noted in") && said.contains("the share is gone"), "{said}");
        assert_eq!(state.progress.position_bytes, 6 * MIB, "so that the volume stays");
    }

    /// After a takeover by a node that did not have all of it, `--resume` went on behind what was lost, and said that the image was imported.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_import_goes_on_only_in_a_volume_that_holds_what_was_copied() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = StateFile::new(directory.path().join("state"));
        let source = Memory::new(8 * MIB).await;
        source.fill(0, 7 * MIB, 7).await;
        let volume = Memory::new(9 * MIB).await;
        let mut half = state(4 * MIB);
        copy(&import(&[]), source.end(), &volume.uri, &file, &mut half).await.expect("is copied");

        let noted = State { size_bytes: 8 * MIB, ..half };
        volume.client.write_zeroes(2 * MIB, MIB).await.expect("is lost");
        // What was there before the import began.
        volume.fill(7 * MIB, 2 * MIB, 9).await;
        let refused = copy(&import(&["--resume"]), source.end(), &volume.uri, &file, &mut noted.clone()).await;
        let said = refused.expect_err("must be refused").to_string();
        assert!(said.contains("does not hold any more what was copied") && said.contains("--overwrite"), "{said}");
        assert_eq!(volume.export.contents(8 * MIB, 1), [9], "nothing is written");

        volume.fill(2 * MIB, MIB, 7).await;
        let report = copy(&import(&["--resume"]), source.end(), &volume.uri, &file, &mut noted.clone()).await;
        assert_eq!(report.expect("goes on").resumed_at_bytes, 4 * MIB);
        assert!(volume.export.contents(0, 7 << 20) == vec![7; 7 << 20]);
        assert!(
            volume.export.contents(7 * MIB, 2 << 20) == vec![0; 2 << 20],
            "zeroes of the image, and what lies behind it"
        );
    }
}
