//! What a daemon asks for. Every request gets exactly one answer: now, or when the kernel has said the rest.

use std::os::fd::OwnedFd;

use crisp_monitor::wire::{
    Body, Call, ContainerRef, Done, FDS_LOST, Failure, FailureKind, PodState, Request, Shutdown, Signal,
    VERSION, WireError,
};

use super::{Ending, Pod};
use crate::container::{Asker, Phase};
use crate::refusal::{self, internal, refuse};

/// An answer that is known at once.
pub(super) struct Answer {
    pub(super) body: Body,
    pub(super) fds: Vec<OwnedFd>,
}

impl Answer {
    pub(super) fn of(body: Body) -> Option<Self> {
        Some(Answer { body, fds: Vec::new() })
    }

    pub(super) fn done() -> Option<Self> {
        Answer::of(Body::Done(Done {}))
    }
}

/// Descriptors of a request that have not all arrived (EMFILE while receiving). Nothing of it can be done then, but
/// it can be answered.
pub(super) struct FdsLost;

/// `Ok(None)`: the answer follows later.
pub(super) type Served = Result<Option<Answer>, Failure>;

impl Pod {
    pub(super) fn on_request(
        &mut self,
        connection: u64,
        request: Result<Request, WireError>,
        fds: Result<Vec<OwnedFd>, FdsLost>,
    ) {
        let (id, served) = match request {
            Ok(Request { id, call: Some(call) }) => match fds {
                Ok(fds) => (id, self.serve(Asker { connection, request: id }, call, fds)),
                Err(FdsLost) => (id, Err(refuse(FailureKind::Internal, FDS_LOST))),
            },
            Err(WireError::Unknown { id }) | Ok(Request { id, call: None }) => {
                let text = format!("request {id}: a call that protocol version {VERSION} does not know");
                (id, Err(refuse(FailureKind::Invalid, text)))
            }
            // Without an id there is nobody to answer: the peer does not speak this protocol.
            Err(WireError::Malformed(_) | WireError::TooLarge { .. }) => {
                return self.forget_connection(connection);
            }
        };
        let asker = Asker { connection, request: id };
        match served {
            Ok(Some(answer)) => self.reply(asker, answer.body, answer.fds),
            Ok(None) => {}
            Err(failure) => self.refuse(asker, failure),
        }
    }

    fn serve(&mut self, asker: Asker, call: Call, fds: Vec<OwnedFd>) -> Served {
        match call {
            Call::Hello(_) => Ok(self.hello(asker)),
            Call::StartInit(call) => self.start_init(asker, call, fds),
            Call::Create(call) => self.create(asker, call, fds),
            Call::Start(ContainerRef { container }) => self.start(asker, &container),
            Call::Signal(call) => self.signal(&call),
            Call::Exec(call) => self.exec(asker, call, fds),
            Call::ReopenLog(ContainerRef { container }) => self.reopen_log(&container),
            Call::Remove(ContainerRef { container }) => self.remove(asker, &container),
            Call::Shutdown(call) => self.shutdown(asker, call),
            Call::RootFd(ContainerRef { container }) => self.root_fd(&container),
            Call::Placed(call) => self.placed(asker, &call.container, fds),
            Call::Attach(call) => self.attach(call, fds),
            Call::Resize(call) => self.resize(&call),
        }
    }

    fn hello(&mut self, asker: Asker) -> Option<Answer> {
        if let Some(connection) = self.connections.get_mut(&asker.connection) {
            connection.subscribed = true;
        }
        Answer::of(Body::Pod(PodState {
            version: VERSION,
            pid: nix::unistd::getpid().as_raw(),
            init: self.init.as_ref().filter(|init| init.is_ready()).map(|init| init.process.pid),
            containers: self.containers.values().map(|container| container.state()).collect(),
        }))
    }

    fn start(&mut self, asker: Asker, id: &str) -> Served {
        self.refuse_when_ending()?;
        let serial = self.find(id)?;
        self.check_target(serial)?;
        let Some(container) = self.containers.get_mut(&serial) else { return Ok(None) };
        let (Phase::Created, None, Some(life)) = (&container.phase, container.remove, &mut container.life)
        else {
            return Err(wrong_phase(id, &container.phase, "start"));
        };
        life.process.go().map_err(|error| refusal::launch(&error))?;
        container.phase = Phase::Starting(asker);
        Ok(None)
    }

    /// A container in the PID namespace of another one starts only while that one runs. One that cannot start any more
    /// ends now.
    fn check_target(&mut self, serial: u64) -> Result<(), Failure> {
        let Some(container) = self.containers.get(&serial) else { return Ok(()) };
        let (Some(target), Phase::Created, Some(life)) =
            (container.target, &container.phase, &container.life)
        else {
            return Ok(());
        };
        if matches!(self.containers.get(&target).map(|target| &target.phase), Some(Phase::Running)) {
            return Ok(());
        }
        let _ = life.process.signal(libc::SIGKILL);
        let text = format!("start container {}: its target container has exited", container.id);
        Err(refuse(FailureKind::NotFound, text))
    }

    fn signal(&mut self, call: &Signal) -> Served {
        let id = &call.container;
        let serial = self.find(id)?;
        if !(1..=64).contains(&call.signal) {
            let text = format!("signal container {id}: {} is no signal number", call.signal);
            return Err(refuse(FailureKind::Invalid, text));
        }
        // A first process that was reaped has ended: nothing to do.
        let Some(life) = self.containers.get(&serial).and_then(|container| container.life.as_ref()) else {
            return Ok(Answer::done());
        };
        match life.process.signal(call.signal) {
            Ok(()) => Ok(Answer::done()),
            Err(error) if error.errno == nix::errno::Errno::ESRCH => Ok(Answer::done()),
            Err(error) => Err(internal(format!("signal container {id}"), error.errno)),
        }
    }

    fn reopen_log(&mut self, id: &str) -> Served {
        let serial = self.find(id)?;
        let Some(container) = self.containers.get_mut(&serial) else { return Ok(None) };
        let (Phase::Running, Some(life)) = (&container.phase, &mut container.life) else {
            return Err(wrong_phase(id, &container.phase, "reopen the log"));
        };
        life.log.reopen().map_err(|error| refusal::log(&error))?;
        Ok(Answer::done())
    }

    fn remove(&mut self, asker: Asker, id: &str) -> Served {
        let serial = self.find(id)?;
        let Some(container) = self.containers.get_mut(&serial) else { return Ok(None) };
        match (&container.phase, &container.life) {
            (Phase::Ended, _) => {
                self.containers.remove(&serial);
                Ok(Answer::done())
            }
            (Phase::Held | Phase::Preparing(_) | Phase::Created, Some(life))
                if container.remove.is_none() =>
            {
                // The pidfd for the process itself, the cgroup for what it may have made.
                let killed = life.process.signal(libc::SIGKILL);
                life.kill_cgroup();
                if let Err(error) = killed
                    && error.errno != nix::errno::Errno::ESRCH
                {
                    return Err(internal(format!("remove container {id}: kill"), error.errno));
                }
                container.remove = Some(asker);
                Ok(None)
            }
            (phase, _) => Err(wrong_phase(id, phase, "remove")),
        }
    }

    fn shutdown(&mut self, asker: Asker, call: Shutdown) -> Served {
        self.refuse_when_ending()?;
        let alive = self.containers.values().find(|container| container.life.is_some());
        if let Some(container) = alive.filter(|_| !call.kill) {
            return Err(wrong_phase(&container.id, &container.phase, "shut down"));
        }
        self.kill_all();
        self.ending = Some(Ending::Asked(asker));
        Ok(None)
    }

    /// Kills everything that was launched; the ends are reported as they come.
    pub(super) fn kill_all(&mut self) {
        for container in self.containers.values_mut() {
            let Some(life) = &mut container.life else { continue };
            life.process.kill(&self.poll);
            life.kill_cgroup();
        }
        for exec in self.execs.values_mut() {
            exec.process.kill(&self.poll);
        }
        // Whatever is left in the pod's PID namespace dies with its init.
        if let Some(init) = &self.init {
            let _ = init.process.signal(libc::SIGKILL);
        }
    }

    fn root_fd(&mut self, id: &str) -> Served {
        let serial = self.find(id)?;
        let Some(container) = self.containers.get(&serial) else { return Ok(None) };
        let root = container.root.try_clone().map_err(|error| {
            let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default());
            internal(format!("root of container {id}: duplicate"), errno)
        })?;
        Ok(Some(Answer { body: Body::Done(Done {}), fds: vec![root] }))
    }

    pub(super) fn refuse_when_ending(&self) -> Result<(), Failure> {
        match self.ending {
            Some(Ending::Asked(_)) => {
                Err(refuse(FailureKind::Precondition, "the pod's monitor is shutting down"))
            }
            Some(Ending::InitDied) => {
                Err(refuse(FailureKind::Precondition, "the pod's init has died, and the pod ends with it"))
            }
            None => Ok(()),
        }
    }
}

pub(super) fn wrong_phase(id: &str, phase: &Phase, what: &str) -> Failure {
    refuse(FailureKind::Precondition, format!("{what}: container {id} is {}", phase.name()))
}
