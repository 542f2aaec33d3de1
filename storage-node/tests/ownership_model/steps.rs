//! What can happen in the model, and what comes of it: the real machines, driven as the product's drivers drive them.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::Duration;

use client_lib::{Epoch, Error, ErrorKind, NodeId};
use consensus::{Command, Ended, Refusal, Response};
use storage_node::ownership::expiry::Watch;
use storage_node::ownership::handover::{self, Handover};
use storage_node::ownership::lease::{self, Keeper, Terms};
use storage_node::ownership::takeover::{self, Seen, Takeover};

use crate::explorer::Model;
use crate::failing::{self, Stored};
use crate::world::{
    Answer, Ask, Budget, DRIFT_PER_MILLE, LEASE, Message, Meta, Process, VOLUME, World, Write, end, id,
};
use crate::{Bug, QUIET, SETTLED_PART};

const TICK: Duration = Duration::from_secs(1);
/// Longest fair run to an orderly state, in rounds.
const ROUNDS_MAX: usize = 40;

/// The protocol, with at most one of its rules broken.
pub(crate) struct Protocol {
    /// Whether leases run out, and are renewed; else they last for ever.
    pub(crate) leases: bool,
    /// Whether a handover tells the new owner everything in its proposal, and not before.
    pub(crate) encloses: bool,
    pub(crate) bug: Option<Bug>,
}

/// Something that happens; numbers are nodes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Time passes, except on the clock of this node.
    Tick {
        slow: Option<usize>,
    },
    /// The keeper looks at its clock.
    Wake(usize),
    /// The keeper stops waiting for an answer.
    GiveUp(usize),
    /// A message arrives; perhaps it will once more.
    Arrive {
        message: Message,
        again: bool,
    },
    Lose(Message),
    /// The node hears of the newest metadata.
    Learn(usize),
    /// It does what it has heard.
    Reconcile(usize),
    Write(usize),
    Ack(usize),
    /// A FLUSH that waits for the other node is acked.
    Flush(usize),
    /// The owner sends what it has.
    Send(usize),
    Handover(usize),
    /// Nothing is under way any more.
    Frozen(usize),
    Cancel(usize),
    /// What a handover or takeover waits for does not come.
    Timeout(usize),
    Takeover(usize),
    /// The takeover looks at the lease.
    Look(usize),
    /// The store takes nothing more.
    Fail(usize, Stored),
    /// The owner, whose store takes nothing more, gives the volume away.
    Rescue(usize),
    /// The owner, whose store has failed, ceases to act and says so.
    StepDown(usize),
    /// It does not wait for an answer to that any more.
    Unanswered(usize),
    Crash(usize),
    Restart(usize),
    /// A new process tells consensus of itself again.
    Announce(usize),
}

/// What a handover or takeover waits for.
fn waits_for_answer(process: &Process) -> Option<Ask> {
    process.question.filter(|_| process.up)
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let budget = world.budget;
        if budget.ticks > 0 {
            actions.push(Action::Tick { slow: None });
            if budget.drifts > 0 {
                actions.extend((0..2).map(|node| Action::Tick { slow: Some(node) }));
            }
        }
        for message in &world.messages {
            actions.push(Action::Arrive { message: message.clone(), again: false });
            if budget.duplicates > 0 {
                actions.push(Action::Arrive { message: message.clone(), again: true });
            }
            if budget.losses > 0 {
                actions.push(Action::Lose(message.clone()));
            }
        }
        for (node, process) in world.nodes.iter().enumerate() {
            if !process.up {
                actions.push(Action::Restart(node));
                continue;
            }
            if budget.crashes > 0 {
                actions.push(Action::Crash(node));
            }
            if !process.started {
                if !world.messages.iter().any(|message| is_about_start(message, node, process.life)) {
                    actions.push(Action::Announce(node));
                }
                continue;
            }
            self.actions_of(world, node, process, actions);
        }
    }

    fn next(&self, world: &World, action: &Action) -> Result<World, String> {
        let mut next = world.clone();
        self.step(&mut next, action)?;
        Ok(next)
    }

    fn check(&self, world: &World) -> Result<(), String> {
        let volume = world.meta.volume();
        for (node, process) in world.nodes.iter().enumerate() {
            if process.serves_writes() && (volume.owner != id(node) || volume.epoch != process.epoch) {
                return Err(format!("node {node} would ack a write in epoch {}", process.epoch));
            }
            if process.serves_reads()
                && let Some(missing) = world.acked.iter().find(|write| !process.writes.contains(write))
            {
                return Err(format!("node {node} answers reads without the acked write {missing:?}"));
            }
        }
        if self.bug.is_none() && BuildHasherDefault::<DefaultHasher>::default().hash_one(world) % SETTLED_PART == 0 {
            let mut settling = world.clone();
            self.settles(&mut settling).map_err(|what| format!("{what}; then {settling:#?}"))?;
        }
        let enclosed = world.enclosed();
        let is_nowhere =
            |write: &&Write| world.nodes.iter().all(|node| !node.writes.contains(write)) && !enclosed.contains(write);
        match world.ever_acked.iter().find(is_nowhere) {
            Some(gone) => Err(format!("the acked write {gone:?} is nowhere any more")),
            None => Ok(()),
        }
    }
}

fn is_about_start(message: &Message, of: usize, of_life: u8) -> bool {
    match message {
        Message::Ask { node, life, ask: Ask::Started, .. } | Message::Answer { node, life, ask: Ask::Started, .. } => {
            (*node, *life) == (of, of_life)
        }
        _ => false,
    }
}

fn is_about(message: &Message, of: usize, question: Ask) -> bool {
    match message {
        Message::Ask { node, ask, .. } | Message::Answer { node, ask, .. } => *node == of && *ask == question,
        _ => false,
    }
}

impl Protocol {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn actions_of(&self, world: &World, node: usize, process: &Process, actions: &mut Vec<Action>) {
        let budget = world.budget;
        // A node does one thing with a volume at a time.
        let is_busy = process.handover.is_some() || process.takeover.is_some();
        let is_on_its_way = |ask: Ask| world.messages.iter().any(|message| is_about(message, node, ask));
        match process.asking {
            // A node that owns nothing needs no lease yet.
            None if self.leases
                && budget.renewals > 0
                && process.clock >= process.keeper.next()
                && process.seen.volume().owner == id(node) =>
            {
                actions.push(Action::Wake(node));
            }
            Some(ask) if budget.timeouts > 0 || !is_on_its_way(ask) => actions.push(Action::GiveUp(node)),
            _ => {}
        }
        if budget.failures > 0 && !process.failed {
            actions.push(Action::Fail(node, Stored::All));
            if budget.rescues > 0 && process.owner && failing::is_untold(world, node) {
                let stored = if process.pending.is_some() { Stored::More } else { Stored::Less };
                actions.push(Action::Fail(node, stored));
            }
        }
        if budget.rescues > 0 && process.owner && process.failed && !is_busy && !process.has_ceased() {
            actions.push(Action::Rescue(node));
        }
        match process.stepping_down {
            // Whether it is served here or not; and again if it is not known to be so.
            None if process.failed && !is_busy && must_step_down(node, process) => actions.push(Action::StepDown(node)),
            Some(ask) if budget.timeouts > 0 || !is_on_its_way(ask) => actions.push(Action::Unanswered(node)),
            _ => {}
        }
        if process.seen != world.meta {
            actions.push(Action::Learn(node));
        }
        if must_reconcile(node, process) {
            actions.push(Action::Reconcile(node));
        }
        if process.owner {
            if budget.writes > 0 && !process.frozen && !process.failed && process.pending.is_none() {
                actions.push(Action::Write(node));
            }
            let is_held = process.applied_there >= process.writes.len() || self.has(Bug::FlushNotHeld);
            // Whoever holds it vouches for it: no lease is asked for.
            if is_held && process.pending.is_none() && world.promised != process.writes {
                actions.push(Action::Flush(node));
            }
            if budget.deltas > 0 && world.nodes[1 - node].writes != process.writes {
                actions.push(Action::Send(node));
            }
            if budget.handovers > 0 && !is_busy {
                actions.push(Action::Handover(node));
            }
        } else if budget.takeovers > 0 && !is_busy && process.seen.volume().owner != id(node) {
            actions.push(Action::Takeover(node));
        }
        if let Some((_, was_allowed)) = process.pending
            && if self.has(Bug::LeaseLookedAtOnArrival) { was_allowed } else { process.allowed() }
        {
            actions.push(Action::Ack(node));
        }
        if process.handover.is_some() {
            let is_under_way = process.pending.is_some() && !self.has(Bug::NoSeal);
            if process.freezing && !is_under_way {
                actions.push(Action::Frozen(node));
            }
            let is_abortable = process.preparing || (self.has(Bug::LateCancel) && process.question.is_some());
            if is_abortable {
                actions.push(Action::Cancel(node));
            }
        }
        if process.wait.is_some() {
            actions.push(Action::Look(node));
        }
        if let Some(ask) = waits_for_answer(process)
            && (budget.timeouts > 0 || !is_on_its_way(ask))
        {
            actions.push(Action::Timeout(node));
        }
    }

    fn step(&self, world: &mut World, action: &Action) -> Result<(), String> {
        match action {
            Action::Tick { slow } => {
                world.budget.ticks -= 1;
                world.budget.drifts -= u8::from(slow.is_some());
                for (node, process) in world.nodes.iter_mut().enumerate() {
                    if *slow != Some(node) {
                        process.clock += TICK;
                    }
                }
            }
            Action::Wake(node) => {
                world.budget.renewals -= 1;
                self.keep(world, *node, lease::Event::Wake);
            }
            Action::GiveUp(node) => {
                if let Some(ask @ Ask::Renew { asked, .. }) = world.nodes[*node].asking {
                    if world.messages.iter().any(|message| is_about(message, *node, ask)) {
                        world.budget.timeouts -= 1;
                    }
                    self.keep(world, *node, lease::Event::Failed { asked });
                }
            }
            Action::Arrive { message, again } => {
                if *again {
                    world.budget.duplicates -= 1;
                } else {
                    world.messages.retain(|other| other != message);
                }
                self.arrive(world, message.clone())?;
            }
            Action::Lose(message) => {
                world.budget.losses -= 1;
                world.messages.retain(|other| other != message);
            }
            Action::Learn(node) => self.learn(world, *node),
            Action::Reconcile(node) => self.reconcile(world, *node)?,
            Action::Write(node) => {
                let process = &mut world.nodes[*node];
                let write = (process.epoch.0, world.budget.writes);
                world.budget.writes -= 1;
                process.writes.push(write);
                process.known = process.writes.clone();
                process.pending = Some((write, process.allowed()));
            }
            Action::Ack(node) => {
                let process = &mut world.nodes[*node];
                let (write, _) = process.pending.take().expect("one waits");
                let volume = world.meta.volume();
                if volume.owner != id(*node) || volume.epoch != process.epoch {
                    return Err(format!("node {node} acked {write:?} after its epoch {} was over", process.epoch));
                }
                world.acked.push(write);
                world.ever_acked.push(write);
            }
            Action::Flush(node) => {
                world.promised = world.nodes[*node].writes.clone();
                let other = &world.nodes[1 - *node].writes;
                if let Some(lost) = world.promised.iter().find(|write| !other.contains(write)) {
                    return Err(format!("{lost:?} was flushed to both nodes and is at one"));
                }
            }
            Action::Send(node) => {
                world.budget.deltas -= 1;
                let process = &world.nodes[*node];
                let writes = failing::durable(process);
                let delta = Message::Delta { from: *node, epoch: process.epoch, writes };
                world.send(delta);
            }
            Action::Handover(node) => {
                world.budget.handovers -= 1;
                let process = &mut world.nodes[*node];
                process.handover = Some(Handover::new(id(1 - *node), vec![process.epoch]));
                self.hand_over(world, *node, handover::Event::Start);
            }
            Action::Frozen(node) => {
                world.nodes[*node].freezing = false;
                let process = &world.nodes[*node];
                let event = if process.owner && (!process.failed || process.rescues) {
                    handover::Event::Frozen(vec![end(&process.writes)])
                } else {
                    handover::Event::Failed(failure())
                };
                self.hand_over(world, *node, event);
            }
            Action::Rescue(node) => {
                world.budget.rescues -= 1;
                let process = &mut world.nodes[*node];
                process.handover = Some(Handover::new(id(1 - *node), vec![process.epoch]));
                process.rescues = true;
                self.hand_over(world, *node, handover::Event::Start);
            }
            Action::Cancel(node) => {
                let process = &mut world.nodes[*node];
                if std::mem::take(&mut process.preparing) {
                    self.hand_over(world, *node, handover::Event::Failed(failure()));
                } else {
                    thaw(process);
                }
            }
            Action::Timeout(node) => self.timeout(world, *node),
            Action::Takeover(node) => {
                world.budget.takeovers -= 1;
                let process = &mut world.nodes[*node];
                process.takeover = Some(Takeover::new(id(*node), process.seen.volume().epoch));
                self.look(world, *node);
            }
            Action::Look(node) => self.look(world, *node),
            Action::Fail(node, stored) => {
                world.budget.failures -= 1;
                failing::fail(&mut world.nodes[*node], *stored);
            }
            Action::StepDown(node) => {
                let process = &mut world.nodes[*node];
                let epoch = process.seen.volume().epoch;
                if !self.has(Bug::ActsAfterSteppingDown) {
                    process.ceased = process.ceased.max(Some(epoch));
                }
                let ask = Ask::StepDown { incarnation: process.incarnation, epoch };
                process.stepping_down = Some(ask);
                self.ask(world, *node, ask);
            }
            Action::Unanswered(node) => {
                if let Some(ask) = world.nodes[*node].stepping_down.take()
                    && world.messages.iter().any(|message| is_about(message, *node, ask))
                {
                    world.budget.timeouts -= 1;
                }
            }
            Action::Crash(node) => {
                world.budget.crashes -= 1;
                failing::forget_lost(world, *node);
                crash(&mut world.nodes[*node]);
            }
            Action::Restart(node) => {
                let process = &mut world.nodes[*node];
                (process.up, process.life) = (true, process.life + 1);
                if self.has(Bug::ActsBeforeStart) {
                    process.started = true;
                    process.terms = Terms { lapses: 0, until: Duration::MAX };
                }
                self.ask(world, *node, Ask::Started);
            }
            Action::Announce(node) => self.ask(world, *node, Ask::Started),
        }
        Ok(())
    }

    fn ask(&self, world: &mut World, node: usize, ask: Ask) {
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

    fn keep(&self, world: &mut World, node: usize, event: lease::Event) {
        let process = &mut world.nodes[node];
        let effect = process.keeper.on(process.clock, LEASE, event);
        if !matches!(event, lease::Event::Wake) && (effect.is_some() || matches!(event, lease::Event::Failed { .. })) {
            process.asking = None;
        }
        if effect.is_some() {
            process.terms = process.keeper.terms();
        }
        if self.has(Bug::LeaseFromReply) && effect.is_some() && matches!(event, lease::Event::Granted { .. }) {
            process.terms.until = process.clock + LEASE;
        }
        if let Some(lease::Effect::Ask { asked, lapses, .. }) = effect {
            let ask = Ask::Renew { lapses, asked };
            process.asking = Some(ask);
            self.ask(world, node, ask);
        }
    }

    fn learn(&self, world: &mut World, node: usize) {
        let process = &mut world.nodes[node];
        process.seen = world.meta;
        let (state, clock) = (process.seen.get(), process.clock);
        process.watch.observe(clock, id(1 - node), &state.lease(id(1 - node)));
        // Its own start may have been committed twice.
        process.incarnation = process.incarnation.max(state.node(id(node)).expect("a member").incarnation);
        let lapses = state.lease(id(node)).lapses;
        if lapses > process.keeper.terms().lapses && !self.has(Bug::LapsesIgnored) {
            self.keep(world, node, lease::Event::Lapsed { lapses });
        }
    }

    fn arrive(&self, world: &mut World, message: Message) -> Result<(), String> {
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
    fn admits(&self, process: &Process, from: usize, epoch: Epoch) -> bool {
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

    fn commit(&self, meta: &mut Meta, node: usize, ask: Ask, enclosed: Option<Vec<Write>>) -> Answer {
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
    fn answered(&self, world: &mut World, node: usize, ask: Ask, answer: Answer) {
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

    fn resolved(&self, world: &mut World, node: usize, owner: NodeId, epoch: Epoch) {
        world.nodes[node].question = None;
        if world.nodes[node].handover.is_some() {
            self.hand_over(world, node, handover::Event::Resolved(vec![(owner, epoch)]));
        } else {
            self.take_over(world, node, takeover::Event::Resolved { owner, epoch });
        }
    }

    fn timeout(&self, world: &mut World, node: usize) {
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

    fn hand_over(&self, world: &mut World, node: usize, event: handover::Event) {
        let process = &mut world.nodes[node];
        let Some(machine) = process.handover.as_mut() else { return };
        let ask = match machine.on(event) {
            None => return,
            // What is held would be waited for, which is never answered here. Found by this model.
            Some(handover::Effect::Freeze) if process.has_ceased() => {
                return self.hand_over(world, node, handover::Event::Failed(failure()));
            }
            Some(handover::Effect::Freeze) => {
                (process.frozen, process.freezing) = (true, true);
                return;
            }
            Some(handover::Effect::Prepare { final_lsns }) => {
                let final_lsn = final_lsns[0];
                let encloses = if process.rescues { !self.has(Bug::RescueToldBefore) } else { self.encloses };
                if encloses {
                    return self.hand_over(world, node, handover::Event::Prepared(final_lsns));
                }
                (process.preparing, process.sealed) = (true, final_lsn);
                let prepare = Message::Prepare { from: node, epoch: process.epoch, writes: process.writes.clone() };
                return world.send(prepare);
            }
            Some(handover::Effect::Propose { final_lsns }) => {
                let final_lsn = final_lsns[0];
                process.transferring = !self.has(Bug::ReadsWhileTransferring);
                let (incarnation, epoch) = (process.incarnation, process.epoch);
                match process.rescues {
                    true => {
                        let durable = process.stored.as_deref().map_or(final_lsn, end);
                        let final_lsn = if self.has(Bug::RescueOfDurable) { durable } else { final_lsn };
                        Ask::Rescue { incarnation, epoch, to: 1 - node, final_lsn }
                    }
                    false => Ask::Transfer { incarnation, epoch, to: 1 - node, final_lsn },
                }
            }
            Some(handover::Effect::Resolve) => Ask::Started,
            Some(handover::Effect::Thaw(_)) => return thaw(process),
            Some(handover::Effect::Release { volumes, .. }) => {
                let handover::Released::To { epoch, .. } = volumes[0] else { unreachable!("of one volume") };
                (process.handover, process.rescues) = (None, false);
                if epoch > process.epoch {
                    step_down(process, epoch);
                }
                return;
            }
        };
        process.question = Some(ask);
        self.ask(world, node, ask);
    }

    fn look(&self, world: &mut World, node: usize) {
        let other = 1 - node;
        let process = &mut world.nodes[node];
        let lease = process.seen.get().lease(id(other));
        let (now, seen) = (process.clock, lease.renewals);
        let out_at = process.watch.observe(now, id(other), &lease);
        // Without allowance for the drift.
        let out_at = if self.has(Bug::NoDriftBound) { out_at - TICK } else { out_at };
        let out_at = if self.leases { out_at } else { Duration::MAX };
        let now = if self.has(Bug::TakeoverInLease) { out_at } else { now };
        process.wait = None;
        let is_out = lease.is_out || process.seen.get().has_stepped_down(VOLUME);
        let lease = Seen { renewals: seen, is_out, out_at };
        self.take_over(world, node, takeover::Event::Looked { now, lease });
    }

    fn take_over(&self, world: &mut World, node: usize, event: takeover::Event) {
        let process = &mut world.nodes[node];
        let Some(machine) = process.takeover.as_mut() else { return };
        let ask = match machine.on(event) {
            None => return,
            Some(takeover::Effect::Wait { until }) => return process.wait = Some(until),
            Some(takeover::Effect::Expire { renewals }) => Ask::Expire { node: 1 - node, renewals },
            Some(takeover::Effect::Hold) if process.failed => {
                return self.take_over(world, node, takeover::Event::Failed(failure()));
            }
            Some(takeover::Effect::Hold) => {
                process.holding = true;
                let held = end(&process.writes);
                return self.take_over(world, node, takeover::Event::Held(held));
            }
            Some(takeover::Effect::Propose { start }) => {
                let volume = process.seen.volume();
                let from = usize::from(volume.owner == id(1));
                Ask::Takeover { incarnation: process.incarnation, from, epoch: volume.epoch, start }
            }
            Some(takeover::Effect::Resolve) => Ask::Started,
            Some(takeover::Effect::Release(_) | takeover::Effect::Alive) => {
                (process.holding, process.takeover) = (false, None);
                return;
            }
            Some(takeover::Effect::TakeUp(_)) => return process.takeover = None,
        };
        process.question = Some(ask);
        self.ask(world, node, ask);
    }

    fn reconcile(&self, world: &mut World, node: usize) -> Result<(), String> {
        let process = &mut world.nodes[node];
        let (volume, lease) = (process.seen.volume(), process.seen.get().lease(id(node)));
        let acts_under = if self.has(Bug::ArmedWhileOut) { Some(lease.lapses) } else { lease.acts_under() };
        if volume.owner == id(node) && process.owner && process.epoch == volume.epoch {
            if self.has(Bug::ArmedAfterSteppingDown) && process.armed != acts_under {
                process.ceased = None;
            }
            process.armed = acts_under;
            return Ok(());
        }
        let is_new = volume.epoch > process.epoch;
        if volume.owner != id(node) {
            step_down(process, volume.epoch);
            if self.has(Bug::TailCut) && volume.has_left(end(&process.writes)) {
                process.writes.retain(|write| Epoch(write.0) > volume.forks[0].epoch);
            }
        }
        let left = end(&process.writes);
        let state = process.seen.get();
        if volume.owner != id(node) && !process.failed && volume.has_left(left) && state.has_lost_nothing(&volume, left)
        {
            // Nobody was told that it is written.
            process.writes.truncate(volume.common_with(left).sequence as usize);
            process.known = process.writes.clone();
        }
        if volume.has_left(end(&process.known)) && !volume.has_left(end(&process.writes)) {
            process.known = process.writes.clone();
        }
        if volume.owner != id(node) {
            return Ok(());
        }
        if let Some(enclosed) = process.seen.get().enclosed(VOLUME)
            && !self.has(Bug::EnclosureIgnored)
        {
            let writes: Vec<Write> = postcard::from_bytes(enclosed).expect("what was enclosed");
            process.known = extended(&process.known, &writes)?;
        }
        if is_new && end(&process.known) != volume.final_lsn {
            return Err(format!("the new owner begins at {}, not {}", end(&process.known), volume.final_lsn));
        }
        process.writes = process.known.clone();
        (process.owner, process.epoch, process.armed) = (true, volume.epoch, acts_under);
        (process.frozen, process.transferring, process.holding) = (false, false, false);
        process.applied_there = 0;
        let has = |write: &Write| process.writes.contains(write);
        if let Some(lost) = world.promised.iter().find(|write| !has(write)) {
            return Err(format!("{lost:?} was flushed to both nodes and is lost"));
        }
        if process.seen.get().last_takeover(&volume).is_some_and(|fork| fork.epoch.next() == volume.epoch) {
            world.acked.retain(has);
        } else if let Some(lost) = world.acked.iter().find(|write| !has(write)) {
            return Err(format!("the acked write {lost:?} was lost in a handover"));
        }
        Ok(())
    }

    /// Lets everything go on in a fair order and without further faults.
    ///
    /// # Errors
    /// When the volume is not served, or something is still under way, when that has had time enough.
    fn settles(&self, world: &mut World) -> Result<(), String> {
        world.budget = Budget { ticks: u8::MAX, timeouts: u8::MAX, renewals: u8::MAX, ..QUIET };
        let mut actions = Vec::new();
        for _ in 0..ROUNDS_MAX {
            // Everything but time, until nothing is left to do.
            loop {
                actions.clear();
                self.actions(world, &mut actions);
                let next = actions.iter().find(|action| !is_idle(action));
                let Some(action) = next else { break };
                self.step(world, action)?;
                self.check(world)?;
            }
            // Where leases last for ever, an owner that is well is waited for as long.
            let may_wait = !self.leases && !world.meta.get().has_stepped_down(VOLUME);
            let waits = |process: &Process| may_wait && process.wait.is_some();
            let is_over =
                |process: &Process| process.handover.is_none() && (process.takeover.is_none() || waits(process));
            // A node whose store has failed serves nothing until somebody restarts it, or has another one take over.
            let owner = world.nodes.iter().zip(0..).find(|(_, node)| world.meta.volume().owner == id(*node));
            let is_lost = owner.is_some_and(|(process, _)| process.failed && process.stepping_down.is_none());
            let is_served = is_lost || world.nodes.iter().any(Process::serves_writes);
            if is_served && world.nodes.iter().all(is_over) {
                return Ok(());
            }
            self.step(world, &Action::Tick { slow: None })?;
            for node in 0..2 {
                if world.nodes[node].wait.is_some() {
                    self.look(world, node);
                } else if world.nodes[node].preparing {
                    // Its message was lost.
                    self.step(world, &Action::Cancel(node))?;
                }
            }
        }
        Err("the volume is not served again".to_owned())
    }
}

/// What a fair run leaves to its own rhythm.
fn is_idle(action: &Action) -> bool {
    matches!(action, Action::Tick { .. } | Action::Look(_) | Action::Cancel(_) | Action::Flush(_))
}

/// Whether it owns what it cannot serve any more, and that is not known to others.
fn must_step_down(node: usize, process: &Process) -> bool {
    let (volume, state) = (process.seen.volume(), process.seen.get());
    volume.owner == id(node) && volume.epoch >= process.epoch && !state.has_stepped_down(VOLUME)
}

fn must_reconcile(node: usize, process: &Process) -> bool {
    let volume = process.seen.volume();
    // A store that has failed takes no ownership up, and nobody takes up what it has stepped down for.
    let is_over = process.failed || process.ceased.is_some_and(|ceased| ceased >= volume.epoch);
    if volume.owner == id(node) && is_over && !(process.owner && process.epoch == volume.epoch) {
        return false;
    }
    let is_armed = process.armed == process.seen.get().lease(id(node)).acts_under();
    match volume.owner == id(node) {
        true => volume.epoch >= process.epoch && !(process.owner && process.epoch == volume.epoch && is_armed),
        false => volume.epoch > process.epoch,
    }
}

fn thaw(process: &mut Process) {
    (process.frozen, process.freezing, process.transferring) = (false, false, false);
    (process.handover, process.question, process.rescues) = (None, None, false);
}

fn step_down(process: &mut Process, epoch: Epoch) {
    (process.owner, process.epoch) = (false, epoch);
    (process.frozen, process.transferring, process.holding) = (false, false, false);
    process.pending = None;
}

fn crash(process: &mut Process) {
    step_down(process, process.epoch);
    (process.up, process.started) = (false, false);
    (process.freezing, process.preparing) = (false, false);
    (process.handover, process.takeover, process.wait) = (None, None, None);
    (process.question, process.asking) = (None, None);
    (process.keeper, process.terms) = (Keeper::new(0), Terms::default());
    process.watch = Watch::new(DRIFT_PER_MILLE);
    process.applied_there = 0;
    (process.failed, process.ceased, process.stepping_down) = (false, None, None);
    process.rescues = false;
    if let Some(stored) = process.stored.take() {
        (process.writes, process.known) = (stored.clone(), stored);
    }
}

fn encoded(writes: &[Write]) -> Vec<u8> {
    postcard::to_stdvec(writes).expect("plain data")
}

/// What a replica has after it was sent `writes`: those after its own end, as LSNs order them.
fn extended(held: &[Write], writes: &[Write]) -> Result<Vec<Write>, String> {
    let from = end(held);
    let is_news = |(index, write): &(usize, &Write)| (write.0, *index as u64 + 1) > (from.epoch.0, from.sequence);
    let news = writes.iter().enumerate().filter(is_news).map(|(_, write)| *write);
    let extended: Vec<Write> = held.iter().copied().chain(news).collect();
    let is_prefix = extended.starts_with(writes) || writes.starts_with(&extended);
    if is_prefix { Ok(extended) } else { Err(format!("a mix: {held:?} and {writes:?} became {extended:?}")) }
}

fn failure() -> Error {
    Error::new(ErrorKind::Unavailable, "failed")
}
