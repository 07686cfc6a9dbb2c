//! The actor's container half: what is asked of a container, one thing at a time, and what becomes of it.

use std::{sync::Arc, time::Duration};

use crisp_monitor::wire;
use crisp_proto::runtime::v1::{
    self as cri,
    ContainerEventType::{
        ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
    },
};
use tokio::time::Instant;

use super::{Actor, Container, ContainerOp, CreateReply, Done, Reply, container_key};
use crate::{
    container::{create, remove, stop, update},
    error::{Class, RequestError},
    id::Id,
    node::blocking,
    pod::{
        policy::{self, Verdict},
        teardown,
    },
    record::{self, ContainerPhase, ContainerRecord, Exit, OomRecord},
    time::now_nanos,
};

impl Actor {
    pub(super) fn create(&mut self, config: cri::ContainerConfig, reply: CreateReply) {
        let key = container_key(&config);
        if let Some((id, container)) = self.containers.iter_mut().find(|(_, one)| one.key == key) {
            if let Some(waiting) = &mut container.creating {
                waiting.push(reply);
            } else if matches!(container.slot.current, Some(ContainerOp::Remove)) {
                // What it shows now, an end that the removal made, is what no order of the two calls would show.
                container.successors.push((config, reply));
            } else {
                let id = id.clone();
                let _ = reply.send(self.repeated(&id, &key));
            }
            return;
        }
        if !self.usable() {
            let _ = reply.send(Err(RequestError::precondition(format!(
                "create container {key}: sandbox {} is not ready",
                self.pod.id
            ))));
            return;
        }
        let id = match Id::random() {
            Ok(id) => id,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let mut container = Container::new(key, false);
        container.creating = Some(vec![reply]);
        self.containers.insert(id.clone(), container);
        let (node, view) = (self.node.clone(), self.pod.view());
        self.work(async move {
            let result = Box::pin(create::container(&node, &view, &id, config)).await;
            Done::Created(id, result.map(Box::new))
        });
    }

    /// A Create whose name is taken: a client that retries gets the container that its first call made; one
    /// whose container has been started since asks for a second one under the same name, which cannot be.
    fn repeated(&self, id: &Id, key: &str) -> Result<Id, RequestError> {
        match self.pod.container(id)?.phase {
            ContainerPhase::Created => Ok(id.clone()),
            _ => Err(RequestError::new(
                Class::Exists,
                format!("failed to reserve container name {key:?}: name {key:?} is reserved for {id:?}"),
            )),
        }
    }

    pub(super) fn created(&mut self, id: &Id, result: Result<Box<ContainerRecord>, RequestError>) {
        let answer = match result {
            Ok(record) => {
                self.node.adopt_container(id, &self.pod);
                self.pod.lock().containers.insert(id.clone(), Arc::new(*record));
                self.tell(id, ContainerCreatedEvent);
                Ok(id.clone())
            }
            Err(error) => Err(error),
        };
        let (waiting, early) = match self.containers.get_mut(id) {
            Some(container) => {
                container.turn += 1;
                (container.creating.take(), container.early.take())
            }
            None => (None, None),
        };
        if let Some(exit) = early {
            self.container_exited(&exit);
        }
        if answer.is_err() && !self.keep_half_made(id) {
            // What was queued behind a creation that failed has lost its object: the senders are dropped.
            self.containers.remove(id);
        }
        for reply in waiting.into_iter().flatten() {
            let _ = reply.send(answer.clone());
        }
        self.next_container(id);
    }

    /// A container whose creation failed and that could not be undone has its record still, which goes last. It is kept,
    /// as UNKNOWN and with its name taken, until somebody removes it.
    fn keep_half_made(&self, id: &Id) -> bool {
        let record = match record::read::<ContainerRecord>(&self.dir.container_record(id)) {
            Ok(Some(record)) => ContainerRecord { phase: ContainerPhase::Creating, ..record },
            Ok(None) => return false,
            Err(error) => {
                tracing::error!(container = %id, %error, "what is left of it cannot be listed");
                return false;
            }
        };
        self.node.adopt_container(id, &self.pod);
        self.pod.lock().containers.insert(id.clone(), Arc::new(record));
        true
    }

    pub(super) fn submit_container(&mut self, id: &Id, op: ContainerOp, reply: Reply) {
        let Some(container) = self.containers.get_mut(id) else {
            let _ = reply.send(Err(RequestError::not_found("container", id.as_str())));
            return;
        };
        if container.creating.is_some() {
            container.slot.queue.push_back((op, reply));
            self.watch_turn(id);
            return;
        }
        match (&container.slot.current, &op) {
            (None, _) => self.begin_container(id, op, reply),
            // The signal was sent; a second Stop only brings the end forward.
            (Some(ContainerOp::Stop(_)), ContainerOp::Stop(grace)) => {
                container.hurry(*grace);
                container.slot.joined.push(reply);
            }
            (Some(ContainerOp::Remove), ContainerOp::Remove | ContainerOp::Stop(_)) => {
                container.slot.joined.push(reply);
            }
            (Some(current), _) => {
                let stopping = matches!(current, ContainerOp::Stop(_));
                if stopping && matches!(op, ContainerOp::Remove) {
                    container.hurry(Duration::ZERO);
                }
                container.slot.queue.push_back((op, reply));
                if !stopping {
                    self.watch_turn(id);
                }
            }
        }
    }

    fn begin_container(&mut self, id: &Id, op: ContainerOp, reply: Reply) {
        let record = match self.pod.container(id) {
            Ok(record) => record,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        match policy::container(&op, &record.phase, self.usable()) {
            Verdict::Nothing => {
                let _ = reply.send(Ok(()));
            }
            Verdict::Refuse(error) => {
                let _ = reply.send(Err(error.at(format_args!("container {}", id.short(12)))));
            }
            Verdict::Go => {
                let Some(container) = self.containers.get_mut(id) else { return };
                container.slot.current = Some(op.clone());
                container.slot.joined.push(reply);
                container.turn += 1;
                self.begin_work(id.clone(), op, record);
            }
        }
    }

    fn begin_work(&mut self, id: Id, op: ContainerOp, record: Arc<ContainerRecord>) {
        let (node, link) = (self.node.clone(), self.pod.view().link);
        let Some(container) = self.containers.get(&id) else { return };
        let ended = container.ended.subscribe();
        match op {
            ContainerOp::Start => {
                self.work(async move {
                    let result = create::start(link.as_ref(), &record).await;
                    Done::Started(id, result)
                });
            }
            ContainerOp::Stop(grace) => {
                container.deadline.send_replace(Instant::now() + grace);
                let deadline = container.deadline.subscribe();
                self.work(async move {
                    let graceful = !grace.is_zero();
                    let link = link.as_ref();
                    let result = stop::container(&node, link, &record, graceful, deadline, ended).await;
                    Done::Stopped(id, result)
                });
            }
            ContainerOp::Update(wanted) => {
                self.work(async move {
                    let result = update::resources(&node, &record, *wanted).await;
                    Done::Updated(id, result.map(Box::new))
                });
            }
            ContainerOp::Remove => {
                self.work(async move {
                    let result = remove::container(&node, link.as_ref(), &record, ended).await;
                    Done::Removed(id, result)
                });
            }
        }
    }

    fn next_container(&mut self, id: &Id) {
        loop {
            let Some(container) = self.containers.get_mut(id) else { return };
            if container.slot.current.is_some() {
                return;
            }
            let Some((op, reply)) = container.slot.queue.pop_front() else { return };
            self.begin_container(id, op, reply);
        }
    }

    pub(super) fn finish_container(&mut self, id: &Id, result: &Result<(), RequestError>) {
        if let Some(container) = self.containers.get_mut(id) {
            container.slot.finish(result);
        }
        self.next_container(id);
    }

    /// Nothing of the container runs any more. A monitor that is stuck or was killed has not told how it ended.
    pub(super) fn stopped(&mut self, id: &Id, result: &Result<(), RequestError>) {
        if result.is_ok()
            && let Ok(record) = self.pod.container(id)
            && let ContainerPhase::Running { .. } = record.phase
        {
            let exit = teardown::exit_without_monitor(&self.node, &self.dir, &record);
            if let Err(error) = self.end(id, exit) {
                tracing::error!(container = %id, %error, "exit not recorded");
            }
            self.tell_end(id);
        }
        self.finish_container(id, result);
    }

    pub(super) fn started(&mut self, id: &Id, result: Result<i64, RequestError>) {
        let result = match result {
            Ok(started_nanos) => self.runs(id, started_nanos),
            Err(error) => {
                let exit = policy::start_error(&error, now_nanos());
                if let Err(error) = self.failed_to_start(id, exit) {
                    tracing::error!(container = %id, %error, "failed start not recorded");
                }
                self.tell_end(id);
                Err(error)
            }
        };
        self.finish_container(id, &result);
    }

    /// A short-lived container's exit may be known before the reply to its start: the exit stands.
    pub(super) fn runs(&self, id: &Id, started_nanos: i64) -> Result<(), RequestError> {
        if let ContainerPhase::Exited(exit) = &self.pod.container(id)?.phase {
            if exit.started_nanos == 0 {
                self.tell(id, ContainerStartedEvent);
                self.tell(id, ContainerStoppedEvent);
            }
            return Ok(());
        }
        let recorded =
            self.change_container(id, |record| record.phase = ContainerPhase::Running { started_nanos });
        self.tell(id, ContainerStartedEvent);
        recorded
    }

    fn failed_to_start(&self, id: &Id, exit: Exit) -> Result<(), RequestError> {
        if let ContainerPhase::Exited(exit) = &self.pod.container(id)?.phase
            && exit.started_nanos != 0
        {
            return Ok(());
        }
        let recorded = self.change_container(id, |record| record.phase = ContainerPhase::Exited(exit));
        self.tell(id, ContainerStoppedEvent);
        recorded
    }

    /// As [`Self::end`], with what the monitor knows besides.
    fn end_reported(&self, id: &Id, report: &wire::Exit) -> Result<(), RequestError> {
        if let Some(oom) = &report.oom {
            let oom = OomRecord::from(oom);
            self.change_container(id, |record| record.oom = Some(oom))?;
        }
        self.end(id, policy::exit(report))
    }

    /// A container is over: its record says so, and who listens is told, once and after its start.
    pub(super) fn end(&self, id: &Id, exit: Exit) -> Result<(), RequestError> {
        if let ContainerPhase::Exited(_) = self.pod.container(id)?.phase {
            return Ok(());
        }
        let started = exit.started_nanos != 0;
        let recorded = self.change_container(id, |record| record.phase = ContainerPhase::Exited(exit));
        let current = self.containers.get(id).and_then(|container| container.slot.current.as_ref());
        match (current, started) {
            // The reply to the start is still to come; with it comes why it failed.
            (Some(ContainerOp::Start), false) => return recorded,
            (Some(ContainerOp::Start), true) => self.tell(id, ContainerStartedEvent),
            _ => {}
        }
        self.tell(id, ContainerStoppedEvent);
        recorded
    }

    pub(super) fn updated(
        &mut self,
        id: &Id,
        result: Result<Box<cri::LinuxContainerResources>, RequestError>,
    ) {
        let result = result.and_then(|resources| {
            self.change_container(id, |record| {
                record.config.linux.get_or_insert_default().resources = Some(*resources);
            })
        });
        self.finish_container(id, &result);
    }

    pub(super) fn removed(&mut self, id: &Id, result: &Result<(), RequestError>) {
        let successors = self.containers.get_mut(id).map(|one| std::mem::take(&mut one.successors));
        if result.is_ok() {
            self.node.forget_container(id);
            self.pod.lock().containers.remove(id);
            self.tell(id, ContainerDeletedEvent);
            if let Some(mut container) = self.containers.remove(id) {
                container.slot.finish(result);
                for (op, reply) in container.slot.queue.drain(..) {
                    let gone = matches!(op, ContainerOp::Stop(_) | ContainerOp::Remove);
                    let error = RequestError::not_found("container", id.as_str());
                    let _ = reply.send(if gone { Ok(()) } else { Err(error) });
                }
            }
        }
        self.finish_container(id, result);
        for (config, reply) in successors.into_iter().flatten() {
            self.create(config, reply);
        }
    }

    /// The OOM killer was at work; the container may run on.
    pub(super) fn oom_killed(&mut self, report: &wire::OomReport) {
        let Some(oom) = &report.oom else { return };
        let oom = OomRecord::from(oom);
        tracing::warn!(container = report.container, kills = oom.kills, limit = %oom.level, "killed for memory");
        let Some(id) = self.containers.keys().find(|id| id.as_str() == report.container).cloned() else {
            return;
        };
        // One whose creation is not applied yet gets it with its end, or with the next kill.
        if self.pod.container(&id).is_ok()
            && let Err(error) = self.change_container(&id, |record| record.oom = Some(oom))
        {
            tracing::error!(container = %id, %error, "OOM kill not recorded");
        }
    }

    /// The monitor says that a container has ended; its log is complete by then.
    pub(super) fn container_exited(&mut self, report: &wire::Exit) {
        let Some(id) = self.containers.keys().find(|id| id.as_str() == report.container).cloned() else {
            return;
        };
        if let Some(container) = self.containers.get_mut(&id)
            && container.creating.is_some()
        {
            // Killed from outside between the monitor's answer and ours.
            container.early = Some(report.clone());
            return;
        }
        if let Err(error) = self.end_reported(&id, report) {
            tracing::error!(container = %id, %error, "exit not recorded");
        }
        tracing::info!(container = %id, code = report.code, oom = report.oom_killed, "container ended");
        self.tell_end(&id);
        self.drop_cgroup(&id);
    }

    /// An ended container needs its cgroup no more, and kubelet wants to remove the pod's own one, which it
    /// cannot while there is something in it.
    fn drop_cgroup(&self, id: &Id) {
        let Ok(record) = self.pod.container(id) else { return };
        let node = self.node.clone();
        tokio::spawn(blocking(move || {
            if let Err(error) = node.cgroups.remove(&record.cgroup) {
                tracing::warn!(container = %record.id, %error, "its cgroup stays until it is removed");
            }
            Ok(())
        }));
    }

    pub(super) fn tell_end(&self, id: &Id) {
        if let Some(container) = self.containers.get(id) {
            container.ended.send_replace(true);
        }
    }
}
