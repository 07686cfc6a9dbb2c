//! An OCI spec becomes a plan, a plan becomes a running container.
//!
//! Must not know: CRI, pods, images, the monitor's protocol. Does not log: it returns structured outcomes.

mod error;
mod init;
pub mod launch;
pub mod plan;

pub use error::{LaunchError, PlanError};
pub use init::Step;
