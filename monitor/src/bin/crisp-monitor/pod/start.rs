//! Starting things: the pod's init, a container up to its `execve`, an exec'd process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crisp_monitor::wire::{Body, Create, Exec, Failure, FailureKind, PidNamespace, StartInit};
use crisp_runtime::launch::{self, Child, PidNs, Prepared, Stdio};

use super::request::{Answer, Served, wrong_phase};
use super::{ExecProcess, Init, Pod, sys_failure};
use crate::container::{Asker, Container, Input, Life, Phase, Pipes};
use crate::launched::Launched;
use crate::log::ContainerLog;
use crate::oom::OomWatch;
use crate::process;
use crate::refusal::{self, internal, refuse};
use crate::stdio;
use crate::token::{Kind, Token};

/// Containers a pod may hold, ended ones included: their states must fit one packet.
const CONTAINERS_MAX: usize = 250;
/// Longest line limit a daemon can ask for; each stream may keep that much in memory.
const LINE_BYTES_MAX: u32 = 1024 * 1024;
const NAME_BYTES_MAX: usize = 64;

impl Pod {
    pub(super) fn start_init(&mut self, asker: Asker, call: StartInit, fds: Vec<OwnedFd>) -> Served {
        self.refuse_when_ending()?;
        if self.init.is_some() {
            return Err(refuse(FailureKind::Exists, "the pod's init: started already"));
        }
        let mut fds = fds;
        let user = if call.user_namespace { fds.pop() } else { None };
        if call.user_namespace && user.is_none() {
            return Err(refuse(FailureKind::Invalid, "start init: no user namespace came along"));
        }
        let cgroup = match call.hold {
            true => exactly(fds, "start init").map(|[]: [OwnedFd; 0]| None)?,
            false => exactly(fds, "start init").map(|[cgroup]| Some(cgroup))?,
        };
        let user = user.as_ref().map(AsFd::as_fd);
        let child = launch::pod_init(cgroup.as_ref().map(AsFd::as_fd), user, call.oom_score_adj)
            .map_err(|error| refusal::launch(&error))?;
        let serial = self.serial();
        let process = self.watch_child(child, Kind::InitPid, Kind::InitReport, serial)?;
        let pid = process.pid;
        self.init = Some(Init { serial, process, asker: (!call.hold).then_some(asker), held: call.hold });
        Ok(call.hold.then_some(Answer { body: Body::Held(pid), fds: Vec::new() }))
    }

    /// Lets a held process go on, which is in its cgroup now.
    pub(super) fn placed(&mut self, asker: Asker, id: &str, fds: Vec<OwnedFd>) -> Served {
        self.refuse_when_ending()?;
        let [cgroup] = exactly(fds, "placed")?;
        if id.is_empty() {
            let Some(init) = self.init.as_mut().filter(|init| init.held) else {
                return Err(refuse(FailureKind::Precondition, "placed: the pod's init is not held"));
            };
            init.process.placed().map_err(|error| refusal::launch(&error))?;
            (init.held, init.asker) = (false, Some(asker));
            return Ok(None);
        }
        let serial = self.find(id)?;
        let Some(container) = self.containers.get_mut(&serial) else { return Ok(None) };
        let (Phase::Held, None, Some(life)) = (&container.phase, container.remove, &mut container.life)
        else {
            return Err(wrong_phase(id, &container.phase, "placed"));
        };
        life.cgroup = Some(cgroup);
        life.process.placed().map_err(|error| refusal::launch(&error))?;
        container.phase = Phase::Preparing(asker);
        self.watch_oom(serial);
        Ok(None)
    }

    /// Begins to watch for OOM kills; a cgroup that cannot be watched is looked at when the container ends.
    fn watch_oom(&mut self, serial: u64) {
        let Some(life) = self.containers.get_mut(&serial).and_then(|one| one.life.as_mut()) else { return };
        life.oom = life.cgroup.as_ref().and_then(|dir| OomWatch::begin(dir.as_fd()));
        if let Some(watch) = &life.oom {
            let _ = self.poll.add_priority(watch, Token::new(Kind::Oom, serial).pack());
        }
    }

    pub(super) fn create(&mut self, asker: Asker, call: Create, fds: Vec<OwnedFd>) -> Served {
        self.refuse_when_ending()?;
        let pid_namespace = self.check_create(&call)?;
        let mut fds = fds.into_iter();
        let (plan, cgroup) = (fds.next(), if call.hold { None } else { fds.next() });
        let (Some(plan), true, Some(record)) = (plan, call.hold || cgroup.is_some(), fds.next()) else {
            return Err(refuse(
                FailureKind::Invalid,
                "create: a plan, a cgroup and an exit record must come along",
            ));
        };
        let mounts: Vec<OwnedFd> = fds.collect();
        let Some(Ok(root)) = mounts.first().map(OwnedFd::try_clone) else {
            return Err(refuse(FailureKind::Invalid, "create: no root mount came along"));
        };
        let prepared = self.prepare(&plan, mounts)?;
        let target = match pid_namespace {
            PidNamespace::Target => Some(self.find_target(&call.target)?),
            PidNamespace::Own | PidNamespace::Pod | PidNamespace::Host => None,
        };
        let terminal = prepared.has_terminal();
        let made = if terminal {
            // The pipes follow with the terminal.
            stdio::nothing().map(|stdio| (stdio, Pipes::default()))
        } else {
            stdio::container(call.stdin)
        };
        let (stdio, pipes) = made.map_err(|error| sys_failure("stdio", &error))?;
        let input = Input { wanted: call.stdin, once: call.stdin_once, ending: false };
        let log = open_log(&call)?;
        let child = match self.launch(&prepared, (pid_namespace, target), cgroup.as_ref(), stdio) {
            Ok(child) => child,
            Err(failure) => {
                log.discard();
                return Err(failure);
            }
        };

        let serial = self.serial();
        let process = self.watch_child(child, Kind::ContainerPid, Kind::ContainerReport, serial)?;
        for (pipe, kind) in [(&pipes.stdout, Kind::Stdout), (&pipes.stderr, Kind::Stderr)] {
            let Some(pipe) = pipe else { continue };
            if let Err(error) = self.watch(pipe.as_fd(), kind, serial) {
                process.give_up();
                return Err(sys_failure("watch the output", &error));
            }
        }
        let pid = process.pid;
        let life = Life {
            process,
            cgroup,
            cgroup_events: None,
            record,
            pipes,
            terminal,
            input,
            log,
            oom: None,
            end: None,
        };
        let container = Container {
            id: call.container,
            phase: if call.hold { Phase::Held } else { Phase::Preparing(asker) },
            pid,
            pid_namespace,
            target,
            root,
            started_nanos: 0,
            life: Some(life),
            exit: None,
            log_dropped: 0,
            remove: None,
        };
        self.containers.insert(serial, container);
        self.watch_oom(serial);
        Ok(call.hold.then_some(Answer { body: Body::Held(pid), fds: Vec::new() }))
    }

    fn prepare(&self, plan: &OwnedFd, mounts: Vec<OwnedFd>) -> Result<Prepared, Failure> {
        let mut prepared = Prepared::decode(plan.as_fd(), mounts)
            .map_err(|error| refuse(FailureKind::Invalid, refusal::chain(&error)))?;
        let limit = process::open_files(self.open_files).map_err(|errno| internal("getrlimit", errno))?;
        prepared.limit_by_default(limit);
        Ok(prepared)
    }

    fn check_create(&self, call: &Create) -> Result<PidNamespace, Failure> {
        check_name("container", &call.container)?;
        if self.find(&call.container).is_ok() {
            let text = format!("container {}: created already", call.container);
            return Err(refuse(FailureKind::Exists, text));
        }
        if self.containers.len() >= CONTAINERS_MAX {
            let text = format!("the pod holds {CONTAINERS_MAX} containers: remove ended ones first");
            return Err(refuse(FailureKind::Precondition, text));
        }
        if call.log_line_bytes > LINE_BYTES_MAX {
            let text = format!("log_line_bytes {}: at most {LINE_BYTES_MAX}", call.log_line_bytes);
            return Err(refuse(FailureKind::Invalid, text));
        }
        PidNamespace::try_from(call.pid).map_err(|_| {
            refuse(FailureKind::Invalid, format!("pid {}: not a PID namespace that is known", call.pid))
        })
    }

    fn launch(
        &self,
        prepared: &Prepared,
        pid: (PidNamespace, Option<u64>),
        cgroup: Option<&OwnedFd>,
        stdio: Stdio,
    ) -> Result<Child, Failure> {
        let pid = self.pid_namespace(pid.0, pid.1)?;
        launch::start(prepared, pid, cgroup.map(AsFd::as_fd), stdio).map_err(|error| refusal::launch(&error))
    }

    fn pid_namespace(&self, kind: PidNamespace, target: Option<u64>) -> Result<PidNs<'_>, Failure> {
        match kind {
            PidNamespace::Own => Ok(PidNs::Own),
            PidNamespace::Host => Ok(PidNs::Host),
            PidNamespace::Pod => {
                let ready = self.init.as_ref().filter(|init| init.is_ready());
                let pidfd = ready.and_then(|init| init.process.pidfd()).ok_or_else(|| {
                    refuse(FailureKind::Precondition, "the pod's shared PID namespace has no init")
                })?;
                Ok(PidNs::Join(pidfd))
            }
            PidNamespace::Target => {
                let target = target.and_then(|serial| self.containers.get(&serial));
                match target.map(|target| (target.pid_namespace, target.target, &target.life)) {
                    // The first process of its own namespace, held by its pidfd: no number is looked up.
                    Some((PidNamespace::Own, _, Some(life))) => life
                        .process
                        .pidfd()
                        .map(PidNs::Target)
                        .ok_or_else(|| refuse(FailureKind::NotFound, "gone")),
                    // One that has joined another namespace itself.
                    Some((kind, target, Some(_))) => self.pid_namespace(kind, target),
                    _ => Err(refuse(FailureKind::NotFound, "the target container has exited")),
                }
            }
        }
    }

    /// The container whose PID namespace is to be joined: one of this pod that runs.
    pub(super) fn find_target(&self, id: &str) -> Result<u64, Failure> {
        let serial = self
            .find(id)
            .map_err(|_| refuse(FailureKind::NotFound, format!("target container {id}: not in this pod")))?;
        match self.containers.get(&serial).map(|target| &target.phase) {
            Some(Phase::Running) => Ok(serial),
            phase => {
                let state = phase.map_or("gone", Phase::name);
                Err(refuse(FailureKind::NotFound, format!("target container {id} is {state}, not running")))
            }
        }
    }

    pub(super) fn exec(&mut self, asker: Asker, call: Exec, fds: Vec<OwnedFd>) -> Served {
        self.refuse_when_ending()?;
        check_name("exec", &call.exec)?;
        if self.execs.values().any(|exec| exec.name == call.exec) {
            return Err(refuse(FailureKind::Exists, format!("exec {}: runs already", call.exec)));
        }
        let container = self.find(&call.container)?;
        let Some(container) = self.containers.get(&container) else { return Ok(None) };
        let (Phase::Running, Some(life)) = (&container.phase, &container.life) else {
            return Err(wrong_phase(&call.container, &container.phase, "exec"));
        };
        let (cgroup, prepared, stdio) = self.prepare_exec(fds)?;
        let Some(target) = life.process.pidfd() else {
            return Err(wrong_phase(&call.container, &container.phase, "exec"));
        };
        let child = launch::exec(&prepared, target, cgroup.as_fd(), stdio)
            .map_err(|error| refusal::launch(&error))?;
        let serial = self.serial();
        let process = self.watch_child(child, Kind::ExecPid, Kind::ExecReport, serial)?;
        self.execs
            .insert(serial, ExecProcess { name: call.exec, process, asker: Some(asker), terminal: None });
        Ok(None)
    }

    fn prepare_exec(&self, mut fds: Vec<OwnedFd>) -> Result<(OwnedFd, Prepared, Stdio), Failure> {
        let rest = fds.split_off(fds.len().min(2));
        let [plan, cgroup] = exactly(fds, "exec")?;
        let prepared = self.prepare(&plan, Vec::new())?;
        let stdio = if prepared.has_terminal() {
            let [] = exactly(rest, "exec with a terminal, beside the plan and the cgroup")?;
            stdio::nothing().map_err(|error| sys_failure("stdio", &error))?
        } else {
            let [stdin, stdout, stderr] = exactly(rest, "exec, beside the plan and the cgroup")?;
            Stdio { stdin, stdout, stderr }
        };
        Ok((cgroup, prepared, stdio))
    }

    /// Waits for a child's reports and its end; one that cannot be watched is killed and reaped.
    fn watch_child(&self, child: Child, pid: Kind, report: Kind, serial: u64) -> Result<Launched, Failure> {
        let mut process = Launched::new(child);
        match process.watch(&self.poll, Token::new(report, serial).pack(), Token::new(pid, serial).pack()) {
            Ok(()) => Ok(process),
            Err(error) => {
                process.give_up();
                Err(sys_failure("watch the process", &error))
            }
        }
    }
}

fn open_log(call: &Create) -> Result<ContainerLog, Failure> {
    let limit = call.log_line_bytes as usize;
    ContainerLog::open(Path::new(&call.log_dir), Path::new(&call.log_path), limit)
        .map_err(|error| refusal::log(&error))
}

pub(super) fn check_name(what: &str, name: &str) -> Result<(), Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        let text = format!("{what} name: 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes or underscores");
        return Err(refuse(FailureKind::Invalid, text));
    }
    Ok(())
}

fn exactly<const N: usize>(fds: Vec<OwnedFd>, what: &str) -> Result<[OwnedFd; N], Failure> {
    let came = fds.len();
    fds.try_into()
        .map_err(|_| refuse(FailureKind::Invalid, format!("{what}: {came} descriptors came along, not {N}")))
}
