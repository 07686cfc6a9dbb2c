//! A sandbox taken down, from its record alone. Every step is idempotent, so that stopping, undoing a failed
//! build and recovery after a crash are one piece of code, and a step that failed can be tried again.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use crisp_monitor::{client::record as exits, wire};
use crisp_netns::{ipam::Lease, namespaces};
use crisp_sys::{Errno, mount, process, wait::wait_end};
use tokio::time::timeout;

use super::{build, cni, policy};
use crate::{
    cgroups::leaf,
    cni::debts::{self, Debt},
    error::{RequestError, Stage},
    link::Link,
    node::{Node, blocking},
    record::{ContainerPhase, ContainerRecord, Exit, NetworkRecord, PodDir, SandboxRecord},
    time::now_nanos,
};

/// How long a monitor may take to end its processes before the daemon goes through `cgroup.kill` itself.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;

/// Ends the monitor and gives back everything the sandbox holds on the host, but for its directory.
///
/// # Errors
/// The first thing that could not be given back; the rest is left for the next attempt.
pub async fn sandbox(
    node: &Arc<Node>,
    record: &SandboxRecord,
    link: Option<&Link>,
) -> Result<(), RequestError> {
    let stage = format!("stop sandbox {}", record.id.short(12));
    end_monitor(node, record, link).await;
    let (task_node, record) = (node.clone(), record.clone());
    let task_record = record.clone();
    let released = blocking(move || release(&task_node, &task_record)).await;
    if released.is_err() && record.is_in_cni_network() {
        debts::owe(node, Debt::Sandbox(Box::new(record)));
    }
    released.map_err(|error| error.at(stage))
}

/// Asks the monitor to end what runs and itself; one that does not is killed.
async fn end_monitor(node: &Arc<Node>, record: &SandboxRecord, link: Option<&Link>) {
    let path = node.state.pod(&record.id).socket();
    let connected = match link {
        Some(link) => Some((link.clone(), None)),
        None => match timeout(PATIENCE, Link::connect(&path)).await {
            // The events are held, not read: without a listener the link ends before the answer comes.
            Ok(Ok((link, events, _))) => Some((link, Some(events))),
            _ => None,
        },
    };
    if let Some((link, _events)) = &connected {
        let asked =
            timeout(PATIENCE, link.call(wire::Call::Shutdown(wire::Shutdown { kill: true }), &[])).await;
        if !matches!(asked, Ok(Ok(_))) {
            tracing::warn!(pod = %record.id, "the monitor does not end by itself; it is killed");
        }
    }
    let (task_node, record) = (node.clone(), record.clone());
    let killed = blocking(move || {
        kill_cgroups(&task_node, &record);
        kill_monitor(&record)
    });
    if let Err(error) = killed.await {
        tracing::warn!(%error, "monitor");
    }
}

/// Kills everything below the sandbox's cgroups that carries its ids; the monitor is in none of them.
fn kill_cgroups(node: &Node, record: &SandboxRecord) {
    let own = leaf(&record.cgroup_parent, record.id.as_str());
    if let Ok(cgroup) = node.cgroups.open_cgroup(&own)
        && let Err(error) = cgroup.kill()
    {
        tracing::warn!(cgroup = own, %error, "kill");
    }
}

/// Ends the monitor process, if the pid is still this pod's monitor: its arguments name the pod.
fn kill_monitor(record: &SandboxRecord) -> Result<(), RequestError> {
    if record.monitor_pid <= 0 {
        return Ok(());
    }
    let Ok(pidfd) = process::pidfd_open(record.monitor_pid) else { return Ok(()) };
    // Read after the pidfd was opened: it names the process that the pidfd holds, or that one is gone.
    let arguments = fs::read(format!("/proc/{}/cmdline", record.monitor_pid)).unwrap_or_default();
    let mark = format!("pod-{}", record.id);
    if !arguments.windows(mark.len()).any(|window| window == mark.as_bytes()) {
        return Ok(());
    }
    if process::pidfd_send_signal(&pidfd, SIGKILL).is_ok()
        && !wait_end(&pidfd, PATIENCE).stage("wait for the monitor's end")?
    {
        return Err(RequestError::unknown("the monitor was killed and has not ended"));
    }
    Ok(())
}

fn release(node: &Node, record: &SandboxRecord) -> Result<(), RequestError> {
    let dir = node.state.pod(&record.id);
    // Before its namespace goes, which plugins want to see.
    cni::detach(node, record)?;
    // Deleting a link waits some 30 ms for readers in the kernel; everything else is done meanwhile.
    let (detached, released) = std::thread::scope(|scope| {
        let detaching = scope.spawn(|| match &record.network {
            Some(network) if network.cni.is_none() => detach(node, record, network),
            _ => Ok(()),
        });
        let released = release_local(node, record, &dir);
        (detaching.join(), released)
    });
    released?;
    detached.unwrap_or_else(|_| Err(RequestError::unknown("network: internal error")))?;
    // Last, so that no attempt that has to be repeated gives an address back twice: it may be somebody else's then.
    if let Some(network) = &record.network {
        node.ipam.release(&Lease { v4: network.ipv4, v6: network.ipv6 });
    }
    Ok(())
}

/// The ports first: nothing may lead to an address that somebody else can get. Without a bridge, the link goes with its
/// namespace, and the rules went with the bridge.
fn detach(node: &Node, record: &SandboxRecord, place: &NetworkRecord) -> Result<(), RequestError> {
    let Some(network) = &node.network else { return Ok(()) };
    network.unpublish(record.id.as_str()).stage("port_mappings")?;
    network.detach(&place.host_interface).stage("network")
}

fn release_local(node: &Node, record: &SandboxRecord, dir: &PodDir) -> Result<(), RequestError> {
    namespaces::unpin(&build::pins(node, record)).stage("namespace pins")?;
    unmount(&dir.shm())?;
    remove_file(&dir.socket())?;
    let init = leaf(&record.cgroup_parent, record.id.as_str());
    node.cgroups.remove(&init).stage("the pod init's cgroup")
}

fn unmount(path: &Path) -> Result<(), RequestError> {
    match mount::umount2(path, mount::MntFlags::MNT_DETACH) {
        Ok(()) => Ok(()),
        // Not there, or not a mount point: as it should be.
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EINVAL) => Ok(()),
        Err(error) => Err(error).stage(format_args!("unmount {}", path.display())),
    }
}

fn remove_file(path: &Path) -> Result<(), RequestError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).stage(format_args!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the sandbox's directory and the cgroups that were made for it.
///
/// # Errors
/// The file system or the cgroup tree refuses.
pub async fn forget(node: &Arc<Node>, record: &SandboxRecord) -> Result<(), RequestError> {
    let (node, record) = (node.clone(), record.clone());
    blocking(move || {
        if let Some(made) = &record.cgroup_made {
            node.cgroups.remove_made(&record.cgroup_parent, made)?;
        }
        let dir = node.state.pod(&record.id);
        match fs::remove_dir_all(dir.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).stage(format_args!("remove {}", dir.path().display()))
            }
            _ => Ok(()),
        }
    })
    .await
}

/// How a container ended whose monitor is gone: what runs of it is killed, and its exit record is read.
#[must_use]
pub fn exit_without_monitor(node: &Node, dir: &PodDir, record: &ContainerRecord) -> Exit {
    if let Ok(cgroup) = node.cgroups.open_cgroup(&record.cgroup)
        && let Err(error) = cgroup.kill()
    {
        tracing::warn!(container = %record.id, %error, "kill");
    }
    match exits::read(&dir.container_exit(&record.id)) {
        Ok(Some(exit)) => policy::exit(&wire::Exit {
            container: record.id.to_string(),
            code: exit.code,
            nanos: exit.nanos,
            oom_killed: exit.oom_killed,
            started_nanos: exit.started_nanos,
            oom: exit.oom_killed.then_some(wire::OomKills { kills: 1, level: exit.oom_level }),
        }),
        Ok(None) => match record.phase {
            ContainerPhase::Running { started_nanos } => policy::lost(started_nanos, now_nanos()),
            _ => policy::never_started(now_nanos()),
        },
        Err(error) => {
            tracing::error!(container = %record.id, %error, "exit record");
            policy::lost(0, now_nanos())
        }
    }
}
