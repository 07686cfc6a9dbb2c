//! The parent's side of a start: from a prepared plan to a child with a pidfd.
//!
//! Written for the monitor, which has one thread, one PID namespace to return to, and stdio on /dev/null. Nothing
//! here waits for the child: [`start`] and [`exec`] return as soon as it is cloned, and what becomes of it is read from
//! [`Child::report`].
//!
//! Must not know: the monitor's protocol, logs, exit records.

mod joiner;
pub(crate) mod prepare;
mod report;

pub use prepare::Prepared;
pub use report::{Child, Report};

use crate::error::LaunchError;
use crate::init::userns::Passage;
use crate::init::{self, Errand, Voice};
use crisp_sys::memory::SharedWord;
use crisp_sys::process::{CloneFlags, Cloned};
use crisp_sys::signal::BlockedSignals;
use crisp_sys::{Errno, SysError};
use report::Role;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The PID namespace that a container is born into.
#[derive(Debug, Clone, Copy)]
pub enum PidNs<'a> {
    /// A new one, in which it is PID 1.
    Own,
    /// The caller's.
    Host,
    /// That of a living process, given by its pidfd: the pod's init.
    Join(BorrowedFd<'a>),
}

/// Standard input, output and error of a child. Closed in the caller when the call returns.
#[derive(Debug)]
pub struct Stdio {
    /// Becomes 0.
    pub stdin: OwnedFd,
    /// Becomes 1.
    pub stdout: OwnedFd,
    /// Becomes 2.
    pub stderr: OwnedFd,
}

/// Clones a container's first process into `cgroup` and its namespaces, up to the point where only `execve` is
/// missing: it reports [`Report::Ready`] then and waits for [`Child::go`]. Network, IPC and UTS namespaces are the
/// caller's. Without a cgroup it is born into the caller's and waits for [`Child::placed`] before anything else.
/// With a user namespace in the plan this waits for the end of the short-lived process that enters it.
///
/// # Errors
/// [`LaunchError::Gone`] when the process behind [`PidNs::Join`] has ended; [`LaunchError::Sys`] when the kernel
/// refused a call (no child is left then). What the child itself cannot do arrives as [`Report::Failed`].
pub fn start(
    prepared: &Prepared,
    pid: PidNs<'_>,
    cgroup: Option<BorrowedFd<'_>>,
    stdio: Stdio,
) -> Result<Child, LaunchError> {
    if prepared.ready.ops.is_empty() {
        return Err(LaunchError::Plan("the plan of a container has no root"));
    }
    let own = matches!(pid, PidNs::Own);
    let flags = CloneFlags::NEWNS | if own { CloneFlags::NEWPID } else { CloneFlags::empty() };
    let join = if let PidNs::Join(pidfd) = pid { Some((pidfd, "pod init")) } else { None };
    let user = prepared.user_namespace();
    launch(prepared, Birth { flags, cgroup, join, target: None, user }, stdio)
}

/// Runs a further process in a container. It joins the PID namespace by birth, mount and cgroup namespaces of
/// `target` (pidfd of the container's first process) by itself, and gets the word to go at once.
///
/// # Errors
/// As [`start`]; [`LaunchError::Gone`] when the container has exited.
pub fn exec(
    prepared: &Prepared,
    target: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    stdio: Stdio,
) -> Result<Child, LaunchError> {
    if !prepared.ready.ops.is_empty() {
        return Err(LaunchError::Plan("the plan of an exec has operations"));
    }
    let join = Some((target, "container"));
    let birth =
        Birth { flags: CloneFlags::empty(), cgroup: Some(cgroup), join, target: Some(target), user: None };
    let mut child = launch(prepared, birth, stdio)?;
    match child.go() {
        // It has failed already; its report says why.
        Err(LaunchError::Died { .. }) | Ok(()) => Ok(child),
        Err(error) => Err(error),
    }
}

/// Clones the first process of a shared PID namespace: see [`crate::init`]'s `pod`. It reports [`Report::Ready`]
/// once it has given everything up, then [`Report::Executed`], and ends on SIGTERM or SIGINT from outside of the
/// namespace. Without a cgroup it waits for [`Child::placed`] first. `user`: the user namespace that it and its PID
/// namespace are to be in; the caller's when `None`.
///
/// # Errors
/// [`LaunchError::Sys`] when the kernel refused a call.
pub fn pod_init(
    cgroup: Option<BorrowedFd<'_>>,
    user: Option<BorrowedFd<'_>>,
    oom_score_adj: i32,
) -> Result<Child, LaunchError> {
    let (ours, theirs) = crisp_sys::socket::socketpair()?;
    let progress = SharedWord::new()?;
    let voice = Voice { control: theirs.as_fd(), progress: &progress };
    let flags = CloneFlags::NEWNS | CloneFlags::NEWPID;
    let blocked = BlockedSignals::all()?;
    let cloned = match user {
        None => init::pod::clone(flags, cgroup, &voice, ours.as_fd(), oom_score_adj)?,
        Some(user) => {
            let born = SharedWord::new()?;
            let passage = Passage { user, pid: None, flags, cgroup, born: &born };
            let joiner = init::pod::clone_in(&passage, &voice, ours.as_fd(), oom_score_adj)?;
            joiner::child_of(&joiner, &passage, &progress, &Role::PodInit, None)?
        }
    };
    drop(blocked);
    Child::new(cloned, ours, progress, Role::PodInit)
}

/// How a child is born.
struct Birth<'a> {
    flags: CloneFlags,
    cgroup: Option<BorrowedFd<'a>>,
    /// Whose PID namespace, and what to call that process when it is gone.
    join: Option<(BorrowedFd<'a>, &'static str)>,
    target: Option<BorrowedFd<'a>>,
    /// The user namespace that a joiner takes it to.
    user: Option<BorrowedFd<'a>>,
}

fn launch(prepared: &Prepared, birth: Birth<'_>, stdio: Stdio) -> Result<Child, LaunchError> {
    let (ours, theirs) = crisp_sys::socket::socketpair()?;
    let progress = SharedWord::new()?;
    let errand = Errand {
        ready: &prepared.ready,
        voice: Voice { control: theirs.as_fd(), progress: &progress },
        stdio: [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()],
        held: birth.cgroup.is_none().then(|| ours.as_fd()),
        target: birth.target,
        joined: birth.user.is_some(),
    };
    // No handler of the parent may run in the child; it opens its mask again when all is reset.
    let blocked = BlockedSignals::all()?;
    let role = Role::Program(prepared.plan.clone());
    let clone = || init::clone(birth.flags, birth.cgroup, &errand);
    let cloned = match (birth.user, birth.join) {
        (None, None) => clone()?,
        (None, Some((pidfd, what))) => in_pid_namespace(pidfd, what, clone)?,
        (Some(user), join) => {
            let born = SharedWord::new()?;
            let (pid, what) = join.unzip();
            let passage = Passage { user, pid, flags: birth.flags, cgroup: birth.cgroup, born: &born };
            let joiner = init::clone_in(&passage, &errand)?;
            joiner::child_of(&joiner, &passage, &progress, &role, what)?
        }
    };
    drop(blocked);
    Child::new(cloned, ours, progress, role)
}

/// Clones with the calling thread's "PID namespace for children" set to that of another process, and sets it back.
fn in_pid_namespace(
    member: BorrowedFd<'_>,
    what: &'static str,
    clone: impl FnOnce() -> Result<Cloned, SysError>,
) -> Result<Cloned, LaunchError> {
    let own = crisp_sys::raw::process::open(c"/proc/thread-self/ns/pid", libc::O_RDONLY)
        .map_err(|errno| SysError::new("open", "/proc/thread-self/ns/pid", errno))?;
    let gone = |error: SysError| match error.errno {
        // ESRCH: the process has ended. ENOMEM: the namespace's first process has (pid_namespaces(7)).
        Errno::ESRCH | Errno::ENOMEM => LaunchError::Gone { what },
        _ => LaunchError::Sys(error),
    };
    crisp_sys::process::setns(member, CloneFlags::NEWPID).map_err(gone)?;
    let cloned = clone().map_err(gone);
    if let Err(error) = crisp_sys::process::setns(&own, CloneFlags::NEWPID) {
        // The next child would be born into the wrong namespace: this one is not started either.
        if let Ok(child) = cloned {
            crisp_sys::process::pidfd_send_signal(&child.pidfd, libc::SIGKILL)?;
            crisp_sys::process::waitid(&child.pidfd, crisp_sys::process::Wait::Block)?;
        }
        return Err(error.into());
    }
    cloned
}

#[cfg(test)]
#[cfg(feature = "oci")]
mod tests;
