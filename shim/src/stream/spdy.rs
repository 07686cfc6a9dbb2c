//! SPDY/3.1, as far as Kubernetes' streaming clients use it: frames and header blocks, without any I/O.
//!
//! No flow control: the peers of this protocol ignore windows, so what comes in is taken or makes the connection wait.
//! Must not know: sockets, what streams are for.

pub(super) mod connection;
pub mod frame;
pub mod headers;

pub use frame::{Decoder, Event, FrameError, Reset};
