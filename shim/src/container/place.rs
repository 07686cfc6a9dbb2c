//! A container's cgroup: made before its process, or by systemd around a process that waits for it.

use std::{os::fd::AsFd, sync::Arc};

use crisp_monitor::wire::{Body, Call, Placed};
use crisp_runtime::cgroup::{Cgroup, CgroupPath, Resources};

use super::devices;
use crate::{
    error::{RequestError, Stage},
    link::Link,
    node::{Node, blocking},
    record::ContainerRecord,
};

/// Makes the cgroup that the record names, with its limits and its device rules.
///
/// # Errors
/// A limit cannot hold, or the kernel refuses.
pub(super) fn make(
    node: &Node,
    record: &ContainerRecord,
    limits: &Resources,
) -> Result<Cgroup, RequestError> {
    let stage = "make its cgroup";
    let path = CgroupPath::new(&record.cgroup).stage(stage)?;
    let parent = path.parent().map(|parent| parent.to_string()).unwrap_or_default();
    let cgroup = node.cgroups.create_in(&parent, path.name().unwrap_or_default()).stage(stage)?;
    node.cgroups.apply(&cgroup, limits)?;
    devices::control(node, &cgroup, &record.spec)?;
    Ok(cgroup)
}

/// Has a scope made around the held process `pid`, with limits and device rules, and lets the process go on there. The
/// monitor's answer.
///
/// # Errors
/// As [`make`]; systemd refuses.
pub(super) async fn around(
    node: &Arc<Node>,
    link: &Link,
    record: &ContainerRecord,
    pid: i32,
    limits: Resources,
) -> Result<Body, RequestError> {
    let (task_node, path, spec) = (node.clone(), record.cgroup.clone(), record.spec.clone());
    let cgroup = blocking(move || {
        let cgroup = task_node.cgroups.start_scope(&path, pid, &limits)?;
        devices::control(&task_node, &cgroup, &spec)?;
        Ok(cgroup)
    });
    let cgroup = cgroup.await?;
    let placed = Placed { container: record.id.to_string() };
    Ok(link.call(Call::Placed(placed), &[cgroup.as_fd()]).await?.0)
}
