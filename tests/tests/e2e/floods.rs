//! Output without end: it costs its own log and nothing else.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::Node;
use crisp_tests::untouched::{self, Footprint, peak_kib};
use crisp_tests::wait;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "x05_a_flood_costs_its_own_log_and_nothing_else",
        needs: &[],
        images: &["busybox"],
        run: floods,
    },
    Case { name: "x05_a_log_on_a_full_disk_drops_whole_lines", needs: &[], images: &["busybox"], run: full },
];

/// How much more memory a monitor may have had at its peak, KiB: its buffers, and one line of each stream.
const MONITOR_KIB: u64 = 2 << 10;
/// Size of the log's file system. Floods fill it in no time; that is part of the test.
const LOG_BYTES: u64 = 16 << 20;

/// A tmpfs of `size` at `at`; gone when dropped.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(at: &'a Path, size: u64) -> Result<Self> {
        fs::create_dir_all(at)?;
        let options = format!("size={size}");
        mount(Some("logs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(at))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

fn monitor(node: &Node, id: &str) -> Result<i32> {
    crate::restart::monitor_of(node, node.cri().pid(id)?)
}

/// Bytes in the log of a container.
fn logged(node: &Node, id: &str) -> Result<u64> {
    let path = node.cri().container(id)?.log_path;
    Ok(fs::metadata(&path).with_context(|| path.clone())?.len())
}

fn floods(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        // One number a line, to see that none is lost beside a flood.
        let quiet = node.run_pod("quiet")?;
        let counting = "n=0; while :; do echo $n; n=$((n+1)); sleep 0.01; done";
        let counter = node.launch(&quiet, "c", "busybox", &["sh", "-c", counting])?;
        for (name, line) in [
            ("bytes", "while :; do printf x; done"),
            ("nuls", "exec cat /dev/zero"),
            ("empty-lines", "exec yes ''"),
            ("lines", "exec yes"),
            ("one-line", "head -c 300000000 /dev/zero | tr '\\0' x; echo; exec sleep 3600"),
            ("both", "yes out & exec yes err >&2"),
        ] {
            flood(node, name, line).with_context(|| name.to_owned())?;
        }
        let seen = crate::logs::read(node, &counter)?.len();
        crate::logs::wait_for_lines(node, &counter, seen + 3)?;
        node.cri().stop(&counter, 0)?;
        let log = crate::logs::read(node, &counter)?;
        let lost = log.iter().enumerate().find(|(at, line)| line.content != at.to_string());
        ensure!(lost.is_none(), "another pod's log lost a line: {lost:?}");
        node.end_pod(&quiet)
    })
}

fn flood(node: &Node, name: &str, line: &str) -> Result<()> {
    let config = node.pod_config(&format!("flood-{name}"));
    let logs = config.log_directory.clone();
    let small = Small::mount(logs.as_ref(), LOG_BYTES)?;
    let pod = node.run_pod_as(config)?;
    let sibling = node.launch(&pod, "sibling", "busybox", &["sleep", "3600"])?;
    let footprint = Footprint::of(monitor(node, &sibling)?)?;
    let id = node.launch(&pod, "c", "busybox", &["sh", "-c", line])?;
    // The bytes one by one take their time; of the rest, until the file system is full.
    let enough = if name == "bytes" { 100_000 } else { LOG_BYTES * 3 / 4 };
    wait::until_true("a flood in the log", wait::LONG, || {
        logged(node, &id).is_ok_and(|bytes| bytes > enough)
    })?;
    ensure!(node.cri().exec(&sibling, &["echo", "served"])?.stdout == "served\n", "a sibling");
    // Its file goes away under it, and comes back with the next reopening.
    let path = node.cri().container(&id)?.log_path;
    fs::remove_file(&path)?;
    node.cri().reopen_container_log(cri::ReopenContainerLogRequest { container_id: id.clone() })?;
    ensure!(Path::new(&path).exists(), "no new log");
    node.cri().stop(&id, 0)?;
    ensure!(node.cri().container(&id)?.exit_code == 137);
    let peak = peak_kib(monitor(node, &sibling)?)?;
    ensure!(
        peak <= footprint.resident_kib + MONITOR_KIB,
        "the monitor: {} KiB, then {peak} KiB",
        footprint.resident_kib
    );
    node.end_pod(&pod)?;
    drop(small);
    Ok(())
}

fn full(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let config = node.pod_config("full");
        let logs = config.log_directory.clone();
        let small = Small::mount(logs.as_ref(), 64 << 10)?;
        let pod = node.run_pod_as(config)?;
        // It says what the log has no room for, and goes on all the same.
        let line = "n=0; while [ $n -lt 5000 ]; do echo line $n; n=$((n+1)); done; exit 9";
        let id = node.launch(&pod, "c", "busybox", &["sh", "-c", line])?;
        let status = node.wait_for_exit(&id)?;
        ensure!((status.exit_code, status.reason.as_str()) == (9, "Error"), "{status:?}");
        let log = crate::logs::read(node, &id)?;
        ensure!(!log.is_empty() && log.len() < 5000, "{} lines fit", log.len());
        for (at, line) in log.iter().enumerate() {
            ensure!(line.tag == "F" && line.content == format!("line {at}"), "line {at} is {line:?}");
        }
        // A container whose log cannot even be made is refused, by name; it can be once there is room.
        fs::write(Path::new(&logs).join("rest"), vec![0; 64 << 10]).err().context("there was room left")?;
        let config = container_config("late", "busybox", &["true"]);
        let late = node.cri().launch(&pod.id, &config, &pod.config);
        if let Err(status) = &late {
            ensure!(status.message().contains("late"), "{status:?}");
        }
        fs::remove_file(Path::new(&logs).join("rest"))?;
        fs::remove_file(&status.log_path)?;
        let next = node.launch(&pod, "next", "busybox", &["echo", "room"])?;
        node.wait_for_exit(&next)?;
        ensure!(crate::logs::read(node, &next)?.len() == 1);
        node.end_pod(&pod)?;
        drop(small);
        Ok(())
    })
}
