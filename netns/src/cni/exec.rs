//! One plugin as a process: its input written, its output read, its time limited, nothing of it left.
//!
//! One thread does all of it without ever blocking on a pipe: a plugin that reads nothing, writes without end, or leaves
//! its pipes to a process that it has cut loose holds nobody up. What it has printed when it ends is what counts.
//!
//! It must not know what is said, or how processes are contained.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crisp_sys::{fd, process};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::Failure;
use super::output::{Output, STDOUT_MAX, Tail};

/// How often a program that somebody is still writing is tried again.
const BUSY_TRIES: u32 = 200;
/// Pause between these, milliseconds.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Contains the processes of plugins: supplied by whoever runs them.
pub trait Confine: fmt::Debug + Send + Sync {
    /// Makes a place for one plugin, whose name and object `what` says.
    ///
    /// # Errors
    /// It cannot be made; nothing of it stays.
    fn confine(&self, what: &str) -> io::Result<Box<dyn Confined>>;
}

/// The place of one plugin.
pub trait Confined: fmt::Debug {
    /// A command that executes `program` in this place, without arguments, its environment and its standard streams the
    /// command's. It must need no code between fork and exec.
    fn command(&self, program: &Path) -> Command;

    /// Ends every process that `child`, or what it has started, has left, and takes the place away.
    ///
    /// # Errors
    /// Something lives on, or the place stays.
    fn end(&mut self, child: u32) -> io::Result<()>;
}

/// Runs `program` to its end.
pub(super) fn run(
    place: &mut dyn Confined,
    program: &Path,
    environment: &[(&'static str, Option<String>)],
    input: &[u8],
    limit: Duration,
) -> Result<Output, Failure> {
    let mut command = place.command(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let started =
        start(&mut command).map_err(|source| Failure::Start { program: program.to_owned(), source });
    let mut child = match started {
        Ok(child) => child,
        Err(failure) => {
            let _ = place.end(0);
            return Err(failure);
        }
    };
    let mut talk = Talk::default();
    let talked = talk.go(&mut child, input, Instant::now() + limit);
    let ended = place.end(child.id());
    if ended.is_err() {
        // At least the plugin itself; without that, waiting for it could be for ever.
        let _ = child.kill();
    }
    let status = child.wait().map_err(Failure::Talk)?;
    let end = talked.map_err(Failure::Talk)?;
    ended.map_err(Failure::End)?;
    match end {
        End::Itself => Ok(Output { status, stdout: talk.stdout, stderr: talk.stderr }),
        End::Time => Err(Failure::Time { seconds: limit.as_secs(), said: talk.stderr.text() }),
        End::Flood => Err(Failure::Flood { limit: STDOUT_MAX }),
    }
}

fn start(command: &mut Command) -> io::Result<Child> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            // Somebody is just installing it, or a child of another thread still has the file open.
            Err(error) if error.raw_os_error() == Some(Errno::ETXTBSY as i32) && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            other => return other,
        }
    }
}

/// How the conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Itself,
    Time,
    Flood,
}

#[derive(Debug, Default)]
struct Talk {
    stdout: Vec<u8>,
    stderr: Tail,
}

impl Talk {
    fn go(&mut self, child: &mut Child, input: &[u8], until: Instant) -> io::Result<End> {
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let ended = process::pidfd_open(pid).map_err(io::Error::other)?;
        let mut stdin = child.stdin.take();
        let mut stdout = child.stdout.take().map(Pipe::of);
        let mut stderr = child.stderr.take().map(Pipe::of);
        let ends = [stdin.as_ref().map(AsFd::as_fd), as_fd(stdout.as_ref()), as_fd(stderr.as_ref())];
        for end in ends.into_iter().flatten() {
            fd::set_nonblocking(end, true).map_err(io::Error::other)?;
        }
        let mut left = input;
        loop {
            if left.is_empty() {
                stdin = None;
            }
            let over = wait(&ended, stdin.as_ref(), [stdout.as_ref(), stderr.as_ref()], until)?;
            if let Some(pipe) = &mut stdin {
                match write(pipe, left)? {
                    Some(written) => left = &left[written..],
                    None => stdin = None,
                }
            }
            // Whatever was printed before the end is in the pipes by now.
            stdout = drain(stdout, |bytes| self.stdout.extend_from_slice(bytes), STDOUT_MAX + 1)?;
            stderr = drain(stderr, |bytes| self.stderr.push(bytes), STDOUT_MAX)?;
            if self.stdout.len() > STDOUT_MAX {
                return Ok(End::Flood);
            }
            match over {
                Some(end) => return Ok(end),
                None => continue,
            }
        }
    }
}

/// The reading end of a pipe.
#[derive(Debug)]
struct Pipe(std::fs::File);

impl Pipe {
    fn of(end: impl Into<OwnedFd>) -> Self {
        Self(std::fs::File::from(end.into()))
    }
}

fn as_fd(pipe: Option<&Pipe>) -> Option<BorrowedFd<'_>> {
    pipe.map(|pipe| pipe.0.as_fd())
}

/// Waits until there is something to do; gives how it ended, when it has.
fn wait(
    ended: &OwnedFd,
    stdin: Option<&ChildStdin>,
    outputs: [Option<&Pipe>; 2],
    until: Instant,
) -> io::Result<Option<End>> {
    let mut polled = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
    polled.extend(stdin.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
    polled.extend(outputs.into_iter().filter_map(as_fd).map(|pipe| PollFd::new(pipe, PollFlags::POLLIN)));
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(Some(End::Time));
    }
    // Rounded up: a wait of no time at all, again and again, would be a busy loop.
    let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(polled.first().and_then(PollFd::any).unwrap_or(false).then_some(End::Itself))
}

/// Writes what goes in now; `None`: nobody reads any more.
fn write(pipe: &mut ChildStdin, bytes: &[u8]) -> io::Result<Option<usize>> {
    match pipe.write(bytes) {
        Ok(written) => Ok(Some(written)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(Some(0))
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes what is in a pipe, `most` bytes or a little more at once; gives the pipe back while somebody can write to it.
fn drain(pipe: Option<Pipe>, mut take: impl FnMut(&[u8]), most: usize) -> io::Result<Option<Pipe>> {
    let Some(mut pipe) = pipe else { return Ok(None) };
    let mut buffer = [0; 16 << 10];
    let mut taken = 0;
    while taken < most {
        match pipe.0.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => {
                take(&buffer[..count]);
                taken += count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(pipe))
}

#[cfg(test)]
pub(super) mod tests;
