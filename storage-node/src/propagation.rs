//! Carrying what was written at the owner to the other nodes.

pub mod manifest;
