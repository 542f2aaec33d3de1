//! A session that answers when and as a test says.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use bytes::Bytes;
use client_lib::transport::BoxFuture;
use client_lib::{Error, ErrorKind, ReadPart};
use nbd_frontend::proto::constants::CMD_WRITE;
use nbd_frontend::{AllocationExtent, ExportDirectory, ExportInfo, MemoryExport, Session, ZeroOptions};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::common::{HUNG, request};

/// The size of the export before it has grown.
const SIZE: u64 = 1 << 30;

/// A session whose writes wait for permits and then end as told; everything else is answered at once.
pub struct Gate {
    pub permits: Semaphore,
    pub started: AtomicUsize,
    started_signal: tokio::sync::Notify,
    ends: Ends,
    home: Option<Handle>,
    /// The threads that have asked for writes.
    pub threads: Mutex<Vec<ThreadId>>,
}

#[derive(Clone, Copy)]
pub enum Ends {
    Ok,
    Error(ErrorKind),
    Panic,
}

impl Gate {
    pub fn new(ends: Ends) -> Arc<Gate> {
        Gate::at_home(ends, None)
    }

    pub fn at_home(ends: Ends, home: Option<Handle>) -> Arc<Gate> {
        Arc::new(Gate {
            permits: Semaphore::new(0),
            started: AtomicUsize::new(0),
            started_signal: tokio::sync::Notify::new(),
            ends,
            home,
            threads: Mutex::default(),
        })
    }

    pub async fn until_started(&self, count: usize) {
        let wait = async {
            loop {
                let signalled = self.started_signal.notified();
                if self.started.load(Ordering::SeqCst) >= count {
                    return;
                }
                signalled.await;
            }
        };
        tokio::time::timeout(HUNG, wait).await.expect("the requests start");
    }
}

/// Twice as large after the first look, as an export that is grown while a client is connected.
struct GateSession(Arc<Gate>, AtomicUsize);

impl GateSession {
    fn new(gate: &Arc<Gate>) -> GateSession {
        GateSession(Arc::clone(gate), AtomicUsize::new(0))
    }
}

impl Session for GateSession {
    fn info(&self) -> ExportInfo {
        let grown = self.1.fetch_add(1, Ordering::SeqCst).min(1) as u32;
        MemoryExport::new("gate", SIZE << grown).info()
    }

    fn home(&self) -> Option<Handle> {
        self.0.home.clone()
    }

    fn read(&self, _: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(async move { Ok(vec![ReadPart::Zero(length)]) })
    }

    fn write(&self, _: u64, _: Bytes, _: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.0.threads.lock().expect("no thread panics with it").push(std::thread::current().id());
        self.0.started.fetch_add(1, Ordering::SeqCst);
        self.0.started_signal.notify_waiters();
        Box::pin(async {
            self.0.permits.acquire().await.expect("open").forget();
            match self.0.ends {
                Ends::Ok => Ok(()),
                Ends::Error(kind) => Err(Error::new(kind, "as told")),
                Ends::Panic => panic!("as told"),
            }
        })
    }

    fn write_zeroes(&self, _: u64, _: u64, _: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn allocation(&self, _: u64, _: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        Box::pin(async { Ok(vec![]) })
    }
}

pub struct GateDirectory(pub Arc<Gate>);

impl ExportDirectory for GateDirectory {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportInfo>, Error>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn info<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<ExportInfo, Error>> {
        Box::pin(async { Ok(GateSession::new(&self.0).info()) })
    }

    fn open<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async { Ok(Arc::new(GateSession::new(&self.0)) as Arc<dyn Session>) })
    }
}

/// A write of ones at the start.
pub fn write(cookie: u64, length: u32) -> Vec<u8> {
    let mut bytes = request(CMD_WRITE, 0, cookie, 0, length);
    bytes.resize(bytes.len() + length as usize, 1);
    bytes
}

/// The thread of an export, as a node has one per disk.
pub fn export_thread() -> (Handle, std::thread::JoinHandle<()>, tokio::sync::oneshot::Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let home = runtime.handle().clone();
    let (end, ended) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || drop(runtime.block_on(ended)));
    (home, thread, end)
}
