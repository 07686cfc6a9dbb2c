//! Containers that do not want to go: storms of processes, signals that are ignored, frozen cgroups.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused};
use crisp_tests::host;
use crisp_tests::node::Node;
use crisp_tests::untouched;
use crisp_tests::wait;
use tonic::Code;

use crate::case::Case;
use crate::limits::cgroup;
use crate::userns;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "x06_a_storm_of_forks_ends_with_its_stop", needs: &[], images: &["busybox"], run: storm },
    Case { name: "x07_nothing_resists_a_kill", needs: &[], images: &["busybox"], run: nothing_resists },
];

/// Nothing lives in the cgroup, or it is gone.
fn is_empty(folder: &Path) -> bool {
    fs::read_to_string(folder.join("cgroup.events")).is_ok_and(|text| text.contains("populated 0"))
        || !folder.exists()
}

fn storm(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        // Never many at a time, and never the same ones: what is killed one by one is never all killed.
        let storm = "for i in 1 2 3 4 5 6; do (while :; do (:) & wait; done) & done; echo up; wait";
        let pod = node.run_pod("storm")?;
        let quiet = node.launch(&pod, "quiet", "busybox", &["sleep", "3600"])?;
        for round in 0..3 {
            let mut config = container_config("storm", "busybox", &["sh", "-c", storm]);
            config.metadata.get_or_insert_default().attempt = round;
            let id = node.launch_as(&pod, &config)?;
            crate::logs::wait_for_lines(node, &id, 1)?;
            let folder = cgroup(node, &id)?;
            node.cri().stop(&id, 0)?;
            ensure!(is_empty(&folder), "the storm goes on");
            ensure!(node.cri().container(&id)?.exit_code == 137);
        }
        // In a user namespace, where whoever started it is root.
        let options = userns::options(userns::HOST, cri::NamespaceMode::Container);
        let apart = node.run_pod_as(userns::sandbox(node, "storm-apart", options.clone())?)?;
        let id = node.launch_as(&apart, &userns::container("storm", &["sh", "-c", storm], &options)?)?;
        crate::logs::wait_for_lines(node, &id, 1)?;
        let folder = cgroup(node, &id)?;
        node.cri().stop(&id, 0)?;
        ensure!(is_empty(&folder), "the storm goes on");
        node.end_pod(&apart)?;
        // In an exec: it ends with the time limit, and the container does not.
        let request = cri::ExecSyncRequest {
            container_id: quiet.clone(),
            cmd: ["sh", "-c", storm].map(str::to_owned).into(),
            timeout: 1,
        };
        refused(node.cri().exec_sync(request), Code::DeadlineExceeded)?;
        let left: Vec<_> =
            fs::read_dir(cgroup(node, &quiet)?)?.flatten().filter(|entry| entry.path().is_dir()).collect();
        ensure!(left.is_empty(), "{left:?}");
        ensure!(node.cri().shell(&quiet, "echo calm")? == "calm\n");
        node.end_pod(&pod)
    })
}

/// Ignores the stop signal and leaves behind what it can: orphans in sessions of their own, a zombie and its parent who
/// never asks, a stopped process.
const RESISTS: &str = "trap '' TERM; (setsid sh -c 'trap \"\" TERM HUP; sleep 3600' &); (sh -c 'sh -c : & exec sleep 3600' &); \
                       sleep 3600 & kill -STOP $!; echo up; while :; do sleep 1; done";

fn nothing_resists(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        for shared in [false, true] {
            let pid = if shared { cri::NamespaceMode::Pod } else { cri::NamespaceMode::Container };
            let namespaces = cri::NamespaceOption { pid: pid.into(), ..Default::default() };
            let mut config = node.pod_config(if shared { "shared" } else { "own" });
            let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.namespace_options = Some(namespaces.clone());
            let pod = node.run_pod_as(config)?;
            for (attempt, what) in (0..).zip(["plain", "frozen", "in a cgroup below", "frozen below"]) {
                let mut config = container_config("c", "busybox", &["sh", "-c", RESISTS]);
                let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
                security.namespace_options = Some(namespaces.clone());
                config.metadata.get_or_insert_default().attempt = attempt;
                let id = node.launch_as(&pod, &config)?;
                crate::logs::wait_for_lines(node, &id, 1)?;
                let folder = cgroup(node, &id)?;
                let pids = wait::until("all of its processes", wait::LONG, || {
                    let text =
                        fs::read_to_string(folder.join("cgroup.procs")).map_err(|error| error.to_string())?;
                    let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
                    if pids.len() >= 4 { Ok(pids) } else { Err(text) }
                })?;
                if what.contains("below") {
                    fs::create_dir_all(folder.join("a/b"))?;
                    for pid in &pids[1..] {
                        // One may have been a short-lived one.
                        let _ = fs::write(folder.join("a/b/cgroup.procs"), pid.to_string());
                    }
                }
                match what {
                    "frozen" => fs::write(folder.join("cgroup.freeze"), "1")?,
                    "frozen below" => fs::write(folder.join("a/cgroup.freeze"), "1")?,
                    _ => {}
                }
                // The signal is ignored, or cannot be taken; then comes the kill.
                node.cri().stop(&id, 1)?;
                ensure!(is_empty(&folder), "{what}: something is left in {}", folder.display());
                wait::until_true("every process to be gone", wait::LONG, || {
                    !pids.iter().any(|pid| host::lives(*pid))
                })?;
                let status = node.cri().container(&id)?;
                ensure!(status.exit_code == 137, "{what}: {status:?}");
            }
            node.end_pod(&pod)?;
        }
        Ok(())
    })
}
