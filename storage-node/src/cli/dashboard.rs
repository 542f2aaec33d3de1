//! `helio dashboard`: the link to the page of a node, with the secret that it wants.

use anyhow::{anyhow, bail};
use clap::Args;

use super::Common;
use super::client::{Endpoint, print_json};

/// Print a link to the dashboard of a node on this machine
#[derive(Debug, Args)]
#[command(
    after_help = "The link has the node's secret in it, behind the #, which browsers send to nobody: whoever has the link may do everything. The page keeps the secret for as long as its tab is open.\n\nExamples:\n  helio dashboard\n  ssh -L 10880:127.0.0.1:10880 host-of-a    # from another machine; and there, with the link that `helio dashboard` prints at host-of-a"
)]
pub(super) struct Dashboard {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Dashboard, common: &Common) -> anyhow::Result<()> {
    if common.cluster.as_deref().is_some_and(|cluster| std::path::Path::new(cluster).is_file()) {
        bail!(
            "the dashboard is for the machine of a node: run this there, and reach it from elsewhere through `ssh -L` (docs/dashboard.md)"
        );
    }
    let endpoints = Endpoint::all(common)?;
    let endpoint = endpoints.first().ok_or_else(|| anyhow!("no node serves the admin API here"))?;
    let secret = endpoint.secret.as_ref().map_err(|why| anyhow!("{why}"))?;
    let link = link(&endpoint.address, secret.reveal());
    if arguments.json {
        return print_json(&serde_json::json!({ "link": link }));
    }
    println!("{link}");
    Ok(())
}

fn link(address: &str, secret: &str) -> String {
    format!("http://{address}/#secret={secret}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is behind the `#` is sent to nobody, and is in no log of a server.
    #[test]
    fn the_secret_is_in_the_fragment() {
        assert_eq!(link("127.0.0.1:10880", "5a"), "http://127.0.0.1:10880/#secret=5a");
    }
}
