//! An attached client: descriptors through which it takes part in a container's standard streams.
//!
//! What does not go into a client's descriptor at once waits here; how much may, is said by who pushes. Must not know: the
//! loop, the log.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::write;

use crate::log::Stream;

/// How writing went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Nothing waits.
    Clear,
    /// The rest waits until there is room.
    Waiting,
    /// Nobody reads any more.
    Gone,
}

/// Bytes on their way into a descriptor that does not block.
#[derive(Debug)]
pub(crate) struct Outlet {
    fd: OwnedFd,
    waiting: VecDeque<u8>,
    /// When something last went in, while something waits.
    moved: Option<Instant>,
}

impl Outlet {
    /// An outlet into `fd`, which must not block.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Outlet { fd, waiting: VecDeque::new(), moved: None }
    }

    /// Writes `bytes` behind what waits.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Flow {
        if !self.waiting.is_empty() {
            self.waiting.extend(bytes);
            return Flow::Waiting;
        }
        match self.put(bytes) {
            Ok(count) if count == bytes.len() => Flow::Clear,
            Ok(count) => {
                self.waiting.extend(&bytes[count..]);
                self.moved = Some(Instant::now());
                Flow::Waiting
            }
            Err(_) => Flow::Gone,
        }
    }

    /// Writes what waits.
    pub(crate) fn flush(&mut self) -> Flow {
        let (front, back) = self.waiting.as_slices();
        let put = match self.put(front) {
            Ok(count) if count == front.len() => self.put(back).map(|more| count + more),
            other => other,
        };
        match put {
            Ok(count) if count == self.waiting.len() => {
                (self.waiting, self.moved) = (VecDeque::new(), None);
                Flow::Clear
            }
            Ok(count) => {
                if count > 0 {
                    self.waiting.drain(..count);
                    self.moved = Some(Instant::now());
                }
                Flow::Waiting
            }
            Err(_) => Flow::Gone,
        }
    }

    /// Whether something waits.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How much waits.
    pub(crate) fn behind(&self) -> usize {
        self.waiting.len()
    }

    /// Counts the time that something waits from now on.
    pub(crate) fn restart_clock(&mut self) {
        self.moved = self.moved.map(|_| Instant::now());
    }

    /// Since when nothing has moved although something waits.
    pub(crate) fn stuck_since(&self) -> Option<Instant> {
        self.moved
    }

    fn put(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let mut done = 0;
        while done < bytes.len() {
            match write(self.fd.as_fd(), &bytes[done..]) {
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }
}

impl AsFd for Outlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Attachment {
    /// The daemon's name for it.
    pub(crate) name: String,
    /// Serial number of its container.
    pub(crate) container: u64,
    /// It asked for the container's input.
    pub(crate) writes: bool,
    /// What it writes; `None` once that has ended.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<Outlet>,
    pub(crate) stderr: Option<Outlet>,
    /// The container has ended: nothing comes any more.
    pub(crate) over: bool,
}

impl Attachment {
    pub(crate) fn outlet(&mut self, stream: Stream) -> &mut Option<Outlet> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// The outlets that are open, to be changed.
    pub(crate) fn outlets_mut(&mut self) -> impl Iterator<Item = &mut Outlet> {
        self.stdout.iter_mut().chain(&mut self.stderr)
    }

    /// The outlets that are open.
    pub(crate) fn outlets(&self) -> impl Iterator<Item = &Outlet> {
        self.stdout.iter().chain(&self.stderr)
    }

    /// Whether output is on its way to it.
    pub(crate) fn is_waiting(&self) -> bool {
        self.outlets().any(Outlet::is_waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_in_waits_in_order() {
        let (reader, writer) = crisp_sys::fd::pipe2(true).unwrap();
        let mut outlet = Outlet::new(writer);
        let text: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let (first, second) = text.split_at(250_001);
        assert_eq!(outlet.push(first), Flow::Waiting);
        assert!(outlet.is_waiting() && outlet.stuck_since().is_some());
        assert_eq!(outlet.push(second), Flow::Waiting);
        let (mut got, mut buffer) = (Vec::new(), [0; 30_000]);
        while got.len() < text.len() {
            let count = nix::unistd::read(&reader, &mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            outlet.flush();
        }
        assert!(got == text, "bytes are lost or out of order");
        assert!(!outlet.is_waiting() && outlet.stuck_since().is_none());
        assert_eq!(outlet.push(b"more"), Flow::Clear);
    }

    #[test]
    fn a_reader_that_is_gone_is_noticed() {
        let (reader, writer) = crisp_sys::fd::pipe2(true).unwrap();
        let mut outlet = Outlet::new(writer);
        drop(reader);
        // The test harness, like every Rust program, ignores SIGPIPE.
        assert_eq!(outlet.push(b"x"), Flow::Gone);
    }
}
