//! Device nodes and links in /dev.
//!
//! Must not know: which devices a cgroup lets a container open.

use crate::error::PlanError;
use crate::plan::{Device, Kind, Symlink};
use crate::userns::IdMappings;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount};
use std::path::Path;

/// What every container has in /dev (OCI runtime spec, "Default Devices"): path, major, minor; mode 0666.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links that programs expect in /dev.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Appends the operations for default and listed devices. A /dev that is bound from the host is left as it is, apart
/// from listed devices. With a user namespace the owners are the host's ids: only the host can make the nodes.
pub(super) fn plan(
    mounts: &[Mount],
    devices: &[LinuxDevice],
    user: Option<&IdMappings>,
    kinds: &mut Vec<Kind>,
) -> Result<(), PlanError> {
    let mut listed: Vec<Device> = devices.iter().map(device).collect::<Result<_, _>>()?;
    if user.is_some() {
        // The host's own null device among them is what everybody has: it belongs to the container.
        listed.retain(|one| !DEFAULT.contains(&(one.path.as_str(), one.major, one.minor)));
    }
    let at =
        |path: &'static str| mounts.iter().rev().find(move |mount| mount.destination() == Path::new(path));
    if !at("/dev").is_some_and(super::mounts::is_bind) {
        let free = |path: &str| !listed.iter().any(|device| device.path == path);
        for (path, major, minor) in DEFAULT.into_iter().filter(|(path, ..)| free(path)) {
            let mode = libc::S_IFCHR | 0o666;
            let uid = user.and_then(|mappings| mappings.host_uid(0)).unwrap_or(0);
            let gid = user.and_then(|mappings| mappings.host_gid(0)).unwrap_or(0);
            kinds.push(Kind::Device(Device { path: path.to_owned(), mode, major, minor, uid, gid, node: 0 }));
        }
        if at("/dev/pts").is_some_and(|mount| mount.typ().as_deref() == Some("devpts")) {
            kinds.push(link("/dev/ptmx", "pts/ptmx"));
        }
        kinds.extend(LINKS.into_iter().map(|(path, target)| link(path, target)));
    }
    kinds.extend(listed.into_iter().map(Kind::Device));
    Ok(())
}

fn link(path: &str, target: &str) -> Kind {
    Kind::Symlink(Symlink { path: path.to_owned(), target: target.to_owned() })
}

fn device(device: &LinuxDevice) -> Result<Device, PlanError> {
    let path = super::text("linux.devices.path", device.path())?;
    let field = format!("linux.devices[{path}]");
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(PlanError::invalid(field, "type a is for cgroup rules only")),
    };
    let number = |number: i64| {
        u32::try_from(number)
            .map_err(|_| PlanError::invalid(field.clone(), format!("device number {number}")))
    };
    let mode = device.file_mode().unwrap_or(0o666);
    if mode & !0o7777 & !libc::S_IFMT != 0 {
        return Err(PlanError::invalid(field, format!("fileMode {mode:o}")));
    }
    Ok(Device {
        mode: kind | (mode & 0o7777),
        major: number(device.major())?,
        minor: number(device.minor())?,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        path,
        node: 0,
    })
}
