//! Waiting for the end of a process that need not be a child.
//!
//! Must not know: whose process it is.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::errno::SysError;

/// Waits until the process behind `pidfd` has ended; `false` when it has not within `limit` (milliseconds count).
/// A pidfd becomes readable when its process is a zombie or gone (pidfd_open(2)).
///
/// # Errors
/// The kernel's answer to poll(2).
pub fn wait_end(pidfd: impl AsFd, limit: Duration) -> Result<bool, SysError> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(SysError::new("poll", "pidfd", errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pidfd_open;

    #[test]
    fn a_process_that_ends_is_noticed_and_one_that_runs_is_not() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let pidfd = pidfd_open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!wait_end(&pidfd, Duration::from_millis(1)).unwrap());
        drop(child.stdin.take());
        assert!(wait_end(&pidfd, Duration::from_secs(60)).unwrap());
        child.wait().unwrap();
    }
}
