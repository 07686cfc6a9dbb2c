//! A process that was launched: first its reports, then only its pidfd, at last nothing.
//!
//! Once the program runs, the launch's memory (the plan, the report socket) is let go: what an idle container
//! costs its pod is a pidfd.

use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crisp_monitor::wire::{Failure, Pid};
use crisp_runtime::LaunchError;
use crisp_runtime::launch::{Child, Report};
use crisp_sys::errno::SysError;
use crisp_sys::poll::{Interest, Poll};
use crisp_sys::process::{Wait, pidfd_send_signal, waitid};

use crate::refusal;

/// What a launch had to say.
#[derive(Debug)]
pub(crate) enum Said {
    /// Nothing (more).
    Nothing,
    /// Its terminal: the end that is not its own.
    Terminal(OwnedFd),
    /// The plan is executed, only `execve` is missing.
    Ready,
    /// The program runs.
    Executed,
    /// It went wrong; the process ends.
    Failed,
}

#[derive(Debug)]
enum State {
    Launching(Child),
    /// The program runs, or the launch has failed and the process dies.
    Alive(OwnedFd),
    Reaped,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: Pid,
    state: State,
    failure: Option<Failure>,
    /// What the loop knows its end by.
    pid_token: u64,
    /// Who has prepared it, until it is reaped (here, or as a stranger).
    forerunner: Option<OwnedFd>,
}

impl Launched {
    /// Takes over a child that was just cloned.
    pub(crate) fn new(child: Child) -> Self {
        let pid = Pid { pid: child.pid, start_ticks: child.start_ticks };
        Launched { pid, state: State::Launching(child), failure: None, pid_token: 0, forerunner: None }
    }

    /// `None` once it was reaped.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Launching(child) => Some(child.pidfd.as_fd()),
            State::Alive(pidfd) => Some(pidfd.as_fd()),
            State::Reaped => None,
        }
    }

    /// Whether it is the child of this pid, which stays its own until it was reaped.
    pub(crate) fn is_child(&self, pid: i32) -> bool {
        match &self.state {
            State::Launching(child) => child.is(pid),
            State::Alive(_) => self.pid.pid == pid,
            State::Reaped => false,
        }
    }

    /// Watches for reports and the end.
    pub(crate) fn watch(&mut self, poll: &Poll, report: u64, pid: u64) -> Result<(), SysError> {
        self.pid_token = pid;
        let State::Launching(child) = &self.state else { return Ok(()) };
        poll.add(&child.report, report, Interest::Read)?;
        poll.add(&child.pidfd, pid, Interest::Read)
    }

    /// Lets it execute its program.
    pub(crate) fn go(&mut self) -> Result<(), LaunchError> {
        match &mut self.state {
            State::Launching(child) => child.go(),
            State::Alive(_) | State::Reaped => Err(LaunchError::Gone { what: "container" }),
        }
    }

    /// Tells a held one that it is in its cgroup.
    pub(crate) fn placed(&mut self) -> Result<(), LaunchError> {
        match &mut self.state {
            State::Launching(child) => child.placed(),
            State::Alive(_) | State::Reaped => Err(LaunchError::Gone { what: "container" }),
        }
    }

    /// The next report.
    pub(crate) fn listen(&mut self, poll: &Poll) -> Said {
        let State::Launching(child) = &mut self.state else { return Said::Nothing };
        let report = child.read_report();
        if let Err(failure) = self.follow(poll) {
            self.condemn(failure, poll);
            return Said::Failed;
        }
        match report {
            Ok(None) => Said::Nothing,
            Ok(Some(Report::Terminal(terminal))) => Said::Terminal(terminal),
            Ok(Some(Report::Ready)) => Said::Ready,
            Ok(Some(Report::Executed)) => {
                self.settle(poll);
                self.bury();
                Said::Executed
            }
            Ok(Some(Report::Failed(error))) | Err(error) => {
                self.condemn(refusal::launch(&error), poll);
                Said::Failed
            }
        }
    }

    /// The launch has failed: nothing more is expected but the end, which SIGKILL makes certain.
    pub(crate) fn condemn(&mut self, failure: Failure, poll: &Poll) {
        self.failure.get_or_insert(failure);
        self.settle(poll);
        // ESRCH: it has ended by itself.
        let _ = self.signal(libc::SIGKILL);
    }

    /// Why the launch failed.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Reaps the forerunner if it has ended, which is almost always.
    fn bury(&mut self) {
        self.forerunner =
            self.forerunner.take().filter(|pidfd| matches!(waitid(pidfd, Wait::NoHang), Ok(None)));
    }

    /// Kills it, whatever it has come to be.
    pub(crate) fn kill(&mut self, poll: &Poll) {
        // What cannot be followed holds nothing but a closed socket, and ends by itself.
        let _ = self.follow(poll);
        let _ = self.signal(libc::SIGKILL);
    }

    /// Watches the successor of a forerunner, once it is there.
    fn follow(&mut self, poll: &Poll) -> Result<(), Failure> {
        let State::Launching(child) = &mut self.state else { return Ok(()) };
        child.follow().map_err(|error| refusal::launch(&error))?;
        let Some(before) = child.take_predecessor() else { return Ok(()) };
        self.pid = Pid { pid: child.pid, start_ticks: child.start_ticks };
        let _ = poll.remove(&before);
        self.forerunner = Some(before);
        poll.add(&child.pidfd, self.pid_token, Interest::Read)
            .map_err(|error| refusal::internal("watch the process", error.errno))
    }

    /// Sends a signal; nothing once it was reaped.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), SysError> {
        self.pidfd().map_or(Ok(()), |pidfd| pidfd_send_signal(pidfd, signal))
    }

    /// Its exit code (status, or 128 + signal) if it has ended, was listened to until then, and was not reaped before.
    pub(crate) fn reap(&mut self, poll: &Poll) -> Option<i32> {
        // Who is still launching has not said its last, or is a forerunner: its end is not the end.
        let State::Alive(pidfd) = &self.state else { return None };
        let ended = waitid(pidfd, Wait::NoHang).ok()??;
        if let State::Alive(pidfd) = mem::replace(&mut self.state, State::Reaped) {
            // A duplicate in a child that has not executed yet would keep the loop awake.
            let _ = poll.remove(&pidfd);
        }
        // It has long been on its way out: who hears of the end finds an empty cgroup.
        let _ = self.forerunner.take().map(|pidfd| waitid(pidfd, Wait::Block));
        Some(ended.code())
    }

    /// Kills and reaps a process that nobody will hear of; SIGKILL makes the wait short.
    pub(crate) fn give_up(mut self) {
        loop {
            let _ = self.signal(libc::SIGKILL);
            let _ = self.pidfd().map(|pidfd| waitid(pidfd, Wait::Block));
            // A forerunner may have come as far as its successor.
            let State::Launching(child) = &mut self.state else { return };
            if child.follow().is_err() || child.take_predecessor().is_none() {
                return;
            }
        }
    }

    fn settle(&mut self, poll: &Poll) {
        let _ = self.follow(poll);
        self.state = match mem::replace(&mut self.state, State::Reaped) {
            State::Launching(child) => {
                let _ = poll.remove(&child.report);
                State::Alive(child.pidfd)
            }
            settled => settled,
        };
    }
}
