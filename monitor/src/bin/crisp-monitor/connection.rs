//! A connection of a daemon: packets out, never blocking.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crisp_sys::socket;
use nix::errno::Errno;

/// Packets that may wait for a daemon which does not read. One that lets more pile up is cut off. A daemon takes the
/// end of its connection for the monitor's death, so this is for one that is stuck for good.
const QUEUE_MAX: usize = 1024;

/// A packet with its descriptors.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) packet: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// How sending went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Nothing waits.
    All,
    /// The rest waits until the socket is writable.
    Waiting,
    /// The peer is gone or does not read.
    Gone,
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    queue: VecDeque<Outgoing>,
    /// Said Hello: gets events.
    pub(crate) subscribed: bool,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Connection { socket, queue: VecDeque::new(), subscribed: false }
    }

    /// Sends a packet behind those that wait.
    pub(crate) fn send(&mut self, outgoing: Outgoing) -> Sent {
        if self.queue.len() >= QUEUE_MAX {
            return Sent::Gone;
        }
        self.queue.push_back(outgoing);
        self.flush()
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self) -> Sent {
        while let Some(next) = self.queue.front() {
            let fds: Vec<BorrowedFd<'_>> = next.fds.iter().map(AsFd::as_fd).collect();
            match socket::sendmsg(&self.socket, &next.packet, &fds) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(error) if error.errno == Errno::EAGAIN => return Sent::Waiting,
                Err(_) => return Sent::Gone,
            }
        }
        Sent::All
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
