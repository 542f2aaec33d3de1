//! `helio volume policy`: what a volume's owner promises, and what happens when it is lost.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use client_lib::VolumeName;
use client_lib::policy::Class;
use client_lib::wire::admin::{ChangePolicy, VolumePolicy, VolumeStatus};

use super::Common;
use super::client::{Client, print_json};
use crate::size;

/// Who begins a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Takeover {
    /// Only `helio volume takeover`
    Manual,
    /// A replica by itself, when the owner has been lost for a while
    Auto,
}

/// What happens while a class is not met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Unmet {
    /// Flushes wait for as long as it takes
    Block,
    /// Flushes are answered as in class `local` after a while, until the replicas have caught up
    Degrade,
}

/// What FLUSH and FUA wait for.
#[derive(Debug, Args)]
pub(super) struct DurabilityArguments {
    /// What FLUSH and FUA wait for: `local`, `site:N` (N other nodes at the owner's provider) or `geo:N` (N other providers)
    #[arg(long, value_name = "CLASS")]
    durability: Option<Class>,
    /// What happens while that cannot be met
    #[arg(long)]
    unmet: Option<Unmet>,
    /// With `degrade`: how long it is waited for, in seconds [default: 10]
    #[arg(long, value_name = "SECONDS")]
    degrade_after: Option<u32>,
    /// Also a class that the volume's nodes can never meet
    #[arg(long)]
    pub(super) accept_unmet: bool,
}

impl DurabilityArguments {
    pub(super) fn class(&self) -> Option<String> {
        self.durability.map(|class| class.to_string())
    }

    pub(super) fn unmet(&self) -> Option<String> {
        let name = |unmet| match unmet {
            Unmet::Block => "block".to_owned(),
            Unmet::Degrade => "degrade".to_owned(),
        };
        self.unmet.map(name)
    }

    pub(super) fn degrade_after_ms(&self) -> Option<u64> {
        self.degrade_after.map(|seconds| u64::from(seconds) * 1000)
    }
}

/// Show or change what a volume's owner promises, and what happens when it is lost
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio volume policy disk\n  helio volume policy disk --durability geo:1 --unmet degrade --degrade-after 30\n  helio volume policy disk --takeover auto --after 60\n  helio volume policy disk --takeover manual\n\nWhat is not given stays as it is; changes are in force at once, also for flushes that wait.\n\nA takeover loses what no replica has. Do not let volumes be taken over by themselves whose nodes may be suspended as virtual machines: their clocks stop."
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
    #[command(flatten)]
    durability: DurabilityArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Hold-off that is taken when none is given: longer than a node's restart.
const AFTER_DEFAULT: u32 = 60;

pub(super) fn run(arguments: &Policy, common: &Common) -> anyhow::Result<()> {
    let path = format!("/v1/volumes/{}/policy", arguments.volume);
    let takeover_after_ms = match (arguments.takeover, arguments.after) {
        (None, _) => None,
        (Some(Takeover::Manual), None) => Some(None),
        (Some(Takeover::Manual), Some(_)) => {
            anyhow::bail!("--after says when to take over by itself: it goes with --takeover auto")
        }
        (Some(Takeover::Auto), after) => Some(Some(u64::from(after.unwrap_or(AFTER_DEFAULT)) * 1000)),
    };
    let durability = &arguments.durability;
    let change = ChangePolicy {
        takeover_after_ms,
        durability: durability.class(),
        unmet: durability.unmet(),
        degrade_after_ms: durability.degrade_after_ms(),
        ..ChangePolicy::default()
    };
    let client = Client::find(common)?;
    let policy: VolumePolicy = match change == ChangePolicy::default() {
        true => client.get(&path)?,
        false => client.post(&path, &ChangePolicy { accept_unmet: durability.accept_unmet, ..change })?,
    };
    if arguments.json {
        return print_json(&policy);
    }
    print_policy(arguments.volume.as_str(), &policy);
    Ok(())
}

fn print_policy(volume: &str, policy: &VolumePolicy) {
    match policy.takeover_after_ms {
        None => println!("when its owner is lost, volume {volume} waits for `helio volume takeover {volume}`"),
        Some(ms) => println!(
            "when its owner is lost, volume {volume} is taken over {} s after the owner's lease is out",
            ms / 1000
        ),
    }
    let Ok(class) = policy.durability.parse::<Class>() else { return };
    let unmet = match policy.degrade_after_ms {
        None => "while that cannot be met, they wait".to_owned(),
        Some(ms) => format!("while that cannot be met, they wait for {} s and are answered without it then", ms / 1000),
    };
    match class {
        Class::Local => println!("its flushes wait for the owner's disk (class local)"),
        Class::Site(others) => {
            println!("its flushes wait for {others} other nodes at the owner's provider (class {class}); {unmet}");
        }
        Class::Geo(others) => println!("its flushes wait for {others} other providers (class {class}); {unmet}"),
    }
}

/// Says how a volume stands to its class, if that is another than `local`.
pub(super) fn print_durability(status: &VolumeStatus) {
    let durability = &status.durability;
    let Some(durable) = &durability.durable else { return };
    println!("durability {} ({} while unmet): {}", durability.class, durability.unmet, durability.state);
    println!("durable in that class up to {durable}");
    for sentence in sentences(status) {
        println!("{sentence}");
    }
}

/// What is not as it should be with a volume's class, and what comes next.
pub(super) fn sentences(status: &VolumeStatus) -> Vec<String> {
    let durability = &status.durability;
    let (Some(cause), next) = (&durability.cause, durability.next.as_deref().unwrap_or("it is met when that is over"))
    else {
        return Vec::new();
    };
    let class = &durability.class;
    let what = match durability.degraded_since_ms {
        Some(since) => format!(
            "flushes are answered without class {class} for {} s, so that the loss of node {} may cost {} that were flushed",
            ago(since).as_secs(),
            status.owner,
            size::human(durability.at_risk_bytes)
        ),
        None if durability.waiting > 0 => format!(
            "{} requests wait for class {class}, the first of them for {:.0} s",
            durability.waiting, durability.waiting_seconds
        ),
        None => format!("class {class} cannot be met"),
    };
    vec![format!("{what}, because {cause}; {next}")]
}

fn ago(since_ms: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(since_ms))
}
