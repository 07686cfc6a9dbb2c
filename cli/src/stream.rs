//! The client's end of streams: a URL that a CRI call has given is opened and upgraded.
//!
//! Must not know: which command uses it, what goes over it.

pub(crate) mod detach;
pub(crate) mod forward;
pub(crate) mod session;
pub(crate) mod terminal;
pub(crate) mod trust;

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

/// Largest head of an answer.
const HEAD_BYTES: usize = 16 << 10;

/// A connection, with TLS or without.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What may hold back what is written until it is flushed.
pub(crate) type Socket = Box<dyn Duplex>;

/// A connection that has been upgraded.
pub(crate) struct Upgraded {
    pub(crate) socket: Socket,
    /// What came behind the answer's head.
    pub(crate) rest: Vec<u8>,
    headers: Vec<(String, String)>,
}

impl Upgraded {
    /// The value of an answer's header, its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// Connects to `host`, a name or address with a port.
async fn connect(host: &str, tls: Option<&TlsConnector>) -> Result<Socket> {
    let socket = TcpStream::connect(host).await.with_context(|| format!("connect to {host}"))?;
    socket.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(socket)) };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(name).with_context(|| format!("stream to {host}"))?;
    let socket = tls.connect(name, socket).await.with_context(|| format!("TLS with {host}"))?;
    Ok(Box::new(socket))
}

/// Opens `url`, by TLS if it is https, and asks for the upgrade that `headers` describe.
///
/// # Errors
/// Nobody listens there or whoever does is not believed, or the answer is a refusal: its words.
pub(crate) async fn open(
    url: &str,
    tls: Option<&TlsConnector>,
    headers: &[(&str, &str)],
) -> Result<Upgraded> {
    let scheme = if tls.is_some() { "https://" } else { "http://" };
    let rest = url.strip_prefix(scheme).with_context(|| format!("stream {url}: not {scheme}"))?;
    let (host, path) = rest.split_once('/').with_context(|| format!("stream {url}: no path"))?;
    let mut socket = connect(host, tls).await?;
    let mut request =
        format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nContent-Length: 0\r\n");
    if headers.iter().any(|(_, value)| *value == "websocket") {
        // A WebSocket begins with a GET without content.
        request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n");
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    socket.write_all(request.as_bytes()).await.with_context(|| format!("ask {host}"))?;
    socket.flush().await.with_context(|| format!("ask {host}"))?;
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if bytes.len() > HEAD_BYTES || socket.read_buf(&mut bytes).await? == 0 {
            bail!("stream {url}: no answer of HTTP");
        }
    };
    let rest = bytes.split_off(end + 4);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default().to_owned();
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    };
    let upgraded = Upgraded { socket, rest, headers: lines.filter_map(header).collect() };
    if status.split(' ').nth(1) == Some("101") {
        return Ok(upgraded);
    }
    let words = words(upgraded).await.unwrap_or(status);
    bail!("stream refused: {words}")
}

/// The first line of a refusal's text.
async fn words(refused: Upgraded) -> Option<String> {
    let length: usize = refused.header("content-length")?.parse().ok()?;
    let mut text = refused.rest;
    let mut socket = refused.socket.take(length.min(HEAD_BYTES).saturating_sub(text.len()) as u64);
    socket.read_to_end(&mut text).await.ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().next().map(str::to_owned).filter(|line| !line.is_empty())
}
