//! Namespaces that outlive processes, and the network that joins them: creation and pinning of network, IPC and UTS
//! namespaces, a bridge with IPv4 and IPv6, address leases, counters; or the networks of others, by CNI.
//!
//! It must not know what a pod, a container or CRI is. It gets names, file descriptors and request structures, and
//! keeps no state on disk, leases and links are its caller's to record, but for what CNI plugins hold. Everything is
//! synchronous and may block on the kernel's RTNL lock; a caller that serves others calls it from a thread that may
//! block.
//!
//! - [`namespaces`]: make, pin, reopen and unpin namespaces, run code inside one
//! - [`sysctl`]: which sysctls belong to which namespace, and writing them
//! - [`network`]: the bridge, masquerading, attaching a namespace and taking it off again
//! - [`cni`]: network lists, plugins, and the ledger of what they hold
//! - [`ipam`]: which addresses are in use
//! - [`stats`]: interface counters
#![forbid(unsafe_code)]

pub mod cni;
pub mod ipam;
mod link;
pub mod namespaces;
pub mod network;
pub mod stats;
pub mod sysctl;
