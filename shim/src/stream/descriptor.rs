//! A pipe or terminal end of a process, read and written without blocking.
//!
//! Must not know: the process.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crisp_sys::fd::set_nonblocking;
use rustix::io::{Errno, read, write};
use tokio::{io::Interest, net::UnixStream};

use crate::error::{RequestError, Stage};

/// See the module.
///
/// Tokio's stream type is used for its readiness only, never to read or write.
#[derive(Debug)]
pub(super) struct Descriptor(UnixStream);

impl Descriptor {
    /// Takes a descriptor and switches it to non-blocking.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, RequestError> {
        set_nonblocking(&fd, true).stage("a stream's descriptor")?;
        UnixStream::from_std(fd.into()).map(Self).stage("watch a stream's descriptor")
    }

    /// Reads what is there, at least a byte; 0 at the end.
    ///
    /// Cancel safety: nothing is lost.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, || ended(read(&self.0, &mut *buffer))).await
    }

    /// Reads what is there now; 0 when there is nothing, too.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match ended(read(&self.0, buffer)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    /// Writes some of `bytes`.
    ///
    /// Cancel safety: nothing was written.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, || Ok(write(&self.0, bytes)?)).await
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A terminal whose other end nobody holds any more gives an error where a pipe ends.
fn ended(read: Result<usize, Errno>) -> io::Result<usize> {
    match read {
        Err(Errno::IO) => Ok(0),
        other => Ok(other?),
    }
}
