//! After a start: what exists is compared with the records.
//!
//! A pod whose monitor answers goes on as it was; what ended meanwhile is learnt from the monitor. A pod without
//! a monitor is dead: the rest of it is killed, its exits come from the exit records. What was half-made is
//! undone. What carries this instance's mark and no record claims is removed; a record that cannot be read is
//! kept and reported, never guessed at.

use std::{collections::HashSet, fs, sync::Arc};

use crisp_monitor::wire::{Call, ContainerRef, PodState};
use crisp_netns::{ipam::Lease, namespaces::Pins};
use tokio::sync::mpsc;

use crate::{
    container::remove,
    error::{RequestError, Stage},
    id::Id,
    link::{Event, Link},
    node::{Node, blocking},
    pod::{SandboxOp, actor::Actor, policy, teardown},
    record::{self, ContainerPhase, ContainerRecord, PodDir, SandboxPhase, SandboxRecord},
    time::now_nanos,
};

/// Restores every pod and removes what nobody claims.
///
/// # Errors
/// The state directory cannot be read.
pub async fn all(node: &Arc<Node>) -> Result<(), RequestError> {
    let pods = node.state.pods();
    let entries = fs::read_dir(&pods).stage(format_args!("read {}", pods.display()))?;
    let mut records = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        match record::read::<SandboxRecord>(&path.join("sandbox.json")) {
            Ok(Some(record)) => records.push(record),
            // Killed before the record was written: nothing but the directory can be there.
            Ok(None) => {
                let _ = fs::remove_dir_all(&path);
            }
            Err(error) => tracing::error!(%error, "a sandbox's record cannot be read; it is left alone"),
        }
    }
    // All leases first: nothing restored may be given away.
    for record in &records {
        reserve(node, record);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for record in records {
        let node = node.clone();
        tasks.spawn(async move { Box::pin(pod(&node, record)).await });
    }
    while tasks.join_next().await.is_some() {}
    let task_node = node.clone();
    blocking(move || sweep(&task_node)).await?;
    sweep_layers(node).await
}

fn reserve(node: &Node, record: &SandboxRecord) {
    if record.phase == SandboxPhase::Stopped {
        return;
    }
    if let Some(network) = &record.network
        && let Err(error) = node.ipam.reserve(&Lease { v4: network.ipv4, v6: network.ipv6 })
    {
        tracing::error!(pod = %record.id, %error, "its addresses cannot be reserved");
    }
}

async fn pod(node: &Arc<Node>, record: SandboxRecord) {
    let id = record.id.clone();
    let result = match record.phase {
        SandboxPhase::Building => undo_sandbox(node, &record).await,
        SandboxPhase::Ready | SandboxPhase::Stopped => Box::pin(restore(node, record)).await,
    };
    if let Err(error) = result {
        tracing::error!(pod = %id, %error, "recovery");
    }
}

async fn undo_sandbox(node: &Arc<Node>, record: &SandboxRecord) -> Result<(), RequestError> {
    tracing::info!(pod = %record.id, "undoing a sandbox that was being made");
    teardown::sandbox(node, record, None).await?;
    teardown::forget(node, record).await
}

async fn restore(node: &Arc<Node>, record: SandboxRecord) -> Result<(), RequestError> {
    let dir = node.state.pod(&record.id);
    let link = match record.phase {
        SandboxPhase::Ready if record.boot_id == node.boot_id => Link::connect(&dir.socket()).await.ok(),
        _ => None,
    };
    let alive = link.is_some();
    let dead = record.phase == SandboxPhase::Ready && !alive;
    let mut containers = Vec::new();
    for container in container_records(&dir) {
        let restored = match &link {
            Some((link, _, state)) => with_monitor(node, &dir, link, state, container).await,
            None => without_monitor(node, &dir, container).await,
        };
        containers.extend(restored);
    }
    tracing::info!(pod = %record.id, containers = containers.len(), alive, "pod restored");
    let events: Option<(Link, mpsc::UnboundedReceiver<Event>)> = link.map(|(link, events, _)| (link, events));
    let pod = Actor::restore(node, record, containers, events);
    node.adopt(pod.clone());
    if dead {
        tracing::warn!(pod = %pod.id, "its monitor is gone; stopping the pod");
        pod.sandbox_op(SandboxOp::Stop).await?;
    }
    Ok(())
}

fn container_records(dir: &PodDir) -> Vec<ContainerRecord> {
    let mut records = Vec::new();
    for entry in fs::read_dir(dir.containers()).into_iter().flatten().flatten() {
        match record::read::<ContainerRecord>(&entry.path().join("container.json")) {
            Ok(Some(record)) => records.push(record),
            Ok(None) => {
                let _ = fs::remove_dir_all(entry.path());
            }
            Err(error) => tracing::error!(%error, "a container's record cannot be read; it is left alone"),
        }
    }
    records
}

/// What the monitor says of a container wins over its record.
async fn with_monitor(
    node: &Arc<Node>,
    dir: &PodDir,
    link: &Link,
    state: &PodState,
    mut record: ContainerRecord,
) -> Option<ContainerRecord> {
    let known = state.containers.iter().find(|container| container.container == record.id.as_str());
    if record.phase == ContainerPhase::Creating {
        let _ = link.call(Call::Remove(ContainerRef { container: record.id.to_string() }), &[]).await;
        undo_container(node, &record).await;
        return None;
    }
    let phase = match (known, &record.phase) {
        (_, ContainerPhase::Exited(_)) => return Some(record),
        // Its removal had begun: the monitor has let go of it already.
        (None, _) => {
            undo_container(node, &record).await;
            return None;
        }
        (Some(known), _) => match (&known.exit, known.started_nanos) {
            (Some(exit), _) => ContainerPhase::Exited(policy::exit(exit)),
            (None, 0) => ContainerPhase::Created,
            (None, started_nanos) => ContainerPhase::Running { started_nanos },
        },
    };
    record.phase = phase;
    save(dir, &record);
    Some(record)
}

async fn without_monitor(
    node: &Arc<Node>,
    dir: &PodDir,
    mut record: ContainerRecord,
) -> Option<ContainerRecord> {
    match record.phase {
        ContainerPhase::Exited(_) => return Some(record),
        ContainerPhase::Creating => {
            undo_container(node, &record).await;
            return None;
        }
        ContainerPhase::Created => record.phase = ContainerPhase::Exited(policy::never_started(now_nanos())),
        ContainerPhase::Running { .. } => {
            record.phase = ContainerPhase::Exited(teardown::exit_without_monitor(node, dir, &record));
        }
    }
    save(dir, &record);
    Some(record)
}

fn save(dir: &PodDir, record: &ContainerRecord) {
    if let Err(error) = record::write(&dir.container_record(&record.id), record) {
        tracing::error!(container = %record.id, %error, "recovered state not recorded");
    }
}

async fn undo_container(node: &Arc<Node>, record: &ContainerRecord) {
    if let Err(error) = remove::traces(node, &record.sandbox, &record.id, &record.cgroup).await {
        tracing::error!(container = %record.id, %error, "a half-made container could not be undone");
    }
}

/// Removes what this instance made on the host and no pod claims.
fn sweep(node: &Node) -> Result<(), RequestError> {
    let pods: HashSet<Id> = node.pods().iter().map(|pod| pod.id.clone()).collect();
    for (interface, alias) in node.network.owned_links(&node.mark()).stage("list network links")? {
        let claimed = alias.strip_prefix(&node.mark()).is_some_and(|id| pods.contains(id));
        if !claimed {
            tracing::warn!(interface, "removing a network link that no pod claims");
            node.network.detach(&interface).stage("network")?;
        }
    }
    sweep_pins(node, &pods)
}

async fn sweep_layers(node: &Node) -> Result<(), RequestError> {
    let claimed: HashSet<String> = node
        .pods()
        .iter()
        .flat_map(|pod| pod.view().containers.into_keys().map(|id| id.to_string()).collect::<Vec<_>>())
        .collect();
    for container in node.store.containers() {
        if !claimed.contains(&container) {
            tracing::warn!(container, "removing a writable layer that no container claims");
            node.store.release(&container).await.stage("writable layer")?;
        }
    }
    Ok(())
}

fn sweep_pins(node: &Node, pods: &HashSet<Id>) -> Result<(), RequestError> {
    let claimed: HashSet<String> = pods.iter().map(|id| node.pin_name(id)).collect();
    let prefix = format!("crisp-{}-", node.instance);
    for entry in fs::read_dir(&node.config.network.pin_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && !claimed.contains(&name) {
            tracing::warn!(pin = name, "removing a network namespace pin that no pod claims");
            let pins = Pins { net: Some(entry.path()), ..Pins::default() };
            crisp_netns::namespaces::unpin(&pins).stage("namespace pin")?;
        }
    }
    Ok(())
}
