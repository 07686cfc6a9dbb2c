//! Limits and usage of a process's cgroup (kernel: cgroup-v2).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::Serialize;

/// A cgroup. Files that a missing controller does not make are `None`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Cgroup {
    /// Path below the root of the hierarchy.
    pub(super) path: String,
    /// `QUOTA PERIOD` in microseconds.
    pub(super) cpu_max: Option<String>,
    pub(super) cpu_weight: Option<String>,
    /// Bytes or `max`.
    pub(super) memory_max: Option<String>,
    /// Bytes in use.
    pub(super) memory_current: Option<String>,
    pub(super) pids_max: Option<String>,
    pub(super) pids_current: Option<String>,
}

/// The version 2 cgroup of a process. `root` is where the runtime says that version 2 is mounted.
///
/// # Errors
/// The process is gone, or no version 2 is mounted here.
pub(super) fn of(pid: u32, root: Option<&str>) -> Result<Cgroup> {
    let file = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let path = unified(&text).with_context(|| format!("{file} names no cgroup of version 2"))?;
    let root = match root {
        Some(root) => PathBuf::from(root),
        None => {
            let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
            mount_point(&mounts).context("cgroup version 2 is not mounted here")?
        }
    };
    Ok(read(&root, path))
}

fn unified(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn read(root: &Path, path: &str) -> Cgroup {
    let folder = root.join(path.trim_start_matches('/'));
    let file = |name: &str| fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned());
    Cgroup {
        path: path.to_owned(),
        cpu_max: file("cpu.max"),
        cpu_weight: file("cpu.weight"),
        memory_max: file("memory.max"),
        memory_current: file("memory.current"),
        pids_max: file("pids.max"),
        pids_current: file("pids.current"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_line_counts_on_mixed_hosts() {
        assert_eq!(unified("4:memory:/v1\n0::/crisp/pod1/c\n"), Some("/crisp/pod1/c"));
        assert_eq!(unified("4:memory:/v1\n"), None);
        let mounts = "30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn files_that_are_missing_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/pids.max"), "max\n").unwrap();
        let found = read(root.path(), "/a/b");
        assert_eq!(found, Cgroup { path: "/a/b".into(), pids_max: Some("max".into()), ..Default::default() });
    }
}
