//! What containers and pods use: read from their cgroups and the pod's network when asked, never in between.
//!
//! Reading blocks, so it runs beside the runtime's threads; an object that goes away meanwhile is left out of a
//! list and never fails it.

use std::{path::Path, sync::Arc};

use crisp_image::Written;
use crisp_netns::stats::{InterfaceStats, interface_stats_in};
use crisp_proto::runtime::v1 as cri;
use crisp_runtime::cgroup::{CgroupStats, Pressure, PressureLine};

use crate::{
    convert::status::selected,
    error::{Class, RequestError, Stage},
    node::{Node, blocking},
    pod::{Pod, View, build},
    record::{ContainerPhase, ContainerRecord, SandboxPhase},
    time::{nanos, now_nanos},
};

fn number(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

/// One container's use.
///
/// # Errors
/// None but internal ones: what cannot be read is left out.
pub async fn one_container(
    node: &Arc<Node>,
    record: Arc<ContainerRecord>,
) -> Result<cri::ContainerStats, RequestError> {
    let layer = node.store.written(record.id.as_str());
    let node = node.clone();
    blocking(move || Ok(container(&node, &record, layer))).await
}

/// The use of all containers that fit.
///
/// # Errors
/// None but internal ones.
pub async fn containers(
    node: &Arc<Node>,
    filter: cri::ContainerStatsFilter,
) -> Result<Vec<cri::ContainerStats>, RequestError> {
    let records = node.pods().into_iter().flat_map(|pod| pod.view().containers.into_values());
    let mut all = Vec::new();
    for record in records.filter(|record| fits(record, &filter)) {
        all.push(one_container(node, record).await?);
    }
    Ok(all)
}

fn fits(record: &ContainerRecord, filter: &cri::ContainerStatsFilter) -> bool {
    record.id.as_str().starts_with(&filter.id)
        && record.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
        && selected(&record.config.labels, &filter.label_selector)
}

/// One pod's use.
///
/// # Errors
/// The sandbox is not ready.
pub async fn one_pod(node: &Arc<Node>, pod: Arc<Pod>) -> Result<cri::PodSandboxStats, RequestError> {
    let view = pod.view();
    if view.sandbox.phase != SandboxPhase::Ready {
        let text = format!("sandbox {} is not ready", view.sandbox.id);
        return Err(RequestError::new(Class::Unavailable, text));
    }
    ready_pod(node, view).await
}

/// The use of all ready pods that fit.
///
/// # Errors
/// None but internal ones.
pub async fn pods(
    node: &Arc<Node>,
    filter: cri::PodSandboxStatsFilter,
) -> Result<Vec<cri::PodSandboxStats>, RequestError> {
    let fits = |view: &View| {
        view.sandbox.phase == SandboxPhase::Ready
            && view.sandbox.id.as_str().starts_with(&filter.id)
            && selected(&view.sandbox.config.labels, &filter.label_selector)
    };
    let mut all = Vec::new();
    for view in node.pods().into_iter().map(|pod| pod.view()).filter(fits) {
        all.push(ready_pod(node, view).await?);
    }
    Ok(all)
}

async fn ready_pod(node: &Arc<Node>, view: View) -> Result<cri::PodSandboxStats, RequestError> {
    let mut containers = Vec::new();
    for record in view.containers.values() {
        containers.push(one_container(node, record.clone()).await?);
    }
    let node = node.clone();
    blocking(move || Ok(sandbox(&node, &view, containers))).await
}

fn container(node: &Node, record: &ContainerRecord, layer: Option<Written>) -> cri::ContainerStats {
    let now = now_nanos();
    let stats = match record.phase {
        ContainerPhase::Exited(_) => None,
        _ => read_cgroup(node, &record.cgroup),
    };
    let attributes = cri::ContainerAttributes {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    };
    cri::ContainerStats {
        attributes: Some(attributes),
        cpu: stats.as_ref().map(|stats| cpu(stats, now)),
        memory: stats.as_ref().map(|stats| memory(stats, now)),
        writable_layer: layer.map(|layer| writable_layer(node, layer)),
        swap: stats.as_ref().and_then(|stats| swap(stats, now)),
        io: stats.as_ref().and_then(|stats| io(stats, now)),
    }
}

pub(super) fn read_cgroup(node: &Node, path: &str) -> Option<CgroupStats> {
    match node.cgroups.open_cgroup(path).and_then(|cgroup| cgroup.stats()) {
        Ok(stats) => Some(stats),
        Err(error) => {
            tracing::debug!(cgroup = path, %error, "statistics");
            None
        }
    }
}

fn writable_layer(node: &Node, written: Written) -> cri::FilesystemUsage {
    let mountpoint = node.store.root().to_string_lossy().into_owned();
    cri::FilesystemUsage {
        timestamp: nanos(written.at),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint }),
        used_bytes: number(written.bytes),
        inodes_used: number(written.inodes),
    }
}

fn sandbox(node: &Node, view: &View, containers: Vec<cri::ContainerStats>) -> cri::PodSandboxStats {
    let now = now_nanos();
    let record = &view.sandbox;
    let stats = read_cgroup(node, &record.cgroup_parent);
    let attributes = cri::PodSandboxAttributes {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    };
    let process = stats
        .as_ref()
        .and_then(|stats| stats.pids_current)
        .map(|count| cri::ProcessUsage { timestamp: now, process_count: number(count) });
    let linux = cri::LinuxPodSandboxStats {
        cpu: stats.as_ref().map(|stats| cpu(stats, now)),
        memory: stats.as_ref().map(|stats| memory(stats, now)),
        network: network(node, view, now),
        process,
        containers,
        io: stats.as_ref().and_then(|stats| io(stats, now)),
    };
    cri::PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None }
}

fn cpu(stats: &CgroupStats, now: i64) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp: now,
        usage_core_nano_seconds: stats.cpu.and_then(|cpu| number(cpu.usage_usec * 1000)),
        // Without a former sample there is no rate; kubelet makes its own from the counter.
        usage_nano_cores: None,
        psi: stats.cpu_pressure.as_ref().map(psi),
    }
}

fn memory(stats: &CgroupStats, now: i64) -> cri::MemoryUsage {
    let detail = stats.memory;
    let inactive_file = detail.map_or(0, |detail| detail.inactive_file);
    let working_set = stats.memory_current.map(|current| current.saturating_sub(inactive_file));
    cri::MemoryUsage {
        timestamp: now,
        working_set_bytes: working_set.and_then(number),
        // The limit in force, whoever has set it: the request, `unified`, or the pod cgroup's owner.
        available_bytes: stats
            .memory_max
            .zip(working_set)
            .and_then(|(limit, used)| number(limit.saturating_sub(used))),
        usage_bytes: stats.memory_current.and_then(number),
        rss_bytes: detail.and_then(|detail| number(detail.anon)),
        page_faults: detail.and_then(|detail| number(detail.pgfault)),
        major_page_faults: detail.and_then(|detail| number(detail.pgmajfault)),
        psi: stats.memory_pressure.as_ref().map(psi),
    }
}

fn swap(stats: &CgroupStats, now: i64) -> Option<cri::SwapUsage> {
    let current = stats.swap_current?;
    Some(cri::SwapUsage {
        timestamp: now,
        swap_available_bytes: stats.swap_max.and_then(|max| number(max.saturating_sub(current))),
        swap_usage_bytes: number(current),
    })
}

fn io(stats: &CgroupStats, now: i64) -> Option<cri::IoUsage> {
    stats.io_pressure.as_ref().map(|pressure| cri::IoUsage { timestamp: now, psi: Some(psi(pressure)) })
}

/// `*.pressure` counts microseconds, CRI nanoseconds.
fn psi(pressure: &Pressure) -> cri::PsiStats {
    let line = |line: &PressureLine| cri::PsiData {
        total: line.total_usec * 1000,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    cri::PsiStats { full: pressure.full.as_ref().map(line), some: Some(line(&pressure.some)) }
}

/// Of a pod with the host's network there is nothing to tell.
fn network(node: &Node, view: &View, now: i64) -> Option<cri::NetworkUsage> {
    let interfaces: Vec<_> = interfaces(node, view)?.into_iter().map(interface).collect();
    let default = interfaces.iter().find(|one| one.name == "eth0").or(interfaces.first()).cloned();
    Some(cri::NetworkUsage { timestamp: now, default_interface: default, interfaces })
}

fn interface(one: InterfaceStats) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: one.name,
        rx_bytes: number(one.rx_bytes),
        rx_errors: number(one.rx_errors),
        tx_bytes: number(one.tx_bytes),
        tx_errors: number(one.tx_errors),
    }
}

/// The counters of a pod's own interfaces, as they can be read now.
pub(super) fn interfaces(node: &Node, view: &View) -> Option<Vec<InterfaceStats>> {
    let pin = build::pins(node, &view.sandbox).net?;
    match read_interfaces(&pin) {
        Ok(interfaces) => Some(interfaces),
        Err(error) => {
            tracing::debug!(pod = %view.sandbox.id, %error, "network counters");
            None
        }
    }
}

fn read_interfaces(pin: &Path) -> Result<Vec<InterfaceStats>, RequestError> {
    use std::os::fd::AsFd;
    let netns = std::fs::File::open(pin).stage(format_args!("open {}", pin.display()))?;
    interface_stats_in(netns.as_fd()).stage("read counters")
}
