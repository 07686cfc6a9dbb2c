//! Signal masks and signals as readable descriptors.
//!
//! Works on the kernel's own 64-bit sets, so real-time signals are signals like any other.
//!
//! Must not know: what a signal makes its receiver do.

#![expect(unsafe_code, reason = "nix has no real-time signals in its sets")]

use crate::errno::{Context, Errno, SysError};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A set of signals: bit n-1 is signal n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SignalSet(pub u64);

impl SignalSet {
    /// Every signal. The kernel ignores the bits of SIGKILL and SIGSTOP.
    pub const ALL: Self = Self(u64::MAX);

    /// The set of the given numbers; what is no signal number is left out.
    pub fn of(signals: &[i32]) -> Self {
        let bits = signals.iter().filter(|signal| (1..=64).contains(*signal)).map(|signal| 1 << (signal - 1));
        Self(bits.fold(0, |set, bit: u64| set | bit))
    }
}

/// Blocks signals for the calling thread, until changed again.
///
/// # Errors
/// The kernel's answer.
pub fn block(set: SignalSet) -> Result<(), SysError> {
    mask(libc::SIG_BLOCK, Some(set)).map(drop)
}

/// Unblocks signals for the calling thread.
///
/// # Errors
/// The kernel's answer.
pub fn unblock(set: SignalSet) -> Result<(), SysError> {
    mask(libc::SIG_UNBLOCK, Some(set)).map(drop)
}

/// All signals blocked for the calling thread; the mask it had comes back on drop.
#[derive(Debug)]
pub struct BlockedSignals {
    before: SignalSet,
}

impl BlockedSignals {
    /// Blocks everything.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn all() -> Result<Self, SysError> {
        mask(libc::SIG_BLOCK, Some(SignalSet::ALL)).map(|before| Self { before })
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Setting a mask that was in force before cannot be refused.
        let _ok = crate::raw::process::set_signal_mask(self.before.0);
    }
}

/// `rt_sigprocmask(2)`: the mask before.
fn mask(how: libc::c_int, set: Option<SignalSet>) -> Result<SignalSet, SysError> {
    let mut before = 0u64;
    let new = set.as_ref().map_or(std::ptr::null(), |set| std::ptr::from_ref(&set.0));
    let old = std::ptr::from_mut(&mut before);
    // SAFETY: both sets are 64 bits, as the given size says; null means that nothing is changed.
    let answer = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, new, old, size_of::<u64>()) };
    if answer < 0 { Err(Errno::last()) } else { Ok(SignalSet(before)) }.on("rt_sigprocmask", String::new)
}

/// Ignores a signal in this process (a child inherits that, across `execve`, too).
///
/// # Errors
/// `EINVAL` for SIGKILL, SIGSTOP and what is no signal.
pub fn ignore(signal: i32) -> Result<(), SysError> {
    // SAFETY: SIG_IGN runs no code of ours.
    let answer = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if answer == libc::SIG_ERR { Err(Errno::last()) } else { Ok(()) }.on("signal", || signal.to_string())
}

/// Signals that arrive as data: signalfd(2). They must be blocked.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
}

/// A signal that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// The sender's pid, as the reader's PID namespace sees it.
    pub pid: i32,
    /// The sender's user id.
    pub uid: u32,
}

impl SignalFd {
    /// A non-blocking descriptor for the signals of `set`.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn new(set: SignalSet) -> Result<Self, SysError> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        let pointer = std::ptr::from_ref(&set.0);
        // SAFETY: the set is 64 bits, as the given size says.
        let answer = unsafe { libc::syscall(libc::SYS_signalfd4, -1, pointer, size_of::<u64>(), flags) };
        if answer < 0 {
            return Err(SysError::new("signalfd4", "", Errno::last()));
        }
        // SAFETY: a new descriptor, which nobody else knows.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(answer as libc::c_int) } })
    }

    /// The next pending signal; `None` when there is none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn read(&self) -> Result<Option<Received>, SysError> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: pointer and size describe the buffer.
        let length = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if length < 0 {
            return match Errno::last() {
                Errno::EAGAIN => Ok(None),
                errno => Err(SysError::new("read", "signalfd", errno)),
            };
        }
        // SAFETY: plain numbers, zeroed and then filled by the kernel.
        let info = unsafe { info.assume_init() };
        let (signal, pid) = (info.ssi_signo as i32, info.ssi_pid as i32);
        Ok(Some(Received { signal, pid, uid: info.ssi_uid }))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_from_the_descriptor() {
        let signal = libc::SIGRTMIN() + 3;
        block(SignalSet::of(&[signal])).unwrap();
        let fd = SignalFd::new(SignalSet::of(&[signal])).unwrap();
        assert_eq!(fd.read().unwrap(), None);
        // SAFETY: sends a blocked signal to this thread alone.
        unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
        let got = fd.read().unwrap().unwrap();
        assert_eq!((got.signal, got.pid as u32), (signal, std::process::id()));
        unblock(SignalSet::of(&[signal])).unwrap();
    }

    #[test]
    fn the_mask_comes_back() {
        let before = mask(libc::SIG_BLOCK, None).unwrap();
        let guard = BlockedSignals::all().unwrap();
        assert_ne!(mask(libc::SIG_BLOCK, None).unwrap(), before);
        drop(guard);
        assert_eq!(mask(libc::SIG_BLOCK, None).unwrap(), before);
    }

    #[test]
    fn numbers_that_are_no_signals_are_left_out() {
        assert_eq!(SignalSet::of(&[0, 1, 64, 65, -3]), SignalSet(1 | 1 << 63));
    }
}
