//! Which devices a container may use: checks of a request's `devices`, and the rules of `linux.resources.devices`.

use std::path::Path;

use crisp_proto::runtime::v1 as cri;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};

use super::sandbox::check_absolute;
use crate::error::{RequestError, Stage};

/// What every container may use besides what it is given: (type, major, minor, access); `None` is every number. The
/// list that containerd, CRI-O and runc have: making any node, for images that are unpacked inside a container; null,
/// zero, full, random and urandom; the terminal of a process, the terminal multiplexer and what it makes.
const DEFAULT: [(LinuxDeviceType, Option<i64>, Option<i64>, &str); 10] = [
    (LinuxDeviceType::C, None, None, "m"),
    (LinuxDeviceType::B, None, None, "m"),
    (LinuxDeviceType::C, Some(1), Some(3), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(5), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(7), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(8), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(9), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(0), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(2), "rwm"),
    (LinuxDeviceType::C, Some(136), None, "rwm"),
];

/// Where a device of a request appears in the container.
#[must_use]
pub fn container_path(device: &cri::Device) -> &Path {
    Path::new(if device.container_path.is_empty() { &device.host_path } else { &device.container_path })
}

/// Checks a request's `devices` as far as that goes without looking at the host.
///
/// # Errors
/// `Invalid`, naming the entry and its field.
pub fn check(devices: &[cri::Device]) -> Result<(), RequestError> {
    for (index, device) in devices.iter().enumerate() {
        let field = |name: &str| format!("devices[{index}].{name}");
        check_absolute(&field("host_path"), &device.host_path)?;
        if !device.container_path.is_empty() {
            check_absolute(&field("container_path"), &device.container_path)?;
        }
        if container_path(device).components().count() < 2 {
            return Err(RequestError::invalid(format!(
                "{} {:?} is the root",
                field("container_path"),
                container_path(device)
            )));
        }
        let letters = &device.permissions;
        let known = letters.chars().all(|letter| "rwm".contains(letter));
        let once = letters.chars().enumerate().all(|(at, letter)| letters.find(letter) == Some(at));
        if letters.is_empty() || !known || !once {
            return Err(RequestError::invalid(format!(
                "{} {letters:?}: one or more of r, w and m, each once, is expected",
                field("permissions")
            )));
        }
    }
    Ok(())
}

/// Nothing is allowed, then what every container may use.
///
/// # Errors
/// None that is expected.
pub fn default_rules() -> Result<Vec<LinuxDeviceCgroup>, RequestError> {
    let nothing = rule(false, LinuxDeviceType::A, None, None, "rwm");
    let default =
        DEFAULT.iter().map(|(kind, major, minor, access)| rule(true, *kind, *major, *minor, access));
    std::iter::once(nothing).chain(default).collect()
}

/// Everything is allowed: privileged containers, and hosts on which nothing can be forbidden.
///
/// # Errors
/// None that is expected.
pub fn open_rules() -> Result<Vec<LinuxDeviceCgroup>, RequestError> {
    Ok(vec![rule(true, LinuxDeviceType::A, None, None, "rwm")?])
}

/// The rule for a node that a container is given.
///
/// # Errors
/// None that is expected.
pub fn rule_for(device: &LinuxDevice, permissions: &str) -> Result<LinuxDeviceCgroup, RequestError> {
    rule(true, device.typ(), Some(device.major()), Some(device.minor()), permissions)
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> Result<LinuxDeviceCgroup, RequestError> {
    let mut rule = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .typ(kind)
        .access(access)
        .build()
        .stage("device rule")?;
    rule.set_major(major).set_minor(minor);
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn device(host: &str, container: &str, permissions: &str) -> cri::Device {
        cri::Device {
            host_path: host.into(),
            container_path: container.into(),
            permissions: permissions.into(),
        }
    }

    #[test]
    fn r32_malformed_devices_are_refused_and_named() {
        for (host, container, permissions, named) in [
            ("/dev/../etc", "", "r", "devices[1].host_path"),
            ("", "/dev/x", "r", "devices[1].host_path"),
            ("dev/fuse", "", "r", "devices[1].host_path"),
            ("/dev/fuse", "/dev/../etc/x", "r", "devices[1].container_path"),
            ("/dev/fuse", "x", "r", "devices[1].container_path"),
            ("/dev/fuse", "/", "r", "devices[1].container_path"),
            ("/", "", "r", "devices[1].container_path"),
            ("/dev/fuse", "", "", "devices[1].permissions"),
            ("/dev/fuse", "", "rwmx", "devices[1].permissions"),
            ("/dev/fuse", "", "rr", "devices[1].permissions"),
            ("/dev/fuse", "", "RW", "devices[1].permissions"),
        ] {
            let good = device("/dev/null", "", "rwm");
            let error = check(&[good, device(host, container, permissions)]).unwrap_err();
            assert_eq!(error.class, Class::Invalid);
            assert!(error.text.starts_with(named), "{host} {container} {permissions}: {error}");
        }
        let good = [device("/dev/fuse", "", "rw"), device("/dev/snd", "/dev/sound", "wmr")];
        assert_eq!(check(&good), Ok(()));
        assert_eq!(container_path(&good[0]), Path::new("/dev/fuse"));
        assert_eq!(container_path(&good[1]), Path::new("/dev/sound"));
    }

    #[test]
    fn rules_are_readable_by_what_applies_them() {
        use crisp_runtime::{cgroup::DeviceRule, oci::device_rules};
        assert_eq!(device_rules(&open_rules().unwrap()).unwrap(), [DeviceRule::ALLOW_ALL]);
        let rules = device_rules(&default_rules().unwrap()).unwrap();
        assert_eq!(rules[0], DeviceRule { allow: false, ..DeviceRule::ALLOW_ALL });
        assert!(rules[1..].iter().all(|rule| rule.allow && rule.kind.is_some()));
        let texts: Vec<_> = default_rules().unwrap().iter().map(ToString::to_string).collect();
        assert!(texts.iter().any(|text| text.contains("136:*")), "{texts:?}");
    }
}
