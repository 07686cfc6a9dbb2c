//! The daemon's connection to one pod's monitor: requests with replies, and the events in between.
//!
//! Wraps the blocking, sans-io `monitor::client` in tokio's readiness. A monitor that answers late is reported;
//! it is never waited for by anybody but the caller of that request.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crisp_monitor::{
    client,
    wire::{self, AttachEnd, Body, Call, FailureKind},
};
use crisp_sys::Errno;
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::error::{Class, RequestError, Stage};

/// After this long without an answer, a monitor is reported as silent.
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// Something that a monitor says without being asked.
#[derive(Clone, Debug)]
pub enum Event {
    /// A container has ended, its log is complete, its exit record is on file.
    Exited(wire::Exit),
    /// The OOM killer has killed processes of a container, which may run on.
    OomKilled(wire::OomReport),
    /// The connection is gone: the monitor has ended.
    Gone,
}

type Reply = (Body, Vec<OwnedFd>);

/// What is waited for.
#[derive(Debug, Default)]
struct Waiting {
    /// Replies by request id. `None` once the connection is gone.
    replies: Option<HashMap<u64, oneshot::Sender<Reply>>>,
    /// Ends of exec'd processes by the name that the daemon gave them.
    execs: HashMap<String, oneshot::Sender<i32>>,
    /// Ends of attached clients by the name that the daemon gave them.
    attached: HashMap<String, oneshot::Sender<AttachEnd>>,
}

#[derive(Debug)]
struct Inner {
    /// A packet socket; tokio's stream type is used for its readiness only, never to read or write.
    socket: UnixStream,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
    ended: CancellationToken,
}

/// A connection to a monitor. Clones share it.
#[derive(Clone, Debug)]
pub struct Link(Arc<Inner>);

impl Link {
    /// Connects to the monitor that listens at `path` and asks it for everything it knows.
    ///
    /// # Errors
    /// `NotFound` when nobody listens there: the monitor is dead. Anything else says nothing of that.
    pub async fn connect(
        path: &Path,
    ) -> Result<(Link, mpsc::UnboundedReceiver<Event>, wire::PodState), RequestError> {
        let at = |what: &str| format!("monitor {}: {what}", path.display());
        let socket = crisp_sys::socket::connect(path, true).map_err(|error| match error.errno {
            Errno::ENOENT | Errno::ECONNREFUSED => RequestError::new(Class::NotFound, at("nobody listens")),
            _ => RequestError::unknown(at(&error.to_string())),
        })?;
        let socket = UnixStream::from_std(socket.into()).stage(at("register with the event loop"))?;
        let waiting = Mutex::new(Waiting { replies: Some(HashMap::new()), ..Waiting::default() });
        let ended = CancellationToken::new();
        let inner = Arc::new(Inner { socket, next: AtomicU64::new(1), waiting, ended });
        let (events, receiver) = mpsc::unbounded_channel();
        tokio::spawn(read(Arc::downgrade(&inner), events));
        let link = Link(inner);
        match link.call(Call::Hello(wire::Hello { version: wire::VERSION }), &[]).await? {
            (Body::Pod(state), _) => Ok((link, receiver, state)),
            (other, _) => Err(RequestError::unknown(at(&format!("unexpected answer to hello: {other:?}")))),
        }
    }

    /// Completes when the monitor has ended, and with it its pod.
    ///
    /// Cancel safety: nothing is lost.
    pub async fn ended(&self) {
        self.0.ended.cancelled().await;
    }

    /// Asks, and waits for the answer.
    ///
    /// Cancel safety: the request has been sent or not; its answer is dropped when it comes.
    ///
    /// # Errors
    /// The monitor refused (its own words), or it is gone.
    pub async fn call(&self, call: Call, fds: &[BorrowedFd<'_>]) -> Result<Reply, RequestError> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, mut receiver) = oneshot::channel();
        match &mut lock(&self.0.waiting).replies {
            Some(replies) => replies.insert(id, sender),
            None => return Err(gone()),
        };
        let _forget = Forget { inner: &self.0, id };
        let request = wire::Request { id, call: Some(call) };
        let send = || client::send(self.0.socket.as_fd(), &request, fds);
        match self.0.socket.async_io(Interest::WRITABLE, send).await {
            // The monitor has ended between the look at `replies` and here. The reader finds that too and ends the
            // wait below, after it has passed on the exits that this end means.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
            sent => sent.stage("send to the monitor")?,
        }
        let (body, fds) = match timeout(SILENT_AFTER, &mut receiver).await {
            Ok(reply) => reply,
            Err(_) => {
                tracing::warn!(request = id, "monitor has not answered for {SILENT_AFTER:?}");
                receiver.await
            }
        }
        .map_err(|_| gone())?;
        match body {
            Body::Failed(failure) => Err(refused(&failure)),
            body => Ok((body, fds)),
        }
    }

    /// [`Link::call`], for as long as `patience`.
    ///
    /// # Errors
    /// As there; `Unavailable` when there is no answer by then.
    pub async fn call_within(
        &self,
        patience: Duration,
        call: Call,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, RequestError> {
        timeout(patience, self.call(call, fds)).await.unwrap_or_else(|_| Err(no_answer(patience)))
    }

    /// Says under which name an exec'd process will be reported, before it is started.
    pub fn expect_exec(&self, name: &str) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.0.waiting).execs.insert(name.to_owned(), sender);
        receiver
    }

    /// Takes back [`Link::expect_exec`].
    pub fn forget_exec(&self, name: &str) {
        lock(&self.0.waiting).execs.remove(name);
    }

    /// Says under which name the end of an attached client will be reported, before it is attached.
    pub fn expect_attach(&self, name: &str) -> oneshot::Receiver<AttachEnd> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.0.waiting).attached.insert(name.to_owned(), sender);
        receiver
    }

    /// Takes back [`Link::expect_attach`].
    pub fn forget_attach(&self, name: &str) {
        lock(&self.0.waiting).attached.remove(name);
    }
}

/// Removes a request's entry when its caller is gone, so that abandoned requests leave nothing behind.
struct Forget<'a> {
    inner: &'a Inner,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(replies) = &mut lock(&self.inner.waiting).replies {
            replies.remove(&self.id);
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a monitor is that has not answered for so long.
pub fn no_answer(patience: Duration) -> RequestError {
    RequestError::new(Class::Unavailable, format!("the pod's monitor has not answered for {patience:?}"))
}

fn gone() -> RequestError {
    RequestError::new(Class::Unavailable, "the pod's monitor is gone")
}

fn refused(failure: &wire::Failure) -> RequestError {
    let class = match failure.kind() {
        FailureKind::NotFound => Class::NotFound,
        FailureKind::Exists => Class::Exists,
        FailureKind::Precondition => Class::Precondition,
        FailureKind::Invalid | FailureKind::Memory => Class::Invalid,
        FailureKind::Internal | FailureKind::Program => Class::Unknown,
    };
    let text = match failure.kind() {
        // The container's own, or its pod's; which one is the kernel's secret.
        FailureKind::Memory => format!("linux.resources.memory_limit_in_bytes: {}", failure.text),
        _ => failure.text.clone(),
    };
    RequestError::new(class, text)
}

/// Reads until the connection ends or nobody holds the link any more.
async fn read(inner: std::sync::Weak<Inner>, events: mpsc::UnboundedSender<Event>) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let received = tokio::select! {
            received = strong.socket.async_io(Interest::READABLE, || client::recv(strong.socket.as_fd())) => received,
            // Nobody listens to this pod any more; who still waits for an answer is told below.
            () = events.closed() => break,
        };
        match received {
            Ok(Some((message, fds))) => dispatch(&strong, message, fds, &events),
            Ok(None) => break,
            // A message of a newer monitor's; the packets after it are whole.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "monitor: a message that this daemon cannot read");
            }
            Err(error) => {
                tracing::warn!(%error, "monitor connection");
                break;
            }
        }
    }
    // Before the waiters are told: their failures must find the exits applied that the end of the monitor means.
    let _ = events.send(Event::Gone);
    if let Some(strong) = inner.upgrade() {
        strong.ended.cancel();
        let mut waiting = lock(&strong.waiting);
        waiting.replies = None;
        waiting.execs.clear();
        waiting.attached.clear();
    }
}

fn dispatch(inner: &Inner, message: wire::Message, fds: Vec<OwnedFd>, events: &mpsc::UnboundedSender<Event>) {
    match (message.id, message.body) {
        (0, Some(Body::Exited(exit))) => {
            let _ = events.send(Event::Exited(exit));
        }
        (0, Some(Body::OomKilled(report))) => {
            let _ = events.send(Event::OomKilled(report));
        }
        (0, Some(Body::ExecExited(exit))) => {
            if let Some(waiter) = lock(&inner.waiting).execs.remove(&exit.exec) {
                let _ = waiter.send(exit.code);
            }
        }
        (0, Some(Body::AttachEnded(ended))) => {
            if let Some(waiter) = lock(&inner.waiting).attached.remove(&ended.attach) {
                let _ = waiter.send(ended.end());
            }
        }
        (0, _) => tracing::debug!("monitor: an event that this daemon does not know"),
        (id, Some(body)) => {
            let waiter = lock(&inner.waiting).replies.as_mut().and_then(|replies| replies.remove(&id));
            if let Some(waiter) = waiter {
                let _ = waiter.send((body, fds));
            }
        }
        (id, None) => tracing::warn!(request = id, "monitor: an answer that this daemon does not know"),
    }
}
