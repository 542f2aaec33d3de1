//! Functions about clusters.

#![expect(unsafe_code, reason = "functions for C")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::time::Duration;

use super::declare::functions;
use super::engine::{Engine, require_own_thread};
use super::failure::Failure;
use super::handles;
use super::memory::{Place, options, text};
use super::types::{Cluster, ClusterOptions, HELIO_SNAPSHOT, NodeInfo, NodeVisitor, VolumeInfo, VolumeVisitor};
use crate::client;
use crate::error::Error;

/// Most threads of a cluster: more than any network keeps busy.
const THREADS_MAX: u32 = 64;

fn open(
    cluster: Place<Cluster>,
    options: ClusterOptions,
    make: impl FnOnce() -> Result<client::Cluster, Error>,
) -> Result<c_int, Failure> {
    require_own_thread()?;
    if options.threads > THREADS_MAX {
        return Err(Failure::invalid(format!("{} threads, where there may be {THREADS_MAX}", options.threads)));
    }
    let engine = Engine::start(options.threads.max(1) as usize, make)?;
    cluster.fill(handles::add_cluster(engine));
    Ok(0)
}

/// Milliseconds as C gives them.
pub(super) fn patience(give_up_ms: u64) -> Option<Duration> {
    (give_up_ms > 0).then(|| Duration::from_millis(give_up_ms))
}

/// A text of ours for C.
fn owned(text: String) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

functions! {
    /// The cluster of these credentials, a file that `helio cluster client` wrote. Connects to nobody yet. options may be NULL.
    /// Starts threads, which have the signal mask of this one.
    fn helio_cluster_open(credentials: *const c_char, options: *const ClusterOptions, cluster: *mut *mut Cluster) -> c_int {
        handles::require_process()?;
        // SAFETY: the caller's promise, see the header.
        let cluster = unsafe { Place::new(cluster) }?;
        // SAFETY: the same.
        let credentials = unsafe { text(credentials, "the name of the credentials' file") }?;
        // SAFETY: the same.
        let options = unsafe { self::options(options) }?;
        open(cluster, options, || client::Cluster::from_credentials(Path::new(&credentials)))
    }

    /// The cluster of the node whose socket for clients this is (client.sock in its data directory), on this machine. Everything goes
    /// through that node, and waits while it does not run. Else as helio_cluster_open.
    fn helio_cluster_open_socket(path: *const c_char, options: *const ClusterOptions, cluster: *mut *mut Cluster) -> c_int {
        handles::require_process()?;
        // SAFETY: the caller's promise, see the header.
        let cluster = unsafe { Place::new(cluster) }?;
        // SAFETY: the same.
        let path = unsafe { text(path, "the path of the socket") }?;
        // SAFETY: the same.
        let options = unsafe { self::options(options) }?;
        open(cluster, options, || Ok(client::Cluster::from_socket(Path::new(&path))))
    }

    /// Ends the handle. Volumes that are open stay so; connections and threads end with the last of them. Not in callbacks.
    fn helio_cluster_close(cluster: *mut Cluster) -> c_int {
        require_own_thread()?;
        handles::remove_cluster(cluster)?;
        Ok(0)
    }

    /// Calls visit for every volume and snapshot, by name, on this thread. give_up_ms: milliseconds that it may wait for a node that
    /// answers; 0: as long as it takes.
    fn helio_cluster_volumes(cluster: *mut Cluster, give_up_ms: u64, visit: VolumeVisitor, user: *mut c_void) -> c_int {
        let visit = visit.ok_or_else(|| Failure::invalid("the visitor is NULL"))?;
        let engine = handles::cluster(cluster)?;
        let volumes = async { Ok(engine.cluster().volumes(patience(give_up_ms)).await?) };
        for volume in engine.wait(volumes)? {
            let name = owned(volume.name);
            let info = VolumeInfo {
                size: size_of::<VolumeInfo>() as u32,
                flags: if volume.is_snapshot { HELIO_SNAPSHOT } else { 0 },
                volume_bytes: volume.size,
                name: name.as_ptr(),
            };
            // SAFETY: the caller gave this function for that, with this pointer; the structure is there during the call.
            let wish = unsafe { visit(user, &raw const info) };
            if wish != 0 {
                return Ok(wish);
            }
        }
        Ok(0)
    }

    /// Calls visit for every node, on this thread. give_up_ms as with helio_cluster_volumes.
    fn helio_cluster_nodes(cluster: *mut Cluster, give_up_ms: u64, visit: NodeVisitor, user: *mut c_void) -> c_int {
        let visit = visit.ok_or_else(|| Failure::invalid("the visitor is NULL"))?;
        let engine = handles::cluster(cluster)?;
        let members = async { Ok(engine.cluster().members(patience(give_up_ms)).await?) };
        for member in engine.wait(members)? {
            let (name, provider, address) = (owned(member.name), owned(member.provider), owned(member.address));
            let info = NodeInfo {
                size: size_of::<NodeInfo>() as u32,
                flags: 0,
                name: name.as_ptr(),
                provider: provider.as_ptr(),
                address: address.as_ptr(),
            };
            // SAFETY: the caller gave this function for that, with this pointer; the structure is there during the call.
            let wish = unsafe { visit(user, &raw const info) };
            if wish != 0 {
                return Ok(wish);
            }
        }
        Ok(0)
    }
}
