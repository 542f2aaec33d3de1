//! Accepting connections, so many at a time, for listeners that anybody may reach.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// How long accepting rests after it failed for want of something, such as file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Accepts connections for `what` and has each served with one of `places`, which is free again when its permit is dropped; further connections wait to be
/// accepted. Runs for ever; dropped, it ends all of them.
pub(super) async fn accept<S: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    what: &str,
    places: usize,
    serve: impl Fn(TcpStream, SocketAddr, OwnedSemaphorePermit) -> S,
) {
    let places = Arc::new(Semaphore::new(places));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, from) = loop {
            match listener.accept().await {
                Ok(accepted) => break accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for {what}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(stream, from, place));
    }
}
