//! Processes: `clone3`, pidfds, `waitid`, namespaces, what `/proc/PID/stat` says.
//!
//! Must not know: containers.

#![expect(unsafe_code, reason = "clone3 and waitid on a pidfd have no safe form")]

use crate::errno::{Context, Errno, SysError};
use crate::raw;
use bitflags::bitflags;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

bitflags! {
    /// `CLONE_NEW*` and the other flags of `clone3(2)` that are used here.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct CloneFlags: u64 {
        /// A new mount namespace.
        const NEWNS = libc::CLONE_NEWNS as u64;
        /// A new cgroup namespace. In `clone3` its root is the cgroup of the *caller*, also with a target cgroup.
        const NEWCGROUP = libc::CLONE_NEWCGROUP as u64;
        /// A new UTS namespace.
        const NEWUTS = libc::CLONE_NEWUTS as u64;
        /// A new IPC namespace.
        const NEWIPC = libc::CLONE_NEWIPC as u64;
        /// A new user namespace.
        const NEWUSER = libc::CLONE_NEWUSER as u64;
        /// A new PID namespace.
        const NEWPID = libc::CLONE_NEWPID as u64;
        /// A new network namespace.
        const NEWNET = libc::CLONE_NEWNET as u64;
    }
}

/// `CLONE_INTO_CGROUP`; libc's constant has too narrow a type.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of `clone3(2)`, in the size of Linux 5.7 (with `cgroup`).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A child that [`clone3`] made.
#[derive(Debug)]
pub struct Cloned {
    /// Its pid in the caller's PID namespace.
    pub pid: i32,
    /// A pidfd for it.
    pub pidfd: OwnedFd,
}

/// `clone3(2)` with a copy of the address space, as `fork`: makes a child (with a pidfd, signalled by `SIGCHLD`),
/// born in `cgroup` when one is given, which runs `child` and ends (with status 255, should
/// that return).
///
/// # Safety
/// The calling process has one thread, or `child` calls only what is async-signal-safe: no allocation, no lock
/// (another thread may have held it when the address space was copied). `child` never unwinds.
///
/// # Errors
/// `ENOMEM` when the first process of the PID namespace to be born into has ended; `EBADF`, `EACCES`, `EBUSY`,
/// `ENODEV` and `EOPNOTSUPP` about the cgroup (clone(2)).
pub unsafe fn clone3(
    flags: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(),
) -> Result<Cloned, SysError> {
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: flags.bits() | libc::CLONE_PIDFD as u64,
        pidfd: std::ptr::from_mut(&mut pidfd).addr() as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // The address of `pidfd` went through an integer: keep the compiler aware that it is written.
    let _exposed = std::ptr::from_mut(&mut pidfd).expose_provenance();
    // SAFETY: the caller answers for what the child does.
    match unsafe { clone_with(&mut args, cgroup, child) } {
        Err(errno) => Err(SysError::new("clone3", format!("{flags:?}"), errno)),
        // SAFETY: the kernel has stored a new descriptor there, and nobody else knows its number.
        Ok(pid) => Ok(Cloned { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// As [`clone3`] with `CLONE_PARENT`: the new process is a child of the caller's parent, which hears of its end as of
/// the caller's. Without a pidfd: this process would be the one to have it. Allocates nothing. Gives the pid.
///
/// # Safety
/// As [`clone3`].
///
/// # Errors
/// As [`clone3`].
pub unsafe fn clone3_sibling(
    flags: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(),
) -> Result<i32, Errno> {
    // A signal of its own is refused with CLONE_PARENT.
    let mut args = CloneArgs { flags: flags.bits() | libc::CLONE_PARENT as u64, ..CloneArgs::default() };
    // SAFETY: the caller answers for what the child does.
    unsafe { clone_with(&mut args, cgroup, child) }
}

/// The pid of a child that runs `child` on its own copy of the stack.
///
/// # Safety
/// As [`clone3`].
unsafe fn clone_with(
    args: &mut CloneArgs,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(),
) -> Result<i32, Errno> {
    if let Some(cgroup) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let pointer = std::ptr::from_mut(args);
    // SAFETY: `args` is a complete clone_args; without CLONE_VM and with no stack given, the child goes on here on
    // its own copy of this stack. What it does then is covered by this function's contract.
    match unsafe { libc::syscall(libc::SYS_clone3, pointer, size_of::<CloneArgs>()) } {
        0 => {
            child();
            raw::process::exit_now(255)
        }
        -1 => Err(Errno::last()),
        pid => Ok(pid as i32),
    }
}

/// `pidfd_open(2)`.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd, SysError> {
    // SAFETY: no pointers.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if answer < 0 {
        return Err(SysError::new("pidfd_open", pid.to_string(), Errno::last()));
    }
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(answer as libc::c_int) })
}

/// `pidfd_send_signal(2)`; signal 0 only asks whether that is allowed and the process there.
///
/// # Errors
/// `ESRCH` when the process has ended and was reaped; `EINVAL` for a number that is no signal.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<(), SysError> {
    let none = std::ptr::null::<libc::siginfo_t>();
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo asks for what kill(2) would send.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) };
    if answer < 0 { Err(Errno::last()) } else { Ok(()) }
        .on("pidfd_send_signal", || format!("signal {signal}"))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exited {
    /// It called `exit` with this status (0 to 255).
    Code(i32),
    /// A signal of this number killed it.
    Signal(i32),
}

impl Exited {
    /// The one number that shells and CRI use: the exit status, or 128 + signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Whether [`waitid`] waits, and whether it reaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Waits until the process ends; reaps it.
    Block,
    /// Reaps it if it has ended.
    NoHang,
    /// Only looks whether it has ended (`WNOWAIT`).
    Peek,
}

/// `waitid(2)` on a child's pidfd; `None`: it still runs.
///
/// # Errors
/// `ECHILD` when it is no child of this process or was reaped before.
pub fn waitid(pidfd: impl AsFd, how: Wait) -> Result<Option<Exited>, SysError> {
    let flags = match how {
        Wait::Block => libc::WEXITED,
        Wait::NoHang => libc::WEXITED | libc::WNOHANG,
        Wait::Peek => libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
    };
    let id = pidfd.as_fd().as_raw_fd() as libc::id_t;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    loop {
        // SAFETY: the buffer is a siginfo_t.
        if unsafe { libc::waitid(libc::P_PIDFD, id, info.as_mut_ptr(), flags | libc::__WALL) } == 0 {
            break;
        }
        match Errno::last() {
            Errno::EINTR => {}
            errno => return Err(SysError::new("waitid", "pidfd", errno)),
        }
    }
    // SAFETY: zeroed bytes are a valid siginfo_t, and the kernel may have filled it since.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills the members of SIGCHLD, or leaves everything zero when nothing has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then_some(match info.si_code {
        libc::CLD_EXITED => Exited::Code(status),
        _ => Exited::Signal(status),
    }))
}

/// `waitid(2)` on all children: the pid of one that has ended, which is not reaped; `None` when there is none. Also
/// finds children that somebody else made (`CLONE_PARENT`, a subreaper's).
///
/// # Errors
/// The kernel's answer.
pub fn ended_child() -> Result<Option<i32>, SysError> {
    wait_for_child(libc::P_ALL, 0, libc::WNOWAIT)
}

/// `waitid(2)` on a child by its number: reaps it if it has ended; whether it had.
///
/// # Errors
/// `EINVAL` for a number that is no pid; else the kernel's answer.
pub fn reap_child(pid: i32) -> Result<bool, SysError> {
    let id =
        libc::id_t::try_from(pid).map_err(|_| SysError::new("waitid", pid.to_string(), Errno::EINVAL))?;
    wait_for_child(libc::P_PID, id, 0).map(|reaped| reaped.is_some())
}

/// The pid of a child that has ended, of any clone type; `None` when there is none, or no child at all.
fn wait_for_child(
    which: libc::idtype_t,
    id: libc::id_t,
    flags: libc::c_int,
) -> Result<Option<i32>, SysError> {
    let flags = flags | libc::WEXITED | libc::WNOHANG | libc::__WALL;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the buffer is a siginfo_t.
    if unsafe { libc::waitid(which, id, info.as_mut_ptr(), flags) } != 0 {
        return match Errno::last() {
            Errno::ECHILD => Ok(None),
            errno => Err(SysError::new("waitid", id.to_string(), errno)),
        };
    }
    // SAFETY: zeroed bytes are a valid siginfo_t, and the kernel may have filled it since.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills the members of SIGCHLD, or leaves everything zero when nothing has ended.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(pid))
}

/// `PR_SET_DUMPABLE`: with `false`, only processes with `CAP_SYS_PTRACE` can trace this one or look into its
/// `/proc` directory.
///
/// # Errors
/// The kernel's answer.
pub fn set_dumpable(on: bool) -> Result<(), SysError> {
    raw::process::prctl(libc::PR_SET_DUMPABLE, on.into(), 0).on("PR_SET_DUMPABLE", String::new).map(drop)
}

/// `PR_SET_CHILD_SUBREAPER`: orphaned descendants become children of this process.
///
/// # Errors
/// The kernel's answer.
pub fn set_child_subreaper(on: bool) -> Result<(), SysError> {
    let answer = raw::process::prctl(libc::PR_SET_CHILD_SUBREAPER, on.into(), 0);
    answer.on("PR_SET_CHILD_SUBREAPER", String::new).map(drop)
}

/// `PR_SET_PDEATHSIG`: the signal that this process gets when its parent *thread* ends; 0 for none.
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn set_parent_death_signal(signal: i32) -> Result<(), SysError> {
    let answer = raw::process::prctl(libc::PR_SET_PDEATHSIG, signal as u64, 0);
    answer.on("PR_SET_PDEATHSIG", String::new).map(drop)
}

/// `umask(2)`, of the whole process.
pub fn set_umask(mask: u32) {
    raw::process::umask(mask);
}

/// `setsid(2)`.
///
/// # Errors
/// `EPERM` when this process leads a process group already.
pub fn setsid() -> Result<(), SysError> {
    raw::process::setsid().on("setsid", String::new)
}

/// `setns(2)` of the calling thread; `fd` is a namespace, or a pidfd whose namespaces `kinds` are joined.
///
/// # Errors
/// `ESRCH` when the process behind a pidfd has ended; `EINVAL` for a namespace of another kind.
pub fn setns(fd: impl AsFd, kinds: CloneFlags) -> Result<(), SysError> {
    let answer = raw::process::setns(fd.as_fd(), kinds.bits() as libc::c_int);
    answer.on("setns", || format!("{kinds:?}"))
}

/// `unshare(2)` of the calling thread.
///
/// # Errors
/// `EPERM` without privilege, `ENOSPC` above `/proc/sys/user/max_*_namespaces`.
pub fn unshare(kinds: CloneFlags) -> Result<(), SysError> {
    raw::process::unshare(kinds.bits() as libc::c_int).on("unshare", || format!("{kinds:?}"))
}

/// `setresuid(2)` of the calling *thread*'s effective user id alone: libc's function would change all threads. Going
/// back to the real id brings the effective capabilities back.
///
/// # Errors
/// `EPERM` without `CAP_SETUID` for an id that is not one of the thread's own.
pub fn set_effective_uid_of_thread(uid: u32) -> Result<(), SysError> {
    raw::process::set_effective_uid(uid).on("setresuid", || uid.to_string())
}

/// What `/proc/PID/stat` says (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// State: `R`, `S`, `D`, `Z`, ...
    pub state: char,
    /// Parent's pid.
    pub parent: i32,
    /// `PF_*` flags of the kernel.
    pub flags: u32,
    /// Start time in clock ticks since boot: with the pid it names a process for good.
    pub start_ticks: u64,
}

impl Stat {
    /// Whether the process never called `execve` since it was cloned (`PF_FORKNOEXEC`).
    pub fn never_executed(&self) -> bool {
        self.flags & 0x40 != 0
    }
}

/// Reads `/proc/PID/stat`.
///
/// # Errors
/// `ENOENT` or `ESRCH` when there is no such process.
pub fn stat(pid: i32) -> Result<Stat, SysError> {
    let path = format!("/proc/{pid}/stat");
    let bytes = std::fs::read(&path).map_err(|error| SysError::io("read", &path, &error))?;
    parse_stat(&bytes).ok_or_else(|| SysError::new("parse", path, Errno::EBADMSG))
}

fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    // The command's name may hold spaces and brackets; the last bracket ends it.
    let end = bytes.iter().rposition(|&byte| byte == b')')?;
    let mut fields = std::str::from_utf8(bytes.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let flags = fields.nth(4)?.parse().ok()?;
    let start_ticks = fields.nth(12)?.parse().ok()?;
    Some(Stat { state, parent, flags, start_ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_brackets_does_not_confuse_stat() {
        let line = b"42 (a) R (b)) S 7 42 42 0 -1 4194368 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.start_ticks), ('S', 7, 987_654));
        assert!(stat.never_executed());
    }

    #[test]
    fn a_child_is_cloned_signalled_and_reaped() {
        // SAFETY: the child calls pause and _exit only.
        let child = unsafe {
            clone3(CloneFlags::empty(), None, || {
                libc::pause();
                libc::_exit(1)
            })
        };
        let child = child.unwrap();
        assert!(stat(child.pid).unwrap().never_executed());
        assert_eq!(waitid(&child.pidfd, Wait::NoHang).unwrap(), None);
        assert!(!reap_child(child.pid).unwrap());
        pidfd_send_signal(&child.pidfd, libc::SIGKILL).unwrap();
        assert_eq!(waitid(&child.pidfd, Wait::Block).unwrap(), Some(Exited::Signal(9)));
        assert_eq!(waitid(&child.pidfd, Wait::Peek).unwrap_err().errno, Errno::ECHILD);
    }

    #[test]
    fn a_closed_descriptor_is_no_cgroup() {
        let file = tempfile::tempfile().unwrap();
        // SAFETY: the call is refused, there is no child; it would only exit.
        let answer = unsafe { clone3(CloneFlags::empty(), Some(file.as_fd()), || libc::_exit(1)) };
        assert_eq!(answer.unwrap_err().errno, Errno::EBADF);
    }
}
