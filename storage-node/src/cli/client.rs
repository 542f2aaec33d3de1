//! The command line's end of the admin API.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use client_lib::wire::admin::Failure;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Common;
use crate::serve::audit::USER_HEADER;

/// The file in a data directory that says where its cluster's admin APIs are.
pub(super) const CLUSTER_FILE: &str = "cluster.json";

/// Longest wait for an answer: a handover held up by a slow link takes its time.
const TIMEOUT: Duration = Duration::from_secs(90);

/// What [`CLUSTER_FILE`] holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClusterFile {
    /// The process that runs the cluster.
    pub(super) pid: u32,
    /// Addresses of admin APIs.
    pub(super) http: Vec<String>,
    /// The nodes.
    pub(super) nodes: Vec<ClusterNode>,
}

/// A node in [`ClusterFile`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClusterNode {
    pub(super) name: String,
    pub(super) nbd_tcp: String,
    pub(super) nbd_unix: String,
    pub(super) http: String,
    /// Where metrics are served for other machines, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metrics: Option<String>,
}

impl ClusterFile {
    pub(super) fn read(data: &Path) -> anyhow::Result<ClusterFile> {
        let path = data.join(CLUSTER_FILE);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "no cluster runs from {}, or it is still starting; start one with `helio up` or `helio node`, or name one with --cluster ADDR, HELIO_CLUSTER or --data DIR",
                data.display()
            )
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} cannot be read", path.display()))
    }
}

/// Asks the cluster.
pub(super) struct Client {
    endpoints: Vec<String>,
    agent: ureq::Agent,
}

impl Client {
    pub(super) fn find(common: &Common) -> anyhow::Result<Client> {
        let endpoints = match &common.cluster {
            Some(address) => vec![address.trim_start_matches("http://").trim_end_matches('/').to_owned()],
            None => ClusterFile::read(&common.data())?.http,
        };
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        Ok(Client { endpoints, agent: config.into() })
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(|agent, url| agent.get(url).call(), path)
    }

    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.ask(|agent, url| agent.post(url).header(USER_HEADER, user()).send_json(body), path)
    }

    pub(super) fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(|agent, url| agent.delete(url).header(USER_HEADER, user()).call(), path)
    }

    /// What each endpoint answers, as text.
    pub(super) fn texts(&self, path: &str) -> Vec<(&str, anyhow::Result<String>)> {
        let text = |endpoint: &str| {
            let mut response = self.agent.get(format!("http://{endpoint}{path}")).call()?;
            let body = response.body_mut().read_to_string().context("the answer broke off")?;
            match response.status() {
                status if status.is_success() => Ok(body),
                status => bail!("answered {status}: {}", body.trim()),
            }
        };
        self.endpoints.iter().map(|endpoint| (endpoint.as_str(), text(endpoint))).collect()
    }

    /// Tries each endpoint until one can be connected to; what it then answers is the answer.
    fn ask<T: DeserializeOwned>(
        &self,
        send: impl Fn(&ureq::Agent, &str) -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        path: &str,
    ) -> anyhow::Result<T> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match send(&self.agent, &format!("http://{endpoint}{path}")) {
                Ok(mut response) => {
                    let status = response.status();
                    let body = response.body_mut().read_to_string().context("the answer broke off")?;
                    if status.is_success() {
                        return serde_json::from_str(&body).context("the answer cannot be read");
                    }
                    match serde_json::from_str::<Failure>(&body) {
                        Ok(failure) => bail!("{}", failure.message),
                        Err(_) => bail!("{endpoint} answered {status}: {}", body.trim()),
                    }
                }
                Err(error @ (ureq::Error::ConnectionFailed | ureq::Error::HostNotFound | ureq::Error::Io(_))) => {
                    last = Some(format!("{endpoint}: {error}"));
                }
                Err(error) => bail!("{endpoint}: {error}"),
            }
        }
        bail!(
            "no node of the cluster can be reached ({}); is it running?",
            last.unwrap_or_else(|| "none is known".into())
        )
    }
}

/// Who runs this command, for the list of what administrators did: as his session says, which proves nothing.
fn user() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"].iter().filter_map(|name| std::env::var(name).ok());
    named
        .map(|name| name.chars().filter(char::is_ascii_graphic).collect())
        .find(|name: &String| !name.is_empty())
        .unwrap_or_default()
}

/// Prints what `--json` asks for.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints rows in aligned columns under a heading.
pub(super) fn print_table(heading: &[&str], rows: Vec<Vec<String>>) {
    let heading = heading.iter().map(|name| name.to_uppercase()).collect();
    let all: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..all[0].len()).map(width).collect();
    for row in &all {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}
