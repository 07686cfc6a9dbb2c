//! Records -> what CRI's statuses and lists report.

use std::collections::HashMap;

use crisp_proto::runtime::v1 as cri;

use super::signal;
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};

/// CRI knows only two states of a sandbox.
#[must_use]
pub fn sandbox_state(phase: SandboxPhase) -> cri::PodSandboxState {
    match phase {
        SandboxPhase::Ready => cri::PodSandboxState::SandboxReady,
        SandboxPhase::Building | SandboxPhase::Undoing | SandboxPhase::Stopping | SandboxPhase::Stopped => {
            cri::PodSandboxState::SandboxNotready
        }
    }
}

/// A sandbox as lists show it.
#[must_use]
pub fn sandbox(record: &SandboxRecord) -> cri::PodSandbox {
    cri::PodSandbox {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record.phase).into(),
        created_at: record.created_nanos,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// A sandbox in full. The namespace options are those that were asked for: kubelet makes a new sandbox when
/// they differ from the pod's.
#[must_use]
pub fn sandbox_status(record: &SandboxRecord) -> cri::PodSandboxStatus {
    let mut addresses = match (&record.network, record.phase) {
        (Some(network), SandboxPhase::Ready) => network.addresses().collect(),
        _ => Vec::new(),
    }
    .into_iter();
    let network = cri::PodSandboxNetworkStatus {
        ip: addresses.next().unwrap_or_default(),
        additional_ips: addresses.map(|ip| cri::PodIp { ip }).collect(),
    };
    let security = record.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.clone()).unwrap_or_default();
    let namespaces = cri::Namespace { options: Some(options) };
    cri::PodSandboxStatus {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record.phase).into(),
        created_at: record.created_nanos,
        network: Some(network),
        linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(namespaces) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// A container's state.
#[must_use]
pub fn container_state(phase: &ContainerPhase) -> cri::ContainerState {
    match phase {
        ContainerPhase::Creating => cri::ContainerState::ContainerUnknown,
        ContainerPhase::Created => cri::ContainerState::ContainerCreated,
        ContainerPhase::Running { .. } => cri::ContainerState::ContainerRunning,
        ContainerPhase::Exited(_) => cri::ContainerState::ContainerExited,
    }
}

/// A container as lists show it.
#[must_use]
pub fn container(record: &ContainerRecord) -> cri::Container {
    cri::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox.to_string(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_id.clone(),
        state: container_state(&record.phase).into(),
        created_at: record.created_nanos,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

/// A container in full. Mounts are the request's own, also after exit (termination messages), and resources
/// are what was asked for, not what the kernel made of it: in-place resize compares them.
#[must_use]
pub fn container_status(record: &ContainerRecord) -> cri::ContainerStatus {
    let (started_at, exit) = match &record.phase {
        ContainerPhase::Creating | ContainerPhase::Created => (0, None),
        ContainerPhase::Running { started_nanos } => (*started_nanos, None),
        ContainerPhase::Exited(exit) => (exit.started_nanos, Some(exit)),
    };
    let requested = record.config.image.clone().unwrap_or_default();
    let user = cri::LinuxContainerUser {
        uid: record.user.uid.into(),
        gid: record.user.gid.into(),
        supplemental_groups: record.user.groups.iter().map(|gid| (*gid).into()).collect(),
    };
    let resources = record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
    cri::ContainerStatus {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: container_state(&record.phase).into(),
        created_at: record.created_nanos,
        started_at,
        finished_at: exit.map_or(0, |exit| exit.finished_nanos),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: Some(cri::ImageSpec { image: record.image_name.clone(), ..requested }),
        image_ref: record.image_ref.clone(),
        reason: exit.map(|exit| exit.reason.clone()).unwrap_or_default(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: record.config.mounts.clone(),
        log_path: record.log_path.clone(),
        resources: Some(cri::ContainerResources { linux: resources, windows: None }),
        image_id: record.image_id.clone(),
        user: Some(cri::ContainerUser { linux: Some(user) }),
        stop_signal: signal::to_cri(record.stop_signal).into(),
    }
}

/// Every pair of `selector` is among `labels`.
#[must_use]
pub fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A sandbox fits a list filter: all given conditions together; an id may be a prefix.
#[must_use]
pub fn sandbox_fits(record: &SandboxRecord, filter: &cri::PodSandboxFilter) -> bool {
    record.id.as_str().starts_with(&filter.id)
        && filter.state.is_none_or(|wanted| wanted.state() == sandbox_state(record.phase))
        && selected(&record.config.labels, &filter.label_selector)
}

/// A container fits a list filter.
#[must_use]
pub fn container_fits(record: &ContainerRecord, filter: &cri::ContainerFilter) -> bool {
    record.id.as_str().starts_with(&filter.id)
        && record.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
        && filter.state.is_none_or(|wanted| wanted.state() == container_state(&record.phase))
        && selected(&record.config.labels, &filter.label_selector)
}
