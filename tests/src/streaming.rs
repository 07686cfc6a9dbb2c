//! Clients of streaming URLs: HTTP as far as the upgrade, WebSocket and SPDY as far as tests need them, blocking.
//!
//! Written apart from the daemon's own framing, so that both have to be right. Must not know: how the daemon works inside.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// There to end a broken run.
const LIMIT: Duration = Duration::from_secs(180);

/// An answer of the streaming server.
#[derive(Debug)]
pub struct Reply {
    /// The number in the first line; 0 when the connection ended without one.
    pub status: u16,
    /// All of the head.
    pub head: String,
    /// The connection.
    pub socket: TcpStream,
    /// What came behind the head.
    pub rest: Vec<u8>,
}

/// Host with port, and path, of a URL.
///
/// # Errors
/// It is not http.
pub fn parts(url: &str) -> Result<(&str, &str)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is not http"))?;
    let slash = rest.find('/').with_context(|| format!("{url} has no path"))?;
    Ok(rest.split_at(slash))
}

/// Sends a request with these header lines and reads the answer's head.
///
/// # Errors
/// Nobody listens.
pub fn request(host: &str, line: &str, headers: &[&str]) -> Result<Reply> {
    let mut socket = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_nodelay(true)?;
    let text = format!(
        "{line} HTTP/1.1\r\nHost: {host}\r\n{}\r\n",
        headers.iter().map(|h| format!("{h}\r\n")).collect::<String>()
    );
    // A server that refuses early may have closed already.
    let _ = socket.write_all(text.as_bytes());
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while !bytes.ends_with(b"\r\n\r\n") {
        match socket.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error).context("read the answer's head"),
        }
    }
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let status = head.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
    Ok(Reply { status, head, socket, rest: Vec::new() })
}

/// The header lines of a WebSocket's beginning.
pub fn web_socket_headers(protocol: &str) -> Vec<String> {
    let mut lines = vec![
        "Connection: Upgrade".to_owned(),
        "Upgrade: websocket".to_owned(),
        "Sec-WebSocket-Version: 13".to_owned(),
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==".to_owned(),
    ];
    if !protocol.is_empty() {
        lines.push(format!("Sec-WebSocket-Protocol: {protocol}"));
    }
    lines
}

/// What a session has said, whole.
#[derive(Debug, Default)]
pub struct Told {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The error channel.
    pub error: Vec<u8>,
}

impl Told {
    /// The exit code that the Status on the error channel tells.
    ///
    /// # Errors
    /// It is no Status, or one of another failure.
    pub fn code(&self) -> Result<i32> {
        let text = String::from_utf8_lossy(&self.error);
        let status: Value =
            serde_json::from_slice(&self.error).with_context(|| format!("no Status: {text:?}"))?;
        if status["status"] == "Success" {
            return Ok(0);
        }
        ensure!(status["reason"] == "NonZeroExitCode", "{text}");
        let code = status["details"]["causes"][0]["message"].as_str().and_then(|code| code.parse().ok());
        code.with_context(|| format!("no exit code in {text}"))
    }

    /// The message of the failure that the Status on the error channel tells.
    ///
    /// # Errors
    /// It is no Status of a failure.
    pub fn failure(&self) -> Result<String> {
        let text = String::from_utf8_lossy(&self.error);
        let status: Value =
            serde_json::from_slice(&self.error).with_context(|| format!("no Status: {text:?}"))?;
        ensure!(status["status"] == "Failure" && status["reason"] == "InternalError", "{text}");
        Ok(status["message"].as_str().unwrap_or_default().to_owned())
    }

    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn add(&mut self, channel: u8, bytes: &[u8]) {
        match channel {
            1 => self.stdout.extend_from_slice(bytes),
            2 => self.stderr.extend_from_slice(bytes),
            3 => self.error.extend_from_slice(bytes),
            _ => {}
        }
    }
}

/// A session over WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    /// The connection.
    pub socket: TcpStream,
    base64: bool,
}

impl WebSocket {
    /// Opens `url`.
    ///
    /// # Errors
    /// It is refused.
    pub fn open(url: &str, protocol: &str) -> Result<Self> {
        let (host, path) = parts(url)?;
        let lines = web_socket_headers(protocol);
        let reply =
            request(host, &format!("GET {path}"), &lines.iter().map(String::as_str).collect::<Vec<_>>())?;
        ensure!(reply.status == 101, "{}", reply.head);
        // RFC 6455's own example.
        ensure!(reply.head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{}", reply.head);
        let chosen = reply
            .head
            .to_ascii_lowercase()
            .contains(&format!("sec-websocket-protocol: {}", protocol.to_ascii_lowercase()));
        ensure!(protocol.is_empty() || chosen, "{}", reply.head);
        Ok(Self { socket: reply.socket, base64: protocol.contains("base64") })
    }

    /// A second hold on the connection, for another thread.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn twin(&self) -> Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, base64: self.base64 })
    }

    /// Sends a frame with a mask of zeroes.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn frame(&mut self, first: u8, content: &[u8]) -> io::Result<()> {
        let mut frame = vec![first];
        match content.len() {
            length @ 0..=125 => frame.push(0x80 | length as u8),
            length @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(content);
        self.socket.write_all(&frame)
    }

    /// Sends bytes on a channel.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        if self.base64 {
            return self.frame(0x81, format!("{channel}{}", encode(bytes)).as_bytes());
        }
        self.frame(0x82, &[&[channel], bytes].concat())
    }

    /// Ends standard input, as v5 can.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn end_input(&mut self) -> io::Result<()> {
        self.frame(0x82, &[255, 0])
    }

    /// The next frame: its first byte and its content; `None` at the end of the connection.
    ///
    /// # Errors
    /// Nothing comes.
    pub fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let mut head = [0; 2];
        match self.socket.read_exact(&mut head) {
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            other => other.context("read a frame")?,
        }
        ensure!(head[1] & 0x80 == 0, "the server masks");
        let length = match head[1] {
            126 => {
                let mut bytes = [0; 2];
                self.socket.read_exact(&mut bytes)?;
                u16::from_be_bytes(bytes).into()
            }
            127 => {
                let mut bytes = [0; 8];
                self.socket.read_exact(&mut bytes)?;
                usize::try_from(u64::from_be_bytes(bytes))?
            }
            short => short.into(),
        };
        let mut content = vec![0; length];
        self.socket.read_exact(&mut content).context("read a frame's content")?;
        Ok(Some((head[0], content)))
    }

    /// The next bytes of a channel; `None` once the server has closed.
    ///
    /// # Errors
    /// Nothing comes.
    pub fn message(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            match self.receive()? {
                None => return Ok(None),
                Some((0x88, code)) => {
                    ensure!(code == [3, 232], "closed with {code:?}");
                    return Ok(None);
                }
                Some((0x82, content)) if !self.base64 => {
                    let (channel, bytes) = content.split_first().context("a message without a channel")?;
                    return Ok(Some((*channel, bytes.to_vec())));
                }
                Some((0x81, content)) if self.base64 => {
                    let (channel, text) = content.split_first().context("a message without a channel")?;
                    return Ok(Some((channel - b'0', decode(text)?)));
                }
                Some((0x8a, _)) => {}
                Some((first, _)) => bail!("a frame that begins with {first:#x}"),
            }
        }
    }

    /// Everything until the server closes.
    ///
    /// # Errors
    /// Nothing comes any more.
    pub fn told(&mut self) -> Result<Told> {
        let mut told = Told::default();
        while let Some((channel, bytes)) = self.message()? {
            told.add(channel, &bytes);
        }
        Ok(told)
    }

    /// Waits until standard output, from now on, holds `text`; gives all of it.
    ///
    /// # Errors
    /// The session ends before that.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let mut told = Told::default();
        while !told.out().contains(text) {
            match self.message()? {
                Some((channel, bytes)) => told.add(channel, &bytes),
                None => bail!("the session ended before {text:?}: {told:?}"),
            }
        }
        Ok(told.out())
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut all = [0; 4];
        all[1..=chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes(all);
        for index in 0..4 {
            match index <= chunk.len() {
                true => text.push(ALPHABET[(number >> (18 - 6 * index) & 63) as usize].into()),
                false => text.push('='),
            }
        }
    }
    text
}

fn decode(text: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ensure!(text.len().is_multiple_of(4), "base64 of {} characters", text.len());
    for chunk in text.chunks(4) {
        let pads = chunk.iter().filter(|sign| **sign == b'=').count();
        let mut number = 0u32;
        for sign in chunk {
            let digit = ALPHABET.iter().position(|other| other == sign);
            number = number << 6 | u32::try_from(digit.unwrap_or(0))?;
            ensure!(digit.is_some() || *sign == b'=', "{sign:#x} is no base64");
        }
        bytes.extend_from_slice(&number.to_be_bytes()[1..4 - pads]);
    }
    Ok(bytes)
}

/// A frame of SPDY.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// A control frame: its type and what follows its head.
    Control(u16, Vec<u8>),
    /// Data of a stream, and whether it was the last.
    Data(u32, Vec<u8>, bool),
}

/// A session over SPDY/3.1.
#[derive(Debug)]
pub struct Spdy {
    /// The connection.
    pub socket: TcpStream,
    begun: bool,
}

impl Spdy {
    /// Opens `url`; `versions` are offered.
    ///
    /// # Errors
    /// It is refused.
    pub fn open(url: &str, versions: &[&str], chosen: &str) -> Result<Self> {
        let (host, path) = parts(url)?;
        let mut lines = vec![
            "Connection: Upgrade".to_owned(),
            "Upgrade: SPDY/3.1".to_owned(),
            "Content-Length: 0".to_owned(),
        ];
        lines.extend(versions.iter().map(|version| format!("X-Stream-Protocol-Version: {version}")));
        let reply =
            request(host, &format!("POST {path}"), &lines.iter().map(String::as_str).collect::<Vec<_>>())?;
        ensure!(reply.status == 101, "{}", reply.head);
        ensure!(
            reply.head.to_ascii_lowercase().contains(&format!("x-stream-protocol-version: {chosen}\r\n")),
            "{}",
            reply.head
        );
        Ok(Self { socket: reply.socket, begun: false })
    }

    /// A session over a connection that is one already.
    pub fn over(socket: TcpStream) -> Self {
        Self { socket, begun: false }
    }

    /// A second hold on the connection, for another thread; it opens no streams.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn twin(&self) -> Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, begun: true })
    }

    /// Sends a control frame.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn control(&mut self, kind: u16, body: &[u8]) -> io::Result<()> {
        self.control_frame(kind, 0, body)
    }

    fn control_frame(&mut self, kind: u16, flags: u32, body: &[u8]) -> io::Result<()> {
        let mut frame = vec![0x80, 3];
        frame.extend(kind.to_be_bytes());
        frame.extend((flags << 24 | body.len() as u32).to_be_bytes());
        frame.extend(body);
        self.socket.write_all(&frame)
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn stream(&mut self, id: u32, headers: &[(&str, &str)]) -> io::Result<()> {
        self.begin(id, 0, headers)
    }

    /// Opens a stream and says with it that nothing will be sent on it.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn stream_without_data(&mut self, id: u32, headers: &[(&str, &str)]) -> io::Result<()> {
        self.begin(id, 1, headers)
    }

    fn begin(&mut self, id: u32, flags: u32, headers: &[(&str, &str)]) -> io::Result<()> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut body = id.to_be_bytes().to_vec();
        body.extend([0; 6]);
        if !std::mem::replace(&mut self.begun, true) {
            body.extend([0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2]);
        }
        // One stored block of deflate.
        body.push(0);
        body.extend((plain.len() as u16).to_le_bytes());
        body.extend((!(plain.len() as u16)).to_le_bytes());
        body.extend(plain);
        self.control_frame(1, flags, &body)
    }

    /// Sends data.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn data(&mut self, id: u32, bytes: &[u8], last: bool) -> io::Result<()> {
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend((u32::from(last) << 24 | bytes.len() as u32).to_be_bytes());
        frame.extend(bytes);
        self.socket.write_all(&frame)
    }

    /// The next frame; `None` at the end of the connection.
    ///
    /// # Errors
    /// Nothing comes.
    pub fn receive(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 8];
        match self.socket.read_exact(&mut head) {
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            other => other.context("read a frame")?,
        }
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let mut content = vec![0; length];
        self.socket.read_exact(&mut content).context("read a frame's content")?;
        if head[0] & 0x80 != 0 {
            return Ok(Some(Frame::Control(u16::from_be_bytes([head[2], head[3]]), content)));
        }
        let id = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        Ok(Some(Frame::Data(id, content, head[4] & 1 != 0)))
    }

    /// Opens the streams of these types with the ids 1, 3, 5..., and waits for the answers.
    ///
    /// # Errors
    /// Another answer comes.
    pub fn streams(&mut self, kinds: &[&str]) -> Result<()> {
        for (index, kind) in kinds.iter().enumerate() {
            let id = 2 * u32::try_from(index)? + 1;
            self.stream(id, &[("streamtype", kind)])?;
            match self.receive()? {
                Some(Frame::Control(2, body)) => ensure!(body.starts_with(&id.to_be_bytes()), "{body:?}"),
                other => bail!("stream {kind}: {other:?}"),
            }
        }
        Ok(())
    }

    /// Everything until the error stream, whose id this is, has ended; streams are those of [`Spdy::streams`] with
    /// error first.
    ///
    /// # Errors
    /// The connection ends before that, or a stream before everything of it was sent.
    pub fn told(&mut self, kinds: &[&str]) -> Result<Told> {
        let (mut told, mut ended) = (Told::default(), Vec::new());
        loop {
            match self.receive()? {
                Some(Frame::Data(id, bytes, last)) => {
                    ensure!(!ended.contains(&id), "data behind the end of stream {id}");
                    let kind = kinds[(id as usize - 1) / 2];
                    told.add(
                        match kind {
                            "stdout" => 1,
                            "stderr" => 2,
                            "error" => 3,
                            other => bail!("data on {other}"),
                        },
                        &bytes,
                    );
                    if last {
                        ended.push(id);
                        if kind == "error" {
                            let outputs =
                                kinds.iter().filter(|kind| kind.starts_with("std") && **kind != "stdin");
                            ensure!(
                                ended.len() == outputs.count() + 1,
                                "the result came before the output's end"
                            );
                            return Ok(told);
                        }
                    }
                }
                Some(Frame::Control(..)) => {}
                None => bail!("the connection ended before the result: {told:?}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways() {
        for text in ["", "a", "ab", "abc", "abcd", "\u{0}\u{ff}\u{7f}"] {
            assert_eq!(decode(encode(text.as_bytes()).as_bytes()).unwrap(), text.as_bytes());
        }
        assert_eq!(encode(b"hello"), "aGVsbG8=");
    }
}
