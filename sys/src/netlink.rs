//! A synchronous netlink socket that deals in bytes (netlink(7), `include/uapi/linux/netlink.h`).
//!
//! A netlink socket stays bound to the network namespace in which it was opened, whatever its owner does later and
//! from whichever thread it is used. So a socket opened on a thread that lives in a pod's namespace configures that
//! namespace from anywhere, with no setns.
//!
//! Several messages go out in one `sendmsg`; the kernel works through all of them before the call returns and answers
//! each one, which makes a set-up of four addresses and routes one system call and four short reads.
//!
//! It must not know what the payloads mean: encoding links, addresses and routes is the caller's business.
#![expect(unsafe_code, reason = "NETLINK_EXT_ACK and NETLINK_CAP_ACK have no wrapper in nix")]

use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recvmsg};

/// Length of `struct nlmsghdr`, bytes.
const HEADER: usize = 16;
/// One datagram from the kernel is never larger: `netlink_dump` builds them in buffers of at most 32 KiB.
const RECEIVE_BUFFER: usize = 32 * 1024;
/// Messages per `sendmsg`. Every one leaves an answer in the socket's receive queue (208 KiB by default, up to about
/// 1 KiB each as the kernel accounts it), and an answer that finds it full is lost.
const BATCH: usize = 64;
/// How often a dump is asked for again when the kernel says that the list changed under it.
const DUMP_ATTEMPTS: usize = 16;

/// Offsets of the fields of `struct nlmsghdr`.
mod field {
    use std::ops::Range;
    pub(super) const LENGTH: Range<usize> = 0..4;
    pub(super) const KIND: Range<usize> = 4..6;
    pub(super) const FLAGS: Range<usize> = 6..8;
    pub(super) const SEQUENCE: Range<usize> = 8..12;
    /// `error` of `struct nlmsgerr` and of NLMSG_DONE, which follows the header.
    pub(super) const ERROR: Range<usize> = 16..20;
    /// The copy of the request's header in `struct nlmsgerr`.
    pub(super) const ORIGINAL: Range<usize> = 20..36;
}

/// One request: what goes between the netlink header, which the socket writes, and the next message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `nlmsg_type`, such as RTM_NEWLINK.
    pub kind: u16,
    /// `nlmsg_flags` beyond NLM_F_REQUEST and NLM_F_ACK (or NLM_F_DUMP), which the socket adds.
    pub flags: u16,
    /// Family header and attributes, aligned and padded as the kernel wants them.
    pub payload: Vec<u8>,
}

/// One message that the kernel sent in answer to a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// `nlmsg_type`.
    pub kind: u16,
    /// Family header and attributes.
    pub payload: Vec<u8>,
}

/// The kernel's "no" to one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The kernel's own words (NLMSGERR_ATTR_MSG), where it has some.
    pub message: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "{} ({message})", self.errno.desc()),
            None => f.write_str(self.errno.desc()),
        }
    }
}

impl std::error::Error for Refusal {}

/// Why talking to the kernel over netlink did not work.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A system call on the socket.
    #[error("{call} on a netlink socket")]
    Call {
        /// The system call.
        call: &'static str,
        /// What it returned.
        #[source]
        source: Errno,
    },
    /// The kernel refused the one message of a query or a dump.
    #[error("netlink query")]
    Refused(#[source] Refusal),
    /// The answer does not follow the protocol.
    #[error("malformed netlink answer: {what}")]
    Malformed {
        /// Which rule it breaks.
        what: &'static str,
    },
    /// A list changed during each attempt to read it (NLM_F_DUMP_INTR).
    #[error("the list changed during each of {attempts} attempts to read it")]
    Interrupted {
        /// How often it was tried.
        attempts: usize,
    },
}

/// A netlink socket, see the module's page. Closing it lets go of its network namespace.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Netlink {
    /// Opens a NETLINK_ROUTE socket (rtnetlink(7)) in the calling thread's network namespace, close-on-exec.
    ///
    /// # Errors
    /// [`NetlinkError::Call`].
    pub fn open_route() -> Result<Self, NetlinkError> {
        Self::open(libc::NETLINK_ROUTE)
    }

    /// Opens a NETLINK_NETFILTER socket (`include/uapi/linux/netfilter/nfnetlink.h`) in the calling thread's network
    /// namespace, close-on-exec.
    ///
    /// # Errors
    /// [`NetlinkError::Call`].
    pub fn open_netfilter() -> Result<Self, NetlinkError> {
        Self::open(libc::NETLINK_NETFILTER)
    }

    fn open(protocol: i32) -> Result<Self, NetlinkError> {
        // SAFETY: socket(2) takes three integers and touches no memory of ours.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        let raw = Errno::result(raw).map_err(|source| NetlinkError::Call { call: "socket", source })?;
        // SAFETY: socket(2) just returned this descriptor, so it is open and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // Binding to port 0 lets the kernel pick a free port: getpid() may be taken by another socket of this process.
        nix::sys::socket::bind(raw, &NetlinkAddr::new(0, 0))
            .map_err(|source| NetlinkError::Call { call: "bind", source })?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            enable(fd.as_fd(), option)?;
        }
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends `messages`, in order, and returns the kernel's verdict on each, in the same order. The kernel goes on
    /// after a message that it refused.
    ///
    /// # Errors
    /// When the conversation itself breaks; what became of the messages is then unknown.
    pub fn request(&mut self, messages: &[Message]) -> Result<Vec<Result<(), Refusal>>, NetlinkError> {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut verdicts = Vec::with_capacity(messages.len());
        for batch in messages.chunks(BATCH) {
            let first = self.send(batch, libc::NLM_F_ACK as u16)?;
            let mut answers: Vec<Option<Result<(), Refusal>>> = vec![None; batch.len()];
            while answers.iter().any(Option::is_none) {
                self.receive(&mut buffer, |answer| {
                    let Some(slot) = answers.get_mut(answer.sequence.wrapping_sub(first) as usize) else {
                        return Ok(());
                    };
                    if let Some(verdict) = answer.verdict()? {
                        *slot = Some(verdict);
                    }
                    Ok(())
                })?;
            }
            verdicts.extend(answers.into_iter().flatten());
        }
        Ok(verdicts)
    }

    /// Asks one question that has one answer, such as RTM_GETLINK for one name.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] when the kernel says no (ENODEV: no such link), the others when the conversation
    /// breaks.
    pub fn query(&mut self, message: &Message) -> Result<Reply, NetlinkError> {
        let sequence = self.send(std::slice::from_ref(message), libc::NLM_F_ACK as u16)?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let (mut reply, mut verdict) = (None, None);
        while verdict.is_none() {
            self.receive(&mut buffer, |answer| {
                if answer.sequence != sequence {
                    return Ok(());
                }
                match answer.verdict()? {
                    Some(given) => verdict = Some(given),
                    None => reply = Some(answer.reply()),
                }
                Ok(())
            })?;
        }
        match verdict {
            Some(Err(refusal)) => Err(NetlinkError::Refused(refusal)),
            _ => reply.ok_or(NetlinkError::Malformed { what: "an acknowledgement without the answer" }),
        }
    }

    /// Reads a whole list (NLM_F_DUMP). A list that changes while it is read is read again.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`] when it never held still, the others when the conversation breaks.
    pub fn dump(&mut self, message: &Message) -> Result<Vec<Reply>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(replies) = self.dump_once(message)? {
                return Ok(replies);
            }
        }
        Err(NetlinkError::Interrupted { attempts: DUMP_ATTEMPTS })
    }

    /// `None`: the list changed meanwhile, entries may be missing or doubled.
    fn dump_once(&mut self, message: &Message) -> Result<Option<Vec<Reply>>, NetlinkError> {
        let sequence = self.send(std::slice::from_ref(message), libc::NLM_F_DUMP as u16)?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let (mut replies, mut interrupted, mut verdict) = (Vec::new(), false, None);
        while verdict.is_none() {
            self.receive(&mut buffer, |answer| {
                if answer.sequence != sequence {
                    return Ok(());
                }
                interrupted |= answer.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match answer.verdict()? {
                    Some(given) => verdict = Some(given),
                    None => replies.push(answer.reply()),
                }
                Ok(())
            })?;
        }
        match verdict {
            Some(Err(refusal)) => Err(NetlinkError::Refused(refusal)),
            _ if interrupted => Ok(None),
            _ => Ok(Some(replies)),
        }
    }

    /// Sends a batch as one datagram; returns the sequence number of its first message, the rest count up from there.
    fn send(&mut self, batch: &[Message], flags: u16) -> Result<u32, NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes =
            Vec::with_capacity(batch.iter().map(|message| HEADER + message.payload.len() + 3).sum());
        for message in batch {
            self.sequence = self.sequence.wrapping_add(1);
            encode(message, flags, self.sequence, &mut bytes)?;
        }
        let sent = retry(|| {
            nix::sys::socket::sendto(self.fd.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())
        })
        .map_err(|source| NetlinkError::Call { call: "sendto", source })?;
        if sent != bytes.len() {
            return Err(NetlinkError::Malformed { what: "a request was cut short" });
        }
        Ok(first)
    }

    /// Waits for one datagram and hands each message in it to `each`. The buffer is the caller's for the length of one
    /// conversation: a socket that is kept for the life of a pod must not keep 32 KiB with it.
    fn receive(
        &self,
        buffer: &mut [u8],
        mut each: impl FnMut(Answer<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let (length, from, truncated) = retry(|| {
            let mut slices = [IoSliceMut::new(&mut *buffer)];
            let received = recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut slices, None, MsgFlags::empty())?;
            Ok((received.bytes, received.address, received.flags.contains(MsgFlags::MSG_TRUNC)))
        })
        .map_err(|source| NetlinkError::Call { call: "recvmsg", source })?;
        // Port 0 is the kernel. Any process may send to this socket's port, and must not be believed.
        if from.is_none_or(|from| from.pid() != 0) {
            return Ok(());
        }
        if truncated {
            return Err(NetlinkError::Malformed { what: "an answer over 32 KiB" });
        }
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let (answer, next) = Answer::split(rest)?;
            each(answer)?;
            rest = next;
        }
        Ok(())
    }
}

/// One message as it lies in the receive buffer.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    /// Header included.
    bytes: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Cuts the first message off `bytes`.
    fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), NetlinkError> {
        let cut = NetlinkError::Malformed { what: "a message longer than its datagram" };
        let length = u32_at(bytes, field::LENGTH)? as usize;
        if length < HEADER {
            return Err(NetlinkError::Malformed { what: "a message shorter than its header" });
        }
        let message = bytes.get(..length).ok_or(cut)?;
        let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let answer = Self {
            kind: u16_at(message, field::KIND)?,
            flags: u16_at(message, field::FLAGS)?,
            sequence: u32_at(message, field::SEQUENCE)?,
            bytes: message,
        };
        Ok((answer, next))
    }

    /// The end of the answers to one request: an acknowledgement, a refusal or the end of a dump.
    fn verdict(&self) -> Result<Option<Result<(), Refusal>>, NetlinkError> {
        let attributes = match i32::from(self.kind) {
            libc::NLMSG_ERROR => self.after_original()?,
            libc::NLMSG_DONE => self.bytes.get(field::ERROR.end..).unwrap_or_default(),
            _ => return Ok(None),
        };
        let error = match self.bytes.get(field::ERROR) {
            Some(_) => u32_at(self.bytes, field::ERROR)?.cast_signed(),
            // NLMSG_DONE may come without a code.
            None => 0,
        };
        if error >= 0 {
            return Ok(Some(Ok(())));
        }
        let has_attributes = self.flags & libc::NLM_F_ACK_TLVS as u16 != 0;
        let message = has_attributes.then(|| extended_message(attributes)).flatten();
        Ok(Some(Err(Refusal { errno: Errno::from_raw(-error), message })))
    }

    /// The attributes of an NLMSG_ERROR: they follow the copy of the request, which is only its header when
    /// NLM_F_CAPPED says so.
    fn after_original(&self) -> Result<&'a [u8], NetlinkError> {
        let capped = self.flags & libc::NLM_F_CAPPED as u16 != 0;
        let start = if capped {
            field::ORIGINAL.end
        } else {
            let original = u32_at(self.bytes, field::ORIGINAL.start..field::ORIGINAL.start + 4)? as usize;
            field::ORIGINAL.start.saturating_add(original.next_multiple_of(4))
        };
        Ok(self.bytes.get(start..).unwrap_or_default())
    }

    fn reply(&self) -> Reply {
        Reply { kind: self.kind, payload: self.bytes.get(HEADER..).unwrap_or_default().to_vec() }
    }
}

/// Finds NLMSGERR_ATTR_MSG among the attributes of an answer.
fn extended_message(mut attributes: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    loop {
        let length = usize::from(u16_at(attributes, 0..2).ok()?);
        let kind = u16_at(attributes, 2..4).ok()?;
        let value = attributes.get(4..length)?;
        if kind == NLMSGERR_ATTR_MSG {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Appends one message with its header, padded to four bytes.
fn encode(message: &Message, flags: u16, sequence: u32, out: &mut Vec<u8>) -> Result<(), NetlinkError> {
    let length = u32::try_from(HEADER + message.payload.len())
        .map_err(|_| NetlinkError::Malformed { what: "a request over 4 GiB" })?;
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&message.kind.to_ne_bytes());
    out.extend_from_slice(&(message.flags | flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    // nlmsg_pid: the kernel fills in the port of the socket.
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&message.payload);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}

fn u16_at(bytes: &[u8], range: std::ops::Range<usize>) -> Result<u16, NetlinkError> {
    let field = bytes.get(range).and_then(|field| field.try_into().ok());
    field.map(u16::from_ne_bytes).ok_or(NetlinkError::Malformed { what: "a message without its header" })
}

fn u32_at(bytes: &[u8], range: std::ops::Range<usize>) -> Result<u32, NetlinkError> {
    let field = bytes.get(range).and_then(|field| field.try_into().ok());
    field.map(u32::from_ne_bytes).ok_or(NetlinkError::Malformed { what: "a message without its header" })
}

/// Switches a boolean option of level SOL_NETLINK on.
fn enable(fd: BorrowedFd<'_>, option: libc::c_int) -> Result<(), NetlinkError> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length describe `on`, which outlives the call; the kernel only reads it.
    let outcome = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    Errno::result(outcome).map(drop).map_err(|source| NetlinkError::Call { call: "setsockopt", source })
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTM_DELLINK: u16 = 17;
    const RTM_GETLINK: u16 = 18;
    const RTM_NEWLINK: u16 = 16;

    /// `struct ifinfomsg` for one interface index.
    fn link(kind: u16, index: u32) -> Message {
        let mut payload = vec![0; 16];
        payload[4..8].copy_from_slice(&index.to_ne_bytes());
        Message { kind, flags: 0, payload }
    }

    #[test]
    fn a_query_returns_the_loopback_link() {
        let mut socket = Netlink::open_route().unwrap();
        let reply = socket.query(&link(RTM_GETLINK, 1)).unwrap();
        assert_eq!(reply.kind, RTM_NEWLINK);
        assert_eq!(reply.payload[4..8], 1u32.to_ne_bytes());
    }

    #[test]
    fn a_query_for_a_link_that_is_not_there_is_refused_with_its_errno() {
        let mut socket = Netlink::open_route().unwrap();
        let refused = socket.query(&link(RTM_GETLINK, i32::MAX.cast_unsigned()));
        assert!(
            matches!(refused, Err(NetlinkError::Refused(Refusal { errno: Errno::ENODEV, .. }))),
            "{refused:?}"
        );
    }

    #[test]
    fn a_dump_lists_the_loopback_link() {
        let mut socket = Netlink::open_route().unwrap();
        let replies = socket.dump(&link(RTM_GETLINK, 0)).unwrap();
        assert!(replies.iter().any(|reply| reply.payload[4..8] == 1u32.to_ne_bytes()));
    }

    #[test]
    fn every_message_of_a_batch_gets_its_own_verdict() {
        let mut socket = Netlink::open_route().unwrap();
        // More than one datagram's worth; deleting what does not exist changes nothing, whoever runs the test.
        let batch = vec![link(RTM_DELLINK, i32::MAX.cast_unsigned()); BATCH + 3];
        let verdicts = socket.request(&batch).unwrap();
        assert_eq!(verdicts.len(), batch.len());
        assert!(
            verdicts.iter().all(|verdict| {
                matches!(verdict, Err(Refusal { errno: Errno::ENODEV | Errno::EPERM, .. }))
            })
        );
        // The conversation is still in step after refusals.
        assert_eq!(socket.query(&link(RTM_GETLINK, 1)).unwrap().kind, RTM_NEWLINK);
    }

    #[test]
    fn the_extended_message_is_found_behind_other_attributes() {
        let mut attributes = Vec::new();
        for (kind, value) in [(2u16, &4u32.to_ne_bytes()[..]), (1, b"no\0")] {
            attributes.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
            attributes.extend_from_slice(&kind.to_ne_bytes());
            attributes.extend_from_slice(value);
        }
        assert_eq!(extended_message(&attributes).as_deref(), Some("no"));
        assert_eq!(extended_message(&attributes[..8]), None);
        assert_eq!(extended_message(&[1, 0, 0, 0]), None);
    }

    #[test]
    fn a_message_that_lies_about_its_length_is_malformed() {
        let mut bytes = vec![0; HEADER];
        for length in [0u32, 15, 17] {
            bytes[field::LENGTH].copy_from_slice(&length.to_ne_bytes());
            assert!(Answer::split(&bytes).is_err(), "length {length}");
        }
    }
}
