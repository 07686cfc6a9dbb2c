//! One container: what is kept of it, and the phases it goes through.
//!
//! ```text
//! [Held ->] Preparing -> Created -> Starting -> Running -> Draining -> Ended
//!    |         |            |           |                     ^
//!    |         |            +-----------+---------------------+  killed before its program ran, or program not there
//!    +---------+-> forgotten                                     preparation went wrong: as if it had never been
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crisp_monitor::wire::{ContainerState, Exit, OomKills, Pid, PidNamespace};

use crisp_sys::poll::Poll;

use crate::attach::Outlet;
use crate::cgroup::{self, CgroupEvents};
use crate::launched::Launched;
use crate::log::{ContainerLog, Stream};
use crate::oom::OomWatch;

/// Who waits for an answer: a connection and its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    /// Serial number of the connection.
    pub(crate) connection: u64,
    /// The request's id.
    pub(crate) request: u64,
}

/// See the module's diagram.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Cloned, waiting to be put into its cgroup.
    Held,
    /// Cloned, executing its plan.
    Preparing(Asker),
    /// Only `execve` is missing.
    Created,
    /// Was told to execute its program.
    Starting(Asker),
    /// Executes its program.
    Running,
    /// Its first process was reaped; its output and its cgroup are not empty yet.
    Draining {
        /// When to stop waiting for them.
        until: Instant,
        /// The Start that waits for an answer, when the program never ran.
        start: Option<Asker>,
    },
    /// All over and on record.
    Ended,
}

impl Phase {
    /// For messages: "container x is ...".
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Phase::Held | Phase::Preparing(_) => "being created",
            Phase::Created => "created and not started",
            Phase::Starting(_) => "being started",
            Phase::Running => "running",
            Phase::Draining { .. } => "ending",
            Phase::Ended => "ended",
        }
    }
}

/// Descriptors of a container's output, and what waits for its input.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    /// Kept open so that the container sees no end of file; closed when it ends.
    pub(crate) stdin: Option<Outlet>,
    /// For a container with a terminal that terminal, and there is no `stderr`.
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// The terminal's other end. Held, because the terminal of a program that has closed its standard streams for a
    /// while must not end.
    pub(crate) _console: Option<OwnedFd>,
}

/// What is to happen with a container's standard input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input {
    /// It has one to write to.
    pub(crate) wanted: bool,
    /// It ends with the first client that wrote to it.
    pub(crate) once: bool,
    /// It ends when what waits has been taken.
    pub(crate) ending: bool,
}

impl Pipes {
    pub(crate) fn of(&mut self, stream: Stream) -> &mut Option<OwnedFd> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

/// How the first process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) code: i32,
    pub(crate) nanos: i64,
    pub(crate) oom: Option<OomKills>,
}

/// What the kernel keeps for a container that has not ended.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) process: Launched,
    /// `None` while held.
    pub(crate) cgroup: Option<OwnedFd>,
    pub(crate) cgroup_events: Option<CgroupEvents>,
    pub(crate) record: OwnedFd,
    pub(crate) pipes: Pipes,
    /// It has a terminal.
    pub(crate) terminal: bool,
    pub(crate) input: Input,
    pub(crate) log: ContainerLog,
    /// `None` while held, and without the memory controller.
    pub(crate) oom: Option<OomWatch>,
    /// Set when the first process was reaped.
    pub(crate) end: Option<End>,
}

impl Life {
    /// Kills what is in the cgroup; one that is gone, or not there yet, holds nothing.
    pub(crate) fn kill_cgroup(&self) {
        if let Some(dir) = &self.cgroup {
            let _ = cgroup::kill(dir.as_fd());
        }
    }

    /// What is watched for OOM kills, with its cgroup.
    pub(crate) fn oom_watch(&mut self) -> Option<(BorrowedFd<'_>, &mut OomWatch)> {
        Some((self.cgroup.as_ref()?.as_fd(), self.oom.as_mut()?))
    }

    /// Takes what is watched of its cgroup out of the loop.
    pub(crate) fn unwatch(&self, poll: &Poll) {
        let files = [self.cgroup_events.as_ref().map(AsFd::as_fd), self.oom.as_ref().map(AsFd::as_fd)];
        for file in files.into_iter().flatten() {
            let _ = poll.remove(file);
        }
    }

    /// OOM kills so far.
    pub(crate) fn oom_kills(&self) -> Option<OomKills> {
        self.oom.as_ref().and_then(OomWatch::so_far)
    }
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) phase: Phase,
    pub(crate) pid: Pid,
    pub(crate) pid_namespace: PidNamespace,
    /// Serial number of the container whose PID namespace it has joined.
    pub(crate) target: Option<u64>,
    /// For look-ups in its file system by whoever restarts the daemon; until Remove.
    pub(crate) root: OwnedFd,
    /// Nanoseconds since the epoch; 0: not started.
    pub(crate) started_nanos: i64,
    /// `None` once ended.
    pub(crate) life: Option<Life>,
    pub(crate) exit: Option<Exit>,
    pub(crate) log_dropped: u64,
    /// A Remove that waits for the end.
    pub(crate) remove: Option<Asker>,
}

impl Container {
    /// As the daemon gets to see it.
    pub(crate) fn state(&self) -> ContainerState {
        ContainerState {
            container: self.id.clone(),
            pid: Some(self.pid),
            started_nanos: self.started_nanos,
            exit: self.exit.clone(),
            oom: self.exit.as_ref().map_or_else(|| self.life.as_ref()?.oom_kills(), |exit| exit.oom),
            log_dropped: self.life.as_ref().map_or(self.log_dropped, |life| life.log.dropped()),
        }
    }
}
