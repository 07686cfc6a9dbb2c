//! Linux security modules: what the kernel has of them, and the profile of crisp's own.
//!
//! Host side only: which profile a process gets travels in its plan, and the child asks the kernel for it (see `init`).
//!
//! Must not know: CRI, containers.

pub mod apparmor;
pub mod selinux;
