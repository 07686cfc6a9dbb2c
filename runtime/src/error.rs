//! What can go wrong between an OCI spec and a running process.
//!
//! Must not know: CRI's status codes, the monitor's protocol.

use crate::init::Step;
use crisp_sys::errno::text;
use crisp_sys::process::Exited;
use crisp_sys::{Errno, SysError};

/// A plan that cannot be made or is not usable.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A field of the OCI spec is set that is not implemented.
    #[error("{field} is not supported{}", detail(.value))]
    Unsupported {
        /// Path of the field in the spec, as `linux.sysctl` or `mounts[/data]`.
        field: String,
        /// The offending value, where there is a single one. May be empty.
        value: String,
    },
    /// A field has a value that makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// Path of the field in the spec or plan.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The sealed memory file could not be read, or a mount source could not be opened.
    #[error("{0}")]
    Sys(#[from] SysError),
    /// A user namespace could not be made.
    #[error(transparent)]
    UserNamespace(#[from] crate::userns::HolderError),
    /// The bytes are no plan.
    #[error("decode plan: {reason}")]
    Decode {
        /// What the decoder stumbled over.
        reason: String,
    },
}

fn detail(value: &str) -> String {
    if value.is_empty() { String::new() } else { format!(" ({value})") }
}

impl PlanError {
    /// A field that is set and not implemented.
    #[cfg(feature = "oci")]
    pub(crate) fn unsupported(field: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), value: value.into() }
    }

    /// A field whose value makes no sense.
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }
}

/// A process that could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A call of the parent was refused; there is no child.
    #[error("{0}")]
    Sys(#[from] SysError),
    /// The process whose namespaces were to be joined has ended: `container exited` or `pod init exited`.
    #[error("{what} exited")]
    Gone {
        /// `container` or `pod init`.
        what: &'static str,
    },
    /// The child could not do a step of the plan. It has ended and wants to be reaped.
    #[error("{what}: {}", text(*.errno))]
    Child {
        /// Which step.
        step: Step,
        /// The step with its object: `mount /proc (proc)`.
        what: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The program could not be executed (ENOENT, EACCES, ENOEXEC...). The child has ended and wants to be reaped.
    #[error("{}", program_text(.program, *.errno, *.filtered))]
    Program {
        /// The program as it was asked for.
        program: String,
        /// The kernel's answer.
        errno: Errno,
        /// The process has a seccomp filter, which may be what refused it.
        filtered: bool,
    },
    /// The child ended without a word. It wants to be reaped.
    #[error("init died: {what}: {}", death(*.how))]
    Died {
        /// What it was doing.
        what: String,
        /// How it ended, if that can still be told.
        how: Option<Exited>,
    },
    /// The plan does not fit the call: a start without a root, an exec with operations.
    #[error("{0}")]
    Plan(&'static str),
}

impl LaunchError {
    /// The kernel's answer behind this error, 0 when there is none.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Sys(error) => error.errno as i32,
            Self::Child { errno, .. } | Self::Program { errno, .. } => *errno as i32,
            Self::Gone { .. } => Errno::ESRCH as i32,
            Self::Died { .. } | Self::Plan(_) => 0,
        }
    }
}

fn program_text(program: &str, errno: Errno, filtered: bool) -> String {
    // A name without a slash was looked for in PATH. The words are those that kubelet's users know.
    if errno == Errno::ENOENT && !program.contains('/') {
        format!("exec {program:?}: executable file not found in $PATH")
    } else if errno == Errno::EPERM && filtered {
        format!("exec {program:?}: {} (does its seccomp profile allow execve?)", text(errno))
    } else {
        format!("exec {program:?}: {}", text(errno))
    }
}

fn death(how: Option<Exited>) -> String {
    match how {
        Some(Exited::Code(code)) => format!("exit status {code}"),
        Some(Exited::Signal(libc::SIGSYS)) => "killed by its seccomp filter (SIGSYS)".to_owned(),
        Some(Exited::Signal(signal)) => format!("killed by signal {signal}"),
        None => "no exit status".to_owned(),
    }
}
