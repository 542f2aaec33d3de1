//! A Unix socket that wakes its thread for what has come, and for room to send only while something had to wait for that.
//!
//! tokio's own socket is registered for both at once. A Unix socket tells of room each time that the other end has read anything
//! (`unix_write_space` in Linux's net/unix/af_unix.c; TCP tells it only to who was out of room), so every request and every reply cost one
//! turn of epoll, at each end, in which there was nothing to do (measured 2026-11-26: 3.2 turns for a request of one block, where two
//! are needed).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// Linux (bits/socket.h, send(2)).
const MSG_NOSIGNAL: i32 = 0x4000;

/// A connected Unix socket.
#[derive(Debug)]
pub struct QuietStream {
    /// Registered for reading alone. It is no pipe, and that makes no difference: read(2) on a socket is recv(2) without flags.
    /// Nothing else of tokio's is registered like this and reads into memory that was not set to zeroes before.
    reads: pipe::Receiver,
    /// Registered as tokio does it, while the socket is full.
    writes: Option<UnixStream>,
}

impl QuietStream {
    /// Has the runtime that this is called in watch the socket.
    ///
    /// # Errors
    /// As the system says.
    pub fn from_std(stream: std::os::unix::net::UnixStream) -> io::Result<QuietStream> {
        stream.set_nonblocking(true)?;
        Ok(QuietStream { reads: pipe::Receiver::from_owned_fd_unchecked(stream.into())?, writes: None })
    }

    /// The socket, which no runtime watches any more.
    ///
    /// # Errors
    /// As the system says.
    pub fn into_std(self) -> io::Result<std::os::unix::net::UnixStream> {
        Ok(self.reads.into_nonblocking_fd()?.into())
    }

    /// Sends what the socket takes now of `slices`; without a signal when the other end is gone: writev(2) would end a C program that
    /// uses the client library by SIGPIPE, which Rust ignores in its own programs only.
    ///
    /// # Errors
    /// As the system says.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let send = || SockRef::from(&self.reads).send_vectored_with_flags(slices, MSG_NOSIGNAL);
        loop {
            let sent = match &self.writes {
                None => send(),
                Some(writes) => {
                    ready!(writes.poll_write_ready(cx))?;
                    writes.try_io(Interest::WRITABLE, send)
                }
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    self.writes = None;
                    return Poll::Ready(sent);
                }
            }
            if self.writes.is_none() {
                // Of another number, since the first one is registered already.
                let again = self.reads.as_fd().try_clone_to_owned()?;
                self.writes = Some(UnixStream::from_std(again.into())?);
            }
        }
    }
}

impl AsFd for QuietStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reads.as_fd()
    }
}

impl AsyncRead for QuietStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reads).poll_read(cx, buf)
    }
}

impl AsyncWrite for QuietStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.reads).shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (QuietStream, UnixStream) {
        let (one, other) = UnixStream::pair().expect("a pair");
        (QuietStream::from_std(one).expect("is watched"), other)
    }

    #[tokio::test]
    async fn what_does_not_fit_waits_for_room_and_comes_whole() {
        let (mut one, mut other) = pair();
        let bytes: Vec<u8> = (0..8 << 20).map(|at: u32| (at % 251) as u8).collect();
        for _ in 0..2 {
            let expected = bytes.clone();
            let reading = std::thread::spawn({
                let mut other = other.try_clone().expect("is another");
                move || {
                    let mut received = vec![0; expected.len()];
                    other.read_exact(&mut received).expect("comes");
                    assert!(received == expected, "in its order");
                }
            });
            one.write_all(&bytes).await.expect("is sent");
            reading.join().expect("all came");
            assert!(one.writes.is_none(), "nobody waits for room any more");
        }
        other.write_all(b"and back").expect("is sent");
        let mut received = [0; 8];
        one.read_exact(&mut received).await.expect("comes");
        assert_eq!(&received, b"and back");
    }

    #[tokio::test]
    async fn a_task_that_waits_for_room_is_woken_by_it_and_only_by_it() {
        let (mut one, mut other) = pair();
        let block = [7; 64 << 10];
        let slices = [IoSlice::new(&block)];
        let mut sent = 0;
        let waits = std::future::poll_fn(|cx| match one.poll_send(cx, &slices) {
            Poll::Ready(written) => {
                sent += written.expect("is sent");
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Ready(()),
        });
        waits.await;
        let mut room = Box::pin(std::future::poll_fn(|cx| one.poll_send(cx, &slices)));
        assert!(futures_util::poll!(&mut room).is_pending(), "it is full");
        let mut received = vec![0; sent];
        other.read_exact(&mut received).expect("comes");
        assert!(room.await.expect("is sent") > 0);
    }

    #[tokio::test]
    async fn its_ends_are_those_of_any_socket() {
        let (mut one, other) = pair();
        one.shutdown().await.expect("is shut");
        let mut rest = Vec::new();
        (&other).read_to_end(&mut rest).expect("ends");
        (&other).write_all(b"last").expect("is sent");
        drop(other);
        one.read_to_end(&mut rest).await.expect("ends");
        assert_eq!(rest, b"last");
        let broken = one.write_all(b"to nobody").await.expect_err("nobody is there");
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe, "an error, and no signal");
        // It can be watched by another runtime.
        let (one, mut other) = pair();
        let mut one = QuietStream::from_std(one.into_std().expect("leaves")).expect("arrives");
        other.write_all(b"!").expect("is sent");
        assert_eq!(one.read_u8().await.expect("comes"), b'!');
    }
}
