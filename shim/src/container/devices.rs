//! The device nodes that a container is given, and what it may do with which device.
//!
//! The rules stand in the spec (`linux.resources.devices`) and are put on the container's cgroup from there, so that
//! what a record says is what holds.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use crisp_proto::runtime::v1 as cri;
use crisp_runtime::{
    cgroup::{Cgroup, DeviceProgram, DeviceRule},
    oci,
};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use crate::{
    cdi,
    convert::{
        spec::security,
        spec_devices::{container_path, default_rules, open_rules, rule_for},
    },
    error::{RequestError, Stage},
    node::Node,
};

/// What a container has of its own: file systems below `/dev`, the terminal multiplexer of its own devpts, and a
/// console only with a terminal.
const SKIPPED: [&str; 6] = ["pts", "ptmx", "shm", "mqueue", "fd", "console"];

/// How many entries of a directory are looked at: far more than any `/dev` has, and not the whole disk when somebody
/// names `/usr`.
const MAX_ENTRIES: usize = 65_536;

/// Nodes and rules of one container.
#[derive(Debug)]
pub(super) struct Devices {
    /// `linux.devices`.
    pub(super) nodes: Vec<LinuxDevice>,
    /// `linux.resources.devices`.
    pub(super) rules: Vec<LinuxDeviceCgroup>,
}

/// What a container is given: the request's `devices`, then the nodes of `cdi`, which win over others at their places,
/// and every device of the host for a privileged one. Without
/// device control (`controlled`) the rules say so: everything is allowed.
///
/// # Errors
/// `Invalid`, naming the entry: not there, no device, or two different ones at one place. `/dev` cannot be read.
pub(super) fn for_container(
    config: &cri::ContainerConfig,
    cdi: &[cdi::Node],
    controlled: bool,
) -> Result<Devices, RequestError> {
    let privileged = security(config).privileged;
    let open = privileged || !controlled;
    let mut devices = Devices { nodes: vec![], rules: if open { open_rules()? } else { default_rules()? } };
    let mut places: HashMap<PathBuf, (LinuxDeviceType, i64, i64)> = HashMap::new();
    for (index, asked) in config.devices.iter().enumerate() {
        let field = format!("devices[{index}].host_path {}", asked.host_path);
        let invalid = |reason: &str| RequestError::invalid(format!("{field}: {reason}"));
        for node in granted(asked).map_err(|error| invalid(&error.text))? {
            let numbers = (node.typ(), node.major(), node.minor());
            match places.insert(node.path().clone(), numbers) {
                None => devices.nodes.push(node.clone()),
                Some(other) if other == numbers => {}
                Some(_) => {
                    return Err(invalid(&format!(
                        "another device is to be {} already",
                        node.path().display()
                    )));
                }
            }
            if !open {
                devices.rules.push(rule_for(&node, &asked.permissions)?);
            }
        }
    }
    for node in cdi {
        let device = &node.device;
        devices.nodes.retain(|other| other.path() != device.path());
        places.insert(device.path().clone(), (device.typ(), device.major(), device.minor()));
        devices.nodes.push(device.clone());
        let controllable = matches!(device.typ(), LinuxDeviceType::B | LinuxDeviceType::C);
        if !open && controllable && !node.access.is_empty() {
            devices.rules.push(rule_for(device, &node.access)?);
        }
    }
    if privileged {
        let dev = Path::new("/dev");
        let mut found = Vec::new();
        let mut left = MAX_ENTRIES;
        collect(dev, dev, &mut left, &mut found)?;
        // What the request puts at a place wins over what the host has there.
        devices.nodes.extend(found.into_iter().filter(|node| !places.contains_key(node.path())));
    }
    Ok(devices)
}

/// The nodes of one entry of a request. Symbolic links in its own path are followed, on the host.
fn granted(asked: &cri::Device) -> Result<Vec<LinuxDevice>, RequestError> {
    let (host, place) = (Path::new(&asked.host_path), container_path(asked));
    // One look: what is put into the container is what was looked at, whatever happens to the path meanwhile.
    let metadata = fs::metadata(host).map_err(|error| RequestError::invalid(lower(&error)))?;
    let kind = metadata.file_type();
    let mut nodes = Vec::new();
    if kind.is_dir() {
        let mut left = MAX_ENTRIES;
        collect(host, place, &mut left, &mut nodes)?;
    } else if kind.is_char_device() || kind.is_block_device() {
        nodes.push(device(place, &metadata)?);
    }
    match nodes.is_empty() {
        true if kind.is_dir() => Err(RequestError::invalid("there is no device in this directory")),
        true => Err(RequestError::invalid("not a device")),
        false => Ok(nodes),
    }
}

fn lower(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |number| crisp_sys::errno::text(crisp_sys::Errno::from_raw(number)),
    )
}

/// Every device below `directory`, as it is to be below `place`. Symbolic links inside are not followed.
fn collect(
    directory: &Path,
    place: &Path,
    left: &mut usize,
    nodes: &mut Vec<LinuxDevice>,
) -> Result<(), RequestError> {
    let entries = fs::read_dir(directory).stage(format_args!("read {}", directory.display()))?;
    for entry in entries.flatten() {
        *left = left.checked_sub(1).ok_or_else(|| {
            RequestError::invalid(format!("more than {MAX_ENTRIES} entries: no directory of devices"))
        })?;
        if SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
            continue;
        }
        // A node that vanishes while the directory is read is none.
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        let kind = metadata.file_type();
        let place = place.join(entry.file_name());
        if kind.is_dir() {
            collect(&entry.path(), &place, left, nodes)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            nodes.push(device(&place, &metadata)?);
        }
    }
    Ok(())
}

fn device(place: &Path, metadata: &fs::Metadata) -> Result<LinuxDevice, RequestError> {
    let kind = match metadata.file_type().is_block_device() {
        true => LinuxDeviceType::B,
        false => LinuxDeviceType::C,
    };
    let number = |value: u32| i64::from(value);
    LinuxDeviceBuilder::default()
        .path(place)
        .typ(kind)
        .major(number(crisp_sys::device::major(metadata.rdev())))
        .minor(number(crisp_sys::device::minor(metadata.rdev())))
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()
        .stage(format_args!("device {}", place.display()))
}

/// Holds a container's cgroup to the rules of its spec. Before the first process is in it.
///
/// # Errors
/// The kernel refuses: then there must be no container.
pub(super) fn control(node: &Node, cgroup: &Cgroup, spec: &Spec) -> Result<(), RequestError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let list = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let rules = oci::device_rules(list).stage("spec")?;
    if rules == [DeviceRule::ALLOW_ALL] {
        return Ok(());
    }
    match &node.device_program {
        Some(program) if program.rules() == rules => cgroup.control_devices(program),
        _ => DeviceProgram::load(&rules).and_then(|program| cgroup.control_devices(&program)),
    }
    .stage("linux.resources.devices")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &str, container: &str, permissions: &str) -> cri::Device {
        cri::Device {
            host_path: host.into(),
            container_path: container.into(),
            permissions: permissions.into(),
        }
    }

    fn config(devices: Vec<cri::Device>) -> cri::ContainerConfig {
        cri::ContainerConfig { devices, ..Default::default() }
    }

    #[test]
    fn a_device_has_its_hosts_numbers_at_its_own_place_and_one_rule() {
        let given = for_container(&config(vec![asked("/dev/full", "/dev/brim", "rw")]), &[], true).unwrap();
        let node = &given.nodes[0];
        assert_eq!((node.path().as_path(), node.typ()), (Path::new("/dev/brim"), LinuxDeviceType::C));
        assert_eq!((node.major(), node.minor(), node.file_mode()), (1, 7, Some(0o666)));
        let rule = given.rules.last().unwrap();
        assert_eq!((rule.major(), rule.minor(), rule.access().as_deref()), (Some(1), Some(7), Some("rw")));
        assert_eq!(given.rules.len(), default_rules().unwrap().len() + 1);
    }

    #[test]
    fn without_control_the_rules_say_that_all_is_allowed() {
        let given = for_container(&config(vec![asked("/dev/full", "", "r")]), &[], false).unwrap();
        assert_eq!((given.nodes.len(), given.rules), (1, open_rules().unwrap()));
    }

    #[test]
    fn links_are_followed_and_directories_searched() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::os::unix::fs::symlink("/dev/zero", path("link")).unwrap();
        let given = for_container(&config(vec![asked(&path("link"), "/dev/z", "r")]), &[], true).unwrap();
        assert_eq!((given.nodes[0].major(), given.nodes[0].minor()), (1, 5));
        let given = for_container(&config(vec![asked("/dev", "/host/dev", "r")]), &[], true).unwrap();
        let found = |path: &str| given.nodes.iter().any(|node| node.path() == Path::new(path));
        assert!(found("/host/dev/null") && !found("/host/dev/ptmx"), "{:?}", given.nodes);
        assert_eq!(given.rules.len(), default_rules().unwrap().len() + given.nodes.len());
    }

    #[test]
    fn what_is_no_device_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("file"), "").unwrap();
        fs::create_dir(path("empty")).unwrap();
        std::os::unix::fs::symlink("/etc", path("link")).unwrap();
        for (name, reason) in [
            ("file", "not a device"),
            ("empty", "no device in this directory"),
            ("link", "no device in this directory"),
            ("none", "no such file or directory"),
        ] {
            let list = vec![asked("/dev/null", "", "r"), asked(&path(name), "", "r")];
            let error = for_container(&config(list), &[], true).unwrap_err();
            assert!(error.text.starts_with(&format!("devices[1].host_path {}", path(name))), "{error}");
            assert!(error.text.contains(reason), "{error}");
        }
    }

    #[test]
    fn one_place_has_one_device() {
        let twice = vec![asked("/dev/zero", "/dev/x", "r"), asked("/dev/zero", "/dev/x", "w")];
        assert_eq!(for_container(&config(twice), &[], true).unwrap().nodes.len(), 1);
        let two = vec![asked("/dev/zero", "/dev/x", "r"), asked("/dev/full", "/dev/x", "r")];
        let error = for_container(&config(two), &[], true).unwrap_err();
        assert!(error.text.contains("devices[1]") && error.text.contains("/dev/x"), "{error}");
    }
}
