//! Seccomp: profiles and what they become, a BPF program.
//!
//! [`Profile`] is what a person writes (OCI or Docker's JSON, with conditions) or the built-in default
//! (`seccomp/default.json`); [`Profile::resolve`] decides the conditions for this machine and a capability set and
//! gives the OCI form, which is what a container's record keeps; [`compile()`] makes the program out of that.
//!
//! System calls newer than all that a profile names fail with ENOSYS where the profile would refuse them, so that the C
//! library falls back to what it did before they existed. A name that libseccomp knows on another architecture
//! only, or nobody knows, is skipped, as every runtime does it: profiles are written for many kernels and architectures.
//! But where skipping an unknown name would leave a call allowed that the profile forbids, the profile is refused.
//!
//! Must not know: CRI, where profiles come from.

mod compile;
mod newer;
mod profile;
mod stub;

pub use compile::{Filter, compile};
pub use profile::{Profile, ProfileError};

#[cfg(test)]
mod tests;
