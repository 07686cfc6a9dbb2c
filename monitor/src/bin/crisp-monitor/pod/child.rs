//! What children say and how they end.

use std::os::fd::OwnedFd;

use crisp_monitor::wire::{Body, Done, ExecExit, Failure, FailureKind, OomReport, StartedAt};
use crisp_sys::poll::Interest;
use crisp_sys::{process, time};
use nix::sys::signal::Signal;

use super::{Ending, Pod, sys_failure};
use crate::container::{Asker, Container, End, Life, Phase};
use crate::launched::{Launched, Said};
use crate::refusal::refuse;
use crate::stdio;
use crate::token::{Kind, Token};

/// Exit code of a process that SIGKILL has ended.
const KILLED: i32 = 128 + Signal::SIGKILL as i32;

impl Pod {
    /// Some child has ended: reaps those that nobody here has launched. An exec'd process, or a container in a PID
    /// namespace that is not its own, makes children of ours with clone(CLONE_PARENT). Left as zombies they would
    /// keep the first process of their PID namespace, which waits for everybody in it, from ever ending.
    pub(super) fn on_children(&mut self) {
        // Several ends may share one signal, so the kernel is asked until it names nobody.
        while matches!(self.children.read(), Ok(Some(_))) {}
        while let Ok(Some(pid)) = process::ended_child() {
            let reaped = match self.launched(pid) {
                Some((kind, serial)) => {
                    match kind {
                        Kind::ContainerPid => self.on_container_pid(serial),
                        Kind::ExecPid => self.on_exec_pid(serial),
                        _ => self.on_init_pid(serial),
                    }
                    self.launched(pid).is_none()
                }
                None => process::reap_child(pid).is_ok_and(|reaped| reaped),
            };
            // The kernel would name the same one again.
            if !reaped {
                return;
            }
        }
    }

    /// Whose process this is, if it was launched here and not reaped yet.
    fn launched(&self, pid: i32) -> Option<(Kind, u64)> {
        let is = |process: &Launched| process.is_child(pid);
        let container = |one: &Container| one.life.as_ref().is_some_and(|life| is(&life.process));
        let containers = self.containers.iter().filter(|(_, one)| container(one));
        let execs = self.execs.iter().filter(|(_, one)| is(&one.process));
        let init = self.init.iter().filter(|one| is(&one.process));
        containers
            .map(|(serial, _)| (Kind::ContainerPid, *serial))
            .chain(execs.map(|(serial, _)| (Kind::ExecPid, *serial)))
            .chain(init.map(|one| (Kind::InitPid, one.serial)))
            .next()
    }

    /// Takes in one report of a container's launch; whether there was one.
    pub(super) fn hear_container(&mut self, serial: u64) -> bool {
        let Some(container) = self.containers.get_mut(&serial) else { return false };
        let Some(life) = &mut container.life else { return false };
        let said = life.process.listen(&self.poll);
        match (said, &container.phase) {
            (Said::Nothing, _) => return false,
            (Said::Failed, _) => {}
            (Said::Terminal(terminal), Phase::Preparing(_)) => self.take_terminal(serial, terminal),
            (Said::Ready, Phase::Preparing(asker)) => {
                let (asker, pid) = (*asker, life.process.pid);
                (container.pid, container.phase) = (pid, Phase::Created);
                self.reply(asker, Body::Created(pid), Vec::new());
            }
            (Said::Executed, Phase::Starting(asker)) => {
                let (asker, nanos) = (*asker, time::realtime_nanos());
                container.started_nanos = nanos;
                container.phase = Phase::Running;
                self.reply(asker, Body::Started(StartedAt { nanos }), Vec::new());
            }
            // Out of turn: the child is not what it should be.
            (Said::Ready | Said::Executed | Said::Terminal(_), phase) => {
                let text = format!("launch: a report out of turn while {}", phase.name());
                life.process.condemn(refuse(FailureKind::Internal, text), &self.poll);
            }
        }
        true
    }

    /// A container's terminal is its output, and its input if it has one.
    fn take_terminal(&mut self, serial: u64, terminal: OwnedFd) {
        let Some(life) = self.containers.get_mut(&serial).and_then(|container| container.life.as_mut())
        else {
            return;
        };
        let watched = stdio::terminal(terminal, life.input.wanted).and_then(|pipes| {
            if let Some(output) = &pipes.stdout {
                let token = Token::new(Kind::Stdout, serial).pack();
                self.poll.add(output, token, Interest::Read)?;
            }
            Ok(pipes)
        });
        match watched {
            Ok(pipes) => life.pipes = pipes,
            Err(error) => life.process.condemn(sys_failure("terminal", &error), &self.poll),
        }
    }

    pub(super) fn on_container_pid(&mut self, serial: u64) {
        // What was said before the end counts: a program can run and end between two turns of the loop.
        while self.hear_container(serial) {}
        let Some(container) = self.containers.get_mut(&serial) else { return };
        let Some(life) = &mut container.life else { return };
        let Some(code) = life.process.reap(&self.poll) else { return };
        // Now, because whoever manages the cgroup may remove it soon.
        let killed = code == KILLED;
        self.look_for_oom(killed.then_some(serial));
        let Some(container) = self.containers.get_mut(&serial) else { return };
        let Some(life) = &mut container.life else { return };
        life.end = Some(End { code, nanos: time::realtime_nanos(), oom: life.oom_kills() });
        match container.phase {
            Phase::Held => self.forget_unborn(serial, None),
            Phase::Preparing(asker) => self.forget_unborn(serial, Some(asker)),
            Phase::Starting(asker) => self.begin_drain(serial, Some(asker)),
            _ => self.begin_drain(serial, None),
        }
    }

    /// Some container's `memory.events` has changed.
    pub(super) fn on_oom(&mut self) {
        for serial in self.look_for_oom(None) {
            let Some(container) = self.containers.get(&serial) else { continue };
            let oom = container.life.as_ref().and_then(Life::oom_kills);
            self.announce(Body::OomKilled(OomReport { container: container.id.clone(), oom }));
        }
    }

    /// Looks for OOM kills; which containers were hit since the last look. All of the pod's are looked at: an event of
    /// the pod's own must be counted for the container that it hit, and not for the next one that dies of something
    /// else. `killed`: a container that was just found to have ended by SIGKILL.
    fn look_for_oom(&mut self, killed: Option<u64>) -> Vec<u64> {
        let mut hit = Vec::new();
        let mut accounted = 0;
        for (serial, container) in &mut self.containers {
            let Some((cgroup, watch)) = container.life.as_mut().and_then(Life::oom_watch) else { continue };
            let more = watch.look(cgroup);
            if more > 0 {
                hit.push(*serial);
            }
            accounted += more;
        }
        let ended = killed.and_then(|serial| self.containers.get_mut(&serial));
        if let Some((_, watch)) = ended.and_then(|one| one.life.as_mut()).and_then(Life::oom_watch) {
            accounted += watch.inherit(accounted);
        }
        for container in self.containers.values_mut() {
            if let Some((cgroup, watch)) = container.life.as_mut().and_then(Life::oom_watch) {
                watch.settle(cgroup, accounted);
            }
        }
        hit
    }

    /// A container whose preparation went wrong has never been.
    fn forget_unborn(&mut self, serial: u64, asker: Option<Asker>) {
        self.close_output(serial);
        let Some(container) = self.containers.remove(&serial) else { return };
        let Some(life) = container.life else { return };
        // A joined or host PID namespace has not taken along what the child may have left.
        life.kill_cgroup();
        life.unwatch(&self.poll);
        let code = life.end.map_or(0, |end| end.code);
        let oom = life.end.and_then(|end| end.oom);
        let failure = life.process.failure().cloned();
        life.log.discard();
        if let Some(asker) = asker {
            self.refuse(
                asker,
                match oom {
                    Some(_) => refuse(
                        FailureKind::Memory,
                        "create: killed by the OOM killer before it was ready: the memory limit is too small",
                    ),
                    None => failure.unwrap_or_else(|| died("create", code)),
                },
            );
        }
        if let Some(asker) = container.remove {
            self.reply(asker, Body::Done(Done {}), Vec::new());
        }
    }

    /// Takes in one report of an exec'd process; whether there was one.
    pub(super) fn hear_exec(&mut self, serial: u64) -> bool {
        let Some(exec) = self.execs.get_mut(&serial) else { return false };
        match exec.process.listen(&self.poll) {
            Said::Nothing => return false,
            Said::Terminal(terminal) => exec.terminal = Some(terminal),
            // It got the word to go when it was cloned.
            Said::Ready | Said::Failed => {}
            Said::Executed => {
                let (asker, pid) = (exec.asker.take(), exec.process.pid);
                let terminal = exec.terminal.take();
                if let Some(asker) = asker {
                    self.reply(asker, Body::ExecStarted(pid), terminal.into_iter().collect());
                }
            }
        }
        true
    }

    pub(super) fn on_exec_pid(&mut self, serial: u64) {
        while self.hear_exec(serial) {}
        let Some(code) = self.execs.get_mut(&serial).and_then(|exec| exec.process.reap(&self.poll)) else {
            return;
        };
        let Some(exec) = self.execs.remove(&serial) else { return };
        match exec.asker {
            Some(asker) => {
                let failure = exec.process.failure().cloned();
                self.refuse(asker, failure.unwrap_or_else(|| died("exec", code)));
            }
            None => self.announce(Body::ExecExited(ExecExit { exec: exec.name, code })),
        }
    }

    /// Takes in one report of the pod's init; whether there was one.
    pub(super) fn hear_init(&mut self, serial: u64) -> bool {
        let Some(init) = self.init.as_mut().filter(|init| init.serial == serial) else { return false };
        match init.process.listen(&self.poll) {
            Said::Nothing => return false,
            // Its privileges are given up; what it still holds is closed with the next report.
            Said::Ready | Said::Failed | Said::Terminal(_) => {}
            Said::Executed => {
                let (asker, pid) = (init.asker.take(), init.process.pid);
                if let Some(asker) = asker {
                    self.reply(asker, Body::Init(pid), Vec::new());
                }
            }
        }
        true
    }

    /// The kernel kills what lives in the namespace of a dead init; those ends are reported one by one. A pod whose
    /// init was there and died can hold nothing any more that shares its namespace: it ends, as if a Shutdown with
    /// kill had been asked for, and the daemon sees the end of the connection.
    pub(super) fn on_init_pid(&mut self, serial: u64) {
        while self.hear_init(serial) {}
        let Some(init) = self.init.as_mut().filter(|init| init.serial == serial) else { return };
        let Some(code) = init.process.reap(&self.poll) else { return };
        let Some(init) = self.init.take() else { return };
        match init.asker {
            Some(asker) => {
                let failure = init.process.failure().cloned();
                self.refuse(asker, failure.unwrap_or_else(|| died("the pod's init", code)));
            }
            None if self.ending.is_none() && !init.held => {
                self.kill_all();
                self.ending = Some(Ending::InitDied);
            }
            None => {}
        }
    }
}

/// A child that ended without a word.
pub(super) fn died(what: &str, code: i32) -> Failure {
    refuse(FailureKind::Internal, format!("{what}: the process ended with code {code} before it was ready"))
}
