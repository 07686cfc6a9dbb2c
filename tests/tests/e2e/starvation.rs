//! A pod that has used up what it may have: whoever looks after it is not part of it, and lives on. `r39_` of the
//! adversarial cases.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1::{self as cri, NamespaceMode};
use crisp_tests::host;
use crisp_tests::node::{Node, Pod};
use crisp_tests::place::Need;
use crisp_tests::untouched;
use crisp_tests::wait;

use crate::case::Case;
use crate::limits::{cgroup, read};
use crate::restart::monitor_of;
use crate::userns;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "r39_a_pod_without_memory_keeps_its_monitor",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: memory,
    },
    Case {
        name: "r39_a_pod_without_processes_keeps_its_monitor",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: processes,
    },
    Case { name: "r39_a_monitor_is_never_the_victim", needs: &[], images: &["busybox"], run: spared },
];

/// Writes as fast as it can, and doubles what it holds until it is killed.
const HOG: &str = "yes 'a line of the flood' & x=aaaaaaaa; while :; do x=$x$x; done";
/// Enough for a shell, and not for a hog.
const MEMORY: i64 = 32 << 20;

fn options(pid: NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption { pid: pid.into(), ..Default::default() }
}

/// A pod, and a container in it that does nothing wrong.
fn with_sibling(node: &Node, name: &str, pid: NamespaceMode) -> Result<(Pod, String)> {
    let pod = node.run_pod_as(userns::sandbox(node, name, options(pid))?)?;
    let sibling = userns::container("sibling", &["sleep", "3600"], &options(pid))?;
    let sibling = node.launch_as(&pod, &sibling)?;
    Ok((pod, sibling))
}

fn parent(pod: &Pod) -> Result<String> {
    Ok(pod.config.linux.as_ref().context("linux")?.cgroup_parent.clone())
}

/// The monitor, outside of its pod's cgroup and spared.
fn monitor(node: &Node, pod: &Pod, container: &str) -> Result<i32> {
    let monitor = monitor_of(node, node.cri().pid(container)?)?;
    let cgroup = fs::read_to_string(format!("/proc/{monitor}/cgroup"))?;
    ensure!(!cgroup.contains(&parent(pod)?), "the monitor is in its pod's cgroup: {cgroup}");
    let score = fs::read_to_string(format!("/proc/{monitor}/oom_score_adj"))?;
    ensure!(score.trim() == "-999" || !may_spare()?, "oom_score_adj of the monitor: {score}");
    Ok(monitor)
}

/// Whether this place lets anybody be spared: CAP_SYS_RESOURCE.
fn may_spare() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    Ok(u64::from_str_radix(line.trim(), 16)? & (1 << 24) != 0)
}

fn spared(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        for pid in [NamespaceMode::Container, NamespaceMode::Pod] {
            let (pod, sibling) = with_sibling(node, "spared", pid)?;
            monitor(node, &pod, &sibling)?;
            // What spares it is not handed on, nor may it be taken: neither by a first process nor by an exec'd one.
            for process in ["1", "self"] {
                let pods_own = pid == NamespaceMode::Pod && process == "1";
                let file = format!("/proc/{process}/oom_score_adj");
                let score = node.cri().shell(&sibling, &format!("cat {file}"))?;
                ensure!(score.trim() == "0" || pods_own, "{score}");
                // What the pod's own init has may be given up; more than that nobody gets.
                let less = if pods_own { "-1000" } else { "-1" };
                let said = node.cri().exec(&sibling, &["sh", "-c", &format!("echo {less} >{file}")])?;
                ensure!(said.code != 0, "{process}: {said:?}");
            }
            node.end_pod(&pod)?;
        }
        Ok(())
    })
}

fn memory(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        for pid in [NamespaceMode::Container, NamespaceMode::Pod] {
            for whose in ["container", "pod"] {
                let (pod, sibling) = with_sibling(node, whose, pid)?;
                let before = monitor(node, &pod, &sibling)?;
                let mut hog = userns::container("hog", &["sh", "-c", HOG], &options(pid))?;
                if whose == "pod" {
                    // Kubelet's to write.
                    let cgroup = node.cgroup(&parent(&pod)?);
                    fs::write(cgroup.join("memory.max"), MEMORY.to_string())?;
                    fs::write(cgroup.join("memory.swap.max"), "0")?;
                } else {
                    let resources = &mut hog.linux.get_or_insert_default().resources;
                    resources.get_or_insert_default().memory_limit_in_bytes = MEMORY;
                }
                let hog = node.launch_as(&pod, &hog)?;
                let folder = cgroup(node, &hog).ok();
                let status = node.wait_for_exit(&hog)?;
                let end = (status.exit_code, status.reason.as_str());
                ensure!(end == (137, "OOMKilled"), "{whose}: {status:?}");
                // The flood ended with it, and what it said is whole.
                if let Some(folder) = folder {
                    wait::until_true("nobody in its cgroup", wait::LONG, || {
                        let events = fs::read_to_string(folder.join("cgroup.events"));
                        events.map_or(true, |text| text.contains("populated 0"))
                    })?;
                }
                ensure!(!crate::logs::read(node, &hog)?.is_empty(), "{whose}: nothing was logged");
                ensure!(monitor(node, &pod, &sibling)? == before && host::lives(before), "{whose}");
                ensure!(node.cri().shell(&sibling, "echo here")? == "here\n");
                node.end_pod(&pod)?;
            }
        }
        Ok(())
    })
}

fn processes(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        for pid in [NamespaceMode::Container, NamespaceMode::Pod] {
            let (pod, sibling) = with_sibling(node, "processes", pid)?;
            let before = monitor(node, &pod, &sibling)?;
            let limited = |name: &str, command: &[&str], most: u32| -> Result<_> {
                let mut config = userns::container(name, command, &options(pid))?;
                let resources = &mut config.linux.get_or_insert_default().resources;
                resources.get_or_insert_default().unified.insert("pids.max".to_owned(), most.to_string());
                Ok(config)
            };
            // One process; for a moment two where others live in the namespace that it is born into.
            let most = if pid == NamespaceMode::Pod { 2 } else { 1 };
            if most > 1 {
                no_container(node, &pod, &limited("none", &["true"], 1)?)?;
            }
            let forks =
                node.launch_as(&pod, &limited("forks", &["sh", "-c", "sleep 1 | sleep 1 | sleep 1"], most)?)?;
            ensure!(node.wait_for_exit(&forks)?.exit_code != 0);
            let log = crate::logs::read(node, &forks)?;
            ensure!(log.iter().any(|line| line.content.contains("an't fork")), "{log:?}");
            let alone = node.launch_as(&pod, &limited("alone", &["sleep", "3600"], most)?)?;
            no_exec(node, &alone)?;
            // The pod itself is full. That limit is kubelet's to write.
            let folder = node.cgroup(&parent(&pod)?);
            let present = fs::read_to_string(folder.join("pids.current"))?;
            fs::write(folder.join("pids.max"), present.trim())?;
            no_exec(node, &sibling)?;
            no_container(node, &pod, &userns::container("late", &["true"], &options(pid))?)?;
            // What was there is as it was, and ends when it is told to.
            ensure!(monitor(node, &pod, &sibling)? == before && host::lives(before));
            ensure!(read(node, &alone, "pids.current")? == "1");
            node.cri().stop(&alone, 0)?;
            ensure!(node.cri().container(&alone)?.exit_code == 137);
            fs::write(folder.join("pids.max"), "max")?;
            ensure!(node.cri().exec(&sibling, &["true"])?.code == 0);
            node.end_pod(&pod)?;
        }
        Ok(())
    })
}

/// A container is not made, and the answer says why.
fn no_container(node: &Node, pod: &Pod, config: &cri::ContainerConfig) -> Result<()> {
    let error = node.cri().create(&pod.id, config, &pod.config).err().context("a container was made")?;
    ensure!(error.message().contains("try again"), "{error:?}");
    Ok(())
}

/// An exec fails, and says why.
fn no_exec(node: &Node, id: &str) -> Result<()> {
    let error = node.cri().exec(id, &["true"]).err().context("something was executed")?;
    ensure!(error.message().contains("try again"), "{error:?}");
    Ok(())
}
