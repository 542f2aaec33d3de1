//! `helio volume policy`: what a volume's owner promises, and what happens when it is lost.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use client_lib::policy::{Class, Order};
use client_lib::wire::admin::{ChangePolicy, ReplicaStatus, VolumePolicy, VolumeStatus};
use client_lib::{NodeName, VolumeName};

use super::client::{Client, print_json};
use super::{Common, counted};
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

/// What happens when the replicas are further behind than they may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RpoAction {
    /// `helio volume status`, `helio why` and the owner's log say so
    Alarm,
    /// Also, writes are slowed so that the lag comes back to the target; they never fail for it
    Throttle,
}

/// When replicas are sent data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Propagation {
    /// As fast as their links let them
    Eager,
    /// Only every --interval: what is written again before is sent once. What has changed is told at once all the same
    Lazy,
    /// With --replica: as the others
    Default,
    /// Not here: that a flush waits for other nodes is what --durability says
    #[value(hide = true)]
    Sync,
}

/// How far the best replica may be behind, in milliseconds, if that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target(Option<u64>);

fn target(text: &str) -> Result<Target, String> {
    let wrong = || format!("{text:?} is no time: use seconds, such as 5 or 0.5, or `none`");
    match text {
        "none" => Ok(Target(None)),
        text => match text.parse::<f64>() {
            Ok(seconds) if seconds > 0.0 && seconds < 1e9 => Ok(Target(Some((seconds * 1000.0) as u64))),
            _ => Err(wrong()),
        },
    }
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
    after_help = "Examples:\n  helio volume policy disk\n  helio volume policy disk --durability geo:1 --unmet degrade --degrade-after 30\n  helio volume policy disk --rpo-target 5 --rpo-action throttle\n  helio volume policy disk --propagation lazy --interval 60\n  helio volume policy disk --replica c --propagation lazy   # only c\n  helio volume policy disk --takeover auto --after 60\n  helio volume policy disk --takeover manual\n\nWhat is not given stays as it is; changes are in force at once, also for flushes that wait.\n\nA takeover loses what no replica has. Do not let volumes be taken over by themselves whose nodes may be suspended as virtual machines: their clocks stop."
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
    /// How far the best replica may be behind, in seconds, or `none`
    #[arg(long, value_name = "SECONDS", value_parser = target)]
    rpo_target: Option<Target>,
    /// What happens beyond that
    #[arg(long)]
    rpo_action: Option<RpoAction>,
    /// When replicas are sent data
    #[arg(long)]
    propagation: Option<Propagation>,
    /// With `lazy`: how long after the last time, in seconds [default: 30]
    #[arg(long, value_name = "SECONDS")]
    interval: Option<u64>,
    /// The one replica that --propagation and --interval are for [default: all without their own]
    #[arg(long, value_name = "NODE")]
    replica: Option<NodeName>,
    /// What lazy replicas are sent first, before their interval is over: `log` (what was written first), `least-volatile`,
    /// `write-count` (what was written first, without what is written often) or `benefit` (what is likely read before it is written
    /// again)
    #[arg(long, value_name = "ORDER")]
    send_order: Option<Order>,
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
        rpo_target_ms: arguments.rpo_target.map(|target| target.0),
        rpo_action: arguments.rpo_action.map(|action| match action {
            RpoAction::Alarm => "alarm".to_owned(),
            RpoAction::Throttle => "throttle".to_owned(),
        }),
        propagation: arguments.propagation.map(|propagation| match propagation {
            Propagation::Eager => "eager".to_owned(),
            Propagation::Lazy => "lazy".to_owned(),
            Propagation::Default => "default".to_owned(),
            Propagation::Sync => "sync".to_owned(),
        }),
        interval_ms: arguments.interval.map(|seconds| seconds.saturating_mul(1000)),
        replica: arguments.replica.as_ref().map(ToString::to_string),
        send_order: arguments.send_order.map(|order| order.to_string()),
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
    match (policy.rpo_target_ms, policy.rpo_action.as_deref()) {
        (Some(ms), Some("throttle")) => {
            println!("its writes are slowed when no replica is within {} s", ms as f64 / 1000.0);
        }
        (Some(ms), _) => println!("it is told when no replica is within {} s", ms as f64 / 1000.0),
        (None, _) => println!("its replicas may be behind as far as they are"),
    }
    println!("its replicas are sent data {}", mode_text(&policy.propagation, policy.interval_ms));
    for (replica, own) in &policy.replicas {
        println!("replica {replica} is sent data {}", mode_text(&own.propagation, own.interval_ms));
    }
    if policy.interval_ms.is_some() || policy.replicas.values().any(|own| own.interval_ms.is_some()) {
        println!(
            "before an interval is over, blocks that were left alone are sent ahead in the order {}",
            policy.send_order
        );
    }
    let Ok(class) = policy.durability.parse::<Class>() else { return };
    let unmet = match policy.degrade_after_ms {
        None => "while that cannot be met, they wait".to_owned(),
        Some(ms) => format!("while that cannot be met, they wait for {} s and are answered without it then", ms / 1000),
    };
    match class {
        Class::Local => println!("its flushes wait for the owner's disk (class local)"),
        Class::Site(others) => {
            let others = counted(usize::from(others), "other node", "other nodes");
            println!("its flushes wait for {others} at the owner's provider (class {class}); {unmet}");
        }
        Class::Geo(others) => {
            let others = counted(usize::from(others), "other provider", "other providers");
            println!("its flushes wait for {others} (class {class}); {unmet}");
        }
    }
}

fn mode_text(propagation: &str, interval_ms: Option<u64>) -> String {
    match interval_ms {
        Some(ms) => format!("every {} s ({propagation})", ms as f64 / 1000.0),
        None => format!("as fast as their links let them ({propagation})"),
    }
}

/// As of how long ago a replica shows the volume.
pub(super) fn as_of(replica: &ReplicaStatus) -> String {
    match replica.consistent_ms {
        _ if replica.seconds_behind == 0.0 => "now".to_owned(),
        Some(moment) => format!("{:.1} s ago", ago(moment).as_secs_f64()),
        None => "before".to_owned(),
    }
}

/// Says how a volume stands to its target, if it has one, and to its class, if that is another than `local`.
pub(super) fn print_durability(status: &VolumeStatus) {
    match rpo_sentence(status) {
        Some(sentence) => println!("{sentence}"),
        None => {
            if let (Some(ms), Some(seconds)) = (status.rpo.target_ms, status.rpo.seconds) {
                println!("the best replica is {seconds:.1} s behind, of {} s that it may be", ms as f64 / 1000.0);
            }
        }
    }
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

/// What is not as it should be with how far the replicas are behind.
pub(super) fn rpo_sentence(status: &VolumeStatus) -> Option<String> {
    let rpo = &status.rpo;
    let (missed, target) = (rpo.missed_seconds?, rpo.target_ms? as f64 / 1000.0);
    let lag = match rpo.seconds {
        Some(seconds) => format!("the loss of node {} would cost the last {seconds:.1} s", status.owner),
        None => format!("the loss of node {} would cost everything, since there is no replica", status.owner),
    };
    let next = match rpo.limit_bytes_per_second {
        Some(limit) => format!("writes are slowed to {}/s until it is met", size::human(limit)),
        None => "the replicas catch up as fast as their links let them".to_owned(),
    };
    Some(format!("{lag}: the target of {target} s has been missed for {missed:.0} s; {next}"))
}

fn ago(since_ms: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(since_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_seconds_or_none() {
        assert_eq!(target("5"), Ok(Target(Some(5_000))));
        assert_eq!(target("0.5"), Ok(Target(Some(500))));
        assert_eq!(target("none"), Ok(Target(None)));
        for text in ["", "0", "-1", "nan", "inf", "5s", "never"] {
            assert!(target(text).expect_err(text).contains("`none`"), "{text}");
        }
    }
}
