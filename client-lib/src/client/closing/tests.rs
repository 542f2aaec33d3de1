//! Volumes that are closed and dropped over an owner that holds writes, loses answers, restarts or is out of reach.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;

use super::super::stub::{Answer, cluster_in_time, no_reply};
use super::super::{OpenOptions, Volume, VolumeStatus};
use crate::error::ErrorKind;
use crate::rights::Right;
use crate::transport::TransportError;
use crate::types::{Epoch, Lsn, NodeId, VolumeId};
use crate::wire::client::{Attached, ClientReply, ClientRequest, Opened, Tenure};

/// Long enough for anything that is going to be sent, on a clock that stands still while something runs.
const LONG: Duration = Duration::from_secs(300);
/// Shorter than the deadline of a call.
const SHORT: Duration = Duration::from_secs(10);

/// What becomes of writes.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Written,
    /// No answer comes.
    Lost,
    /// The answer comes when it is decided.
    Held,
}

/// The owner of a volume.
#[derive(Clone)]
struct Owner {
    fate: watch::Sender<Fate>,
    incarnation: watch::Sender<u64>,
    is_down: watch::Sender<bool>,
    /// The writes and flushes that came to it.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Owner {
    fn new(fate: Fate) -> Owner {
        let (fate, incarnation, is_down) = (watch::Sender::new(fate), watch::Sender::new(1), watch::Sender::new(false));
        Owner { fate, incarnation, is_down, asked: Arc::default() }
    }

    /// Before it is found: what is written then is sent by the session's keeper, with what a new owner lacks.
    async fn open_unfound(&self) -> Volume {
        let owner = self.clone();
        let cluster = cluster_in_time(move |request| owner.clone().answer(request));
        cluster.open("disk", OpenOptions::default()).await.expect("opens")
    }

    async fn open(&self) -> Volume {
        let volume = self.open_unfound().await;
        let mut states = volume.subscribe();
        states.wait_for(|state| state.status == VolumeStatus::Connected).await.expect("the volume is there");
        volume
    }

    fn tenure(&self) -> Tenure {
        Tenure { epoch: Epoch(3), incarnation: *self.incarnation.borrow() }
    }

    /// What was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().expect("no panic"))
    }

    async fn answer(self, request: ClientRequest) -> Answer {
        if *self.is_down.borrow() {
            return Err(TransportError::Unreachable { node: NodeId(1), reason: "it is down".to_owned() });
        }
        let (here, size) = (self.tenure(), 1 << 20);
        let what = match request {
            ClientRequest::OpenFor { .. } => {
                let opened = Opened { volume: VolumeId(9), snapshot: None, size, session: 1, epoch: here.epoch };
                return Ok(ClientReply::OpenedFor { opened, right: Right::Write, keys: None });
            }
            ClientRequest::Attach { .. } => {
                return Ok(ClientReply::Attached(Attached {
                    tenure: here,
                    owner: NodeId(1),
                    size,
                    head: Lsn::ZERO,
                    forks: Vec::new(),
                    claimed: Epoch(0),
                    // What was not flushed is gone with each restart.
                    done: Vec::new(),
                }));
            }
            ClientRequest::Write { tenure, .. }
            | ClientRequest::Zero { tenure, .. }
            | ClientRequest::Flush { tenure, .. }
                if tenure != here =>
            {
                return Ok(ClientReply::Moved(here));
            }
            ClientRequest::Write { id, offset, .. } => format!("write {offset} in generation {}", id.generation),
            ClientRequest::Zero { id, length: 0, .. } => format!("nothing in generation {}", id.generation),
            ClientRequest::Flush { .. } => "flush".to_owned(),
            ClientRequest::Members => return Ok(ClientReply::Members(Vec::new())),
            other => panic!("not asked here: {other:?}"),
        };
        let (is_flush, is_write) = (what == "flush", what.starts_with("write"));
        self.asked.lock().expect("no panic").push(what);
        if is_flush {
            return Ok(ClientReply::Flushed(true));
        }
        let mut fate = self.fate.subscribe();
        let fate = *fate.wait_for(|fate| !is_write || *fate != Fate::Held).await.expect("we have the sender");
        match fate {
            Fate::Lost if is_write => Err(no_reply()),
            _ => Ok(ClientReply::Written { lsn: Lsn::new(here.epoch, 1), durable: false }),
        }
    }
}

/// Begins a write, which nobody waits for any more.
async fn leave_a_write(volume: &Volume, offset: u64) {
    let written = timeout(SHORT, volume.write(offset, Bytes::from(vec![1; 512]))).await;
    assert!(written.is_err(), "is not acked");
}

/// The machine behind an NBD connection died, and left a write that the owner did not answer. It went on being sent after the volume was
/// dropped, and once came over a write of the machine's successor.
#[tokio::test(start_paused = true)]
async fn a_write_that_is_not_acked_is_not_sent_again_once_its_volume_is_dropped() {
    let owner = Owner::new(Fate::Lost);
    let volume = owner.open().await;
    leave_a_write(&volume, 0).await;
    assert!(owner.asked().len() > 1, "is tried again while the volume is open");
    drop(volume);
    tokio::time::sleep(LONG).await;
    assert_eq!(owner.asked().len(), 0);
}

/// A volume with a write that nobody waits for any more, which its own task sends, or the keeper.
async fn left_behind(owner: &Owner, is_found: bool) -> Volume {
    let volume = if is_found { owner.open().await } else { owner.open_unfound().await };
    leave_a_write(&volume, 0).await;
    assert_eq!(owner.asked(), ["write 0 in generation 0"]);
    volume
}

/// The same with a volume that was closed, which was no better: it was flushed, and nobody looked at what was under way.
#[tokio::test(start_paused = true)]
async fn closing_waits_for_the_attempt_that_is_on_its_way_and_for_what_the_owner_may_have_of_it() {
    for is_found in [true, false] {
        let owner = Owner::new(Fate::Held);
        let volume = left_behind(&owner, is_found).await;
        let mut closing = pin!(volume.close());
        assert!(timeout(SHORT, &mut closing).await.is_err(), "it may still be carried out");
        owner.fate.send_replace(Fate::Lost);
        timeout(LONG, closing).await.expect("ends").expect("is closed");
        // Behind that the owner refuses what comes late.
        assert_eq!(owner.asked(), ["nothing in generation 1"]);
        tokio::time::sleep(LONG).await;
        assert_eq!(owner.asked(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_acked_while_a_volume_is_closed_is_made_durable() {
    for is_found in [true, false] {
        let owner = Owner::new(Fate::Held);
        let volume = left_behind(&owner, is_found).await;
        let mut closing = pin!(volume.close());
        assert!(timeout(SHORT, &mut closing).await.is_err(), "it may still be carried out");
        owner.fate.send_replace(Fate::Written);
        timeout(LONG, closing).await.expect("ends").expect("is closed");
        assert_eq!(owner.asked(), ["flush"]);
    }
}

#[tokio::test(start_paused = true)]
async fn closing_sends_again_what_was_acked_and_lost_and_nothing_else() {
    let owner = Owner::new(Fate::Written);
    let volume = owner.open().await;
    volume.write(0, Bytes::from(vec![1; 512])).await.expect("is written");
    owner.fate.send_replace(Fate::Lost);
    leave_a_write(&volume, 512).await;
    owner.asked();
    owner.fate.send_replace(Fate::Written);
    owner.incarnation.send_replace(2);
    timeout(LONG, volume.close()).await.expect("ends").expect("is closed");
    let asked = owner.asked();
    assert!(matches!(&asked[..], [write, flush] if write.starts_with("write 0 ") && flush == "flush"), "{asked:?}");
    tokio::time::sleep(LONG).await;
    assert_eq!(owner.asked(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn closing_ends_in_time_while_nobody_answers_and_says_so() {
    for fate in [Fate::Written, Fate::Lost] {
        let owner = Owner::new(fate);
        let volume = owner.open().await;
        if fate == Fate::Written {
            volume.write(0, Bytes::from(vec![1; 512])).await.expect("is written");
        } else {
            leave_a_write(&volume, 0).await;
        }
        owner.is_down.send_replace(true);
        let closed = timeout(LONG, volume.close_within(SHORT)).await.expect("ends in time");
        assert_eq!(
            closed.expect_err("nobody said that it is durable, or not under way").kind(),
            ErrorKind::Unavailable
        );
        owner.asked();
        owner.is_down.send_replace(false);
        owner.incarnation.send_replace(2);
        tokio::time::sleep(LONG).await;
        assert_eq!(owner.asked(), [""; 0], "what was not flushed is not sent again either");
    }
}

/// Nobody has to be asked, who may not answer.
#[tokio::test(start_paused = true)]
async fn closing_what_has_nothing_to_flush_waits_for_nobody() {
    let owner = Owner::new(Fate::Written);
    let volume = owner.open().await;
    volume.write(0, Bytes::from(vec![1; 512])).await.expect("is written");
    volume.flush().await.expect("is durable");
    owner.is_down.send_replace(true);
    timeout(SHORT, volume.close()).await.expect("does not wait").expect("is closed");
}

/// A process that passed its volume on to another one flushed it, and went on sending what a connection had left behind.
#[tokio::test(start_paused = true)]
async fn a_volume_is_settled_when_nothing_that_was_begun_is_on_its_way() {
    let owner = Owner::new(Fate::Held);
    let volume = left_behind(&owner, true).await;
    let mut settling = pin!(volume.settle());
    assert!(timeout(SHORT, &mut settling).await.is_err(), "it may still be carried out");
    owner.fate.send_replace(Fate::Written);
    timeout(LONG, settling).await.expect("ends").expect("is settled");
    assert_eq!(owner.asked(), ["flush"]);
}
