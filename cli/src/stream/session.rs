//! A session with a process: what is typed goes there, what it writes is printed, its exit code is told.
//!
//! Kubernetes' remotecommand over WebSocket. Must not know: which call has opened it.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use crisp_shim::stream::{
    inbox::Inbox,
    websocket::{Decoder, Event, Role, frame},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split, stderr, stdin, stdout},
    signal::unix::{SignalKind, signal},
    sync::Mutex,
};
use tokio_rustls::TlsConnector;

use super::{Socket, detach::DetachKeys, terminal};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
/// Longest result that is believed.
const RESULT_BYTES: usize = 64 << 10;

/// What takes part in a session.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
    /// What ends the session, but not the process.
    pub(crate) detach: Option<DetachKeys>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The process's exit code.
    Exit(i32),
    /// The detach keys were typed.
    Detached,
}

/// Carries the session at `url` to its end. Given up half-way, it leaves the terminal as it was.
///
/// # Errors
/// The connection breaks; the runtime says that something went wrong.
pub(crate) async fn run(url: &str, tls: Option<&TlsConnector>, options: Options) -> Result<End> {
    let key: [u8; 16] = random()?;
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key);
    let protocols = format!("{V5}, {V4}");
    let upgraded = super::open(
        url,
        tls,
        &[
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", &key),
            ("Sec-WebSocket-Protocol", &protocols),
        ],
    )
    .await?;
    let closes = match upgraded.header("sec-websocket-protocol") {
        Some(V5) => true,
        Some(V4) => false,
        other => bail!("stream: the runtime chose protocol {other:?}"),
    };
    let raw = if options.tty && options.stdin { terminal::Raw::enter()? } else { None };
    let tty = options.tty;
    let (read, write) = split(upgraded.socket);
    let write = Writer(Arc::new(Mutex::new(write)));
    let end = tokio::select! {
        end = output(read, upgraded.rest, &write) => end,
        end = input(&write, options, closes) => end,
        end = sizes(&write, tty) => end,
    };
    drop(raw);
    end
}

/// The sending end.
struct Writer(Arc<Mutex<WriteHalf<Socket>>>);

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("random source: {error}"))?;
    Ok(bytes)
}

impl Writer {
    async fn message(&self, channel: u8, bytes: &[u8]) -> Result<()> {
        let content = [&[channel], bytes].concat();
        let mut message = Vec::with_capacity(content.len() + 14);
        frame::masked_message(random()?, &content, &mut message);
        let mut write = self.0.lock().await;
        write.write_all(&message).await.context("send to the runtime")?;
        write.flush().await.context("send to the runtime")
    }

    /// While something else is being sent, the peer sees that this end lives, and nothing may wait here: the output must
    /// go on.
    async fn pong(&self, content: &[u8]) -> Result<()> {
        if let Ok(mut write) = self.0.try_lock() {
            let mut pong = Vec::new();
            frame::masked_pong(random()?, content, &mut pong);
            write.write_all(&pong).await?;
            write.flush().await?;
        }
        Ok(())
    }
}

/// Prints what comes; gives the exit code.
async fn output(mut read: ReadHalf<Socket>, rest: Vec<u8>, write: &Writer) -> Result<End> {
    let mut inbox = Inbox::new(64 << 10);
    let mut decoder = Decoder::new(Role::Client);
    let (mut channel, mut result) = (None, Vec::new());
    if inbox.put(&rest) < rest.len() {
        bail!("stream: more than was asked for");
    }
    loop {
        let step = decoder.step(inbox.waiting()).context("stream")?;
        match step.event {
            Some(Event::Piece { bytes, first, .. }) => {
                let mut bytes = &inbox.waiting()[bytes];
                if first {
                    channel = None;
                }
                if let (None, [number, rest @ ..]) = (channel, bytes) {
                    (channel, bytes) = (Some(*number), rest);
                }
                match channel {
                    Some(STDOUT) => print(stdout(), bytes).await.context("write to standard output")?,
                    Some(STDERR) => print(stderr(), bytes).await.context("write to standard error")?,
                    Some(ERROR) if result.len() + bytes.len() <= RESULT_BYTES => {
                        result.extend_from_slice(bytes)
                    }
                    _ => {}
                }
            }
            Some(Event::Ping(content)) => write.pong(&content).await?,
            Some(Event::Close(_)) => return ended(&result),
            Some(Event::Pong) | None => {}
        }
        if step.used > 0 {
            inbox.take(step.used);
            continue;
        }
        let count = read.read(inbox.room()).await.context("read from the runtime")?;
        inbox.filled(count);
        if count == 0 {
            return ended(&result);
        }
    }
}

/// Writes on a thread of its own: output that nobody takes must not keep a signal from being heard.
async fn print(mut to: impl AsyncWrite + Unpin, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).await?;
    Ok(to.flush().await?)
}

/// What the result says.
fn ended(result: &[u8]) -> Result<End> {
    if result.is_empty() {
        bail!("the stream has ended without a result");
    }
    let status: Value = serde_json::from_slice(result)
        .with_context(|| format!("the stream's result is no JSON: {}", String::from_utf8_lossy(result)))?;
    if status["status"] == "Success" {
        return Ok(End::Exit(0));
    }
    let causes = status["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let code = causes.iter().find(|cause| cause["reason"] == "ExitCode");
    match code.and_then(|cause| cause["message"].as_str()).and_then(|code| code.parse().ok()) {
        Some(code) => Ok(End::Exit(code)),
        None => bail!("{}", status["message"].as_str().unwrap_or("the runtime says that it failed")),
    }
}

/// Sends what is typed; ends with the detach keys only.
async fn input(write: &Writer, options: Options, closes: bool) -> Result<End> {
    if !options.stdin {
        return std::future::pending().await;
    }
    let (mut from, mut buffer, mut keys) = (stdin(), vec![0; 16 << 10], options.detach);
    loop {
        let count = from.read(&mut buffer).await.context("read standard input")?;
        if count == 0 {
            break;
        }
        match &mut keys {
            None => write.message(STDIN, &buffer[..count]).await?,
            Some(keys) => {
                let (passed, detached) = keys.push(&buffer[..count]);
                if !passed.is_empty() {
                    write.message(STDIN, &passed).await?;
                }
                if detached {
                    return Ok(End::Detached);
                }
            }
        }
    }
    if closes {
        write.message(CLOSE, &[STDIN]).await?;
    }
    std::future::pending().await
}

/// Tells the size of the window, and each change of it; never ends.
async fn sizes(write: &Writer, tty: bool) -> Result<End> {
    if tty {
        let mut changes = signal(SignalKind::window_change())?;
        loop {
            if let Some((width, height)) = terminal::size() {
                let size = serde_json::json!({"Width": width, "Height": height}).to_string();
                write.message(RESIZE, size.as_bytes()).await?;
            }
            if changes.recv().await.is_none() {
                break;
            }
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use std::{process::ExitCode, time::Duration};

    use rustix::process::{Signal, getpid, kill_process};
    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_server_that_never_answers_keeps_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let options = Options { stdin: false, tty: false, detach: None };
        let work = async {
            tokio::select! {
                end = run(&url, None, options) => end.map(|_| ExitCode::SUCCESS),
                _ = async {
                    let _held = listener.accept().await.unwrap();
                    kill_process(getpid(), Signal::TERM).unwrap();
                    std::future::pending::<()>().await
                } => Ok(ExitCode::SUCCESS),
            }
        };
        let code = timeout(Duration::from_secs(60), terminal::unless_asked_to_end(work)).await;
        assert_eq!(format!("{:?}", code.unwrap().unwrap()), format!("{:?}", ExitCode::from(143)));
    }

    #[test]
    fn a_result_is_success_a_code_or_an_error_in_the_runtimes_words() {
        let of = |text: &str| ended(text.as_bytes());
        assert_eq!(of(r#"{"status":"Success"}"#).unwrap(), End::Exit(0));
        let code = r#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(of(code).unwrap(), End::Exit(7));
        let failed = of(r#"{"status":"Failure","message":"no such program"}"#).unwrap_err();
        assert_eq!(failed.to_string(), "no such program");
        assert!(of("").is_err() && of("text").is_err());
    }
}
