//! The two directions of a client's connection, and the sign that it has gone.
//!
//! What is sent waits in one [`Outbox`] a connection, never more than a frame: who has more waits for the client. Must
//! not know: what is said over it.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest},
    net::TcpStream,
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep_until},
};

use super::{inbox::Inbox, websocket::frame};

/// A direction that is read.
pub(super) type ReadEnd = Box<dyn AsyncRead + Send + Unpin>;
/// A direction that is written.
pub(super) type WriteEnd = Box<dyn AsyncWrite + Send + Unpin>;

/// Notices that a client has gone while nobody reads what it has sent.
#[derive(Debug)]
pub(super) struct Peer(TcpStream);

impl Peer {
    /// Watches the socket of which `socket` is a duplicate.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        TcpStream::from_std(socket.into()).map(Self)
    }

    /// Completes when the client sends nothing more, or the connection is broken.
    ///
    /// Cancel safety: nothing is lost.
    pub(super) async fn gone(&self) {
        // Readiness is told at changes only: what waits to be read is cleared away here and read elsewhere.
        while let Ok(ready) = self.0.ready(Interest::READABLE).await {
            if ready.is_read_closed() {
                return;
            }
            let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = self.0.try_io(Interest::READABLE, nothing);
        }
    }
}

/// When something last went over a connection.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    begin: Instant,
    millis: Arc<AtomicU64>,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { begin: Instant::now(), millis: Arc::default() }
    }

    /// Something goes over it now.
    pub(super) fn note(&self) {
        let millis = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    /// How long nothing has gone over it.
    pub(super) fn quiet(&self) -> Duration {
        (self.begin + Duration::from_millis(self.millis.load(Ordering::Relaxed))).elapsed()
    }

    /// Completes when nothing has gone over the connection for `limit`; never when that is zero.
    pub(super) async fn idle(&self, limit: Duration) {
        if limit.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let last = self.begin + Duration::from_millis(self.millis.load(Ordering::Relaxed));
            if last.elapsed() >= limit {
                return;
            }
            sleep_until(last + limit).await;
        }
    }
}

/// Reads into an [`Inbox`].
pub(super) struct Intake {
    read: ReadEnd,
    activity: Activity,
}

impl Intake {
    pub(super) fn new(read: ReadEnd, activity: Activity) -> Self {
        Self { read, activity }
    }

    /// Waits for more; `false`: nothing comes any more.
    ///
    /// Cancel safety: nothing is lost.
    pub(super) async fn fill(&mut self, inbox: &mut Inbox) -> io::Result<bool> {
        let room = inbox.room();
        if room.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that does not fit"));
        }
        let count = self.read.read(room).await?;
        inbox.filled(count);
        self.activity.note();
        Ok(count > 0)
    }

    /// Reads and drops what comes, until nothing does.
    pub(super) async fn drain(&mut self) {
        let mut dropped = [0; 4096];
        while self.read.read(&mut dropped).await.is_ok_and(|count| count > 0) {}
    }
}

/// What is on its way to the client.
struct Waiting {
    write: WriteEnd,
    bytes: Vec<u8>,
    sent: usize,
    activity: Activity,
}

impl Waiting {
    async fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            match self.write.write(&self.bytes[self.sent..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.sent += count,
            }
            self.activity.note();
        }
        self.bytes.clear();
        self.sent = 0;
        self.write.flush().await
    }
}

/// Sends; clones share the connection, and take turns.
#[derive(Clone)]
pub(super) struct Outbox {
    waiting: Arc<Mutex<Waiting>>,
    /// Everything but control frames goes as the content of WebSocket messages.
    tunnel: bool,
}

impl Outbox {
    pub(super) fn new(write: WriteEnd, tunnel: bool, activity: Activity) -> Self {
        let waiting = Waiting { write, bytes: Vec::new(), sent: 0, activity };
        Self { waiting: Arc::new(Mutex::new(waiting)), tunnel }
    }

    /// Sends what `fill` appends to the buffer, after everything that was taken before.
    ///
    /// Cancel safety: before `fill` was called, nothing is sent; after that, all of it, at the latest with the next call.
    pub(super) async fn send(&self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut waiting = self.turn().await?;
        fill(&mut waiting.bytes);
        if self.tunnel {
            let mut head = Vec::with_capacity(10);
            frame::message_head(false, waiting.bytes.len(), &mut head);
            waiting.bytes.splice(0..0, head);
        }
        waiting.flush().await
    }

    /// As [`Outbox::send`], past the tunnel: control frames of the WebSocket itself.
    pub(super) async fn send_control(&self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut waiting = self.turn().await?;
        fill(&mut waiting.bytes);
        waiting.flush().await
    }

    async fn turn(&self) -> io::Result<MutexGuard<'_, Waiting>> {
        let mut waiting = self.waiting.lock().await;
        waiting.flush().await?;
        Ok(waiting)
    }

    /// Nothing more is sent.
    pub(super) async fn shut_down(&self) {
        let _ = self.waiting.lock().await.write.shutdown().await;
    }
}
