//! CRI messages become what the daemon works with, and back. Pure functions, no I/O.
//!
//! Every field of a request is used, or is documented here as having no object in crisp, or is refused by name.

pub mod apparmor;
pub mod ports;
pub mod resources;
pub mod sandbox;
pub mod seccomp;
pub mod selinux;
mod shm;
pub mod signal;
pub mod spec;
pub mod spec_arguments;
mod spec_check;
pub mod spec_devices;
mod spec_mount_check;
pub mod spec_mounts;
pub mod status;
pub mod userns;
