//! `helio cluster`: begin a cluster, let nodes join it, look at it.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use clap::Subcommand;
use client_lib::clock::{Clock, SystemClock};
use client_lib::pki::{ClusterAuthority, ClusterId, JoinKey, JoinSecret, JoinToken, Validity};
use client_lib::transport::TransportError;
use client_lib::transport::quic::join_call;
use client_lib::wire::admin::ClusterStatus;
use client_lib::wire::frame::{Frame, ServiceId, decode_head, encode_head};
use client_lib::wire::join::{JoinGrant, JoinReply, JoinRequest};
use client_lib::{GroupId, NodeId};

use super::Common;
use super::client::{Client, print_json, print_table};
use super::{audit, credentials, members};
use crate::config::NodeConfig;
use crate::data_dir::DataDir;
use crate::membership::Membership;
use crate::size::human;

const HOUR_MS: u64 = 3_600_000;

/// How long a cluster may take to let a node join: it may be electing a leader.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// Pause before a cluster is asked again that does not answer yet.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Begin a cluster with this node, and print the token by which others join
    #[command(after_help = "Example:\n  helio cluster init --config a.toml\n  helio node --config a.toml")]
    Init {
        /// Settings of this node, in TOML
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make this node a member of a cluster that runs, or give a member another certificate whose own has ended
    #[command(
        after_help = "Example:\n  helio cluster join --config b.toml -   # asks for the token, or reads it from a pipe\n  helio node --config b.toml"
    )]
    Join {
        /// Settings of this node, in TOML
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The token that `helio cluster init` printed; `-` asks for it, or reads a line of standard input, so that no other user
        /// sees it among the processes
        #[arg(env = "HELIO_TOKEN", hide_env_values = true)]
        token: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the token by which nodes join, at the node that began the cluster
    #[command(
        after_help = "Example:\n  helio cluster token --config a.toml\n  helio cluster token --config a.toml --renew            # earlier tokens count no more\n  helio cluster token --config a.toml --renew --hours 2  # that counts for two hours\n  helio cluster token --config a.toml --withdraw         # none counts any more"
    )]
    Token {
        /// Settings of this node, in TOML
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Make a new token; the former one counts no more
        #[arg(long)]
        renew: bool,
        /// With --renew: it counts for so many hours [default: until it is renewed or withdrawn]
        #[arg(long, requires = "renew", value_parser = clap::value_parser!(u32).range(1..))]
        hours: Option<u32>,
        /// Let no token count, until the next --renew
        #[arg(long, conflicts_with = "renew")]
        withdraw: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Client(credentials::ClientArguments),
    Audit(audit::Audit),
    /// Show the members, the leader and the distances
    #[command(
        after_help = "Examples:\n  helio cluster status --json\n  helio cluster status --wait 60    # after a start"
    )]
    Status {
        /// Wait up to so many seconds for a node that serves, and for a leader; fail when there is none then
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u32>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(verb: Verb, common: &Common) -> anyhow::Result<()> {
    match verb {
        Verb::Init { config, json } => init(&config, json),
        Verb::Join { config, token, json } => join(&config, &token, json),
        Verb::Token { config, renew, hours, withdraw, json } => match withdraw {
            true => withdraw_token(&config, json),
            false => token(&config, renew, hours, json),
        },
        Verb::Client(arguments) => credentials::run(arguments, common),
        Verb::Audit(audit) => audit::run(&audit, common),
        Verb::Status { wait, json } => status(common, wait, json),
    }
}

fn init(file: &Path, json: bool) -> anyhow::Result<()> {
    let config = NodeConfig::read(file)?;
    let _held = new_member(&config)?;
    let directory = DataDir::authority(&config.data);
    // What an earlier attempt made is used: nothing has been promised by it yet.
    let authority = if directory.join("ca.crt").exists() {
        ClusterAuthority::load(&directory)?
    } else {
        DataDir::private(&directory)?;
        let authority = ClusterAuthority::create(ClusterId::random()?)?;
        authority.save(&directory)?;
        authority
    };
    let secret = JoinSecret::renew(&directory, None)?;
    let identity = DataDir::identity(&config.data);
    DataDir::private(&identity)?;
    authority.issue(NodeId(1), starting(config.certificates.node_lifetime))?.save(&identity)?;
    // Last: this is what makes the directory a member's.
    member(&config, true, Vec::new()).save(&config.data)?;

    let token = JoinToken { secret, fingerprint: authority.fingerprint(), address: config.advertised() };
    if json {
        let cluster = authority.cluster().to_string();
        return print_json(&serde_json::json!({ "cluster": cluster, "node": config.name, "token": token.to_string() }));
    }
    println!("cluster {} begins with node {} of provider {}", authority.cluster(), config.name, config.provider);
    println!("start it:        helio node --config {}", file.display());
    println!("then, elsewhere: helio cluster join --config FILE -    # and this token, when it is asked for:\n{token}");
    println!("Whoever has the token can join; `helio cluster token --renew` makes a new one.");
    Ok(())
}

fn join(file: &Path, token: &str, json: bool) -> anyhow::Result<()> {
    let config = NodeConfig::read(file)?;
    let _held = DataDir::open(&config.data)?;
    if let Some(membership) = Membership::load(&config.data)? {
        return come_back(file, &config, &membership, token, json);
    }
    let token = read_token(token)?;
    let identity = DataDir::identity(&config.data);
    DataDir::private(&identity)?;
    let key = JoinKey::load_or_create(&identity)?;
    let grant = ask_to_join(&token, &request(&config, &token, &key)?, Bytes::new())?;
    let joined = key.complete(&grant.ca_pem, &grant.certificate_pem)?;
    joined.save(&identity)?;
    member(&config, false, grant.contacts).save(&config.data)?;

    let cluster = joined.cluster();
    if json {
        return print_json(
            &serde_json::json!({ "cluster": cluster.to_string(), "node": config.name, "id": grant.node }),
        );
    }
    println!("node {} of provider {} joined cluster {cluster}", config.name, config.provider);
    println!("start it: helio node --config {}", file.display());
    Ok(())
}

/// Gives a member whose certificate has ended, or does not count yet, another one. It proves to be that member by the old one and its key.
fn come_back(file: &Path, config: &NodeConfig, membership: &Membership, token: &str, json: bool) -> anyhow::Result<()> {
    let directory = DataDir::identity(&config.data);
    let now_ms = SystemClock::new().unix_ms();
    let uncounted = match membership.removed {
        true => None,
        false => Some(DataDir::open_identity(&config.data)?).filter(|identity| !identity.validity().counts(now_ms)),
    };
    let Some(identity) = uncounted else { return Err(belongs_already(config, membership)) };
    let token = read_token(token)?;
    ensure!(
        token.fingerprint == identity.ca_fingerprint(),
        "the token is of another cluster; {} is that of node {} of cluster {}",
        config.data.display(),
        membership.name,
        identity.cluster()
    );
    // With the key that it has, which proves that it is this node; once it runs it makes a new one.
    let key = JoinKey::of(&identity)?;
    let former = Bytes::copy_from_slice(&identity.certificate());
    let grant = ask_to_join(&token, &request(config, &token, &key)?, former)?;
    let joined = key.complete(&grant.ca_pem, &grant.certificate_pem)?;
    identity.renew(&joined, &directory, SystemClock::new().unix_ms())?;

    let (name, until) = (&membership.name, joined.validity());
    if json {
        let cluster = joined.cluster().to_string();
        return print_json(
            &serde_json::json!({ "cluster": cluster, "node": name, "id": grant.node, "until_ms": until.until_ms }),
        );
    }
    println!("node {name} has a certificate again, until {until}; it is the node that it was, with its data");
    println!("start it: helio node --config {}", file.display());
    Ok(())
}

fn request(config: &NodeConfig, token: &JoinToken, key: &JoinKey) -> anyhow::Result<JoinRequest> {
    Ok(JoinRequest {
        secret: token.secret.reveal().to_owned(),
        name: config.name.clone(),
        provider: config.provider.clone(),
        address: config.advertised(),
        request_pem: key.request_pem()?,
    })
}

/// Of a certificate that is made now.
fn starting(lifetime: Duration) -> Validity {
    Validity::starting(SystemClock::new().unix_ms(), lifetime)
}

fn read_token(token: &str) -> anyhow::Result<JoinToken> {
    Ok(if token == "-" { typed_token()?.parse()? } else { token.parse()? })
}

/// The first line of standard input; whoever types it is asked for it.
fn typed_token() -> anyhow::Result<String> {
    let input = std::io::stdin();
    if input.is_terminal() {
        eprint!("token: ");
    }
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// `former` is the certificate of a member whose certificate has ended; of others there is none.
fn ask_to_join(token: &JoinToken, request: &JoinRequest, former: Bytes) -> anyhow::Result<JoinGrant> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let head = encode_head(request)?;
    let frame = Frame { service: ServiceId::Join, group: GroupId::META, head, payload: former }.encode()?;
    let asked = runtime.block_on(join_call(token.address, &token.fingerprint, frame, JOIN_PATIENCE));
    let answer = asked.map_err(|error| match error {
        // Which node it is, the one who joins does not know: its number would mean nothing.
        TransportError::Unreachable { reason, .. } | TransportError::OutcomeUnknown { reason, .. } => anyhow!(
            "the cluster does not answer at {} ({reason}): does that node run, and is the token of its cluster?",
            token.address
        ),
        other => anyhow!(other),
    })?;
    let frame = Frame::decode(&answer).context("the answer cannot be read")?;
    if frame.service != ServiceId::Join {
        bail!("{} does not answer requests to join; is it still starting?", token.address);
    }
    let reply: JoinReply = decode_head(&frame.head).context("the answer cannot be read")?;
    Ok(reply?)
}

fn token(file: &Path, renew: bool, hours: Option<u32>, json: bool) -> anyhow::Result<()> {
    let config = NodeConfig::read(file)?;
    let directory = authority_of(&config)?;
    let now_ms = SystemClock::new().unix_ms();
    let secret = match renew {
        true => Some(JoinSecret::renew(&directory, hours.map(|hours| now_ms + u64::from(hours) * HOUR_MS))?),
        false => JoinSecret::load(&directory)?,
    };
    let next = "`helio cluster token --renew` makes one";
    let Some(secret) = secret else { bail!("the token was withdrawn, and none counts: {next}") };
    if !secret.counts_at(now_ms) {
        bail!("the token is too old, and none counts: {next}");
    }
    let until_ms = secret.until_ms();
    let fingerprint = ClusterAuthority::load_of(&directory, &DataDir::identity(&config.data))?.fingerprint();
    let token = JoinToken { secret, fingerprint, address: config.advertised() }.to_string();
    if json {
        return print_json(&serde_json::json!({ "token": token, "until_ms": until_ms }));
    }
    println!("{token}");
    if let Some(until_ms) = until_ms {
        eprintln!("it counts for {} more minutes", until_ms.saturating_sub(now_ms).div_ceil(60_000));
    }
    Ok(())
}

fn withdraw_token(file: &Path, json: bool) -> anyhow::Result<()> {
    JoinSecret::withdraw(&authority_of(&NodeConfig::read(file)?)?)?;
    if json {
        return print_json(&serde_json::json!({ "token": null }));
    }
    println!("no token counts any more; `helio cluster token --renew` makes one");
    Ok(())
}

/// The directory of the cluster's authority, where this node holds it.
fn authority_of(config: &NodeConfig) -> anyhow::Result<PathBuf> {
    let directory = DataDir::authority(&config.data);
    if !directory.exists() {
        bail!(
            "{} does not hold the cluster's authority; ask at the node that began the cluster",
            config.data.display()
        );
    }
    Ok(directory)
}

/// Locks the data directory, and refuses it when it is a member's already.
fn new_member(config: &NodeConfig) -> anyhow::Result<DataDir> {
    let held = DataDir::open(&config.data)?;
    match Membership::load(&config.data)? {
        Some(membership) => Err(belongs_already(config, &membership)),
        None => Ok(held),
    }
}

fn belongs_already(config: &NodeConfig, membership: &Membership) -> anyhow::Error {
    anyhow!(
        "{} belongs to a cluster already, as node {} of provider {}; choose another data directory, or start it with `helio node`",
        config.data.display(),
        membership.name,
        membership.provider
    )
}

fn member(config: &NodeConfig, founder: bool, contacts: Vec<client_lib::wire::join::Contact>) -> Membership {
    Membership {
        name: config.name.clone(),
        provider: config.provider.clone(),
        founder,
        entered: false,
        contacts,
        removed: false,
    }
}

/// The cluster, once a node serves and knows of a leader, which is waited for.
fn status_within(common: &Common, patience: Duration) -> anyhow::Result<ClusterStatus> {
    let begun = Instant::now();
    loop {
        let asked = Client::find(common).and_then(|client| client.get::<ClusterStatus>("/v1/cluster"));
        let is_led = asked.as_ref().is_ok_and(|status| status.members.iter().any(|member| member.leader));
        if is_led || begun.elapsed() >= patience {
            return asked;
        }
        std::thread::sleep(LOOK);
    }
}

fn status(common: &Common, wait: Option<u32>, json: bool) -> anyhow::Result<()> {
    let status = status_within(common, Duration::from_secs(wait.unwrap_or(0).into()))?;
    show(&status, json)?;
    let is_led = status.members.iter().any(|member| member.leader);
    if let Some(seconds) = wait.filter(|_| !is_led) {
        bail!("no node leads the metadata after {seconds} s");
    }
    Ok(())
}

fn show(status: &ClusterStatus, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(status);
    }
    let rows = status.members.iter().map(|member| {
        let role = match (member.leader, member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let rtt = member.rtt_ms.map_or_else(|| "-".into(), |rtt| format!("{rtt:.1} ms"));
        let reach = if member.reachable { "yes" } else { "no" };
        vec![member.name.clone(), member.provider.clone(), role.into(), rtt, reach.into(), member.address.clone()]
    });
    print_table(&["node", "provider", "role", "rtt", "reachable", "address"], rows.collect());
    println!("\nseen from node {}, term {}", status.node, status.term);
    if let Some(lost) = members::lost_majority(status) {
        println!("{lost}");
    }
    if status.wan_bytes > 0 {
        println!("{} crossed the emulated WAN", human(status.wan_bytes));
    }
    Ok(())
}
