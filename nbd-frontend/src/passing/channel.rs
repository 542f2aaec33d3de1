//! Frames and descriptors over a Unix socket (unix(7), `SCM_RIGHTS`).
//!
//! The descriptors of a frame go with its first byte; a header is read by itself, so that they cannot be taken for another
//! frame's. What is said is for `message`, and when for `predecessor` and `successor`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::message::{DESCRIPTORS_MAX, HEADER_LEN, Header, Message};
use crate::proto::Malformed;

/// What is read at once of a body: what is announced and does not come costs no memory.
const PIECE_LEN: usize = 1 << 20;

/// Why nothing was said or heard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error("the other process has gone")]
    Ended,
    #[error("the other process does not answer")]
    TimedOut,
    #[error("the other process says what is not understood: {0}")]
    Malformed(#[from] Malformed),
    #[error("the control socket: {0}")]
    Socket(#[from] io::Error),
}

/// One end.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Channel {
        Channel { stream }
    }

    /// Sends one frame, whole.
    pub(crate) async fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        assert_eq!(message.descriptors(), descriptors.len(), "a frame and its descriptors");
        let bytes = message.encode()?;
        let mut sent = 0;
        while sent < bytes.len() {
            let with = if sent == 0 { descriptors } else { &[] };
            let send = || send_some(self.stream.as_fd(), &bytes[sent..], with);
            sent += self.stream.async_io(Interest::WRITABLE, send).await.map_err(gone)?;
        }
        Ok(())
    }

    /// The same within `patience`; given up, the conversation is over, since a part may have gone.
    pub(crate) async fn send_within(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<(), ChannelError> {
        tokio::time::timeout(patience, self.send(message, descriptors)).await.unwrap_or(Err(ChannelError::TimedOut))
    }

    /// Sends what fits into the socket at once, for who cannot wait. Whether it did.
    pub(crate) fn try_send(&self, message: &Message) -> bool {
        let Ok(bytes) = message.encode() else { return false };
        send_some(self.stream.as_fd(), &bytes, &[]).is_ok_and(|sent| sent == bytes.len())
    }

    /// Receives one frame. Not cancel-safe: what is given up has to be the end of the conversation.
    pub(crate) async fn receive(&self) -> Result<(Message, Vec<OwnedFd>), ChannelError> {
        let mut descriptors = Vec::new();
        let mut head = [0; HEADER_LEN];
        self.fill(&mut head, &mut descriptors).await?;
        let header = Header::decode(&head)?;
        let mut body = Vec::new();
        while body.len() < header.body_len() {
            let at = body.len();
            body.resize((at + PIECE_LEN).min(header.body_len()), 0);
            self.fill(&mut body[at..], &mut descriptors).await?;
        }
        if descriptors.len() != header.descriptors() {
            return Err(Malformed("a frame whose sockets did not come").into());
        }
        Ok((Message::decode(header, &body)?, descriptors))
    }

    /// The same within `patience`.
    pub(crate) async fn receive_within(&self, patience: Duration) -> Result<(Message, Vec<OwnedFd>), ChannelError> {
        tokio::time::timeout(patience, self.receive()).await.unwrap_or(Err(ChannelError::TimedOut))
    }

    async fn fill(&self, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<(), ChannelError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let receive = || receive_some(self.stream.as_fd(), &mut bytes[filled..], descriptors);
            match self.stream.async_io(Interest::READABLE, receive).await.map_err(gone)? {
                0 => return Err(ChannelError::Ended),
                received => filled += received,
            }
        }
        Ok(())
    }
}

/// An end that closed with something unread looks otherwise than one that closed.
fn gone(error: io::Error) -> ChannelError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ChannelError::Ended,
        _ => ChannelError::Socket(error),
    }
}

fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many sockets for one frame"));
    }
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

fn receive_some(socket: BorrowedFd<'_>, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::message::{Hello, Holder, Sockets};
    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().expect("a pair");
        (Channel::new(one), Channel::new(other))
    }

    #[tokio::test]
    async fn descriptors_come_with_the_frame_that_they_belong_to() {
        let (one, other) = pair();
        let pipes: Vec<_> = (0..3).map(|_| std::io::pipe().expect("a pipe")).collect();
        let sockets = Sockets { unix: true, tcp: true, sessions: 1, connections: 2, staying: 3 };
        let none = Sockets { unix: false, tcp: false, ..sockets };
        let fds: Vec<_> = pipes.iter().map(|(_, writer)| writer.as_fd()).collect();
        one.send(&Message::Sockets(sockets), &fds).await.expect("is sent");
        one.send(&Message::Sockets(none), &fds[..1]).await.expect("is sent");
        one.send(&Message::Ready, &[]).await.expect("is sent");
        let (message, received) = other.receive().await.expect("comes");
        assert_eq!((message, received.len()), (Message::Sockets(sockets), 3));
        for (number, fd) in received.into_iter().enumerate() {
            std::fs::File::from(fd).write_all(&[number as u8]).expect("is written");
            let mut byte = [9];
            let mut reader = &pipes[number].0;
            reader.read_exact(&mut byte).expect("is read");
            assert_eq!(usize::from(byte[0]), number, "in their order");
        }
        let (message, received) = other.receive().await.expect("comes");
        assert_eq!((message, received.len()), (Message::Sockets(none), 1));
        assert_eq!(other.receive().await.expect("comes").0, Message::Ready);
        drop(one);
        assert!(matches!(other.receive().await, Err(ChannelError::Ended)));
    }

    #[tokio::test]
    async fn large_frames_come_whole_and_wrong_ones_are_refused() {
        let (one, other) = pair();
        let large = Message::Session(vec![7; 5 << 20]);
        let (sent, received) = tokio::join!(one.send(&large, &[]), other.receive());
        sent.expect("is sent");
        assert!(received.expect("comes").0 == large);
        let hello = Hello {
            oldest: 1,
            newest: 1,
            program: "p".to_owned(),
            unix: None,
            tcp: None,
            tls: 0,
            passed: Holder::default(),
        };
        let mut bytes = Message::Hello(hello).encode().expect("is small");
        bytes[0] ^= 1;
        one.stream.try_write(&bytes).expect("is sent");
        assert!(matches!(other.receive().await, Err(ChannelError::Malformed(_))));
        // A header that announces sockets which do not come.
        let (one, other) = pair();
        let mut bytes = Message::Go.encode().expect("is small");
        bytes[7] = 1;
        one.stream.try_write(&bytes).expect("is sent");
        assert!(matches!(other.receive().await, Err(ChannelError::Malformed(_))));
    }
}
