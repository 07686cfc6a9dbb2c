//! The last steps: limits, working directory, ids, capabilities.
//!
//! The order is forced: limits and the missing working directory need privilege; the bounding set goes before the
//! ids, because dropping needs CAP_SETPCAP; the permitted set is kept across the change of ids (KEEPCAPS) and cut
//! down after it; ambient capabilities need permitted and inheritable ones (capabilities(7)). Without no_new_privs a
//! seccomp filter needs CAP_SYS_ADMIN: until it is installed that one is kept, permitted and not effective. What
//! comes after must be allowed by the filter: `capset`, `write` and `read` on the report socket, `execve`.

use super::{Failure, Step, Voice};
use crate::launch::prepare::Task;
use crisp_sys::Errno;
use crisp_sys::raw::{path, process};
use std::os::fd::{AsFd, OwnedFd};

/// CAP_SYS_ADMIN's bit.
const SYS_ADMIN: u64 = 1 << 21;

/// Becomes who the plan says, in the directory it says.
pub(crate) fn assume(voice: &Voice<'_>, task: &Task) -> Result<(), Failure> {
    for (limit, index) in task.rlimits.iter().zip(0..) {
        voice.at(Step::Rlimit, index, || process::set_rlimit(limit.resource, limit.soft, limit.hard))?;
    }
    voice.step(Step::WorkingDirectory, || make_working_directory(task))?;
    // An image may name a directory that only root may enter, as 0700 /root: a program started there may still work.
    let entered = enter_working_directory(task).is_ok();
    let caps = &task.capabilities;
    voice.step(Step::BoundingSet, || process::drop_bounding(caps.bounding))?;
    voice.step(Step::Groups, || process::setgroups(&task.groups))?;
    voice.step(Step::Gid, || process::setresgid(task.gid))?;
    voice.step(Step::Uid, || {
        process::prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
        process::setresuid(task.uid)?;
        // The change has made this copy of the monitor what fs.suid_dumpable says; execve makes the program dumpable.
        process::prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
    })?;
    voice.step(Step::Capabilities, || {
        let kept = if keeps_privilege(task) { SYS_ADMIN } else { 0 };
        process::capset(caps.effective, caps.permitted | kept, caps.inheritable)?;
        // An unprivileged monitor's own ambient set would survive; root's is empty, and this is one call.
        process::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).map(drop)
    })?;
    voice.step(Step::Ambient, || process::raise_ambient(caps.ambient))?;
    if task.no_new_privs {
        voice.step(Step::NoNewPrivs, || process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop))?;
    }
    process::umask(task.umask);
    voice.step(Step::WorkingDirectory, || match enter_working_directory(task) {
        Err(Errno::EACCES) if entered && path::cwd_is_inside_root()? => Ok(()),
        answer => answer,
    })
}

/// Whether the filter is installed with the help of CAP_SYS_ADMIN.
fn keeps_privilege(task: &Task) -> bool {
    !task.seccomp.is_empty() && !task.no_new_privs
}

/// Without no_new_privs: installs the filter, then gives CAP_SYS_ADMIN up, unless the plan gives it.
pub(crate) fn confine(voice: &Voice<'_>, task: &Task) -> Result<(), Failure> {
    if !keeps_privilege(task) {
        return Ok(());
    }
    let caps = &task.capabilities;
    voice.step(Step::Seccomp, || {
        process::capset(caps.effective | SYS_ADMIN, caps.permitted | SYS_ADMIN, caps.inheritable)
    })?;
    install_filter(voice, task)?;
    voice.step(Step::Capabilities, || process::capset(caps.effective, caps.permitted, caps.inheritable))
}

/// With no_new_privs a filter needs no privilege, and so comes last: it has to allow `execve` and nothing else.
pub(crate) fn confine_at_last(voice: &Voice<'_>, task: &Task) -> Result<(), Failure> {
    if task.no_new_privs { install_filter(voice, task) } else { Ok(()) }
}

/// Installs the plan's filter, if there is one.
fn install_filter(voice: &Voice<'_>, task: &Task) -> Result<(), Failure> {
    if task.seccomp.is_empty() {
        return Ok(());
    }
    voice.step(Step::Seccomp, || process::set_seccomp_filter(task.seccomp_flags, &task.seccomp))
}

/// The root directory, for look-ups.
pub(crate) fn root() -> Result<OwnedFd, Errno> {
    process::open(c"/", libc::O_PATH | libc::O_DIRECTORY)
}

/// With the privileges of root: a working directory that is missing is made, as every runtime does.
fn make_working_directory(task: &Task) -> Result<(), Errno> {
    let root = root()?;
    path::mkdir_all(root.as_fd(), task.cwd.to_bytes(), 0o755).map(drop)
}

/// With the permissions that this process has now. Magic links are refused, and the result is checked, so that no
/// descriptor of the host can become the working directory (CVE-2024-21626).
fn enter_working_directory(task: &Task) -> Result<(), Errno> {
    let root = root()?;
    let dir = path::open_in_root(root.as_fd(), &task.cwd, libc::O_PATH | libc::O_DIRECTORY, 0)?;
    path::fchdir(dir.as_fd())?;
    if path::cwd_is_inside_root()? { Ok(()) } else { Err(Errno::EXDEV) }
}
