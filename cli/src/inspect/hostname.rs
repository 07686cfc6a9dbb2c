//! What the processes of a UTS namespace are told when they ask for their hostname.

use std::{fs::File, os::fd::AsFd, thread};

use anyhow::{Context, Result};
use rustix::{
    system::uname,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// The hostname of a process. /proc shows only the reader's own, so a thread goes there, asks and ends.
///
/// # Errors
/// The process is gone, or this user may not enter its namespace.
pub(super) fn of(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/ns/uts");
    let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
    let asked = thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::HostNameAndNISDomainName))?;
        rustix::io::Result::Ok(uname().nodename().to_string_lossy().into_owned())
    });
    let answer = asked.join().ok().context("the thread that asks for the hostname has panicked")?;
    answer.with_context(|| format!("enter {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_gone_has_none() {
        assert!(of(u32::MAX).unwrap_err().to_string().contains("/proc/4294967295/ns/uts"));
    }
}
