//! placeholder
pub mod export;
