//! Route sockets of the host's network namespace, lent to one conversation at a time.
//!
//! Deleting a link keeps the kernel busy for tens of milliseconds, most of it waiting for RCU without the RTNL lock. One
//! socket for everybody would make each attachment wait for that; with one for each conversation in flight they overlap.
//!
//! It must not know what is said over them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crisp_sys::netlink::Netlink;

use crate::namespaces::{NamespaceError, open_route_in};

/// Idle sockets that are kept; more conversations than that at a time open and close their own.
const IDLE_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct Sockets {
    /// The namespace, for sockets opened from a thread that lives in another.
    net: OwnedFd,
    idle: Mutex<Vec<Netlink>>,
}

impl Sockets {
    /// Sockets of the calling thread's network namespace.
    pub(super) fn here() -> Result<Self, NamespaceError> {
        let path = PathBuf::from("/proc/thread-self/ns/net");
        let net = match File::open(&path) {
            Ok(file) => file.into(),
            Err(source) => return Err(NamespaceError::File { doing: "open", path, source }),
        };
        let socket = Netlink::open_route()
            .map_err(|source| NamespaceError::Netlink { doing: "open a route socket", source })?;
        Ok(Self { net, idle: Mutex::new(vec![socket]) })
    }

    /// Runs `talk` with a socket that nobody else uses meanwhile. No lock is held while it runs.
    pub(super) fn with<T>(&self, talk: impl FnOnce(&mut Netlink) -> T) -> Result<T, NamespaceError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut socket = match idle {
            Some(socket) => socket,
            None => open_route_in(self.net.as_fd())?,
        };
        let value = talk(&mut socket);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(socket);
        }
        Ok(value)
    }
}
