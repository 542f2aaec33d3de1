//! What is asked of the metadata and of the other node, what comes of it there, and what the answers change.

use std::time::Duration;

use client_lib::{Epoch, Error, ErrorKind, NodeId};
use consensus::{Command, Ended, Refusal, Response};
use storage_node::ownership::handover;
use storage_node::ownership::lease::{self, Keeper, Terms};
use storage_node::ownership::takeover;

use super::process::{encoded, extended, thaw};
use super::{Protocol, is_about};
use crate::Bug;
use crate::world::{Answer, Ask, LEASE, Message, Meta, Process, VOLUME, World, Write, end, id};

impl Protocol {
    pub(super) fn ask(&self, world: &mut World, node: usize, ask: Ask) {
        let process = &world.nodes[node];
        let (life, encloses) = match ask {
            Ask::Transfer { .. } => (process.life, self.encloses),
            Ask::Rescue { .. } => (process.life, !self.has(Bug::RescueToldBefore)),
            _ => (process.life, false),
        };
        let mut enclosed = encloses.then(|| process.writes.clone());
        if self.has(Bug::RescueOfDurable) && matches!(ask, Ask::Rescue { .. }) {
            enclosed = process.stored.clone().or(enclosed);
        }
        world.send(Message::Ask { node, life, ask, enclosed });
    }

    pub(super) fn arrive(&self, world: &mut World, message: Message) -> Result<(), String> {
        match message {
            Message::Ask { node, life, ask, enclosed } => {
                let answer = self.commit(&mut world.meta, node, ask, enclosed);
                world.send(Message::Answer { node, life, ask, answer });
            }
            Message::Answer { node, life, ask, answer } => {
                let process = &world.nodes[node];
                if process.up && process.life == life {
                    self.answered(world, node, ask, answer);
                }
            }
            Message::Delta { from, epoch, writes } => {
                let node = 1 - from;
                if self.admits(&world.nodes[node], from, epoch) {
                    let process = &mut world.nodes[node];
                    process.writes = extended(&process.writes, &writes)?;
                    process.known = extended(&process.writes, &process.known)?;
                    let count = process.writes.len();
                    world.send(Message::Applied { to: from, epoch, count });
                }
            }
            Message::Applied { to, epoch, count } => {
                let process = &mut world.nodes[to];
                if process.up && process.owner && process.epoch == epoch {
                    process.applied_there = process.applied_there.max(count);
                }
            }
            Message::Prepare { from, epoch, writes } => {
                let node = 1 - from;
                if self.admits(&world.nodes[node], from, epoch) {
                    let process = &mut world.nodes[node];
                    process.known = extended(&process.known, &writes)?;
                    let known = end(&process.known);
                    if self.has(Bug::ActivateBeforeCommit) {
                        (process.owner, process.epoch) = (true, epoch.next());
                        process.writes = process.known.clone();
                    }
                    world.send(Message::Prepared { to: from, epoch, known });
                }
            }
            Message::Prepared { to, epoch, known } => {
                let process = &mut world.nodes[to];
                if process.up && process.epoch == epoch && process.preparing {
                    process.preparing = false;
                    let is_right = known == end(&process.writes) || self.has(Bug::NoSeal);
                    let event = if is_right {
                        handover::Event::Prepared(vec![process.sealed])
                    } else {
                        handover::Event::Failed(failure())
                    };
                    self.hand_over(world, to, event);
                }
            }
        }
        Ok(())
    }

    /// Whether a replica takes anything from an owner.
    pub(super) fn admits(&self, process: &Process, from: usize, epoch: Epoch) -> bool {
        let is_current = process.epoch == epoch && process.seen.volume().owner == id(from);
        let has_left = process.seen.volume().has_left(end(&process.known));
        process.up
            && process.started
            && !process.failed
            && !process.owner
            && (is_current || self.has(Bug::OldEpochAccepted))
            && (!process.holding || self.has(Bug::TakesWhileTakingOver))
            && (!has_left || self.has(Bug::TailMixed))
    }

    pub(super) fn commit(&self, meta: &mut Meta, node: usize, ask: Ask, enclosed: Option<Vec<Write>>) -> Answer {
        let state = meta.get();
        let incarnation_of = |incarnation| match self.has(Bug::IncarnationIgnored) {
            true => state.node(id(node)).expect("a member").incarnation,
            false => incarnation,
        };
        let hand_over = |incarnation, epoch, to, final_lsn| Command::HandOver {
            group: None,
            from: id(node),
            incarnation: incarnation_of(incarnation),
            to: id(to),
            members: vec![Ended { volume: VOLUME, epoch, final_lsn, manifest_digest: 7 }],
            enclosed: enclosed.iter().map(|writes| (VOLUME, encoded(writes))).collect(),
        };
        let command = match ask {
            Ask::Started => Command::NodeStarted { node: id(node) },
            Ask::Renew { lapses, .. } => {
                let lapses = if self.has(Bug::LapsesIgnored) { state.lease(id(node)).lapses } else { lapses };
                let duration_ms = LEASE.as_millis() as u64;
                Command::RenewLease { node: id(node), lapses, duration_ms }
            }
            Ask::Expire { node, renewals } => {
                let newest = state.lease(id(node)).renewals;
                let renewals = if self.has(Bug::AnyRenewalExpires) { newest } else { renewals };
                Command::ExpireLease { node: id(node), renewals }
            }
            Ask::Transfer { incarnation, epoch, to, final_lsn } => hand_over(incarnation, epoch, to, final_lsn),
            Ask::Rescue { incarnation, epoch, to, final_lsn } if self.has(Bug::RescueWithoutFork) => {
                hand_over(incarnation, epoch, to, final_lsn)
            }
            Ask::Rescue { incarnation, epoch, to, final_lsn } => Command::Rescue {
                from: id(node),
                incarnation: incarnation_of(incarnation),
                to: id(to),
                ended: Ended { volume: VOLUME, epoch, final_lsn, manifest_digest: 7 },
                durable: final_lsn,
                enclosed: encoded(enclosed.as_deref().unwrap_or_default()),
            },
            Ask::Takeover { incarnation, from, epoch, start } => Command::Takeover {
                volume: VOLUME,
                from: id(from),
                epoch,
                to: id(node),
                incarnation: incarnation_of(incarnation),
                start,
            },
            Ask::StepDown { incarnation, epoch } => Command::StepDown {
                node: id(node),
                incarnation: incarnation_of(incarnation),
                volumes: vec![(VOLUME, epoch)],
            },
        };
        let kept = (ask == Ask::Started && self.has(Bug::StartKeepsStepDown) && state.has_stepped_down(VOLUME))
            .then(|| meta.volume().epoch);
        let response = meta.apply(command);
        if let (Some(epoch), Response::Started { incarnation }) = (kept, &response) {
            let (node, incarnation) = (id(node), *incarnation);
            meta.apply(Command::StepDown { node, incarnation, volumes: vec![(VOLUME, epoch)] });
        }
        match response {
            Response::Started { incarnation } => Answer::Started(incarnation),
            Response::LeaseGranted { .. } => Answer::Granted,
            Response::LeaseExpired => Answer::Expired,
            Response::GroupTransferred => Answer::Moved(meta.volume().epoch),
            Response::TakenOver { epoch } => Answer::Moved(epoch),
            Response::SteppedDown => Answer::SteppedDown,
            Response::Refused(Refusal::LeaseLapsed { lapses, .. }) => Answer::Lapsed(lapses),
            Response::Refused(Refusal::NotOwner { .. }) => Answer::NotOwner,
            _ => Answer::Refused,
        }
    }

    /// An answer has come, and everything that was committed before it is applied here.
    pub(super) fn answered(&self, world: &mut World, node: usize, ask: Ask, answer: Answer) {
        self.learn(world, node);
        let process = &mut world.nodes[node];
        let is_awaited = process.question == Some(ask);
        match (ask, answer) {
            (Ask::Started, Answer::Started(incarnation)) => {
                process.incarnation = process.incarnation.max(incarnation);
                if !process.started {
                    process.started = true;
                    process.keeper = Keeper::new(process.seen.get().lease(id(node)).lapses);
                    if !self.leases {
                        process.terms = Terms { lapses: 0, until: Duration::MAX };
                    }
                } else if is_awaited {
                    let volume = process.seen.volume();
                    self.resolved(world, node, volume.owner, volume.epoch);
                }
            }
            (Ask::Renew { asked, .. }, answer) => {
                let event = match answer {
                    Answer::Granted => lease::Event::Granted { asked },
                    Answer::Lapsed(lapses) => lease::Event::Lapsed { lapses },
                    _ => lease::Event::Failed { asked },
                };
                self.keep(world, node, event);
            }
            (Ask::StepDown { .. }, _) if process.stepping_down == Some(ask) => process.stepping_down = None,
            (Ask::Transfer { .. } | Ask::Rescue { .. }, answer) if is_awaited => {
                process.question = None;
                let event = match answer {
                    Answer::Moved(epoch) => handover::Event::Committed(vec![epoch]),
                    Answer::NotOwner => handover::Event::Refused(Error::new(ErrorKind::NotOwner, "over")),
                    _ => handover::Event::Refused(failure()),
                };
                self.hand_over(world, node, event);
            }
            (Ask::Expire { .. }, answer) if is_awaited => {
                process.question = None;
                let event = match answer {
                    Answer::Expired => takeover::Event::Expired,
                    _ => takeover::Event::Failed(failure()),
                };
                self.take_over(world, node, event);
            }
            (Ask::Takeover { .. }, answer) if is_awaited => {
                process.question = None;
                let event = match answer {
                    Answer::Moved(epoch) => takeover::Event::Committed(epoch),
                    _ => takeover::Event::Refused(failure()),
                };
                self.take_over(world, node, event);
            }
            _ => {}
        }
    }

    pub(super) fn resolved(&self, world: &mut World, node: usize, owner: NodeId, epoch: Epoch) {
        world.nodes[node].question = None;
        if world.nodes[node].handover.is_some() {
            self.hand_over(world, node, handover::Event::Resolved(vec![Some((owner, epoch))]));
        } else {
            self.take_over(world, node, takeover::Event::Resolved { owner, epoch });
        }
    }

    pub(super) fn timeout(&self, world: &mut World, node: usize) {
        let ask = world.nodes[node].question.take().expect("something is asked");
        if world.messages.iter().any(|message| is_about(message, node, ask)) {
            world.budget.timeouts -= 1;
        }
        if world.nodes[node].handover.is_some() {
            if self.has(Bug::ThawOnUnknown) {
                return thaw(&mut world.nodes[node]);
            }
            self.hand_over(world, node, handover::Event::Unknown);
        } else if matches!(ask, Ask::Expire { .. }) {
            self.take_over(world, node, takeover::Event::Failed(failure()));
        } else {
            self.take_over(world, node, takeover::Event::Unknown);
        }
    }
}

pub(super) fn failure() -> Error {
    Error::new(ErrorKind::Unavailable, "failed")
}
