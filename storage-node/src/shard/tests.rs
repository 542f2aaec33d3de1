//! The shard on the simulated disk, driven turn by turn on the test's own thread.

mod checkpoint;
mod clean;
mod clone;
mod cold;
mod crash;
mod damage;
mod faults;
mod freeze;
mod initial;
mod lease;
mod ledger;
mod map_faults;
mod model;
mod opening;
mod rejoin;
mod replica;
mod resident;
mod resize;
mod rewind;
mod rig;
mod rollback;
mod scrub;
mod snapshots;
mod space;
mod threads;
