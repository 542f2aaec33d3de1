//! Who may write a volume: what sessions see of it, the planned handover, and the rights of writers.

pub mod driver;
pub mod gate;
pub mod handover;
pub mod writers;
