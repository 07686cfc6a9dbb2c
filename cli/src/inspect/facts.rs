//! What there is to know of a pod, gathered once for whoever shows it.
//!
//! Must not know how it is shown.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use crisp_proto::runtime::v1::{self as cri, ContainerState, PodSandbox, PodSandboxState};
use serde::Serialize;
use serde_json::Value;

use super::{
    addresses,
    cgroup::{self, Cgroup},
    hostname,
    identity::{self, Identity},
    mounts::{self, Mount},
    namespaces::{self, Namespaces},
};
use crate::{
    endpoint::{Asked, Clients},
    ps, target,
};

/// A pod as the kernel has it.
#[derive(Debug, Serialize)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) id: String,
    /// Its sandbox is ready: the namespaces of the pod exist.
    pub(super) ready: bool,
    /// Hostname of the host.
    pub(super) host_name: String,
    /// Namespaces of the host's first process.
    pub(super) host: Namespaces,
    /// The process that lives in the sandbox's namespaces, where the runtime names one.
    pub(super) sandbox: Option<Sandbox>,
    /// What processes of the pod are told when they ask for their hostname.
    pub(super) hostname: Option<String>,
    /// Addresses of its network namespace, without those that lead nowhere else.
    pub(super) addresses: Vec<String>,
    /// The cgroup right above those of all containers.
    pub(super) cgroup: Option<Cgroup>,
    /// The running ones.
    pub(super) containers: Vec<Container>,
    /// Those that have no process, or none that has begun.
    pub(super) idle: Vec<Idle>,
}

/// The process that lives in the namespaces of a sandbox: a monitor, or a pause container.
#[derive(Debug, Serialize)]
pub(super) struct Sandbox {
    pub(super) pid: u32,
    pub(super) namespaces: Namespaces,
}

/// A running container.
#[derive(Debug, Serialize)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) image: String,
    pub(super) pid: u32,
    pub(super) identity: Identity,
    pub(super) namespaces: Namespaces,
    pub(super) cgroup: Cgroup,
    pub(super) mounts: Vec<Mount>,
}

/// A container that is not running.
#[derive(Debug, Serialize)]
pub(super) struct Idle {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) image: String,
    /// As `crisp ps` shows it.
    pub(super) state: String,
}

/// Looks at a pod: the newest attempt of each container counts.
///
/// # Errors
/// The runtime does not answer or names no processes, or one of them cannot be looked at.
pub(super) async fn gather(clients: &Clients, sandbox: &PodSandbox) -> Result<Pod> {
    let (name, namespace) = target::pod_name(sandbox);
    let (mut containers, mut idle) = (Vec::new(), Vec::new());
    let mut cgroup_root = None;
    for container in target::newest(&target::containers(clients, &sandbox.id).await?) {
        let (name, _) = target::container_name(&container);
        let (status, info) = target::status(clients, &container.id, true).await?;
        // The answer's own state, which belongs to its process.
        if status.state() == ContainerState::ContainerRunning {
            let info = verbose(&info).with_context(|| format!("container {name}"))?;
            cgroup_root = info["cgroupRoot"].as_str().map(str::to_owned);
            let seen = running(name, &status, &info);
            containers.push(seen.with_context(|| format!("container {name}"))?);
        } else {
            idle.push(Idle {
                name: name.to_owned(),
                id: container.id.clone(),
                image: image(&status),
                state: ps::state(status.state(), Some(&status)),
            });
        }
    }
    let holder = holder(clients, &sandbox.id).await?;
    let inside = holder.as_ref().map(|holder| holder.pid).or_else(|| containers.first().map(|c| c.pid));
    let paths: Vec<&str> = containers.iter().map(|container| container.cgroup.path.as_str()).collect();
    let above = cgroup::above(&paths).map(|path| cgroup::at(&path, cgroup_root.as_deref())).transpose()?;
    Ok(Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        id: sandbox.id.clone(),
        ready: sandbox.state() == PodSandboxState::SandboxReady,
        host_name: hostname::of(1).context("the host's name")?,
        host: namespaces::of(1).context("the host's namespaces")?,
        hostname: inside.map(hostname::of).transpose().context("the pod's hostname")?,
        addresses: inside.map(addresses::of).transpose().context("the pod's addresses")?.unwrap_or_default(),
        sandbox: holder,
        cgroup: above,
        containers,
        idle,
    })
}

/// The process in a sandbox's namespaces: none when the sandbox is stopped or the runtime tells of none.
async fn holder(clients: &Clients, id: &str) -> Result<Option<Sandbox>> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let answer =
        clients.runtime.clone().pod_sandbox_status(request).await.asked(format_args!("ask for pod {id}"))?;
    let ready = answer.status.is_some_and(|status| status.state() == PodSandboxState::SandboxReady);
    if !ready || !answer.info.contains_key("info") {
        return Ok(None);
    }
    let Some(pid) = pid(&verbose(&answer.info)?) else { return Ok(None) };
    let namespaces = namespaces::of(pid).with_context(|| format!("process {pid} of the sandbox"))?;
    Ok(Some(Sandbox { pid, namespaces }))
}

fn verbose(info: &HashMap<String, String>) -> Result<Value> {
    match info.get("info") {
        Some(text) => serde_json::from_str(text).context("the runtime's info is no JSON"),
        None => bail!("the runtime gives no verbose info, so its process is not known"),
    }
}

fn pid(info: &Value) -> Option<u32> {
    info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0)
}

fn running(name: &str, status: &cri::ContainerStatus, info: &Value) -> Result<Container> {
    let pid = pid(info).context("the runtime's info has no pid")?;
    Ok(Container {
        name: name.to_owned(),
        id: status.id.clone(),
        image: image(status),
        pid,
        identity: identity::of(pid)?,
        namespaces: namespaces::of(pid)?,
        cgroup: cgroup::of(pid, info["cgroupRoot"].as_str())?,
        mounts: mounts::of(pid, &status.mounts)?,
    })
}

/// The name of a container's image, in the user's own words where the runtime has kept them.
fn image(status: &cri::ContainerStatus) -> String {
    let Some(image) = &status.image else { return String::new() };
    let names = [&image.user_specified_image, &image.image];
    names.into_iter().find(|name| !name.is_empty()).cloned().unwrap_or_default()
}
