//! The gRPC services: each call is decoded, handed to the pod or store that it concerns, and answered.
//!
//! Lists and statuses are served from memory and wait for nothing. What is not there yet answers `Unimplemented`,
//! the code that CRI clients have a fall-back for.

mod about;
pub mod admin;
pub(crate) mod deadline;
pub mod image;
mod info;
mod list;
mod metrics;
pub mod runtime;
pub mod stats;
pub mod status;
mod stream;
