//! The least of HTTP that tests of listeners need: one request, one answer, any bytes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status; 0 when the connection was closed without an answer.
    pub status: u16,
    /// The lines before the body.
    pub head: String,
    /// The body.
    pub body: String,
}

/// The admin API of a node, as who runs the node asks it.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens, or what leads there.
    pub address: String,
    /// What it wants to be shown.
    pub secret: String,
}

impl std::fmt::Display for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.address)
    }
}

impl Admin {
    /// That of `node`, of which `cluster.json` in this data directory tells.
    ///
    /// # Errors
    /// When it does not.
    pub fn find(data: &Path, node: &str) -> anyhow::Result<Admin> {
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(data.join("cluster.json"))?)?;
        let nodes = file["nodes"].as_array().context("cluster.json has nodes")?;
        let node = nodes.iter().find(|known| known["name"] == node).context("there is no such node")?;
        let address = node["http"].as_str().context("it serves the admin API")?.to_owned();
        let secret = std::fs::read_to_string(node["secret"].as_str().context("it has a secret")?)?.trim().to_owned();
        Ok(Admin { address, secret })
    }

    /// The header that shows the secret.
    #[must_use]
    pub fn header(&self) -> String {
        format!("Authorization: Bearer {}", self.secret)
    }
}

/// Asks `address` for `path`.
///
/// # Errors
/// When nobody listens, or the answer is none of HTTP's.
pub fn get(address: &str, path: &str) -> anyhow::Result<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    send(address, request.as_bytes())
}

/// Sends `request` as it is, and reads until the other end closes.
///
/// # Errors
/// As [`get`].
pub fn send(address: &str, request: &[u8]) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("nobody listens on {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The other end may have refused it before it has read everything.
    let _ = stream.write_all(request);
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    if bytes.is_empty() {
        return Ok(Answer { status: 0, head: String::new(), body: String::new() });
    }
    // What was answered counts, also where the connection was cut behind it.
    drop(read);
    let text = String::from_utf8(bytes)?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer has a head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("an answer has a status")?;
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if is_chunked { whole(body).context("the chunks are whole")? } else { body.to_owned() };
    Ok(Answer { status, head: head.to_owned(), body })
}

/// A body that came in chunks.
fn whole(mut chunks: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, rest) = chunks.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(rest.get(..size)?);
        chunks = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}
