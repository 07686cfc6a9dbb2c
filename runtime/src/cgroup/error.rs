//! What can go wrong with a cgroup.
//!
//! Must not know: who asked for it.

use crisp_sys::errno::text;
use crisp_sys::{Errno, SysError};
use std::path::{Path, PathBuf};

/// An operation on a cgroup that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path is no mount of cgroup v2.
    #[error("{} is not cgroup v2", .path.display())]
    NotCgroup2 {
        /// The path.
        path: PathBuf,
    },
    /// A name or path that could not be used safely.
    #[error("cgroup path {path:?}: {reason}")]
    Path {
        /// As given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A limit needs a controller that this cgroup does not have.
    #[error("{field}: {file}: the cgroup v2 controller {controller:?} is not available")]
    MissingController {
        /// What it was asked for with.
        field: String,
        /// The controller's name.
        controller: String,
        /// The file that would hold the limit.
        file: String,
    },
    /// A limit that makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// What it was asked for with, in CRI's words.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel refused a limit.
    #[error("{field}: write {value:?} to {}: {}", .file.display(), text(*.errno))]
    Limit {
        /// What it was asked for with.
        field: String,
        /// The file.
        file: PathBuf,
        /// The value.
        value: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel refused a value.
    #[error("write {value:?} to {}: {}", .file.display(), text(*.errno))]
    Write {
        /// The file.
        file: PathBuf,
        /// The value.
        value: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Processes are left in a cgroup that was to be removed.
    #[error("cgroup {} still has processes", .path.display())]
    Populated {
        /// The cgroup.
        path: PathBuf,
    },
    /// Another call that the kernel refused.
    #[error("{0}")]
    Sys(#[from] SysError),
}

impl CgroupError {
    pub(super) fn sys(call: &'static str, path: &Path, errno: Errno) -> Self {
        Self::Sys(SysError::new(call, path.to_string_lossy(), errno))
    }

    pub(super) fn invalid(field: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.to_owned(), reason: reason.into() }
    }

    /// Whether the cgroup in question does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Sys(error) => matches!(error.errno, Errno::ENOENT | Errno::ENODEV),
            Self::Write { errno, .. } => matches!(errno, Errno::ENOENT | Errno::ENODEV),
            _ => false,
        }
    }

    /// Whether a limit was refused for its value, or because there is nothing here that could hold it.
    pub fn is_value(&self) -> bool {
        match self {
            Self::MissingController { .. } | Self::Invalid { .. } => true,
            Self::Limit { errno, .. } => matches!(
                errno,
                Errno::EINVAL | Errno::ERANGE | Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP
            ),
            _ => false,
        }
    }

    /// Whether a cgroup was to be made that exists.
    pub fn is_exists(&self) -> bool {
        matches!(self, Self::Sys(error) if error.errno == Errno::EEXIST)
    }
}
