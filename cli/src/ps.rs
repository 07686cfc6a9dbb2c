//! `crisp ps`: pods and their containers, one line a container.

use std::collections::HashMap;

use anyhow::Result;
use clap::Args;
use crisp_proto::runtime::v1::{self as cri, ContainerState, PodSandbox, PodSandboxState};
use tonic::Code;

use crate::{
    endpoint::{Asked, Clients, code},
    target, text,
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Also pods that are stopped, and earlier runs of containers
    #[arg(short, long)]
    all: bool,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<()> {
    let clients = Clients::connect(endpoint).await?;
    let mut pods = target::pods(&clients).await?;
    if !arguments.all {
        pods.retain(|pod| pod.state() == PodSandboxState::SandboxReady);
    }
    let heads = ["NAMESPACE", "POD", "CONTAINER", "STATE", "RESTARTS", "AGE", "IP", "POD ID"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for pod in &pods {
        let Some(ip) = addresses(&clients, &pod.id).await? else { continue };
        let all = target::containers(&clients, &pod.id).await?;
        let shown = if arguments.all { all } else { target::newest(&all) };
        let mut exits = HashMap::new();
        for container in &shown {
            if container.state() == ContainerState::ContainerExited
                && let Some(status) = gone_is_none(target::status(&clients, &container.id, false).await)?
            {
                exits.insert(container.id.clone(), status.0);
            }
        }
        rows.extend(pod_rows(pod, &ip, &shown, &exits, text::now()));
    }
    print!("{}", text::columns(&rows));
    Ok(())
}

/// What was removed between the list and this question is no error.
fn gone_is_none<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if code(&error) == Some(Code::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The pod's addresses; `None` when the pod is gone.
async fn addresses(clients: &Clients, id: &str) -> Result<Option<String>> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let answer =
        clients.runtime.clone().pod_sandbox_status(request).await.asked(format_args!("ask for pod {id}"));
    let Some(answer) = gone_is_none(answer)? else { return Ok(None) };
    let network = answer.status.unwrap_or_default().network.unwrap_or_default();
    Ok(Some(if network.ip.is_empty() { "-".to_owned() } else { network.ip }))
}

fn pod_rows(
    pod: &PodSandbox,
    ip: &str,
    containers: &[cri::Container],
    exits: &HashMap<String, cri::ContainerStatus>,
    now: i64,
) -> Vec<Vec<String>> {
    let (name, namespace) = target::pod_name(pod);
    let row = |container: &str, state: String, restarts: String, since: i64| {
        let id = target::short(&pod.id);
        [namespace, name, container, &state, &restarts, &text::age(since, now), ip, id]
            .map(str::to_owned)
            .to_vec()
    };
    if containers.is_empty() {
        let state = match pod.state() {
            PodSandboxState::SandboxReady => "(no containers)",
            PodSandboxState::SandboxNotready => "(stopped)",
        };
        return vec![row("-", state.to_owned(), "-".to_owned(), pod.created_at)];
    }
    containers
        .iter()
        .map(|container| {
            let (name, attempt) = target::container_name(container);
            let state = state(container.state(), exits.get(&container.id));
            row(name, state, attempt.to_string(), container.created_at)
        })
        .collect()
}

/// A container's state in a few words: `Running`, `OOMKilled (137)`.
pub(crate) fn state(state: ContainerState, exit: Option<&cri::ContainerStatus>) -> String {
    match (state, exit) {
        (ContainerState::ContainerCreated, _) => "Created".to_owned(),
        (ContainerState::ContainerRunning, _) => "Running".to_owned(),
        (ContainerState::ContainerExited, Some(exit)) => {
            let reason = if exit.reason.is_empty() { "Exited" } else { &exit.reason };
            format!("{reason} ({})", exit.exit_code)
        }
        (ContainerState::ContainerExited, None) => "Exited".to_owned(),
        (ContainerState::ContainerUnknown, _) => "Unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_container_with_its_end() {
        let second = 1_000_000_000;
        let pod = PodSandbox {
            id: "0123456789abcdef".into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: "limits".into(),
                namespace: "default".into(),
                ..Default::default()
            }),
            created_at: 10 * second,
            ..Default::default()
        };
        let container = |name: &str, attempt, state: ContainerState| cri::Container {
            id: name.into(),
            metadata: Some(cri::ContainerMetadata { name: name.into(), attempt }),
            state: state.into(),
            created_at: 20 * second,
            ..Default::default()
        };
        let all = [
            container("hog", 2, ContainerState::ContainerExited),
            container("spinner", 0, ContainerState::ContainerRunning),
        ];
        let exit = cri::ContainerStatus { exit_code: 137, reason: "OOMKilled".into(), ..Default::default() };
        let exits = [("hog".to_owned(), exit)].into();
        let rows = pod_rows(&pod, "10.89.0.2", &all, &exits, 61 * second);
        assert_eq!(
            text::columns(&rows),
            "default  limits  hog      OOMKilled (137)  2  41s  10.89.0.2  0123456789abc\n\
             default  limits  spinner  Running          0  41s  10.89.0.2  0123456789abc\n"
        );
        let rows = pod_rows(&pod, "-", &[], &HashMap::new(), 61 * second);
        assert_eq!(text::columns(&rows), "default  limits  -  (no containers)  -  51s  -  0123456789abc\n");
    }
}
