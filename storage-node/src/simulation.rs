//! A whole cluster from one seed, on one thread: the real ownership, propagation, metadata and store code of several nodes,
//! on simulated disks, a simulated network and clocks that the simulation moves.
//!
//! Each [`machine`] has a tokio runtime of its own whose time stands still until it is moved. [`world`] moves all of them a
//! little in turn; what they send each other in such a window arrives in a later one at the earliest ([`network`]), so that
//! nobody ever hears of anything before it happened. Dropping a runtime is the death of its process, not moving it is a
//! pause, moving it by more or less than the others is drift. Nodes are composed by [`crate::node::compose`], as in the
//! product; [`guest`]s use the sessions that NBD connections use. [`story`] draws what happens in a seed, [`history`] keeps
//! what was asked, answered and logged, and [`checks`] judge it; [`rules`] can be broken, to see that they notice;
//! a [`backlog`] makes nodes slow to do what the metadata says, as many volumes would. What is not here: RocksDB, io_uring, QUIC, NBD, HTTP; they
//! are below or beside the seams, and tested with real processes (docs/decisions/0021).
//!
//! `HELIO_SEED=n cargo nextest run -p storage-node simulation` runs one seed again; `HELIO_SEEDS` says how many are run.

mod at_once;
pub(crate) mod backlog;
mod checks;
mod client;
mod guest;
pub(crate) mod history;
mod hung;
mod lagging;
mod late;
mod machine;
mod made_again;
mod network;
mod newcomers;
mod partial;
mod pulls;
mod rescue;
mod round_trips;
pub(crate) mod rules;
mod space;
mod stepping_down;
mod story;
mod tests;
mod world;
