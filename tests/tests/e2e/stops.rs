//! Stop reaches its end: the signal first, one kill for all, an empty cgroup as the proof, and what cannot end is named
//! and holds up nobody else.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused};
use crisp_tests::dead::{DeadStorage, FILE};
use crisp_tests::node::{Node, Pod};
use crisp_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "a_second_stop_only_brings_the_end_forward",
        needs: &[],
        images: &["busybox"],
        run: second_stop,
    },
    Case { name: "a_stop_goes_on_without_its_client", needs: &[], images: &["busybox"], run: client_gone },
    Case {
        name: "a_stopped_container_has_an_empty_cgroup",
        needs: &[],
        images: &["busybox"],
        run: empty_cgroup,
    },
    Case { name: "a_frozen_container_hears_its_stop_signal", needs: &[], images: &["busybox"], run: frozen },
    Case { name: "a_negative_timeout_is_refused", needs: &[], images: &["busybox"], run: negative },
    Case { name: "a_silent_monitor_holds_up_no_stop", needs: &[], images: &["busybox"], run: silent_monitor },
    Case {
        name: "x07_a_container_stuck_on_dead_storage_is_named_and_alone",
        needs: &[],
        images: &["busybox"],
        run: dead_storage,
    },
    Case {
        name: "a_program_on_dead_storage_does_not_keep_its_pod_from_being_stopped",
        needs: &[],
        images: &["busybox"],
        run: dead_program,
    },
];

/// Counts its stop signals in the log and goes on.
const COUNTING: &str = "trap 'echo term' TERM; echo up; while :; do sleep 0.1; done";

fn second_stop(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("second-stop")?;
    for round in 0..5 {
        let id = node.launch(&pod, &format!("c{round}"), "busybox", &["sh", "-c", COUNTING])?;
        crate::logs::wait_for_lines(node, &id, 1)?;
        // Whichever comes first: one signal, and the shorter of the two grace periods.
        std::thread::scope(|scope| -> Result<()> {
            let calls = [scope.spawn(|| node.cri().stop(&id, 3600)), scope.spawn(|| node.cri().stop(&id, 1))];
            for call in calls {
                call.join().map_err(|_| anyhow!("a client panicked"))??;
            }
            Ok(())
        })?;
        let said: Vec<_> = crate::logs::read(node, &id)?.into_iter().map(|line| line.content).collect();
        ensure!(said == ["up", "term"], "{said:?}");
        ensure!(node.cri().container(&id)?.exit_code == 137);
    }
    node.end_pod(&pod)
}

fn client_gone(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("client-gone")?;
    let id = node.launch(&pod, "c", "busybox", &["sh", "-c", COUNTING])?;
    crate::logs::wait_for_lines(node, &id, 1)?;
    let given_up = node.cri().within(Duration::from_millis(200)).stop(&id, 2);
    ensure!(given_up.is_err_and(|status| matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)));
    let status = node.wait_for_exit(&id)?;
    ensure!(status.exit_code == 137, "{status:?}");
    let said: Vec<_> = crate::logs::read(node, &id)?.into_iter().map(|line| line.content).collect();
    ensure!(said == ["up", "term"], "{said:?}");
    node.end_pod(&pod)
}

/// Whether the kernel says that nothing lives in the container's cgroup; one that is gone is empty.
fn is_empty(node: &Node, pod: &Pod, id: &str) -> Result<bool> {
    let parent = pod.config.linux.as_ref().context("linux")?.cgroup_parent.clone();
    let events = node.cgroup(&parent).join(id).join("cgroup.events");
    match fs::read_to_string(&events) {
        Ok(text) => Ok(text.contains("populated 0")),
        Err(_) => Ok(true),
    }
}

fn empty_cgroup(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("empty-cgroup")?;
    // Orphans that ignore everything, in a PID namespace whose init is not theirs, and the same in one of their own.
    let line = "for i in 1 2 3 4 5; do (trap '' TERM HUP INT; setsid sleep 3600 </dev/null >/dev/null 2>&1 &) ; done; \
                exec sleep 3600";
    for (round, shared) in [(0, true), (1, false)] {
        for grace in [0, 1] {
            let mut config = container_config(&format!("c{round}{grace}"), "busybox", &["sh", "-c", line]);
            if shared {
                config.linux = None;
            }
            let id = node.launch_as(&pod, &config)?;
            ensure!(!is_empty(node, &pod, &id)?, "no cgroup to look at");
            node.cri().stop(&id, grace)?;
            ensure!(is_empty(node, &pod, &id)?, "something runs on after Stop({grace}), shared {shared}");
            ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerExited);
        }
    }
    node.end_pod(&pod)
}

fn negative(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("negative")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    for timeout in [-1, i64::MIN] {
        let message = refused(node.cri().stop(&id, timeout), Code::InvalidArgument)?;
        ensure!(message.contains("timeout"), "{message}");
        let request =
            cri::ExecSyncRequest { container_id: id.clone(), cmd: vec!["true".to_owned()], timeout };
        let message = refused(node.cri().exec_sync(request), Code::InvalidArgument)?;
        ensure!(message.contains("timeout"), "{message}");
    }
    ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning);
    // The other end of the range is only long.
    let request = cri::ExecSyncRequest { container_id: id, cmd: vec!["true".to_owned()], timeout: i64::MAX };
    ensure!(node.cri().exec_sync(request)?.exit_code == 0);
    node.end_pod(&pod)
}

fn frozen(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("frozen")?;
    let parent = pod.config.linux.as_ref().context("linux")?.cgroup_parent.clone();
    for below in [false, true] {
        let line = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done";
        let id = node.launch(&pod, &format!("c{below}"), "busybox", &["sh", "-c", line])?;
        crate::logs::wait_for_lines(node, &id, 1)?;
        let cgroup = node.cgroup(&parent).join(&id);
        let frozen = if below { cgroup.join("below") } else { cgroup };
        if below {
            fs::create_dir(&frozen)?;
            fs::write(frozen.join("cgroup.procs"), node.cri().pid(&id)?.to_string())?;
        }
        fs::write(frozen.join("cgroup.freeze"), "1")?;
        wait::until_true("a frozen container", wait::LONG, || {
            fs::read_to_string(frozen.join("cgroup.events")).is_ok_and(|text| text.contains("frozen 1"))
        })?;
        // Longer than this test waits for anything: it ends by its own hand.
        node.cri().stop(&id, 3600)?;
        ensure!(node.cri().container(&id)?.exit_code == 3, "{:?}", node.cri().container(&id)?);
    }
    node.end_pod(&pod)
}

fn silent_monitor(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("silent")?;
    let healthy = node.run_pod("healthy")?;
    let other = node.launch(&healthy, "c", "busybox", &["sleep", "3600"])?;
    let ids = ["a", "b"].map(|name| node.launch(&pod, name, "busybox", &["sh", "-c", COUNTING]));
    let [id, second] = ids;
    let (id, second) = (id?, second?);
    crate::logs::wait_for_lines(node, &id, 1)?;
    let monitor = Pid::from_raw(crate::restart::monitor_of(node, node.cri().pid(&id)?)?);
    kill(monitor, Signal::SIGSTOP)?;
    let stopped = node.cri().stop(&id, 1);
    let empty = is_empty(node, &pod, &id);
    let status = node.cri().container(&id);
    let others = node.cri().exec(&other, &["echo", "served"]);
    // Stopping the sandbox ends the monitor, which is why nothing is said to it here.
    let ended = node.cri().stop_pod(&pod.id);
    let _ = kill(monitor, Signal::SIGCONT);
    stopped.context("Stop with a silent monitor")?;
    ensure!(empty?, "something runs on");
    let status = status?;
    // Nobody can say how it ended.
    ensure!(status.state() == cri::ContainerState::ContainerExited, "{status:?}");
    ensure!((status.exit_code, status.reason.as_str()) == (255, "Unknown"), "{status:?}");
    ensure!(others?.stdout == "served\n", "another pod suffers");
    ended.context("StopPodSandbox with a silent monitor")?;
    ensure!(is_empty(node, &pod, &second)?, "the other container runs on");
    node.end_pod(&pod)?;
    node.end_pod(&healthy)
}

fn on_storage(name: &str, storage: &std::path::Path, command: &[&str]) -> cri::ContainerConfig {
    let mut config = container_config(name, "busybox", command);
    let host_path = storage.display().to_string();
    config.mounts = vec![cri::Mount { container_path: "/dead".to_owned(), host_path, ..Default::default() }];
    config
}

fn dead_storage(node: &mut Node) -> Result<()> {
    let at = node.folder().join("dead");
    let storage = DeadStorage::mount(&at)?;
    let pod = node.run_pod("dead")?;
    let stuck = node.launch_as(
        &pod,
        &on_storage("stuck", &at, &["sh", "-c", &format!("cat /dead/{FILE}; sleep 3600")]),
    )?;
    let sibling = node.launch(&pod, "sibling", "busybox", &["sleep", "3600"])?;
    wait::until_true("a reader of the dead storage", wait::LONG, || storage.readers() > 0)?;

    std::thread::scope(|scope| -> Result<()> {
        let stop = scope.spawn(|| node.cri().stop(&stuck, 1));
        // Meanwhile a sibling, and another pod, are served from beginning to end.
        ensure!(node.cri().exec(&sibling, &["echo", "served"])?.stdout == "served\n");
        node.cri().stop(&sibling, 0)?;
        node.cri().remove(&sibling)?;
        let other = node.run_pod("other")?;
        node.launch(&other, "c", "busybox", &["true"])?;
        node.end_pod(&other)?;
        ensure!(!stop.is_finished(), "Stop is done with a process that is stuck");
        let message = refused(stop.join().map_err(|_| anyhow!("a client panicked"))?, Code::Unknown)?;
        ensure!(
            message.contains("stuck") && message.contains("(cat)") && message.contains("state D"),
            "{message}"
        );
        Ok(())
    })?;
    ensure!(
        node.cri().container(&stuck)?.state() == cri::ContainerState::ContainerRunning,
        "it has not ended"
    );
    // Storage that comes back, if only with an error, lets the repeated call succeed.
    drop(storage);
    node.cri().stop(&stuck, 0)?;
    ensure!(is_empty(node, &pod, &stuck)? && node.cri().container(&stuck)?.exit_code == 137);
    node.end_pod(&pod)
}

fn dead_program(node: &mut Node) -> Result<()> {
    let at = node.folder().join("dead");
    let storage = DeadStorage::mount(&at)?;
    let pod = node.run_pod("dead-program")?;
    // execve reads the program's first bytes, and they never come.
    let config = on_storage("c", &at, &[&format!("/dead/{FILE}")]);
    let id = node.cri().create(&pod.id, &config, &pod.config)?;
    std::thread::scope(|scope| -> Result<()> {
        let start = scope.spawn(|| node.cri().start(&id));
        wait::until_true("execve to read", wait::LONG, || storage.readers() > 0 || start.is_finished())?;
        ensure!(storage.readers() > 0, "{:?}", node.cri().container(&id)?);
        let stop = scope.spawn(|| node.cri().stop(&id, 0));
        let message = match stop.join().map_err(|_| anyhow!("a client panicked"))? {
            Err(status) => status.message().to_owned(),
            Ok(()) => anyhow::bail!("Stop is done with a process that is stuck"),
        };
        ensure!(message.contains("being started") && message.contains("stuck"), "{message}");
        ensure!(!start.is_finished(), "Start has ended");
        drop(storage);
        ensure!(start.join().map_err(|_| anyhow!("a client panicked"))?.is_err(), "it was started");
        Ok(())
    })?;
    let status = node.cri().container(&id)?;
    ensure!(status.state() == cri::ContainerState::ContainerExited && status.exit_code == 128, "{status:?}");
    node.cri().stop(&id, 0)?;
    node.end_pod(&pod)
}
