//! cgroup v2 limits: written, effective, changed while running, reported.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::wait;

use crate::case::Case;
use crate::refusals::nothing_left;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "limits_stand_in_the_cgroup",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: written,
    },
    Case {
        name: "a_container_above_its_memory_is_oom_killed",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: oom,
    },
    Case {
        name: "an_oom_kill_is_known_to_a_restarted_daemon",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: oom_without_daemon,
    },
    Case { name: "a_cpu_limit_throttles", needs: &[Need::Controllers], images: &["busybox"], run: throttled },
    Case { name: "a_pids_limit_stops_forks", needs: &[Need::Controllers], images: &["busybox"], run: pids },
    Case {
        name: "an_update_shows_in_cgroup_and_status",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: update,
    },
    Case { name: "stats_follow_the_cgroup", needs: &[Need::Controllers], images: &["busybox"], run: stats },
    Case {
        name: "a_limit_that_cannot_hold_is_refused",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: impossible,
    },
    Case { name: "oom_score_adj_is_the_containers", needs: &[], images: &["busybox"], run: oom_score },
];

/// The folder of the cgroup of the container's first process.
pub(crate) fn cgroup(node: &Node, id: &str) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", node.cri().pid(id)?))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).context("no v2 cgroup")?;
    ensure!(path.contains(id), "the cgroup {path} does not name the container");
    Ok(node.cgroup(path))
}

/// One file of it, without the line break.
pub(crate) fn read(node: &Node, id: &str, file: &str) -> Result<String> {
    let path = cgroup(node, id)?.join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

fn resources(config: &mut cri::ContainerConfig, resources: cri::LinuxContainerResources) -> Result<()> {
    config.linux.as_mut().context("linux")?.resources = Some(resources);
    Ok(())
}

fn all_limits() -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".to_owned(),
        cpuset_mems: "0".to_owned(),
        unified: [("pids.max".to_owned(), "64".to_owned())].into(),
        ..Default::default()
    }
}

fn written(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("written")?;
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    resources(&mut config, all_limits())?;
    let id = node.launch_as(&pod, &config)?;
    let expected = [
        ("cpu.max", "20000 100000"),
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("pids.max", "64"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
    ];
    for (file, value) in expected {
        let seen = read(node, &id, file)?;
        ensure!(seen == value, "{file} is {seen}, not {value}");
    }
    let weight: u64 = read(node, &id, "cpu.weight")?.parse()?;
    ensure!((1..100).contains(&weight), "512 shares are half of the default's weight, got {weight}");
    ensure!(
        node.cri().shell(&id, "cat /sys/fs/cgroup/memory.max")? == "67108864\n",
        "the container's own view"
    );
    let status = node.cri().container(&id)?;
    let shown = status.resources.and_then(|r| r.linux).context("no resources in the status")?;
    ensure!(shown == all_limits(), "{shown:?}");
    let parent = pod.config.linux.as_ref().context("linux")?.cgroup_parent.clone();
    ensure!(cgroup(node, &id)?.starts_with(node.cgroup(&parent)), "not below {parent}");
    node.end_pod(&pod)
}

/// Grows until it is killed.
const HOG: &str = "x=a; while :; do x=$x$x; done";

fn hog(name: &str, line: &str) -> Result<cri::ContainerConfig> {
    let mut config = container_config(name, "busybox", &["sh", "-c", line]);
    let memory = 16 << 20;
    resources(
        &mut config,
        cri::LinuxContainerResources {
            memory_limit_in_bytes: memory,
            memory_swap_limit_in_bytes: memory,
            ..Default::default()
        },
    )?;
    Ok(config)
}

fn oom(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("oom")?;
    let sibling = node.launch(&pod, "sibling", "busybox", &["sleep", "3600"])?;
    let id = node.launch_as(&pod, &hog("hog", HOG)?)?;
    let status = node.wait_for_exit(&id)?;
    ensure!((status.exit_code, status.reason.as_str()) == (137, "OOMKilled"), "{status:?}");
    ensure!(
        node.cri().container(&sibling)?.state() == cri::ContainerState::ContainerRunning,
        "the sibling died too"
    );
    node.end_pod(&pod)
}

fn oom_without_daemon(node: &mut Node) -> Result<()> {
    let go = node.folder().join("go");
    fs::create_dir(&go)?;
    let pod = node.run_pod("oom-alone")?;
    let mut config = hog("hog", &format!("until [ -e /go/now ]; do sleep 0.1; done; {HOG}"))?;
    let host_path = go.display().to_string();
    config.mounts = vec![cri::Mount { container_path: "/go".to_owned(), host_path, ..Default::default() }];
    let id = node.launch_as(&pod, &config)?;
    let pid = node.cri().pid(&id)?;
    node.kill()?;
    fs::write(go.join("now"), "")?;
    wait::until_true("the container to be killed", wait::LONG, || !crisp_tests::host::lives(pid))?;
    node.serve()?;
    let status = node.wait_for_exit(&id)?;
    ensure!((status.exit_code, status.reason.as_str()) == (137, "OOMKilled"), "{status:?}");
    node.end_pod(&pod)
}

fn throttled(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("throttled")?;
    let mut config = container_config("c", "busybox", &["sh", "-c", "while :; do :; done"]);
    let limit = cri::LinuxContainerResources { cpu_period: 100_000, cpu_quota: 10_000, ..Default::default() };
    resources(&mut config, limit)?;
    let id = node.launch_as(&pod, &config)?;
    wait::until("throttled periods", wait::LONG, || {
        let stat = read(node, &id, "cpu.stat").map_err(|error| error.to_string())?;
        let value = |key: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|v| v.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let (periods, throttled, used) = (value("nr_periods "), value("nr_throttled "), value("usage_usec "));
        // Ten milliseconds of every period, and what the last period may overdraw.
        let held = used <= (periods + 2) * 10_000 * 2;
        if throttled >= 5 && held { Ok(()) } else { Err(stat) }
    })?;
    node.end_pod(&pod)
}

fn pids(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("pids")?;
    let line = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 3600 & done; wait";
    let mut config = container_config("c", "busybox", &["sh", "-c", line]);
    let unified = [("pids.max".to_owned(), "5".to_owned())].into();
    resources(&mut config, cri::LinuxContainerResources { unified, ..Default::default() })?;
    let id = node.launch_as(&pod, &config)?;
    let log = crate::logs::wait_for_lines(node, &id, 1)?;
    ensure!(log[0].stream == "stderr" && log[0].content.contains("fork"), "{log:?}");
    node.end_pod(&pod)
}

fn update(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("update")?;
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    resources(&mut config, all_limits())?;
    let id = node.cri().create(&pod.id, &config, &pod.config)?;
    let update = |linux: cri::LinuxContainerResources| {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        node.cri().update_container_resources(request)
    };
    let shown = || -> Result<cri::LinuxContainerResources> {
        node.cri().container(&id)?.resources.and_then(|r| r.linux).context("no resources in the status")
    };
    // Created: stored, and applied at the latest at the start.
    update(cri::LinuxContainerResources {
        memory_limit_in_bytes: 80 << 20,
        memory_swap_limit_in_bytes: 80 << 20,
        ..Default::default()
    })?;
    node.cri().start(&id)?;
    ensure!(read(node, &id, "memory.max")? == (80 << 20).to_string());
    // Running: only what is named changes.
    update(cri::LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 2048,
        ..Default::default()
    })?;
    ensure!(read(node, &id, "cpu.max")? == "50000 100000");
    ensure!(
        read(node, &id, "memory.max")? == (80 << 20).to_string() && read(node, &id, "cpuset.cpus")? == "0"
    );
    let expected = cri::LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_shares: 2048,
        memory_limit_in_bytes: 80 << 20,
        memory_swap_limit_in_bytes: 80 << 20,
        ..all_limits()
    };
    ensure!(shown()? == expected, "{:?}", shown()?);
    // What the kernel refuses changes nothing.
    let refusal = update(cri::LinuxContainerResources {
        cpuset_cpus: "4095".to_owned(),
        cpu_quota: 70_000,
        ..Default::default()
    });
    ensure!(refusal.is_err() && shown()? == expected, "{refusal:?} {:?}", shown()?);
    ensure!(read(node, &id, "cpu.max")? == "50000 100000", "half of a refused update was kept");
    // Also after a restart.
    node.kill_and_restart()?;
    let after = node.cri().container(&id)?.resources.and_then(|r| r.linux);
    ensure!(after == Some(expected), "{after:?}");
    node.end_pod(&pod)
}

fn stats(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("stats")?;
    let id = node.launch(
        &pod,
        "c",
        "busybox",
        &["sh", "-c", "head -c 3000000 /dev/zero >/file; while :; do :; done"],
    )?;
    let stats = wait::until("statistics", wait::LONG, || {
        let request = cri::ContainerStatsRequest { container_id: id.clone() };
        let stats = node.cri().container_stats(request).map_err(|s| s.to_string())?.stats.ok_or("none")?;
        let cpu = stats.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref()).map_or(0, |v| v.value);
        let disk = stats.writable_layer.as_ref().and_then(|l| l.used_bytes.as_ref()).map_or(0, |v| v.value);
        if cpu > 0 && disk >= 3_000_000 { Ok(stats) } else { Err(format!("{stats:?}")) }
    })?;
    let attributes = stats.attributes.context("no attributes")?;
    ensure!(
        attributes.id == id && attributes.labels["io.kubernetes.container.name"] == "c",
        "{attributes:?}"
    );
    let memory = stats.memory.context("no memory")?;
    ensure!(memory.working_set_bytes.is_some_and(|v| v.value > 0), "{memory:?}");

    let listed = node.cri().list_container_stats(cri::ListContainerStatsRequest::default())?.stats;
    ensure!(listed.len() == 1 && listed[0].attributes.as_ref().is_some_and(|a| a.id == id), "{listed:?}");
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let of_pod =
        node.cri().pod_sandbox_stats(request)?.stats.context("no stats")?.linux.context("no linux part")?;
    ensure!(of_pod.containers.len() == 1 && of_pod.network.is_some() && of_pod.cpu.is_some(), "{of_pod:?}");
    let listed = node.cri().list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default())?.stats;
    ensure!(listed.len() == 1, "{listed:?}");
    node.end_pod(&pod)
}

fn impossible(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("impossible")?;
    let before = node.snapshot()?;
    let cases = [
        (
            "cpuset",
            cri::LinuxContainerResources { cpuset_cpus: "4095".to_owned(), ..Default::default() },
            "4095",
        ),
        (
            "hugepages",
            cri::LinuxContainerResources {
                hugepage_limits: vec![cri::HugepageLimit { page_size: "3MB".to_owned(), limit: 3 << 20 }],
                ..Default::default()
            },
            "3MB",
        ),
        ("memory", cri::LinuxContainerResources { memory_limit_in_bytes: 1, ..Default::default() }, "memory"),
        (
            "unified",
            cri::LinuxContainerResources {
                unified: [("no.such".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            },
            "no.such",
        ),
    ];
    for (name, limit, named) in cases {
        let mut config = container_config(name, "busybox", &["sleep", "3600"]);
        resources(&mut config, limit)?;
        let message = node
            .cri()
            .create(&pod.id, &config, &pod.config)
            .err()
            .with_context(|| format!("{name} was accepted"))?;
        ensure!(message.message().contains(named), "{name}: the message does not name {named}: {message:?}");
        nothing_left(node, &before, &[]).with_context(|| name.to_owned())?;
    }
    node.end_pod(&pod)
}

fn oom_score(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("score")?;
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    resources(&mut config, cri::LinuxContainerResources { oom_score_adj: 517, ..Default::default() })?;
    let id = node.launch_as(&pod, &config)?;
    ensure!(node.cri().shell(&id, "cat /proc/1/oom_score_adj")? == "517\n");
    ensure!(node.cri().shell(&id, "cat /proc/self/oom_score_adj")? == "517\n", "an exec'd process");
    node.end_pod(&pod)
}
