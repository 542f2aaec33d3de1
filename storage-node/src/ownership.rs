//! Who may write a volume: what sessions see of it, the planned handover, the lease of the node, the takeover of a volume
//! whose owner is lost and what it leaves behind, the rights of writers, and what took how long ([`chronicle`]). `docs/ownership.md` has the protocol, `tests/ownership_model` its proof.

pub mod ceased;
pub mod changes;
pub mod chronicle;
pub mod driver;
pub mod enclosure;
pub mod expiry;
pub mod gate;
pub mod handover;
pub mod lease;
pub mod standing;
pub mod takeover;
pub mod writers;
