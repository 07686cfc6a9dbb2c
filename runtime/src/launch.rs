//! The parent's side of a start: from a prepared plan to a child with a pidfd.
//!
//! Written for the monitor, which has one thread, one PID namespace to return to, and stdio on /dev/null. Nothing
//! here waits for the child: [`start`] and [`exec`] return as soon as it is cloned, and what becomes of it is read from
//! [`Child::report`].
//!
//! Must not know: the monitor's protocol, logs, exit records.

mod filter;
mod joiner;
pub(crate) mod prepare;
mod report;

pub use prepare::Prepared;
pub use report::{Child, Report};

use crate::error::LaunchError;
use crate::init::crossing::Crossing;
use crate::init::userns::Passage;
use crate::init::{self, Errand, Voice};
use crisp_sys::memory::SharedWord;
use crisp_sys::process::CloneFlags;
use crisp_sys::signal::BlockedSignals;
use report::{Progress, Role, Succession};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The PID namespace that a container is born into.
#[derive(Debug, Clone, Copy)]
pub enum PidNs<'a> {
    /// A new one, in which it is PID 1.
    Own,
    /// The caller's.
    Host,
    /// That of the pod's init, given by its pidfd.
    Join(BorrowedFd<'a>),
    /// That of another container, given by the pidfd of its first process. Its procfs must be at `/proc`.
    Target(BorrowedFd<'a>),
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
/// [`LaunchError::Sys`] when the kernel refused a call (no child is left then). What the child itself cannot do arrives
/// as [`Report::Failed`]. [`LaunchError::Gone`], in one way or the other, when the process behind [`PidNs::Join`] or
/// [`PidNs::Target`] has ended.
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
    let join = match pid {
        PidNs::Own | PidNs::Host => None,
        PidNs::Join(resident) => Some(Join { resident, what: "pod init", procfs: c"/" }),
        PidNs::Target(resident) => Some(Join { resident, what: "target container", procfs: c"/proc" }),
    };
    let user = prepared.user_namespace();
    if join.is_some() && user.is_none() && !prepared.ready.ops.iter().all(can_cross) {
        return Err(LaunchError::Plan("options of a procfs that the containers of the pod share"));
    }
    launch(prepared, Birth { flags, cgroup, join, target: None, user }, stdio)
}

/// Whether an operation can be done by a process outside of the PID namespace: a new procfs has options of its own, a
/// borrowed one does not.
fn can_cross(op: &prepare::Op) -> bool {
    match op {
        prepare::Op::Mount(new) if new.fstype.as_c_str() == c"proc" => {
            new.options.iter().all(|(key, _)| key.as_c_str() == c"source")
        }
        _ => true,
    }
}

/// Runs a further process in a container: in the PID, mount, cgroup and user namespaces of `target`, the pidfd of the
/// container's first process. It gets the word to go at once.
///
/// # Errors
/// As [`start`]; a container that has exited is a [`LaunchError::Gone`] in the report.
pub fn exec(
    prepared: &Prepared,
    target: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    stdio: Stdio,
) -> Result<Child, LaunchError> {
    if !prepared.ready.ops.is_empty() {
        return Err(LaunchError::Plan("the plan of an exec has operations"));
    }
    let join = Some(Join { resident: target, what: "container", procfs: c"/proc" });
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
    Child::new(cloned, ours, Progress { word: progress, succession: None }, Role::PodInit)
}

/// How a child is born.
struct Birth<'a> {
    flags: CloneFlags,
    cgroup: Option<BorrowedFd<'a>>,
    join: Option<Join<'a>>,
    target: Option<BorrowedFd<'a>>,
    /// The user namespace that a joiner takes it to.
    user: Option<BorrowedFd<'a>>,
}

/// A PID namespace of others.
struct Join<'a> {
    /// A process that lives there.
    resident: BorrowedFd<'a>,
    /// What to call it when it is gone.
    what: &'static str,
    /// Where it has a procfs.
    procfs: &'static CStr,
}

fn launch(prepared: &Prepared, birth: Birth<'_>, stdio: Stdio) -> Result<Child, LaunchError> {
    let (ours, theirs) = crisp_sys::socket::socketpair()?;
    let progress = SharedWord::new()?;
    // Who enters a user namespace on the way is protected there: see `init::userns`.
    let crosses = birth.join.as_ref().filter(|_| birth.user.is_none());
    let successor = crosses.map(|_| SharedWord::new()).transpose()?;
    let crossing = crosses.zip(successor.as_ref());
    let errand = Errand {
        ready: &prepared.ready,
        voice: Voice { control: theirs.as_fd(), progress: &progress },
        stdio: [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()],
        held: birth.cgroup.is_none().then(|| ours.as_fd()),
        crossing: crossing.map(|(join, successor)| Crossing {
            resident: join.resident,
            procfs: join.procfs,
            successor,
        }),
        target: birth.target,
        joined: birth.user.is_some(),
    };
    // No handler of the parent may run in the child; it opens its mask again when all is reset.
    let blocked = BlockedSignals::all()?;
    let role = Role::Program(prepared.plan.clone());
    let cloned = match birth.user {
        None => init::clone(birth.flags, birth.cgroup, &errand)?,
        Some(user) => {
            let born = SharedWord::new()?;
            let (pid, what) = birth.join.as_ref().map(|join| (join.resident, join.what)).unzip();
            let passage = Passage { user, pid, flags: birth.flags, cgroup: birth.cgroup, born: &born };
            let joiner = init::clone_in(&passage, &errand)?;
            joiner::child_of(&joiner, &passage, &progress, &role, what)?
        }
    };
    drop(blocked);
    let succession = birth.join.zip(successor).map(|(join, pid)| Succession { pid, resident: join.what });
    Child::new(cloned, ours, Progress { word: progress, succession }, role)
}

#[cfg(test)]
#[cfg(feature = "oci")]
mod tests;
