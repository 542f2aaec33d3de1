//! Serves one export from memory until it is told to stop (SIGINT): for trying out clients and measuring the server alone.
//!
//! `cargo run --example memory_server -- SOCKET [SIZE_BYTES]`, then `nbdinfo 'nbd+unix:///disk?socket=SOCKET'`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use nbd_frontend::{MemoryDirectory, MemoryExport, Server, ServerOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let unix = PathBuf::from(arguments.next().context("usage: memory_server SOCKET [SIZE_BYTES]")?);
    let size = arguments.next().map_or(Ok(1 << 30), |size| size.parse()).context("SIZE_BYTES is not a number")?;
    let directory = MemoryDirectory::new(vec![Arc::new(MemoryExport::new("disk", size))]);
    let options = ServerOptions { unix: Some(unix), tcp: Some(([127, 0, 0, 1], 0).into()), ..ServerOptions::default() };
    let server = Server::bind(options, Arc::new(directory)).await?;
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
