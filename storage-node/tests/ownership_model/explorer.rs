//! An exhaustive explorer of small state spaces: breadth first, so that a counterexample is a shortest one.
//!
//! States are told apart by a 64-bit hash; two of a few million that share one are less likely than a bit flip.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};

/// What can be explored.
pub(crate) trait Model {
    /// A state; equal ones have the same future.
    type State: Clone + Hash;
    /// Something that can happen.
    type Action: Clone + Debug;

    /// Everything that can happen in `state`.
    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>);

    /// The state after `action`.
    ///
    /// # Errors
    /// What must never happen, and did.
    fn next(&self, state: &Self::State, action: &Self::Action) -> Result<Self::State, String>;

    /// Looks at every state that is reached.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    fn check(&self, state: &Self::State) -> Result<(), String>;
}

/// A way to something that must never happen.
#[derive(Debug)]
pub(crate) struct Counterexample<A> {
    /// What happened.
    pub(crate) what: String,
    /// The actions that lead there.
    pub(crate) trace: Vec<A>,
}

/// Explores everything that can be reached from `start`; tells how many states there are.
///
/// # Errors
/// A shortest way to what must never happen.
///
/// # Panics
/// When there are more than `states_max` states: the bounds are too large to be exhaustive.
pub(crate) fn explore<M: Model>(
    model: &M,
    start: M::State,
    states_max: usize,
) -> Result<usize, Counterexample<M::Action>> {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let name = |state: &M::State| hasher.hash_one(state);
    let mut came_from: HashMap<u64, (u64, u16)> = HashMap::new();
    let mut frontier = VecDeque::from([(name(&start), start.clone())]);
    let origin = frontier[0].0;
    came_from.insert(origin, (origin, 0));
    let trace = |came_from: &HashMap<u64, (u64, u16)>, id| trace(model, &start, came_from, id);
    let mut actions = Vec::new();
    while let Some((id, state)) = frontier.pop_front() {
        model.check(&state).map_err(|what| Counterexample { what, trace: trace(&came_from, id) })?;
        actions.clear();
        model.actions(&state, &mut actions);
        for (number, action) in (0..).zip(&actions) {
            let next = model.next(&state, action).map_err(|what| {
                let mut trace = trace(&came_from, id);
                trace.push(action.clone());
                Counterexample { what, trace }
            })?;
            let next_id = name(&next);
            if let std::collections::hash_map::Entry::Vacant(entry) = came_from.entry(next_id) {
                entry.insert((id, number));
                frontier.push_back((next_id, next));
            }
        }
        assert!(came_from.len() <= states_max, "more than {states_max} states");
    }
    Ok(came_from.len())
}

/// The actions that lead from `start` to the state `id`, found again by their numbers.
fn trace<M: Model>(model: &M, start: &M::State, came_from: &HashMap<u64, (u64, u16)>, id: u64) -> Vec<M::Action> {
    let mut numbers = Vec::new();
    let mut at = id;
    while came_from[&at].0 != at {
        numbers.push(came_from[&at].1);
        at = came_from[&at].0;
    }
    let (mut state, mut trace, mut actions) = (start.clone(), Vec::new(), Vec::new());
    for number in numbers.into_iter().rev() {
        actions.clear();
        model.actions(&state, &mut actions);
        let action = actions[usize::from(number)].clone();
        state = model.next(&state, &action).expect("it was taken before");
        trace.push(action);
    }
    trace
}
