//! One single-threaded data path: a log, a map and the volumes pinned to it.

pub mod handle;
