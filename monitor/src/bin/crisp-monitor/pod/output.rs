//! A container's output, and its end: what is in the pipes is read, then the record is written, and only then
//! is anybody told (the order `kubectl logs -f` depends on: contract of CRI's container logs, flush before EXITED).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crisp_monitor::record::{self, ExitRecord};
use crisp_monitor::wire::{Body, Done, Exit, PidNamespace};
use crisp_sys::time;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::read;

use super::child::died;
use super::{Pod, READ_BYTES};
use crate::cgroup::CgroupEvents;
use crate::container::{Asker, End, Phase};
use crate::log::Stream;
use crate::token::{Kind, Token};

/// Longest wait for a killed cgroup to become empty: a process stuck in the kernel must not hide the exit.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// CRI's exit code for a container whose program could not be executed.
const START_ERROR_CODE: i32 = 128;

/// Most that a terminal can hold (the kernel's `TTYB_DEFAULT_MEM_LIMIT` and its line discipline's buffer), in bytes.
const TERMINAL_BYTES: usize = 64 * 1024 + 4096;

/// What one read of a pipe gave.
enum Got {
    Bytes(usize),
    /// Nothing now.
    Empty,
    /// No writer is left.
    End,
}

impl Pod {
    pub(super) fn on_output(&mut self, serial: u64, stream: Stream) {
        match self.read_output(serial, stream) {
            Got::Bytes(_) | Got::Empty => {}
            Got::End => {
                self.close_stream(serial, stream);
                self.end_if_drained(serial);
            }
        }
    }

    fn read_output(&mut self, serial: u64, stream: Stream) -> Got {
        let Some(life) = self.containers.get_mut(&serial).and_then(|container| container.life.as_mut())
        else {
            return Got::Empty;
        };
        let Some(pipe) = life.pipes.of(stream) else { return Got::Empty };
        match read(pipe.as_fd(), &mut self.buffer[..READ_BYTES]) {
            Ok(0) => Got::End,
            Ok(length) => {
                let nanos = time::realtime_nanos();
                life.log.push(stream, &self.buffer[..length], nanos, &mut self.pen);
                self.copy_to_clients(serial, stream, length);
                Got::Bytes(length)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Got::Empty,
            Err(_) => Got::End,
        }
    }

    fn close_stream(&mut self, serial: u64, stream: Stream) {
        let Some(life) = self.containers.get_mut(&serial).and_then(|container| container.life.as_mut())
        else {
            return;
        };
        life.log.finish(stream, time::realtime_nanos(), &mut self.pen);
        if let Some(pipe) = life.pipes.of(stream).take() {
            let _ = self.poll.remove(pipe.as_fd());
        }
    }

    pub(super) fn close_output(&mut self, serial: u64) {
        self.close_stream(serial, Stream::Stdout);
        self.close_stream(serial, Stream::Stderr);
    }

    /// The first process was reaped. Kills the rest and waits for the cgroup and the pipes to be empty.
    pub(super) fn begin_drain(&mut self, serial: u64, start: Option<Asker>) {
        self.close_input(serial);
        let Some(container) = self.containers.get_mut(&serial) else { return };
        let Some(life) = &mut container.life else { return };
        // The kernel has emptied a PID namespace of the container's own. In any other, what is left would hold
        // the pipes and the cgroup; a cgroup that is gone holds nothing.
        if container.pid_namespace != PidNamespace::Own {
            life.kill_cgroup();
        }
        life.cgroup_events = life.cgroup.as_ref().and_then(|dir| CgroupEvents::open(dir.as_fd()));
        let token = Token::new(Kind::Cgroup, serial).pack();
        // Should it not be watchable, the time limit remains.
        let _ = life.cgroup_events.as_ref().map(|events| self.poll.add_priority(events, token));
        container.phase = Phase::Draining { until: Instant::now() + DRAIN_LIMIT, start };
        self.end_if_drained(serial);
    }

    /// Ends a container whose cgroup is empty. A pipe that somebody else still holds is read as far as it is
    /// filled now, at most one pipe's capacity, and closed.
    pub(super) fn end_if_drained(&mut self, serial: u64) {
        let Some(container) = self.containers.get(&serial) else { return };
        let (Phase::Draining { until, .. }, Some(life)) = (&container.phase, &container.life) else { return };
        let populated = life.cgroup_events.as_ref().is_some_and(CgroupEvents::populated);
        if populated && Instant::now() < *until {
            return;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut left = self.capacity(serial, stream);
            while left > 0 {
                match self.read_output(serial, stream) {
                    Got::Bytes(length) => left = left.saturating_sub(length),
                    Got::Empty | Got::End => break,
                }
            }
            self.close_stream(serial, stream);
        }
        self.end_clients_of(serial);
        self.end(serial);
    }

    /// What the pipe can hold; 0 when it is closed.
    fn capacity(&mut self, serial: u64, stream: Stream) -> usize {
        let Some(life) = self.containers.get_mut(&serial).and_then(|container| container.life.as_mut())
        else {
            return 0;
        };
        let Some(pipe) = life.pipes.of(stream) else { return 0 };
        fcntl(pipe.as_fd(), FcntlArg::F_GETPIPE_SZ)
            .map_or(TERMINAL_BYTES, |size| size.unsigned_abs() as usize)
    }

    pub(super) fn drain_overdue(&mut self) {
        let now = Instant::now();
        let overdue: Vec<u64> = self
            .containers
            .iter()
            .filter(|(_, one)| matches!(one.phase, Phase::Draining { until, .. } if until <= now))
            .map(|(serial, _)| *serial)
            .collect();
        for serial in overdue {
            self.end_if_drained(serial);
        }
    }

    /// All output is in the log: record, answers, event, in this order.
    fn end(&mut self, serial: u64) {
        let Some(container) = self.containers.get_mut(&serial) else { return };
        let Some(life) = container.life.take() else { return };
        let Phase::Draining { start, .. } = std::mem::replace(&mut container.phase, Phase::Ended) else {
            return;
        };
        life.unwatch(&self.poll);
        let Some(End { code: real, nanos, oom }) = life.end else { return };
        // A launch that failed ended by our own hand: its code says nothing about the program.
        let code = if start.is_some() && life.process.failure().is_some() { START_ERROR_CODE } else { real };
        let started_nanos = container.started_nanos;
        container.log_dropped = life.log.dropped();
        // Its space was reserved; should it fail all the same, the event and the next Hello still carry the exit.
        let oom_killed = oom.is_some();
        let oom_level = oom.map_or(0, |oom| oom.level);
        let entry = ExitRecord { code, nanos, started_nanos, oom_killed, oom_level };
        let _ = record::write(life.record.as_fd(), &entry);
        let exit = Exit { container: container.id.clone(), code, nanos, oom_killed, started_nanos, oom };
        container.exit = Some(exit.clone());
        let remove = container.remove;
        if let Some(asker) = start {
            let failure = life.process.failure().cloned();
            self.refuse(asker, failure.unwrap_or_else(|| died("start", real)));
        }
        match remove {
            Some(asker) => {
                self.containers.remove(&serial);
                self.reply(asker, Body::Done(Done {}), Vec::new());
            }
            None => self.announce(Body::Exited(exit)),
        }
    }
}
