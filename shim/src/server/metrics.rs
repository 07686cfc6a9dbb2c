//! Metrics under the names that cAdvisor gave them, for kubelet's `/metrics/cadvisor`.
//!
//! A table row is a metric: its descriptor and how its values are read stand in one place, so what is advertised
//! and what is given cannot differ. Every metric begins with the same labels, which say what it is about; CRI has
//! whole numbers only, so seconds are cut off.

mod cgroup;
mod family;
mod network;
mod process;
mod reading;
mod storage;

use std::sync::Arc;

use crisp_netns::stats::InterfaceStats;
use crisp_proto::runtime::v1 as cri;

use self::{
    family::{Family, Subject},
    reading::{Reading, Storage},
};
use super::stats;
use crate::{
    error::RequestError,
    node::{Node, blocking},
    pod::View,
    record::{ContainerPhase, ContainerRecord, SandboxPhase},
    time::now_nanos,
};

/// Of containers.
const CONTAINER: &[&[Family<Reading>]] = &[cgroup::ALL, storage::ALL, process::ALL];

/// Of sandboxes: the network is the pod's.
const SANDBOX: &[&[Family<[InterfaceStats]>]] = &[network::ALL];

/// Everything that [`list`] gives on this node.
pub(super) fn descriptors(node: &Node) -> Vec<cri::MetricDescriptor> {
    let container = CONTAINER.iter().copied().flatten().filter(|family| family.needs.met(node));
    let sandbox = SANDBOX.iter().copied().flatten().filter(|family| family.needs.met(node));
    container.map(Family::descriptor).chain(sandbox.map(Family::descriptor)).collect()
}

/// The metrics of all ready pods and their running containers. What cannot be read any more is left out.
///
/// # Errors
/// None but internal ones.
pub(super) async fn list(node: &Arc<Node>) -> Result<Vec<cri::PodSandboxMetrics>, RequestError> {
    let task_node = node.clone();
    let storage = blocking(move || Ok(Storage::read(task_node.store.root()))).await?;
    let mut all = Vec::new();
    for view in node.pods().into_iter().map(|pod| pod.view()) {
        if view.sandbox.phase == SandboxPhase::Ready {
            all.push(pod(node, view, storage.clone()).await?);
        }
    }
    Ok(all)
}

async fn pod(node: &Arc<Node>, view: View, storage: Storage) -> Result<cri::PodSandboxMetrics, RequestError> {
    let mut running = Vec::new();
    for record in view.containers.values() {
        if let ContainerPhase::Running { started_nanos } = record.phase {
            running.push((record.clone(), started_nanos, node.store.written(record.id.as_str())));
        }
    }
    let node = node.clone();
    blocking(move || {
        let containers = running.into_iter().filter_map(|(record, started_nanos, layer)| {
            let reading = Reading::take(&node, &record, started_nanos, layer, storage.clone())?;
            Some(container(&node, &view, &record, &reading))
        });
        let container_metrics = containers.collect();
        Ok(cri::PodSandboxMetrics {
            pod_sandbox_id: view.sandbox.id.to_string(),
            metrics: sandbox(&node, &view),
            container_metrics,
        })
    })
    .await
}

fn sandbox(node: &Node, view: &View) -> Vec<cri::Metric> {
    let subject = subject(view, None);
    let interfaces = stats::interfaces(node, view).unwrap_or_default();
    let families = SANDBOX.iter().copied().flatten().filter(|family| family.needs.met(node));
    families.flat_map(|family| family.metrics(&subject, now_nanos(), &interfaces)).collect()
}

fn container(node: &Node, view: &View, record: &ContainerRecord, reading: &Reading) -> cri::ContainerMetrics {
    let subject = subject(view, Some(record));
    let families = CONTAINER.iter().copied().flatten().filter(|family| family.needs.met(node));
    cri::ContainerMetrics {
        container_id: record.id.to_string(),
        metrics: families.flat_map(|family| family.metrics(&subject, reading.now_nanos, reading)).collect(),
    }
}

/// Without a container: the sandbox itself, which has no image.
fn subject(view: &View, container: Option<&ContainerRecord>) -> Subject {
    let pod = view.sandbox.config.metadata.clone().unwrap_or_default();
    let of_pod = Subject {
        id: view.sandbox.id.to_string(),
        image: String::new(),
        namespace: pod.namespace,
        pod: pod.name,
        container: String::new(),
    };
    let Some(record) = container else { return of_pod };
    let image = record.config.image.as_ref().map(|image| image.user_specified_image.clone());
    Subject {
        id: record.id.to_string(),
        image: image.filter(|image| !image.is_empty()).unwrap_or_else(|| record.image_name.clone()),
        container: record.config.metadata.clone().unwrap_or_default().name,
        ..of_pod
    }
}

#[cfg(test)]
mod tests;
