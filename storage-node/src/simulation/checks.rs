//! What must hold whatever happens, a module each. A check returns what it found wrong, in words.

pub(super) mod classes;
pub(super) mod convergence;
pub(super) mod damage;
pub(super) mod durability;
pub(super) mod groups;
pub(super) mod linearizable;
pub(super) mod patience;
pub(super) mod positions;
pub(super) mod sizes;
pub(super) mod snapshots;
pub(super) mod survivors;
pub(super) mod watermarks;
pub(super) mod writers;
