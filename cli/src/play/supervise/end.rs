//! How a run of a container ended, with its last words.

use std::{
    fmt, fs,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use crisp_proto::runtime::v1::ContainerStatus;

use crate::{endpoint::words, logs::line, manifest::model::Container, text};

/// Longest message that is shown, bytes (Kubernetes' limit).
const MESSAGE_MAX: u64 = 4096;
/// What a message from the log may be, bytes and lines (Kubernetes' limits).
const LOG_BYTES: usize = 2048;
const LOG_LINES: usize = 80;
/// How much of a log is read for them: its lines may be in pieces, each with a head of its own.
const LOG_TAIL: u64 = 256 << 10;

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) code: i32,
    reason: String,
    message: String,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.code)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", text::harmless(&self.message)) }
    }
}

impl End {
    /// From the status of a container that has ended. Its own last words are more to the point than the runtime's.
    pub(super) fn of(status: &ContainerStatus, container: &Container) -> Self {
        let target = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        let mount = status.mounts.iter().find(|mount| mount.container_path == target);
        let mut message = mount.map(|mount| read(Path::new(&mount.host_path))).unwrap_or_default();
        let from_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        if message.is_empty() && status.exit_code != 0 && from_log {
            message = tail(Path::new(&status.log_path)).map(|log| last_lines(&log)).unwrap_or_default();
        }
        if message.is_empty() {
            message.clone_from(&status.message);
        }
        let reason = match (status.reason.as_str(), status.exit_code) {
            ("", 0) => "Completed",
            ("", _) => "Error",
            (reason, _) => reason,
        };
        Self { code: status.exit_code, reason: reason.to_owned(), message: message.trim().to_owned() }
    }

    /// A run whose command could not be executed.
    pub(super) fn not_started(error: &anyhow::Error) -> Self {
        Self { code: 128, reason: "StartError".to_owned(), message: words(error) }
    }

    /// A run whose container could not be made.
    pub(super) fn not_made(error: &anyhow::Error) -> Self {
        Self { code: 128, reason: "CreateContainerError".to_owned(), message: words(error) }
    }

    /// A run that somebody removed, as kubelet reports it.
    pub(super) fn lost() -> Self {
        Self {
            code: 137,
            reason: "ContainerStatusUnknown".to_owned(),
            message: "the container was removed by somebody else".to_owned(),
        }
    }
}

/// How long a run lasted.
pub(super) fn lasted(status: &ContainerStatus) -> Duration {
    let nanoseconds = status.finished_at.saturating_sub(status.started_at);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
}

/// The beginning of a file; nothing when it cannot be read.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    match fs::File::open(path).map(|file| file.take(MESSAGE_MAX).read_to_end(&mut bytes)) {
        Ok(Ok(_)) => String::from_utf8_lossy(&bytes).into_owned(),
        _ => String::new(),
    }
}

/// The last lines of a log file, at most [`LOG_TAIL`] bytes.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(LOG_TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    if start > 0 {
        // The first line lacks its beginning.
        let line = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..line);
    }
    Ok(bytes)
}

/// The end of a log as its container wrote it.
fn last_lines(log: &[u8]) -> String {
    let mut text = Vec::new();
    for entry in line::entries(log).filter_map(Result::ok) {
        text.extend_from_slice(entry.content);
        if !entry.partial {
            text.push(b'\n');
        }
    }
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_BYTES)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use crisp_proto::runtime::v1::Mount;

    use super::*;

    #[test]
    fn the_last_words_come_from_file_log_or_runtime() {
        let folder = tempfile::tempdir().unwrap();
        let (words, log) = (folder.path().join("words"), folder.path().join("log"));
        fs::write(&words, "").unwrap();
        fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr F two\n").unwrap();
        let status = ContainerStatus {
            exit_code: 3,
            reason: "Error".into(),
            message: "of the runtime".into(),
            log_path: log.display().to_string(),
            mounts: vec![Mount {
                container_path: "/dev/termination-log".into(),
                host_path: words.display().to_string(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut container = Container::default();
        assert_eq!(End::of(&status, &container).to_string(), "Error (3): of the runtime");
        container.termination_message_policy = Some("FallbackToLogsOnError".into());
        assert_eq!(End::of(&status, &container).to_string(), "Error (3): one\n    two");
        fs::write(&words, "of its own\n").unwrap();
        assert_eq!(End::of(&status, &container).to_string(), "Error (3): of its own");
    }

    #[test]
    fn an_end_without_words_is_short() {
        let status = ContainerStatus { started_at: 5, finished_at: 25, ..Default::default() };
        assert_eq!(End::of(&status, &Container::default()).to_string(), "Completed (0)");
        assert_eq!(lasted(&status), Duration::from_nanos(20));
        assert_eq!(lasted(&ContainerStatus { started_at: 5, ..Default::default() }), Duration::ZERO);
    }

    #[test]
    fn last_words_cannot_command_the_terminal() {
        let end = End { code: 1, reason: "Error".into(), message: "a\u{1b}[2J\rb\u{9b}".into() };
        assert_eq!(end.to_string(), "Error (1): a\\u{1b}[2J\\rb\\u{9b}");
    }

    #[test]
    fn only_the_end_of_a_log_is_read_and_only_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let lines: String = (0..20_000).map(|n| format!("2026-01-01T00:00:00Z stdout F {n}\n")).collect();
        fs::write(&path, &lines).unwrap();
        let end = tail(&path).unwrap();
        let most = usize::try_from(LOG_TAIL).unwrap();
        assert!(lines.len() > most && (most - 100..=most).contains(&end.len()), "{}", end.len());
        assert!(lines.as_bytes().ends_with(&end) && end.starts_with(b"2026-"));
        fs::write(&path, "x".repeat(most + 1)).unwrap();
        assert_eq!(tail(&path).unwrap(), b"");
        fs::write(&path, "short").unwrap();
        assert_eq!(tail(&path).unwrap(), b"short");
    }

    #[test]
    fn a_long_log_is_cut_at_its_beginning() {
        let log: String = (0..500).map(|n| format!("2026-01-01T00:00:00Z stdout F {n}\n")).collect();
        let text = last_lines(log.as_bytes());
        assert_eq!(text.lines().count(), 80);
        assert!(text.ends_with("499"));
    }
}
