//! Everything that a container's metrics are made of, read once.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crisp_image::Written;
use crisp_proto::runtime::v1 as cri;
use crisp_runtime::cgroup::CgroupStats;
use crisp_sys::{
    device,
    path::{FsSpace, fs_space},
};

use super::stats;
use crate::{node::Node, record::ContainerRecord, time::now_nanos};

/// The file system that writable layers are on.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub(super) device: String,
    pub(super) space: Option<FsSpace>,
}

impl Storage {
    /// The one that `root` is on.
    pub(super) fn read(root: &Path) -> Self {
        let name = |meta: fs::Metadata| device_name(device::major(meta.dev()), device::minor(meta.dev()));
        Self {
            device: fs::metadata(root).map(name).unwrap_or_default(),
            space: fs::File::open(root).ok().and_then(|root| fs_space(root).ok()),
        }
    }
}

/// `/dev/` and the kernel's name of a block device; its numbers for a file system that is on none.
pub(super) fn device_name(major: u32, minor: u32) -> String {
    let numbers = format!("{major}:{minor}");
    let target = fs::read_link(Path::new("/sys/dev/block").join(&numbers)).ok();
    // sysfs has a "!" where a device's name has a "/".
    let name =
        target.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().replace('!', "/"));
    name.map_or(numbers, |name| format!("/dev/{name}"))
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) stats: CgroupStats,
    pub(super) processes: u64,
    /// Open in all processes together.
    pub(super) descriptors: u64,
    /// Of them sockets.
    pub(super) sockets: u64,
    /// RLIMIT_NOFILE of the first process.
    pub(super) soft_open_files: Option<u64>,
    /// Bytes and inodes.
    pub(super) layer: Option<Written>,
    pub(super) storage: Storage,
    pub(super) resources: cri::LinuxContainerResources,
    pub(super) started_nanos: i64,
    pub(super) now_nanos: i64,
}

impl Reading {
    /// `None`: the container has gone.
    pub(super) fn take(
        node: &Node,
        record: &ContainerRecord,
        started_nanos: i64,
        layer: Option<Written>,
        storage: Storage,
    ) -> Option<Self> {
        let stats = stats::read_cgroup(node, &record.cgroup)?;
        let pids = node.cgroups.processes(&record.cgroup).unwrap_or_default();
        let linux = record.config.linux.as_ref();
        let open = pids.iter().map(|pid| open_files(*pid));
        let (descriptors, sockets) = open.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        Some(Self {
            stats,
            processes: pids.len() as u64,
            descriptors,
            sockets,
            soft_open_files: record.process.and_then(|process| soft_open_files(process.pid)),
            layer,
            storage,
            resources: linux.and_then(|linux| linux.resources.clone()).unwrap_or_default(),
            started_nanos,
            now_nanos: now_nanos(),
        })
    }
}

fn of_process(pid: i32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

/// File descriptors of a process, and how many of them are sockets (proc_pid_fd(5)). One that has ended has none.
fn open_files(pid: i32) -> (u64, u64) {
    let Ok(entries) = fs::read_dir(of_process(pid, "fd")) else { return (0, 0) };
    let is_socket = |path: PathBuf| {
        fs::read_link(path).is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
    };
    entries
        .flatten()
        .fold((0, 0), |(all, sockets), entry| (all + 1, sockets + u64::from(is_socket(entry.path()))))
}

/// proc_pid_limits(5): name, soft limit, hard limit, unit.
fn soft_open_files(pid: i32) -> Option<u64> {
    let limits = fs::read_to_string(of_process(pid, "limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sockets_are_told_from_other_files() {
        let own = i32::try_from(std::process::id()).unwrap();
        // Other tests of this program open and close files at the same time: more is fine, less is not.
        let _pair = UnixStream::pair().unwrap();
        let _file = fs::File::open("/proc/self/status").unwrap();
        let (all, sockets) = open_files(own);
        assert!(sockets >= 2 && all > sockets, "{all} {sockets}");
        assert!(soft_open_files(own).unwrap() > 0);
    }

    #[test]
    fn a_file_system_on_no_device_has_numbers_for_a_name() {
        assert_eq!(device_name(0, 4_000_000), "0:4000000");
        let storage = Storage::read(Path::new("/proc"));
        assert!(storage.device.starts_with("0:"), "{storage:?}");
    }
}
