//! The actor's container half: what is asked of a container, one thing at a time, and what becomes of it.

use std::{sync::Arc, time::Duration};

use crisp_monitor::wire;
use crisp_proto::runtime::v1 as cri;
use tokio::{sync::oneshot, time::Instant};

use super::{Actor, Container, ContainerOp, Done, Reply, container_key};
use crate::{
    container::{create, remove, stop, update},
    error::{Class, RequestError},
    id::Id,
    node::blocking,
    pod::policy::{self, Verdict},
    record::{ContainerPhase, ContainerRecord},
    time::now_nanos,
};

impl Actor {
    pub(super) fn create(
        &mut self,
        config: cri::ContainerConfig,
        reply: oneshot::Sender<Result<Id, RequestError>>,
    ) {
        let key = container_key(&config);
        if let Some((id, container)) = self.containers.iter_mut().find(|(_, one)| one.key == key) {
            if let Some(waiting) = &mut container.creating {
                waiting.push(reply);
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
                Ok(id.clone())
            }
            Err(error) => Err(error),
        };
        let waiting = self.containers.get_mut(id).and_then(|container| container.creating.take());
        if answer.is_err() {
            // What was queued behind a creation that failed has lost its object: the senders are dropped.
            self.containers.remove(id);
        }
        for reply in waiting.into_iter().flatten() {
            let _ = reply.send(answer.clone());
        }
        self.next_container(id);
    }

    pub(super) fn submit_container(&mut self, id: &Id, op: ContainerOp, reply: Reply) {
        let Some(container) = self.containers.get_mut(id) else {
            let _ = reply.send(Err(RequestError::not_found("container", id.as_str())));
            return;
        };
        if container.creating.is_some() {
            container.slot.queue.push_back((op, reply));
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
                if matches!((current, &op), (ContainerOp::Stop(_), ContainerOp::Remove)) {
                    container.hurry(Duration::ZERO);
                }
                container.slot.queue.push_back((op, reply));
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
                    let result = stop::container(&node, link.as_ref(), &record, deadline, ended).await;
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

    pub(super) fn started(&mut self, id: &Id, result: Result<i64, RequestError>) {
        let phase = match &result {
            Ok(started_nanos) => ContainerPhase::Running { started_nanos: *started_nanos },
            Err(error) => ContainerPhase::Exited(policy::start_error(error, now_nanos())),
        };
        let failed = result.is_err();
        // A short-lived container's exit may be known before the reply to its start: the exit stands.
        let recorded = self.change_container(id, |record| match record.phase {
            ContainerPhase::Exited(_) if !failed => {}
            _ => record.phase = phase,
        });
        if failed {
            self.tell_end(id);
        }
        let result = result.map(|_| ()).and(recorded);
        self.finish_container(id, &result);
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
        if result.is_ok() {
            self.node.forget_container(id);
            self.pod.lock().containers.remove(id);
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
    }

    /// The monitor says that a container has ended; its log is complete by then.
    pub(super) fn container_exited(&mut self, report: &wire::Exit) {
        let Some(id) = self.containers.keys().find(|id| id.as_str() == report.container).cloned() else {
            return;
        };
        let exit = policy::exit(report);
        let recorded = self.change_container(&id, |record| {
            if !matches!(record.phase, ContainerPhase::Exited(_)) {
                record.phase = ContainerPhase::Exited(exit);
            }
        });
        if let Err(error) = recorded {
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
