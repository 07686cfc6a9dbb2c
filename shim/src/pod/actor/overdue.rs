//! What becomes of a Stop or Remove that has to wait behind something else: the making of the sandbox, or a creation, a
//! start or an update that does not end, as on dead storage, must not keep a container from being stopped.
//!
//! After [`PATIENCE`] the container's processes are ended beside what it is busy with, the stop signal and the grace
//! period first, which as a rule ends that, too. Where it does not, those who wait are told what is stuck; a
//! repeated request tries again.

use std::time::Duration;

use crisp_monitor::wire::{Call, ContainerRef};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{Actor, Command, ContainerOp, Done, SandboxOp};
use crate::{
    container::stop,
    error::{Class, RequestError},
    id::Id,
};

/// How long a Stop or Remove waits for its turn before the turn is ended.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a Stop or Remove waits for a sandbox that is being made.
const BUILD_PATIENCE: Duration = Duration::from_secs(90);
/// How long what was ended may take to come back.
const END_PATIENCE: Duration = Duration::from_secs(30);

impl Actor {
    /// Somebody waits behind what the container is busy with.
    pub(super) fn watch_turn(&self, id: &Id) {
        let Some(container) = self.containers.get(id) else { return };
        let wanted = |(op, _): &(ContainerOp, _)| matches!(op, ContainerOp::Stop(_) | ContainerOp::Remove);
        if !container.slot.queue.back().is_some_and(wanted) {
            return;
        }
        let (own, id, turn) = (self.own.clone(), id.clone(), container.turn);
        tokio::spawn(async move {
            sleep(PATIENCE).await;
            // Nobody listens any more only when the pod is gone.
            let _ = own.send(Command::Overdue(id, turn));
        });
    }

    pub(super) fn overdue(&self, id: &Id, turn: u64) {
        let Some(container) = self.containers.get(id).filter(|container| container.turn == turn) else {
            return;
        };
        // Of several the shortest grace period holds.
        let graces = container.slot.queue.iter().filter_map(|(op, _)| match op {
            ContainerOp::Stop(grace) => Some(*grace),
            ContainerOp::Remove => Some(Duration::ZERO),
            ContainerOp::Start | ContainerOp::Update(_) => None,
        });
        let Some(grace) = graces.min() else { return };
        let busy = match &container.slot.current {
            Some(ContainerOp::Start) => "being started",
            Some(ContainerOp::Update(_)) => "being updated",
            Some(ContainerOp::Remove) => return,
            _ => "being created",
        };
        tracing::warn!(container = %id, busy, "a stop waits for it; ending it");
        let (node, link, record) = (self.node.clone(), self.pod.view().link, self.pod.container(id).ok());
        let (id, ended) = (id.clone(), container.ended.subscribe());
        self.work(async move {
            let ended = match record {
                Some(record) => {
                    let (_hold, deadline) = watch::channel(Instant::now() + grace);
                    let graceful = !grace.is_zero();
                    stop::container(&node, link.as_ref(), &record, graceful, deadline, ended).await
                }
                None => unmake(link, &id).await,
            };
            if ended.is_ok() {
                sleep(END_PATIENCE).await;
            }
            let why = ended
                .err()
                .map_or("its processes have ended; the daemon waits for the host".to_owned(), |e| e.text);
            let text = format!("container {} is {busy} and does not come to an end: {why}", id.short(12));
            Done::Stuck(id, turn, RequestError::new(Class::Unavailable, text))
        });
    }

    /// Somebody waits behind the making of the sandbox. Everything in that has an end but what the host itself is stuck
    /// in, as a log directory on dead storage.
    pub(super) fn watch_build(&self) {
        let own = self.own.clone();
        tokio::spawn(async move {
            sleep(BUILD_PATIENCE).await;
            // Nobody listens any more only when the pod is gone.
            let _ = own.send(Command::BuildOverdue);
        });
    }

    pub(super) fn build_overdue(&mut self) {
        // A sandbox is made once: nothing later can be taken for it.
        if self.sandbox.current != Some(SandboxOp::Run) {
            return;
        }
        let text = format!("sandbox {} is being made and does not come to an end", self.pod.id.short(12));
        let error = RequestError::new(Class::Unavailable, text);
        tracing::error!(pod = %self.pod.id, %error, "stuck");
        for (_, reply) in self.sandbox.queue.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// Tells those who wait behind a stuck turn; the turn goes on.
    pub(super) fn stuck(&mut self, id: &Id, turn: u64, error: &RequestError) {
        let Some(container) = self.containers.get_mut(id).filter(|container| container.turn == turn) else {
            return;
        };
        tracing::error!(container = %id, %error, "stuck");
        for (_, reply) in container.slot.queue.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

/// Has the monitor end what it is making; its creation fails then.
async fn unmake(link: Option<crate::link::Link>, id: &Id) -> Result<(), RequestError> {
    let Some(link) = link else { return Ok(()) };
    let _ =
        timeout(END_PATIENCE, link.call(Call::Remove(ContainerRef { container: id.to_string() }), &[])).await;
    // Whatever it said: the creation's own end is what counts.
    Ok(())
}
