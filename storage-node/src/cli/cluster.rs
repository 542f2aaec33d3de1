//! `helio cluster`: begin a cluster, let nodes join it, look at it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Subcommand;
use client_lib::pki::{ClusterAuthority, ClusterId, JoinKey, JoinSecret, JoinToken, NodePlace};
use client_lib::transport::TransportError;
use client_lib::transport::quic::join_call;
use client_lib::wire::admin::{ClusterStatus, MemberStatus};
use client_lib::wire::frame::{Frame, ServiceId, decode_head, encode_head};
use client_lib::wire::join::{JoinGrant, JoinReply, JoinRequest};
use client_lib::{ClientName, GroupId, NodeId};

use super::Common;
use super::client::{Client, print_json, print_table};
use crate::config::NodeConfig;
use crate::data_dir::DataDir;
use crate::membership::Membership;
use crate::size::human;

/// How long a cluster may take to let a node join: it may be electing a leader.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);

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
    /// Make this node a member of a cluster that runs
    #[command(after_help = "Example:\n  helio cluster join --config b.toml TOKEN\n  helio node --config b.toml")]
    Join {
        /// Settings of this node, in TOML
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The token that `helio cluster init` printed; `-` reads it from standard input
        #[arg(env = "HELIO_TOKEN", hide_env_values = true)]
        token: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the token by which nodes join, at the node that began the cluster
    #[command(
        after_help = "Example:\n  helio cluster token --config a.toml\n  helio cluster token --config a.toml --renew   # earlier tokens count no more"
    )]
    Token {
        /// Settings of this node, in TOML
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Make a new token; the former one counts no more
        #[arg(long)]
        renew: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a client in: write the credentials by which programs and helio-nbd use the cluster's volumes from other machines
    #[command(
        after_help = "Example, with the data directory of the node that began the cluster, while it runs:\n  helio cluster client host-7 --out host-7.helio --data /var/lib/heliotrope\n  helio-nbd --cluster host-7.helio --socket /run/disk.sock --export disk   # at host-7\n\nWhoever has the file may use every volume, and do nothing else. It cannot be taken back yet."
    )]
    Client {
        /// What the client is called in logs
        name: ClientName,
        /// The file to write; it is readable by its owner only
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Overwrite the file
        #[arg(long)]
        force: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the members, the leader and the distances
    #[command(after_help = "Example:\n  helio cluster status --json")]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(verb: Verb, common: &Common) -> anyhow::Result<()> {
    match verb {
        Verb::Init { config, json } => init(&config, json),
        Verb::Join { config, token, json } => join(&config, &token, json),
        Verb::Token { config, renew, json } => token(&config, renew, json),
        Verb::Client { name, out, force, json } => client(common, &name, &out, force, json),
        Verb::Status { json } => status(common, json),
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
    let secret = JoinSecret::renew(&directory)?;
    let identity = DataDir::identity(&config.data);
    DataDir::private(&identity)?;
    authority.issue(NodeId(1))?.save(&identity)?;
    // Last: this is what makes the directory a member's.
    member(&config, true, Vec::new()).save(&config.data)?;

    let token = JoinToken { secret, fingerprint: authority.fingerprint(), address: config.advertised() };
    if json {
        let cluster = authority.cluster().to_string();
        return print_json(&serde_json::json!({ "cluster": cluster, "node": config.name, "token": token.to_string() }));
    }
    println!("cluster {} begins with node {} of provider {}", authority.cluster(), config.name, config.provider);
    println!("start it:        helio node --config {}", file.display());
    println!("then, elsewhere: helio cluster join --config FILE {token}");
    println!("Whoever has the token can join; `helio cluster token --renew` makes a new one.");
    Ok(())
}

fn join(file: &Path, token: &str, json: bool) -> anyhow::Result<()> {
    let config = NodeConfig::read(file)?;
    let token: JoinToken = if token == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text.parse()?
    } else {
        token.parse()?
    };
    let _held = new_member(&config)?;
    let identity = DataDir::identity(&config.data);
    DataDir::private(&identity)?;
    let key = JoinKey::load_or_create(&identity)?;
    let request = JoinRequest {
        secret: token.secret.reveal().to_owned(),
        name: config.name.clone(),
        provider: config.provider.clone(),
        address: config.advertised(),
        request_pem: key.request_pem()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let grant = runtime.block_on(ask_to_join(&token, &request))?;
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

async fn ask_to_join(token: &JoinToken, request: &JoinRequest) -> anyhow::Result<JoinGrant> {
    let head = encode_head(request)?;
    let frame = Frame { service: ServiceId::Join, group: GroupId::META, head, payload: Bytes::new() }.encode()?;
    let asked = join_call(token.address, &token.fingerprint, frame, JOIN_PATIENCE).await;
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

fn token(file: &Path, renew: bool, json: bool) -> anyhow::Result<()> {
    let config = NodeConfig::read(file)?;
    let directory = DataDir::authority(&config.data);
    if !directory.exists() {
        bail!(
            "{} does not hold the cluster's authority; ask at the node that began the cluster",
            config.data.display()
        );
    }
    let secret = if renew { JoinSecret::renew(&directory)? } else { JoinSecret::load(&directory)? };
    let fingerprint = ClusterAuthority::load(&directory)?.fingerprint();
    let token = JoinToken { secret, fingerprint, address: config.advertised() }.to_string();
    if json {
        return print_json(&serde_json::json!({ "token": token }));
    }
    println!("{token}");
    Ok(())
}

fn client(common: &Common, name: &ClientName, out: &Path, force: bool, json: bool) -> anyhow::Result<()> {
    let data = common.data();
    let directory = DataDir::authority(&data);
    if !directory.exists() {
        bail!(
            "{} does not hold the cluster's authority; use --data DIR, with the data directory of the node that began the cluster",
            data.display()
        );
    }
    if out.exists() && !force {
        bail!("{} exists; choose another file, or --force to overwrite it", out.display());
    }
    // A client has to begin somewhere; it learns of later members by itself.
    let status: ClusterStatus = Client::find(common)?.get("/v1/cluster")?;
    let place = |member: &MemberStatus| -> anyhow::Result<NodePlace> {
        Ok(NodePlace { id: NodeId(member.id), name: member.name.parse()?, address: member.address.parse()? })
    };
    let nodes = status.members.iter().map(place).collect::<anyhow::Result<Vec<_>>>()?;
    let authority = ClusterAuthority::load(&directory)?;
    authority.issue_client(name, nodes.clone())?.save(out)?;
    if json {
        let nodes: Vec<String> = nodes.iter().map(|node| node.address.to_string()).collect();
        return print_json(
            &serde_json::json!({ "cluster": authority.cluster().to_string(), "client": name, "file": out, "nodes": nodes }),
        );
    }
    println!("client {name} of cluster {} may use its volumes with {}", authority.cluster(), out.display());
    println!("there: helio-nbd --cluster FILE --socket PATH");
    Ok(())
}

/// Locks the data directory, and refuses it when it is a member's already.
fn new_member(config: &NodeConfig) -> anyhow::Result<DataDir> {
    let held = DataDir::open(&config.data)?;
    if let Some(membership) = Membership::load(&config.data)? {
        bail!(
            "{} belongs to a cluster already, as node {} of provider {}; choose another data directory, or start it with `helio node`",
            config.data.display(),
            membership.name,
            membership.provider
        );
    }
    Ok(held)
}

fn member(config: &NodeConfig, founder: bool, contacts: Vec<client_lib::wire::join::Contact>) -> Membership {
    Membership { name: config.name.clone(), provider: config.provider.clone(), founder, entered: false, contacts }
}

fn status(common: &Common, json: bool) -> anyhow::Result<()> {
    let status: ClusterStatus = Client::find(common)?.get("/v1/cluster")?;
    if json {
        return print_json(&status);
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
    if status.wan_bytes > 0 {
        println!("{} crossed the emulated WAN", human(status.wan_bytes));
    }
    Ok(())
}
