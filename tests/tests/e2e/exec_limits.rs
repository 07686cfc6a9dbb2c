//! What execs may hold, what they may leave, and what ends them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{Cri, refused, words};
use crisp_tests::node::{Node, Pod};
use crisp_tests::place::rounds;
use crisp_tests::streaming::WebSocket;
use crisp_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

use crate::case::Case;
use crate::streaming::{exec_url, sleeper, wait_until_alone};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "x01_all_of_exec_sync_has_one_bound", needs: &[], images: &["busybox"], run: bounded },
    Case {
        name: "execs_whose_children_end_later_leave_no_cgroup",
        needs: &[],
        images: &["busybox"],
        run: later,
    },
    Case {
        name: "execs_leave_children_that_survive_the_daemon",
        needs: &[],
        images: &["busybox"],
        run: survives,
    },
    Case { name: "exec_sync_ends_with_the_daemon", needs: &[], images: &["busybox"], run: terminated },
    Case {
        name: "exec_into_a_frozen_container_ends_with_its_client",
        needs: &[],
        images: &["busybox"],
        run: frozen,
    },
];

fn bounded(node: &mut Node) -> Result<()> {
    // What all calls may keep, what each may besides (its own share, buffers, a task), and what the daemon does anyway.
    const SHARED: u64 = 128 << 10;
    const EACH: u64 = 512;
    const MARGIN: u64 = 32 << 10;
    let (pod, id) = sleeper(node, "bounded")?;
    let daemon = i64::from(node.daemon_pid()?);
    // Not answered, so that nothing but what is kept counts. Each floods both streams until it is killed.
    let calls = rounds(100, 20) as u64;
    let before = peak(daemon)?;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..calls)
            .map(|_| {
                let request = cri::ExecSyncRequest {
                    container_id: id.clone(),
                    cmd: words(&["sh", "-c", "cat /dev/zero & exec cat /dev/zero >&2"]),
                    timeout: rounds(8, 60) as i64,
                };
                let cri = node.cri();
                scope.spawn(move || cri.exec_sync(request))
            })
            .collect();
        wait::until("the floods to fill what all may keep", wait::LONG, || match peak(daemon) {
            Ok(now) if now >= before + SHARED => Ok(()),
            now => Err(format!("{before} {now:?}")),
        })?;
        // Who says little is heard all the same.
        let little = node.cri().shell(&id, "head -c 10000 /dev/zero | tr '\\0' x")?;
        ensure!(little.len() == 10_000, "{} of 10000 bytes", little.len());
        for one in all {
            let reply = one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
            refused(reply, Code::DeadlineExceeded)?;
        }
        anyhow::Ok(())
    })?;
    let after = peak(daemon)?;
    ensure!(after <= before + SHARED + calls * EACH + MARGIN, "kB at most: {before} before, {after} after");
    wait_until_alone(node, &id)?;
    // All of it has come back: one call may have as much as ever.
    let line = "head -c 17000000 /dev/zero";
    let said = node.cri().exec_sync(cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: words(&["sh", "-c", line]),
        timeout: 0,
    })?;
    ensure!(said.stdout.len() > 15 << 20, "{}", said.stdout.len());
    node.end_pod(&pod)
}

/// The most kilobytes that a process has ever had resident.
fn peak(pid: i64) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

fn entries(folder: &Path, part: &str) -> Result<Vec<PathBuf>> {
    let all = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(all.into_iter().filter(|path| path.to_string_lossy().contains(part)).collect())
}

/// The folder of a container's cgroup.
fn container_cgroup(node: &Node, pod: &Pod, id: &str) -> Result<PathBuf> {
    let parent = &pod.config.linux.as_ref().context("no linux")?.cgroup_parent;
    entries(&node.cgroup(parent), id)?.pop().context("the container has no cgroup")
}

/// The folders of the cgroups of a container's execs.
fn exec_cgroups(node: &Node, pod: &Pod, id: &str) -> Result<Vec<PathBuf>> {
    entries(&container_cgroup(node, pod, id)?, "/exec-")
}

fn later(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "later")?;
    node.cri().shell(&id, "mkfifo /gate")?;
    for _ in 0..50 {
        node.cri().shell(&id, "exec >/dev/null 2>&1; (read word </gate) &")?;
    }
    let waiting = exec_cgroups(node, &pod, &id)?;
    ensure!(waiting.len() == 50, "{waiting:?}");
    // Whoever waits at the gate goes on and ends; not all may have come to it yet.
    wait::until("the cgroups of execs to be gone", wait::LONG, || {
        let told = node.cri().shell(&id, ": <>/gate").and_then(|_| exec_cgroups(node, &pod, &id));
        match told {
            Ok(left) if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })?;
    node.end_pod(&pod)
}

fn survives(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "survives")?;
    node.cri().shell(&id, "exec >/dev/null 2>&1; sleep 2000 &")?;
    let [stays] = exec_cgroups(node, &pod, &id)?.try_into().map_err(|all| anyhow!("{all:?}"))?;
    node.cri().shell(&id, "exec >/dev/null 2>&1; sleep 2002 &")?;
    let url = exec_url(node, &id, &["sh", "-c", "echo ready; sleep 2001"], true, false)?;
    let mut session = WebSocket::open(&url, "v5.channel.k8s.io")?;
    session.wait_for("ready")?;
    ensure!(exec_cgroups(node, &pod, &id)?.len() == 3);
    node.kill()?;
    // The last process of one ends while nobody looks.
    for cgroup in exec_cgroups(node, &pod, &id)? {
        for pid in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
            if fs::read(format!("/proc/{pid}/cmdline"))? == b"sleep\x002002\0" {
                kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
                wait::until_true("its cgroup to be empty", wait::LONG, || {
                    fs::read_to_string(cgroup.join("cgroup.events"))
                        .is_ok_and(|text| text.contains("populated 0"))
                })?;
            }
        }
    }
    node.serve()?;
    ensure!(exec_cgroups(node, &pod, &id)? == [stays], "{:?}", exec_cgroups(node, &pod, &id));
    let left = node.cri().shell(&id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?;
    ensure!(left.contains("sleep 2000 ") && !left.contains("sleep 2001 "), "{left}");
    node.end_pod(&pod)
}

fn terminated(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "terminated")?;
    let request = cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: words(&["sh", "-c", "sleep 2001 & exec sleep 2000"]),
        timeout: 0,
    };
    let cri = Cri::new(&node.folder().join("crisp.sock"))?;
    let asked = std::thread::spawn(move || cri.exec_sync(request));
    wait::until_true("the exec to run", wait::LONG, || {
        let left = node.cri().shell(&id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
        left.is_ok_and(|left| left.contains("sleep 2000 ") && left.contains("sleep 2001 "))
    })?;
    node.stop()?;
    refused(asked.join().map_err(|_| anyhow!("the client panicked"))?, Code::Unavailable)?;
    let left = exec_cgroups(node, &pod, &id)?;
    ensure!(left.is_empty(), "before the next daemon: {left:?}");
    node.serve()?;
    ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning);
    wait_until_alone(node, &id)?;
    node.end_pod(&pod)
}

fn frozen(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "frozen")?;
    let container = container_cgroup(node, &pod, &id)?;
    fs::write(container.join("cgroup.freeze"), "1")?;
    for tty in [false, true] {
        let session = WebSocket::open(&exec_url(node, &id, &["true"], true, tty)?, "v5.channel.k8s.io")?;
        wait::until("the exec to have a cgroup", wait::LONG, || match exec_cgroups(node, &pod, &id) {
            Ok(some) if some.len() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        drop(session);
        wait::until("the exec's cgroup to be gone", wait::LONG, || match exec_cgroups(node, &pod, &id) {
            Ok(none) if none.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
    }
    fs::write(container.join("cgroup.freeze"), "0")?;
    ensure!(node.cri().shell(&id, "echo alive")? == "alive\n");
    wait_until_alone(node, &id)?;
    node.end_pod(&pod)
}
