//! What an event of the loop is about: a kind and the serial number of the connection, container or process.
//!
//! Serial numbers are never used twice, so that an event for something that went away earlier in the same batch
//! finds nothing instead of somebody else.

/// What became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The listening socket.
    Listener,
    /// A connection of a daemon.
    Connection,
    /// A container's first process has ended.
    ContainerPid,
    /// A container's launch has something to say.
    ContainerReport,
    /// A container's standard output.
    Stdout,
    /// A container's standard error.
    Stderr,
    /// A container's `cgroup.events` changed.
    Cgroup,
    /// An exec'd process has ended.
    ExecPid,
    /// An exec'd process's launch has something to say.
    ExecReport,
    /// The pod's init has ended.
    InitPid,
    /// The pod's init has something to say.
    InitReport,
    /// Some child has ended (SIGCHLD).
    Children,
    /// A container's standard input has room again.
    Stdin,
    /// An attached client's input.
    AttachStdin,
    /// An attached client's output has room again, or is closed.
    AttachStdout,
    /// The same of its errors.
    AttachStderr,
    /// A container's `memory.events` changed.
    Oom,
}

/// Bits for the kind.
const KIND_BITS: u32 = 5;

const KINDS: [Kind; 17] = [
    Kind::Listener,
    Kind::Connection,
    Kind::ContainerPid,
    Kind::ContainerReport,
    Kind::Stdout,
    Kind::Stderr,
    Kind::Cgroup,
    Kind::ExecPid,
    Kind::ExecReport,
    Kind::InitPid,
    Kind::InitReport,
    Kind::Children,
    Kind::Stdin,
    Kind::AttachStdin,
    Kind::AttachStdout,
    Kind::AttachStderr,
    Kind::Oom,
];

/// A [`Kind`] and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) serial: u64,
}

impl Token {
    pub(crate) fn new(kind: Kind, serial: u64) -> Self {
        Token { kind, serial }
    }

    /// As the 64 bits that epoll keeps.
    pub(crate) fn pack(self) -> u64 {
        self.serial << KIND_BITS | self.kind as u64
    }

    /// `None` for bits that [`Token::pack`] never makes.
    pub(crate) fn unpack(bits: u64) -> Option<Self> {
        let kind = *KINDS.get((bits & ((1 << KIND_BITS) - 1)) as usize)?;
        Some(Token { kind, serial: bits >> KIND_BITS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back_with_its_serial() {
        for kind in KINDS {
            for serial in [0, 1, u64::MAX >> KIND_BITS] {
                let token = Token::new(kind, serial);
                assert_eq!(Token::unpack(token.pack()), Some(token));
            }
        }
        assert_eq!(Token::unpack(31), None);
    }
}
