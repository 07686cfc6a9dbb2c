//! After a start: what exists is compared with the records.
//!
//! A pod whose monitor answers goes on as it was; what ended meanwhile is learnt from the monitor. A pod without
//! a monitor is dead: the rest of it is killed, its exits come from the exit records. What was half-made is
//! undone. A monitor that does not answer is asked again, beside everything else, until it does. No start waits long
//! for any of this: what takes its time goes on in the pod's actor, and is listed until it is done. What carries this instance's mark and no record claims is removed; a record that cannot be read is
//! kept and reported, never guessed at.

use std::{collections::HashSet, fs, sync::Arc, time::Duration};

use crisp_monitor::wire::PodState;
use crisp_netns::{
    ipam::Lease,
    namespaces::Pins,
    network::{HostPort, Network},
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    cni::debts::{self, Debt},
    container::exec,
    convert::sandbox,
    error::{Class, RequestError, Stage},
    id::Id,
    link::{Event, Link},
    node::{Node, blocking},
    pod::{ContainerOp, Found, Pod, SandboxOp, actor::Actor, policy, teardown},
    record::{self, ContainerPhase, ContainerRecord, OomRecord, PodDir, SandboxPhase, SandboxRecord},
};

/// How long a monitor may take to say what it knows, before its pod is taken over without it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a start waits for what is undone and stopped; it goes on after that.
const UNDO_PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a silent monitor is asked again; each later one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What records that cannot be read stand for: nothing of it may be taken away.
#[derive(Debug, Default)]
struct Kept {
    pods: HashSet<String>,
    containers: HashSet<String>,
}

/// Restores every pod and removes what nobody claims; gives the number of sandboxes that were left alone because
/// their records cannot be read.
///
/// # Errors
/// The state directory cannot be read.
pub async fn all(node: &Arc<Node>) -> Result<usize, RequestError> {
    let pods = node.state.pods();
    let entries = fs::read_dir(&pods).stage(format_args!("read {}", pods.display()))?;
    let mut records = Vec::new();
    let mut kept = Kept::default();
    for entry in entries.flatten() {
        let path = entry.path();
        match record::read::<SandboxRecord>(&path.join("sandbox.json")) {
            Ok(Some(record)) => records.push(record),
            // Killed before the record was written: nothing but the directory can be there.
            Ok(None) => {
                let _ = fs::remove_dir_all(&path);
            }
            Err(error) => {
                tracing::error!(%error, "a sandbox's record cannot be read; it is left alone");
                kept.pods.insert(entry.file_name().to_string_lossy().into_owned());
                for container in fs::read_dir(path.join("containers")).into_iter().flatten().flatten() {
                    kept.containers.insert(container.file_name().to_string_lossy().into_owned());
                }
            }
        }
    }
    // All leases first: nothing restored may be given away.
    for record in &records {
        reserve(node, record);
        if let Some(made) = &record.cgroup_made {
            node.cgroups.reclaim(made);
        }
    }
    let published: Vec<_> = records.iter().filter_map(|record| published(node, record)).collect();
    let task_node = node.clone();
    blocking(move || {
        let all = published.iter().map(|(id, ports, lease)| (id.as_str(), ports.clone(), lease.clone()));
        task_node.network.as_ref().map_or(Ok(()), |network| network.load(all)).stage("network")
    })
    .await?;
    let mut tasks = tokio::task::JoinSet::new();
    for record in records {
        let node = node.clone();
        tasks.spawn(async move { Box::pin(pod(&node, record)).await });
    }
    while let Some(unreadable) = tasks.join_next().await {
        kept.containers.extend(unreadable.unwrap_or_default());
    }
    let sandboxes = kept.pods.len();
    let task_node = node.clone();
    let kept = blocking(move || sweep(&task_node, &kept).map(|()| kept)).await?;
    sweep_layers(node, &kept).await?;
    Ok(sandboxes)
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

/// The host ports of a sandbox that has them.
fn published(node: &Node, record: &SandboxRecord) -> Option<(String, Vec<HostPort>, Lease)> {
    if record.phase != SandboxPhase::Ready {
        return None;
    }
    let network = record.network.as_ref().filter(|network| network.cni.is_none())?;
    let plan = sandbox::plan(&record.config, &node.config.network)
        .ok()
        .filter(|plan| !plan.host_ports.is_empty())?;
    Some((record.id.to_string(), plan.host_ports, Lease { v4: network.ipv4, v6: network.ipv6 }))
}

/// Restores or undoes one pod; gives the names of containers whose records cannot be read.
async fn pod(node: &Arc<Node>, record: SandboxRecord) -> HashSet<String> {
    let id = record.id.clone();
    let (containers, unreadable) = container_records(&node.state.pod(&id));
    let result = match record.phase {
        // No start waits for a plugin.
        SandboxPhase::Building if record.is_in_cni_network() => {
            debts::owe_from_before(node, Debt::Sandbox(Box::new(record)));
            Ok(())
        }
        SandboxPhase::Building => {
            let undone = undo_sandbox(node, &record).await;
            if undone.is_err() {
                let record = SandboxRecord { phase: SandboxPhase::Undoing, ..record };
                node.adopt(Actor::restore(node, record.clone(), containers, None));
                debts::owe(node, Debt::Sandbox(Box::new(record)));
            }
            undone
        }
        SandboxPhase::Undoing | SandboxPhase::Ready | SandboxPhase::Stopping | SandboxPhase::Stopped => {
            Box::pin(restore(node, record, containers)).await
        }
    };
    if let Err(error) = result {
        tracing::error!(pod = %id, %error, "recovery");
    }
    unreadable
}

async fn undo_sandbox(node: &Arc<Node>, record: &SandboxRecord) -> Result<(), RequestError> {
    tracing::info!(pod = %record.id, "undoing a sandbox that was being made");
    teardown::sandbox(node, record, None).await?;
    teardown::forget(node, record).await
}

/// What became of a sandbox's monitor.
enum Monitor {
    /// It answers.
    Alive(Link, mpsc::UnboundedReceiver<Event>, PodState),
    /// It is there and does not answer: nothing is known, so nothing is changed.
    Silent,
    /// Nobody listens on its socket, or its kernel is gone.
    Dead,
}

async fn find_monitor(node: &Node, record: &SandboxRecord, dir: &PodDir) -> Monitor {
    let may_live = matches!(record.phase, SandboxPhase::Ready | SandboxPhase::Stopping);
    if !may_live || record.boot_id != node.boot_id {
        return Monitor::Dead;
    }
    match timeout(PATIENCE, Link::connect(&dir.socket())).await {
        Ok(Ok((link, events, state))) => Monitor::Alive(link, events, state),
        Ok(Err(error)) if error.class == Class::NotFound => Monitor::Dead,
        Ok(Err(error)) => {
            tracing::error!(pod = %record.id, %error, "its monitor cannot be asked; the pod is kept as recorded");
            Monitor::Silent
        }
        Err(_) => {
            tracing::error!(pod = %record.id, "its monitor does not answer; the pod is kept as recorded");
            Monitor::Silent
        }
    }
}

async fn restore(
    node: &Arc<Node>,
    record: SandboxRecord,
    recorded: Vec<ContainerRecord>,
) -> Result<(), RequestError> {
    let dir = node.state.pod(&record.id);
    let monitor = find_monitor(node, &record, &dir).await;
    let over = match record.phase {
        SandboxPhase::Undoing | SandboxPhase::Stopping => true,
        SandboxPhase::Ready => matches!(monitor, Monitor::Dead),
        SandboxPhase::Building | SandboxPhase::Stopped => false,
    };
    let silent = matches!(monitor, Monitor::Silent);
    let mut containers = Vec::new();
    for container in recorded {
        containers.push(match &monitor {
            Monitor::Alive(_, _, state) => with_monitor(node, &dir, state, container).await,
            Monitor::Silent => container,
            Monitor::Dead => without_monitor(node, &dir, container),
        });
    }
    let half_made = containers.iter().filter(|record| record.phase == ContainerPhase::Creating && !silent);
    let half_made: Vec<_> = half_made.map(|record| record.id.clone()).collect();
    let link = match monitor {
        Monitor::Alive(link, events, _) => Some((link, events)),
        Monitor::Silent | Monitor::Dead => None,
    };
    tracing::info!(pod = %record.id, containers = containers.len(), alive = link.is_some(), "pod restored");
    let pod = Actor::restore(node, record, containers, link);
    node.adopt(pod.clone());
    if timeout(UNDO_PATIENCE, undo_containers(&pod, half_made)).await.is_err() {
        tracing::warn!(pod = %pod.id, "half-made containers are not undone yet; that goes on");
    }
    if over {
        stop(node, &pod).await?;
    } else if silent {
        tokio::spawn(reconnect(node.clone(), pod));
    }
    Ok(())
}

/// Each is listed as UNKNOWN until nothing of it is left.
async fn undo_containers(pod: &Pod, half_made: Vec<Id>) {
    for id in half_made {
        if let Err(error) = pod.container_op(&id, ContainerOp::Remove).await {
            tracing::error!(container = %id, %error, "a half-made container could not be undone");
        }
    }
}

/// Stops a pod whose end has begun, or whose monitor is gone.
async fn stop(node: &Arc<Node>, pod: &Pod) -> Result<(), RequestError> {
    tracing::warn!(pod = %pod.id, "its monitor is gone, or it was being stopped; stopping the pod");
    let record = pod.sandbox();
    // No start waits for a plugin.
    if record.is_in_cni_network() || record.phase == SandboxPhase::Undoing {
        debts::owe_from_before(node, Debt::Sandbox(Box::new(SandboxRecord::clone(&record))));
        return Ok(());
    }
    match timeout(UNDO_PATIENCE, pod.sandbox_op(SandboxOp::Stop)).await {
        Ok(stopped) => stopped,
        Err(_) => {
            tracing::warn!(pod = %pod.id, "it is not stopped yet; that goes on");
            Ok(())
        }
    }
}

/// Asks a silent monitor again until it answers, is gone, or nobody needs it any more.
async fn reconnect(node: Arc<Node>, pod: Arc<Pod>) {
    let mut pause = FIRST_PAUSE;
    while pod.sandbox().phase == SandboxPhase::Ready && pod.view().link.is_none() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        let dir = node.state.pod(&pod.id);
        match find_monitor(&node, &pod.sandbox(), &dir).await {
            Monitor::Alive(link, events, state) => {
                for record in pod.view().containers.values() {
                    // Before there is a link: after that there may be new ones.
                    end_execs(&node, record).await;
                }
                return pod.found(Some(Found { link, events, state }));
            }
            Monitor::Silent => {}
            Monitor::Dead => return pod.found(None),
        }
    }
}

/// The containers of a pod, and the names of those whose records cannot be read.
fn container_records(dir: &PodDir) -> (Vec<ContainerRecord>, HashSet<String>) {
    let (mut records, mut unreadable) = (Vec::new(), HashSet::new());
    for entry in fs::read_dir(dir.containers()).into_iter().flatten().flatten() {
        match record::read::<ContainerRecord>(&entry.path().join("container.json")) {
            Ok(Some(record)) => records.push(record),
            Ok(None) => {
                let _ = fs::remove_dir_all(entry.path());
            }
            Err(error) => {
                tracing::error!(%error, "a container's record cannot be read; it is left alone");
                unreadable.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    (records, unreadable)
}

/// What the monitor says of a container wins over its record. Gives one that is to be undone as half-made.
async fn with_monitor(
    node: &Arc<Node>,
    dir: &PodDir,
    state: &PodState,
    mut record: ContainerRecord,
) -> ContainerRecord {
    let known = state.containers.iter().find(|container| container.container == record.id.as_str());
    let phase = match (known, &record.phase) {
        (_, ContainerPhase::Creating | ContainerPhase::Exited(_)) => return record,
        // Its removal had begun: the monitor has let go of it already.
        (None, _) => return ContainerRecord { phase: ContainerPhase::Creating, ..record },
        (Some(known), _) => match (&known.exit, known.started_nanos) {
            (Some(exit), _) => ContainerPhase::Exited(policy::exit(exit)),
            (None, 0) => ContainerPhase::Created,
            (None, started_nanos) => ContainerPhase::Running { started_nanos },
        },
    };
    record.phase = phase;
    record.oom = known.and_then(|known| known.oom.as_ref()).map(OomRecord::from).or(record.oom);
    match record.phase {
        ContainerPhase::Exited(_) => drop_cgroup(node, &record),
        // Nobody waits for what the daemon before this one was running in it.
        _ => end_execs(node, &record).await,
    }
    save(dir, &record);
    record
}

/// An ended container's cgroup would keep kubelet from removing the pod's.
fn drop_cgroup(node: &Arc<Node>, record: &ContainerRecord) {
    let (node, path) = (node.clone(), record.cgroup.clone());
    tokio::spawn(blocking(move || node.cgroups.remove(&path).stage("remove")));
}

async fn end_execs(node: &Arc<Node>, record: &ContainerRecord) {
    let (task_node, path) = (node.clone(), record.cgroup.clone());
    let ended = blocking(move || exec::left::end_all(&task_node.cgroups, &path));
    if let Err(error) = ended.await {
        tracing::warn!(container = %record.id, %error, "execs of the former daemon");
    }
}

fn without_monitor(node: &Arc<Node>, dir: &PodDir, mut record: ContainerRecord) -> ContainerRecord {
    match record.phase {
        ContainerPhase::Creating | ContainerPhase::Exited(_) => return record,
        // A Created one may have been started by the daemon before this one, which did not live to record it.
        ContainerPhase::Created | ContainerPhase::Running { .. } => {
            record.phase = ContainerPhase::Exited(teardown::exit_without_monitor(node, dir, &record));
            drop_cgroup(node, &record);
        }
    }
    save(dir, &record);
    record
}

fn save(dir: &PodDir, record: &ContainerRecord) {
    if let Err(error) = record::write(&dir.container_record(&record.id), record) {
        tracing::error!(container = %record.id, %error, "recovered state not recorded");
    }
}

/// Removes what this instance made on the host and no pod claims.
fn sweep(node: &Arc<Node>, kept: &Kept) -> Result<(), RequestError> {
    let pods: HashSet<Id> = node.pods().iter().map(|pod| pod.id.clone()).collect();
    if let Some(network) = &node.network {
        sweep_links(node, network, &pods, kept)?;
    }
    debts::unclaimed(node, &kept.pods)?;
    sweep_pins(node, &pods, kept)
}

fn sweep_links(node: &Node, network: &Network, pods: &HashSet<Id>, kept: &Kept) -> Result<(), RequestError> {
    for (interface, alias) in network.owned_links(&node.mark()).stage("list network links")? {
        let id = alias.strip_prefix(&node.mark()).unwrap_or_default();
        let claimed = pods.contains(id) || kept.pods.contains(id);
        if !claimed {
            tracing::warn!(interface, "removing a network link that no pod claims");
            network.detach(&interface).stage("network")?;
        }
    }
    Ok(())
}

async fn sweep_layers(node: &Node, kept: &Kept) -> Result<(), RequestError> {
    let claimed: HashSet<String> = node
        .pods()
        .iter()
        .flat_map(|pod| pod.view().containers.into_keys().map(|id| id.to_string()).collect::<Vec<_>>())
        .collect();
    for container in node.store.containers() {
        if !claimed.contains(&container) && !kept.containers.contains(&container) {
            tracing::warn!(container, "removing a writable layer that no container claims");
            node.store.release(&container).await.stage("writable layer")?;
        }
    }
    Ok(())
}

fn sweep_pins(node: &Node, pods: &HashSet<Id>, kept: &Kept) -> Result<(), RequestError> {
    let owed = debts::ids(node)?;
    let ids = pods.iter().map(Id::as_str).chain(kept.pods.iter().map(String::as_str));
    let ids = ids.chain(owed.iter().map(String::as_str));
    let claimed: HashSet<String> = ids.map(|id| node.pin_name(id)).collect();
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
