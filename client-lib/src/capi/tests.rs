//! What C is told when it gives something wrong, and what becomes of requests: over a cluster that keeps silent.

#![expect(unsafe_code, reason = "functions for C are called")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "as in C, where a whole program is one")]

use std::ffi::{CStr, CString, c_int, c_void};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;

use super::aio::{helio_aio_flush, helio_aio_read, helio_aio_write};
use super::cluster::{helio_cluster_close, helio_cluster_open, helio_cluster_open_socket, helio_cluster_volumes};
use super::engine::Engine;
use super::failure::{
    E2BIG, EAGAIN, EBADF, ECANCELED, EDEADLK, EINVAL, EIO, EROFS, ETIMEDOUT, Failure, answered, last_error,
};
use super::handles;
use super::io::{helio_extents, helio_flush, helio_read, helio_readv, helio_write};
use super::library::{helio_last_error, helio_log, helio_version};
use super::memory::{Landing, Options, Source};
use super::types::*;
use super::volume::*;
use crate::client;
use crate::rights::Right;
use crate::transport::{BoxFuture, Class, Transport, TransportError};
use crate::types::{Epoch, NodeId, SnapshotId, VolumeId};
use crate::wire::client::{ClientMessage, ClientReply, ClientRequest, MemberInfo, Opened};
use crate::wire::frame::Frame;

/// Opens volumes, and never answers anything else: what is asked of a volume waits. Reads of a snapshot break.
#[derive(Debug)]
struct Silent;

impl Transport for Silent {
    fn call(&self, _: NodeId, _: Class, request: Bytes, _: Duration) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        let frame = Frame::decode(&request).expect("a frame");
        let head = ClientMessage::<ClientRequest>::decode(frame).expect("a request").head;
        Box::pin(async move {
            match head {
                ClientRequest::OpenFor { name } => {
                    let snapshot = name.contains('@').then_some(SnapshotId(1));
                    let (volume, size, session, epoch) = (VolumeId(1), 1 << 20, 1, Epoch(1));
                    let opened = Opened { volume, snapshot, size, session, epoch };
                    let head = ClientReply::OpenedFor { opened, right: Right::Write, keys: None };
                    Ok(ClientMessage { head, payload: Bytes::new() }.encode().expect("is encoded"))
                }
                ClientRequest::Read { .. } => panic!("an unlikely thing"),
                _ => std::future::pending().await,
            }
        })
    }

    fn set_peer(&self, _: NodeId, _: SocketAddr) {}

    fn remove_peer(&self, _: NodeId) {}

    fn rtt(&self, _: NodeId) -> Option<Duration> {
        None
    }
}

fn silent() -> *mut Cluster {
    let member = MemberInfo {
        node: NodeId(1),
        name: "a".to_owned(),
        provider: "cloud".to_owned(),
        address: "192.0.2.1:1".to_owned(),
    };
    let engine = Engine::start(1, || Ok(client::Cluster::over(Arc::new(Silent), vec![member])));
    handles::add_cluster(engine.expect("threads start"))
}

fn open(cluster: *mut Cluster, name: &CStr, flags: u32) -> *mut Volume {
    let options = OpenOptions { size: 24, flags, ..Options::DEFAULT };
    let mut volume = ptr::null_mut();
    // SAFETY: everything outlives the call.
    let opened = unsafe { helio_volume_open(cluster, name.as_ptr(), &raw const options, &raw mut volume) };
    assert_eq!(opened, 0, "{}", told());
    volume
}

fn told() -> String {
    // SAFETY: it is never NULL, and read before the next call.
    unsafe { CStr::from_ptr(last_error()) }.to_string_lossy().into_owned()
}

/// What a callback was called with.
type Told = (c_int, String);

/// Tells the sender behind `user`.
unsafe extern "C" fn tell(user: *mut c_void, result: c_int) {
    // SAFETY: every request of these tests is given one that outlives it.
    let sender = unsafe { &*user.cast::<Sender<Told>>() };
    sender.send((result, told())).expect("somebody listens");
}

fn listen() -> (Box<Sender<Told>>, Receiver<Told>) {
    let (sender, receiver) = channel();
    (Box::new(sender), receiver)
}

fn user(sender: &Sender<Told>) -> *mut c_void {
    ptr::from_ref(sender).cast_mut().cast()
}

#[test]
fn handles_that_are_not_open_are_refused() {
    let (cluster, other) = (silent(), silent());
    let volume = open(cluster, c"disk", 0);
    assert_ne!(cluster, other);
    // SAFETY: handles may be anything.
    unsafe {
        assert_eq!(helio_flush(ptr::null_mut(), 0), -EBADF);
        assert_eq!(told(), "the volume is NULL");
        assert_eq!(helio_flush(ptr::without_provenance_mut(usize::MAX), 0), -EBADF);
        assert_eq!(helio_flush(cluster.cast(), 0), -EBADF, "it is of another kind");
        assert_eq!(helio_cluster_close(volume.cast()), -EBADF);
        assert_eq!(helio_volume_size(volume), 1 << 20);
        // The volume outlives the cluster's handle.
        assert_eq!(helio_cluster_close(cluster), 0);
        assert_eq!(helio_cluster_close(cluster), -EBADF, "closed already");
        assert_eq!(helio_volume_size(volume), 1 << 20);
        assert_eq!(helio_volume_cancel(volume), 0);
        assert_eq!(helio_volume_close(volume), -ECANCELED);
        assert_eq!(helio_volume_close(volume), -EBADF, "closed already");
        assert_eq!(helio_volume_cancel(volume), -EBADF);
        assert_eq!(helio_volume_size(volume), i64::from(-EBADF));
        assert_eq!(helio_cluster_close(other), 0);
    }
}

#[test]
fn whatever_waits_ends_when_the_volume_is_cancelled_and_is_told_of_once() {
    let cluster = silent();
    let volume = open(cluster, c"disk", 0);
    let (sender, receiver) = listen();
    let mut block = vec![7u8; 4096];
    let (buffer, address) = (block.as_mut_ptr().cast::<c_void>(), volume.addr());
    // SAFETY: the buffers and the sender outlive the requests, which end with the volume.
    unsafe {
        for _ in 0..HELIO_REQUESTS_MAX / 2 {
            assert_eq!(helio_aio_write(volume, 0, buffer, 4096, HELIO_FUA, Some(tell), user(&sender)), 0);
            assert_eq!(helio_aio_flush(volume, 0, Some(tell), user(&sender)), 0);
        }
        assert_eq!(helio_aio_flush(volume, 0, Some(tell), user(&sender)), -EAGAIN);
        assert!(receiver.try_recv().is_err(), "nothing is done, and what was refused is not told");
    }
    let blocked = std::thread::spawn(move || {
        // SAFETY: a handle.
        let flushed = unsafe { helio_flush(ptr::without_provenance_mut(address), 0) };
        (flushed, told())
    });
    let closing = std::thread::spawn(move || {
        // SAFETY: a handle.
        unsafe { helio_volume_close(ptr::without_provenance_mut(address)) }
    });
    // SAFETY: a handle.
    unsafe {
        // Once it is being closed nothing more can be begun; cancelling can.
        while helio_volume_size(volume) >= 0 {
            std::thread::yield_now();
        }
        assert_eq!(helio_aio_flush(volume, 0, Some(tell), user(&sender)), -EBADF);
        assert_eq!(helio_volume_cancel(volume), 0);
    }
    assert_eq!(closing.join().expect("no panic"), -ECANCELED);
    let results: Vec<Told> = receiver.try_iter().collect();
    assert_eq!(results.len(), HELIO_REQUESTS_MAX as usize, "all of them before the end of the closing");
    assert!(results.iter().all(|(result, text)| *result == -ECANCELED && text.contains("cancelled")), "{results:?}");
    // It may have come too late to begin.
    let (flushed, text) = blocked.join().expect("no panic");
    assert!([-ECANCELED, -EBADF].contains(&flushed), "{flushed}: {text}");
    // SAFETY: a handle.
    assert_eq!(unsafe { helio_cluster_close(cluster) }, 0);
}

#[test]
fn threads_that_go_on_while_the_volume_is_closed_are_refused_and_none_of_their_requests_is_lost() {
    const ROUNDS: usize = 40;
    let cluster = silent();
    for round in 0..ROUNDS {
        // What was opened for reading is flushed at once; the other waits until it is cancelled.
        let is_read_only = round % 2 == 0;
        let volume = open(cluster, c"disk", if is_read_only { HELIO_READ_ONLY } else { 0 });
        let (sender, receiver) = listen();
        let address = volume.addr();
        let (begun, has_begun) = channel();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let begun = begun.clone();
                // The senders live until all are joined.
                let sender = ptr::from_ref(&*sender).expose_provenance();
                std::thread::spawn(move || {
                    let user = ptr::with_exposed_provenance_mut::<c_void>(sender);
                    let volume = ptr::without_provenance_mut(address);
                    let mut count = 0;
                    loop {
                        // SAFETY: a handle, and a sender that lives longer.
                        match unsafe { helio_aio_flush(volume, 0, Some(tell), user) } {
                            0 => {
                                count += 1;
                                // Nobody listens any more once there were enough.
                                let _ = begun.send(());
                            }
                            refused if refused == -EAGAIN => std::thread::yield_now(),
                            refused => {
                                assert_eq!(refused, -EBADF, "{}", told());
                                break count;
                            }
                        }
                    }
                })
            })
            .collect();
        has_begun.iter().take(50).for_each(|()| ());
        // SAFETY: a handle.
        unsafe {
            if !is_read_only {
                assert_eq!(helio_volume_cancel(volume), 0);
            }
            assert_eq!(helio_volume_close(volume), if is_read_only { 0 } else { -ECANCELED });
        }
        let told = receiver.try_iter().count();
        let begun: usize = threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();
        assert_eq!(told, begun, "round {round}: each once, and before the volume was closed");
        assert!(receiver.try_recv().is_err());
    }
    // SAFETY: a handle.
    assert_eq!(unsafe { helio_cluster_close(cluster) }, 0);
}

/// Calls that block are made where they must not be.
unsafe extern "C" fn misuse(user: *mut c_void, _: c_int) {
    let volume = open_volume().lock().expect("no panic").expect("is set");
    let volume: *mut Volume = ptr::without_provenance_mut(volume);
    // SAFETY: a handle; nothing is written.
    let result = unsafe {
        let closed = helio_volume_close(volume);
        if closed == -EDEADLK { helio_flush(volume, 0) } else { closed }
    };
    // SAFETY: the same promise.
    unsafe { tell(user, result) };
}

fn open_volume() -> &'static std::sync::Mutex<Option<usize>> {
    static OPEN: std::sync::Mutex<Option<usize>> = std::sync::Mutex::new(None);
    &OPEN
}

#[test]
fn a_callback_that_would_wait_for_itself_is_told_so() {
    let cluster = silent();
    // What was opened for reading has nothing to flush: its flushes are done at once.
    let volume = open(cluster, c"disk", HELIO_READ_ONLY);
    *open_volume().lock().expect("no panic") = Some(volume.addr());
    let (sender, receiver) = listen();
    // SAFETY: the sender outlives the request.
    unsafe {
        assert_eq!(helio_aio_flush(volume, 0, Some(misuse), user(&sender)), 0);
        let (result, text) = receiver.recv().expect("is told");
        assert_eq!(result, -EDEADLK);
        assert!(text.contains("in a callback"), "{text}");
        let refused = helio_write(volume, 0, [0u8; 512].as_ptr().cast(), 512, 0);
        assert_eq!(refused, -EROFS, "{}", told());
        assert_eq!(helio_volume_close(volume), 0, "the callback did not close it");
        assert_eq!(helio_cluster_close(cluster), 0);
    }
}

#[test]
fn a_panic_is_an_error_of_that_call_and_of_that_request() {
    let answer: c_int = answered(|| -> Result<c_int, Failure> { panic!("an unlikely thing") });
    assert_eq!((answer, told().contains("a bug in libheliotrope, please report it: an unlikely thing")), (-EIO, true));
    let cluster = silent();
    let volume = open(cluster, c"disk@monday", 0);
    let (sender, receiver) = listen();
    let mut block = [0u8; 512];
    // SAFETY: the buffer and the sender outlive the requests.
    unsafe {
        assert_eq!(helio_read(volume, 0, block.as_mut_ptr().cast(), 512, 0), -EIO);
        assert_eq!(helio_aio_read(volume, 0, block.as_mut_ptr().cast(), 512, 0, Some(tell), user(&sender)), 0);
        assert_eq!(receiver.recv().expect("is told").0, -EIO);
        assert_eq!(helio_aio_flush(volume, 0, Some(tell), user(&sender)), 0, "the thread goes on");
        assert_eq!(receiver.recv().expect("is told"), (0, String::new()));
        assert_eq!(helio_volume_close(volume), 0);
        assert!(receiver.try_recv().is_err(), "once each");
        assert_eq!(helio_cluster_close(cluster), 0);
    }
}

#[test]
fn arguments_that_make_no_sense_are_named() {
    let cluster = silent();
    let volume = open(cluster, c"disk", 0);
    let mut block = [0u8; 1024];
    let buffer = block.as_mut_ptr().cast::<c_void>();
    let parts = [IoVec { base: buffer, length: usize::MAX }, IoVec { base: buffer, length: 2 }];
    let invalid = |result: c_int, word: &str| {
        assert_eq!(result, -EINVAL, "{word}");
        assert!(told().contains(word), "{word}: {}", told());
    };
    // SAFETY: nothing of this reaches the buffers; the lists are as long as is said.
    unsafe {
        invalid(helio_read(volume, 1, buffer, 512, 0), "whole sectors");
        invalid(helio_read(volume, u64::MAX - 511, buffer, 1024, 0), "beyond any volume");
        invalid(helio_read(volume, 0, ptr::null_mut(), 512, 0), "a buffer is NULL");
        invalid(helio_read(volume, 0, buffer, 512, HELIO_FUA), "unknown flags 0x1");
        invalid(helio_write(volume, 0, buffer, 512, 0x80), "unknown flags 0x80");
        invalid(helio_readv(volume, 0, parts.as_ptr(), 2, 0), "longer than memory");
        invalid(helio_readv(volume, 0, parts.as_ptr(), -1, 0), "-1 buffers");
        invalid(helio_readv(volume, 0, parts.as_ptr(), 1025, 0), "1025 buffers");
        invalid(helio_readv(volume, 0, ptr::null(), 1, 0), "the list of buffers is NULL");
        invalid(helio_aio_read(volume, 0, buffer, 512, 0, None, ptr::null_mut()), "the callback is NULL");
        invalid(helio_extents(volume, 0, 512, 0, None, ptr::null_mut()), "the visitor is NULL");
        invalid(helio_volume_watch(volume, None, ptr::null_mut()), "the watcher is NULL");
        invalid(helio_volume_status(volume, ptr::null_mut()), "the place for the status is NULL");
        invalid(helio_volume_open(cluster, c"x".as_ptr(), ptr::null(), ptr::null_mut()), "the place for the handle");
        let mut handle = ptr::without_provenance_mut(7);
        invalid(helio_volume_open(cluster, ptr::null(), ptr::null(), &raw mut handle), "the volume's name is NULL");
        assert!(handle.is_null(), "a failure leaves no old handle behind");
        invalid(helio_volume_open(cluster, c"\xff".as_ptr(), ptr::null(), &raw mut handle), "not UTF-8");
        let mut other = ptr::null_mut();
        let many = ClusterOptions { size: 8, threads: 65 };
        invalid(helio_cluster_open_socket(c"x".as_ptr(), &raw const many, &raw mut other), "65 threads");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = CString::new(file.path().as_os_str().as_bytes()).expect("a path");
        invalid(helio_cluster_open(path.as_ptr(), ptr::null(), &raw mut other), "helio cluster client NAME --out FILE");
        assert_eq!(helio_volume_cancel(volume), 0);
        assert_eq!(helio_volume_close(volume), -ECANCELED);
        assert_eq!(helio_cluster_close(cluster), 0);
    }
}

#[test]
fn options_of_older_and_newer_programs_are_understood() {
    /// As a later version of the library may have it.
    #[repr(C)]
    struct Later {
        options: OpenOptions,
        more: u64,
    }
    let cluster = silent();
    let mut volume = ptr::null_mut();
    let mut later = Later { options: OpenOptions { size: 48, flags: HELIO_READ_ONLY, ..Options::DEFAULT }, more: 0 };
    // SAFETY: everything outlives the calls, and is as large as it says.
    unsafe {
        assert_eq!(helio_volume_open(cluster, c"disk".as_ptr(), (&raw const later).cast(), &raw mut volume), 0);
        assert_eq!(helio_volume_close(volume), 0, "opened for reading, as it said");
        later.more = 1;
        assert_eq!(helio_volume_open(cluster, c"disk".as_ptr(), (&raw const later).cast(), &raw mut volume), -E2BIG);
        later.options.size = 4;
        assert_eq!(helio_volume_open(cluster, c"disk".as_ptr(), (&raw const later).cast(), &raw mut volume), -EINVAL);
        later.options.size = 28;
        assert_eq!(helio_volume_open(cluster, c"disk".as_ptr(), (&raw const later).cast(), &raw mut volume), -EINVAL);
        later.options.size = 24;
        later.options.flags = 4;
        assert_eq!(helio_volume_open(cluster, c"disk".as_ptr(), (&raw const later).cast(), &raw mut volume), -EINVAL);
        later.options = OpenOptions { size: 40, key_file: c"/nowhere/key".as_ptr(), ..Options::DEFAULT };
        assert_eq!(helio_volume_open(cluster, c"disk".as_ptr(), (&raw const later).cast(), &raw mut volume), -EINVAL);
        assert!(told().contains("is not encrypted"), "{}", told());
        later.options.key_command = c"exit 1".as_ptr();
        assert_eq!(helio_volume_open(cluster, c"disk".as_ptr(), (&raw const later).cast(), &raw mut volume), -EINVAL);
        assert!(told().contains("both set"), "{}", told());

        /// As a program of a later version has it, on an older library.
        #[repr(C)]
        struct LaterStatus {
            status: Status,
            more: [u8; 8],
        }
        let volume = open(cluster, c"disk@monday", 0);
        let mut place = std::mem::MaybeUninit::<LaterStatus>::uninit();
        place.as_mut_ptr().write_bytes(0xee, 1);
        place.as_mut_ptr().cast::<u32>().write(376);
        assert_eq!(helio_volume_status(volume, place.as_mut_ptr().cast()), 0);
        let LaterStatus { status, more } = place.assume_init();
        assert_eq!((status.size, status.state, status.flags), (376, HELIO_CONNECTED, HELIO_READ_ONLY));
        assert_eq!((status.volume_bytes, status.sector_bytes, status.epoch, more), (1 << 20, 512, 1, [0; 8]));
        assert_eq!(helio_volume_close(volume), 0);
        assert_eq!(helio_cluster_close(cluster), 0);
    }
}

#[test]
fn who_watches_is_told_how_the_volume_stands_until_it_is_closed() {
    unsafe extern "C" fn watch(user: *mut c_void, status: *const Status) {
        // SAFETY: the library gives a status.
        let status = unsafe { &*status };
        // SAFETY: it ends with a zero byte.
        let reason = unsafe { CStr::from_ptr(status.reason.as_ptr()) }.to_string_lossy().into_owned();
        // SAFETY: the sender outlives the volume.
        let sender = unsafe { &*user.cast::<Sender<Told>>() };
        sender.send((status.state as c_int, reason)).expect("somebody listens");
    }
    let cluster = silent();
    let volume = open(cluster, c"disk", 0);
    let (sender, receiver) = listen();
    // SAFETY: the sender outlives the volume.
    unsafe {
        assert_eq!(helio_volume_watch(volume, Some(watch), user(&sender)), 0);
        let (state, reason) = receiver.recv().expect("is told");
        assert_eq!(state, HELIO_WAITING as c_int);
        assert!(!reason.is_empty());
        assert_eq!(helio_volume_cancel(volume), 0);
        assert_eq!(helio_volume_close(volume), -ECANCELED);
        assert_eq!(helio_cluster_close(cluster), 0);
    }
    drop(sender);
    // Nobody has another: what is left in the channel is all that was told.
    receiver.iter().for_each(|(state, _)| assert_eq!(state, HELIO_WAITING as c_int));
}

unsafe extern "C" fn note(user: *mut c_void, level: u32, text: *const std::ffi::c_char) {
    // SAFETY: the sender outlives the logging, and the text the call.
    let (sender, text) = unsafe { (&*user.cast::<Sender<(u32, String)>>(), CStr::from_ptr(text)) };
    // SAFETY: nothing is pointed at.
    assert_eq!(unsafe { helio_log(0, None, ptr::null_mut()) }, -EDEADLK, "it would wait for itself");
    sender.send((level, text.to_string_lossy().into_owned())).expect("somebody listens");
}

#[test]
fn what_waits_is_told_to_who_wants_to_know_and_to_nobody_later() {
    let (sender, receiver) = channel::<(u32, String)>();
    let sender = Box::new(sender);
    let told_to = ptr::from_ref(&*sender).cast_mut().cast();
    // SAFETY: the sender outlives the logging.
    unsafe {
        assert_eq!(helio_log(4, Some(note), told_to), -EINVAL);
        assert_eq!(helio_log(HELIO_LOG_WARNING, Some(note), told_to), 0);
        nobody_answers(c"/nowhere/first.sock");
        // Other tests may be told of in between.
        let (level, text) = receiver.iter().find(|(_, text)| text.contains("/nowhere/first.sock")).expect("is told");
        assert!(level == HELIO_LOG_WARNING && text.starts_with("no node answers"), "{text}");
        assert_eq!(helio_log(HELIO_LOG_ERROR, Some(note), told_to), 0);
        nobody_answers(c"/nowhere/second.sock");
        assert_eq!(helio_log(0, None, ptr::null_mut()), 0);
        nobody_answers(c"/nowhere/third.sock");
    }
    drop(sender);
    let told_later = receiver.iter().find(|(_, text)| text.contains("second.sock") || text.contains("third.sock"));
    assert_eq!(told_later, None, "the second was no error, and of the third nobody wanted to know");
}

/// Asks where nobody is.
fn nobody_answers(socket: &CStr) {
    unsafe extern "C" fn visit(_: *mut c_void, _: *const VolumeInfo) -> c_int {
        unreachable!("no node runs that could tell of volumes")
    }
    let mut cluster = ptr::null_mut();
    // SAFETY: everything outlives the calls.
    unsafe {
        let opened = helio_cluster_open_socket(socket.as_ptr(), ptr::null(), &raw mut cluster);
        assert_eq!(opened, 0, "it connects to nobody yet");
        assert_eq!(helio_cluster_volumes(cluster, 1, Some(visit), ptr::null_mut()), -ETIMEDOUT);
        assert!(told().contains(&*socket.to_string_lossy()), "{}", told());
        assert_eq!(helio_cluster_close(cluster), 0);
    }
}

#[test]
fn texts_of_failures_are_of_their_thread() {
    // SAFETY: handles may be anything, and the texts are there until the next call.
    unsafe {
        assert_eq!(helio_flush(ptr::null_mut(), 0), -EBADF);
        let other = std::thread::spawn(|| CStr::from_ptr(helio_last_error()).to_owned());
        assert_eq!(other.join().expect("no panic").as_c_str(), c"");
        assert_eq!(CStr::from_ptr(helio_last_error()), c"the volume is NULL");
        assert_eq!(CStr::from_ptr(helio_version()).to_str(), Ok(env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn nobody_is_waited_for_longer_than_was_said() {
    nobody_answers(c"/nowhere/client.sock");
    let mut cluster = ptr::null_mut();
    // SAFETY: everything outlives the calls.
    unsafe {
        assert_eq!(helio_cluster_open_socket(c"/nowhere/client.sock".as_ptr(), ptr::null(), &raw mut cluster), 0);
        let options = OpenOptions { size: 24, give_up_ms: 1, ..Options::DEFAULT };
        let mut volume = ptr::null_mut();
        let opened = helio_volume_open(cluster, c"disk".as_ptr(), &raw const options, &raw mut volume);
        assert_eq!((opened, volume), (-ETIMEDOUT, ptr::null_mut()));
        assert_eq!(helio_cluster_close(cluster), 0);
    }
}

#[test]
fn buffers_are_filled_and_taken_from_one_behind_the_other() {
    let (mut first, mut second, mut third) = ([0u8; 3], [0u8; 5], [0u8; 2]);
    let mut parts = [
        IoVec { base: first.as_mut_ptr().cast(), length: 3 },
        IoVec { base: ptr::null_mut(), length: 0 },
        IoVec { base: second.as_mut_ptr().cast(), length: 5 },
        IoVec { base: third.as_mut_ptr().cast(), length: 2 },
    ];
    // SAFETY: the arrays outlive it.
    let mut landing = unsafe { Landing::listed(parts.as_ptr(), 4) }.expect("a list");
    // The list is not needed any more.
    let kept = std::mem::replace(&mut parts, [IoVec { base: ptr::null_mut(), length: 9 }; 4]);
    assert_eq!(landing.length(), 10);
    landing.put(&[1, 2, 3, 4]);
    landing.put_zeroes(2);
    landing.put(&[7, 8, 9]);
    assert_eq!(landing.length(), 1);
    landing.put(&[10]);
    assert_eq!(landing.length(), 0);
    assert_eq!((first, second, third), ([1, 2, 3], [4, 0, 0, 7, 8], [9, 10]));
    // SAFETY: the arrays outlive it.
    let mut source = unsafe { Source::listed(kept.as_ptr(), 4) }.expect("a list");
    assert_eq!(source.take(4), [1, 2, 3, 4].as_slice());
    assert_eq!(source.take(0), Bytes::new());
    assert_eq!(source.take(6), [0, 0, 7, 8, 9, 10].as_slice());
    assert_eq!(source.length(), 0);
}
