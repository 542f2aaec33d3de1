//! What the process-level tests share: a cluster of real processes, a self-describing workload and
//! an NBD client of their own.
//!
//! Deliberately uses none of Heliotrope's code, so that a mistake there is not repeated here.

pub mod browser;
pub mod cluster;
pub mod damage;
pub mod debian;
pub mod exposition;
pub mod guest;
pub mod http;
pub mod ledger;
pub mod machines;
pub mod mount;
pub mod nbd_client;
pub mod nodes;
pub mod package;
pub mod page;
pub mod rules;
pub mod schema;
pub mod service;
pub mod tools;
pub mod workload;
pub mod writer;
