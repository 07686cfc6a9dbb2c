//! What a child says about itself, in words.
//!
//! Must not know: how the child does its work.

use crate::error::LaunchError;
use crate::init::{self, RECORD, Step};
use crate::plan::Plan;
use crisp_sys::memory::SharedWord;
use crisp_sys::poll::{Interest, Poll};
use crisp_sys::process::{Cloned, Exited, Wait};
use crisp_sys::{Errno, SysError};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// How long the way from closing descriptors to being a zombie may take.
const DYING: Duration = Duration::from_secs(1);

/// A child on its way to its program.
///
/// Dropping it neither kills nor reaps: the owner of a child waits for it through `pidfd`. A child that waits for
/// [`Child::go`] ends when its `report` is closed.
#[derive(Debug)]
pub struct Child {
    /// Its pid in the caller's PID namespace.
    pub pid: i32,
    /// Its start time in clock ticks since boot.
    pub start_ticks: u64,
    /// A pidfd for it: readable once it has ended.
    pub pidfd: OwnedFd,
    /// Readable when there is something for [`Child::read_report`]. Non-blocking. Close it after the last report.
    pub report: OwnedFd,
    progress: Progress,
    role: Role,
    /// A pidfd for the process that it was before its successor took its place.
    predecessor: Option<OwnedFd>,
}

/// What a child tells through shared memory.
#[derive(Debug)]
pub(super) struct Progress {
    /// How far it is.
    pub(super) word: SharedWord,
    /// It is only a forerunner: see `init::crossing`.
    pub(super) succession: Option<Succession>,
}

/// Who comes after a forerunner.
#[derive(Debug)]
pub(super) struct Succession {
    /// The successor's pid, 0 before it is born.
    pub(super) pid: SharedWord,
    /// Into whose PID namespace.
    pub(super) resident: &'static str,
}

/// What the child is to become.
#[derive(Debug)]
pub(super) enum Role {
    Program(Arc<Plan>),
    PodInit,
}

/// News of a child.
#[derive(Debug)]
pub enum Report {
    /// Its terminal: what is written to this end is its input, what is read from it is its output. Comes before
    /// [`Report::Ready`], once, when the plan asks for a terminal.
    Terminal(OwnedFd),
    /// Everything is set up; it waits for [`Child::go`].
    Ready,
    /// `execve` has succeeded (or, for a pod's init: all it had is closed). The last report.
    Executed,
    /// It could not be started. The last report; the child has ended and wants to be reaped.
    Failed(LaunchError),
}

impl Child {
    pub(super) fn new(
        cloned: Cloned,
        report: OwnedFd,
        progress: Progress,
        role: Role,
    ) -> Result<Self, LaunchError> {
        let made = || -> Result<u64, SysError> {
            crisp_sys::fd::set_nonblocking(&report, true)?;
            // Nobody has reaped it: even if it has ended, its entry in /proc is there.
            Ok(crisp_sys::process::stat(cloned.pid)?.start_ticks)
        };
        match made() {
            Ok(start_ticks) => {
                let Cloned { pid, pidfd } = cloned;
                Ok(Self { pid, start_ticks, pidfd, report, progress, role, predecessor: None })
            }
            Err(error) => {
                crisp_sys::process::pidfd_send_signal(&cloned.pidfd, libc::SIGKILL)?;
                crisp_sys::process::waitid(&cloned.pidfd, Wait::Block)?;
                Err(error.into())
            }
        }
    }

    /// Lets a child that is [`Report::Ready`] execute its program.
    ///
    /// # Errors
    /// [`LaunchError::Died`] when it has ended.
    pub fn go(&mut self) -> Result<(), LaunchError> {
        self.give_word()
    }

    /// Tells a child that was cloned without a cgroup that it is in its own now.
    ///
    /// # Errors
    /// [`LaunchError::Died`] when it has ended.
    pub fn placed(&mut self) -> Result<(), LaunchError> {
        self.give_word()
    }

    fn give_word(&mut self) -> Result<(), LaunchError> {
        match crisp_sys::socket::sendmsg(&self.report, &[1], &[]) {
            Err(error) if matches!(error.errno, Errno::EPIPE | Errno::ECONNRESET) => Err(self.died()),
            answer => Ok(answer?),
        }
    }

    /// The next report; `None`: nothing yet. To be called before the child is reaped: whether a child that has
    /// ended had executed its program is told by its remains in /proc.
    ///
    /// # Errors
    /// [`LaunchError::Sys`] when the socket cannot be read.
    pub fn read_report(&mut self) -> Result<Option<Report>, LaunchError> {
        let mut record = [0; RECORD];
        let mut received = crisp_sys::socket::recvmsg(&self.report, &mut record);
        // The child ended without having read the word to go. That is told once, before what it said itself.
        if received.as_ref().is_err_and(|error| error.errno == Errno::ECONNRESET) {
            received = crisp_sys::socket::recvmsg(&self.report, &mut record);
        }
        let (length, fds) = match received {
            Ok(None) => {
                self.follow()?;
                return Ok(None);
            }
            Ok(Some(packet)) => (packet.length, packet.fds),
            Err(error) => return Err(error.into()),
        };
        self.follow()?;
        if length == 0 {
            return Ok(Some(if self.has_executed() {
                Report::Executed
            } else {
                Report::Failed(self.died())
            }));
        }
        let report = match init::decode(record).filter(|_| length == RECORD) {
            Some((Step::Waiting, _, 0)) => Report::Ready,
            Some((Step::Terminal, _, 0)) => match fds.into_iter().next() {
                Some(terminal) => Report::Terminal(terminal),
                None => Report::Failed(LaunchError::Plan("the terminal did not arrive: too many open files")),
            },
            Some((step, index, errno)) => Report::Failed(self.failure(step, index, Errno::from_raw(errno))),
            None => Report::Failed(LaunchError::Plan("a report of the child makes no sense")),
        };
        Ok(Some(report))
    }

    /// Whether this is the pid of the child, or of the one that is about to take its place: of whom that was the
    /// process before nothing can be said any more.
    pub fn is(&self, pid: i32) -> bool {
        self.pid == pid || self.successor() == Some(pid)
    }

    fn successor(&self) -> Option<i32> {
        let pid = self.progress.succession.as_ref()?.pid.get() as i32;
        (pid != 0).then_some(pid)
    }

    /// Once a forerunner has cloned its successor, that one is the child: `pid`, `start_ticks` and `pidfd` change. To
    /// be called before strangers among the caller's children are reaped. [`Child::read_report`] does it, too.
    ///
    /// # Errors
    /// [`LaunchError::Sys`] when the successor cannot be watched.
    pub fn follow(&mut self) -> Result<(), LaunchError> {
        let Some(pid) = self.successor() else { return Ok(()) };
        // Nobody has reaped it: the pid is its own.
        let pidfd = crisp_sys::process::pidfd_open(pid)?;
        let start_ticks = crisp_sys::process::stat(pid)?.start_ticks;
        self.predecessor = Some(std::mem::replace(&mut self.pidfd, pidfd));
        (self.pid, self.start_ticks, self.progress.succession) = (pid, start_ticks, None);
        Ok(())
    }

    /// The pidfd of the forerunner, once, after its successor has taken its place. It has ended or is about to, and
    /// wants to be reaped.
    pub fn take_predecessor(&mut self) -> Option<OwnedFd> {
        self.predecessor.take()
    }

    /// Whether the end of the report came from `execve` and not from death. A dying process closes its descriptors
    /// before it can be waited for, so that being alive proves nothing.
    fn has_executed(&self) -> bool {
        if self.step().0 != Step::Execute {
            return false;
        }
        match (&self.role, crisp_sys::process::stat(self.pid)) {
            // It was killed on its way into the kernel, or not: the kernel notes whether a process ever executed,
            // and still says so when it has ended since.
            (Role::Program(_), Ok(stat)) => !stat.never_executed(),
            // Reaped by somebody else, or nothing to be executed: all there is is how far it said it was.
            (Role::Program(_), Err(_)) | (Role::PodInit, _) => true,
        }
    }

    fn step(&self) -> (Step, u16) {
        step(&self.progress.word)
    }

    fn died(&self) -> LaunchError {
        let (step, index) = self.step();
        LaunchError::Died { what: self.describe(step, index), how: self.death() }
    }

    /// How it ended; it is on its way when this is asked.
    fn death(&self) -> Option<Exited> {
        let poll = Poll::new().ok()?;
        poll.add(&self.pidfd, 0, Interest::Read).ok()?;
        // Bounded, because a process can be stuck in the kernel on its way out.
        poll.wait(&mut Vec::new(), Some(DYING)).ok()?;
        crisp_sys::process::waitid(&self.pidfd, Wait::Peek).ok().flatten()
    }

    fn failure(&self, step: Step, index: u16, errno: Errno) -> LaunchError {
        // ESRCH: the process has ended. ENOMEM: the namespace's first process has (pid_namespaces(7)).
        if let (Step::Join | Step::Birth | Step::Namespaces, Errno::ESRCH | Errno::ENOMEM) = (step, errno)
            && let Some(succession) = &self.progress.succession
        {
            return LaunchError::Gone { what: succession.resident };
        }
        if let (Step::Execute, Role::Program(plan)) = (step, &self.role) {
            let program = plan.process.as_ref().and_then(|process| process.args.first());
            let program = String::from_utf8_lossy(program.map_or(&[], Vec::as_slice)).into_owned();
            let filtered = plan.process.as_ref().is_some_and(|process| !process.seccomp.is_empty());
            return LaunchError::Program { program, errno, filtered };
        }
        LaunchError::Child { step, what: self.describe(step, index), errno }
    }

    fn describe(&self, step: Step, index: u16) -> String {
        self.role.describe(step, index)
    }
}

impl Role {
    /// A step with its object.
    pub(super) fn describe(&self, step: Step, index: u16) -> String {
        let Self::Program(plan) = self else { return format!("pod init: {}", name(step)) };
        let process = plan.process.as_ref();
        let limit = || process.and_then(|process| process.rlimits.get(usize::from(index)));
        match step {
            Step::Operation => plan
                .ops
                .get(usize::from(index))
                .and_then(|op| op.kind.as_ref())
                .map_or_else(|| format!("operation {index}"), ToString::to_string),
            Step::Rlimit => limit().map_or_else(
                || "set resource limit".to_owned(),
                |limit| format!("set resource limit {}: {}:{}", limit.resource, limit.soft, limit.hard),
            ),
            Step::WorkingDirectory => {
                format!("working directory {}", process.map_or("", |process| process.cwd.as_str()))
            }
            Step::OomScore => format!(
                "oom_score_adj {}",
                process.and_then(|process| process.oom_score_adj).unwrap_or_default()
            ),
            Step::Uid => format!("set user id {}", process.map_or(0, |process| process.uid)),
            Step::AppArmor => {
                format!("AppArmor profile {}", process.map_or("", |process| process.apparmor.as_str()))
            }
            Step::Gid => format!("set group id {}", process.map_or(0, |process| process.gid)),
            other => name(other).to_owned(),
        }
    }
}

/// The step that a child was in last.
pub(super) fn step(progress: &SharedWord) -> (Step, u16) {
    let word = progress.get();
    (Step::from_number((word >> 16) as u16).unwrap_or(Step::Born), (word & 0xffff) as u16)
}

fn name(step: Step) -> &'static str {
    match step {
        Step::Born => "begin",
        Step::Reset => "reset signals, session and keyring",
        Step::OomScore => "oom_score_adj",
        Step::Descriptors => "set up descriptors",
        Step::Namespaces => "enter namespaces",
        Step::Operation => "operation",
        Step::Rlimit => "set resource limit",
        Step::WorkingDirectory => "working directory",
        Step::BoundingSet => "drop capabilities from the bounding set",
        Step::Groups => "set supplementary groups",
        Step::Gid => "set group id",
        Step::Uid => "set user id",
        Step::Capabilities => "set capabilities",
        Step::Ambient => "raise ambient capabilities",
        Step::NoNewPrivs => "set no_new_privs",
        Step::Waiting => "wait for the start",
        Step::Execute => "execute the program",
        Step::Seccomp => "install the seccomp filter",
        Step::UserNamespace => "enter the user namespace",
        Step::AppArmor => "AppArmor profile",
        Step::Cgroup => "wait for its cgroup",
        Step::Terminal => "open a terminal",
        Step::Join => "join the PID namespace",
        Step::Birth => "be born in the PID namespace",
    }
}
