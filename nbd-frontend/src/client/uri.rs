//! Addresses of exports: `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`, with TLS `nbds` and `nbds+unix`.
//!
//! After <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>; `tls-certificates=DIRECTORY` is libnbd's. With `nbd`
//! there is never TLS, with `nbds` always, and the server is verified: what would have it otherwise is refused.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::proto::handshake;

/// The port registered for NBD (IANA).
pub const PORT: u16 = 10809;

/// Where an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// The server.
    pub server: ServerAddress,
    /// The export's name; empty for the server's default export.
    pub export: String,
    /// TLS, if it is to be used.
    pub tls: Option<UriTls>,
}

/// How TLS is to be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UriTls {
    /// A directory with `ca-cert.pem`, by which the server is known, and perhaps `client-cert.pem` and `client-key.pem`. Without
    /// it the authorities of the system count.
    pub certificates: Option<PathBuf>,
    /// The name in the server's certificate, if it is not that of its address.
    pub hostname: Option<String>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// On TCP.
    Tcp {
        /// Host name or IP address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// On a Unix socket.
    Unix(PathBuf),
}

/// Why a text is no [`NbdUri`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{uri:?} is not the address of an NBD export: {why}; write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, with TLS nbds://HOST[:PORT]/EXPORT?tls-certificates=DIRECTORY"
)]
pub struct InvalidUri {
    uri: String,
    why: &'static str,
}

impl NbdUri {
    /// Whether `text` is meant as one, well-formed or not: it has a scheme of NBD.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        ["nbd://", "nbd+unix://", "nbds://", "nbds+unix://"].iter().any(|scheme| text.starts_with(scheme))
    }
}

impl FromStr for NbdUri {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<NbdUri, InvalidUri> {
        parse(text).map_err(|why| InvalidUri { uri: text.to_owned(), why })
    }
}

fn parse(text: &str) -> Result<NbdUri, &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decoded(path)?;
    if handshake::string(export.as_bytes()).is_err() {
        return Err("the name is longer than 4096 bytes or contains a NUL");
    }
    let (scheme, tls) = match scheme.strip_prefix("nbds") {
        Some(rest @ ("" | "+unix")) => (["nbd", rest].concat(), Some(tls(query.unwrap_or(""))?)),
        _ => (scheme.to_owned(), None),
    };
    let server = match scheme.as_str() {
        "nbd" => {
            if tls.is_none() && query.is_some_and(|query| !query.is_empty()) {
                return Err("it has a query, which nothing here understands without TLS");
            }
            tcp(authority)?
        }
        "nbd+unix" => {
            if !authority.is_empty() {
                return Err("a Unix socket has no host: three slashes follow the scheme");
            }
            let socket = parameters(query.unwrap_or("")).filter(|(key, _)| *key == "socket").last();
            let path = socket.map(|(_, value)| value).filter(|value| !value.is_empty()).ok_or("it names no socket")?;
            ServerAddress::Unix(decoded(path)?.into())
        }
        _ => return Err("its scheme is not one of NBD"),
    };
    Ok(NbdUri { server, export, tls })
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter_map(|it| it.split_once('='))
}

/// "NBD URI query parameters related to TLS".
fn tls(query: &str) -> Result<UriTls, &'static str> {
    let mut tls = UriTls::default();
    for (key, value) in parameters(query) {
        match (key, value) {
            ("tls-certificates", value) => tls.certificates = Some(decoded(value)?.into()),
            ("tls-hostname", value) => tls.hostname = Some(decoded(value)?),
            ("tls-type", "x509") | ("tls-verify-peer", "1") | ("socket", _) => {}
            ("tls-type", _) => return Err("it asks for TLS without certificates, which is not supported"),
            ("tls-verify-peer", _) => return Err("it asks for a server that is not verified, which could be anybody"),
            _ => return Err("its query has a part that nothing here understands"),
        }
    }
    Ok(tls)
}

fn tcp(authority: &str) -> Result<ServerAddress, &'static str> {
    if authority.contains('@') {
        return Err("it names a user, which only TLS with pre-shared keys has a use for");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or("a bracket is not closed")?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| "its port is not a number up to 65535")?,
        None if port.is_empty() => PORT,
        None => return Err("something follows its host that is not a port"),
    };
    if host.is_empty() {
        return Err("it names no host");
    }
    Ok(ServerAddress::Tcp { host: decoded(host)?, port })
}

/// Resolves `%XX` (RFC 3986, section 2.1).
fn decoded(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err("a % is not followed by two hex digits") };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8")
}

/// `%XX` for whatever has a meaning in a URI.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b'@' | b':' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encoded(&self.export);
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        let mut query = Vec::new();
        match &self.server {
            ServerAddress::Tcp { host, port } if host.contains(':') => {
                write!(f, "{scheme}://[{host}]:{port}/{export}")?
            }
            ServerAddress::Tcp { host, port } => write!(f, "{scheme}://{host}:{port}/{export}")?,
            ServerAddress::Unix(path) => {
                query.push(format!("socket={}", encoded(&path.to_string_lossy())));
                write!(f, "{scheme}+unix:///{export}")?;
            }
        }
        if let Some(UriTls { certificates, hostname }) = &self.tls {
            let certificates =
                certificates.iter().map(|path| ("tls-certificates", path.to_string_lossy().into_owned()));
            let hostname = hostname.iter().map(|name| ("tls-hostname", name.clone()));
            query.extend(certificates.chain(hostname).map(|(key, value)| format!("{key}={}", encoded(&value))));
        }
        if query.is_empty() { Ok(()) } else { write!(f, "?{}", query.join("&")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        NbdUri { server: ServerAddress::Tcp { host: host.into(), port }, export: export.into(), tls: None }
    }

    fn unix(path: &str, export: &str) -> NbdUri {
        NbdUri { server: ServerAddress::Unix(path.into()), export: export.into(), tls: None }
    }

    fn with(uri: NbdUri, certificates: Option<&str>, hostname: Option<&str>) -> NbdUri {
        let tls = UriTls { certificates: certificates.map(PathBuf::from), hostname: hostname.map(str::to_owned) };
        NbdUri { tls: Some(tls), ..uri }
    }

    #[test]
    fn addresses_are_read_and_written_back() {
        for (text, expected) in [
            ("nbd://localhost", tcp("localhost", 10809, "")),
            ("nbd://localhost/", tcp("localhost", 10809, "")),
            ("nbd://192.0.2.1:1/disk", tcp("192.0.2.1", 1, "disk")),
            ("nbd://[::1]/disk", tcp("::1", 10809, "disk")),
            ("nbd://[::1]:7/a/b%20c", tcp("::1", 7, "a/b c")),
            ("nbd://h/disk@monday", tcp("h", 10809, "disk@monday")),
            ("nbd+unix:///?socket=/run/s", unix("/run/s", "")),
            ("nbd+unix://?socket=s", unix("s", "")),
            ("nbd+unix:///disk?socket=/a%3Fb&x=y", unix("/a?b", "disk")),
            ("nbds://h/disk", with(tcp("h", 10809, "disk"), None, None)),
            (
                "nbds://[::1]:7/disk?tls-certificates=/etc/pki%20x&tls-hostname=a.example&tls-type=x509",
                with(tcp("::1", 7, "disk"), Some("/etc/pki x"), Some("a.example")),
            ),
            (
                "nbds+unix:///disk?socket=/s&tls-verify-peer=1&tls-certificates=d",
                with(unix("/s", "disk"), Some("d"), None),
            ),
        ] {
            let uri: NbdUri = text.parse().expect(text);
            assert_eq!(uri, expected, "{text}");
            assert_eq!(uri.to_string().parse(), Ok(uri), "{text}");
            assert!(NbdUri::is_meant(text));
        }
    }

    #[test]
    fn what_cannot_be_reached_is_refused_with_why() {
        for (text, why) in [
            ("disk.raw", "no scheme"),
            ("http://h/x", "scheme is not"),
            ("nbds://h/x?tls-type=psk", "without certificates"),
            ("nbds://h/x?tls-verify-peer=0", "anybody"),
            ("nbds://h/x?tls-certificate=d", "nothing here understands"),
            ("nbds+unix:///x?tls-hostname=h", "no socket"),
            ("nbds+tcp://h/x", "scheme is not"),
            ("nbd:///x", "no host"),
            ("nbd://h:x/", "not a number"),
            ("nbd://h:70000/", "not a number"),
            ("nbd://[::1/x", "not closed"),
            ("nbd://[::1]7/x", "not a port"),
            ("nbd://me@h/x", "user"),
            ("nbds://me@h/x", "user"),
            ("nbd://h/x?socket=/s", "query"),
            ("nbd+unix://h/x?socket=/s", "three slashes"),
            ("nbd+unix:///x", "no socket"),
            ("nbd+unix:///x?socket=", "no socket"),
            ("nbd://h/%4", "hex digits"),
            ("nbd://h/%ff", "UTF-8"),
            ("nbd://h/%00", "NUL"),
        ] {
            let error = text.parse::<NbdUri>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(!NbdUri::is_meant("nbd.raw"));
    }
}
