//! An export in memory, behind a server and a client, for tests: whoever makes one may look at each read and flush before it is
//! carried out, and have it fail.

use std::sync::Arc;

use bytes::Bytes;
use client_lib::transport::BoxFuture;
use client_lib::{Error, ReadPart};
use nbd_frontend::client::{Client, ClientOptions, NbdUri, ServerAddress};
use nbd_frontend::{
    AllocationExtent, ExportDirectory, ExportInfo, MemoryDirectory, MemoryExport, Server, ServerOptions, Session,
    ZeroOptions,
};

use super::ends::{End, Target};

pub(in crate::cli) const MIB: u64 = 1 << 20;

/// What is about to be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Operation {
    /// From this position on.
    Read(u64),
    Flush,
}

/// Is told of operations, and may have them fail.
type Hook = Arc<dyn Fn(Operation) -> Result<(), Error> + Send + Sync>;

/// An export in memory, behind a server and a client.
pub(in crate::cli) struct Memory {
    pub(in crate::cli) export: Arc<MemoryExport>,
    pub(in crate::cli) client: Arc<Client>,
    pub(in crate::cli) uri: NbdUri,
    _server: Server,
    _directory: tempfile::TempDir,
}

impl Memory {
    pub(in crate::cli) async fn new(size: u64) -> Memory {
        Memory::hooked(size, |_| Ok(())).await
    }

    /// One whose operations `hook` is told of first.
    pub(in crate::cli) async fn hooked(
        size: u64,
        hook: impl Fn(Operation) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Memory {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let export = Arc::new(MemoryExport::new("disk", size));
        let exports = MemoryDirectory::new(vec![Arc::clone(&export)]);
        let exports = Arc::new(HookedDirectory { exports, hook: Arc::new(hook) });
        let options = ServerOptions { unix: Some(socket.clone()), ..ServerOptions::default() };
        let server = Server::bind(options, exports).await.expect("listens");
        let uri = NbdUri { server: ServerAddress::Unix(socket), export: "disk".into(), tls: None };
        let client = Client::connect(&uri, ClientOptions { connections: 2 }).await.expect("connects");
        Memory { export, client: Arc::new(client), uri, _server: server, _directory: directory }
    }

    pub(in crate::cli) fn end(&self) -> End {
        End::Nbd(Arc::clone(&self.client))
    }

    pub(in crate::cli) fn target(&self, zeroed: bool) -> Target {
        Target::Nbd { client: Arc::clone(&self.client), zeroed }
    }

    /// Writes what a test wants to be there.
    pub(in crate::cli) async fn fill(&self, at: u64, length: u64, byte: u8) {
        self.client.write(at, vec![byte; length as usize].into()).await.expect("is written");
    }
}

struct HookedDirectory {
    exports: MemoryDirectory,
    hook: Hook,
}

impl ExportDirectory for HookedDirectory {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportInfo>, Error>> {
        self.exports.list()
    }

    fn info<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ExportInfo, Error>> {
        self.exports.info(name)
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn Session>, Error>> {
        Box::pin(async move {
            let session = self.exports.open(name).await?;
            Ok(Arc::new(Hooked { session, hook: Arc::clone(&self.hook) }) as Arc<dyn Session>)
        })
    }
}

struct Hooked {
    session: Arc<dyn Session>,
    hook: Hook,
}

impl Session for Hooked {
    fn info(&self) -> ExportInfo {
        self.session.info()
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(async move {
            (self.hook)(Operation::Read(offset))?;
            self.session.read(offset, length).await
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.session.write(offset, data, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        self.session.write_zeroes(offset, length, options)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        self.session.trim(offset, length, fua)
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            (self.hook)(Operation::Flush)?;
            self.session.flush().await
        })
    }

    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        self.session.allocation(offset, length)
    }
}
