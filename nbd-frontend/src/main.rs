//! `helio-nbd`: an NBD server for a host without a node, whose disks outlive the nodes behind them (docs/helio-nbd.md).

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Parser;
use client_lib::client::{Cluster, OpenOptions};
use client_lib::error::whole;
use nbd_frontend::arguments::{HelioNbd, Way};
use nbd_frontend::remote::RemoteDirectory;
use nbd_frontend::service::limits::raise_open_files;
use nbd_frontend::service::log;
use nbd_frontend::service::notify;
use nbd_frontend::service::stop::Stop;
use nbd_frontend::{PassedSockets, Server, ServerOptions};
use tokio::runtime::Handle;

/// Threads that serve volumes, at most: half of the cores, since clients need the others.
const THREADS_MAX: usize = 4;
/// How long it is until exports that could not be served are tried again.
const TRIAL_PERIOD: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments = HelioNbd::parse();
    if let Err(error) = log::begin(&arguments.log, arguments.log_format) {
        log::complain(format_args!("helio-nbd: {error}"));
        return ExitCode::from(2);
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::complain(format_args!("helio-nbd: {}", whole(error.as_ref())));
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
    raise_open_files();
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
    let started = tokio::select! {
        biased;
        // Whoever stops it while it takes over wants things to stay as they are: what it has asked for is given up, and the other process goes on.
        () = &mut stopped => None,
        started = start(server_options, directory.clone(), replace) => Some(started?),
    };
    let Some((server, is_successor)) = started else {
        tracing::info!("stopped before it served");
        return end(&directory, clusters).await;
    };
    let how = if is_successor { ", taken over" } else { "" };
    let ready = format!("NBD on {}{how}", server.places());
    log::say(format_args!("ready: {ready}"));
    notify::ready(&ready);
    let trial = tokio::spawn(try_exports(directory.clone(), ready));
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
    trial.abort();
    end(&directory, clusters).await
}

/// Closes what is open of the clusters.
async fn end(directory: &RemoteDirectory, clusters: Vec<Cluster>) -> anyhow::Result<()> {
    directory.closed().await;
    for cluster in clusters {
        cluster.close().await;
    }
    Ok(())
}

/// Tells what stands in the way of serving, as long as anything does: clients may come much later, and learn little of it. Serving does
/// not wait for it, since a host may start before its nodes.
async fn try_exports(directory: Arc<RemoteDirectory>, ready: String) {
    let mut told = Vec::new();
    loop {
        let hindrances = directory.hindrances().await;
        hindrances.iter().filter(|hindrance| !told.contains(*hindrance)).for_each(|hindrance| {
            tracing::warn!("cannot serve yet, and tries again: {hindrance}");
        });
        match hindrances.first() {
            Some(first) => notify::status(&format!("{ready}; cannot serve: {first}")),
            None if told.is_empty() => return,
            None => {
                tracing::info!("all exports can be served");
                return notify::status(&ready);
            }
        }
        told = hindrances;
        tokio::time::sleep(TRIAL_PERIOD).await;
    }
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
