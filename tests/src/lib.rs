//! The harness of the end-to-end tests: a crisp of one's own, clients to talk to it, and a look at what it leaves behind.
//!
//! Drives the built binaries from outside, through the socket and the command line. Must not know: how the daemon works
//! inside. Imported by nobody.

pub mod apparmor;
pub mod build;
pub mod command;
pub mod cri;
pub mod dead;
pub mod differ;
pub mod faulty;
pub mod flipper;
pub mod grpc;
pub mod host;
pub mod http2;
pub mod images;
pub mod inside;
pub mod node;
pub mod place;
pub mod plugin;
pub mod random;
pub mod registry;
pub mod source;
pub mod statistics;
pub mod streaming;
pub mod terminal;
pub mod untouched;
pub mod wait;
