//! The first process of a shared PID namespace: reaps what is orphaned there and does nothing else.
//!
//! Every container of the pod sees it as PID 1, so it must have nothing to show: an empty read-only root, no
//! descriptors, no capabilities, uid 65534, not dumpable. A holder with the host's root would hand that out
//! through /proc/1/root.

#![expect(unsafe_code, reason = "closing all descriptors is outside of Rust's ownership")]

use super::userns::{self, Passage};
use super::{Failure, Step, Voice, encode, ops};
use crisp_sys::process::{CloneFlags, Cloned, clone3};
use crisp_sys::raw::mount::{self, MountAttributes};
use crisp_sys::raw::{path, process};
use crisp_sys::{Errno, SysError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The unprivileged user: `nobody`.
const NOBODY: u32 = 65534;

/// Clones the init. Without a cgroup it waits for being moved into one; `parents_end` is the other end of what it is
/// told through.
pub(crate) fn clone(
    flags: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    voice: &Voice<'_>,
    parents_end: BorrowedFd<'_>,
    oom_score_adj: i32,
) -> Result<Cloned, SysError> {
    // SAFETY: the child calls nothing but `run`, which makes raw system calls only and never returns.
    unsafe {
        clone3(flags, cgroup, || run(voice, cgroup.is_none().then_some(parents_end), Some(oom_score_adj)))
    }
}

/// As [`clone`], in a user namespace; the joiner that does it is returned.
pub(crate) fn clone_in(
    passage: &Passage<'_>,
    voice: &Voice<'_>,
    parents_end: BorrowedFd<'_>,
    oom_score_adj: i32,
) -> Result<Cloned, SysError> {
    let before = || {
        voice.step(Step::Reset, || process::set_nice(0))?;
        voice.step(Step::OomScore, || super::oom_score_adj(oom_score_adj))
    };
    let held = passage.cgroup.is_none().then_some(parents_end);
    userns::clone_joiner(passage, voice, before, || run(voice, held, None))
}

/// Runs in the child: never returns. Without a score it was born in a user namespace, and with its score.
fn run(voice: &Voice<'_>, held: Option<BorrowedFd<'_>>, oom_score_adj: Option<i32>) -> ! {
    let placed = held.map_or(Ok(()), |parents_end| voice.wait_for_cgroup(parents_end));
    if let Err(failure) = placed.and_then(|()| prepare(voice, oom_score_adj)) {
        voice.fail(failure);
    }
    // There is nothing to execute; what comes now is all there is to come.
    voice.enter(Step::Execute, 0);
    let _unheard = path::write(voice.control, &encode(Step::Waiting, 0, 0));
    // SAFETY: nothing below uses a descriptor, and this process ends without dropping one.
    if unsafe { process::close_range(0, u32::MAX) }.is_err() {
        process::exit_now(1);
    }
    reap_forever()
}

fn prepare(voice: &Voice<'_>, oom_score_adj: Option<i32>) -> Result<(), Failure> {
    super::reset(voice)?;
    match oom_score_adj {
        Some(score) => voice.step(Step::OomScore, || super::oom_score_adj(score))?,
        None => userns::become_root(voice)?,
    }
    voice.step(Step::Namespaces, || {
        process::unshare(libc::CLONE_NEWCGROUP)?;
        // In a user namespace of its own nobody borrows: see `init::userns`.
        enter_empty_root(oom_score_adj.is_some())
    })?;
    voice.step(Step::BoundingSet, || process::drop_bounding(0))?;
    voice.step(Step::Groups, || process::setgroups(&[]))?;
    voice.step(Step::Gid, || if_mapped(process::setresgid(NOBODY)))?;
    // Without KEEPCAPS the change of uid takes all capabilities along.
    voice.step(Step::Uid, || if_mapped(process::setresuid(NOBODY)))?;
    voice.step(Step::Capabilities, || {
        process::capset(0, 0, 0)?;
        process::prctl(libc::PR_SET_DUMPABLE, 0, 0)?;
        process::set_name(c"crisp-init")
    })?;
    voice.step(Step::NoNewPrivs, || process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop))
}

/// EINVAL: a user namespace that is too small for nobody. Then it stays that one's root, without capabilities.
fn if_mapped(answer: Result<(), Errno>) -> Result<(), Errno> {
    match answer {
        Err(Errno::EINVAL) => Ok(()),
        answer => answer,
    }
}

/// `lend`: containers of the pod will want a copy of a procfs of this PID namespace.
fn enter_empty_root(lend: bool) -> Result<(), Errno> {
    mount::mount(None, c"/", None, libc::MS_PRIVATE | libc::MS_REC, None)?;
    let fs = mount::fsopen(c"tmpfs")?;
    mount::fsconfig_string(fs.as_fd(), c"size", c"4k")?;
    mount::fsconfig_string(fs.as_fd(), c"mode", c"0555")?;
    mount::fsconfig_create(fs.as_fd())?;
    let strict = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NODEV;
    let root = mount::fsmount(fs.as_fd(), strict)?;
    let readonly = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    mount::mount_setattr(root.as_fd(), false, &readonly)?;
    // While this process is alone in its PID namespace and has the privilege.
    let procfs = if lend { Some(procfs()?) } else { None };
    // Any directory will do for the moment before the pivot; this one exists wherever a monitor can run.
    mount::move_mount_to(root.as_fd(), c"/proc")?;
    ops::enter(root.as_fd())?;
    match procfs {
        // On top of the root, which this process stays below: no path leads there, only an entrance of the mount
        // namespace does.
        Some(procfs) => mount::move_mount(procfs.as_fd(), root.as_fd()),
        None => Ok(()),
    }
}

/// A read-only procfs of this PID namespace.
fn procfs() -> Result<OwnedFd, Errno> {
    let fs = mount::fsopen(c"proc")?;
    mount::fsconfig_string(fs.as_fd(), c"source", c"proc")?;
    mount::fsconfig_create(fs.as_fd())?;
    let strict = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NODEV;
    mount::fsmount(fs.as_fd(), strict | libc::MOUNT_ATTR_RDONLY)
}

/// Ends when the monitor asks for it: SIGTERM or SIGINT from outside of the namespace (si_pid 0). The same from a
/// container is ignored, or one container could take the whole pod down.
fn reap_forever() -> ! {
    let bit = |signal: i32| 1u64 << (signal - 1);
    let mask = bit(libc::SIGCHLD) | bit(libc::SIGTERM) | bit(libc::SIGINT);
    // All signals have stayed blocked since before the clone: none is lost between two rounds.
    loop {
        // Several deaths may share one signal, so every signal empties the queue of the dead.
        while matches!(process::reap_any(), Ok(true)) {}
        match process::wait_signal(mask) {
            Ok(caught) if caught.signal == libc::SIGCHLD => {}
            Ok(caught) if caught.code == libc::SI_USER && caught.pid == 0 => process::exit_now(0),
            Ok(_) | Err(_) => {}
        }
    }
}
