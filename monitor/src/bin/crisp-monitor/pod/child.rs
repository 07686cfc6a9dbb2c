//! What children say and how they end.

use std::os::fd::AsFd;

use crisp_monitor::wire::{Body, ExecExit, Failure, FailureKind, StartedAt};
use crisp_runtime::launch::{Child, Report};
use crisp_sys::process::{self, Wait};
use crisp_sys::time;

use super::{Pod, pid_of};
use crate::container::{Asker, End, Phase};
use crate::refusal::{self, refuse};

/// What a child's report pipe had to say.
enum Said {
    /// Nothing yet.
    Nothing,
    /// The plan is executed, only `execve` is missing.
    Ready,
    /// The program runs.
    Executed,
    /// It went wrong; the child ends.
    Failed(Failure),
}

fn listen(child: &mut Child) -> Said {
    match child.read_report() {
        Ok(None) => Said::Nothing,
        Ok(Some(Report::Ready)) => Said::Ready,
        Ok(Some(Report::Executed)) => Said::Executed,
        Ok(Some(Report::Failed(error))) | Err(error) => Said::Failed(refusal::launch(&error)),
    }
}

impl Pod {
    /// Takes in one report; whether there was one.
    pub(super) fn hear_container(&mut self, serial: u64) -> bool {
        let Some(container) = self.containers.get_mut(&serial) else { return false };
        let Some(life) = &mut container.life else { return false };
        if life.failure.is_some() || !container.phase.is_launching() {
            return false;
        }
        let said = listen(&mut life.child);
        match (said, &container.phase) {
            (Said::Nothing, _) => return false,
            (Said::Ready, Phase::Preparing(asker)) => {
                let (asker, pid) = (*asker, container.pid);
                container.phase = Phase::Created;
                self.reply(asker, Body::Created(pid), Vec::new());
            }
            (Said::Executed, Phase::Starting(asker)) => {
                let (asker, nanos) = (*asker, time::realtime_nanos());
                container.started_nanos = nanos;
                container.phase = Phase::Running;
                self.unwatch_report(serial);
                self.reply(asker, Body::Started(StartedAt { nanos }), Vec::new());
            }
            (Said::Failed(failure), _) => {
                life.failure = Some(failure);
                self.abandon(serial);
            }
            // Out of turn: the child is not what it should be.
            (Said::Ready | Said::Executed, phase) => {
                let text = format!("launch: a report out of turn while {}", phase.name());
                life.failure = Some(refuse(FailureKind::Internal, text));
                self.abandon(serial);
            }
        }
        true
    }

    /// The launch has failed: nothing more is expected but the end, which SIGKILL makes certain.
    fn abandon(&mut self, serial: u64) {
        self.unwatch_report(serial);
        if let Some(life) = self.containers.get(&serial).and_then(|container| container.life.as_ref()) {
            let _ = process::pidfd_send_signal(life.child.pidfd.as_fd(), libc::SIGKILL);
        }
    }

    fn unwatch_report(&self, serial: u64) {
        if let Some(life) = self.containers.get(&serial).and_then(|container| container.life.as_ref()) {
            self.unwatch(life.child.report.as_fd());
        }
    }

    pub(super) fn on_container_pid(&mut self, serial: u64) {
        // What was said before the end counts: a program can run and end between two turns of the loop.
        while self.hear_container(serial) {}
        let Some(container) = self.containers.get_mut(&serial) else { return };
        let Some(life) = &mut container.life else { return };
        let Ok(Some(ended)) = process::waitid(life.child.pidfd.as_fd(), Wait::NoHang) else { return };
        let nanos = time::realtime_nanos();
        let oom_killed = crate::cgroup::oom_kills(life.cgroup.as_fd()) > life.oom_kills;
        life.end = Some(End { code: ended.code(), nanos, oom_killed });
        self.unwatch_report(serial);
        if let Some(life) = self.containers.get(&serial).and_then(|container| container.life.as_ref()) {
            self.unwatch(life.child.pidfd.as_fd());
        }
        self.on_container_reaped(serial);
    }

    /// Takes in one report of an exec'd process; whether there was one.
    pub(super) fn hear_exec(&mut self, serial: u64) -> bool {
        let Some(exec) = self.execs.get_mut(&serial) else { return false };
        if exec.asker.is_none() || exec.failure.is_some() {
            return false;
        }
        match listen(&mut exec.child) {
            Said::Nothing => return false,
            // It got the word to go when it was cloned.
            Said::Ready => {}
            Said::Executed => {
                let (asker, pid) = (exec.asker.take(), pid_of(&exec.child));
                let _ = self.poll.remove(exec.child.report.as_fd());
                if let Some(asker) = asker {
                    self.reply(asker, Body::ExecStarted(pid), Vec::new());
                }
            }
            Said::Failed(failure) => {
                exec.failure = Some(failure);
                let _ = process::pidfd_send_signal(exec.child.pidfd.as_fd(), libc::SIGKILL);
                let _ = self.poll.remove(exec.child.report.as_fd());
            }
        }
        true
    }

    pub(super) fn on_exec_pid(&mut self, serial: u64) {
        while self.hear_exec(serial) {}
        let Some(exec) = self.execs.get(&serial) else { return };
        let Ok(Some(ended)) = process::waitid(exec.child.pidfd.as_fd(), Wait::NoHang) else { return };
        self.unwatch(exec.child.report.as_fd());
        self.unwatch(exec.child.pidfd.as_fd());
        let Some(exec) = self.execs.remove(&serial) else { return };
        match exec.asker {
            Some(asker) => self.refuse(asker, exec.failure.unwrap_or_else(|| died("exec", ended.code()))),
            None => self.announce(Body::ExecExited(ExecExit { exec: exec.name, code: ended.code() })),
        }
    }

    /// Takes in one report of the pod's init; whether there was one.
    pub(super) fn hear_init(&mut self, serial: u64) -> bool {
        let Some(init) = self.init.as_mut().filter(|init| init.serial == serial) else { return false };
        if init.asker.is_none() || init.failure.is_some() {
            return false;
        }
        match listen(&mut init.child) {
            Said::Nothing => return false,
            // Its proc mount and privileges are given up; what it still holds is closed with the next report.
            Said::Ready => {}
            Said::Executed => {
                let (asker, pid) = (init.asker.take(), pid_of(&init.child));
                let _ = self.poll.remove(init.child.report.as_fd());
                if let Some(asker) = asker {
                    self.reply(asker, Body::Init(pid), Vec::new());
                }
            }
            Said::Failed(failure) => {
                init.failure = Some(failure);
                let _ = process::pidfd_send_signal(init.child.pidfd.as_fd(), libc::SIGKILL);
                let _ = self.poll.remove(init.child.report.as_fd());
            }
        }
        true
    }

    /// The kernel kills what lives in the namespace of a dead init; those ends are reported one by one.
    pub(super) fn on_init_pid(&mut self, serial: u64) {
        while self.hear_init(serial) {}
        let Some(init) = self.init.as_ref().filter(|init| init.serial == serial) else { return };
        let Ok(Some(ended)) = process::waitid(init.child.pidfd.as_fd(), Wait::NoHang) else { return };
        self.unwatch(init.child.report.as_fd());
        self.unwatch(init.child.pidfd.as_fd());
        let Some(init) = self.init.take() else { return };
        if let Some(asker) = init.asker {
            self.refuse(asker, init.failure.unwrap_or_else(|| died("the pod's init", ended.code())));
        }
    }

    /// A container that was reaped: its own PID namespace is empty by now, others are emptied here.
    fn on_container_reaped(&mut self, serial: u64) {
        let Some(container) = self.containers.get_mut(&serial) else { return };
        if let Phase::Preparing(asker) = container.phase {
            return self.forget_unborn(serial, asker);
        }
        let start = match container.phase {
            Phase::Starting(asker) => Some(asker),
            _ => None,
        };
        self.begin_drain(serial, start);
    }

    /// A container whose preparation went wrong has never been.
    fn forget_unborn(&mut self, serial: u64, asker: Asker) {
        self.unwatch_output(serial);
        let Some(container) = self.containers.remove(&serial) else { return };
        let Some(life) = container.life else { return };
        // A joined or host PID namespace has not taken along what the child may have left.
        let _ = crate::cgroup::kill(life.cgroup.as_fd());
        let code = life.end.map_or(0, |end| end.code);
        self.refuse(asker, life.failure.unwrap_or_else(|| died("create", code)));
        if let Some(asker) = container.remove {
            self.reply(asker, Body::Done(crisp_monitor::wire::Done {}), Vec::new());
        }
    }
}

/// A child that ended without a word.
pub(super) fn died(what: &str, code: i32) -> Failure {
    refuse(FailureKind::Internal, format!("{what}: the process ended with code {code} before it was ready"))
}
