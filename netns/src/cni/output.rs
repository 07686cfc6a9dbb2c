//! What a plugin said, bounded: its standard output whole up to a limit, its standard error from the end.

use std::collections::VecDeque;
use std::process::ExitStatus;

use serde::Deserialize;

use super::error::Failure;

/// Most of a standard output that is taken, bytes.
pub(super) const STDOUT_MAX: usize = 1 << 20;
/// How much of the end of a standard error is kept, bytes.
const STDERR_KEPT: usize = 4 << 10;
/// How much of what a plugin said goes into one error, bytes.
const SHOWN: usize = 1 << 10;

/// What a plugin that has ended left behind.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Tail,
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<u8>);

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let surplus = self.0.len().saturating_sub(STDERR_KEPT);
        self.0.drain(..surplus);
    }

    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = printable(&String::from_utf8_lossy(&bytes));
        match text.char_indices().rev().find(|(at, _)| text.len() - at >= SHOWN) {
            Some((at, _)) => format!("…{}", &text[at..]),
            None => text,
        }
    }
}

/// The beginning of what was printed, fit for one line of an error.
pub(super) fn shown(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let cut = &bytes[..bytes.len().min(SHOWN)];
    let text = printable(&String::from_utf8_lossy(cut));
    if cut.len() < bytes.len() { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}

/// One line without control characters: errors end up in logs and at terminals.
fn printable(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[derive(Deserialize)]
struct Said {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Output {
    /// Its standard output, if it has succeeded.
    pub(super) fn success(self) -> Result<Vec<u8>, Failure> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let bounded = |text: &str| {
            let shown = shown(text.as_bytes());
            if text.is_empty() { String::new() } else { shown }
        };
        Err(match serde_json::from_slice::<Said>(&self.stdout) {
            Ok(said) => Failure::Refused {
                code: said.code,
                message: bounded(&said.msg),
                details: bounded(&said.details),
            },
            Err(_) => Failure::Garbage { status: self.status, said: self.words() },
        })
    }

    fn words(&self) -> String {
        let stderr = self.stderr.text();
        match (self.stdout.is_empty(), stderr.is_empty()) {
            (true, _) => stderr,
            (false, true) => shown(&self.stdout),
            (false, false) => format!("{}; {stderr}", shown(&self.stdout)),
        }
    }
}
