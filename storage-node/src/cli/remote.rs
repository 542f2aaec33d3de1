//! The admin API of nodes elsewhere, over TLS with the credentials of a client: the least of HTTP that asking takes, one request on each
//! connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use client_lib::client::require_not_ended;
use client_lib::clock::{Clock, SystemClock};
use client_lib::pki::{ClientIdentity, tls};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::serve::http::stale::STALE_HEADER;

/// How long a node may take to accept a connection, and with each step until something is asked.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read, in bytes, of nodes here as of nodes elsewhere: far more than the longest list.
pub(super) const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Nodes that are asked with credentials.
pub(super) struct Remote {
    identity: ClientIdentity,
    config: Arc<ClientConfig>,
}

/// A node that is asked.
#[derive(Clone, Debug)]
pub(super) struct RemoteNode {
    name: String,
    id: client_lib::NodeId,
    address: SocketAddr,
}

/// Why a request brought no answer.
pub(super) enum Failure {
    /// It was not sent: another node may be asked.
    Unreached(anyhow::Error),
    /// It may have been carried out.
    Broken(anyhow::Error),
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
    /// Whether it may be old, as it says.
    pub(super) is_stale: bool,
}

impl Remote {
    /// With the credentials in this file.
    ///
    /// # Errors
    /// When they cannot be used.
    pub(super) fn with(file: &Path) -> anyhow::Result<Remote> {
        let identity = ClientIdentity::load(file)
            .context("`helio cluster client NAME --out FILE --role ROLE` writes credentials for the admin API")?;
        require_not_ended(&identity, SystemClock::new().unix_ms())?;
        let config = Arc::new(tls::client_of_nodes(&identity)?);
        Ok(Remote { identity, config })
    }

    /// The nodes that the credentials name.
    pub(super) fn nodes(&self) -> Vec<RemoteNode> {
        let node = |place: &client_lib::pki::NodePlace| RemoteNode {
            name: place.name.to_string(),
            id: place.id,
            address: place.address,
        };
        self.identity.nodes().iter().map(node).collect()
    }

    /// Asks a node.
    pub(super) fn ask(
        &self,
        node: &RemoteNode,
        method: &str,
        path: &str,
        body: Option<&str>,
        patience: Duration,
    ) -> Result<Answer, Failure> {
        let unreached = |error: anyhow::Error| {
            let RemoteNode { name, address, .. } = node;
            Failure::Unreached(error.context(format!("node {name} at {address} (TCP)")))
        };
        let mut stream = self.connect(node).map_err(unreached)?;
        // Before anything is asked: what fails until then was not carried out.
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|error| unreached(error.into()))?;
        }
        stream.sock.set_read_timeout(Some(patience)).map_err(|error| unreached(error.into()))?;
        let body = body.unwrap_or("");
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}",
            node.address
        );
        let broken = |error: anyhow::Error| Failure::Broken(error.context(format!("node {}", node.name)));
        stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).map_err(|error| broken(refused(error)))?;
        read_answer(BufReader::new(stream)).map_err(broken)
    }

    fn connect(&self, node: &RemoteNode) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
        let stream = TcpStream::connect_timeout(&node.address, CONNECT_PATIENCE).context(
            "nothing answers there; `remote = true` in [admin] of its settings lets it be asked from elsewhere",
        )?;
        stream.set_read_timeout(Some(CONNECT_PATIENCE))?;
        stream.set_write_timeout(Some(CONNECT_PATIENCE))?;
        stream.set_nodelay(true)?;
        let name = tls::node_name(self.identity.cluster(), node.id)?;
        Ok(StreamOwned::new(ClientConnection::new(self.config.clone(), name)?, stream))
    }
}

/// Of TLS 1.3 it is only heard when something is read or written that the other end does not accept a certificate.
fn refused(error: std::io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context("the connection broke off; the node may not accept these credentials")
}

fn read_answer(mut from: impl BufRead) -> anyhow::Result<Answer> {
    let mut line = String::new();
    from.read_line(&mut line).map_err(refused)?;
    let status = line.split(' ').nth(1).and_then(|status| status.trim().parse().ok());
    let Some(status) = status else { bail!("the answer is not one of HTTP") };
    let (mut length, mut is_stale) = (None::<u64>, false);
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.trim().parse().context("the answer has no length")?),
            STALE_HEADER => is_stale = true,
            "transfer-encoding" => bail!("the answer comes in a form that is not known here"),
            _ => {}
        }
    }
    let length = length.unwrap_or(0);
    anyhow::ensure!(length <= ANSWER_BYTES_MAX, "the answer has {length} bytes");
    let mut body = Vec::new();
    from.take(length).read_to_end(&mut body)?;
    anyhow::ensure!(body.len() as u64 == length, "the answer broke off");
    Ok(Answer { status, body: String::from_utf8(body).context("the answer is no text")?, is_stale })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Answer> {
        read_answer(text.as_bytes())
    }

    #[test]
    fn answers_are_read_whole_and_others_are_refused() {
        let answer = read("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nX: y\r\n\r\n{}").expect("is one");
        assert_eq!((answer.status, answer.body.as_str()), (403, "{}"));
        assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n").expect("is one").body, "");
        for odd in [
            "",
            "SSH-2.0-x\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            assert!(read(odd).is_err(), "{odd:?}");
        }
    }
}
