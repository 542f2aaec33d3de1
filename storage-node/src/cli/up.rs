//! `helio up`: a whole cluster in one process, one node per provider, with a WAN between them if asked for.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use client_lib::clock::{Clock, SystemClock};
use client_lib::pki::{ClusterAuthority, ClusterId, NODE_LIFETIME, NodeIdentity, Validity};
use client_lib::{NodeId, NodeName, ProviderId};
use futures_util::future::join_all;
use nbd_frontend::TlsOptions;
use nbd_frontend::service::keys::KeyArguments;
use nbd_frontend::service::limits::raise_open_files;
use tokio_util::task::AbortOnDropHandle;

use super::Common;
use super::serving::{Served, announce, until_stopped};
use crate::config::{NbdTlsSettings, StoreSettings, TlsUse};
use crate::data_dir::DataDir;
use crate::membership::Membership;
use crate::node::admission::AuthorityPlace;
use crate::node::{BootstrapMember, Node, NodeOptions, WanBytes};
use crate::wan::file::WanFile;
use crate::wan::relay::Direction;
use crate::wan::{LinkSettings, WanLink};

/// How often it is looked whether the file of `--wan` says something else.
const WAN_LOOK: Duration = Duration::from_millis(500);

/// Run a whole cluster in this process.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio up --providers a,b,c --rtt 60 --rate 200\n  helio up --wan wan.toml\n\nThe data stays in the data directory: the same command brings everything back."
)]
pub(super) struct Up {
    /// The providers; each gets one node of the same name
    #[arg(long, value_delimiter = ',', default_value = "a,b,c")]
    providers: Vec<String>,
    /// Round trip between providers in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    rtt: u64,
    /// Rate between providers in Mbit/s; 0 is unlimited
    #[arg(long, value_name = "MBIT", default_value_t = 0)]
    rate: u64,
    /// How each link behaves, and when it is cut: a file, read again when it changes (docs/wan.md)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rtt", "rate"])]
    wan: Option<PathBuf>,
    /// First NBD port, one per provider; 0 takes free ones
    #[arg(long, value_name = "N", default_value_t = 10809)]
    nbd_port: u16,
    #[command(flatten)]
    nbd_tls: NbdTls,
    #[command(flatten)]
    keys: KeyArguments,
    /// First port of the admin API, one per provider; 0 takes free ones
    #[arg(long, value_name = "N", default_value_t = 10880)]
    http_port: u16,
    /// First port for metrics and health alone, one per provider; 0 takes free ones [default: only on the admin API]
    #[arg(long, value_name = "N")]
    metrics_port: Option<u16>,
    /// Delete what the data directory holds and begin anew
    #[arg(long)]
    fresh: bool,
}

/// TLS for NBD (docs/nbd-tls.md).
#[derive(Debug, Default, Args)]
struct NbdTls {
    /// Certificate for NBD over TLS, in PEM, with those between it and its authority
    #[arg(long = "nbd-tls-certificate", value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Key of the certificate, in PEM
    #[arg(long = "nbd-tls-key", value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Authorities of clients, in PEM: a client must have a certificate that one of them has signed
    #[arg(long = "nbd-tls-client-authority", value_name = "FILE", requires = "certificate")]
    client_authority: Option<PathBuf>,
    /// Who must use TLS over TCP: required, optional or off
    #[arg(long = "nbd-tls", value_name = "USE", requires = "certificate", value_parser = TlsUse::parse, default_value = "required")]
    mode: TlsUse,
}

impl NbdTls {
    fn options(self) -> Option<TlsOptions> {
        let NbdTls { certificate, key, client_authority, mode } = self;
        NbdTlsSettings { mode, certificate: certificate?, key: key?, client_authority }.options()
    }
}

pub(super) fn run(up: Up, common: &Common) -> anyhow::Result<()> {
    let names = up.providers.iter().map(|name| name.parse()).collect::<Result<Vec<NodeName>, _>>()?;
    if names.iter().collect::<std::collections::BTreeSet<_>>().len() != names.len() {
        bail!("--providers names one provider twice: {}", up.providers.join(","));
    }
    check_ports(up.nbd_port, names.len(), "--nbd-port")?;
    check_ports(up.http_port, names.len(), "--http-port")?;
    check_ports(up.metrics_port.unwrap_or(0), names.len(), "--metrics-port")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(up, names, common.data()))
}

/// Says that a port is taken before anything is started.
fn check_ports(first: u16, count: usize, option: &str) -> anyhow::Result<()> {
    if first == 0 {
        return Ok(());
    }
    for number in 0..count as u16 {
        let Some(port) = first.checked_add(number) else { bail!("{option} {first} leaves no room for {count} ports") };
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("port {port} cannot be used; stop what uses it or choose others with {option}"))?;
    }
    Ok(())
}

async fn serve(mut up: Up, names: Vec<NodeName>, data: PathBuf) -> anyhow::Result<()> {
    raise_open_files();
    let held = own_directory(&data, up.fresh)?;
    let identities = identities(&data, &names)?;
    let nbd_tls = std::mem::take(&mut up.nbd_tls).options();
    let keys = up.keys.source();

    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sockets: Vec<UdpSocket> = names.iter().map(|_| UdpSocket::bind(loopback)).collect::<Result<_, _>>()?;
    let addresses: Vec<SocketAddr> = sockets.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>()?;
    let links = Arc::new(match behaviour(&up, &names)? {
        Some(file) => {
            let links = links(&addresses)?;
            set(&links, &names, &file);
            links
        }
        None => WanLinks::new(),
    });
    let follow = |path| AbortOnDropHandle::new(tokio::spawn(follow(path, names.clone(), links.clone())));
    let following = up.wan.take().map(follow);
    let bootstrap: Vec<BootstrapMember> = members(&names, &addresses)?;

    let starts = sockets.into_iter().enumerate().map(|(index, socket)| {
        let others = (0..names.len()).filter(|other| *other != index);
        let peer_overrides: BTreeMap<NodeName, SocketAddr> = others
            .map(|other| (names[other].clone(), stands_for(&links, index, other).unwrap_or(addresses[other])))
            .collect();
        let counted = links.clone();
        let directory = data.join(names[index].as_str());
        Node::start(NodeOptions {
            name: names[index].clone(),
            provider: bootstrap[index].provider.clone(),
            socket,
            advertise: addresses[index],
            nbd_tcp: Some(port(up.nbd_port, index)),
            nbd_unix: Some(directory.join("nbd.sock")),
            nbd_passed: Arc::default(),
            nbd_tls: nbd_tls.clone(),
            http: Some(port(up.http_port, index)),
            remote: None,
            metrics: up.metrics_port.map(|first| port(first, index)),
            peer_overrides,
            bootstrap: Some(bootstrap.clone()),
            contacts: Vec::new(),
            // All are of this process: each signs its own.
            authority: Some(AuthorityPlace { directory: DataDir::authority(&data), node_lifetime: NODE_LIFETIME }),
            keys: keys.clone(),
            store: StoreSettings::default(),
            export: None,
            wan_bytes: Some(WanBytes(Arc::new(move || counted.values().map(crossed).sum()))),
            data: directory,
        })
    });
    // All at once: a node is started only when a majority is up.
    let mut nodes = Vec::new();
    let mut failure = None;
    for (name, started) in names.iter().zip(join_all(starts).await) {
        match started {
            Ok(node) => nodes.push(node),
            Err(error) => failure = failure.or(Some(error.context(format!("node {name} cannot be started")))),
        }
    }
    if let Some(error) = failure {
        join_all(nodes.into_iter().map(Node::stop)).await;
        return Err(error);
    }
    drop(identities);
    // In `up`, a node has the name of its provider.
    let served =
        names.iter().zip(&nodes).map(|(name, node)| Served { name: name.as_str(), provider: name.as_str(), node });
    announce(&data, &served.collect::<Vec<_>>())?;

    until_stopped(&data).await?;
    join_all(nodes.into_iter().map(Node::stop)).await;
    // The links end with the last use of them.
    drop(following);
    drop(links);
    drop(held);
    Ok(())
}

/// Locks the data directory of a whole cluster, emptied before if it is to be `fresh`.
///
/// # Errors
/// As [`DataDir::open`]; when it is that of a node of separate processes, in which nothing is touched then.
fn own_directory(data: &Path, fresh: bool) -> anyhow::Result<DataDir> {
    // Before anything is deleted: a node's identity, the authority of its cluster and its volumes may be there.
    if Membership::load(data)?.is_some() {
        bail!("{} is the data directory of a single node; start it with `helio node`", data.display());
    }
    if fresh {
        DataDir::wipe(data)?;
    }
    Ok(DataDir::open(data)?)
}

fn port(first: u16, index: usize) -> SocketAddr {
    let port = if first == 0 { 0 } else { first + index as u16 };
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn crossed(link: &WanLink) -> u64 {
    [Direction::ToTarget, Direction::FromTarget].map(|direction| link.counters(direction).bytes).iter().sum()
}

/// The cluster's certificates: made the first time, checked against the providers later.
fn identities(data: &Path, names: &[NodeName]) -> anyhow::Result<Vec<NodeIdentity>> {
    let authority_directory = DataDir::authority(data);
    let authority = if authority_directory.exists() {
        ClusterAuthority::load(&authority_directory)?
    } else {
        let authority = ClusterAuthority::create(ClusterId::random()?)?;
        std::fs::create_dir(&authority_directory)?;
        authority.save(&authority_directory)?;
        authority
    };
    let listed = data.join("providers");
    let wanted = names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(",");
    match std::fs::read_to_string(&listed) {
        Ok(found) if found.trim() == wanted => {}
        Ok(found) => bail!(
            "{} holds a cluster of providers {}, not {wanted}; name those, another directory, or --fresh to begin anew",
            data.display(),
            found.trim()
        ),
        Err(_) => std::fs::write(&listed, format!("{wanted}\n"))?,
    }
    names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let directory = data.join(name.as_str()).join("identity");
            if directory.exists() {
                return Ok(NodeIdentity::load(&directory)?);
            }
            // Through the data directory, so that it is marked as ours before anything else is in it.
            drop(DataDir::open(&data.join(name.as_str()))?);
            std::fs::create_dir(&directory)?;
            let validity = Validity::starting(SystemClock::new().unix_ms(), NODE_LIFETIME);
            let identity = authority.issue(node_id(index), validity)?;
            identity.save(&directory)?;
            Ok(identity)
        })
        .collect()
}

fn node_id(index: usize) -> NodeId {
    NodeId(index as u64 + 1)
}

fn members(names: &[NodeName], addresses: &[SocketAddr]) -> anyhow::Result<Vec<BootstrapMember>> {
    let member = |(index, name): (usize, &NodeName)| {
        let provider: ProviderId = name.as_str().parse()?;
        Ok(BootstrapMember { id: node_id(index), name: name.clone(), provider, address: addresses[index] })
    };
    names.iter().enumerate().map(member).collect()
}

/// The links, if there are any, by the two providers that they are between, the first of `--providers` first.
type WanLinks = BTreeMap<(usize, usize), WanLink>;

/// How the links behave, as `--wan`, or else `--rtt` and `--rate`, say; `None` when the providers are next to each other.
fn behaviour(up: &Up, names: &[NodeName]) -> anyhow::Result<Option<WanFile>> {
    if let Some(path) = &up.wan {
        let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        return match parse(&text, names) {
            Ok(file) => Ok(Some(file)),
            Err(error) => bail!("{}: {error}", path.display()),
        };
    }
    let is_far = up.rtt > 0 || up.rate > 0;
    Ok(is_far.then(|| WanFile::alike(up.rtt as f64, up.rate as f64)))
}

fn parse(text: &str, names: &[NodeName]) -> Result<WanFile, String> {
    WanFile::parse(text, &names.iter().map(NodeName::as_str).collect::<Vec<_>>())
}

/// A link for each two providers.
fn links(addresses: &[SocketAddr]) -> anyhow::Result<WanLinks> {
    let mut links = BTreeMap::new();
    for first in 0..addresses.len() {
        for second in first + 1..addresses.len() {
            let link = WanLink::between([addresses[first], addresses[second]], LinkSettings::default());
            links.insert((first, second), link.context("the WAN emulator cannot be started")?);
        }
    }
    Ok(links)
}

/// Has the links behave as `file` says.
fn set(links: &WanLinks, names: &[NodeName], file: &WanFile) {
    for ((first, second), link) in links {
        let (first, second) = (names[*first].as_str(), names[*second].as_str());
        link.settings().update_direction(Direction::ToTarget, |way| *way = file.direction(first, second));
        link.settings().update_direction(Direction::FromTarget, |way| *way = file.direction(second, first));
    }
}

/// Where `from` sends what is for `to`; `None` when that is to its own address.
fn stands_for(links: &WanLinks, from: usize, to: usize) -> Option<SocketAddr> {
    match from < to {
        true => links.get(&(from, to)).map(WanLink::address),
        false => links.get(&(to, from)).map(WanLink::address_back),
    }
}

/// Has the links behave as the file says, from the first look on and whenever it changes.
async fn follow(path: PathBuf, names: Vec<NodeName>, links: Arc<WanLinks>) {
    let mut changes = Changes::default();
    loop {
        tokio::time::sleep(WAN_LOOK).await;
        // It cannot be read while it is just being replaced, perhaps.
        let Ok(text) = tokio::fs::read_to_string(&path).await else { continue };
        let Some(text) = changes.of(text) else { continue };
        match parse(text, &names) {
            Ok(file) => {
                set(&links, &names, &file);
                tracing::info!(file = %path.display(), "the links behave as it says");
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), error, "it cannot be understood: the links stay as they are");
            }
        }
    }
}

/// Tells what a file says newly from what it says while it is being written: two looks have found the same.
#[derive(Default)]
struct Changes {
    last: Option<String>,
    is_told: bool,
}

impl Changes {
    /// What is to be followed from now on, of what this look has found.
    fn of(&mut self, found: String) -> Option<&str> {
        match self.last.as_ref() == Some(&found) {
            true if self.is_told => None,
            true => {
                self.is_told = true;
                self.last.as_deref()
            }
            false => {
                (self.last, self.is_told) = (Some(found), false);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that an editor had truncated, and not yet written, was followed: it says nothing, and a partition was over until the next look.
    #[test]
    fn a_file_that_is_being_written_is_not_followed() {
        let mut changes = Changes::default();
        let mut told = |found: &str| changes.of(found.to_owned()).map(str::to_owned);
        assert_eq!([told("rtt_ms = 20"), told("rtt_ms = 20")], [None, Some("rtt_ms = 20".to_owned())]);
        assert_eq!([told("rtt_ms = 20"), told(""), told("rtt_ms = 8")], [None, None, None]);
        assert_eq!([told("rtt_ms = 80"), told("rtt_ms = 80")], [None, Some("rtt_ms = 80".to_owned())]);
        assert_eq!([told(""), told("rtt_ms = 80")], [None, None]);
        assert_eq!([told("rtt_ms = 80"), told("rtt_ms = 80")], [Some("rtt_ms = 80".to_owned()), None]);
    }

    /// `helio up --fresh` at the directory of a stopped node deleted it, with the cluster's authority and its volumes: it was looked at after that.
    #[test]
    fn the_directory_of_a_single_node_is_left_as_it_is() {
        let root = tempfile::tempdir().expect("a directory");
        let data = root.path().join("data");
        drop(own_directory(&data, false).expect("is made"));
        drop(own_directory(&data, true).expect("is made anew"));
        let member = Membership::of_founder("a");
        member.save(&data).expect("is written");
        let authority = DataDir::authority(&data);
        DataDir::private(&authority).expect("is made");
        for fresh in [false, true] {
            let error = own_directory(&data, fresh).expect_err("is a node's").to_string();
            assert!(error.contains("is the data directory of a single node"), "{error}");
            assert!(authority.exists() && Membership::load(&data).expect("reads") == Some(member.clone()), "{fresh}");
        }
    }
}
