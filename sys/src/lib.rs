//! The kernel's calls behind safe Rust: descriptors are owned, flags are typed, and an error says which call
//! was refused on what. The home of `unsafe`.
//!
//! Must not know: containers, pods, images, networks. Has no policy and does not log.

pub mod bpf;
pub mod device;
pub mod errno;
pub mod fd;
pub mod features;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod path;
pub mod poll;
pub mod process;
pub mod program;
pub mod raw;
pub mod signal;
pub mod socket;
pub mod tcp;
pub mod terminal;
pub mod time;
pub mod wait;

pub use errno::{Errno, SysError};
