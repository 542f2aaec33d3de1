//! `helio volume policy`: what happens when a volume's owner is lost.

use clap::{Args, ValueEnum};
use client_lib::VolumeName;
use client_lib::wire::admin::VolumePolicy;

use super::Common;
use super::client::{Client, print_json};

/// Who begins a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Takeover {
    /// Only `helio volume takeover`
    Manual,
    /// A replica by itself, when the owner has been lost for a while
    Auto,
}

/// Show or change what happens when a volume's owner is lost
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio volume policy disk\n  helio volume policy disk --takeover auto --after 60\n  helio volume policy disk --takeover manual\n\nA takeover loses what no replica has. Do not let volumes be taken over by themselves whose nodes may be suspended as virtual machines: their clocks stop."
)]
pub(super) struct Policy {
    /// The volume
    volume: VolumeName,
    /// Who begins a takeover
    #[arg(long)]
    takeover: Option<Takeover>,
    /// With `auto`: how long after the owner's lease is out, in seconds [default: 60]
    #[arg(long, value_name = "SECONDS", requires = "takeover")]
    after: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Hold-off that is taken when none is given: longer than a node's restart.
const AFTER_DEFAULT: u32 = 60;

pub(super) fn run(arguments: &Policy, common: &Common) -> anyhow::Result<()> {
    let path = format!("/v1/volumes/{}/policy", arguments.volume);
    let wanted = match (arguments.takeover, arguments.after) {
        (None, _) => None,
        (Some(Takeover::Manual), None) => Some(None),
        (Some(Takeover::Manual), Some(_)) => {
            anyhow::bail!("--after says when to take over by itself: it goes with --takeover auto")
        }
        (Some(Takeover::Auto), after) => Some(Some(u64::from(after.unwrap_or(AFTER_DEFAULT)) * 1000)),
    };
    let client = Client::find(common)?;
    let policy: VolumePolicy = match wanted {
        None => client.get(&path)?,
        Some(takeover_after_ms) => client.post(&path, &VolumePolicy { takeover_after_ms })?,
    };
    if arguments.json {
        return print_json(&policy);
    }
    match policy.takeover_after_ms {
        None => println!("when its owner is lost, volume {} waits for `helio volume takeover {0}`", arguments.volume),
        Some(ms) => println!(
            "when its owner is lost, volume {} is taken over {} s after the owner's lease is out",
            arguments.volume,
            ms / 1000
        ),
    }
    Ok(())
}
