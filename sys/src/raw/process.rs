//! The process calls: identity, limits, signals, namespaces, `execve`.

#![expect(unsafe_code, reason = "system calls have no safe form")]

use super::{check, descriptor};
use crate::errno::Errno;
use crate::memory::SharedWord;
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `dup3(2)` onto one of 0 to 2, without `O_CLOEXEC`: what was open there is closed. Other numbers are `EINVAL`,
/// because an owned descriptor may stand for them.
pub fn dup_onto_standard(fd: BorrowedFd<'_>, number: RawFd) -> Result<(), Errno> {
    if !(0..=2).contains(&number) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: no pointers, and std hands out 0 to 2 as borrowed descriptors only.
    check(unsafe { libc::dup3(fd.as_raw_fd(), number, 0) }.into()).map(drop)
}

/// `close_range(2)`: closes every descriptor from `first` to `last`, both included.
///
/// # Safety
/// No `OwnedFd` or `BorrowedFd` in that range is used (or dropped) by this process afterwards.
pub unsafe fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: no pointers; the caller answers for the descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// `setsid(2)`.
pub fn setsid() -> Result<(), Errno> {
    // SAFETY: no arguments.
    check(unsafe { libc::setsid() }.into()).map(drop)
}

/// `umask(2)`.
pub fn umask(mask: u32) {
    // SAFETY: cannot fail and has no pointers.
    unsafe { libc::umask(mask) };
}

/// `setpriority(2)` of this process.
pub fn set_nice(nice: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }.into()).map(drop)
}

/// `prlimit(2)` on this process.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: `limit` lives through the call; a null old limit is allowed.
    let answer = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::from_ref(&limit), none) };
    check(answer).map(drop)
}

/// `keyctl(2)`: a new, empty, anonymous session keyring.
pub fn join_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let anonymous = std::ptr::null::<c_char>();
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) }).map(drop)
}

/// Sets every signal's disposition to the default.
pub fn default_dispositions() -> Result<(), Errno> {
    // The kernel's own structure, all zero: SIG_DFL, no flags, empty mask. glibc refuses to touch the two
    // signals it keeps for itself (32, 33), and those can be ignored by inheritance, too.
    let action = [0u64; 4];
    let none = std::ptr::null_mut::<u64>();
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: `action` is at least as large as the kernel's sigaction (32 bytes on 64-bit machines).
        let answer =
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), none, size_of::<u64>()) };
        check(answer)?;
    }
    Ok(())
}

/// Sets the signal mask; bit n-1 blocks signal n.
pub fn set_signal_mask(mask: u64) -> Result<(), Errno> {
    let none = std::ptr::null_mut::<u64>();
    let pointer = std::ptr::from_ref(&mask);
    // SAFETY: the kernel's signal set is 64 bits, the given size says so.
    let answer = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, pointer, none, size_of::<u64>())
    };
    check(answer).map(drop)
}

/// What [`wait_signal`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caught {
    /// The signal's number.
    pub signal: i32,
    /// `SI_*`: where it came from.
    pub code: i32,
    /// The sender as this PID namespace sees it; 0 when it lives outside.
    pub pid: i32,
}

/// `rt_sigtimedwait(2)` without a time limit, for the signals of `mask` (blocked ones).
pub fn wait_signal(mask: u64) -> Result<Caught, Errno> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let forever = std::ptr::null::<libc::timespec>();
    let set = std::ptr::from_ref(&mask);
    // SAFETY: the set has the size that is given, the buffer is a siginfo_t.
    let answer = unsafe {
        libc::syscall(libc::SYS_rt_sigtimedwait, set, info.as_mut_ptr(), forever, size_of::<u64>())
    };
    let signal = check(answer)? as i32;
    // SAFETY: zeroed bytes are a valid siginfo_t, and the kernel has filled it since.
    let info = unsafe { info.assume_init() };
    // SAFETY: si_pid is plain data in every layout of the union; callers look at it for kill(2) and SIGCHLD only.
    let pid = unsafe { info.si_pid() };
    Ok(Caught { signal, code: info.si_code, pid })
}

/// Reaps one child that has ended; `false` when there is none at the moment.
pub fn reap_any() -> Result<bool, Errno> {
    // SAFETY: a null status pointer is allowed.
    let answer = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
    match check(answer.into()) {
        Ok(pid) => Ok(pid > 0),
        Err(Errno::ECHILD) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// `prctl(2)` with plain numbers.
pub fn prctl(option: libc::c_int, argument: u64, argument3: u64) -> Result<i32, Errno> {
    let (second, third) = (argument as libc::c_ulong, argument3 as libc::c_ulong);
    // SAFETY: only used with options whose arguments are numbers.
    check(unsafe { libc::prctl(option, second, third, 0, 0) }.into()).map(|value| value as i32)
}

/// `seccomp(2)`, `SECCOMP_SET_MODE_FILTER`: every later system call of this thread passes through `program`. Needs
/// no_new_privs or CAP_SYS_ADMIN (`EACCES`); `EINVAL`: the program is not valid.
pub fn set_seccomp_filter(flags: u32, program: &[libc::sock_filter]) -> Result<(), Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `filter` points to `len` instructions; the kernel copies them and does not write to them.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })
    .map(drop)
}

/// `PR_SET_NAME`: the thread's name, cut at 15 bytes.
pub fn set_name(name: &CStr) -> Result<(), Errno> {
    // SAFETY: `name` is NUL-terminated.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }.into()).map(drop)
}

/// Drops every capability from the bounding set that is not in `keep` (bit = capability number).
pub fn drop_bounding(keep: u64) -> Result<(), Errno> {
    for capability in 0..64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            // One past the last capability of this kernel.
            Err(Errno::EINVAL) => return Ok(()),
            answer => answer.map(drop)?,
        }
    }
    Ok(())
}

/// `capset(2)` for this thread.
pub fn capset(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Errno> {
    /// `_LINUX_CAPABILITY_VERSION_3`
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    let low = |set: u64| set as u32;
    let high = |set: u64| (set >> 32) as u32;
    let data = [
        [low(effective), low(permitted), low(inheritable)],
        [high(effective), high(permitted), high(inheritable)],
    ];
    // SAFETY: header and data have the layout of version 3: two words, then two times three words.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

/// Raises each capability of `set` in the ambient set.
pub fn raise_ambient(set: u64) -> Result<(), Errno> {
    for capability in (0..64).filter(|bit| set & (1 << bit) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability)?;
    }
    Ok(())
}

/// `setgroups(2)` of this thread alone: libc's function signals all threads to follow, and there are none.
pub fn setgroups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: pointer and length describe `groups`.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// `setresgid(2)` of this thread: real, effective and saved.
pub fn setresgid(gid: u32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// `setresuid(2)` of this thread: real, effective and saved.
pub fn setresuid(uid: u32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// `setresuid(2)` of this thread: the effective one alone.
pub fn set_effective_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: no pointers; -1 leaves an id as it is.
    check(unsafe { libc::syscall(libc::SYS_setresuid, u32::MAX, uid, u32::MAX) }).map(drop)
}

/// `unshare(2)`.
pub fn unshare(flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: no pointers; what a thread may unshare is the caller's business.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// `setns(2)`; `fd` is a namespace or, with several `CLONE_NEW*` flags, a pidfd.
pub fn setns(fd: BorrowedFd<'_>, flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }.into()).map(drop)
}

/// Which of the two a process is after [`clone_sibling`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sibling {
    /// The one that called.
    Elder,
    /// The new one.
    Younger,
}

/// The flags of [`clone_sibling`]'s `clone(2)`, for whoever asks a seccomp filter about it.
pub const SIBLING_FLAGS: libc::c_int = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID;

/// `clone(2)` with a copy of the address space: a new child of this process's parent, born in the PID namespace that
/// `setns` or `unshare` has chosen. Its pid, as this process sees it, is in `pid` before it runs. Not `clone3`, which
/// filters can only forbid (its flags are behind a pointer).
///
/// # Safety
/// As for [`crate::process::clone3`]: the process has one thread, or the new one makes system calls only.
pub unsafe fn clone_sibling(pid: &SharedWord) -> Result<Sibling, Errno> {
    let none = std::ptr::null_mut::<u8>();
    // SAFETY: without CLONE_VM and with no stack given the new process goes on here on its own copy of this stack.
    // The word is a live, writable mapping that both share.
    let answer = unsafe {
        libc::syscall(libc::SYS_clone, libc::c_long::from(SIBLING_FLAGS), none, pid.address(), none, none)
    };
    check(answer).map(|pid| if pid == 0 { Sibling::Younger } else { Sibling::Elder })
}

/// `openat(2)` on a path of the calling process's own root.
pub fn open(path: &CStr, flags: libc::c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: `path` is NUL-terminated.
    descriptor(unsafe { libc::openat(libc::AT_FDCWD, path.as_ptr(), flags | libc::O_CLOEXEC) }.into())
}

/// NUL-terminated strings as `execve(2)` wants them: made in the parent, read by the child.
#[derive(Debug)]
pub struct StringArray {
    pointers: Box<[*const c_char]>,
    // Never read: the pointers point into it.
    _strings: Vec<std::ffi::CString>,
}

// SAFETY: the pointers point into `_strings`, which is owned, never changed, and moves along.
unsafe impl Send for StringArray {}
// SAFETY: nothing is ever written through the pointers.
unsafe impl Sync for StringArray {}

impl StringArray {
    /// Takes the strings over.
    pub fn new(strings: Vec<std::ffi::CString>) -> Self {
        let pointers =
            strings.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect();
        Self { pointers, _strings: strings }
    }
}

/// `execve(2)`; only returns when the kernel refuses.
pub fn execve(program: &CStr, args: &StringArray, env: &StringArray) -> Errno {
    // SAFETY: `program` is NUL-terminated; both arrays end in null and their strings are alive.
    unsafe { libc::execve(program.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    Errno::last()
}

/// `_exit(2)`: ends the process without running anything registered with libc.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns, has no pointers.
    unsafe { libc::_exit(code) }
}
