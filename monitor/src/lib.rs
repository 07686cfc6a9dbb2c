//! The daemon's side of the pod monitor: the wire protocol and what both ends need to speak it.
//!
//! The process itself is the binary `crisp-monitor` of this crate: one per pod, single-threaded, the parent of
//! every process of its pod. It must not know CRI, tokio or where images and records live.

pub mod client;
pub mod confined;
pub mod record;
pub mod wire;
