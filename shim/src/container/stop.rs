//! Stopping: the stop signal once, the grace period, then `cgroup.kill`, until the container's cgroup is empty.
//!
//! That nothing runs any more is read from the cgroup (`populated 0`), never concluded from what was sent. How the
//! container ended is the monitor's to tell; a monitor that does not holds nobody up.

use std::{fs, sync::Arc, time::Duration};

use crisp_monitor::wire::{Call, Signal};
use crisp_runtime::cgroup::CgroupError;
use crisp_sys::process;
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
/// How long a killed container may take to be reported as ended: longer than the monitor waits for the last output.
const REPORT_PATIENCE: Duration = Duration::from_secs(12);
/// How long the cgroup of a killed container that was not reported may take to become empty.
const EMPTY_PATIENCE: Duration = Duration::from_secs(8);
/// How many stuck processes an error names.
const NAMED: usize = 4;

/// Stops a running container. `graceful`: the stop signal comes first, and the kill at `deadline`, which may come nearer
/// meanwhile, but never before the signal. `ended` becomes true when the monitor has reported the end; it may not have
/// when this returns.
///
/// # Errors
/// It was killed and still has living processes: they are stuck in the kernel.
pub async fn container(
    node: &Arc<Node>,
    link: Option<&Link>,
    record: &ContainerRecord,
    graceful: bool,
    deadline: watch::Receiver<Instant>,
    mut ended: watch::Receiver<bool>,
) -> Result<(), RequestError> {
    if graceful {
        thaw(node, record).await;
        send_signal(link, record).await;
        if wait_until(deadline, &mut ended).await {
            return prove_empty(node, record).await;
        }
    }
    kill(node, record).await?;
    wait_killed(node, record, &mut ended).await
}

/// A frozen process takes no signal, and would only be killed when its time is over.
async fn thaw(node: &Arc<Node>, record: &ContainerRecord) {
    let (task_node, path) = (node.clone(), record.cgroup.clone());
    if let Err(error) = blocking(move || task_node.cgroups.thaw(&path).stage("thaw it")).await {
        tracing::warn!(container = %record.id, %error, "it may not hear its stop signal");
    }
}

/// Through the monitor, which knows its child; by the recorded process when the monitor cannot be asked.
async fn send_signal(link: Option<&Link>, record: &ContainerRecord) {
    let signal = Signal { container: record.id.to_string(), signal: record.stop_signal };
    let asked = match link {
        Some(link) => timeout(SIGNAL_PATIENCE, link.call(Call::Signal(signal), &[])).await.ok(),
        None => None,
    };
    let why = match asked {
        Some(Ok(_)) => return,
        Some(Err(error)) => error.text,
        None => "the monitor is silent".to_owned(),
    };
    tracing::warn!(container = %record.id, why, "stop signal not sent by the monitor; sending it past it");
    if let Err(error) = signal_directly(record) {
        tracing::warn!(container = %record.id, error, "stop signal");
    }
}

/// The pidfd is opened before the start time is compared: it holds the process that was compared, or none.
fn signal_directly(record: &ContainerRecord) -> Result<(), String> {
    let recorded = record.process.ok_or("no process is recorded")?;
    let pidfd = process::pidfd_open(recorded.pid).map_err(|error| error.to_string())?;
    let found = process::stat(recorded.pid).map_err(|error| error.to_string())?;
    if found.start_ticks != recorded.start_ticks {
        return Err("its process has ended".to_owned());
    }
    process::pidfd_send_signal(&pidfd, record.stop_signal).map_err(|error| error.to_string())
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
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error).stage(format_args!("kill cgroup {path}")),
    })
    .await
}

/// Waits until a killed container is reported as ended, for a while, and then until its cgroup is empty.
///
/// # Errors
/// Processes are left in it.
pub async fn wait_killed(
    node: &Arc<Node>,
    record: &ContainerRecord,
    ended: &mut watch::Receiver<bool>,
) -> Result<(), RequestError> {
    if timeout(REPORT_PATIENCE, ended.wait_for(|ended| *ended)).await.is_err() {
        tracing::warn!(container = %record.id, "killed, and the monitor does not report its end");
    }
    prove_empty(node, record).await
}

/// The container has ended, so whatever else is in its cgroup is killed, and the cgroup watched until it is empty. A
/// cgroup that is gone is empty: the kernel removes no other.
///
/// # Errors
/// Processes are left in it; the text says which, and where in the kernel they are.
pub async fn prove_empty(node: &Arc<Node>, record: &ContainerRecord) -> Result<(), RequestError> {
    let (node, path, id) = (node.clone(), record.cgroup.clone(), record.id.clone());
    blocking(move || {
        let stage = || format!("cgroup {path}");
        let cgroup = match node.cgroups.open_cgroup(&path) {
            Err(error) if error.is_not_found() => return Ok(()),
            opened => opened.stage(stage())?,
        };
        match cgroup.wait_empty(Duration::ZERO) {
            Err(CgroupError::Populated { .. }) => cgroup.kill().stage(stage())?,
            proven => return proven.stage(stage()),
        }
        match cgroup.wait_empty(EMPTY_PATIENCE) {
            Err(CgroupError::Populated { .. }) => {
                let stuck = stuck(&node.cgroups.processes(&path).unwrap_or_default());
                Err(RequestError::unknown(format!(
                    "container {}: killed, and still not ended; stuck in the kernel, as on dead storage: {stuck}",
                    id.short(12)
                )))
            }
            proven => proven.stage(stage()),
        }
    })
    .await
}

/// What the kernel tells of processes that a kill does not end.
fn stuck(pids: &[i32]) -> String {
    let mut named: Vec<_> = pids.iter().take(NAMED).map(|pid| describe(*pid)).collect();
    if pids.len() > NAMED {
        named.push(format!("and {} more", pids.len() - NAMED));
    }
    named.join(", ")
}

/// Pid, name, state and the kernel function in which it waits (proc_pid_wchan(5)).
fn describe(pid: i32) -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let state = process::stat(pid).map_or('?', |stat| stat.state);
    format!("process {pid} ({}) in state {state} at {}", read("comm").trim(), read("wchan").trim())
}
