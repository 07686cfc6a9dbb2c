//! The pod: everything the monitor keeps, and the loop that turns what the kernel says into the next step.
//!
//! One thread, nothing blocks but writes to log files. Each readable pipe is read once per turn, so that a
//! container that floods its log delays its siblings by one buffer at most.

mod attach;
mod child;
mod input;
mod output;
mod request;
mod start;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crisp_monitor::wire::{Body, Done, Failure, FailureKind, MAX_MESSAGE, Message, Request};
use crisp_sys::errno::SysError;
use crisp_sys::poll::{Event, Interest, Poll};
use crisp_sys::signal::{SignalFd, SignalSet};
use crisp_sys::socket;

use crate::attach::Attachment;
use crate::connection::{Connection, Outgoing, Sent};
use crate::container::{Asker, Container, Phase};
use crate::launched::Launched;
use crate::log::{Pen, Stream};
use crate::refusal::{internal, refuse};
use crate::token::{Kind, Token};
use request::FdsLost;

/// Bytes read from a pipe in one turn.
const READ_BYTES: usize = 16 * 1024;
/// Size of the buffer for packets and output. So large that the allocator takes it straight from the kernel: of
/// its pages only those cost memory that something was ever read into.
const BUFFER_BYTES: usize = 256 * 1024;
const _: () = assert!(MAX_MESSAGE <= BUFFER_BYTES && READ_BYTES <= BUFFER_BYTES);
/// Requests served for one connection in one turn.
const REQUESTS_PER_TURN: usize = 16;

/// An exec'd process.
#[derive(Debug)]
struct ExecProcess {
    name: String,
    process: Launched,
    /// Who waits for `ExecStarted`.
    asker: Option<Asker>,
    /// Its terminal, until it is handed out with that answer.
    terminal: Option<OwnedFd>,
}

/// The init of the pod's shared PID namespace.
#[derive(Debug)]
struct Init {
    serial: u64,
    process: Launched,
    /// Who waits for the answer to `StartInit` or `Placed`.
    asker: Option<Asker>,
    /// It waits to be put into its cgroup.
    held: bool,
}

impl Init {
    fn is_ready(&self) -> bool {
        self.asker.is_none() && !self.held
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pod {
    poll: Poll,
    /// The soft limit of open files that the daemon had, for what is launched.
    open_files: u64,
    listener: OwnedFd,
    /// See [`Pod::turn_away`].
    spare: Option<OwnedFd>,
    /// SIGCHLD: see [`Pod::on_children`].
    children: SignalFd,
    last_serial: u64,
    connections: BTreeMap<u64, Connection>,
    containers: BTreeMap<u64, Container>,
    execs: BTreeMap<u64, ExecProcess>,
    attachments: BTreeMap<u64, Attachment>,
    init: Option<Init>,
    pen: Pen,
    buffer: Vec<u8>,
    /// Set when everything is to end: the monitor follows the last process that it reaps.
    ending: Option<Ending>,
}

/// Why everything is to end.
#[derive(Debug)]
enum Ending {
    /// This Shutdown, which is answered last.
    Asked(Asker),
    /// The pod's init has died.
    InitDied,
}

impl Pod {
    /// A pod served on `listener`, a listening `SOCK_SEQPACKET` socket that does not block. What is launched may
    /// have `open_files` files open (its soft limit), unless its plan says otherwise.
    pub(crate) fn new(listener: OwnedFd, open_files: u64) -> Result<Self, SysError> {
        let poll = Poll::new()?;
        poll.add(&listener, Token::new(Kind::Listener, 0).pack(), Interest::Read)?;
        let spare = listener.try_clone().ok();
        let children = SignalFd::new(SignalSet::of(&[libc::SIGCHLD]))?;
        poll.add(&children, Token::new(Kind::Children, 0).pack(), Interest::Read)?;
        Ok(Pod {
            poll,
            open_files,
            listener,
            spare,
            children,
            last_serial: 0,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            attachments: BTreeMap::new(),
            init: None,
            pen: Pen::new(),
            buffer: vec![0; BUFFER_BYTES],
            ending: None,
        })
    }

    /// Serves until a Shutdown is done, or everything has followed the pod's init.
    pub(crate) fn run(&mut self) -> Result<(), SysError> {
        let mut events = Vec::new();
        while !self.is_over() {
            self.poll.wait(&mut events, self.time_left())?;
            for event in &events {
                if let Some(token) = Token::unpack(event.token) {
                    self.dispatch(token, event);
                }
            }
            self.drain_overdue();
            self.cut_off_stuck_clients();
        }
        if let Some(Ending::Asked(asker)) = self.ending.take() {
            self.reply(asker, Body::Done(Done {}), Vec::new());
        }
        Ok(())
    }

    /// Whether everything is to end and nothing is left to reap.
    fn is_over(&self) -> bool {
        self.ending.is_some()
            && self.init.is_none()
            && self.execs.is_empty()
            && self.attachments.is_empty()
            && self.containers.values().all(|container| container.life.is_none())
    }

    /// How long until the first drain is cut short, or the first attached client cut off.
    fn time_left(&self) -> Option<Duration> {
        let ends = self.containers.values().filter_map(|container| match container.phase {
            Phase::Draining { until, .. } => Some(until),
            _ => None,
        });
        ends.chain(self.first_stuck()).min().map(|until| until.saturating_duration_since(Instant::now()))
    }

    fn dispatch(&mut self, token: Token, event: &Event) {
        let serial = token.serial;
        match token.kind {
            Kind::Listener => self.accept(),
            Kind::Connection => self.on_connection(serial, event),
            Kind::ContainerReport => drop(self.hear_container(serial)),
            Kind::ContainerPid => self.on_container_pid(serial),
            Kind::Stdout => self.on_output(serial, Stream::Stdout),
            Kind::Stderr => self.on_output(serial, Stream::Stderr),
            Kind::Cgroup => self.end_if_drained(serial),
            Kind::ExecReport => drop(self.hear_exec(serial)),
            Kind::ExecPid => self.on_exec_pid(serial),
            Kind::InitReport => drop(self.hear_init(serial)),
            Kind::InitPid => self.on_init_pid(serial),
            Kind::Children => self.on_children(),
            Kind::Stdin => self.on_container_input(serial, event),
            Kind::AttachStdin => self.on_client_input(serial),
            Kind::AttachStdout => self.on_client_room(serial, Stream::Stdout, event),
            Kind::AttachStderr => self.on_client_room(serial, Stream::Stderr, event),
            Kind::Oom => self.on_oom(),
        }
    }

    fn serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    fn watch(&self, fd: BorrowedFd<'_>, kind: Kind, serial: u64) -> Result<(), SysError> {
        self.poll.add(fd, Token::new(kind, serial).pack(), Interest::Read)
    }

    fn accept(&mut self) {
        // One a turn: level-triggered, the next one comes back.
        let socket = match socket::accept4(&self.listener) {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(_) => return self.turn_away(),
        };
        // The socket's mode lets nobody else in; a descriptor that leaked to another user still gets nothing.
        if !socket::peer_credentials(&socket).is_ok_and(|peer| peer.uid == 0) {
            return;
        }
        let serial = self.serial();
        if self.watch(socket.as_fd(), Kind::Connection, serial).is_ok() {
            self.connections.insert(serial, Connection::new(socket));
        }
    }

    /// Out of descriptors (EMFILE): gives up the spare one to accept and close, because a connection that stays
    /// in the backlog would wake the loop for ever. The peer sees an end of file.
    fn turn_away(&mut self) {
        self.spare = None;
        let _ = socket::accept4(&self.listener);
        self.spare = self.listener.try_clone().ok();
    }

    fn on_connection(&mut self, serial: u64, event: &Event) {
        if event.writable {
            let sent = self.connections.get_mut(&serial).map(Connection::flush);
            self.after_sending(serial, sent);
        }
        if !event.readable && !event.hangup {
            return;
        }
        for _ in 0..REQUESTS_PER_TURN {
            let Some(connection) = self.connections.get(&serial) else { return };
            match socket::recvmsg(connection, &mut self.buffer) {
                Ok(Some(packet)) if packet.length > 0 => {
                    let request = Request::from_packet(&self.buffer[..packet.length]);
                    let fds = if packet.truncated { Err(FdsLost) } else { Ok(packet.fds) };
                    self.on_request(serial, request, fds);
                }
                Ok(None) => return,
                Ok(Some(_)) | Err(_) => return self.forget_connection(serial),
            }
        }
    }

    fn forget_connection(&mut self, serial: u64) {
        if let Some(connection) = self.connections.remove(&serial) {
            let _ = self.poll.remove(&connection);
        }
    }

    /// Answers a request, if whoever asked is still there.
    fn reply(&mut self, asker: Asker, body: Body, fds: Vec<OwnedFd>) {
        let message = Message { id: asker.request, body: Some(body) };
        let packet = message.to_packet().or_else(|error| {
            let failure = refuse(FailureKind::Internal, error.to_string());
            Message { id: asker.request, body: Some(Body::Failed(failure)) }.to_packet()
        });
        if let Ok(packet) = packet {
            self.send(asker.connection, Outgoing { packet, fds });
        }
    }

    fn refuse(&mut self, asker: Asker, failure: Failure) {
        self.reply(asker, Body::Failed(failure), Vec::new());
    }

    /// Tells every connection that said Hello.
    fn announce(&mut self, body: Body) {
        let Ok(packet) = (Message { id: 0, body: Some(body) }).to_packet() else { return };
        let subscribed: Vec<u64> =
            self.connections.iter().filter(|(_, one)| one.subscribed).map(|(serial, _)| *serial).collect();
        for serial in subscribed {
            self.send(serial, Outgoing { packet: packet.clone(), fds: Vec::new() });
        }
    }

    fn send(&mut self, serial: u64, outgoing: Outgoing) {
        let sent = self.connections.get_mut(&serial).map(|connection| connection.send(outgoing));
        self.after_sending(serial, sent);
    }

    fn after_sending(&mut self, serial: u64, sent: Option<Sent>) {
        let Some(connection) = self.connections.get(&serial) else { return };
        let interest = match sent {
            Some(Sent::Waiting) => Interest::Both,
            Some(Sent::All) => Interest::Read,
            Some(Sent::Gone) | None => return self.forget_connection(serial),
        };
        let token = Token::new(Kind::Connection, serial).pack();
        if self.poll.modify(connection, token, interest).is_err() {
            self.forget_connection(serial);
        }
    }

    fn find(&self, id: &str) -> Result<u64, Failure> {
        let found = self.containers.iter().find(|(_, container)| container.id == id);
        found
            .map(|(serial, _)| *serial)
            .ok_or_else(|| refuse(FailureKind::NotFound, format!("container {id}: not in this pod")))
    }
}

fn sys_failure(what: &str, error: &SysError) -> Failure {
    internal(format!("{what}: {}", error.call), error.errno)
}
