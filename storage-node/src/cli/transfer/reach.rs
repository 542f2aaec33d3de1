//! The way from the command line to a volume: what the cluster knows of it, and which NBD server of a node leads to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{anyhow, bail};
use client_lib::VolumeName;
use client_lib::wire::admin::{ClusterStatus, VolumeStatus, VolumeSummary};
use nbd_frontend::client::{NbdUri, ServerAddress};

use super::super::Common;
use super::super::client::{Client, ClusterFile};

/// What the cluster says of the volume `name`, if there is one.
pub(in crate::cli) fn volume(client: &Client, name: &VolumeName) -> anyhow::Result<Option<VolumeStatus>> {
    let all: Vec<VolumeSummary> = client.get("/v1/volumes")?;
    if !all.iter().any(|volume| volume.name == name.as_str()) {
        return Ok(None);
    }
    client.get(&format!("/v1/volumes/{name}")).map(Some)
}

/// The NBD servers that can be reached from here, by node.
pub(in crate::cli) struct Servers(BTreeMap<String, ServerAddress>);

impl Servers {
    /// Whether a new volume at `node` could be written from here.
    ///
    /// # Errors
    /// With the nodes of which that is true.
    pub(in crate::cli) fn require(&self, node: &str) -> anyhow::Result<()> {
        if self.0.contains_key(node) {
            return Ok(());
        }
        let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
        bail!("node {node} cannot be reached over NBD from here (only {}): run this at that node", known.join(", "))
    }

    /// Those of the local cluster; with `--cluster` that of the node asked.
    pub(in crate::cli) fn find(common: &Common, client: &Client) -> anyhow::Result<Servers> {
        if client.is_remote() {
            bail!("what is in volumes goes over NBD, which is not reached with these credentials: run this at a node");
        }
        let mut servers = BTreeMap::new();
        if common.cluster.is_some() {
            let status: ClusterStatus = client.get("/v1/cluster")?;
            let unix = status.nbd.unix.map(PathBuf::from).filter(|path| path.exists());
            servers.extend(address(unix, status.nbd.tcp).map(|address| (status.node, address)));
        } else {
            for node in ClusterFile::read(&common.data())?.nodes {
                let unix = Some(PathBuf::from(node.nbd_unix)).filter(|path| path.exists());
                servers.extend(address(unix, Some(node.nbd_tcp)).map(|address| (node.name, address)));
            }
        }
        Ok(Servers(servers))
    }

    /// The volume at the node that owns it, the only one where it may be written.
    pub(in crate::cli) fn owner(&self, volume: &str, owner: &str) -> anyhow::Result<NbdUri> {
        let server = self.0.get(owner).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            let Some(here) = known.first() else {
                return anyhow!("no node that can be reached from here serves NBD: give it an address in its settings");
            };
            anyhow!(
                "volume {volume} is owned by node {owner}, which cannot be reached over NBD from here (only {}): run this at node {owner}, or move the volume first with `helio volume migrate {volume} --to {here}`",
                known.join(", ")
            )
        })?;
        Ok(NbdUri { server: server.clone(), export: volume.to_owned(), tls: None })
    }

    /// The export at `node`, the only one that has it.
    pub(in crate::cli) fn only(&self, export: &str, node: &str) -> anyhow::Result<NbdUri> {
        let Some(server) = self.0.get(node) else {
            bail!("{export} is at node {node} only, which cannot be reached over NBD from here: run this at that node");
        };
        Ok(NbdUri { server: server.clone(), export: export.to_owned(), tls: None })
    }

    /// The export at its volume's owner if that can be reached, else at another node, which reads through.
    pub(in crate::cli) fn any(&self, export: &str, owner: &str) -> anyhow::Result<NbdUri> {
        let Some(server) = self.0.get(owner).or_else(|| self.0.values().next()) else {
            bail!("no node that can be reached from here serves NBD: give it an address in its settings");
        };
        Ok(NbdUri { server: server.clone(), export: export.to_owned(), tls: None })
    }
}

/// The better of a node's addresses: the Unix socket spares the network's copies.
fn address(unix: Option<PathBuf>, tcp: Option<String>) -> Option<ServerAddress> {
    unix.map(ServerAddress::Unix).or_else(|| {
        let address: SocketAddr = tcp?.parse().ok()?;
        Some(ServerAddress::Tcp { host: address.ip().to_string(), port: address.port() })
    })
}
