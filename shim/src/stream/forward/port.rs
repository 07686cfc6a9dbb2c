//! A connection to a port: what it has taken, and how it ends.
//!
//! Must not know: whose it is.

use std::{
    io,
    net::Shutdown,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use crisp_sys::tcp::unacknowledged;
use socket2::SockRef;
use tokio::{net::TcpStream, time::sleep};

use crate::stream::transport::Activity;

/// How long a port may take nothing of what waits for it once nobody is left to wait with it.
pub(super) const STALL: Duration = Duration::from_secs(30);
/// How often is looked at what the kernel tells nobody: that bytes have been acknowledged.
const LOOK: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Port {
    socket: TcpStream,
    /// What the port's kernel had not taken at the last look.
    waiting: AtomicUsize,
    /// Towards the port.
    moved: Activity,
}

impl Port {
    /// Takes a connection. Whatever ends it before [`Port::end`] is a reset: who listens there must not take a broken
    /// transfer for a whole one.
    pub(super) fn new(socket: TcpStream) -> io::Result<Self> {
        let _ = socket.set_nodelay(true);
        SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
        Ok(Self { socket, waiting: AtomicUsize::new(0), moved: Activity::new() })
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The port takes nothing more.
    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        self.moved.note();
        while !bytes.is_empty() {
            self.socket.writable().await?;
            match self.socket.try_write(bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.moved.note();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Passes on that nothing more comes, behind what does.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn end(&self) -> io::Result<()> {
        let socket = SockRef::from(&self.socket);
        socket.set_linger(None)?;
        socket.shutdown(Shutdown::Write)
    }

    /// Reads what is there, at least a byte; 0 at the end.
    ///
    /// Cancel safety: nothing is lost.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.readable().await?;
            match self.socket.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    /// Completes when the port's kernel has everything that was written, or nothing more can reach it.
    pub(super) async fn taken(&self) {
        while self.waiting() > 0 && self.socket.take_error().is_ok_and(|error| error.is_none()) {
            sleep(LOOK).await;
        }
    }

    /// Completes when nothing has gone to the port for `limit`, or for [`STALL`] while something waits for it.
    pub(super) async fn still(&self, limit: Duration) {
        loop {
            let limit = if self.waiting() > 0 { limit.max(STALL) } else { limit };
            let quiet = self.moved.quiet();
            if quiet >= limit {
                return;
            }
            sleep((limit - quiet).min(LOOK)).await;
        }
    }

    /// What the port has not taken, in bytes; that it has taken some counts as movement.
    fn waiting(&self) -> usize {
        let waiting = unacknowledged(&self.socket).unwrap_or(0);
        if self.waiting.swap(waiting, Ordering::Relaxed) != waiting {
            self.moved.note();
        }
        waiting
    }
}
