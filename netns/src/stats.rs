//! Counters of the interfaces of a network namespace, from the kernel's 64-bit link statistics.
//!
//! It must not know who reads them, or remember earlier readings.

use std::os::fd::BorrowedFd;

use crisp_sys::netlink::{Netlink, NetlinkError};

use crate::link::{self, Link};
use crate::namespaces::{NamespaceError, open_route_in};

/// What went through one interface since it was made, seen from inside its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceStats {
    /// The interface.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bad packets received.
    pub rx_errors: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets dropped before they were sent.
    pub tx_dropped: u64,
}

/// Why there are no counters.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The kernel did not list the links.
    #[error("list the interfaces")]
    List(#[source] NetlinkError),
}

/// Counters of every interface but `lo`, in the order of their indices, through a socket opened in the namespace.
///
/// # Errors
/// [`StatsError::List`].
pub fn interface_stats(socket: &mut Netlink) -> Result<Vec<InterfaceStats>, StatsError> {
    let replies = socket.dump(&link::list()).map_err(StatsError::List)?;
    let mut links: Vec<Link> = replies.iter().filter_map(Link::parse).collect();
    links.retain(|link| link.index != link::LOOPBACK);
    links.sort_by_key(|link| link.index);
    Ok(links.into_iter().map(InterfaceStats::from).collect())
}

/// The same for a caller that has no socket there: one is opened on a thread made for it.
///
/// # Errors
/// When `net` is no network namespace, or the links cannot be listed.
pub fn interface_stats_in(net: BorrowedFd<'_>) -> Result<Vec<InterfaceStats>, StatsError> {
    interface_stats(&mut open_route_in(net)?)
}

impl From<Link> for InterfaceStats {
    fn from(link: Link) -> Self {
        let counters = link.counters;
        Self {
            name: link.name,
            rx_bytes: counters.rx_bytes,
            rx_packets: counters.rx_packets,
            rx_errors: counters.rx_errors,
            rx_dropped: counters.rx_dropped,
            tx_bytes: counters.tx_bytes,
            tx_packets: counters.tx_packets,
            tx_errors: counters.tx_errors,
            tx_dropped: counters.tx_dropped,
        }
    }
}
