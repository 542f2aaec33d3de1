//! The request loop over a pipe, in virtual time.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use super::*;
use crate::contexts::Contexts;
use crate::memory::MemoryExport;

/// Serves one connection of a disk in memory and returns how it ended.
async fn serve(mut stream: DuplexStream) -> Result<Stop, Broken> {
    let export = MemoryExport::new("disk", 64 << 20);
    let negotiated = Negotiated { info: export.info(), style: Style::Simple, contexts: Contexts::default() };
    let seconds = Duration::from_secs;
    let bounds = Bounds { requests: 4, bytes: 1 << 20, stall: seconds(60), drain: seconds(10) };
    let talk = Talk { session: &export, negotiated: &negotiated, peer: "test" };
    Transmission::new(&mut stream, talk, Rest::default(), bounds, &Closing::default(), None).run().await
}

fn write(length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = RequestHeader { flags: 0, command: CMD_WRITE, cookie: 7, offset: 0, length };
    header.encode(Style::Simple, &mut bytes);
    bytes.resize(bytes.len() + length as usize, 1);
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_request_may_come_slowly_but_not_stop_half_way() {
    // In a header, in a payload of the read buffer, in one of its own, in one that is skipped.
    for (length, whole) in [(4096, 10), (4096, 2000), (1 << 20, 500_000), (33 << 20, 100_000)] {
        let (mut near, far) = tokio::io::duplex(1 << 10);
        let client = async move {
            tokio::time::sleep(Duration::from_secs(1 << 20)).await;
            let request = write(4096);
            // Longer in all than the patience, and never for longer without anything.
            for piece in request.chunks(1000) {
                near.write_all(piece).await.expect("the connection is there");
                tokio::time::sleep(Duration::from_secs(50)).await;
            }
            near.read_exact(&mut [0; 16]).await.expect("is answered");
            near.write_all(&write(length)[..whole]).await.expect("the connection is there");
            let since = Instant::now();
            assert_eq!(near.read(&mut [0]).await.expect("is closed"), 0);
            since.elapsed().as_secs()
        };
        let (held, end) = tokio::join!(client, serve(far));
        assert!(matches!(end, Ok(Stop::Ended(End::Stalled))), "{length} {whole}: {end:?}");
        assert!((59..=121).contains(&held), "{length} {whole}: closed after {held} seconds");
    }
}
