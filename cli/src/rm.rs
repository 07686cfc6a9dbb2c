//! `crisp rm`: pods are stopped within their grace period and removed, with what `crisp play` made for them.

use anyhow::{Result, bail};
use clap::Args;
use crisp_proto::runtime::v1::{
    self as cri, PodSandbox, RemovePodSandboxRequest, StopContainerRequest, StopPodSandboxRequest,
};

use crate::{
    endpoint::{Asked, Clients},
    play::folder,
    target,
};

/// Grace period of containers that do not say, as kubelet's default.
const GRACE_SECONDS: i64 = 30;

/// Where kubelet and `crisp play` note a pod's grace period on each container.
pub(crate) const GRACE_ANNOTATION: &str = "io.kubernetes.pod.terminationGracePeriod";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Pods: name, namespace/name or the beginning of an id
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "POD")]
    pods: Vec<String>,
    /// All pods
    #[arg(short, long)]
    all: bool,
    /// Kill at once, without a grace period
    #[arg(short, long)]
    force: bool,
    /// Grace period in seconds, in place of the pod's own
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u32>,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<()> {
    let clients = Clients::connect(endpoint).await?;
    let mut pods = Vec::new();
    if arguments.all {
        pods = target::pods(&clients).await?;
    }
    let mut failed = 0;
    for wanted in &arguments.pods {
        match target::pod(&clients, wanted).await {
            Ok(pod) => pods.push(pod),
            Err(error) => {
                eprintln!("crisp: {error:#}");
                failed += 1;
            }
        }
    }
    for pod in &pods {
        let (name, namespace) = target::pod_name(pod);
        let grace = if arguments.force { Some(0) } else { arguments.time.map(i64::from) };
        match remove(&clients, pod, grace).await {
            Ok(()) => println!("{namespace}/{name}"),
            Err(error) => {
                eprintln!("crisp: remove pod {namespace}/{name}: {error:#}");
                failed += 1;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of the pods could not be removed");
    }
    Ok(())
}

/// Stops every container of a pod at the same time, each within `grace` seconds or its own grace period, and then
/// removes the pod and its folder.
pub(crate) async fn remove(clients: &Clients, pod: &PodSandbox, grace: Option<i64>) -> Result<()> {
    folder::mark_ending(pod)?;
    remove_own(clients, pod, grace).await
}

/// The same for who plays the pod, and so need not be told that it ends.
pub(crate) async fn remove_own(clients: &Clients, pod: &PodSandbox, grace: Option<i64>) -> Result<()> {
    let mut stops = tokio::task::JoinSet::new();
    for container in target::containers(clients, &pod.id).await? {
        if container.state() != cri::ContainerState::ContainerRunning {
            continue;
        }
        let own = container.annotations.get(GRACE_ANNOTATION).and_then(|text| text.parse().ok());
        let timeout = grace.or(own).unwrap_or(GRACE_SECONDS);
        let mut runtime = clients.runtime.clone();
        stops.spawn(async move {
            let request = StopContainerRequest { container_id: container.id.clone(), timeout };
            let name = target::container_name(&container).0;
            runtime.stop_container(request).await.asked(format_args!("stop container {name}"))
        });
    }
    for stopped in stops.join_all().await {
        stopped?;
    }
    remove_now(clients, pod).await
}

/// Removes a pod, whatever still runs in it, and its folder.
pub(crate) async fn remove_now(clients: &Clients, pod: &PodSandbox) -> Result<()> {
    let mut runtime = clients.runtime.clone();
    let pod_sandbox_id = pod.id.clone();
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id }).await.asked("stop the sandbox")?;
    let pod_sandbox_id = pod.id.clone();
    runtime
        .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
        .await
        .asked("remove the sandbox")?;
    folder::remove_of(pod)
}
