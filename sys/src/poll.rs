//! A small epoll(7): descriptors by token, interest that can be switched for back-pressure.
//!
//! Level-triggered. The kernel drops a registration when the last duplicate of its descriptor is closed; callers
//! remove it before, because a duplicate may live on in a child.
//!
//! Must not know: who reads what.

use crate::errno::{Context, SysError};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// What the owner of a descriptor wants to hear of. Hang-ups and errors are always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Only hang-ups and errors.
    Nothing,
    /// Readable.
    Read,
    /// Writable.
    Write,
    /// Both.
    Both,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Nothing => EpollFlags::empty(),
            Self::Read => EpollFlags::EPOLLIN,
            Self::Write => EpollFlags::EPOLLOUT,
            Self::Both => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
        }
    }
}

/// What happened to a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The token it was registered with.
    pub token: u64,
    /// There is something to read, or its end.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The other side is gone or an error is pending; what it wrote before can still be read.
    pub hangup: bool,
    /// An exceptional condition (`EPOLLPRI`): what cgroup files give when they change.
    pub priority: bool,
}

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Poll {
    epoll: Epoll,
}

impl Poll {
    /// An empty set.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn new() -> Result<Self, SysError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).on("epoll_create1", String::new)?;
        Ok(Self { epoll })
    }

    /// Registers a descriptor.
    ///
    /// # Errors
    /// `EEXIST` when it is registered, `EPERM` for a regular file.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<(), SysError> {
        self.epoll.add(fd, EpollEvent::new(interest.flags(), token)).on("epoll_ctl", || "add")
    }

    /// Registers a descriptor for `EPOLLPRI`, which is how `cgroup.events`, `memory.events` and PSI files tell of
    /// a change.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_priority(&self, fd: impl AsFd, token: u64) -> Result<(), SysError> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLPRI, token)).on("epoll_ctl", || "add")
    }

    /// Changes the interest in a descriptor.
    ///
    /// # Errors
    /// `ENOENT` when it is not registered.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<(), SysError> {
        let mut event = EpollEvent::new(interest.flags(), token);
        self.epoll.modify(fd, &mut event).on("epoll_ctl", || "modify")
    }

    /// Forgets a descriptor.
    ///
    /// # Errors
    /// `ENOENT` when it is not registered.
    pub fn remove(&self, fd: impl AsFd) -> Result<(), SysError> {
        self.epoll.delete(fd).on("epoll_ctl", || "delete")
    }

    /// Waits until something happens or the time is over (`None`: without limit) and puts up to 32 events into
    /// `events`, which is emptied first. A time that is over, or a signal handler that ran, leaves it empty.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn wait(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> Result<(), SysError> {
        let mut buffer = [EpollEvent::empty(); 32];
        // Rounded up: waking up a moment early would mean a round of spinning.
        let milliseconds = timeout.map(|time| time.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
        let timeout = match milliseconds {
            None => EpollTimeout::NONE,
            Some(time) => EpollTimeout::try_from(time).unwrap_or(EpollTimeout::MAX),
        };
        events.clear();
        let count = match self.epoll.wait(&mut buffer, timeout) {
            Err(crate::Errno::EINTR) => 0,
            answer => answer.on("epoll_wait", String::new)?,
        };
        events.extend(buffer.iter().take(count).map(|event| {
            let flags = event.events();
            let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
            Event {
                token: event.data(),
                readable: flags.contains(EpollFlags::EPOLLIN),
                writable: flags.contains(EpollFlags::EPOLLOUT),
                hangup: flags.intersects(gone),
                priority: flags.contains(EpollFlags::EPOLLPRI),
            }
        }));
        Ok(())
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interest_can_be_taken_away_and_given_back() {
        let (reader, writer) = crate::fd::pipe2(true).unwrap();
        let poll = Poll::new().unwrap();
        poll.add(&reader, 7, Interest::Read).unwrap();
        let mut events = Vec::new();
        poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
        crate::raw::path::write(writer.as_fd(), b"x").unwrap();
        poll.wait(&mut events, None).unwrap();
        assert!(events[0].token == 7 && events[0].readable && !events[0].hangup);
        poll.modify(&reader, 7, Interest::Nothing).unwrap();
        poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
        drop(writer);
        poll.wait(&mut events, None).unwrap();
        assert!(events[0].hangup);
        poll.remove(&reader).unwrap();
        poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
    }
}
