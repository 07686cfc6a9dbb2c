//! SIGKILL to the daemon at any moment between two calls: nothing is lost, nothing is doubled, nothing is left.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::{Node, Pod};
use crisp_tests::{host, wait};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "a_kill_between_any_two_calls_loses_nothing",
        needs: &[],
        images: &["busybox"],
        run: every_cut,
    },
    Case {
        name: "what_ends_without_a_daemon_is_told_later",
        needs: &[],
        images: &["busybox"],
        run: ended_meanwhile,
    },
    Case {
        name: "a_killed_daemon_leaves_monitors_that_it_finds_again",
        needs: &[],
        images: &["busybox"],
        run: many,
    },
    Case { name: "a_dead_monitor_is_noticed", needs: &[], images: &["busybox"], run: dead_monitor },
    Case {
        name: "a_monitor_that_is_silent_at_a_start_is_found_again",
        needs: &[],
        images: &["busybox"],
        run: silent_monitor,
    },
    Case {
        name: "a_pod_of_a_killed_daemon_can_be_taken_away",
        needs: &[],
        images: &["busybox"],
        run: remove_after,
    },
];

/// One call of a pod's life; what it leaves for the next ones is in `Life`.
type Step = (&'static str, fn(&Node, &mut Life) -> Result<()>);

#[derive(Default)]
struct Life {
    /// The sandbox's name: each life has its own log files.
    name: String,
    pod: Option<Pod>,
    container: String,
    pid: i32,
    ips: Vec<std::net::IpAddr>,
}

impl Life {
    fn pod(&self) -> Result<&Pod> {
        self.pod.as_ref().context("no sandbox yet")
    }
}

const STEPS: &[Step] = &[
    ("RunPodSandbox", |node, life| {
        life.pod = Some(node.run_pod(&life.name)?);
        life.ips = crate::network::ips(node, &life.pod()?.id)?;
        Ok(())
    }),
    ("CreateContainer", |node, life| {
        let command = ["sh", "-c", "trap 'echo stopping; exit 5' TERM; echo up; while :; do sleep 0.1; done"];
        let pod = life.pod()?;
        life.container =
            node.cri().create(&pod.id, &container_config("c", "busybox", &command), &pod.config)?;
        Ok(())
    }),
    ("StartContainer", |node, life| {
        node.cri().start(&life.container)?;
        life.pid = node.cri().pid(&life.container)?;
        crate::logs::wait_for_lines(node, &life.container, 1)?;
        Ok(())
    }),
    ("ExecSync", |node, life| {
        let said = node.cri().exec(&life.container, &["sh", "-c", "echo hi; exit 3"])?;
        ensure!((said.code, said.stdout.as_str()) == (3, "hi\n"), "{said:?}");
        Ok(())
    }),
    ("StopContainer", |node, life| Ok(node.cri().stop(&life.container, 600)?)),
    ("RemoveContainer", |node, life| Ok(node.cri().remove(&life.container)?)),
    ("StopPodSandbox", |node, life| Ok(node.cri().stop_pod(&life.pod()?.id)?)),
    ("RemovePodSandbox", |node, life| Ok(node.cri().remove_pod(&life.pod()?.id)?)),
];

/// Checks that everything is as `done` steps of a life leave it.
fn check(node: &Node, life: &Life, done: usize) -> Result<()> {
    let pods = node.cri().pods()?;
    let containers = node.cri().containers()?;
    ensure!(pods.len() == usize::from((1..8).contains(&done)), "sandboxes: {pods:?}");
    ensure!(containers.len() == usize::from((2..6).contains(&done)), "containers: {containers:?}");
    if (1..8).contains(&done) {
        let status = node.cri().pod(&life.pod()?.id)?;
        let ready = status.state() == cri::PodSandboxState::SandboxReady;
        ensure!(ready == (done < 7), "{status:?}");
        ensure!(status.metadata == life.pod()?.config.metadata && status.labels == life.pod()?.config.labels);
        ensure!(!ready || crate::network::ips(node, &life.pod()?.id)? == life.ips, "other addresses");
    }
    if !(2..6).contains(&done) {
        return Ok(());
    }
    let status = node.cri().container(&life.container)?;
    let expected = match done {
        2 => cri::ContainerState::ContainerCreated,
        3 | 4 => cri::ContainerState::ContainerRunning,
        _ => cri::ContainerState::ContainerExited,
    };
    ensure!(status.state() == expected, "{status:?}");
    if done == 3 || done == 4 {
        ensure!(node.cri().pid(&life.container)? == life.pid && host::lives(life.pid), "another process");
    }
    if done == 5 {
        ensure!((status.exit_code, status.reason.as_str()) == (5, "Error"), "{status:?}");
        let said: Vec<_> =
            crate::logs::read(node, &life.container)?.into_iter().map(|line| line.content).collect();
        ensure!(said == ["up", "stopping"], "{said:?}");
    }
    Ok(())
}

fn every_cut(node: &mut Node) -> Result<()> {
    let before = node.snapshot()?;
    each_cut(node, |node| node.wait_for_return(&before))
}

/// Kills the daemon before each step of a pod's life; `after` each life it looks around.
pub(crate) fn each_cut(node: &mut Node, after: impl Fn(&Node) -> Result<()>) -> Result<()> {
    for cut in 0..=STEPS.len() {
        let mut life = Life { name: format!("cut-{cut}"), ..Life::default() };
        for (at, (name, step)) in STEPS.iter().enumerate() {
            if at == cut {
                node.kill_and_restart().with_context(|| format!("killed before {name}"))?;
                check(node, &life, at).with_context(|| format!("after a kill before {name}"))?;
            }
            step(node, &mut life).with_context(|| format!("{name}, killed before step {cut}"))?;
            check(node, &life, at + 1).with_context(|| format!("after {name}, killed before step {cut}"))?;
        }
        if cut == STEPS.len() {
            node.kill_and_restart()?;
            check(node, &life, cut).context("after a kill at the end")?;
        }
        after(node).with_context(|| format!("killed before step {cut}"))?;
    }
    Ok(())
}

/// A container that says something and ends with 7 once the file `name` is in `folder`.
fn waiting(name: &str, folder: &Path) -> cri::ContainerConfig {
    let line = format!("echo waiting; until [ -e /go/{name} ]; do sleep 0.05; done; echo last words; exit 7");
    let mut config = container_config(name, "busybox", &["sh", "-c", &line]);
    let host_path = folder.display().to_string();
    config.mounts = vec![cri::Mount { container_path: "/go".to_owned(), host_path, ..Default::default() }];
    config
}

fn ended_meanwhile(node: &mut Node) -> Result<()> {
    let go = node.folder().join("go");
    fs::create_dir(&go)?;
    let pod = node.run_pod("meanwhile")?;
    let lives_on =
        node.launch(&pod, "lives-on", "busybox", &["sh", "-c", "while :; do echo tick; sleep 0.05; done"])?;
    let pid_of_it = node.cri().pid(&lives_on)?;
    let id = node.launch_as(&pod, &waiting("now", &go))?;
    // Also one that shares the pod's PID namespace.
    let mut config = waiting("shared", &go);
    config.linux = None;
    let shared = node.launch_as(&pod, &config)?;
    let pids = [node.cri().pid(&id)?, node.cri().pid(&shared)?];
    crate::logs::wait_for_lines(node, &id, 1)?;
    let started = node.cri().container(&id)?.started_at;

    node.kill()?;
    let ticks =
        crate::logs::parse(&fs::read_to_string(format!("{}/lives-on/0.log", pod.config.log_directory))?)?
            .len();
    for name in ["now", "shared"] {
        fs::write(go.join(name), "")?;
    }
    for pid in pids {
        wait::until_true("the container to end", wait::LONG, || !host::lives(pid))?;
    }
    let gone_by = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    node.serve()?;

    for id in [&id, &shared] {
        let status = node.cri().container(id)?;
        ensure!(status.state() == cri::ContainerState::ContainerExited, "{status:?}");
        ensure!((status.exit_code, status.reason.as_str()) == (7, "Error"), "{status:?}");
        ensure!(
            status.finished_at > status.started_at && u128::try_from(status.finished_at)? <= gone_by,
            "{status:?}"
        );
        let said: Vec<_> = crate::logs::read(node, id)?.into_iter().map(|line| line.content).collect();
        ensure!(said == ["waiting", "last words"], "{said:?}");
    }
    ensure!(node.cri().container(&id)?.started_at == started, "another start time");
    let status = node.cri().container(&lives_on)?;
    ensure!(
        status.state() == cri::ContainerState::ContainerRunning && node.cri().pid(&lives_on)? == pid_of_it
    );
    crate::logs::wait_for_lines(node, &lives_on, ticks + 3)?;
    node.end_pod(&pod)
}

fn many(node: &mut Node) -> Result<()> {
    let mut pids = Vec::new();
    for n in 0..5 {
        let pod = node.run_pod(&format!("many{n}"))?;
        let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
        pids.push((node.cri().pid(&id)?, id, pod));
    }
    for _ in 0..3 {
        node.kill_and_restart()?;
        ensure!(node.cri().pods()?.len() == 5 && node.cri().containers()?.len() == 5);
        for (pid, id, _) in &pids {
            ensure!(node.cri().pid(id)? == *pid, "another process");
            ensure!(node.cri().exec(id, &["true"])?.code == 0);
        }
    }
    // The same after an orderly stop: pods go on.
    node.stop()?;
    ensure!(pids.iter().all(|(pid, _, _)| host::lives(*pid)), "an orderly stop took containers along");
    node.serve()?;
    for (pid, id, pod) in &pids {
        ensure!(node.cri().pid(id)? == *pid);
        node.end_pod(pod)?;
    }
    Ok(())
}

/// The monitor of the pod that a container's first process belongs to.
pub(crate) fn monitor_of(node: &Node, container_pid: i32) -> Result<i32> {
    let status = fs::read_to_string(format!("/proc/{container_pid}/status"))?;
    let parent =
        status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no PPid")?.trim().parse()?;
    ensure!(host::executes(parent, &node.scope().monitor), "the parent of the container is {parent}");
    Ok(parent)
}

fn dead_monitor(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("dead-monitor")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let healthy = node.run_pod("healthy")?;
    let other = node.launch(&healthy, "c", "busybox", &["sleep", "3600"])?;
    let monitor = monitor_of(node, node.cri().pid(&id)?)?;
    kill(Pid::from_raw(monitor), Signal::SIGKILL)?;
    // Nobody can tell any more how the container ends: it is reported as lost, never as well.
    let status = node.wait_for_exit(&id)?;
    ensure!(status.exit_code == 255 && status.reason == "Unknown", "{status:?}");
    wait::until("the sandbox to be not ready", wait::LONG, || match node.cri().pod(&pod.id) {
        Ok(status) if status.state() == cri::PodSandboxState::SandboxNotready => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(node.cri().exec(&other, &["true"])?.code == 0, "another pod suffers");
    node.end_pod(&pod)?;
    node.end_pod(&healthy)
}

fn silent_monitor(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("silent")?;
    let [ends, lasts] = ["ends", "lasts"].map(|name| node.launch(&pod, name, "busybox", &["sleep", "3600"]));
    let (ends, lasts) = (ends?, lasts?);
    let half_removed = node.launch(&pod, "removed", "busybox", &["true"])?;
    node.wait_for_exit(&half_removed)?;
    let pid = node.cri().pid(&ends)?;
    let monitor = Pid::from_raw(monitor_of(node, pid)?);
    node.kill()?;
    kill(monitor, Signal::SIGSTOP)?;
    let seen = node.serve().and_then(|()| {
        let running = node.cri().container(&lasts)?.state() == cri::ContainerState::ContainerRunning;
        ensure!(running && node.cri().pod(&pod.id)?.state() == cri::PodSandboxState::SandboxReady);
        // Neither is told to anybody before the monitor goes on.
        node.cri().remove(&half_removed)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        Ok(())
    });
    kill(monitor, Signal::SIGCONT)?;
    seen?;
    let status = node.wait_for_exit(&ends)?;
    ensure!((status.exit_code, status.reason.as_str()) == (137, "Error"), "{status:?}");
    // The pod is as good as any other.
    ensure!(node.cri().exec(&lasts, &["echo", "served"])?.stdout == "served\n");
    let late = node.launch(&pod, "late", "busybox", &["sh", "-c", "exit 4"])?;
    ensure!(node.wait_for_exit(&late)?.exit_code == 4);
    node.end_pod(&pod)
}

fn remove_after(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("take-away")?;
    node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let created = container_config("created", "busybox", &["true"]);
    node.cri().create(&pod.id, &created, &pod.config)?;
    node.kill_and_restart()?;
    node.cri().remove_pod(&pod.id)?;
    Ok(())
}
