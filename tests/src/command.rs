//! Running a program to its end with its output captured, never for ever.
//!
//! Must not know: which programs there are.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::wait;

/// What a program that has ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// The program and its arguments, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Its standard error; bytes that are not UTF-8 are replaced.
    pub stderr: String,
}

impl Finished {
    /// Its standard output, if it ended with 0.
    ///
    /// # Errors
    /// It did not; the error holds everything that it said.
    pub fn ok(self) -> Result<String> {
        ensure!(self.status.success(), "{self}");
        Ok(self.stdout)
    }

    /// Everything that it said, if it ended with another status than 0 and was not killed.
    ///
    /// # Errors
    /// It ended with 0 or by a signal.
    pub fn refused(self) -> Result<String> {
        ensure!(self.status.code().is_some_and(|code| code != 0), "expected a refusal: {self}");
        Ok(format!("{}{}", self.stdout, self.stderr))
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ended with {}", self.line, self.status)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.is_empty() {
                write!(f, "\n--- {name}\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// Runs `command` to its end without input.
///
/// # Errors
/// It cannot be started, or has not ended after [`wait::LONG`] (it is killed then).
pub fn run(command: &mut Command) -> Result<Finished> {
    run_within(command, wait::LONG)
}

/// [`run`] with a limit of the caller's.
///
/// # Errors
/// It cannot be started, or has not ended after `limit` (it is killed then).
pub fn run_within(command: &mut Command, limit: Duration) -> Result<Finished> {
    let line = describe(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {line}"))?;
    let stdout = read_beside(child.stdout.take());
    let stderr = read_beside(child.stderr.take());
    let ended = wait::until(&line, limit, || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        Ok(None) => Err("still running".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    let killed = ended.is_err();
    if killed {
        child.kill().with_context(|| format!("kill {line}"))?;
        child.wait().with_context(|| format!("wait for {line}"))?;
    }
    // A grandchild may hold the pipes of a killed program open; what has been said so far is then out of reach.
    if killed {
        bail!("{line}: still running after {limit:?}");
    }
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    Ok(Finished { line, status: ended?, stdout: text(stdout), stderr: text(stderr) })
}

fn read_beside(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is kept: it is only ever shown to a person.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Program and arguments in one line, for messages.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
