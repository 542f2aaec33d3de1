//! The state of the model: consensus, two nodes with their shards, what is on its way, and what was promised to clients.
//!
//! Node 0 owns the volume at first, node 1 follows. A volume's content is the list of its writes. Consensus is a lock
//! around the real [`MetaState`]: a command that is on its way may be committed at any later moment, or never, and so may its
//! answer; that is all that crashes and changes of its leader can do. A pause is a node that does nothing while time passes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use client_lib::{Epoch, Lsn, NodeId, VolumeId, VolumeSize};
use consensus::{Command, MetaState, Response, Volume};
use storage_node::ownership::expiry::Watch;
use storage_node::ownership::handover::Handover;
use storage_node::ownership::lease::{Keeper, Terms};
use storage_node::ownership::takeover::Takeover;

/// The volume.
pub(crate) const VOLUME: VolumeId = VolumeId(3);
/// A lease, in ticks of a second.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// The drift between two clocks over a lease: a tick.
pub(crate) const DRIFT_PER_MILLE: u32 = 500;

/// A metadata state, told apart by a number so that a world is small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Meta(u32);

#[derive(Default)]
struct Interned {
    states: Vec<Rc<MetaState>>,
    numbers: HashMap<Vec<u8>, u32>,
}

thread_local! {
    static INTERNED: RefCell<Interned> = RefCell::default();
}

impl Meta {
    pub(crate) fn of(state: MetaState) -> Meta {
        INTERNED.with_borrow_mut(|interned| {
            let bytes = postcard::to_stdvec(&state).expect("plain data");
            let number = *interned.numbers.entry(bytes).or_insert_with(|| {
                interned.states.push(Rc::new(state));
                interned.states.len() as u32 - 1
            });
            Meta(number)
        })
    }

    pub(crate) fn get(self) -> Rc<MetaState> {
        INTERNED.with_borrow(|interned| interned.states[self.0 as usize].clone())
    }

    pub(crate) fn apply(&mut self, command: Command) -> Response {
        let mut state = MetaState::clone(&self.get());
        let response = state.apply(99, command);
        *self = Meta::of(state);
        response
    }

    pub(crate) fn volume(self) -> Volume {
        self.get().volume(VOLUME).expect("nobody deletes it").clone()
    }
}

pub(crate) fn id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

/// One write: under which epoch, and which.
pub(crate) type Write = (u64, u8);

/// Where a list of writes ends.
pub(crate) fn end(writes: &[Write]) -> Lsn {
    writes.last().map_or(Lsn::ZERO, |(epoch, _)| Lsn::new(Epoch(*epoch), writes.len() as u64))
}

/// A question to consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Ask {
    Started,
    Renew { lapses: u64, asked: Duration },
    Expire { node: usize, renewals: u64 },
    Transfer { incarnation: u64, epoch: Epoch, to: usize, final_lsn: Lsn },
    Takeover { incarnation: u64, from: usize, epoch: Epoch, start: Lsn },
    StepDown { incarnation: u64, epoch: Epoch },
    Rescue { incarnation: u64, epoch: Epoch, to: usize, final_lsn: Lsn },
}

/// A question on its way, or the answer to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Message {
    /// With what is enclosed, if it is a transfer that tells the new owner everything.
    Ask {
        node: usize,
        life: u8,
        ask: Ask,
        enclosed: Option<Vec<Write>>,
    },
    Answer {
        node: usize,
        life: u8,
        ask: Ask,
        answer: Answer,
    },
    Delta {
        from: usize,
        epoch: Epoch,
        writes: Vec<Write>,
    },
    Applied {
        to: usize,
        epoch: Epoch,
        count: usize,
    },
    Prepare {
        from: usize,
        epoch: Epoch,
        writes: Vec<Write>,
    },
    Prepared {
        to: usize,
        epoch: Epoch,
        known: Lsn,
    },
}

/// What consensus said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Answer {
    Started(u64),
    Granted,
    Lapsed(u64),
    Expired,
    Moved(Epoch),
    SteppedDown,
    NotOwner,
    Refused,
}

/// A node: what survives a crash is its writes and what it knows, nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) up: bool,
    pub(crate) life: u8,
    pub(crate) clock: Duration,
    /// The metadata that it has applied; what it does follows when it looks at it.
    pub(crate) seen: Meta,
    /// Whether consensus knows of this process.
    pub(crate) started: bool,
    pub(crate) incarnation: u64,
    pub(crate) keeper: Keeper,
    /// The lease as its shard sees it.
    pub(crate) terms: Terms,
    pub(crate) watch: Watch,
    /// What it has of the volume.
    pub(crate) writes: Vec<Write>,
    /// What it knows of the volume, and can fetch from the last owner.
    pub(crate) known: Vec<Write>,
    pub(crate) owner: bool,
    pub(crate) epoch: Epoch,
    /// The lapses under which it took up the ownership.
    pub(crate) armed: Option<u64>,
    pub(crate) frozen: bool,
    /// A write that is not acked yet, and whether the lease allowed it when it came.
    pub(crate) pending: Option<(Write, bool)>,
    /// Reads are held: a transfer was proposed.
    pub(crate) transferring: bool,
    pub(crate) handover: Option<Handover>,
    pub(crate) takeover: Option<Takeover>,
    /// Until when the takeover waits.
    pub(crate) wait: Option<Duration>,
    /// It takes nothing from the owner.
    pub(crate) holding: bool,
    /// The question that a handover or takeover waits for.
    pub(crate) question: Option<Ask>,
    /// The question that the keeper waits for.
    pub(crate) asking: Option<Ask>,
    /// The handover waits for writes under way, and for the destination.
    pub(crate) freezing: bool,
    pub(crate) preparing: bool,
    /// Where the epoch ends, as the handover was told.
    pub(crate) sealed: Lsn,
    /// How many writes it has heard that the other has applied.
    pub(crate) applied_there: usize,
    /// Its store takes nothing more, until it is restarted with one that does.
    pub(crate) failed: bool,
    /// What the next process will find in that, if it is not what this one has of the volume.
    pub(crate) stored: Option<Vec<Write>>,
    /// Its handover is a rescue.
    pub(crate) rescues: bool,
    /// It acts no more in this epoch, for as long as it runs: it has proposed, or will, that it has stepped down.
    pub(crate) ceased: Option<Epoch>,
    /// That proposal, while an answer may come.
    pub(crate) stepping_down: Option<Ask>,
}

impl Process {
    /// Whether it acts no more in its epoch.
    pub(crate) fn has_ceased(&self) -> bool {
        self.ceased.is_some_and(|ceased| ceased >= self.epoch)
    }

    pub(crate) fn allowed(&self) -> bool {
        !self.has_ceased() && self.armed == Some(self.terms.lapses) && self.clock < self.terms.until
    }

    /// Whether it would answer a read now.
    pub(crate) fn serves_reads(&self) -> bool {
        self.up && self.owner && !self.transferring && self.allowed()
    }

    /// Whether it would take and ack a write now.
    pub(crate) fn serves_writes(&self) -> bool {
        self.up && self.owner && !self.frozen && !self.failed && self.allowed()
    }
}

/// What may still go wrong, and be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) ticks: u8,
    pub(crate) renewals: u8,
    pub(crate) writes: u8,
    pub(crate) deltas: u8,
    pub(crate) handovers: u8,
    pub(crate) takeovers: u8,
    pub(crate) crashes: u8,
    pub(crate) losses: u8,
    pub(crate) duplicates: u8,
    pub(crate) timeouts: u8,
    pub(crate) drifts: u8,
    pub(crate) failures: u8,
    pub(crate) rescues: u8,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) meta: Meta,
    pub(crate) messages: Vec<Message>,
    pub(crate) nodes: [Process; 2],
    pub(crate) budget: Budget,
    /// Acked, and part of the volume.
    pub(crate) acked: Vec<Write>,
    /// Acked, part of the volume or not.
    pub(crate) ever_acked: Vec<Write>,
    /// Told to be at both nodes, by a FLUSH of such a class.
    pub(crate) promised: Vec<Write>,
}

impl World {
    /// Node 0 owns an empty volume and has a lease; node 1 follows.
    pub(crate) fn new(budget: Budget, leases: bool) -> World {
        let mut state = MetaState::default();
        for node in 0..2 {
            let name = ["a", "b"][node];
            let address = String::new();
            let (name, provider) = (name.parse().expect("a name"), name.parse().expect("a name"));
            state.apply(node as u64, Command::RegisterNode { id: id(node), name, provider, address });
            state.apply(node as u64, Command::NodeStarted { node: id(node) });
        }
        let (name, size) = ("v".parse().expect("a name"), VolumeSize::try_from(1 << 20).expect("a size"));
        state.apply(VOLUME.0, Command::CreateVolume { name, size, owner: id(0), replicas: [id(1)].into(), nonce: 1 });
        let meta = Meta::of(state);
        let process = |owner| Process {
            up: true,
            life: 1,
            clock: Duration::from_secs(1),
            seen: meta,
            started: true,
            incarnation: 1,
            keeper: Keeper::new(0),
            terms: Terms { lapses: 0, until: if leases { Duration::ZERO } else { Duration::MAX } },
            watch: Watch::new(DRIFT_PER_MILLE),
            writes: Vec::new(),
            known: Vec::new(),
            owner,
            epoch: Epoch(1),
            armed: Some(0),
            frozen: false,
            pending: None,
            transferring: false,
            handover: None,
            takeover: None,
            wait: None,
            holding: false,
            question: None,
            asking: None,
            freezing: false,
            preparing: false,
            sealed: Lsn::ZERO,
            applied_there: 0,
            failed: false,
            stored: None,
            rescues: false,
            ceased: None,
            stepping_down: None,
        };
        let nodes = [process(true), process(false)];
        let (acked, ever_acked, promised) = Default::default();
        World { meta, messages: Vec::new(), nodes, budget, acked, ever_acked, promised }
    }

    /// What was enclosed for the owner and not taken yet, if anything.
    pub(crate) fn enclosed(&self) -> Vec<Write> {
        let state = self.meta.get();
        state.enclosed(VOLUME).map(|bytes| postcard::from_bytes(bytes).expect("what was enclosed")).unwrap_or_default()
    }

    pub(crate) fn send(&mut self, message: Message) {
        // Told apart by what they say: two of the same are one that may come twice.
        if let Err(at) = self.messages.binary_search(&message) {
            self.messages.insert(at, message);
        }
    }
}
