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
    /// Microseconds of CPU time used so far.
    pub(super) cpu_usage: Option<String>,
    /// How often its quota was used up before the period's end.
    pub(super) cpu_throttled: Option<String>,
}

/// The version 2 cgroup of a process. `root` is where the runtime says that version 2 is mounted.
///
/// # Errors
/// The process is gone, or no version 2 is mounted here.
pub(super) fn of(pid: u32, root: Option<&str>) -> Result<Cgroup> {
    let file = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    at(unified(&text).with_context(|| format!("{file} names no cgroup of version 2"))?, root)
}

/// The cgroup at `path`.
///
/// # Errors
/// No version 2 is mounted here.
pub(super) fn at(path: &str, root: Option<&str>) -> Result<Cgroup> {
    let root = match root {
        Some(root) => PathBuf::from(root),
        None => {
            let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
            mount_point(&mounts).context("cgroup version 2 is not mounted here")?
        }
    };
    Ok(read(&root, path))
}

/// The cgroup right above all of these, if there is one and it is not the root: what it allows holds for all together.
pub(super) fn above(paths: &[&str]) -> Option<String> {
    let mut parents = paths.iter().map(|path| path.rsplit_once('/').map_or("", |(parent, _)| parent));
    let first = parents.next()?;
    (!first.is_empty() && parents.all(|parent| parent == first)).then(|| first.to_owned())
}

/// `20000 100000` -> `0.2 CPUs`; `max` where there is no limit.
pub(super) fn cpus(value: &str) -> String {
    let parts: Vec<Option<f64>> = value.split(' ').map(|part| part.parse().ok()).collect();
    match parts[..] {
        [Some(quota), Some(period)] if period > 0.0 => format!("{} CPUs", quota / period),
        _ => "max".to_owned(),
    }
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
    let statistics = file("cpu.stat").unwrap_or_default();
    Cgroup {
        path: path.to_owned(),
        cpu_max: file("cpu.max"),
        cpu_weight: file("cpu.weight"),
        memory_max: file("memory.max"),
        memory_current: file("memory.current"),
        pids_max: file("pids.max"),
        pids_current: file("pids.current"),
        cpu_usage: counter(&statistics, "usage_usec"),
        cpu_throttled: counter(&statistics, "nr_throttled"),
    }
}

/// A line `KEY VALUE` of a file of such lines.
fn counter(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned))
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
        fs::write(root.path().join("a/b/cpu.stat"), "usage_usec 1200\nuser_usec 7\n").unwrap();
        let found = read(root.path(), "/a/b");
        let expected = Cgroup {
            path: "/a/b".into(),
            pids_max: Some("max".into()),
            cpu_usage: Some("1200".into()),
            ..Default::default()
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn what_holds_for_all_is_the_parent_they_have_in_common() {
        assert_eq!(above(&["/crisp/pod/a", "/crisp/pod/b"]).as_deref(), Some("/crisp/pod"));
        assert_eq!(above(&["/crisp/pod/a"]).as_deref(), Some("/crisp/pod"));
        assert_eq!(above(&["/crisp/pod/a", "/crisp/other/b"]), None);
        assert_eq!((above(&["/a", "/b"]), above(&["/"]), above(&[])), (None, None, None));
    }

    #[test]
    fn quotas_are_read_as_people_read_them() {
        assert_eq!((cpus("20000 100000"), cpus("max 100000")), ("0.2 CPUs".into(), "max".into()));
    }
}
