//! What the kernel knows of a TCP connection (tcp(7)) and no library tells.
//!
//! Must not know: what goes over it.

#![expect(unsafe_code, reason = "ioctl has no safe form")]

use crate::errno::{Context, Errno, SysError};
use std::os::fd::{AsFd, AsRawFd};

/// Bytes that were written and not acknowledged by the peer's kernel, the end of the stream counting as one (`SIOCOUTQ`).
///
/// # Errors
/// `EINVAL` for a socket that listens, `ENOTTY` for anything but a socket.
pub fn unacknowledged(socket: impl AsFd) -> Result<usize, SysError> {
    let mut count: libc::c_int = 0;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the request writes one int, which lives through the call. TIOCOUTQ is another name of SIOCOUTQ.
    let value = unsafe { libc::ioctl(fd, libc::TIOCOUTQ as _, &raw mut count) };
    Errno::result(value).on("ioctl", || "SIOCOUTQ")?;
    Ok(usize::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_the_peer_has_no_room_for_is_unacknowledged_until_it_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = socket.write(&[7; 65536]) {
            sent += count;
        }
        assert!(unacknowledged(&socket).unwrap() > 0);
        peer.read_exact(&mut vec![0; sent]).unwrap();
        while unacknowledged(&socket).unwrap() > 0 {
            std::thread::yield_now();
        }
    }
}
