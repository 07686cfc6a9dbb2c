//! One connection to systemd: calls with their answers, and the ends of jobs.
//!
//! The socket at /run/systemd/private speaks D-Bus from peer to peer: no bus in between, so none has to run and none
//! can be slow. systemd sends every signal there without being asked, so a connection that nobody has used for a while
//! is closed: a daemon with nothing to do is not woken by other units.
//!
//! Must not know: units and what can be done with them.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::message::{self, Incoming, Writer};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection may be unused.
const IDLE: Duration = Duration::from_secs(10);
/// What says who calls: uid 0, in hexadecimal digits of its decimal digits (D-Bus specification, "EXTERNAL").
const HELLO: &[u8] = b"\0AUTH EXTERNAL 30\r\n";
/// First pause between two attempts to wake systemd after [`HELLO`]; each one is twice as long.
const WAKE: Duration = Duration::from_millis(20);
/// Answered by every peer (D-Bus specification, "Standard Interfaces").
const PING: Method =
    Method { path: "/", interface: "org.freedesktop.DBus.Peer", member: "Ping", signature: "" };
/// Longest answer to that.
const HELLO_ANSWER: usize = 512;

/// Why there is no answer, or no good one.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Nobody to speak with.
    #[error("connect to systemd at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// systemd, or a new one in its place, has closed the connection.
    #[error("systemd has closed the connection")]
    Closed,
    /// It does not answer.
    #[error("systemd does not answer for {0:?}")]
    Silent(Duration),
    /// It said no.
    #[error("{text}")]
    Refused {
        /// Name of the error (`org.freedesktop.systemd1.NoSuchUnit`).
        name: String,
        /// systemd's words.
        text: String,
    },
}

type Answer = Result<(), BusError>;

/// Who waits for what.
#[derive(Debug)]
struct Waiting {
    open: bool,
    used: Instant,
    answers: HashMap<u32, oneshot::Sender<Answer>>,
    /// By unit.
    jobs: HashMap<String, oneshot::Sender<String>>,
}

#[derive(Debug)]
struct Inner {
    serial: AtomicU32,
    out: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Mutex<Waiting>,
}

/// See the module. Clones share the connection.
#[derive(Clone, Debug)]
pub(super) struct Bus(Arc<Inner>);

/// A call: object, interface, method, signature of its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
    pub(super) member: &'static str,
    pub(super) signature: &'static str,
}

impl Bus {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`BusError::Connect`].
    pub(super) async fn connect(path: &Path) -> Result<Self, BusError> {
        let failed = |source| BusError::Connect { path: path.to_owned(), source };
        let mut socket = UnixStream::connect(path).await.map_err(failed)?;
        timeout(PATIENCE, greet(&mut socket))
            .await
            .map_err(|_| BusError::Silent(PATIENCE))?
            .map_err(failed)?;
        let (read, write) = socket.into_split();
        let (out, queue) = mpsc::unbounded_channel();
        let waiting = Mutex::new(Waiting {
            open: true,
            used: Instant::now(),
            answers: HashMap::new(),
            jobs: HashMap::new(),
        });
        let inner = Arc::new(Inner { serial: AtomicU32::new(1), out, waiting });
        let bus = Bus(inner);
        tokio::spawn(send(write, queue));
        tokio::spawn(receive(read, bus.clone()));
        bus.wake().await?;
        Ok(bus)
    }

    /// Makes sure that systemd listens. What it reads together with the end of the greeting it keeps, and looks at only
    /// when there is more to read: a call that comes with it would never be answered.
    async fn wake(&self) -> Result<(), BusError> {
        let mut pause = WAKE;
        while pause < PATIENCE {
            if let Ok(answer) = timeout(pause, self.call(PING, &Writer::default())).await {
                return answer;
            }
            pause *= 2;
        }
        Err(BusError::Silent(PATIENCE))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().open
    }

    /// Calls, and waits for the answer.
    ///
    /// Cancel safety: the call has been made or not; its answer is dropped when it comes.
    ///
    /// # Errors
    /// See [`BusError`].
    pub(super) async fn call(&self, method: Method, body: &Writer) -> Answer {
        let serial = self.0.serial.fetch_add(1, Ordering::Relaxed);
        let Method { path, interface, member, signature } = method;
        let bytes = message::call(serial, path, interface, member, signature, body);
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.lock();
            if !waiting.open {
                return Err(BusError::Closed);
            }
            waiting.used = Instant::now();
            waiting.answers.insert(serial, sender);
        }
        let _forget = Forget { bus: self, serial };
        if self.0.out.send(bytes).is_err() {
            return Err(BusError::Closed);
        }
        timeout(PATIENCE, answer)
            .await
            .map_err(|_| BusError::Silent(PATIENCE))?
            .map_err(|_| BusError::Closed)?
    }

    /// The end of the next job of a unit: its result. To be asked for before the call that makes the job, whose end
    /// may come before the call's answer is looked at.
    pub(super) fn job_end(&self, unit: &str) -> oneshot::Receiver<String> {
        let (sender, end) = oneshot::channel();
        self.lock().jobs.insert(unit.to_owned(), sender);
        end
    }

    /// Takes back [`Self::job_end`].
    pub(super) fn forget_job(&self, unit: &str) {
        self.lock().jobs.remove(unit);
    }

    fn dispatch(&self, incoming: Incoming) {
        match incoming {
            Incoming::Return { serial } => self.answer(serial, Ok(())),
            Incoming::Error { serial, name, text } => {
                self.answer(serial, Err(BusError::Refused { name, text }));
            }
            Incoming::JobRemoved { unit, result } => {
                if let Some(waiter) = self.lock().jobs.remove(&unit) {
                    let _ = waiter.send(result);
                }
            }
            Incoming::Other => {}
        }
    }

    fn answer(&self, serial: u32, answer: Answer) {
        if let Some(waiter) = self.lock().answers.remove(&serial) {
            let _ = waiter.send(answer);
        }
    }

    /// When to close; `None`: somebody waits.
    fn idle_at(&self) -> Option<Instant> {
        let waiting = self.lock();
        (waiting.answers.is_empty() && waiting.jobs.is_empty()).then_some(waiting.used + IDLE)
    }

    /// Nobody is told anything any more; those who wait are told that.
    fn close(&self) {
        let mut waiting = self.lock();
        waiting.open = false;
        waiting.answers.clear();
        waiting.jobs.clear();
    }

    /// Closes if it still is unused.
    fn close_idle(&self) -> bool {
        let idle = self.idle_at().is_some_and(|at| at <= Instant::now());
        if idle {
            self.close();
        }
        idle
    }
}

/// Takes back what a call waits for, also when its caller has given up.
struct Forget<'a> {
    bus: &'a Bus,
    serial: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.bus.lock().answers.remove(&self.serial);
    }
}

async fn greet(socket: &mut UnixStream) -> io::Result<()> {
    socket.write_all(HELLO).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        if answer.len() >= HELLO_ANSWER || socket.read_buf(&mut answer).await? == 0 {
            return Err(io::Error::other("the peer does not speak D-Bus"));
        }
    }
    if !answer.starts_with(b"OK ") {
        let words = String::from_utf8_lossy(&answer).trim_end().to_owned();
        return Err(io::Error::other(format!("authentication refused: {words}")));
    }
    socket.write_all(b"BEGIN\r\n").await
}

/// Writes what is queued. A task of its own, so that a caller that gives up never leaves half a message.
async fn send(mut socket: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        if socket.write_all(&bytes).await.is_err() {
            // The reading half finds that, too.
            return;
        }
    }
}

/// Reads until the connection ends, or nobody has used it for a while. Its copy of `bus` keeps the sending half alive.
async fn receive(mut socket: OwnedReadHalf, bus: Bus) {
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let soon = Instant::now() + IDLE;
        let look_at = bus.idle_at().unwrap_or(soon);
        tokio::select! {
            read = socket.read_buf(&mut buffer) => match read {
                Ok(count) if count > 0 => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(%error, "systemd connection");
                    break;
                }
            },
            () = sleep_until(look_at) => if bus.close_idle() { return },
        }
        if let Err(error) = take_messages(&mut buffer, &bus) {
            tracing::warn!(%error, "systemd");
            break;
        }
    }
    bus.close();
}

fn take_messages(buffer: &mut Vec<u8>, bus: &Bus) -> Result<(), message::Malformed> {
    while let Some(length) = message::length(buffer)? {
        if buffer.len() < length {
            return Ok(());
        }
        let incoming = message::read(&buffer[..length])?;
        buffer.drain(..length);
        bus.dispatch(incoming);
    }
    Ok(())
}
