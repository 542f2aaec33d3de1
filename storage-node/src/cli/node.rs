//! `helio node`: one node of a cluster of separate processes; and what a running node is asked.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use client_lib::pki::ClusterAuthority;
use nbd_frontend::PassedSockets;
use nbd_frontend::service::limits::raise_open_files;
use nbd_frontend::service::notify;

use super::Common;
use super::serving::{Served, announce, take_back, until_stopped};
use super::{disk, drain, members, place, remove, scrub, space};
use crate::config::{LIFETIME_ADVISED, NbdTlsSettings, NodeConfig};
use crate::data_dir::DataDir;
use crate::membership::Membership;
use crate::node::access::{Removed, ToldBy};
use crate::node::admission::AuthorityPlace;
use crate::node::{BootstrapMember, Node, NodeOptions};

/// Run one node, or ask one that runs.
#[derive(Debug, Args)]
#[command(
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    after_help = "Example:\n  helio cluster init --config a.toml      # once, at the first node; or at another one:\n  helio cluster join --config b.toml -    # asks for the token\n  helio node --config a.toml\n\ndocs/node.toml shows every setting."
)]
pub(super) struct NodeArguments {
    /// Its settings, in TOML
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    List(members::List),
    Space(space::Space),
    Drain(drain::Drain),
    Remove(remove::Remove),
    Label(place::SetLabels),
    Scrub(scrub::NodeScrub),
    #[command(subcommand)]
    Disk(disk::Verb),
}

impl NodeArguments {
    /// Whether a node is to be run.
    pub(super) fn runs_a_node(&self) -> bool {
        self.verb.is_none()
    }
}

pub(super) fn run(arguments: &NodeArguments, common: &Common) -> anyhow::Result<()> {
    match &arguments.verb {
        Some(Verb::Space(space)) => return space::run(space, common),
        Some(Verb::List(list)) => return members::run(list, common),
        Some(Verb::Drain(drain)) => return drain::run(drain, common),
        Some(Verb::Remove(remove)) => return remove::run(remove, common),
        Some(Verb::Label(labels)) => return place::label(labels, common),
        Some(Verb::Disk(verb)) => return disk::run(verb),
        Some(Verb::Scrub(scrub)) => return scrub::run_node(scrub, common),
        None => {}
    }
    let path = arguments.config.as_deref().context("--config FILE is missing")?;
    let config = NodeConfig::read(path)?;
    let file = path.display();
    let Some(membership) = Membership::load(&config.data)? else {
        bail!(
            "{} belongs to no cluster yet: run `helio cluster init --config {file}` to begin one, or `helio cluster join --config {file} -` with the token of another node",
            config.data.display()
        );
    };
    if membership.removed {
        return Err(Removed { name: membership.name.to_string(), told_by: ToldBy::Directory }.into());
    }
    check_identity(&config, &membership).with_context(|| format!("{file}"))?;
    // Before there are other threads.
    let passed = PassedSockets::take()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config, membership, passed))
}

/// Refuses settings of another node, and a node that lost its metadata.
fn check_identity(config: &NodeConfig, membership: &Membership) -> anyhow::Result<()> {
    let data = config.data.display();
    if config.name != membership.name || config.provider != membership.provider {
        bail!(
            "it names node {} of provider {}, but {data} is that of node {} of provider {}: both are fixed when a node joins",
            config.name,
            config.provider,
            membership.name,
            membership.provider
        );
    }
    if membership.entered && !config.data.join("meta").exists() {
        bail!(
            "{data} has lost its metadata (meta/): a node that forgets how it voted must not vote again; restore the directory, or join as a new node with an empty data directory and a new name"
        );
    }
    Ok(())
}

async fn serve(config: NodeConfig, mut membership: Membership, passed: PassedSockets) -> anyhow::Result<()> {
    raise_open_files();
    let socket = UdpSocket::bind(config.listen).with_context(|| {
        format!("UDP address {} cannot be used; stop what uses it or change `listen`", config.listen)
    })?;
    let first = !membership.entered;
    let bootstrap = (first && membership.founder).then(|| founder(&config)).transpose()?;
    let authority = authority(&config);
    // The one in the data directory is for who says nothing else.
    let nbd_unix = if passed.unix().is_some() { config.nbd.unix.clone() } else { Some(config.nbd_unix()) };
    let started = Node::start(NodeOptions {
        name: config.name.clone(),
        provider: config.provider.clone(),
        data: config.data.clone(),
        socket,
        advertise: config.advertised(),
        nbd_tcp: config.nbd.tcp,
        nbd_unix,
        nbd_passed: Arc::new(passed),
        nbd_tls: config.nbd.tls.as_ref().and_then(NbdTlsSettings::options),
        http: Some(config.admin.http),
        remote: config.admin.remote.then_some(config.listen),
        metrics: config.metrics.listen,
        peer_overrides: config.routes.iter().map(|(name, route)| (name.clone(), route.0)).collect(),
        bootstrap,
        contacts: if first { membership.contacts.clone() } else { Vec::new() },
        authority,
        keys: config.keys.source(),
        export: config.trace.options(),
        store: config.store.clone(),
        wan_bytes: None,
    })
    .await;
    let node = started.inspect_err(|error| note_removal(&config, &mut membership, error.downcast_ref()))?;
    if first {
        membership.entered = true;
        membership.save(&config.data)?;
    }
    let served = Served { name: config.name.as_str(), provider: config.provider.as_str(), node: &node };
    announce(&config.data, &[served])?;
    notify::ready(&format!("node {} serves", config.name));
    notify::watch(node.threads());
    let stopped = until_stopped(&config.data);
    let removed = tokio::select! {
        biased;
        stopped = stopped => { stopped?; None }
        removed = node.removal() => Some(removed),
    };
    notify::stopping();
    if let Some(removed) = removed {
        tracing::error!("{removed}");
        take_back(&config.data);
        note_removal(&config, &mut membership, Some(&removed));
        node.stop().await;
        return Err(removed.into());
    }
    node.stopping();
    node.hand_on().await;
    node.stop().await;
    Ok(())
}

/// Notes in the data directory that the node was removed, if so: whoever starts it again is told at once.
fn note_removal(config: &NodeConfig, membership: &mut Membership, removed: Option<&Removed>) {
    if removed.is_none() {
        return;
    }
    membership.removed = true;
    if let Err(error) = membership.save(&config.data) {
        tracing::warn!(%error, "the data directory does not say that the node was removed; other nodes will, when it is started again");
    }
}

/// The cluster's authority, if this node has it. What cannot be used, or is another one, is as good as none: other nodes may have the right one.
fn authority(config: &NodeConfig) -> Option<AuthorityPlace> {
    let directory = Some(DataDir::authority(&config.data)).filter(|directory| directory.exists())?;
    if let Err(error) = ClusterAuthority::load_of(&directory, &DataDir::identity(&config.data)) {
        tracing::error!(
            directory = %directory.display(), %error,
            "the cluster's authority here cannot be used: nobody can join or renew a certificate by it. Put the copy of it back that was kept \
             (docs/membership.md), and restart this node"
        );
        return None;
    }
    let node_lifetime = config.certificates.node_lifetime;
    if node_lifetime < LIFETIME_ADVISED {
        tracing::warn!(
            ?node_lifetime,
            "certificates of nodes last for a short time: a node that is off for longer takes a token to come back"
        );
    }
    Some(AuthorityPlace { directory, node_lifetime })
}

/// The first voter of a new cluster: this node.
fn founder(config: &NodeConfig) -> anyhow::Result<Vec<BootstrapMember>> {
    let identity = DataDir::load_identity(&config.data)?;
    Ok(vec![BootstrapMember {
        id: identity.node(),
        name: config.name.clone(),
        provider: config.provider.clone(),
        address: config.advertised(),
    }])
}
