//! What can happen in the model, and what comes of it: the real machines, driven as the product's drivers drive them.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::Duration;

use storage_node::ownership::handover::{self, Handover};
use storage_node::ownership::lease::{self, Terms};
use storage_node::ownership::takeover::Takeover;

mod machines;
mod messages;
mod process;
mod settling;

use crate::explorer::Model;
use crate::failing::{self, Stored};
use crate::world::{Ask, Message, Process, World, Write, end, id};
use crate::{Bug, SETTLED_PART};
use machines::{must_reconcile, must_step_down};
use messages::failure;
use process::{crash, thaw};

const TICK: Duration = Duration::from_secs(1);

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
}
