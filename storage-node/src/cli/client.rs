//! The command line's end of the admin API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use client_lib::error::whole;
use client_lib::wire::admin::Failure;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Common;
use super::remote::{self, Remote};
use crate::serve::audit::USER_HEADER;
use crate::serve::http::caller::Secret;
use crate::serve::http::stale::STALE_HEADER;
use nbd_frontend::service::log;

/// The file in a data directory that says where its cluster's admin APIs are.
pub(super) const CLUSTER_FILE: &str = "cluster.json";

/// Longest wait for an answer: a handover held up by a slow link takes its time.
const TIMEOUT: Duration = Duration::from_secs(90);

/// The status of HTTP of a request that does not prove who asks.
const UNAUTHORIZED: u16 = 401;
/// The status of a request that has a field which the other end does not know.
const UNPROCESSABLE: u16 = 422;

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
    /// The file with the secret that is wanted there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) secret: Option<PathBuf>,
    /// Where metrics are served for other machines, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metrics: Option<String>,
}

impl ClusterFile {
    pub(super) fn read(data: &Path) -> anyhow::Result<ClusterFile> {
        let path = data.join(CLUSTER_FILE);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "no cluster runs from {}, or it is still starting; start one with `helio up` or `helio node`, or name one with --cluster ADDR|FILE, HELIO_CLUSTER or --data DIR",
                data.display()
            )
        })?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged: restart what runs there, which writes it anew", path.display()))
    }
}

/// Asks the cluster.
pub(super) struct Client {
    way: Way,
}

/// How the cluster is asked.
enum Way {
    /// Nodes of this machine.
    Local { endpoints: Vec<Endpoint>, agent: ureq::Agent },
    /// Nodes elsewhere, with credentials.
    Remote(Box<Remote>),
}

/// A node of this machine.
pub(super) struct Endpoint {
    pub(super) address: String,
    /// What it wants to be shown, or why that is not known.
    pub(super) secret: Result<Secret, String>,
}

impl Endpoint {
    /// The nodes of this machine that are meant.
    pub(super) fn all(common: &Common) -> anyhow::Result<Vec<Endpoint>> {
        let Some(address) = &common.cluster else {
            let file = ClusterFile::read(&common.data())?;
            let endpoint = |node: ClusterNode| Endpoint { address: node.http, secret: read_secret(node.secret) };
            return Ok(file.nodes.into_iter().map(endpoint).collect());
        };
        let address = address.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let secret = match &common.secret_file {
            Some(path) => read_secret(Some(path.clone())),
            None => {
                let known = ClusterFile::read(&common.data()).ok().map(|file| file.nodes).unwrap_or_default();
                let found = known.into_iter().find(|node| node.http == address);
                read_secret(found.and_then(|node| node.secret))
            }
        };
        Ok(vec![Endpoint { address, secret }])
    }
}

fn read_secret(path: Option<PathBuf>) -> Result<Secret, String> {
    let Some(path) = path else {
        return Err("no secret of that node is known here: name its data directory with --data DIR, or the file with --secret-file".to_owned());
    };
    let text = std::fs::read_to_string(&path).map_err(|error| {
        format!("its secret cannot be read ({}: {error}): run this as the user that runs the node", path.display())
    })?;
    Secret::parse(&text).ok_or_else(|| format!("{} holds no secret", path.display()))
}

/// Whether `--cluster` means a file, which may be missing, and not the address of a node.
fn is_file(meant: &Path) -> bool {
    meant.is_file() || !meant.as_os_str().as_encoded_bytes().contains(&b':')
}

impl Client {
    pub(super) fn find(common: &Common) -> anyhow::Result<Client> {
        if let Some(file) = common.cluster.as_deref().map(Path::new).filter(|meant| is_file(meant)) {
            return Ok(Client { way: Way::Remote(Box::new(Remote::with(file)?)) });
        }
        let endpoints = Endpoint::all(common)?;
        // By no proxy, whatever the environment says: what is asked goes to this machine, with the secret.
        let config = ureq::Agent::config_builder().proxy(None);
        let config = config.timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        Ok(Client { way: Way::Local { endpoints, agent: config.into() } })
    }

    /// Whether nodes elsewhere are asked, whose files and sockets are not those of this machine.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.way, Way::Remote(_))
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask("GET", path, None)
    }

    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.ask("POST", path, Some(&serde_json::to_string(body)?))
    }

    pub(super) fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask("DELETE", path, None)
    }

    /// What each node of this machine answers, as text; of nodes elsewhere nothing.
    pub(super) fn texts(&self, path: &str) -> Vec<(String, anyhow::Result<String>)> {
        let Way::Local { endpoints, agent } = &self.way else { return Vec::new() };
        let text = |endpoint: &Endpoint| match ask_endpoint(agent, endpoint, "GET", path, None)? {
            Ok(remote::Answer { status, body, .. }) if (200..300).contains(&status) => Ok(body),
            Ok(remote::Answer { status, body, .. }) => bail!("answered {status}: {}", body.trim()),
            Err(error) => Err(error.into()),
        };
        endpoints.iter().map(|endpoint| (endpoint.address.clone(), text(endpoint))).collect()
    }

    /// Tries each node until one can be connected to; what it then answers is the answer.
    fn ask<T: DeserializeOwned>(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<T> {
        let last = match &self.way {
            Way::Local { endpoints, agent } => {
                let mut last = None;
                for endpoint in endpoints {
                    match ask_endpoint(agent, endpoint, method, path, body)? {
                        Ok(answer) => return taken(&endpoint.address, &answer, endpoint.secret.as_ref().err()),
                        Err(error) => last = Some(format!("{}: {error}", endpoint.address)),
                    }
                }
                last
            }
            Way::Remote(remote) => {
                let mut last = None;
                for node in remote.nodes() {
                    match remote.ask(&node, method, path, body, TIMEOUT) {
                        Ok(answer) => return taken("the node", &answer, None),
                        Err(remote::Failure::Unreached(error)) => last = Some(whole(error.as_ref())),
                        Err(remote::Failure::Broken(error)) => return Err(error),
                    }
                }
                last
            }
        };
        bail!(
            "no node of the cluster can be reached ({}); is it running?",
            last.unwrap_or_else(|| "none is known".into())
        )
    }
}

/// Asks a node of this machine; the inner error is of one that cannot be connected to.
fn ask_endpoint(
    agent: &ureq::Agent,
    endpoint: &Endpoint,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> anyhow::Result<Result<remote::Answer, ureq::Error>> {
    let mut request = ureq::http::Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", endpoint.address))
        .header(USER_HEADER, user())
        .header("Content-Type", "application/json");
    if let Ok(secret) = &endpoint.secret {
        request = request.header("Authorization", format!("Bearer {}", secret.reveal()));
    }
    let sent = match body {
        Some(body) => agent.run(request.body(body.to_owned())?),
        None => agent.run(request.body(())?),
    };
    match sent {
        Ok(mut response) => {
            let is_stale = response.headers().contains_key(STALE_HEADER);
            // What is no text is told all the same: it may be a page of something else than a node.
            let body = response.body_mut().with_config().limit(remote::ANSWER_BYTES_MAX).lossy_utf8(true);
            let body = body.read_to_string().context("the answer broke off, or is too long")?;
            Ok(Ok(remote::Answer { status: response.status().as_u16(), body, is_stale }))
        }
        Err(error @ (ureq::Error::ConnectionFailed | ureq::Error::HostNotFound | ureq::Error::Io(_))) => Ok(Err(error)),
        Err(error) => bail!("{}: {error}", endpoint.address),
    }
}

/// Says once that what is shown may be old.
fn warn_of_stale() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        log::complain(format_args!(
            "helio: the metadata has no leader, so this is what the node knew last; a majority of the voters must be up: `helio cluster \
             status` shows them"
        ));
    });
}

/// What an answer says; `untold` is why no secret was shown.
fn taken<T: DeserializeOwned>(from: &str, answer: &remote::Answer, untold: Option<&String>) -> anyhow::Result<T> {
    let remote::Answer { status, body, is_stale } = answer;
    if *is_stale {
        warn_of_stale();
    }
    if (200..300).contains(status) {
        return serde_json::from_str(body).context("the answer cannot be read");
    }
    match (serde_json::from_str::<Failure>(body), untold) {
        (Ok(_), Some(why)) if *status == UNAUTHORIZED => bail!("{from} wants its secret, and {why}"),
        (Ok(failure), _) => bail!("{}", failure.message),
        (Err(_), _) if *status == UNPROCESSABLE => bail!(
            "{from} does not understand the request; it may run an earlier program: restart it as this one, or leave out what is new ({})",
            body.trim()
        ),
        (Err(_), _) => bail!("{from} answered {status}: {}", body.trim()),
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
    headed_table(heading, rows).iter().for_each(|line| println!("{line}"));
}

/// Rows as lines, whose columns are aligned, under a heading.
pub(super) fn headed_table(heading: &[&str], rows: Vec<Vec<String>>) -> Vec<String> {
    let heading = heading.iter().map(|name| name.to_uppercase()).collect();
    let all: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    table(&all)
}

/// Rows as lines, whose columns are aligned.
pub(super) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// Credentials that were not there were looked up in the DNS: "failed to lookup address information".
    #[test]
    fn credentials_that_are_missing_are_no_address() {
        let is_file = |meant: &str| is_file(Path::new(meant));
        assert!(is_file("missing.helio") && is_file("./missing"));
        assert!(!is_file("127.0.0.1:10880") && !is_file("[::1]:10880") && !is_file("http://node:10880"));
    }

    /// Stands for a node: gives these answers, a status and a body, to as many requests, and tells then what was asked.
    pub(in crate::cli) fn answering(answers: Vec<(u16, String)>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let answer = move |(status, body): (u16, String)| {
            let mut stream = BufReader::new(listener.accept().expect("is asked").0);
            let mut lines = Vec::new();
            while !lines.last().is_some_and(String::is_empty) {
                let mut line = String::new();
                stream.read_line(&mut line).expect("asks");
                lines.push(line.trim_end().to_ascii_lowercase());
            }
            let length = lines.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            // What was not read when a connection is closed breaks it, and the answer is lost.
            stream.read_exact(&mut vec![0; length.unwrap_or(0)]).expect("asks");
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            let stream = stream.get_mut();
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("is answered");
            lines.remove(0)
        };
        (address, std::thread::spawn(move || answers.into_iter().map(answer).collect()))
    }

    /// The library that asks reads 10 MiB and no more, unless it is told otherwise. A list of clients with many certificates
    /// is longer: on a node's own machine it could not be read, while it could from any other.
    #[test]
    fn a_long_list_is_read_whole_on_the_machine_of_the_node() {
        let names: Vec<String> = (0..100_000).map(|number| format!("{number:0>120}")).collect();
        let body = serde_json::to_string(&names).expect("is plain data");
        assert!(body.len() > 12_000_000);
        let (address, node) = answering(vec![(200, body)]);
        let endpoint = Endpoint { address, secret: Err("none is wanted".to_owned()) };
        let client = Client { way: Way::Local { endpoints: vec![endpoint], agent: ureq::Agent::new_with_defaults() } };
        let read: Vec<String> = client.get("/v1/clients").expect("is read");
        assert!(read == names);
        assert_eq!(node.join().expect("has answered"), ["get /v1/clients http/1.1"]);
    }
}
