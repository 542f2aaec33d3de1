//! `helio volume export`: a volume becomes an image, or the content of another NBD export.

use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use client_lib::wire::admin::{SnapshotStatus, VolumeStatus};
use client_lib::{Error, VolumeName};

use super::Common;
use super::client::Client;
use super::snapshot;
use super::transfer::{
    End, Format, Image, Options, Place, Progress, State, StateFile, Target, Transfer, connect, print, reach, state_file,
};
use crate::size::human;

/// How an export is begun anew.
const BEGIN_ANEW: &str = "with --force";

/// Copy a volume, a snapshot, or what a node kept of a volume, into an image or into an export of any NBD server
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio volume export disk disk.raw\n  helio volume export disk disk.qcow2\n  helio volume export disk@monday nbd://192.0.2.7/disk\n  helio volume export disk@tail-1 lost.qcow2\n\nThe image has holes where the volume has them. A volume that is written meanwhile gives an image of no single moment: export a snapshot of it, or stop its writers first. After Ctrl-C, a crash or a lost connection the same command with --resume goes on, unless the volume was written since or the image is qcow2: that begins anew with --force."
)]
pub(super) struct Export {
    /// The volume, VOLUME@SNAPSHOT, or VOLUME@tail-EPOCH as `helio volume status` names it
    name: String,
    /// A file, nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH
    #[arg(value_parser = Place::parse)]
    target: Place,
    /// How the image lies in its file [default: qcow2 for *.qcow2, else raw]
    #[arg(long)]
    format: Option<Format>,
    /// Replace a file that exists
    #[arg(long, conflicts_with = "resume")]
    force: bool,
    /// Go on with an export that was interrupted
    #[arg(long)]
    resume: bool,
    /// Read the image back from the disk at the end and compare; takes about as long as reading the volume once more
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    common: Options,
}

/// What is exported.
enum Source {
    Volume(VolumeName),
    Snapshot(snapshot::Target),
}

impl std::str::FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Source, Error> {
        if text.contains('@') { text.parse().map(Source::Snapshot) } else { text.parse().map(Source::Volume) }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Volume(volume) => volume.fmt(f),
            Source::Snapshot(snapshot) => snapshot.fmt(f),
        }
    }
}

impl Source {
    fn volume(&self) -> &VolumeName {
        match self {
            Source::Volume(volume) => volume,
            Source::Snapshot(snapshot) => &snapshot.volume,
        }
    }

    /// What the cluster knows of it.
    fn find(&self, client: &Client, volume: &VolumeStatus) -> anyhow::Result<Found> {
        let Source::Snapshot(target) = self else {
            let content = format!("volume {}, id {}, head {}", volume.name, volume.id, volume.head);
            return Ok(Found { kind: "volume", node: volume.owner.clone(), only_there: false, content });
        };
        let path = format!("/v1/volumes/{}/snapshots", target.volume);
        let all: Vec<SnapshotStatus> = tokio::task::block_in_place(|| client.get(&path))?;
        if let Some(snapshot) = all.iter().find(|snapshot| snapshot.name == target.snapshot.as_str()) {
            let content = format!("snapshot {target}, id {}", snapshot.id);
            return Ok(Found { kind: "snapshot", node: volume.owner.clone(), only_there: false, content });
        }
        let mut tails = volume.replicas.iter().filter_map(|replica| replica.tail.as_ref());
        let tail = tails.find(|tail| tail.export == target.to_string()).with_context(|| {
            format!(
                "there is no snapshot {target}; `helio volume snapshot list {}` shows those that exist, `helio volume status {0}` what nodes kept that have left it",
                target.volume
            )
        })?;
        let content = format!("tail {target}, id {}, of node {} up to {}", volume.id, tail.node, tail.to);
        Ok(Found { kind: "tail", node: tail.node.clone(), only_there: true, content })
    }
}

/// What is exported, as the cluster knows it.
struct Found {
    kind: &'static str,
    /// Where it is read best.
    node: String,
    /// Whether no other node has it.
    only_there: bool,
    /// Names the content: an export of other content is not gone on with.
    content: String,
}

pub(super) fn run(arguments: &Export, common: &Common) -> anyhow::Result<()> {
    let source: Source = arguments.name.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(export(arguments, &source, common))
}

async fn export(arguments: &Export, what: &Source, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let volume = volume(&client, what.volume())?;
    let (name, found) = (what.to_string(), what.find(&client, &volume)?);
    let servers = tokio::task::block_in_place(|| reach::Servers::find(common, &client))?;
    let server = if found.only_there { servers.only(&name, &found.node) } else { servers.any(&name, &found.node) };
    let source = connect(&server?, arguments.common.connections).await?;
    let size_bytes = source.size();
    let file = state_file(arguments.common.state.as_deref(), &arguments.target, &name, "export", common)?;
    let (target, place) = open(arguments, size_bytes, &file).await?;
    let state = State { source: found.content, target: place, size_bytes, progress: Progress::none() };
    let progress = if arguments.resume { file.resume(&state, BEGIN_ANEW)? } else { Progress::none() };
    let (source, mut state) = (End::Nbd(source), State { progress, ..state });
    let mut transfer = Transfer { source, target, file: &file, state: &mut state, begin_anew: BEGIN_ANEW };
    if arguments.resume {
        transfer.go_on().await?;
    }
    let mut report = transfer.run().await?;
    if arguments.verify {
        transfer.verify().await?;
        report.verified = true;
    }
    file.remove()?;
    report.volume.clone_from(&name);
    report.image = arguments.target.to_string();
    print(&report, &format!("exported {} {name} to {}", found.kind, arguments.target), arguments.common.json)?;
    let Source::Volume(volume_name) = what else { return Ok(()) };
    let after = self::volume(&client, volume_name).context("whether it was written meanwhile is not known")?;
    if after.head != volume.head {
        bail!(
            "volume {name} was written while it was exported (from {} to {}): {} is of no single moment; stop the writers and export again with --force",
            volume.head,
            after.head,
            arguments.target
        );
    }
    Ok(())
}

fn volume(client: &Client, name: &VolumeName) -> anyhow::Result<VolumeStatus> {
    tokio::task::block_in_place(|| client.get(&format!("/v1/volumes/{name}")))
}

/// Opens or makes the target; what it is, to be known again.
async fn open(arguments: &Export, size: u64, file: &StateFile) -> anyhow::Result<(Target, String)> {
    match &arguments.target {
        Place::File(path) => {
            if let (None, Some(foreign)) = (arguments.format, Format::foreign_of_name(path)) {
                bail!(
                    "{foreign} is not written: export to a .qcow2 or .raw file, and convert that with `qemu-img convert`; --format says which of both {} is to be",
                    path.display()
                );
            }
            let format = arguments.format.unwrap_or_else(|| Format::of_name(path));
            if arguments.resume && !format.can_go_on() {
                bail!(
                    "{} is a qcow2 image, and one that was cut off cannot be gone on with: --force begins anew (a raw image can be resumed)",
                    path.display()
                );
            }
            let image = if arguments.resume {
                Image::reopen(path, format)?
            } else {
                let interrupted = file.exists() && path.exists();
                if arguments.force {
                    // An older state must not outlive what it speaks of.
                    file.remove()?;
                } else if interrupted {
                    let way = if format.can_go_on() {
                        "--resume goes on, --force begins anew"
                    } else {
                        "--force begins anew"
                    };
                    bail!("an export to {} was interrupted: {way}", path.display());
                }
                Image::create(path, format, size, arguments.force)?
            };
            if image.size() != size {
                bail!("{} is not of the volume's size any more: export it again with --force", path.display());
            }
            let place = image.place()?;
            Ok((Target::Image(Arc::new(image)), place))
        }
        Place::Nbd(uri) => {
            if arguments.format.is_some_and(|format| format != Format::Raw) {
                bail!("an NBD export is raw: --format is for files");
            }
            let client = connect(uri, arguments.common.connections).await?;
            if client.read_only() {
                bail!("{uri} is read-only");
            }
            if client.size() < size {
                bail!("{uri} of {} is too small for the volume of {}", human(client.size()), human(size));
            }
            let place = format!("export {uri} of {} bytes", client.size());
            Ok((Target::Nbd { client, zeroed: false }, place))
        }
    }
}
