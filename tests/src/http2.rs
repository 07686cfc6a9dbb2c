//! HTTP/2 frames by hand (RFC 9113), for clients that break the rules: half a preface, streams reset as fast as they are
//! opened, frames of every kind and none.
//!
//! Must not know: which server takes them.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// What every connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frame types.
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
/// Flag: the client says no more on this stream.
pub const END_STREAM: u8 = 1;
/// Flag: the header block is whole.
pub const END_HEADERS: u8 = 4;
/// Longest wait for a frame: there to end a broken run.
const LIMIT: Duration = Duration::from_secs(60);

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// See [`DATA`].
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// The stream; 0: the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block of literals that are not indexed (RFC 7541, 6.2.2).
pub fn headers(list: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in list {
        block.push(0);
        for text in [name, value] {
            integer(text.len(), &mut block);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// RFC 7541, 5.1, with a prefix of seven bits.
fn integer(value: usize, into: &mut Vec<u8>) {
    if value < 127 {
        return into.push(value as u8);
    }
    into.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        into.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    into.push(rest as u8);
}

/// The headers of a gRPC call.
pub fn call_headers(path: &str, content_type: &str) -> Vec<u8> {
    headers(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", content_type),
        ("te", "trailers"),
    ])
}

/// A gRPC message with its prefix: not compressed, its length.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

/// A connection; dropping it closes it, also for whoever reads it aside.
#[derive(Debug)]
pub struct Connection(UnixStream);

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

impl Connection {
    /// Connects and says nothing.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn silent(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self(stream))
    }

    /// Connects and says what every client says first.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn open(socket: &Path) -> Result<Self> {
        let mut connection = Self::silent(socket)?;
        connection.send(PREFACE)?;
        connection.send(&frame(SETTINGS, 0, 0, &[]))?;
        Ok(connection)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The server has closed the connection.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all(bytes)?)
    }

    /// Reads and drops whatever comes, on a thread of its own, until the connection is closed.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn read_aside(&self) -> Result<JoinHandle<()>> {
        let mut reader = Self(self.0.try_clone()?);
        Ok(thread::spawn(move || while matches!(reader.receive(), Ok(Some(_))) {}))
    }

    /// Says that nothing more will come.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn half_close(&self) -> Result<()> {
        Ok(self.0.shutdown(std::net::Shutdown::Write)?)
    }

    /// The next frame; `None`: the server has closed the connection.
    ///
    /// # Errors
    /// There is none within a minute.
    pub fn receive(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 9];
        if !self.fill(&mut head)? {
            return Ok(None);
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        ensure!(length <= 1 << 24, "a frame of {length} bytes");
        let mut payload = vec![0; length];
        if !self.fill(&mut payload)? {
            return Ok(None);
        }
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Ok(Some(Frame { kind: head[3], flags: head[4], stream, payload }))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool> {
        match self.0.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                Ok(false)
            }
            Err(error) => Err(error).context("wait for a frame"),
        }
    }

    /// Reads until a frame fits, and gives it; `None`: the connection was closed before.
    ///
    /// # Errors
    /// As of [`Connection::receive`].
    pub fn wait_for(&mut self, fits: impl Fn(&Frame) -> bool) -> Result<Option<Frame>> {
        loop {
            match self.receive()? {
                Some(frame) if fits(&frame) => return Ok(Some(frame)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_integers_are_as_the_rfcs_have_them() {
        assert_eq!(frame(SETTINGS, 0, 0, &[]), [0, 0, 0, 4, 0, 0, 0, 0, 0]);
        let mut bytes = Vec::new();
        integer(1337, &mut bytes);
        // 1337 - 127 = 1210 = 9 * 128 + 58.
        assert_eq!(bytes, [127, 58 | 128, 9]);
        assert_eq!(headers(&[("a", "bc")]), [0, 1, b'a', 2, b'b', b'c']);
    }
}
