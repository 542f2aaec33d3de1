//! The addresses that a node's settings name: whether it can have them.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use super::Finding;
use crate::config::NodeConfig;

/// Whether this node runs already, and has its addresses then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runs {
    No,
    /// It should, and does not answer.
    Perhaps,
    Yes,
}

pub(super) fn findings(config: &NodeConfig, runs: Runs) -> Vec<Finding> {
    let tcp = |address| TcpListener::bind(address).map(drop);
    let mut findings = vec![address("listen (UDP)", config.listen, UdpSocket::bind(config.listen).map(drop), runs)];
    findings.push(address("[admin] http", config.admin.http, tcp(config.admin.http), runs));
    let remote = config.admin.remote.then_some(config.listen);
    findings.extend(remote.map(|remote| address("[admin] remote (TCP)", remote, tcp(remote), runs)));
    findings.extend(config.nbd.tcp.map(|nbd| address("[nbd] tcp", nbd, tcp(nbd), runs)));
    findings.extend(config.metrics.listen.map(|metrics| address("[metrics] listen", metrics, tcp(metrics), runs)));
    findings.extend(exposed(config));
    findings
}

fn address(setting: &str, address: SocketAddr, bound: io::Result<()>, runs: Runs) -> Finding {
    let what = format!("{setting} {address}");
    match bound {
        Ok(()) => Finding::ok(what, "free"),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match runs {
            Runs::Yes => Finding::ok(what, "in use, and the node runs"),
            Runs::Perhaps => Finding::warning(
                what,
                "in use, by the node perhaps, which gives no answer",
                "`ss -lnp` names who has it",
            ),
            Runs::No => {
                Finding::wrong(what, "in use by something else", "stop that (`ss -lnp` names it), or name another port")
            }
        },
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Finding::wrong(
            what,
            "no address of this machine",
            "name one that `ip address` shows; `advertise` is for the one that others use",
        ),
        Err(error) => Finding::wrong(what, error.to_string(), "name another address"),
    }
}

/// Whoever reaches NBD without TLS can read and write every volume.
fn exposed(config: &NodeConfig) -> Option<Finding> {
    let nbd = config.nbd.tcp.filter(|nbd| !nbd.ip().is_loopback())?;
    if config.nbd.tls.as_ref().and_then(|tls| tls.options()).is_some_and(|tls| tls.client_authority.is_some()) {
        return None;
    }
    let found = "open beyond this machine, and clients need no certificate";
    let advice = "whoever reaches it reads and writes every volume: `[nbd.tls]` with `client_authority` (docs/nbd-tls.md), or a firewall";
    Some(Finding::warning(format!("[nbd] tcp {nbd}"), found, advice))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn an_address_in_use_is_wrong_unless_the_node_has_it() {
        let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = holder.local_addr().expect("an address");
        let level = |runs| address("[admin] http", taken, TcpListener::bind(taken).map(drop), runs).level;
        let levels = [Runs::No, Runs::Perhaps, Runs::Yes].map(level);
        assert_eq!(levels, [Level::Wrong, Level::Warning, Level::Ok]);
        // Of the block that is for documentation (RFC 5737).
        let foreign: SocketAddr = "192.0.2.1:10810".parse().expect("an address");
        let finding = address("listen (UDP)", foreign, UdpSocket::bind(foreign).map(drop), Runs::Yes);
        assert_eq!((finding.level, finding.found.as_str()), (Level::Wrong, "no address of this machine"));
    }

    /// A start fails when it cannot have any of them. The doctor passed over the address of metrics, and said of settings with
    /// which the node did not start that nothing was wrong.
    #[test]
    fn every_address_that_a_start_needs_is_looked_at() {
        let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = holder.local_addr().expect("an address");
        let text = format!(
            "name = \"a\"\nprovider = \"x\"\ndata = \"/d\"\nlisten = \"127.0.0.1:0\"\n[admin]\nhttp = \"127.0.0.1:0\"\n[metrics]\nlisten = \"{taken}\"\n"
        );
        let found = findings(&toml::from_str(&text).expect("settings"), Runs::No);
        let wrong: Vec<&Finding> = found.iter().filter(|finding| finding.level == Level::Wrong).collect();
        assert!(matches!(wrong[..], [one] if one.what == format!("[metrics] listen {taken}")), "{found:?}");
    }

    #[test]
    fn nbd_that_anybody_reaches_is_a_warning() {
        let config = |nbd: &str| -> NodeConfig {
            let text = format!(
                "name = \"a\"\nprovider = \"x\"\ndata = \"/d\"\nlisten = \"127.0.0.1:1\"\n[nbd]\ntcp = \"{nbd}\"\n"
            );
            toml::from_str(&text).expect("settings")
        };
        assert_eq!(exposed(&config("127.0.0.1:10809")), None);
        assert_eq!(exposed(&config("192.0.2.1:10809")).map(|finding| finding.level), Some(Level::Warning));
    }
}
