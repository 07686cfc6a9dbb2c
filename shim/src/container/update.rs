//! Changing limits: as a whole or not at all, on disk and in the kernel.

use std::sync::Arc;

use crisp_proto::runtime::v1 as cri;

use crate::{
    convert::resources,
    error::RequestError,
    node::{Node, blocking},
    record::ContainerRecord,
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
    let (node, path, stage) =
        (node.clone(), record.cgroup.clone(), format!("update container {}", record.id.short(12)));
    blocking(move || node.cgroups.update(&path, &limits)).await.map_err(|error| error.at(stage))?;
    Ok(merged)
}
