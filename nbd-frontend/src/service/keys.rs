//! Where the keys of encrypted volumes are, as programs are told on their command line: by place, never the keys themselves.

use std::path::PathBuf;

use clap::Args;
use client_lib::cipher::KeySource;

/// One place, or none.
#[derive(Clone, Debug, Default, Args)]
pub struct KeyArguments {
    /// The key that opens encrypted volumes: a file of 32 bytes or 64 hexadecimal digits, which only its owner may read
    #[arg(long, value_name = "FILE", group = "key_source")]
    key_file: Option<PathBuf>,
    /// The keys that open encrypted volumes: a directory of such files, each with the name of its key
    #[arg(long, value_name = "DIR", group = "key_source")]
    key_dir: Option<PathBuf>,
    /// A line for /bin/sh that prints the key that HELIO_KEY_NAME names
    #[arg(long, value_name = "COMMAND", group = "key_source")]
    key_command: Option<String>,
}

impl KeyArguments {
    /// The place, if one was given.
    #[must_use]
    pub fn source(&self) -> Option<KeySource> {
        let file = || self.key_file.clone().map(KeySource::File);
        let directory = || self.key_dir.clone().map(KeySource::Directory);
        let command = || self.key_command.clone().map(KeySource::Command);
        file().or_else(directory).or_else(command)
    }
}
