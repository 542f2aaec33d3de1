//! What `helio up` and `helio node` share: they tell where everything is, wait to be stopped, and take it back.

use std::path::{Path, PathBuf};

use anyhow::Context;
use client_lib::files;
use nbd_frontend::service::log::say;
use nbd_frontend::service::stop::Stop;

use super::client::{CLUSTER_FILE, ClusterFile, ClusterNode, headed_table};
use crate::node::Node;

/// A node of this process, as people and the other commands find it.
pub(super) struct Served<'a> {
    pub(super) name: &'a str,
    pub(super) provider: &'a str,
    pub(super) node: &'a Node,
}

/// Writes [`CLUSTER_FILE`] into `data`, prints a table and then the line that starts with `ready`, where that can be printed.
pub(super) fn announce(data: &Path, served: &[Served<'_>]) -> anyhow::Result<()> {
    let shown = |address: Option<std::net::SocketAddr>| address.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let socket = |path: Option<PathBuf>| path.map_or_else(|| "-".to_owned(), |path| path.display().to_string());
    let nodes: Vec<ClusterNode> = served
        .iter()
        .map(|served| ClusterNode {
            name: served.name.to_owned(),
            nbd_tcp: shown(served.node.nbd_address()),
            nbd_unix: socket(served.node.nbd_path().map(from_anywhere)),
            http: shown(served.node.http_address()),
            secret: served.node.http_address().map(|_| from_anywhere(&served.node.secret_path())),
            metrics: served.node.metrics_address().map(|address| address.to_string()),
        })
        .collect();
    let file =
        ClusterFile { pid: std::process::id(), http: nodes.iter().map(|node| node.http.clone()).collect(), nodes };
    let place = data.join(CLUSTER_FILE);
    files::replace(&place, &serde_json::to_vec_pretty(&file)?, files::PUBLIC)
        .with_context(|| format!("{} cannot be written", place.display()))?;
    let rows = file.nodes.iter().zip(served).map(|(node, served)| {
        let provider = served.provider.to_owned();
        let unix = socket(served.node.nbd_path().map(Path::to_owned));
        vec![node.name.clone(), provider, node.nbd_tcp.clone(), unix, node.http.clone()]
    });
    headed_table(&["node", "provider", "nbd", "nbd socket", "admin"], rows.collect()).iter().for_each(say);
    let count = if served.len() == 1 { "1 node".to_owned() } else { format!("{} nodes", served.len()) };
    say(format_args!("ready: {count}, data in {}", data.display()));
    Ok(())
}

/// As whoever reads the file finds it, in whatever directory they are.
fn from_anywhere(path: &Path) -> PathBuf {
    // Without a working directory a path stays as it was given.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Returns at the first SIGINT or SIGTERM, with [`CLUSTER_FILE`] taken back; a second one ends the process at once.
pub(super) async fn until_stopped(data: &Path) -> anyhow::Result<()> {
    Stop::new()?.requested().await;
    tracing::info!("stopping");
    take_back(data);
    Ok(())
}

/// Takes [`CLUSTER_FILE`] back.
pub(super) fn take_back(data: &Path) {
    // What is gone already need not be removed.
    let _ = std::fs::remove_file(data.join(CLUSTER_FILE));
}
