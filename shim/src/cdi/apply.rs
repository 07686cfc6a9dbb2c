//! What a spec file says, as changes to a container. Looks at the host's device nodes, which a file need only name.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, MountBuilder};

use super::{Edits, Node, spec};
use crate::{convert::sandbox::check_absolute, record::UserRecord};

/// Appends the changes of one part of a file.
///
/// # Errors
/// A field that crisp does not support, or that makes no sense; a device or path that the host does not have.
pub(super) fn apply(part: &spec::ContainerEdits, user: &UserRecord, edits: &mut Edits) -> Result<(), String> {
    if let Some(hook) = part.hooks.first() {
        return Err(format!("hook {} ({}): crisp runs no hooks", hook.hook_name, hook.path));
    }
    if part.intel_rdt.is_some() {
        return Err("intelRdt: not supported by crisp".to_owned());
    }
    if !part.net_devices.is_empty() {
        return Err("netDevices: not supported by crisp".to_owned());
    }
    for entry in &part.env {
        let (key, value) = entry
            .split_once('=')
            .filter(|(key, value)| !key.is_empty() && !key.contains('\0') && !value.contains('\0'))
            .ok_or_else(|| format!("env {entry:?} is not NAME=value"))?;
        edits.env.retain(|(known, _)| known != key);
        edits.env.push((key.to_owned(), value.to_owned()));
    }
    for wanted in &part.device_nodes {
        let node = node(wanted, user).map_err(|reason| format!("device node {}: {reason}", wanted.path))?;
        edits.nodes.retain(|known| known.device.path() != node.device.path());
        edits.nodes.push(node);
    }
    for wanted in &part.mounts {
        let mount = mount(wanted).map_err(|reason| format!("mount {}: {reason}", wanted.container_path))?;
        edits.mounts.retain(|known| known.destination() != mount.destination());
        edits.mounts.push(mount);
    }
    for gid in part.additional_gids.iter().filter(|gid| **gid != 0) {
        if !edits.groups.contains(gid) {
            edits.groups.push(*gid);
        }
    }
    Ok(())
}

fn absolute(field: &str, path: &str) -> Result<(), String> {
    check_absolute(field, path).map_err(|error| error.text)?;
    if Path::new(path).components().count() < 2 {
        return Err(format!("{field} {path:?} is the root"));
    }
    Ok(())
}

fn node(wanted: &spec::DeviceNode, user: &UserRecord) -> Result<Node, String> {
    absolute("path", &wanted.path)?;
    let access = match wanted.permissions.as_str() {
        "" => "rwm",
        "none" => "",
        letters if letters.chars().all(|letter| "rwm".contains(letter)) => letters,
        other => return Err(format!("permissions {other:?}: letters of rwm, or none")),
    };
    let host_path = if wanted.host_path.is_empty() { &wanted.path } else { &wanted.host_path };
    let (kind, major, minor) = numbers(wanted, host_path)?;
    // As the specification has it: who runs in the container, unless that is root, or the file says otherwise.
    let mut builder = LinuxDeviceBuilder::default()
        .path(&wanted.path)
        .typ(kind)
        .major(major)
        .minor(minor)
        .uid(wanted.uid.unwrap_or(user.uid))
        .gid(wanted.gid.unwrap_or(user.gid));
    if let Some(mode) = wanted.file_mode.or_else(|| host_mode(host_path)) {
        builder = builder.file_mode(mode & 0o7777);
    }
    let device: LinuxDevice = builder.build().map_err(|error| error.to_string())?;
    Ok(Node { device, access: access.to_owned() })
}

fn host_mode(host_path: &str) -> Option<u32> {
    fs::metadata(host_path).ok().map(|metadata| metadata.mode() & 0o7777)
}

/// Type and numbers: the file's own, or those of the host's node.
fn numbers(wanted: &spec::DeviceNode, host_path: &str) -> Result<(LinuxDeviceType, i64, i64), String> {
    if wanted.major < 0 || wanted.minor < 0 {
        return Err(format!("device number {}:{}", wanted.major, wanted.minor));
    }
    let asked = match wanted.kind.as_str() {
        "" => None,
        "b" => Some(LinuxDeviceType::B),
        "c" | "u" => Some(LinuxDeviceType::C),
        "p" => Some(LinuxDeviceType::P),
        other => return Err(format!("type {other:?}")),
    };
    if let Some(kind) = asked
        && (wanted.major != 0 || kind == LinuxDeviceType::P)
    {
        return Ok((kind, wanted.major, wanted.minor));
    }
    absolute("hostPath", host_path)?;
    let metadata = fs::metadata(host_path).map_err(|error| format!("{host_path}: {}", said(&error)))?;
    let found = match metadata.file_type() {
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_fifo() => LinuxDeviceType::P,
        _ => return Err(format!("{host_path}: not a device")),
    };
    if asked.is_some_and(|asked| asked != found) {
        return Err(format!("type {}, but {host_path} is of type {}", wanted.kind, found.as_str()));
    }
    let (major, minor) =
        (crisp_sys::device::major(metadata.rdev()), crisp_sys::device::minor(metadata.rdev()));
    match wanted.major {
        0 => Ok((found, i64::from(major), i64::from(minor))),
        given => Ok((found, given, wanted.minor)),
    }
}

fn said(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |number| crisp_sys::errno::text(crisp_sys::Errno::from_raw(number)),
    )
}

/// A bind mount, unless the file names a type.
fn mount(wanted: &spec::Mount) -> Result<oci_spec::runtime::Mount, String> {
    absolute("containerPath", &wanted.container_path)?;
    let mut options = wanted.options.clone();
    let given = |options: &[String], names: &[&str]| options.iter().any(|o| names.contains(&o.as_str()));
    let bind = matches!(wanted.kind.as_str(), "" | "bind") || given(&options, &["bind", "rbind"]);
    if bind {
        absolute("hostPath", &wanted.host_path)?;
        fs::metadata(&wanted.host_path).map_err(|error| format!("{}: {}", wanted.host_path, said(&error)))?;
        if !given(&options, &["bind", "rbind"]) {
            options.push("rbind".to_owned());
        }
        let propagations = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];
        if !given(&options, &propagations) {
            options.push("rprivate".to_owned());
        }
    }
    let place = crate::convert::spec_mounts::clean(&wanted.container_path);
    MountBuilder::default()
        .destination(place)
        .typ(if bind { "bind" } else { wanted.kind.as_str() })
        .source(&wanted.host_path)
        .options(options)
        .build()
        .map_err(|error| error.to_string())
}
