//! The command line of `helio-nbd`. In the library, so that the commands of the documentation can be held against it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser};

use crate::service::keys::KeyArguments;
use crate::service::log::LogFormat;
use crate::tls::{TlsMode, TlsOptions};

/// The smallest journal: one write of the largest size fits.
const JOURNAL_MIB_MIN: u64 = 32;

/// Serve volumes of a Heliotrope cluster over NBD, on a host that runs no node.
///
/// A node may be killed and started again, a volume may be handed over or taken over: clients see latency, and no error.
#[derive(Debug, Parser)]
#[command(
    name = "helio-nbd",
    version,
    max_term_width = 100,
    after_help = "Example:\n  helio cluster client host-7 --out host-7.helio      # at the node that began the cluster\n  helio-nbd --cluster host-7.helio --socket /run/helio/nbd.sock --export disk\n  nbdinfo 'nbd+unix:///disk?socket=/run/helio/nbd.sock'\n  helio-nbd --cluster host-7.helio --socket /run/helio/nbd.sock --export disk --replace     # after an upgrade"
)]
pub struct HelioNbd {
    #[command(flatten)]
    pub way: Way,
    /// Listen on this Unix socket; who may use the disks is said by its permissions and its directory's. A socket that systemd
    /// passes needs no option (docs/systemd.md)
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Listen on this TCP address; whoever reaches it may use the disks
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Take over from the helio-nbd that serves there now, with its connections: its clients see a pause, and no reconnect.
    /// Give it the same options. When none serves there, start as usual
    #[arg(long)]
    pub replace: bool,
    /// Where a newer process may take over [default: the path of --socket with .control behind it]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Export this volume or snapshot (VOLUME@SNAPSHOT); may be given several times [default: all of the cluster]
    #[arg(long = "export", value_name = "NAME")]
    pub exports: Vec<String>,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// Memory per volume for writes that are not durable yet, in MiB; at half of it the volume is flushed
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(JOURNAL_MIB_MIN..=4096))]
    pub journal: u64,
    #[command(flatten)]
    pub keys: KeyArguments,
    /// With a key, serve volumes that are not encrypted, too. Without this they are refused: whoever has the nodes could say so of one that
    /// is, and be sent its data in the clear
    #[arg(long, requires = "key_source")]
    pub allow_plain: bool,
    #[command(flatten)]
    pub tls: Tls,
    /// What to log to standard error: error, warn, info, debug, or a tracing filter
    #[arg(long, env = "HELIO_LOG", value_name = "FILTER", default_value = "info,quinn=warn")]
    pub log: String,
    /// How to log: a line for people, or a JSON object on a line
    #[arg(long, env = "HELIO_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How the cluster is reached.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Way {
    /// Reach it over the network, with credentials that `helio cluster client` wrote
    #[arg(long, env = "HELIO_CREDENTIALS", value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// Reach it through the node on this machine, by its data directory or by client.sock in it
    #[arg(long, value_name = "PATH")]
    pub node: Option<PathBuf>,
}

/// TLS for NBD, as docs/nbd-tls.md has it.
#[derive(Debug, Args)]
pub struct Tls {
    /// The server's certificate and those between it and its authority, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// The key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Certificates of authorities, in PEM: clients must have a certificate that one of them has signed
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_client_authority: Option<PathBuf>,
    /// Let clients over TCP go without TLS
    #[arg(long, requires = "tls_certificate")]
    pub tls_optional: bool,
}

impl Tls {
    /// What the server is told, if it is to have TLS.
    #[must_use]
    pub fn options(self) -> Option<TlsOptions> {
        let mode = if self.tls_optional { TlsMode::Optional } else { TlsMode::Required };
        let (certificate, key) = (self.tls_certificate?, self.tls_key?);
        Some(TlsOptions { mode, certificate, key, client_authority: self.tls_client_authority })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        HelioNbd::command().debug_assert();
        let parsed = HelioNbd::try_parse_from([
            "helio-nbd",
            "--cluster",
            "f",
            "--socket",
            "s",
            "--export",
            "a",
            "--export",
            "b",
        ]);
        assert_eq!(parsed.expect("parses").exports, ["a", "b"]);
        assert!(HelioNbd::try_parse_from(["helio-nbd", "--cluster", "f", "--tls-key", "k"]).is_err(), "half of TLS");
        assert!(HelioNbd::try_parse_from(["helio-nbd", "--cluster", "f", "--node", "s"]).is_err(), "two ways");
        assert!(HelioNbd::try_parse_from(["helio-nbd", "--cluster", "f", "--journal", "1"]).is_err(), "too small");
        let keys = ["helio-nbd", "--cluster", "f", "--key-file", "k"];
        let plain = HelioNbd::try_parse_from(keys.into_iter().chain(["--allow-plain"])).expect("parses");
        assert!(plain.keys.source().is_some());
        assert!(HelioNbd::try_parse_from(keys.into_iter().chain(["--key-dir", "d"])).is_err(), "two places of keys");
        assert!(HelioNbd::try_parse_from(["helio-nbd", "--cluster", "f", "--allow-plain"]).is_err(), "of no key");
    }
}
