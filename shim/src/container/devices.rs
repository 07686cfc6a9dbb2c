//! The host's device nodes, for privileged containers.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use crisp_proto::runtime::v1 as cri;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

use crate::{
    convert::spec::security,
    error::{RequestError, Stage},
};

/// What a container has of its own: file systems below `/dev`, the terminal multiplexer of its own devpts, and a
/// console only with a terminal.
const SKIPPED: [&str; 6] = ["pts", "ptmx", "shm", "mqueue", "fd", "console"];

/// The extra device nodes of a container: every one of the host's for a privileged one, none otherwise.
///
/// # Errors
/// `/dev` cannot be read.
pub(super) fn for_container(config: &cri::ContainerConfig) -> Result<Vec<LinuxDevice>, RequestError> {
    let mut devices = Vec::new();
    if security(config).privileged {
        collect(Path::new("/dev"), &mut devices)?;
    }
    Ok(devices)
}

fn collect(directory: &Path, devices: &mut Vec<LinuxDevice>) -> Result<(), RequestError> {
    let entries = fs::read_dir(directory).stage(format_args!("read {}", directory.display()))?;
    for entry in entries.flatten() {
        if SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
            continue;
        }
        // A node that vanishes while the directory is read is none.
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        let kind = metadata.file_type();
        if kind.is_dir() {
            collect(&entry.path(), devices)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            devices.push(device(&entry.path(), &metadata)?);
        }
    }
    Ok(())
}

fn device(path: &Path, metadata: &fs::Metadata) -> Result<LinuxDevice, RequestError> {
    let kind = match metadata.file_type().is_block_device() {
        true => LinuxDeviceType::B,
        false => LinuxDeviceType::C,
    };
    let number = |value: u32| i64::from(value);
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(kind)
        .major(number(crisp_sys::device::major(metadata.rdev())))
        .minor(number(crisp_sys::device::minor(metadata.rdev())))
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()
        .stage(format_args!("device {}", path.display()))
}
