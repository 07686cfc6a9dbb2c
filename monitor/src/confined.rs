//! A program in a cgroup of its own from its first instruction, without code between fork and exec in whoever starts it:
//! the command line that `crisp-monitor` is called with, becomes a member of the cgroup, and executes the program.
//!
//! Must not know: which programs.

use std::ffi::OsString;
use std::path::Path;

/// The word that asks for it; what follows is the cgroup's `cgroup.procs` and the program.
pub const ENTER: &str = "enter-cgroup";

/// The arguments of `crisp-monitor` that execute `program`, without arguments, in the cgroup whose folder is `cgroup`.
/// Environment and standard streams stay as they are.
#[must_use]
pub fn arguments(cgroup: &Path, program: &Path) -> [OsString; 3] {
    [ENTER.into(), cgroup.join("cgroup.procs").into(), program.into()]
}
