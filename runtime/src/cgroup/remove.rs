//! Removing cgroups, bottom up.
//!
//! Must not know: who put processes into them.

use super::CgroupError;
use super::files;
use crisp_sys::poll::{Interest, Poll};
use crisp_sys::{Errno, SysError};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// The names of the cgroups directly below a directory; none when it is gone.
pub(super) fn children(location: &Path) -> Result<Vec<String>, CgroupError> {
    let entries = match std::fs::read_dir(location) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        answer => answer.map_err(|error| SysError::io("readdir", location.to_string_lossy(), &error))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = match entry {
            // Removed while it was read.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => break,
            answer => answer.map_err(|error| SysError::io("readdir", location.to_string_lossy(), &error))?,
        };
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes the cgroup at `location` and those below it; see [`super::Cgroup::remove`].
pub(super) fn remove(location: &Path, patience: Duration) -> Result<(), CgroupError> {
    let deadline = Instant::now() + patience;
    loop {
        if try_remove(location)? {
            return Ok(());
        }
        wait_until_empty(location, deadline)?;
        // Empty and yet refused: somebody makes cgroups below it as fast as they are removed.
        if Instant::now() > deadline && !try_remove(location)? {
            return Err(CgroupError::Populated { path: location.to_owned() });
        }
    }
}

/// `false`: something is left in it.
fn try_remove(location: &Path) -> Result<bool, CgroupError> {
    match rmdir(location)? {
        true => return Ok(true),
        false => {
            for name in children(location)? {
                if !try_remove(&location.join(name))? {
                    return Ok(false);
                }
            }
        }
    }
    rmdir(location)
}

fn rmdir(location: &Path) -> Result<bool, CgroupError> {
    match std::fs::remove_dir(location) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        Err(error) => Err(SysError::io("rmdir", location.to_string_lossy(), &error).into()),
    }
}

/// Waits for `populated 0` in `cgroup.events`; see [`super::Cgroup::wait_empty`].
pub(super) fn wait_until_empty(location: &Path, deadline: Instant) -> Result<(), CgroupError> {
    let sys = |call, errno| CgroupError::sys(call, location, errno);
    let dir = match super::open_dir(location) {
        Err(Errno::ENOENT) => return Ok(()),
        answer => answer.map_err(|errno| sys("open", errno))?,
    };
    let watched = match files::open(dir.as_fd(), "cgroup.events", libc::O_RDONLY) {
        // Every cgroup below the root has this file: it was removed since its directory was opened.
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
        answer => answer.map_err(|errno| sys("open", errno))?,
    };
    let poll = Poll::new()?;
    poll.add_priority(&watched, 0)?;
    let mut events = Vec::new();
    loop {
        // Reading arms the notification: a change after this wakes the wait below.
        let mut buffer = [0; 256];
        let length = nix::sys::uio::pread(&watched, &mut buffer, 0);
        let text = match length {
            Err(Errno::ENODEV) => return Ok(()),
            answer => buffer.get(..answer.map_err(|errno| sys("read", errno))?).unwrap_or_default(),
        };
        if files::value(&String::from_utf8_lossy(text), "populated") == Some(0) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CgroupError::Populated { path: location.to_owned() });
        }
        poll.wait(&mut events, Some(left))?;
    }
}

/// Waits until the cgroup at `location` is gone, until `deadline` at most.
pub(super) fn wait_until_gone(location: &Path, deadline: Instant) -> Result<bool, CgroupError> {
    let gone = || !location.exists();
    let Some(parent) = location.parent() else { return Ok(gone()) };
    let sys = |call| move |errno| CgroupError::sys(call, parent, errno);
    let watcher =
        Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(sys("inotify_init"))?;
    match watcher.add_watch(parent, AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF) {
        Err(Errno::ENOENT) => return Ok(true),
        watched => watched.map_err(sys("inotify_add_watch")).map(drop)?,
    }
    let poll = Poll::new()?;
    poll.add(watcher.as_fd(), 0, Interest::Read)?;
    let mut events = Vec::new();
    // Looked at after the watch was set: what goes away from here on is told.
    while !gone() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        poll.wait(&mut events, Some(left))?;
        // What it says does not matter; reading makes it wait for the next one.
        let _heard = watcher.read_events();
    }
    Ok(true)
}
