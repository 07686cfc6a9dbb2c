//! Unix sockets that keep packets apart and carry descriptors (unix(7), `SOCK_SEQPACKET`).
//!
//! Paths go through /proc/self/fd, because `sun_path` holds 108 bytes only and a state directory may be deeper.
//!
//! Must not know: what is in a packet.

#![expect(unsafe_code, reason = "descriptors are received by number, and nix drops some unseen")]

use crate::errno::{Context, Errno, SysError};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sockopt,
};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Most descriptors that the kernel lets one packet carry (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// A connected pair, close-on-exec, blocking.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn socketpair() -> Result<(OwnedFd, OwnedFd), SysError> {
    let flags = SockFlag::SOCK_CLOEXEC;
    nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .on("socketpair", String::new)
}

fn socket(nonblocking: bool) -> Result<OwnedFd, SysError> {
    let mut flags = SockFlag::SOCK_CLOEXEC;
    flags.set(SockFlag::SOCK_NONBLOCK, nonblocking);
    nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).on("socket", String::new)
}

/// A non-blocking listening socket at `path`, which must not exist, with the permissions `mode`.
///
/// # Errors
/// `EADDRINUSE` when the path exists, `ENOENT` when its directory does not.
pub fn listen(path: &Path, mode: u32, backlog: i32) -> Result<OwnedFd, SysError> {
    use nix::fcntl::{AT_FDCWD, OFlag};
    use nix::sys::stat::{FchmodatFlags, Mode};
    let shown = || path.to_string_lossy();
    let invalid = || SysError::new("bind", shown(), Errno::EINVAL);
    let name = path.file_name().ok_or_else(invalid)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = nix::fcntl::openat(AT_FDCWD, parent, flags, Mode::empty()).on("open", shown)?;
    let socket = socket(true)?;
    let address = through_proc(&dir, Some(name.as_bytes())).on("bind", shown)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &address).on("bind", shown)?;
    // Nobody can connect before listen(2): there is no moment at which the socket has the wrong permissions.
    nix::sys::stat::fchmodat(&dir, name, Mode::from_bits_truncate(mode), FchmodatFlags::NoFollowSymlink)
        .on("chmod", shown)?;
    let backlog = Backlog::new(backlog).on("listen", shown)?;
    nix::sys::socket::listen(&socket, backlog).on("listen", shown)?;
    Ok(socket)
}

/// A connection to the socket at `path`.
///
/// # Errors
/// `ENOENT` when there is none, `ECONNREFUSED` when nobody listens any more, `EAGAIN` when it is non-blocking and
/// the backlog is full.
pub fn connect(path: &Path, nonblocking: bool) -> Result<OwnedFd, SysError> {
    use nix::fcntl::{AT_FDCWD, OFlag};
    let shown = || path.to_string_lossy();
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let there =
        nix::fcntl::openat(AT_FDCWD, path, flags, nix::sys::stat::Mode::empty()).on("connect", shown)?;
    let socket = socket(nonblocking)?;
    let address = through_proc(&there, None).on("connect", shown)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address).on("connect", shown)?;
    Ok(socket)
}

fn through_proc(fd: &OwnedFd, name: Option<&[u8]>) -> Result<UnixAddr, Errno> {
    let mut path = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
    if let Some(name) = name {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    UnixAddr::new(path.as_slice())
}

/// `accept4(2)`: a non-blocking connection; `None` when nobody waits.
///
/// # Errors
/// `EMFILE`, `ENFILE`; the caller takes away its interest until a descriptor is free.
pub fn accept4(listener: impl AsFd) -> Result<Option<OwnedFd>, SysError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    match nix::sys::socket::accept4(listener.as_fd().as_raw_fd(), flags) {
        // SAFETY: a new descriptor, which nobody else knows.
        Ok(number) => Ok(Some(unsafe { OwnedFd::from_raw_fd(number) })),
        // The peer may have given up already.
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
        Err(errno) => Err(SysError::new("accept4", "", errno)),
    }
}

/// Sends one packet with descriptors beside it. No SIGPIPE.
///
/// # Errors
/// `EAGAIN` when the socket is non-blocking and the peer does not read; `EPIPE` when it is gone; `EMSGSIZE` for a
/// packet that is too large.
pub fn sendmsg(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SysError> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
    let socket = socket.as_fd().as_raw_fd();
    loop {
        let parts = [IoSlice::new(bytes)];
        match nix::sys::socket::sendmsg::<UnixAddr>(socket, &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            answer => return answer.map(drop).on("sendmsg", || format!("{} bytes", bytes.len())),
        }
    }
}

/// A packet that was received.
#[derive(Debug)]
pub struct Packet {
    /// How many bytes of the buffer it fills; 0 is the end of the connection.
    pub length: usize,
    /// The descriptors that came along, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Not all of its descriptors have arrived, because this process may have no more of them: the rest is lost.
    pub truncated: bool,
}

/// Room for the descriptors of one packet, aligned as a control message has to be.
#[repr(C, align(8))]
struct Control([u8; 1040]);

// SAFETY: computes a number only.
const _: () = assert!(unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<RawFd>()) as u32) } <= 1040);

/// Receives one packet into `buffer`; `None`: nothing there (non-blocking).
///
/// # Errors
/// `EMSGSIZE` when it does not fit (the packet and its descriptors are gone); `ECONNRESET` when the peer closed
/// with unread data. Too few free descriptors are no error: see [`Packet::truncated`].
pub fn recvmsg(socket: impl AsFd, buffer: &mut [u8]) -> Result<Option<Packet>, SysError> {
    // nix hands out nothing at all of a truncated control message, and the descriptors in it would leak.
    let mut control = Control([0; 1040]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zero is a valid msghdr; the three pointers are set below.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
    (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().cast(), control.0.len() as _);
    let socket = socket.as_fd().as_raw_fd();
    let length = loop {
        // SAFETY: the header points to the buffer and the room for control messages, which live on, with their sizes.
        let length = unsafe { libc::recvmsg(socket, &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        if let Ok(length) = usize::try_from(length) {
            break length;
        }
        match Errno::last() {
            Errno::EINTR => {}
            Errno::EAGAIN => return Ok(None),
            errno => return Err(SysError::new("recvmsg", "", errno)),
        }
    };
    // SAFETY: the kernel has filled the header just now, and nobody has looked at it since.
    let fds = unsafe { take_descriptors(&header) };
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(SysError::new("recvmsg", "packet", Errno::EMSGSIZE));
    }
    Ok(Some(Packet { length, fds, truncated: header.msg_flags & libc::MSG_CTRUNC != 0 }))
}

/// The descriptors in the control messages of a received packet.
///
/// # Safety
/// recvmsg(2) has filled `header`, its control messages are still there, and this is called once for it.
unsafe fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the header is one that the kernel has filled: so for all uses of the CMSG macros here.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole message inside the control buffer.
    while let Some(message) = unsafe { next.as_ref() } {
        if (message.cmsg_level, message.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: computes a number only.
            let before = u64::from(unsafe { libc::CMSG_LEN(0) });
            // libc's type of the length differs between C libraries.
            let bytes = (message.cmsg_len as u64).saturating_sub(before) as usize;
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the message's length says that so many numbers follow it; they need not be aligned.
                let number = unsafe { libc::CMSG_DATA(next).cast::<RawFd>().add(index).read_unaligned() };
                // SAFETY: the kernel has put this descriptor into this process just now, for this packet alone.
                fds.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        // SAFETY: `next` is a message of this header.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    fds
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its pid when it connected, as this PID namespace sees it.
    pub pid: i32,
    /// Its effective user id then.
    pub uid: u32,
    /// Its effective group id then.
    pub gid: u32,
}

/// `SO_PEERCRED`.
///
/// # Errors
/// The kernel's answer.
pub fn peer_credentials(socket: impl AsFd) -> Result<PeerCredentials, SysError> {
    let peer = nix::sys::socket::getsockopt(&socket.as_fd(), sockopt::PeerCredentials)
        .on("SO_PEERCRED", String::new)?;
    Ok(PeerCredentials { pid: peer.pid(), uid: peer.uid(), gid: peer.gid() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn packets_stay_apart_and_carry_descriptors() {
        let (left, right) = socketpair().unwrap();
        let file = tempfile::tempfile().unwrap();
        sendmsg(&left, b"first", &[file.as_fd(), right.as_fd()]).unwrap();
        sendmsg(&left, b"second", &[]).unwrap();
        let mut buffer = [0; 16];
        let packet = recvmsg(&right, &mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..packet.length], packet.fds.len()), (&b"first"[..], 2));
        let flags = nix::fcntl::fcntl(&packet.fds[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        assert!(!packet.truncated);
        drop(packet);
        let packet = recvmsg(&right, &mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..packet.length], packet.fds.len()), (&b"second"[..], 0));
        drop(left);
        assert_eq!(recvmsg(&right, &mut buffer).unwrap().unwrap().length, 0);
    }

    #[test]
    fn a_packet_that_does_not_fit_is_an_error() {
        let (left, right) = socketpair().unwrap();
        sendmsg(&left, b"too long", &[]).unwrap();
        assert_eq!(recvmsg(&right, &mut [0; 4]).unwrap_err().errno, Errno::EMSGSIZE);
    }

    #[test]
    fn a_path_longer_than_sun_path_works_and_has_its_mode_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("monitor.sock");
        let listener = listen(&path, 0o600, 8).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(accept4(&listener).unwrap().is_none());
        let client = connect(&path, false).unwrap();
        let server = accept4(&listener).unwrap().unwrap();
        assert_eq!(peer_credentials(&server).unwrap().pid as u32, std::process::id());
        drop(server);
        assert_eq!(sendmsg(&client, b"x", &[]).unwrap_err().errno, Errno::EPIPE);
        assert_eq!(listen(&path, 0o600, 8).unwrap_err().errno, Errno::EADDRINUSE);
        drop(listener);
        assert_eq!(connect(&path, false).unwrap_err().errno, Errno::ECONNREFUSED);
    }
}
