//! Refusals as they go over the wire.

use std::error::Error;

use crisp_monitor::wire::{Failure, FailureKind};
use crisp_runtime::LaunchError;

use crate::log::LogError;

/// A refusal of `kind` without an errno.
pub(crate) fn refuse(kind: FailureKind, text: impl Into<String>) -> Failure {
    Failure { kind: kind as i32, text: text.into(), errno: 0 }
}

/// The kernel would not.
pub(crate) fn internal(text: impl Into<String>, errno: nix::errno::Errno) -> Failure {
    let text = format!("{}: {}", text.into(), crisp_sys::errno::text(errno));
    Failure { kind: FailureKind::Internal as i32, text, errno: errno as i32 }
}

/// A container, exec or init that did not start.
pub(crate) fn launch(error: &LaunchError) -> Failure {
    let kind = match error {
        LaunchError::Program { .. } => FailureKind::Program,
        LaunchError::Gone { .. } => FailureKind::Precondition,
        _ => FailureKind::Internal,
    };
    Failure { kind: kind as i32, text: chain(error), errno: error.errno() }
}

/// A log file that cannot be opened.
pub(crate) fn log(error: &LogError) -> Failure {
    Failure { kind: FailureKind::Precondition as i32, text: chain(error), errno: error.errno() }
}

/// The error and its causes, outermost first.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
