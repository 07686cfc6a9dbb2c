//! What becomes of a pod whose monitor did not answer when the daemon started, once it does: what has happened meanwhile
//! is applied as if the monitor had told of it in time.

use crisp_monitor::wire::{Call, ContainerRef, ContainerState, OomReport};
use tokio::sync::oneshot;

use super::{Actor, ContainerOp};
use crate::{
    id::Id,
    pod::Found,
    record::{ContainerPhase, SandboxPhase},
};

impl Actor {
    /// The monitor answers.
    pub(super) fn found(&mut self, found: Found) {
        // A Stop that has begun meanwhile ends the monitor over a connection of its own.
        if self.pod.sandbox().phase != SandboxPhase::Ready {
            return;
        }
        tracing::info!(pod = %self.pod.id, "its monitor answers again");
        let Found { link, events, state } = found;
        self.events = events;
        self.pod.lock().link = Some(link.clone());
        let ids: Vec<_> = self.pod.view().containers.into_keys().collect();
        for id in ids {
            self.catch_up(&id, state.containers.iter().find(|known| known.container == id.as_str()));
        }
        // Removed while the monitor could not be told.
        for known in state.containers {
            if !self.containers.keys().any(|id| id.as_str() == known.container) {
                let (link, call) = (link.clone(), Call::Remove(ContainerRef { container: known.container }));
                tokio::spawn(async move { link.call(call, &[]).await });
            }
        }
    }

    fn catch_up(&mut self, id: &Id, known: Option<&ContainerState>) {
        let Ok(record) = self.pod.container(id) else { return };
        match (known, &record.phase) {
            (_, ContainerPhase::Exited(_)) => {}
            (Some(known), ContainerPhase::Created | ContainerPhase::Running { .. }) => {
                self.oom_killed(&OomReport { container: id.to_string(), oom: known.oom });
                match &known.exit {
                    Some(exit) => self.container_exited(exit),
                    None if known.started_nanos != 0 && record.phase == ContainerPhase::Created => {
                        if let Err(error) = self.runs(id, known.started_nanos) {
                            tracing::error!(container = %id, %error, "start not recorded");
                        }
                    }
                    None => {}
                }
            }
            // Half-made by the daemon before this one, or half removed.
            (_, ContainerPhase::Creating) | (None, _) => {
                self.submit_container(id, ContainerOp::Remove, oneshot::channel().0);
            }
        }
    }

    /// The monitor has died without having answered.
    pub(super) fn lost(&mut self) {
        if self.pod.sandbox().phase == SandboxPhase::Ready {
            self.monitor_gone();
        }
    }
}
