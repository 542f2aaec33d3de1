//! How many files the program may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Takes as many as the system grants. Programs begin with 1024, for the sake of those that use select(2), and may ask for more
/// (systemd.exec(5), `LimitNOFILE=`): every segment of a store is one, and every connection of a client.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(?limit, %error, "the limit of open files cannot be raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_granted_is_taken() {
        let granted = getrlimit(Resource::Nofile).maximum;
        raise_open_files();
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: granted, maximum: granted });
    }
}
