//! The monitor's own process: what it takes over from the daemon that started it, and what it gives up.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crisp_runtime::plan::Rlimit;
use crisp_sys::{fd, process};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, close, dup2_stderr, dup2_stdin, dup2_stdout, getpid, getsid};

/// Chosen by the OOM killer after everything that a pod runs: nobody else could tell how that has ended. Not -1000, which
/// means never: what is cloned into a container's cgroup is a copy of this process until it has a value of its own, and
/// where the limit is too small for that, somebody must be there to be killed, or it waits for ever.
const OOM_SCORE_ADJ: &[u8] = b"-999";

/// Why the monitor cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettleError {
    #[error("standard input is not a listening SOCK_SEQPACKET socket")]
    NoListener,
    #[error("duplicate the listening socket: {0}")]
    Duplicate(io::Error),
    #[error("list /proc/self/fd: {0}")]
    List(io::Error),
    #[error("{call}: {errno}")]
    Call { call: &'static str, errno: Errno },
    #[error(transparent)]
    Sys(#[from] crisp_sys::SysError),
    #[error("oom_score_adj: {0}")]
    OomScore(io::Error),
}

fn call(call: &'static str) -> impl FnOnce(Errno) -> SettleError {
    move |errno| SettleError::Call { call, errno }
}

/// Takes the socket from standard input.
pub(crate) fn listener() -> Result<OwnedFd, SettleError> {
    let stdin = io::stdin();
    let listens = getsockopt(&stdin.as_fd(), sockopt::AcceptConn) == Ok(true)
        && getsockopt(&stdin.as_fd(), sockopt::SockType) == Ok(SockType::SeqPacket);
    if !listens {
        return Err(SettleError::NoListener);
    }
    // At 3 or above, and not inherited: 0 to 2 become /dev/null.
    stdin.as_fd().try_clone_to_owned().map_err(SettleError::Duplicate)
}

/// Raises the soft limit of open files to the hard one: what a pod with many containers needs must not depend on how
/// the daemon was started. Returns the soft limit as it was, which is what containers get.
pub(crate) fn raise_open_files() -> Result<u64, SettleError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(call("getrlimit"))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(call("setrlimit"))?;
    Ok(soft)
}

/// The limit of open files with the soft limit `soft`. The hard one stays as it is now: raising it back after
/// somebody has lowered it takes a privilege.
pub(crate) fn open_files(soft: u64) -> Result<Rlimit, Errno> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(Rlimit { resource: Resource::RLIMIT_NOFILE as u32, soft: soft.min(hard), hard })
}

/// Becomes a process of its own: no terminal, no descriptors, no signals, no core, no directory of anybody's.
pub(crate) fn settle(listener: &OwnedFd) -> Result<(), SettleError> {
    // Everything is blocked and nothing handled: a Ctrl-C or SIGTERM meant for the daemon takes no pod along,
    // SIGPIPE becomes EPIPE, and children are found through their pidfds (strangers' through a signalfd). Children
    // get an empty mask.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).map_err(call("sigprocmask"))?;
    process::set_dumpable(false)?;
    fd::set_nonblocking(listener, true)?;
    let null =
        open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(call("open /dev/null"))?;
    dup2_stdin(&null).map_err(call("dup2"))?;
    dup2_stdout(&null).map_err(call("dup2"))?;
    dup2_stderr(&null).map_err(call("dup2"))?;
    drop(null);
    close_others(listener)?;
    chdir("/").map_err(call("chdir"))?;
    umask(Mode::from_bits_truncate(0o022));
    // EPERM: posix_spawn has made the session already.
    if getsid(None) != Ok(getpid()) {
        process::setsid()?;
    }
    protect()
}

fn close_others(keep: &OwnedFd) -> Result<(), SettleError> {
    let entries = std::fs::read_dir("/proc/self/fd").map_err(SettleError::List)?;
    let open: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && *fd != keep.as_raw_fd()) {
        // EBADF: the directory that was just read.
        let _ = close(fd);
    }
    Ok(())
}

fn protect() -> Result<(), SettleError> {
    match std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        // A host that does not let us (no CAP_SYS_RESOURCE) still gets its pods.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Ok(()),
        written => written.map_err(SettleError::OomScore),
    }
}
