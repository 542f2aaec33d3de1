//! One operation of a session that is looked at closely: the session's own requests, with the operation's trace.

use std::sync::Arc;

use bytes::Bytes;
use client_lib::trace::Trace;
use client_lib::transport::BoxFuture;
use client_lib::{Error, ReadPart};
use nbd_frontend::export::{AllocationExtent, ExportInfo, Session, ZeroOptions};

use super::VolumeSession;

/// A session, for one operation.
pub(super) struct TracedSession {
    pub(super) session: Arc<VolumeSession>,
    pub(super) trace: Trace,
}

impl Session for TracedSession {
    fn info(&self) -> ExportInfo {
        self.session.info()
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<'_, Result<Vec<ReadPart>, Error>> {
        Box::pin(self.session.read_bytes(&self.trace, offset, length))
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.session.write_bytes(&self.trace, offset, data, fua))
    }

    fn write_zeroes(&self, offset: u64, length: u64, options: ZeroOptions) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.session.make_zeroes(&self.trace, offset, length, options.fua))
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.session.drop_bytes(&self.trace, offset, length, fua))
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.session.make_durable(&self.trace))
    }

    /// Nobody looks at these.
    fn allocation(&self, offset: u64, length: u64) -> BoxFuture<'_, Result<Vec<AllocationExtent>, Error>> {
        self.session.allocation(offset, length)
    }
}
