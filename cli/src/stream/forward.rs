//! One forwarded connection: a socket of this machine, and a port inside a pod, over SPDY streams of their own.
//!
//! Must not know: who listens where.

use anyhow::{Context, Result, bail};
use crisp_shim::stream::{
    inbox::Inbox,
    spdy::{Decoder, Event, frame, headers},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_rustls::TlsConnector;

use super::Socket;

const ERROR: u32 = 1;
const DATA: u32 = 3;
/// Longest error that is believed.
const ERROR_BYTES: usize = 16 << 10;

/// Carries `local` to `port` of the pod at `url`, until both directions have ended.
///
/// # Errors
/// The port cannot be reached, in the runtime's words; the connection to the runtime breaks.
pub(crate) async fn carry(url: &str, tls: Option<&TlsConnector>, port: u16, local: TcpStream) -> Result<()> {
    let upgraded = super::open(
        url,
        tls,
        &[("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", "portforward.k8s.io")],
    )
    .await?;
    let (read, mut write) = split(upgraded.socket);
    let mut blocks = headers::Writer::default();
    let port = port.to_string();
    for (stream, kind) in [(ERROR, "error"), (DATA, "data")] {
        let headers = [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")];
        write.write_all(&frame::syn_stream(stream, &blocks.write(&headers))).await?;
    }
    write.write_all(&frame::data_head(ERROR, true, 0)).await?;
    write.flush().await?;
    let (from, to) = local.into_split();
    let mut there = std::pin::pin!(there(from, write));
    let mut back = std::pin::pin!(back(read, upgraded.rest, to));
    tokio::select! {
        // The end that ends the session is the runtime's.
        ended = &mut back => ended,
        sent = &mut there => {
            let write = sent?;
            let ended = back.await;
            drop(write);
            ended
        }
    }
}

/// Sends what the socket gives, and its end; the connection stays.
async fn there(mut from: OwnedReadHalf, mut write: WriteHalf<Socket>) -> Result<WriteHalf<Socket>> {
    let mut buffer = vec![0; frame::DATA_MAX + 8];
    loop {
        let count = from.read(&mut buffer[8..]).await.context("read from the local connection")?;
        buffer[..8].copy_from_slice(&frame::data_head(DATA, count == 0, count));
        write.write_all(&buffer[..8 + count]).await.context("send to the runtime")?;
        write.flush().await.context("send to the runtime")?;
        if count == 0 {
            return Ok(write);
        }
    }
}

/// Writes what comes, until the error stream ends: that is when the runtime is done.
async fn back(mut read: ReadHalf<Socket>, rest: Vec<u8>, mut to: OwnedWriteHalf) -> Result<()> {
    let (mut inbox, mut decoder) = (Inbox::new(64 << 10), Decoder::default());
    let mut error = Vec::new();
    if inbox.put(&rest) < rest.len() {
        bail!("stream: more than was asked for");
    }
    loop {
        let step = decoder.step(inbox.waiting()).context("stream")?;
        match step.event {
            Some(Event::Data { stream: DATA, bytes, fin }) => {
                to.write_all(&inbox.waiting()[bytes]).await.context("write to the local connection")?;
                if fin {
                    to.shutdown().await.context("end the local connection")?;
                }
            }
            Some(Event::Data { stream: ERROR, bytes, fin }) => {
                if error.len() + bytes.len() <= ERROR_BYTES {
                    error.extend_from_slice(&inbox.waiting()[bytes]);
                }
                match fin {
                    true if error.is_empty() => return Ok(()),
                    true => bail!("{}", String::from_utf8_lossy(&error)),
                    false => {}
                }
            }
            Some(Event::Reset { .. }) => bail!("the runtime has refused the connection"),
            _ => {}
        }
        if step.used > 0 {
            inbox.take(step.used);
            continue;
        }
        let count = read.read(inbox.room()).await.context("read from the runtime")?;
        inbox.filled(count);
        if count == 0 {
            bail!("the runtime has ended the connection");
        }
    }
}
