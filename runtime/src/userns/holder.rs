//! The process that makes a user namespace, and then other namespaces which that one owns.
//!
//! unshare(CLONE_NEWUSER) is refused to a process with threads, and nobody comes back from a user namespace: so a
//! process of its own makes it, and lives until somebody else has a descriptor of what it made.
//!
//! ```text
//!  caller                                  holder: the monitor's program, called with HOLD
//!  start it, socket as its stdin ───────►  unshare(NEWUSER)
//!  write gid_map, uid_map        ◄───────  0, or an errno
//!  which namespaces              ───────►  gid 0, uid 0, unshare(those)
//!  open /proc/PID/ns/*           ◄───────  0, or an errno
//!  drop                          ───────►  the socket ends, and the process with it
//! ```
//!
//! The ids are mapped before the other namespaces are made, and their maker is root inside: what they hold (the
//! files of /proc/net, the root of the message queues) belongs to whoever made them.
//!
//! Must not know: what the namespaces are for.

use super::{IdMapping, IdMappings};
use crisp_sys::errno::text;
use crisp_sys::process::{CloneFlags, pidfd_open};
use crisp_sys::program::Program;
use crisp_sys::raw::{path, process};
use crisp_sys::{Errno, SysError};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The argument that makes the monitor's program a holder.
pub const HOLD: &str = "hold-namespaces";

/// Why there is no user namespace.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// The program could not be started.
    #[error("start {program}")]
    Start {
        /// Which.
        program: String,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A call of this process.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A mapping could not be written.
    #[error("write {file}")]
    Map {
        /// `uid_map` or `gid_map`.
        file: &'static str,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The holder was refused something.
    #[error("{what}: {}", text(*.errno))]
    Refused {
        /// What.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The holder went away.
    #[error("the process that makes namespaces ended at once")]
    Ended,
}

/// A running holder. Dropping it ends the process; the namespaces live on as long as somebody has a descriptor.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    pidfd: OwnedFd,
    socket: Option<OwnedFd>,
}

impl Holder {
    /// Makes a user namespace with these mappings, and the namespaces of `kinds` in it. `program` is the monitor's.
    ///
    /// # Errors
    /// The first step that went wrong; no process is left then.
    pub fn start(program: &Path, mappings: &IdMappings, kinds: CloneFlags) -> Result<Self, HolderError> {
        let (ours, theirs) = crisp_sys::socket::socketpair()?;
        let executed = Program::open(program)?;
        let mut child = Command::new(executed.path())
            .arg0(program)
            .arg(HOLD)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| HolderError::Start { program: program.display().to_string(), source })?;
        let pidfd = match pidfd_open(child.id() as i32) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                // Closing the socket is what ends it.
                drop(ours);
                let _status = child.wait();
                return Err(error.into());
            }
        };
        let holder = Self { child, pidfd, socket: Some(ours) };
        holder.answer("make a user namespace")?;
        // Groups first: once users are mapped nothing differs, but this order also works for a caller without
        // CAP_SETGID (user_namespaces(7)).
        holder.map("gid_map", &mappings.gids)?;
        holder.map("uid_map", &mappings.uids)?;
        crisp_sys::socket::sendmsg(holder.socket()?, &kinds.bits().to_ne_bytes(), &[])?;
        holder.answer("make namespaces of a user namespace")?;
        Ok(holder)
    }

    /// The holder as a pidfd: setns(2) takes it to join what the holder has made.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// A descriptor of the user namespace.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn user_namespace(&self) -> Result<OwnedFd, HolderError> {
        // The pid cannot be somebody else's: the process was not reaped.
        let path = format!("/proc/{}/ns/user", self.child.id());
        let file = File::open(&path).map_err(|error| SysError::io("open", &path, &error))?;
        Ok(file.into())
    }

    fn map(&self, file: &'static str, list: &[IdMapping]) -> Result<(), HolderError> {
        let mut text = String::new();
        for range in list {
            text.push_str(&format!("{} {} {}\n", range.container, range.host, range.length));
        }
        let opened = File::options().write(true).open(format!("/proc/{}/{file}", self.child.id()));
        // One write: the kernel takes a map as a whole, once.
        let written = opened.and_then(|mut map| map.write_all(text.as_bytes()));
        written.map_err(|source| HolderError::Map { file, source })
    }

    fn socket(&self) -> Result<BorrowedFd<'_>, HolderError> {
        self.socket.as_ref().map(AsFd::as_fd).ok_or(HolderError::Ended)
    }

    fn answer(&self, what: &'static str) -> Result<(), HolderError> {
        let mut bytes = [0; 4];
        match path::read(self.socket()?, &mut bytes) {
            Ok(4) => {}
            Ok(_) | Err(Errno::ECONNRESET) => return Err(HolderError::Ended),
            Err(errno) => return Err(SysError::new("read", "holder", errno).into()),
        }
        match i32::from_ne_bytes(bytes) {
            0 => Ok(()),
            errno => Err(HolderError::Refused { what, errno: Errno::from_raw(errno) }),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.socket.take());
        // It ends at the end of its socket; SIGKILL is for one that does not.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The holder's own life, with the socket that [`Holder::start`] gave it; returns when that ends.
///
/// # Errors
/// What was refused; the other end knows it by then.
pub fn hold(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let answer = |result: Result<(), Errno>| {
        let number = result.err().map_or(0, |errno| errno as i32);
        path::write(socket, &number.to_ne_bytes()).and(result)
    };
    answer(process::unshare(libc::CLONE_NEWUSER))?;
    let mut kinds = [0; 8];
    if path::read(socket, &mut kinds)? != kinds.len() {
        return Ok(());
    }
    let kinds = u64::from_ne_bytes(kinds) as libc::c_int;
    answer(
        process::setresgid(0)
            .and_then(|()| process::setresuid(0))
            .and_then(|()| if kinds == 0 { Ok(()) } else { process::unshare(kinds) }),
    )?;
    path::read(socket, &mut [0; 1]).map(drop)
}
