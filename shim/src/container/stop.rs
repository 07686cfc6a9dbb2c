//! Stopping: the stop signal once, the grace period, then `cgroup.kill`, until the container has ended.

use std::{sync::Arc, time::Duration};

use crisp_monitor::wire::{Call, Signal};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    error::{RequestError, Stage},
    link::Link,
    node::{Node, blocking},
    record::ContainerRecord,
};

/// How long the monitor may take to answer a signal, before Stop goes on without it.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(2);
/// How long a killed container may take to be reported as ended.
const KILL_PATIENCE: Duration = Duration::from_secs(60);

/// Stops a running container. `deadline` may come nearer meanwhile; `ended` becomes true when it has ended.
///
/// # Errors
/// It was killed and still has not ended: its processes are stuck in the kernel.
pub async fn container(
    node: &Arc<Node>,
    link: Option<&Link>,
    record: &ContainerRecord,
    deadline: watch::Receiver<Instant>,
    mut ended: watch::Receiver<bool>,
) -> Result<(), RequestError> {
    let graceful = *deadline.borrow() > Instant::now();
    if graceful && let Some(link) = link {
        send_signal(link, record).await;
        if wait_until(deadline, &mut ended).await {
            return Ok(());
        }
    }
    kill(node, record).await?;
    wait_killed(record, &mut ended).await
}

async fn send_signal(link: &Link, record: &ContainerRecord) {
    let signal = Signal { container: record.id.to_string(), signal: record.stop_signal };
    match timeout(SIGNAL_PATIENCE, link.call(Call::Signal(signal), &[])).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(container = %record.id, %error, "stop signal"),
        Err(_) => {
            tracing::warn!(container = %record.id, "the monitor is silent; the stop signal may not have been sent")
        }
    }
}

/// Waits for the end or the deadline, whichever is first; true: it has ended.
async fn wait_until(mut deadline: watch::Receiver<Instant>, ended: &mut watch::Receiver<bool>) -> bool {
    loop {
        let until = *deadline.borrow_and_update();
        tokio::select! {
            end = timeout_at(until, ended.wait_for(|ended| *ended)) => return matches!(end, Ok(Ok(_))),
            changed = deadline.changed() => if changed.is_err() { return false },
        }
    }
}

/// Kills every process of the container at once, also those in sub-cgroups of execs.
///
/// # Errors
/// The kernel refuses.
pub async fn kill(node: &Arc<Node>, record: &ContainerRecord) -> Result<(), RequestError> {
    let (node, path) = (node.clone(), record.cgroup.clone());
    blocking(move || match node.cgroups.open_cgroup(&path) {
        Ok(cgroup) => cgroup.kill().stage(format_args!("kill cgroup {path}")),
        // No cgroup: nothing of it runs.
        Err(_) => Ok(()),
    })
    .await
}

/// Waits until a killed container is reported as ended.
///
/// # Errors
/// It is not, for a minute.
pub async fn wait_killed(
    record: &ContainerRecord,
    ended: &mut watch::Receiver<bool>,
) -> Result<(), RequestError> {
    match timeout(KILL_PATIENCE, ended.wait_for(|ended| *ended)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(RequestError::unknown(format!(
            "container {}: killed, and not ended after {KILL_PATIENCE:?}; a process of it is stuck in the kernel",
            record.id.short(12)
        ))),
    }
}
