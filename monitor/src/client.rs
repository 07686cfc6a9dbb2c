//! The daemon's end of a monitor's socket: sending requests, receiving replies and events, with descriptors.
//!
//! [`send`] and [`recv`] make one system call each on a descriptor the caller owns, so that an asynchronous
//! daemon wraps them in its reactor (`WouldBlock` comes through) and a test calls them directly; [`Client`] is
//! the blocking form. Must not know: tokio, what requests mean.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crisp_sys::socket;

pub use crate::confined;
pub use crate::record;
use crate::wire::{
    Body, Call, FDS_LOST, Failure, FailureKind, MAX_FDS, MAX_MESSAGE, Message, Request, WireError,
};

/// The packet of a request.
///
/// # Errors
/// [`WireError::TooLarge`].
pub fn encode(request: &Request) -> Result<Vec<u8>, WireError> {
    request.to_packet()
}

/// The reply or event in a packet.
///
/// # Errors
/// [`WireError::Malformed`], [`WireError::Unknown`].
pub fn decode(packet: &[u8]) -> Result<Message, WireError> {
    Message::from_packet(packet)
}

/// Sends a request with descriptors, in one packet: all of it or nothing.
///
/// # Errors
/// `WouldBlock` on a socket that does not block; `InvalidInput` for a request or a number of descriptors that
/// no packet holds; else what sendmsg(2) said (`BrokenPipe`: the monitor is gone).
pub fn send(socket: BorrowedFd<'_>, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let packet = encode(request).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    if fds.len() > MAX_FDS {
        let text = format!("{} descriptors, a packet holds at most {MAX_FDS}", fds.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    socket::sendmsg(socket, &packet, fds).map_err(|error| error.errno.into())
}

/// Receives one reply or event. `None`: the monitor has closed the connection. A reply whose descriptors this
/// process could not take in (EMFILE) comes as a [`Failure`] that says so.
///
/// # Errors
/// `WouldBlock` on a socket that does not block and has nothing; `InvalidData` for a packet that is no message
/// (the connection stays usable, each packet stands for itself); else what recvmsg(2) said.
pub fn recv(socket: BorrowedFd<'_>) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    match socket::recvmsg(socket, &mut buffer) {
        Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(Some(packet)) if packet.length == 0 => Ok(None),
        Ok(Some(packet)) => {
            let message = decode(&buffer[..packet.length])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            Ok(Some(if packet.truncated {
                (without_fds(message), Vec::new())
            } else {
                (message, packet.fds)
            }))
        }
        Err(error) => Err(error.errno.into()),
    }
}

/// What is left of a message whose descriptors are lost: an answer remains one, or its request would wait for ever.
fn without_fds(message: Message) -> Message {
    if message.id == 0 {
        return message;
    }
    let errno = nix::errno::Errno::EMFILE as i32;
    let failure = Failure { kind: FailureKind::Internal as i32, text: FDS_LOST.to_owned(), errno };
    Message { id: message.id, body: Some(Body::Failed(failure)) }
}

/// Why a [`Client`] has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket.
    #[error("monitor socket: {0}")]
    Io(#[from] io::Error),
    /// The monitor has closed the connection.
    #[error("monitor closed the connection")]
    Closed,
    /// The monitor refused the request.
    #[error("monitor: {}", .0.text)]
    Refused(Failure),
}

/// A blocking connection that has one request in flight at a time.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    last_id: u64,
    events: std::collections::VecDeque<Body>,
}

impl Client {
    /// Connects to the monitor's socket.
    ///
    /// # Errors
    /// What connect(2) said.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let socket = socket::connect(path, false).map_err(|error| io::Error::from(error.errno))?;
        Ok(Client { socket, last_id: 0, events: std::collections::VecDeque::new() })
    }

    /// Sends a request and waits for its answer. Events that come before it are kept for [`Client::event`].
    ///
    /// # Errors
    /// [`ClientError`]; a refusal is [`ClientError::Refused`].
    pub fn call(&mut self, call: Call, fds: &[BorrowedFd<'_>]) -> Result<(Body, Vec<OwnedFd>), ClientError> {
        let id = self.send(call, fds)?;
        self.answer(id)
    }

    /// Sends a request and returns its id; [`Client::answer`] waits for what comes of it.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn send(&mut self, call: Call, fds: &[BorrowedFd<'_>]) -> Result<u64, ClientError> {
        self.last_id += 1;
        send(self.socket.as_fd(), &Request { id: self.last_id, call: Some(call) }, fds)?;
        Ok(self.last_id)
    }

    /// Waits for the answer to request `id`, the only one in flight.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn answer(&mut self, id: u64) -> Result<(Body, Vec<OwnedFd>), ClientError> {
        loop {
            match self.receive()? {
                (Message { id: 0, body: Some(event) }, _) => self.events.push_back(event),
                (Message { id: reply, body: Some(body) }, fds) if reply == id => {
                    return match body {
                        Body::Failed(failure) => Err(ClientError::Refused(failure)),
                        body => Ok((body, fds)),
                    };
                }
                (message, _) => {
                    let text = format!("answer to request {}, which is not in flight", message.id);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text).into());
                }
            }
        }
    }

    /// The next event: one that came in the meantime, or waits for one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn event(&mut self) -> Result<Body, ClientError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        match self.receive()? {
            (Message { id: 0, body: Some(event) }, _) => Ok(event),
            (message, _) => {
                let text = format!("answer to request {}, which is not in flight", message.id);
                Err(io::Error::new(io::ErrorKind::InvalidData, text).into())
            }
        }
    }

    fn receive(&mut self) -> Result<(Message, Vec<OwnedFd>), ClientError> {
        recv(self.socket.as_fd())?.ok_or(ClientError::Closed)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
