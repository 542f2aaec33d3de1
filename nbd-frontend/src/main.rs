//! `helio-nbd`: an NBD server for a host without a node, whose disks outlive the nodes behind them (docs/helio-nbd.md).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use clap::{Args, Parser};
use client_lib::client::{Cluster, OpenOptions};
use nbd_frontend::remote::RemoteDirectory;
use nbd_frontend::service::keys::KeyArguments;
use nbd_frontend::service::log::{self, LogFormat};
use nbd_frontend::service::notify;
use nbd_frontend::service::stop::Stop;
use nbd_frontend::{PassedSockets, Server, ServerOptions, TlsMode, TlsOptions};
use tokio::runtime::Handle;

/// The smallest journal: one write of the largest size fits.
const JOURNAL_MIB_MIN: u64 = 32;

/// Threads that serve volumes, at most: half of the cores, since clients need the others.
const THREADS_MAX: usize = 4;

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
struct HelioNbd {
    #[command(flatten)]
    way: Way,
    /// Listen on this Unix socket; who may use the disks is said by its permissions and its directory's. A socket that systemd
    /// passes needs no option (docs/systemd.md)
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Listen on this TCP address; whoever reaches it may use the disks
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Take over from the helio-nbd that serves there now, with its connections: its clients see a pause, and no reconnect.
    /// Give it the same options. When none serves there, start as usual
    #[arg(long)]
    replace: bool,
    /// Where a newer process may take over [default: the path of --socket with .control behind it]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Export this volume or snapshot (VOLUME@SNAPSHOT); may be given several times [default: all of the cluster]
    #[arg(long = "export", value_name = "NAME")]
    exports: Vec<String>,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Memory per volume for writes that are not durable yet, in MiB; at half of it the volume is flushed
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(JOURNAL_MIB_MIN..=4096))]
    journal: u64,
    #[command(flatten)]
    keys: KeyArguments,
    /// With a key, serve volumes that are not encrypted, too. Without this they are refused: whoever has the nodes could say so of one that
    /// is, and be sent its data in the clear
    #[arg(long, requires = "key_source")]
    allow_plain: bool,
    #[command(flatten)]
    tls: Tls,
    /// What to log to standard error: error, warn, info, debug, or a tracing filter
    #[arg(long, env = "HELIO_LOG", value_name = "FILTER", default_value = "info,quinn=warn")]
    log: String,
    /// How to log: a line for people, or a JSON object on a line
    #[arg(long, env = "HELIO_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// How the cluster is reached.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Way {
    /// Reach it over the network, with credentials that `helio cluster client` wrote
    #[arg(long, env = "HELIO_CREDENTIALS", value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// Reach it through the node on this machine: client.sock in its data directory
    #[arg(long, value_name = "PATH")]
    node: Option<PathBuf>,
}

/// TLS for NBD, as docs/nbd-tls.md has it.
#[derive(Debug, Args)]
struct Tls {
    /// The server's certificate and those between it and its authority, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Certificates of authorities, in PEM: clients must have a certificate that one of them has signed
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_client_authority: Option<PathBuf>,
    /// Let clients over TCP go without TLS
    #[arg(long, requires = "tls_certificate")]
    tls_optional: bool,
}

impl Tls {
    fn options(self) -> Option<TlsOptions> {
        let mode = if self.tls_optional { TlsMode::Optional } else { TlsMode::Required };
        let (certificate, key) = (self.tls_certificate?, self.tls_key?);
        Some(TlsOptions { mode, certificate, key, client_authority: self.tls_client_authority })
    }
}

fn main() -> ExitCode {
    let arguments = HelioNbd::parse();
    if let Err(error) = log::begin(&arguments.log, arguments.log_format) {
        eprintln!("helio-nbd: {error}");
        return ExitCode::from(2);
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("helio-nbd: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(arguments: HelioNbd) -> anyhow::Result<()> {
    // Before there are other threads.
    let passed = PassedSockets::take()?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(arguments, passed))
}

async fn serve(arguments: HelioNbd, passed: PassedSockets) -> anyhow::Result<()> {
    let HelioNbd { way, socket, listen, control, replace, exports, read_only, journal, keys, allow_plain, tls, .. } =
        arguments;
    if socket.is_none() && listen.is_none() && passed.is_empty() {
        bail!(
            "there is nothing to listen on: use --socket PATH or --listen ADDR, or start it from a systemd .socket unit"
        );
    }
    let control = control.or_else(|| socket.as_deref().map(control_beside));
    if replace && control.is_none() {
        bail!("where is the process to be replaced? use --control PATH, as it has");
    }
    let threads = threads()?;
    let clusters = threads.iter().map(|thread| reached(&way, thread)).collect::<Result<Vec<_>, _>>()?;
    let options = OpenOptions {
        is_read_only: read_only,
        journal_bytes: journal << 20,
        keys: keys.source(),
        allows_plain: allow_plain,
        ..OpenOptions::default()
    };
    let names = (!exports.is_empty()).then_some(exports);
    let directory = Arc::new(RemoteDirectory::new(clusters.clone(), names, options));
    let mut stopped = pin!(Stop::new()?.requested());
    let server_options = ServerOptions {
        tcp: listen,
        unix: socket,
        passed: Arc::new(passed),
        control,
        tls: tls.options(),
        ..ServerOptions::default()
    };
    let (server, how) = match start(server_options, directory.clone(), replace).await? {
        (server, true) => (server, ", taken over"),
        (server, false) => (server, ""),
    };
    let ready = format!("NBD on {}{how}", server.places());
    println!("ready: {ready}");
    notify::ready(&ready);
    notify::watch(threads.into_iter().chain(server.threads()).collect());

    tokio::select! {
        biased;
        () = &mut stopped => {
            tracing::info!("stopping");
            notify::stopping();
            server.shutdown().await;
        }
        () = server.replaced() => {
            let staying = server.staying();
            if staying > 0 {
                tracing::info!(staying, "another process serves; connections with TLS stay here until they end");
                notify::status(&format!("replaced; {staying} connections with TLS stay until they end"));
            }
            server.drained(stopped).await;
        }
    }
    directory.closed().await;
    for cluster in clusters {
        cluster.close().await;
    }
    Ok(())
}

/// Starts the threads that serve volumes, each with a runtime, and leaves them running.
fn threads() -> std::io::Result<Vec<Handle>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let start = |number| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let name = format!("volumes-{number}");
        std::thread::Builder::new().name(name).spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(handle)
    };
    (0..(cores / 2).clamp(1, THREADS_MAX)).map(start).collect()
}

/// The cluster, for who lives on `thread`.
fn reached(way: &Way, thread: &Handle) -> anyhow::Result<Cluster> {
    let _entered = thread.enter();
    match (&way.cluster, &way.node) {
        (Some(credentials), _) => Ok(Cluster::from_credentials(credentials)?),
        (None, Some(socket)) => Ok(Cluster::from_socket(socket)),
        (None, None) => bail!("which cluster? use --cluster FILE or --node PATH"),
    }
}

/// A server, and whether it took over from another process.
async fn start(
    options: ServerOptions,
    directory: Arc<RemoteDirectory>,
    replace: bool,
) -> Result<(Server, bool), client_lib::Error> {
    if replace {
        if let Some(server) = Server::replace(options.clone(), directory.clone()).await? {
            return Ok((server, true));
        }
        tracing::info!("there is no process to take over from");
    }
    Ok((Server::bind(options, directory).await?, false))
}

/// Where a newer process takes over, unless told otherwise.
fn control_beside(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".control");
    path.into()
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
        assert!(
            HelioNbd::try_parse_from(keys.into_iter().chain(["--allow-plain"]))
                .expect("parses")
                .keys
                .source()
                .is_some()
        );
        assert!(HelioNbd::try_parse_from(keys.into_iter().chain(["--key-dir", "d"])).is_err(), "two places of keys");
        assert!(HelioNbd::try_parse_from(["helio-nbd", "--cluster", "f", "--allow-plain"]).is_err(), "of no key");
    }
}
