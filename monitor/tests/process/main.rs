//! The monitor from outside: the built binary, driven over its socket on a real kernel. Needs root, a cgroup2
//! mount (no controllers), Debian's busybox-static and a C compiler with a static C library (libc6-dev). Must not
//! know: how the monitor is built inside.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod attach;
mod daemon;
mod exec;
mod harness;
mod held;
mod life;
mod output;
mod pid_namespace;
mod process;
mod terminal;
