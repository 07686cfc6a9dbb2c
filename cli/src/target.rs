//! Which pod and which container a person means: `name`, `namespace/name` or the beginning of an id.
//!
//! Must not know what is done with it.

use anyhow::{Result, bail};
use crisp_proto::runtime::v1::{self as cri, PodSandbox};

use crate::endpoint::{Asked, Clients};

/// Labels by which kubelet, crictl and crisp find pods and containers again.
pub(crate) mod label {
    pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
    pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
    pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
}

/// Shortest piece of an id that is taken for one.
const ID_PREFIX_MIN: usize = 3;

/// Name of a sandbox's pod and namespace.
pub(crate) fn pod_name(pod: &PodSandbox) -> (&str, &str) {
    pod.metadata.as_ref().map_or(("", ""), |m| (m.name.as_str(), m.namespace.as_str()))
}

/// Name and attempt of a container.
pub(crate) fn container_name(container: &cri::Container) -> (&str, u32) {
    container.metadata.as_ref().map_or(("", 0), |m| (m.name.as_str(), m.attempt))
}

/// All sandboxes, the newest first.
pub(crate) async fn pods(clients: &Clients) -> Result<Vec<PodSandbox>> {
    let request = cri::ListPodSandboxRequest::default();
    let mut pods = clients.runtime.clone().list_pod_sandbox(request).await.asked("list pods")?.items;
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    Ok(pods)
}

/// All containers of a sandbox, the oldest first.
pub(crate) async fn containers(clients: &Clients, sandbox: &str) -> Result<Vec<cri::Container>> {
    let filter = cri::ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..Default::default() };
    let request = cri::ListContainersRequest { filter: Some(filter) };
    let mut found =
        clients.runtime.clone().list_containers(request).await.asked("list containers")?.containers;
    found.sort_by_key(|container| container.created_at);
    Ok(found)
}

/// The status of a container, with its verbose information when `verbose`.
pub(crate) async fn status(
    clients: &Clients,
    id: &str,
    verbose: bool,
) -> Result<(cri::ContainerStatus, std::collections::HashMap<String, String>)> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose };
    let what = format!("ask for container {id}");
    let answer = clients.runtime.clone().container_status(request).await.asked(what)?;
    Ok((answer.status.unwrap_or_default(), answer.info))
}

/// The sandbox that `wanted` names.
///
/// # Errors
/// None or several do.
pub(crate) async fn pod(clients: &Clients, wanted: &str) -> Result<PodSandbox> {
    choose_pod(pods(clients).await?, wanted)
}

fn choose_pod(pods: Vec<PodSandbox>, wanted: &str) -> Result<PodSandbox> {
    let by_name = |pod: &&PodSandbox| {
        let (name, namespace) = pod_name(pod);
        match wanted.split_once('/') {
            Some((space, rest)) => (space, rest) == (namespace, name),
            None => wanted == name,
        }
    };
    let mut named: Vec<&PodSandbox> = pods.iter().filter(by_name).collect();
    if named.is_empty() && wanted.len() >= ID_PREFIX_MIN {
        named = pods.iter().filter(|pod| pod.id.starts_with(wanted)).collect();
    }
    // A pod whose sandbox was replaced has several: the one that is ready counts.
    if named.len() > 1 {
        let ready: Vec<_> =
            named.iter().copied().filter(|pod| pod.state() == cri::PodSandboxState::SandboxReady).collect();
        if !ready.is_empty() {
            named = ready;
        }
    }
    match named[..] {
        [one] => Ok(one.clone()),
        [] => bail!("pod {wanted:?} not found"),
        _ => {
            let names: Vec<_> = named
                .iter()
                .map(|pod| {
                    let (name, namespace) = pod_name(pod);
                    format!("{namespace}/{name} ({})", short(&pod.id))
                })
                .collect();
            bail!("{wanted:?} fits several pods: {}", names.join(", "))
        }
    }
}

/// The newest attempt of each container of a pod, in the order in which they were first made.
pub(crate) fn newest(containers: &[cri::Container]) -> Vec<cri::Container> {
    let mut newest: Vec<cri::Container> = Vec::new();
    for container in containers {
        let (name, attempt) = container_name(container);
        match newest.iter_mut().find(|other| container_name(other).0 == name) {
            Some(other) if container_name(other).1 < attempt => *other = container.clone(),
            Some(_) => {}
            None => newest.push(container.clone()),
        }
    }
    newest
}

/// The container that is meant by `wanted`, or the only one; `back` attempts before the newest.
///
/// # Errors
/// There is none of that name or attempt, or no name was given and there are several.
pub(crate) fn choose_container(
    pod: &str,
    containers: &[cri::Container],
    wanted: Option<&str>,
    back: usize,
) -> Result<cri::Container> {
    let newest = newest(containers);
    let names: Vec<&str> = newest.iter().map(|container| container_name(container).0).collect();
    let name = match (wanted, &names[..]) {
        (Some(name), _) if names.contains(&name) => name,
        (Some(name), []) => bail!("pod {pod} has no container {name:?}: it has none yet"),
        (Some(name), _) => bail!("pod {pod} has no container {name:?}; it has {}", names.join(", ")),
        (None, [only]) => only,
        (None, []) => bail!("pod {pod} has no containers yet"),
        (None, _) => bail!("pod {pod} has several containers, say which: {}", names.join(", ")),
    };
    let mut attempts: Vec<_> =
        containers.iter().filter(|container| container_name(container).0 == name).collect();
    attempts.sort_by_key(|container| std::cmp::Reverse(container_name(container).1));
    match attempts.get(back) {
        Some(container) => Ok((*container).clone()),
        None => bail!("container {name} of pod {pod} has no previous run"),
    }
}

/// The beginning of an id, as lists show it.
pub(crate) fn short(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, namespace: &str, name: &str, ready: bool) -> PodSandbox {
        PodSandbox {
            id: id.into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                namespace: namespace.into(),
                ..Default::default()
            }),
            state: i32::from(!ready),
            ..Default::default()
        }
    }

    fn container(name: &str, attempt: u32) -> cri::Container {
        cri::Container {
            id: format!("{name}{attempt}"),
            metadata: Some(cri::ContainerMetadata { name: name.into(), attempt }),
            ..Default::default()
        }
    }

    #[test]
    fn pods_are_found_by_name_namespace_and_id() {
        let pods = || {
            vec![
                sandbox("aaaa1", "default", "web", true),
                sandbox("aaaa2", "other", "web", true),
                sandbox("bbbb1", "default", "db", false),
                sandbox("bbbb2", "default", "db", true),
            ]
        };
        assert_eq!(choose_pod(pods(), "other/web").unwrap().id, "aaaa2");
        assert_eq!(choose_pod(pods(), "aaaa1").unwrap().id, "aaaa1");
        assert_eq!(choose_pod(pods(), "db").unwrap().id, "bbbb2");
        assert!(choose_pod(pods(), "web").unwrap_err().to_string().contains("default/web (aaaa1)"));
        assert!(choose_pod(pods(), "aaaa").unwrap_err().to_string().contains("fits several pods"));
        assert_eq!(choose_pod(pods(), "nope").unwrap_err().to_string(), "pod \"nope\" not found");
        assert!(choose_pod(pods(), "").is_err());
    }

    #[test]
    fn a_container_is_its_newest_attempt_and_must_be_named_among_several() {
        let all = [container("a", 0), container("b", 0), container("a", 1)];
        assert_eq!(choose_container("p", &all, Some("a"), 0).unwrap().id, "a1");
        assert_eq!(choose_container("p", &all, Some("a"), 1).unwrap().id, "a0");
        assert!(
            choose_container("p", &all, Some("b"), 1).unwrap_err().to_string().contains("no previous run")
        );
        assert!(choose_container("p", &all, None, 0).unwrap_err().to_string().ends_with("say which: a, b"));
        assert_eq!(choose_container("p", &all[..1], None, 0).unwrap().id, "a0");
        assert!(
            choose_container("p", &all, Some("x"), 0).unwrap_err().to_string().contains("\"x\"; it has a, b")
        );
    }
}
