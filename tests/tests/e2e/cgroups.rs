//! Both cgroup drivers: where cgroups are, that they hold what they are told, and that nothing of them stays. Run under
//! hack/systemd these are tests of the systemd driver.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::command;
use crisp_tests::cri::{container_config, refused};
use crisp_tests::node::Node;
use crisp_tests::place::{self, Need};
use crisp_tests::untouched;
use crisp_tests::wait;
use tonic::Code;

use crate::case::Case;
use crate::limits::{cgroup, read};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "cgroup_driver_places_containers", needs: &[], images: &["busybox"], run: places },
    Case { name: "cgroup_driver_outlives_the_daemon", needs: &[], images: &["busybox"], run: outlives },
    Case {
        name: "cgroup_driver_changes_limits",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: changes,
    },
    Case {
        name: "cgroup_driver_knows_of_oom_kills",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: oom_kill,
    },
    Case {
        name: "r33_cgroup_driver_puts_pods_nowhere_else",
        needs: &[],
        images: &["busybox"],
        run: nowhere_else,
    },
    Case {
        name: "c06_c07_cgroup_driver_hears_no_annotation",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: annotations,
    },
];

/// What the driver calls the cgroup of the container or sandbox `id`.
fn leaf(id: &str) -> String {
    if place::under_systemd() { format!("crisp-{id}.scope") } else { id.to_owned() }
}

/// A property of a unit, as systemd tells it.
fn property(unit: &str, name: &str) -> Result<String> {
    let said = command::run(Command::new("systemctl").args(["show", "--value", "--property", name, unit]))?;
    Ok(said.ok()?.trim().to_owned())
}

fn parent_of(config: &cri::PodSandboxConfig) -> Result<String> {
    Ok(config.linux.as_ref().context("linux")?.cgroup_parent.clone())
}

fn places(node: &mut Node) -> Result<()> {
    // A shared PID namespace: the sandbox has a process of its own.
    let mut config = node.pod_config("places");
    let security = config.linux.as_mut().context("linux")?.security_context.get_or_insert_default();
    security.namespace_options =
        Some(cri::NamespaceOption { pid: cri::NamespaceMode::Pod.into(), ..Default::default() });
    let pod = node.run_pod_as(config)?;
    let parent = node.cgroup(&parent_of(&pod.config)?);
    ensure!(parent.join(leaf(&pod.id)).is_dir(), "no cgroup of the pod's init in {}", parent.display());
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    let linux = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    linux.namespace_options =
        Some(cri::NamespaceOption { pid: cri::NamespaceMode::Pod.into(), ..Default::default() });
    let id = node.launch_as(&pod, &config)?;
    let own = cgroup(node, &id)?;
    ensure!(own == parent.join(leaf(&id)), "the container is in {}", own.display());
    // What it sees begins at its own, and an exec is one below.
    ensure!(fs::read_to_string(format!("/proc/{}/cgroup", node.cri().pid(&id)?))?.contains(&id));
    let seen = node.cri().shell(&id, "grep ^0:: /proc/1/cgroup /proc/self/cgroup | sed 's/.*0:://'")?;
    let mut lines = seen.lines();
    let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    ensure!(first.starts_with("/../"), "the pod's init is {first:?}, and not beside the container");
    ensure!(second.starts_with("/exec-"), "the exec is in {second:?}");
    if place::under_systemd() {
        let unit = leaf(&id);
        ensure!(property(&unit, "Delegate")? == "yes" && property(&unit, "ActiveState")? == "active");
    }
    node.cri().stop(&id, 0)?;
    wait::until_true("the container's cgroup to be gone", wait::LONG, || !own.exists())?;
    node.cri().stop(&id, 0)?;
    node.cri().remove(&id)?;
    node.cri().remove(&id)?;
    if place::under_systemd() {
        ensure!(property(&leaf(&id), "LoadState")? == "not-found", "systemd still knows the scope");
    }
    node.end_pod(&pod)?;
    // Without a parent: a place that crisp makes and takes away.
    let mut config = node.pod_config("default");
    config.linux.as_mut().context("linux")?.cgroup_parent = String::new();
    let pod = node.run_pod_as(config)?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let own = cgroup(node, &id)?;
    ensure!(own.starts_with(node.cgroup(&node.scope().cgroup_parent)) && own.ends_with(leaf(&id)), "{own:?}");
    let above = own.parent().and_then(Path::file_name).context("no parent")?;
    ensure!(above.to_string_lossy().contains(&pod.id), "{own:?} is not in a cgroup of the pod's own");
    node.end_pod(&pod)
}

fn outlives(node: &mut Node) -> Result<()> {
    let gate = node.folder().join("gate");
    fs::create_dir(&gate)?;
    let pod = node.run_pod("outlives")?;
    let line = "until [ -e /gate/open ]; do sleep 0.1; done; exit 7";
    let mut config = container_config("ends", "busybox", &["sh", "-c", line]);
    let host_path = gate.display().to_string();
    config.mounts = vec![cri::Mount { container_path: "/gate".to_owned(), host_path, ..Default::default() }];
    let ends = node.launch_as(&pod, &config)?;
    let stays = node.launch(&pod, "stays", "busybox", &["sleep", "3600"])?;
    let (gone, pid) = (cgroup(node, &ends)?, node.cri().pid(&ends)?);
    node.kill()?;
    fs::write(gate.join("open"), "")?;
    wait::until_true("the container to end", wait::LONG, || !crisp_tests::host::lives(pid))?;
    node.serve()?;
    let status = node.wait_for_exit(&ends)?;
    ensure!(status.exit_code == 7, "{status:?}");
    wait::until_true("its cgroup to be gone", wait::LONG, || !gone.exists())?;
    ensure!(cgroup(node, &stays)?.ends_with(leaf(&stays)));
    ensure!(node.cri().shell(&stays, "echo still here")? == "still here\n");
    // The next one is made by the next daemon.
    let next = node.launch(&pod, "next", "busybox", &["true"])?;
    ensure!(node.wait_for_exit(&next)?.exit_code == 0);
    node.cri().stop(&stays, 0)?;
    node.end_pod(&pod)
}

fn limits(memory: i64, quota: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_quota: quota,
        cpu_shares: 512,
        unified: [("pids.max".to_owned(), "77".to_owned()), ("memory.low".to_owned(), "4096".to_owned())]
            .into(),
        ..Default::default()
    }
}

fn changes(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("changes")?;
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    config.linux.get_or_insert_default().resources = Some(limits(64 << 20, 20_000));
    let id = node.launch_as(&pod, &config)?;
    let update = |linux| {
        let container_id = id.clone();
        let request =
            cri::UpdateContainerResourcesRequest { container_id, linux: Some(linux), ..Default::default() };
        node.cri().update_container_resources(request)
    };
    let hold = |expected: &[(&str, &str)]| -> Result<()> {
        for (file, value) in expected {
            let seen = read(node, &id, file)?;
            ensure!(seen == *value, "{file} is {seen}, not {value}");
        }
        Ok(())
    };
    let first =
        [("memory.max", "67108864"), ("cpu.max", "20000 100000"), ("pids.max", "77"), ("memory.low", "4096")];
    hold(&first)?;
    // No whole per cent of a CPU: systemd alone would make it 13 of them.
    update(cri::LinuxContainerResources {
        memory_limit_in_bytes: 80 << 20,
        cpu_quota: 12_345,
        cpuset_cpus: "0".to_owned(),
        ..Default::default()
    })?;
    let second =
        [("memory.max", "83886080"), ("cpu.max", "12345 100000"), ("cpuset.cpus", "0"), ("pids.max", "77")];
    hold(&second)?;
    let weight = read(node, &id, "cpu.weight")?;
    // All or none: the last of these cannot be.
    for impossible in [("cpuset_cpus", "4095"), ("cpuset_cpus", "a"), ("cpuset_cpus", "0-99999")] {
        let text = refused(
            update(cri::LinuxContainerResources {
                memory_limit_in_bytes: 96 << 20,
                cpu_shares: 4096,
                cpuset_cpus: impossible.1.to_owned(),
                ..Default::default()
            }),
            Code::InvalidArgument,
        )?;
        ensure!(text.contains("cpuset"), "{text}");
        hold(&second)?;
        ensure!(read(node, &id, "cpu.weight")? == weight, "half of a refused update was kept");
    }
    if place::under_systemd() {
        let unit = leaf(&id);
        ensure!(property(&unit, "MemoryMax")? == "83886080", "systemd has not heard of the change");
        // It writes all limits anew, as it has kept them: a quota in whole per cent, never less than was asked for.
        let kept = [second[0], ("cpu.max", "13000 100000"), second[2], second[3]];
        command::run(Command::new("systemctl").arg("daemon-reload"))?.ok()?;
        wait::until("systemd to write its limits", wait::LONG, || {
            hold(&kept).map_err(|error| format!("{error:#}"))
        })?;
        command::run(Command::new("systemctl").args(["set-property", "--runtime", &unit, "MemoryHigh=70M"]))?
            .ok()?;
        hold(&kept)?;
        // The next update is exact again.
        update(cri::LinuxContainerResources { cpu_quota: 12_346, ..Default::default() })?;
        hold(&[second[0], ("cpu.max", "12346 100000")])?;
    }
    node.end_pod(&pod)
}

fn oom_kill(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("oom-kill")?;
    let mut config = container_config("hog", "busybox", &["sh", "-c", "x=a; while :; do x=$x$x; done"]);
    config.linux.get_or_insert_default().resources =
        Some(cri::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    for round in 0..3 {
        config.metadata.get_or_insert_default().attempt = round;
        let id = node.launch_as(&pod, &config)?;
        let status = node.wait_for_exit(&id)?;
        ensure!((status.exit_code, status.reason.as_str()) == (137, "OOMKilled"), "{status:?}");
        if place::under_systemd() {
            // Failed, for systemd, and collected all the same.
            wait::until("systemd to forget the scope", wait::LONG, || {
                match property(&leaf(&id), "LoadState") {
                    Ok(state) if state == "not-found" => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })?;
        }
    }
    node.end_pod(&pod)
}

fn nowhere_else(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let of_both = ["/", "../..", "/system.slice/x", "/a/../../b", "/a\nb", "/a\0b", "pods"];
        let of_one: &[&str] = match place::under_systemd() {
            true => &["/kubepods/pod1", "-.slice", "/a.slice/b.slice", "a--b.slice", "a.scope", "a@b.slice"],
            false => &["system.slice", "/kubepods.slice", "/init.scope", "/a/b.service"],
        };
        let before = node.snapshot()?;
        for (round, bad) in of_both.iter().chain(of_one).enumerate() {
            let mut config = node.pod_config(&format!("bad-{round}"));
            config.linux.as_mut().context("linux")?.cgroup_parent = (*bad).to_owned();
            let text = refused(node.cri().run_pod(&config), Code::InvalidArgument)?;
            ensure!(text.contains("linux.cgroup_parent"), "{bad:?}: {text}");
        }
        node.wait_for_return(&before)?;
        // From inside: nothing can be written, also by root with all capabilities that are given by default.
        let pod = node.run_pod("inside")?;
        let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
        let tries = "cd /sys/fs/cgroup && for t in 'mkdir x' 'mkdir ../x' 'mkdir ../../x' 'eval echo 1 >cgroup.procs' \
                 'eval echo 1 >../cgroup.procs' 'eval echo +pids >cgroup.subtree_control' 'eval echo 1 >cgroup.freeze' \
                 'eval echo 1 >cgroup.kill' 'eval echo max >pids.max' 'mount -o remount,rw /sys/fs/cgroup' \
                 'mount -t cgroup2 c /tmp'; do (eval \"$t\") 2>/dev/null && echo \"done: $t\"; done; true";
        let said = node.cri().shell(&id, tries)?;
        ensure!(said.is_empty(), "{said}");
        node.end_pod(&pod)
    })
}

/// What annotations could say of a unit is as it is of one without annotations.
fn unchanged_units(annotated: &str, plain: &str) -> Result<()> {
    for name in ["Slice", "TasksMax", "KillMode", "OOMPolicy", "Delegate"] {
        let (annotated, plain) = (property(annotated, name)?, property(plain, name)?);
        ensure!(!plain.is_empty() && annotated == plain, "{name}: {annotated:?}, and else {plain:?}");
    }
    // No unit of this kind has commands; one that had would show them here.
    let all = command::run(Command::new("systemctl").args(["show", annotated]))?.ok()?;
    ensure!(all.lines().any(|line| line.starts_with("Slice=")), "{all}");
    ensure!(!all.lines().any(|line| line.starts_with("Exec")), "{all}");
    let text = command::run(Command::new("systemctl").args(["cat", annotated]))?.ok()?;
    ensure!(!text.contains("ExecStopPost") && !text.contains("system.slice"), "{text}");
    Ok(())
}

fn annotations(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let proof = node.folder().join("annotated");
        let run = format!("[('ExecStopPost', 'touch {}')]", proof.display());
        let evil = [
            ("org.systemd.property.ExecStopPost", run.as_str()),
            ("org.systemd.property.TasksMax", "uint64 5"),
            ("org.systemd.property.Slice", "'system.slice'"),
            ("io.kubernetes.cri-o.UnifiedCgroup.c", "pids.max=5;memory.oom.group=1"),
            ("io.kubernetes.cri-o.UnifiedCgroup", "pids.max=5"),
            ("run.oci.systemd.subgroup", "../../x"),
            ("run.oci.delegate-cgroup", "/"),
        ];
        let evil = evil.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut config = node.pod_config("annotated");
        config.annotations.extend(evil.clone());
        let pod = node.run_pod_as(config)?;
        let plain = node.launch(&pod, "plain", "busybox", &["sleep", "3600"])?;
        let mut config = container_config("c", "busybox", &["sleep", "3600"]);
        config.annotations.extend(evil);
        let id = node.launch_as(&pod, &config)?;
        let own = cgroup(node, &id)?;
        ensure!(own == node.cgroup(&parent_of(&pod.config)?).join(leaf(&id)), "{own:?}");
        for file in ["pids.max", "memory.oom.group"] {
            let (annotated, plain) = (read(node, &id, file)?, read(node, &plain, file)?);
            ensure!(!plain.is_empty() && annotated == plain, "{file}: {annotated:?}, and else {plain:?}");
        }
        if place::under_systemd() {
            unchanged_units(&leaf(&id), &leaf(&plain))?;
        }
        node.end_pod(&pod)?;
        ensure!(!proof.exists(), "an annotation was run as a command");
        Ok(())
    })
}
