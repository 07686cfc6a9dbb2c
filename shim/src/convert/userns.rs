//! `userns_options` and the id mappings of mounts: checked, as user namespaces have them, as the OCI spec has them.
//!
//! Nothing given means the host's user namespace, as in containerd and CRI-O (the comment in CRI says otherwise). A
//! mapping of everything onto itself, or of the host's root, would be a user namespace in name only: it is refused.

use crisp_proto::runtime::v1 as cri;
use crisp_runtime::userns::{self, IdMapping, IdMappings};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use crate::error::{RequestError, Stage};

/// Where a sandbox and a container say it.
pub const FIELD: &str = "linux.security_context.namespace_options.userns_options";
/// The one sysctl whose value is ids.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// The mapping that a sandbox asks for; `None`: the host's user namespace.
///
/// # Errors
/// `Invalid`, naming the field.
pub fn wanted(options: Option<&cri::NamespaceOption>) -> Result<Option<IdMappings>, RequestError> {
    let Some(asked) = options.and_then(|options| options.userns_options.as_ref()) else { return Ok(None) };
    let mode = cri::NamespaceMode::try_from(asked.mode)
        .map_err(|_| RequestError::invalid(format!("{FIELD}: mode {} is unknown", asked.mode)))?;
    match mode {
        cri::NamespaceMode::Node if asked.uids.is_empty() && asked.gids.is_empty() => return Ok(None),
        cri::NamespaceMode::Node => {
            return Err(RequestError::invalid(format!("{FIELD}: mode NODE takes no id mappings")));
        }
        cri::NamespaceMode::Pod => {}
        mode => {
            return Err(RequestError::invalid(format!(
                "{FIELD}: mode {} is not possible",
                mode.as_str_name()
            )));
        }
    }
    let mappings = IdMappings {
        uids: whole_pod(&format!("{FIELD}.uids"), &asked.uids)?,
        gids: whole_pod(&format!("{FIELD}.gids"), &asked.gids)?,
    };
    let host = |mode: cri::NamespaceMode| mode == cri::NamespaceMode::Node;
    let options = options.cloned().unwrap_or_default();
    for (field, hosts) in [("pid", host(options.pid())), ("ipc", host(options.ipc()))] {
        if hosts {
            // The kernel has both owned by the host: what a container could do there is not what it asks for.
            return Err(RequestError::invalid(format!(
                "linux.security_context.namespace_options.{field}: NODE is not possible with a user namespace"
            )));
        }
    }
    Ok(Some(mappings))
}

/// The ids of a pod: one range, which kubelet sends, with root in it and without the host's.
fn whole_pod(field: &str, list: &[cri::IdMapping]) -> Result<Vec<IdMapping>, RequestError> {
    let ranges = checked(field, list)?;
    let invalid = |why: String| RequestError::invalid(format!("{field}: {why}"));
    if let Some(index) = ranges.iter().position(|range| range.host == 0) {
        return Err(invalid(format!("[{index}]: host_id 0 is the host's root")));
    }
    if ranges.len() > 1 {
        return Err(invalid(format!("{} mappings; only one is supported", ranges.len())));
    }
    if ranges.iter().all(|range| range.container != 0) {
        return Err(invalid("container_id 0 is not mapped".to_owned()));
    }
    Ok(ranges)
}

/// A list of ranges as the kernel takes it.
fn checked(field: &str, list: &[cri::IdMapping]) -> Result<Vec<IdMapping>, RequestError> {
    let range = |one: &cri::IdMapping| IdMapping {
        container: one.container_id,
        host: one.host_id,
        length: one.length,
    };
    let ranges: Vec<IdMapping> = list.iter().map(range).collect();
    match userns::check(&ranges) {
        Ok(()) => Ok(ranges),
        Err(error) => Err(RequestError::invalid(format!("{field}: {error}"))),
    }
}

/// The mapping of a sandbox that was checked when it was made.
#[must_use]
pub fn of_sandbox(config: &cri::PodSandboxConfig) -> Option<IdMappings> {
    let security = config.linux.as_ref()?.security_context.as_ref()?;
    wanted(security.namespace_options.as_ref()).ok().flatten()
}

/// Holds a container to its sandbox: the same mappings, or none of both. A container without `namespace_options` has
/// its sandbox's.
///
/// # Errors
/// `Invalid`, naming the field.
pub fn same(own: &cri::NamespaceOption, pods: &cri::NamespaceOption) -> Result<(), RequestError> {
    let (own, pods) = (wanted(Some(own))?, wanted(Some(pods))?);
    if own == pods {
        return Ok(());
    }
    let said = |mappings: &Option<IdMappings>| match mappings {
        None => "none".to_owned(),
        Some(mappings) => format!("uids {:?}, gids {:?}", text(&mappings.uids), text(&mappings.gids)),
    };
    Err(RequestError::invalid(format!(
        "{FIELD}: the container's user namespace ({}) is not the sandbox's ({})",
        said(&own),
        said(&pods)
    )))
}

fn text(list: &[IdMapping]) -> String {
    let one = |range: &IdMapping| format!("{} {} {}", range.container, range.host, range.length);
    list.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The id mapping of a mount; `None`: its ids are the host's.
///
/// # Errors
/// `Invalid`, naming the field.
pub fn of_mount(mount: &cri::Mount) -> Result<Option<IdMappings>, RequestError> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(None);
    }
    Ok(Some(IdMappings {
        uids: checked("uidMappings", &mount.uid_mappings)?,
        gids: checked("gidMappings", &mount.gid_mappings)?,
    }))
}

/// As the OCI runtime spec has them.
///
/// # Errors
/// None that a checked mapping has.
pub fn oci(list: &[IdMapping]) -> Result<Vec<LinuxIdMapping>, RequestError> {
    let one = |range: &IdMapping| {
        LinuxIdMappingBuilder::default()
            .container_id(range.container)
            .host_id(range.host)
            .size(range.length)
            .build()
            .stage("spec: id mapping")
    };
    list.iter().map(one).collect()
}

/// Refuses a user who does not exist in the pod's user namespace.
///
/// # Errors
/// `Invalid`, naming the id.
pub fn check_user(mappings: &IdMappings, uid: u32, groups: &[u32]) -> Result<(), RequestError> {
    let nowhere = |what: &str, id: u32| {
        RequestError::invalid(format!("{what} {id} has no place in the pod's user namespace ({FIELD})"))
    };
    mappings.host_uid(uid).ok_or_else(|| nowhere("user", uid))?;
    for gid in groups {
        mappings.host_gid(*gid).ok_or_else(|| nowhere("group", *gid))?;
    }
    Ok(())
}

/// The groups that may send pings without privilege: all of the pod's, written by the host.
#[must_use]
pub fn all_ping_groups(mappings: &IdMappings) -> Option<(String, String)> {
    let range = mappings.gids.first()?;
    Some((PING_GROUPS.to_owned(), format!("{} {}", range.host, range.host + (range.length - 1))))
}

/// A sysctl's value as the host has to write it.
///
/// # Errors
/// `Invalid`: a group that does not exist in the pod.
pub fn sysctl(mappings: &IdMappings, name: &str, value: &str) -> Result<String, RequestError> {
    if name.replace('/', ".") != PING_GROUPS {
        return Ok(value.to_owned());
    }
    let ids: Vec<Option<u32>> = value.split_whitespace().map(|id| id.parse().ok()).collect();
    match ids.as_slice() {
        // Nobody: the kernel's own way to say it.
        [Some(low), Some(high)] if low > high => Ok("1 0".to_owned()),
        [Some(low), Some(high)] => match (mappings.host_gid(*low), mappings.host_gid(*high)) {
            (Some(low), Some(high)) if low <= high => Ok(format!("{low} {high}")),
            _ => Err(RequestError::invalid(format!(
                "linux.sysctls: {name}: {value:?} has groups that have no place in the pod's user namespace"
            ))),
        },
        _ => Err(RequestError::invalid(format!("linux.sysctls: {name}: {value:?} is not two group ids"))),
    }
}

#[cfg(test)]
mod tests;
