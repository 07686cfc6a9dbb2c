//! The user namespace of a spec, and what a container in one cannot make itself.
//!
//! Must not know: how namespaces are made.

use crate::error::PlanError;
use crate::nodes::{Made, Node};
use crate::plan::{Attach, Device, Kind, NewMount, Process};
use crate::userns::{self, IdMapping, IdMappings};
use crisp_sys::mount::MountAttr;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

/// Where the root is attached for the moment before the pivot: a directory that is there and that the container's root
/// may walk to. The caller's own may be closed to it.
const STAGING: &str = "/sys";
/// Where device nodes go.
const DEV: &str = "/dev";

/// The mapping of a container's user namespace (`linux.uidMappings`, `linux.gidMappings`); `None` when it has none.
///
/// # Errors
/// [`PlanError::Invalid`]: ranges that are no mapping, mappings without a namespace, no root inside.
pub fn id_mappings(linux: &Linux) -> Result<Option<IdMappings>, PlanError> {
    let list = linux.namespaces().as_deref().unwrap_or_default();
    let namespace = list.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    if !namespace {
        return match uids.is_empty() && gids.is_empty() {
            true => Ok(None),
            false => Err(PlanError::invalid("linux.uidMappings", "given without a user namespace")),
        };
    }
    let mappings = checked("linux", uids, gids)?;
    for (field, root) in
        [("linux.uidMappings", mappings.host_uid(0)), ("linux.gidMappings", mappings.host_gid(0))]
    {
        if root.is_none() {
            return Err(PlanError::invalid(field, "id 0 has no place, and the container is built as root"));
        }
    }
    Ok(Some(mappings))
}

/// Checked mappings of a namespace or mount.
pub(super) fn checked(
    at: &str,
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
) -> Result<IdMappings, PlanError> {
    let list = |field: &str, list: &[LinuxIdMapping]| {
        let list: Vec<IdMapping> = list
            .iter()
            .map(|one| IdMapping { container: one.container_id(), host: one.host_id(), length: one.size() })
            .collect();
        match userns::check(&list) {
            Ok(()) => Ok(list),
            Err(error) => Err(PlanError::invalid(format!("{at}.{field}"), error.to_string())),
        }
    };
    Ok(IdMappings { uids: list("uidMappings", uids)?, gids: list("gidMappings", gids)? })
}

/// What the process's user is outside; all its ids must have a place.
pub(super) fn host_uid(mappings: &IdMappings, process: &Process) -> Result<u32, PlanError> {
    let nowhere = |field: &str, id: u32| {
        PlanError::invalid(field, format!("id {id} has no place in the container's user namespace"))
    };
    for gid in process.groups.iter().chain([&process.gid]) {
        mappings.host_gid(*gid).ok_or_else(|| nowhere("process.user.gid", *gid))?;
    }
    mappings.host_uid(process.uid).ok_or_else(|| nowhere("process.user.uid", process.uid))
}

/// Takes out of the operations what needs privileges on the host: the tmpfs at `/dev` with its nodes, nodes elsewhere,
/// and what masks need. `first` is the index of the first descriptor that is free.
pub(super) fn made_outside(
    kinds: &mut Vec<Kind>,
    first: u32,
    mappings: &IdMappings,
) -> Result<Vec<Made>, PlanError> {
    let root = |id: Option<u32>| id.ok_or_else(|| PlanError::invalid("linux.uidMappings", "no root"));
    let owner = (root(mappings.host_uid(0))?, root(mappings.host_gid(0))?);
    let mounts: Vec<String> = kinds.iter().filter_map(target).map(str::to_owned).collect();
    let mut made = Vec::new();
    let mut inside = Vec::new();
    let mut kit = Vec::new();
    let dev = kinds.iter().position(|kind| matches!(kind, Kind::Mount(new) if is_dev(new)));
    kinds.retain_mut(|kind| {
        let Kind::Device(device) = kind else { return true };
        if dev.is_some() && shows_in_dev(device, &mounts) {
            inside.push(node(device, device.path.trim_start_matches("/dev/")));
            return false;
        }
        kit.push(node(device, &device.path));
        device.node = kit.len() as u32;
        true
    });
    if let Some(kind) = dev.and_then(|at| kinds.get_mut(at))
        && let Kind::Mount(new) = &*kind
    {
        made.push(dev_made(new, mappings, owner, inside)?);
        let target = new.target.clone();
        *kind = Kind::Attach(Attach { fd: first, target, directory: true, ..Attach::default() });
    }
    made.push(Made::Kit(kit));
    if let Some(Kind::Root(root)) = kinds.first_mut() {
        root.kit = first + made.len() as u32 - 1;
        STAGING.clone_into(&mut root.staging);
    }
    Ok(made)
}

fn target(kind: &Kind) -> Option<&str> {
    match kind {
        Kind::Mount(new) => Some(&new.target),
        Kind::Attach(attach) => Some(&attach.target),
        _ => None,
    }
}

fn is_dev(new: &NewMount) -> bool {
    new.target.trim_end_matches('/') == DEV && new.fstype == "tmpfs"
}

/// Whether a node in the tmpfs at /dev is seen at its path: not when something else is mounted in between.
fn shows_in_dev(device: &Device, mounts: &[String]) -> bool {
    let plain = !device.path.split('/').skip(1).any(|part| matches!(part, "" | "." | ".."));
    let covered = |mount: &String| {
        let mount = mount.trim_end_matches('/');
        mount != DEV && device.path.strip_prefix(mount).is_some_and(|rest| rest.starts_with('/'))
    };
    plain && device.path.starts_with("/dev/") && !mounts.iter().any(covered)
}

fn node(device: &Device, path: &str) -> Node {
    Node {
        path: path.to_owned(),
        mode: device.mode,
        major: device.major,
        minor: device.minor,
        uid: device.uid,
        gid: device.gid,
    }
}

/// The tmpfs, its own ids translated; without any it belongs to the container's root.
fn dev_made(
    new: &NewMount,
    mappings: &IdMappings,
    owner: (u32, u32),
    nodes: Vec<Node>,
) -> Result<Made, PlanError> {
    let mut options = Vec::new();
    let (mut uid, mut gid) = owner;
    for option in &new.options {
        let id = |value: &str, host: &dyn Fn(u32) -> Option<u32>| {
            value.parse().ok().and_then(host).ok_or_else(|| {
                PlanError::invalid(
                    format!("mounts[{}].options", new.target),
                    format!("{option:?}: no such id"),
                )
            })
        };
        match option.split_once('=') {
            Some(("uid", value)) => uid = id(value, &|id| mappings.host_uid(id))?,
            Some(("gid", value)) => gid = id(value, &|id| mappings.host_gid(id))?,
            _ => options.push(option.clone()),
        }
    }
    options.extend([format!("uid={uid}"), format!("gid={gid}")]);
    let attributes = MountAttr::from_bits_retain(new.attributes);
    Ok(Made::Dev { options, attributes, owner, nodes })
}
