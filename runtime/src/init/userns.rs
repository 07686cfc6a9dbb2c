//! Into the user namespace of a container.
//!
//! A process that enters a user namespace never comes back, so the monitor cannot go there to clone; and what a child
//! unshares is owned by the namespace that it is in. A container's PID namespace has to be owned by the pod's user
//! namespace: so a *joiner* is cloned first. It does what takes the host's privileges, enters, clones the container's
//! first process as its own sibling, and ends.
//!
//! ```text
//!  monitor ─ clone3 ─► joiner   oom_score_adj, standard streams, limits ─ [setns(pid)] ─ setns(user)
//!     │                  └ clone3(PARENT | NEWNS | NEWPID, into the cgroup) ─┐
//!     └────────────────────────────────────────────────────────────────────► container: gid 0, uid 0, the plan
//! ```
//!
//! Until the child becomes root inside it is the host's root without any privilege there: that is how it may be cloned
//! into a cgroup which belongs to the host's root. An exec needs no joiner: its PID namespace exists.
//!
//! All these processes are copies of a monitor that is not dumpable, with its memory owned by the host's user
//! namespace: nobody in the container can trace them or look into their /proc directories, whatever they may do inside.

#![expect(unsafe_code, reason = "clone3")]

use super::{Errand, Failure, Step, Voice};
use crate::launch::prepare::Task;
use crisp_sys::memory::SharedWord;
use crisp_sys::process::{CloneFlags, Cloned, clone3, clone3_sibling};
use crisp_sys::raw::process;
use crisp_sys::{Errno, SysError};
use std::os::fd::BorrowedFd;

/// What a joiner does.
pub(crate) struct Passage<'a> {
    /// The user namespace.
    pub(crate) user: BorrowedFd<'a>,
    /// The process whose PID namespace the child is born into; without, that is a new one if `flags` say so.
    pub(crate) pid: Option<BorrowedFd<'a>>,
    /// What else is new.
    pub(crate) flags: CloneFlags,
    /// Where the child is born; `None`: in the caller's cgroup.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// The child's pid is stored here; 0 when there is none.
    pub(crate) born: &'a SharedWord,
}

/// Clones a joiner, which does `before`, enters, and clones a child that does `child`. It ends with status 0, or with
/// the errno of the step that `voice` says.
pub(crate) fn clone_joiner(
    passage: &Passage<'_>,
    voice: &Voice<'_>,
    before: impl FnOnce() -> Result<(), Failure>,
    child: impl FnOnce(),
) -> Result<Cloned, SysError> {
    let joiner = || {
        let done = before().and_then(|()| cross(passage, voice, child));
        process::exit_now(done.err().map_or(0, |failure| failure.errno as i32));
    };
    // SAFETY: the joiner makes raw system calls on prepared data only, and ends without returning.
    unsafe { clone3(CloneFlags::empty(), None, joiner) }
}

fn cross(passage: &Passage<'_>, voice: &Voice<'_>, child: impl FnOnce()) -> Result<(), Failure> {
    // While it is still allowed to look at a process that is not dumpable: setns(2) on a pidfd asks for that.
    if let Some(member) = passage.pid {
        voice.step(Step::Namespaces, || process::setns(member, libc::CLONE_NEWPID))?;
    }
    voice.step(Step::UserNamespace, || process::setns(passage.user, libc::CLONE_NEWUSER))?;
    voice.step(Step::Born, || {
        // SAFETY: as for the joiner: the child makes raw system calls only and never returns.
        let pid = unsafe { clone3_sibling(passage.flags, passage.cgroup, child) }?;
        passage.born.set(pid as u32);
        Ok(())
    })
}

/// What a joiner does for a container before it enters.
pub(crate) fn before_crossing(errand: &Errand<'_>) -> Result<(), Failure> {
    errand.voice.step(Step::Reset, || process::set_nice(0))?;
    super::with_privilege(errand)
}

/// Hard limits can only be raised here; the child sets the soft ones when it needs no more than they allow.
pub(crate) fn raise_limits(voice: &Voice<'_>, task: &Task) -> Result<(), Failure> {
    for (limit, index) in task.rlimits.iter().zip(0..) {
        voice.at(Step::Rlimit, index, || process::set_rlimit(limit.resource, limit.hard, limit.hard))?;
    }
    Ok(())
}

/// Enters the namespaces of a running container: mount, cgroup and, if it has one, user namespace.
pub(crate) fn enter_container(errand: &Errand<'_>, target: BorrowedFd<'_>) -> Result<(), Failure> {
    let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
    if errand.ready.user.is_none() {
        return errand.voice.step(Step::Namespaces, || process::setns(target, kinds));
    }
    // One call: the kernel checks the right to the others with the credentials that the first one gives.
    errand.voice.step(Step::UserNamespace, || process::setns(target, kinds | libc::CLONE_NEWUSER))?;
    become_root(&errand.voice)
}

/// Becomes root of the user namespace that this process is in, with all capabilities there.
pub(crate) fn become_root(voice: &Voice<'_>) -> Result<(), Failure> {
    voice.step(Step::UserNamespace, || {
        process::setresgid(0)?;
        process::setresuid(0)?;
        // Credentials that change make a process as dumpable as fs.suid_dumpable says.
        process::prctl(libc::PR_SET_DUMPABLE, 0, 0)?;
        match process::join_session_keyring() {
            // A kernel without keyrings. The one from before belongs to the host's root.
            Err(Errno::ENOSYS) => Ok(()),
            answer => answer,
        }
    })
}
