//! The C ABI of the client: `libheliotrope.so` (`docs/c-library.md`).
//!
//! Owns every exported symbol and everything that crosses to C: [`types`] and the functions of [`library`], [`cluster`], [`volume`],
//! [`io`] and [`aio`]. They are thin; what they do is done by [`crate::client`]. Invariants:
//!
//! - They are declared by the macros of [`declare`], which also write `client-lib/c/heliotrope.h` and `heliotrope.map`: neither can
//!   differ from the code (`header`). What a caller must know stands there and here in the same words.
//! - No panic leaves a function: [`failure`] turns it into an error.
//! - A handle is a number in the guise of a pointer, looked up in [`handles`] and never dereferenced.
//! - A request has its callback called exactly once, whatever becomes of it ([`requests`]).
//! - Only [`memory`] reads and writes what a caller points at. Else only callers' functions are called without the compiler's help.
//!
//! Nothing calls this in a program that links the crate as Rust, and its linker drops it; the symbols are visible in the C library
//! alone (docs/decisions/0034).

pub mod aio;
pub mod cluster;
mod declare;
mod engine;
mod failure;
mod handles;
#[cfg(test)]
mod header;
pub mod io;
pub mod library;
mod log;
mod memory;
mod operations;
mod requests;
mod status;
#[cfg(test)]
mod tests;
pub mod types;
pub mod volume;
