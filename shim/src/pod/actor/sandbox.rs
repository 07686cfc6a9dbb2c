//! The actor's sandbox half: build, stop, remove, and what to do when the monitor dies.

use std::{sync::Arc, time::Duration};

use crisp_monitor::wire::{self, Call, Hello};
use crisp_proto::runtime::v1::{
    self as cri,
    ContainerEventType::{
        ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
    },
};
use tokio::{sync::oneshot, time::timeout};

use super::{Actor, ContainerOp, Done, Reply, SandboxOp};
use crate::{
    cni::debts::{self, Debt},
    container::stop,
    error::RequestError,
    link::Link,
    node::Node,
    pod::{
        build::{self, BuildInput, Built, Unbuilt},
        policy, teardown,
    },
    record::{ContainerPhase, ContainerRecord, SandboxPhase},
    time::now_nanos,
};

impl Actor {
    pub(super) fn begin_build(&mut self, input: BuildInput) {
        self.sandbox.current = Some(SandboxOp::Run);
        let (node, record) = (self.node.clone(), self.pod.sandbox());
        self.work(async move { Done::Built(build::sandbox(&node, &record, input).await.map(Box::new)) });
    }

    pub(super) fn submit_sandbox(&mut self, op: SandboxOp, reply: Reply) {
        match self.sandbox.current {
            Some(current) if current == op => self.sandbox.joined.push(reply),
            Some(current) => {
                self.sandbox.queue.push_back((op, reply));
                if current == SandboxOp::Run {
                    self.watch_build();
                }
            }
            None => self.begin_sandbox(op, reply),
        }
    }

    fn begin_sandbox(&mut self, op: SandboxOp, reply: Reply) {
        let phase = self.pod.sandbox().phase;
        let answer = match (op, phase) {
            (SandboxOp::Run, SandboxPhase::Ready) => Ok(()),
            (SandboxOp::Run, _) => Err(RequestError::precondition("the sandbox was stopped")),
            (SandboxOp::Stop, SandboxPhase::Stopped) => Ok(()),
            (SandboxOp::Stop, _) => {
                self.sandbox.current = Some(op);
                self.sandbox.joined.push(reply);
                return self.begin_stop();
            }
            (SandboxOp::Remove, SandboxPhase::Stopped) => {
                self.sandbox.current = Some(op);
                self.sandbox.joined.push(reply);
                return self.begin_remove();
            }
            (SandboxOp::Remove, _) => Err(RequestError::precondition("the sandbox is not stopped")),
        };
        let _ = reply.send(answer);
    }

    /// The sandbox can take new containers and start them.
    pub(super) fn usable(&self) -> bool {
        self.sandbox.current.is_none() && self.pod.sandbox().phase == SandboxPhase::Ready
    }

    fn next_sandbox(&mut self, result: &Result<(), RequestError>) {
        self.sandbox.finish(result);
        while self.sandbox.current.is_none() && !self.over {
            let Some((op, reply)) = self.sandbox.queue.pop_front() else { return };
            self.begin_sandbox(op, reply);
        }
    }

    pub(super) fn built(&mut self, result: Result<Box<Built>, Unbuilt>) {
        let mut left = None;
        let result = result.map_err(|unbuilt| {
            left = unbuilt.left;
            unbuilt.error
        });
        let result = result.map(|built| {
            let Built { record, link, events } = *built;
            self.events = events;
            let mut view = self.pod.lock();
            view.sandbox = Arc::new(record);
            view.link = Some(link);
        });
        if result.is_ok() {
            self.tell(&self.pod.id, ContainerCreatedEvent);
            self.tell(&self.pod.id, ContainerStartedEvent);
        } else if let Some(record) = left {
            // Its name stays taken: a client can see that there is something left, and stop and remove it. Nobody has
            // to, though.
            if let Err(error) = self.change_sandbox(|known| *known = (*record).clone()) {
                tracing::error!(pod = %self.pod.id, %error, "not recorded");
            }
            debts::owe(&self.node, Debt::Sandbox(record));
        } else {
            // Everything is undone: the name is free before the callers hear of it, so that a retry finds it so.
            self.leave();
        }
        self.next_sandbox(&result);
    }

    /// The pod is no more.
    fn leave(&mut self) {
        self.node.forget(&self.pod);
        self.over = true;
    }

    /// From here on the sandbox is NOTREADY and takes no container, however long it takes to give back what it holds.
    fn mark_stopping(&self) {
        if self.pod.sandbox().phase == SandboxPhase::Undoing {
            return;
        }
        if let Err(error) = self.change_sandbox(|record| record.phase = SandboxPhase::Stopping) {
            // The end itself is recorded, or the next daemon comes to the same conclusion.
            tracing::error!(pod = %self.pod.id, %error, "its end is not recorded yet");
        }
    }

    fn begin_stop(&mut self) {
        self.mark_stopping();
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        let mut ends = Vec::new();
        for id in ids {
            let (reply, end) = oneshot::channel();
            self.submit_container(&id, ContainerOp::Stop(Duration::ZERO), reply);
            ends.push(end);
        }
        let (node, pod) = (self.node.clone(), self.pod.clone());
        self.work(async move {
            let link = pod.view().link;
            let stopped = tokio::select! {
                biased;
                stopped = all_ends(ends) => stopped,
                // No monitor tells of ends: what there is is killed with it.
                () = silence(link.as_ref()) => Ok(()),
            };
            if let Err(error) = stopped {
                return Done::SandboxStopped(Err(error));
            }
            let (record, link) = {
                let view = pod.view();
                (view.sandbox, view.link)
            };
            let down = teardown::sandbox(&node, &record, link.as_ref()).await;
            let containers = pod.view().containers;
            Done::SandboxStopped(down.and(all_empty(&node, containers.values()).await))
        });
    }

    pub(super) fn sandbox_stopped(&mut self, result: Result<(), RequestError>) {
        let result = result.and_then(|()| {
            self.pod.lock().link = None;
            for (id, record) in self.pod.view().containers {
                let exit = match record.phase {
                    ContainerPhase::Created => policy::never_started(now_nanos()),
                    // The monitor was silent or stuck: nobody has told of this end.
                    ContainerPhase::Running { .. } => {
                        teardown::exit_without_monitor(&self.node, &self.dir, &record)
                    }
                    // One that could not be undone is UNKNOWN until it is removed.
                    ContainerPhase::Creating | ContainerPhase::Exited(_) => continue,
                };
                self.end(&id, exit)?;
                self.tell_end(&id);
            }
            self.change_sandbox(|record| {
                record.phase = SandboxPhase::Stopped;
                record.init = None;
            })
        });
        if result.is_ok() {
            self.tell(&self.pod.id, ContainerStoppedEvent);
        }
        self.next_sandbox(&result);
    }

    fn begin_remove(&mut self) {
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        let mut ends = Vec::new();
        for id in ids {
            let (reply, end) = oneshot::channel();
            self.submit_container(&id, ContainerOp::Remove, reply);
            ends.push(end);
        }
        let (node, record) = (self.node.clone(), self.pod.sandbox());
        self.work(async move {
            for end in ends {
                if let Ok(Err(error)) = end.await {
                    return Done::SandboxRemoved(Err(error));
                }
            }
            Done::SandboxRemoved(teardown::forget(&node, &record).await)
        });
    }

    pub(super) fn sandbox_removed(&mut self, result: Result<(), RequestError>) {
        if result.is_ok() {
            self.leave();
            self.tell(&self.pod.id, ContainerDeletedEvent);
        }
        self.next_sandbox(&result);
    }

    /// What the client made of the pod's cgroup, which is its own. Nothing is done with it but shown.
    pub(super) fn note_resources(
        &self,
        wanted: cri::UpdatePodSandboxResourcesRequest,
    ) -> Result<(), RequestError> {
        if self.pod.sandbox().phase == SandboxPhase::Building {
            return Err(RequestError::precondition("the sandbox is being made"));
        }
        self.change_sandbox(|record| {
            let linux = record.config.linux.get_or_insert_default();
            linux.overhead = wanted.overhead.or(linux.overhead.take());
            linux.resources = wanted.resources.or(linux.resources.take());
        })
    }

    /// The monitor has ended. After a stop that is how it should be. Otherwise its pod is dead: what still runs
    /// is killed, the exits that it put on file are read, and the sandbox is stopped.
    pub(super) fn monitor_gone(&mut self) {
        let expected = self.sandbox.current == Some(SandboxOp::Stop) || !self.usable();
        self.pod.lock().link = None;
        for (id, record) in self.pod.view().containers {
            if let ContainerPhase::Exited(_) = record.phase {
                continue;
            }
            if record.phase == ContainerPhase::Created && expected {
                continue;
            }
            let exit = teardown::exit_without_monitor(&self.node, &self.dir, &record);
            if let Err(error) = self.end(&id, exit) {
                tracing::error!(container = %id, %error, "exit not recorded");
            }
            self.tell_end(&id);
        }
        if !expected {
            tracing::error!(pod = %self.pod.id, "the pod's monitor has died; stopping the pod");
            self.submit_sandbox(SandboxOp::Stop, oneshot::channel().0);
        }
    }
}

/// Nothing of any of these runs any more.
async fn all_empty(
    node: &Arc<Node>,
    containers: impl Iterator<Item = &Arc<ContainerRecord>>,
) -> Result<(), RequestError> {
    let mut all = Ok(());
    for record in containers {
        all = all.and(stop::prove_empty(node, record).await);
    }
    all
}

/// A container that was removed meanwhile has dropped its reply: that is an end, too.
async fn all_ends(ends: Vec<oneshot::Receiver<Result<(), RequestError>>>) -> Result<(), RequestError> {
    let mut all = Ok(());
    for end in ends {
        all = all.and(end.await.unwrap_or(Ok(())));
    }
    all
}

/// Completes when the monitor does not answer the least of questions, or there is none.
async fn silence(link: Option<&Link>) {
    let Some(link) = link else { return };
    let hello = Call::Hello(Hello { version: wire::VERSION });
    if timeout(teardown::PATIENCE, link.call(hello, &[])).await.is_ok() {
        std::future::pending().await
    }
}
