//! Settings of a node: plain values, checked once. `helio node --config FILE` reads them from TOML.
//!
//! What is wrong is told with file, line and what was expected: every check that concerns one value is part of
//! reading that value. `docs/node.toml` is an example with every setting.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client_lib::cipher::KeySource;
use client_lib::{BLOCK_SIZE, NodeName, ProviderId};
use nbd_frontend::{TlsMode, TlsOptions};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::io::EngineKind;
use crate::log::LogSettings;
use crate::shard::{SCRUB_BYTES_PER_SECOND, ShardOptions};
use crate::size;
use crate::trace::export::{ExportOptions, shown};

mod certificates;

pub use certificates::{CertificateSettings, LIFETIME_ADVISED};

/// The smallest segment: the largest record fits several times.
const SEGMENT_BYTES_MIN: u64 = 8 << 20;
/// The largest: beyond it a segment takes long to come free.
const SEGMENT_BYTES_MAX: u64 = 4 << 30;
/// The least capacity, in segments: the one being written, spares, and room to clean.
const CAPACITY_SEGMENTS_MIN: u64 = 8;
/// The slowest scrub: slower, it would not be through in a lifetime.
const SCRUB_BYTES_MIN: u64 = 64 << 10;
/// The smallest map cache.
const MAP_CACHE_BYTES_MIN: u64 = 1 << 20;

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, or a value that is not as it must be. The message has line, column and what was expected.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// Two values that do not go together.
    #[error("{}: {reason}", path.display())]
    Values {
        /// The file.
        path: PathBuf,
        /// Which, and what to do.
        reason: String,
    },
}

/// Settings of `helio node`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// What the node is called; unique in its cluster.
    pub name: NodeName,
    /// Its failure domain: a cloud, a region, a site.
    pub provider: ProviderId,
    /// Its data directory. Relative paths start at the directory of the file.
    pub data: PathBuf,
    /// The UDP address for other nodes.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Where other nodes reach that address; the same if not given.
    #[serde(default, deserialize_with = "some_address")]
    pub advertise: Option<SocketAddr>,
    /// NBD.
    #[serde(default)]
    pub nbd: NbdSettings,
    /// The admin API.
    #[serde(default)]
    pub admin: AdminSettings,
    /// Metrics and health, for other machines.
    #[serde(default)]
    pub metrics: MetricsSettings,
    /// The block store.
    #[serde(default)]
    pub store: StoreSettings,
    /// What opens encrypted volumes.
    #[serde(default)]
    pub keys: KeySettings,
    /// Which collector is told of operations.
    #[serde(default)]
    pub trace: TraceSettings,
    /// Certificates that it signs, if it has the cluster's authority.
    #[serde(default)]
    pub certificates: CertificateSettings,
    /// Reaches these nodes elsewhere than they announce: through a tunnel, or behind an address translation.
    #[serde(default)]
    pub routes: BTreeMap<NodeName, Route>,
}

/// Where NBD is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NbdSettings {
    /// A TCP address; none if not given, since whoever reaches it may read and write every volume.
    #[serde(deserialize_with = "some_address")]
    pub tcp: Option<SocketAddr>,
    /// A Unix socket; `nbd.sock` in the data directory if not given.
    pub unix: Option<PathBuf>,
    /// TLS; none if not given.
    pub tls: Option<NbdTlsSettings>,
}

/// TLS for NBD. Relative paths start at the directory of the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdTlsSettings {
    /// Who must use it.
    #[serde(default, deserialize_with = "tls_use")]
    pub mode: TlsUse,
    /// The server's certificate and those between it and its authority, in PEM.
    pub certificate: PathBuf,
    /// The key of the certificate, in PEM.
    pub key: PathBuf,
    /// Certificates of authorities, in PEM: a client must have a certificate that one of them has signed.
    pub client_authority: Option<PathBuf>,
}

/// Whether NBD clients must use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsUse {
    /// None can, as without the settings.
    Off,
    /// Those that want to do.
    Optional,
    /// All over TCP must; over the Unix socket those that want to do.
    #[default]
    Required,
}

impl TlsUse {
    /// How it is written.
    pub const EXPECTED: &str = "\"required\", \"optional\" or \"off\"";

    /// The use that `text` names.
    ///
    /// # Errors
    /// With what is expected.
    pub fn parse(text: &str) -> Result<TlsUse, String> {
        match text {
            "required" => Ok(TlsUse::Required),
            "optional" => Ok(TlsUse::Optional),
            "off" => Ok(TlsUse::Off),
            _ => Err(format!("{text:?} is not {}", TlsUse::EXPECTED)),
        }
    }
}

impl NbdTlsSettings {
    /// As the NBD server takes them.
    #[must_use]
    pub fn options(&self) -> Option<TlsOptions> {
        let mode = match self.mode {
            TlsUse::Off => return None,
            TlsUse::Optional => TlsMode::Optional,
            TlsUse::Required => TlsMode::Required,
        };
        let NbdTlsSettings { certificate, key, client_authority, .. } = self.clone();
        Some(TlsOptions { mode, certificate, key, client_authority })
    }
}

/// Where the admin API is served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// A TCP address on loopback, where the node's secret is wanted.
    #[serde(deserialize_with = "loopback")]
    pub http: SocketAddr,
    /// Whether it is served for other machines, too: over TLS on TCP, at the address and port of `listen`, for clients with a role.
    pub remote: bool,
}

impl Default for AdminSettings {
    fn default() -> AdminSettings {
        AdminSettings { http: SocketAddr::from(([127, 0, 0, 1], 10880)), remote: false }
    }
}

/// Where metrics and health are served beside the admin API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSettings {
    /// A TCP address, any: who reaches it can look, and change nothing. None if not given.
    #[serde(deserialize_with = "some_address")]
    pub listen: Option<SocketAddr>,
}

/// Where the keys are that open encrypted volumes, for the node's own NBD exports: in one place at most. Relative paths start at the
/// directory of the file.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeySettings {
    /// A file that holds one.
    pub file: Option<PathBuf>,
    /// A directory of such files, each with the name of its key.
    pub directory: Option<PathBuf>,
    /// A line for `/bin/sh` that prints the key that `HELIO_KEY_NAME` names.
    pub command: Option<String>,
}

/// Of a command only that there is one.
impl fmt::Debug for KeySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeySettings").field(&self.source()).finish()
    }
}

impl KeySettings {
    /// As the node takes them.
    #[must_use]
    pub fn source(&self) -> Option<KeySource> {
        let file = self.file.clone().map(KeySource::File);
        let directory = || self.directory.clone().map(KeySource::Directory);
        file.or_else(directory).or_else(|| self.command.clone().map(KeySource::Command))
    }
}

/// Which collector of OTLP is told of operations, and of how many: of none if not given.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceSettings {
    /// Its address, `http://HOST:PORT/v1/traces`.
    pub endpoint: Option<String>,
    /// The part of the operations that it is told of. More costs the node, the network and the collector more.
    pub sample: f64,
}

impl Default for TraceSettings {
    fn default() -> TraceSettings {
        TraceSettings { endpoint: None, sample: 0.001 }
    }
}

impl TraceSettings {
    /// As the node takes them.
    #[must_use]
    pub fn options(&self) -> Option<ExportOptions> {
        Some(ExportOptions { endpoint: self.endpoint.clone()?, sample: self.sample })
    }

    fn check(&self) -> Result<(), String> {
        let TraceSettings { endpoint, sample } = self;
        if !(*sample > 0.0 && *sample <= 1.0) {
            return Err(format!("[trace] sample = {sample} is no part of the operations: above 0, and up to 1"));
        }
        let is_wrong = |endpoint: &&String| {
            let address = endpoint.strip_prefix("http://").and_then(|rest| rest.split('/').next());
            address.is_none_or(|address| address.is_empty() || address.contains(char::is_whitespace))
        };
        match endpoint.iter().find(is_wrong) {
            Some(endpoint) => Err(format!(
                "[trace] endpoint = {:?} is no address of a collector: use http://HOST:PORT/v1/traces; for TLS, run a collector on this machine that passes on",
                shown(endpoint)
            )),
            None => Ok(()),
        }
    }
}

/// An address in the table of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route(pub SocketAddr);

impl<'de> Deserialize<'de> for Route {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Route, D::Error> {
        address(deserializer).map(Route)
    }
}

/// Settings of the block store.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSettings {
    /// Where it keeps its data, a shard in each, usually a disk each; none given: in the data directory. Relative paths start
    /// at the directory of the file.
    pub directories: Vec<PathBuf>,
    /// Size of a segment file, a multiple of 4 KiB, 8 MiB to 4 GiB. Larger ones cost less bookkeeping, smaller ones
    /// come free sooner.
    #[serde(deserialize_with = "segment_bytes")]
    pub segment_bytes: u64,
    /// Most bytes of segment files in each directory; `None` leaves it to the file system.
    #[serde(deserialize_with = "some_bytes")]
    pub capacity_bytes: Option<u64>,
    /// Memory for the block map, shared out evenly among the directories. Less means more look-ups on disk.
    #[serde(deserialize_with = "map_cache_bytes")]
    pub map_cache_bytes: usize,
    /// The I/O engine: `auto`, `uring` or `std`.
    pub engine: EngineKind,
    /// The most that a scrub reads in a second, in each directory. More is through sooner, and leaves less for everybody else.
    #[serde(deserialize_with = "scrub_bytes")]
    pub scrub_bytes_per_second: u64,
    /// Days in which everything stored is read and compared with its checksums once; 0 for never. Fewer find decay sooner
    /// and read more of the time.
    pub scrub_days: u32,
    /// Whether the volumes in a store that takes no writes any more are handed over to a replica of each, by themselves.
    pub hand_over_when_failed: bool,
}

impl Default for StoreSettings {
    fn default() -> StoreSettings {
        StoreSettings {
            directories: Vec::new(),
            segment_bytes: 64 << 20,
            capacity_bytes: None,
            map_cache_bytes: 64 << 20,
            engine: EngineKind::Auto,
            scrub_bytes_per_second: SCRUB_BYTES_PER_SECOND,
            scrub_days: 7,
            hand_over_when_failed: true,
        }
    }
}

impl StoreSettings {
    /// A shard in `directory` with these settings, one of `count`.
    #[must_use]
    pub fn shard(&self, directory: PathBuf, count: usize) -> ShardOptions {
        let log = LogSettings {
            segment_bytes: self.segment_bytes,
            capacity_bytes: self.capacity_bytes,
            ..LogSettings::default()
        };
        let days = Duration::from_secs(u64::from(self.scrub_days) * 24 * 3600);
        ShardOptions {
            log,
            map_cache_bytes: self.map_cache_bytes / count.max(1),
            engine: self.engine,
            scrub_bytes_per_second: self.scrub_bytes_per_second,
            scrub_period: (!days.is_zero()).then_some(days),
            ..ShardOptions::new(directory)
        }
    }
}

impl NodeConfig {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file and, where it can, the line.
    pub fn read(path: &Path) -> Result<NodeConfig, ConfigError> {
        let unreadable = |source| ConfigError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mut config: NodeConfig = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.check().map_err(|reason| ConfigError::Values { path: path.to_owned(), reason })?;
        let whole = std::path::absolute(path).map_err(unreadable)?;
        let base = whole.parent().unwrap_or(Path::new("/"));
        config.data = base.join(&config.data);
        config.nbd.unix = config.nbd.unix.map(|socket| base.join(socket));
        if let Some(tls) = &mut config.nbd.tls {
            let files = [&mut tls.certificate, &mut tls.key].into_iter().chain(&mut tls.client_authority);
            files.for_each(|file| *file = base.join(&*file));
        }
        let keys = config.keys.file.iter_mut().chain(&mut config.keys.directory);
        keys.for_each(|path| *path = base.join(&*path));
        config.store.directories.iter_mut().for_each(|directory| *directory = base.join(&*directory));
        Ok(config)
    }

    /// Where other nodes reach this one.
    #[must_use]
    pub fn advertised(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.listen)
    }

    /// The Unix socket for NBD.
    #[must_use]
    pub fn nbd_unix(&self) -> PathBuf {
        self.nbd.unix.clone().unwrap_or_else(|| self.data.join("nbd.sock"))
    }

    /// What concerns more than one value.
    fn check(&self) -> Result<(), String> {
        let advertised = self.advertised();
        if advertised.ip().is_unspecified() {
            return Err(format!(
                "listen = \"{}\" is every address of this machine: add advertise = \"IP:PORT\", where the other nodes reach it",
                self.listen
            ));
        }
        if advertised.port() == 0 {
            return Err(format!(
                "port 0 in {advertised} means any free port: the other nodes must know which; name one"
            ));
        }
        let KeySettings { file, directory, command } = &self.keys;
        if [file.is_some(), directory.is_some(), command.is_some()].into_iter().filter(|given| *given).count() > 1 {
            return Err("[keys] names several of file, directory and command: keep one".to_owned());
        }
        self.trace.check()?;
        let directories = &self.store.directories;
        let repeated = directories.iter().enumerate().find(|(at, directory)| directories[..*at].contains(directory));
        if let Some((_, directory)) = repeated {
            return Err(format!("[store] directories names {} twice", directory.display()));
        }
        let cache_least = MAP_CACHE_BYTES_MIN * directories.len() as u64;
        if (self.store.map_cache_bytes as u64) < cache_least {
            return Err(format!(
                "[store] map_cache_bytes = {} is less than 1MiB for each of {} directories: raise it",
                self.store.map_cache_bytes,
                directories.len()
            ));
        }
        let least = CAPACITY_SEGMENTS_MIN * self.store.segment_bytes;
        match self.store.capacity_bytes {
            Some(capacity) if capacity < least => Err(format!(
                "[store] capacity_bytes = {capacity} is less than {CAPACITY_SEGMENTS_MIN} segments ({least}): raise it, or lower segment_bytes"
            )),
            _ => Ok(()),
        }
    }
}

/// Reads a value from its text, telling what was expected.
struct Text<F>(&'static str, F);

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        self.1(text).map_err(E::custom)
    }

    /// A number of bytes needs no unit.
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.1(&number.to_string()).map_err(E::custom)
    }
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    const EXPECTED: &str = "an address IP:PORT, as in \"10.0.0.1:10810\" or \"[fd00::1]:10810\"";
    let parse = |text: &str| text.parse().map_err(|_| format!("{text:?} is not {EXPECTED}"));
    deserializer.deserialize_str(Text(EXPECTED, parse))
}

fn some_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer).map(Some)
}

fn tls_use<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TlsUse, D::Error> {
    deserializer.deserialize_str(Text(TlsUse::EXPECTED, TlsUse::parse))
}

fn loopback<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let found = address(deserializer)?;
    if found.ip().is_loopback() {
        return Ok(found);
    }
    Err(de::Error::custom(format!(
        "{found} can be reached from outside, where the admin API is served over TLS only (`remote = true`): expected a loopback address, as in \"127.0.0.1:10880\""
    )))
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Text("a size: bytes, or a text as in \"64MiB\"", size::parse))
}

fn some_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    bytes(deserializer).map(Some)
}

fn segment_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let found = bytes(deserializer)?;
    if (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&found) && found.is_multiple_of(u64::from(BLOCK_SIZE)) {
        return Ok(found);
    }
    Err(de::Error::custom(format!("{found} bytes are no segment size: expected a multiple of 4096 from 8MiB to 4GiB")))
}

fn scrub_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let found = bytes(deserializer)?;
    if found >= SCRUB_BYTES_MIN {
        return Ok(found);
    }
    Err(de::Error::custom(format!("{found} bytes a second are too few for a scrub: expected at least 64KiB")))
}

fn map_cache_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let found = bytes(deserializer)?;
    match usize::try_from(found) {
        Ok(cache) if found >= MAP_CACHE_BYTES_MIN => Ok(cache),
        _ => Err(de::Error::custom(format!("{found} bytes are too few for the map cache: expected at least 1MiB"))),
    }
}

#[cfg(test)]
mod tests;
