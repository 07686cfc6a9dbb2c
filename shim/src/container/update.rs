//! Changing limits: as a whole or not at all, on disk and in the kernel.

use std::sync::Arc;

use crisp_proto::runtime::v1 as cri;

use crate::{
    convert::resources,
    error::{RequestError, Stage},
    node::{Node, blocking},
    record::{self, ContainerRecord},
};

/// Applies a change to a container's cgroup; gives what is in force afterwards.
///
/// # Errors
/// A value is wrong or the kernel refuses it; then nothing has changed.
pub async fn resources(
    node: &Arc<Node>,
    record: &ContainerRecord,
    wanted: cri::LinuxContainerResources,
) -> Result<cri::LinuxContainerResources, RequestError> {
    let present = record.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let merged = resources::merge(&present, &wanted);
    let limits = resources::resources(Some(&merged))?;
    let (node, mut record, resources) = (node.clone(), record.clone(), merged.clone());
    let stage = format!("update container {}", record.id.short(12));
    let updated = blocking(move || {
        let path = node.state.pod(&record.sandbox).container_record(&record.id);
        let cgroup = record.cgroup.clone();
        record.config.linux.get_or_insert_default().resources = Some(resources);
        // The actor writes it again, with what has happened to the container meanwhile.
        node.cgroups.update(&cgroup, &limits, || record::write(&path, &record).stage("record it"))
    });
    updated.await.map_err(|error| error.at(stage))?;
    Ok(merged)
}
