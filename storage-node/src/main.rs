//! The `helio` command.

use std::process::ExitCode;

use clap::Parser;
use storage_node::cli::Helio;

fn main() -> ExitCode {
    storage_node::cli::run(Helio::parse())
}
