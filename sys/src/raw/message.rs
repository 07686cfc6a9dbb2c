//! A packet with one descriptor, sent without allocating.

#![expect(unsafe_code, reason = "control messages have no safe form")]

use super::check;
use crate::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Room for one control message with one descriptor, aligned as it has to be.
#[repr(C, align(8))]
struct Control([u8; 32]);

// SAFETY: computes a number only.
const _: () = assert!(unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } <= 32);

/// `sendmsg(2)` of `bytes` and a descriptor (`SCM_RIGHTS`); asks again after `EINTR`, raises no `SIGPIPE`.
pub fn send_descriptor(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut control = Control([0; 32]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a valid msghdr; what it points to is set below.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
    // SAFETY: computes a number only.
    let space = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) };
    (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().cast(), space as _);
    // SAFETY: the header's control buffer is large enough for one message, so this is a pointer into it.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    // SAFETY: computes a number only.
    let length = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) };
    // SAFETY: `first` points to an aligned cmsghdr inside `control`, which nobody else uses.
    let Some(message) = (unsafe { first.as_mut() }) else { return Err(Errno::EINVAL) };
    (message.cmsg_level, message.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    message.cmsg_len = length as _;
    // SAFETY: the data of that message is inside `control` and holds one descriptor number.
    unsafe { libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd.as_raw_fd()) };
    loop {
        // SAFETY: the header and all it points to live through the call; the kernel only reads them.
        let answer = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
        match check(answer as libc::c_long) {
            Err(Errno::EINTR) => {}
            answer => return answer.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_arrives_with_its_bytes() {
        let (ours, theirs) = crate::socket::socketpair().unwrap();
        let (reader, writer) = crate::fd::pipe2(false).unwrap();
        send_descriptor(theirs.as_fd(), b"here", writer.as_fd()).unwrap();
        let mut buffer = [0; 16];
        let packet = crate::socket::recvmsg(&ours, &mut buffer).unwrap().unwrap();
        assert_eq!((packet.length, packet.fds.len()), (4, 1));
        super::super::path::write(packet.fds[0].as_fd(), b"x").unwrap();
        assert_eq!(super::super::path::read(reader.as_fd(), &mut buffer), Ok(1));
    }
}
