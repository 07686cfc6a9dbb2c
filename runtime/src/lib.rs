//! An OCI spec becomes a plan, a plan becomes a running container.
//!
//! Must not know: CRI, pods, images, the monitor's protocol. Does not log: it returns structured outcomes.

pub mod cgroup;
mod error;
mod init;
pub mod launch;
#[cfg(feature = "oci")]
pub mod lsm;
pub mod mounts;
pub mod nodes;
#[cfg(feature = "oci")]
pub mod oci;
pub mod plan;
#[cfg(feature = "oci")]
pub mod seccomp;
pub mod user;
pub mod userns;

pub use error::{LaunchError, PlanError};
pub use init::Step;
