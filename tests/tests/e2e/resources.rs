//! Limits that cannot be: refused by the name of their field, and nothing of such an update is kept. `c14_` of the
//! adversarial cases.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::untouched;

use crate::case::Case;
use crate::limits::read;
use crate::refusals::nothing_left;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[Case {
    name: "c14_limits_that_cannot_be_are_refused_whole",
    needs: &[Need::Controllers],
    images: &["busybox"],
    run: impossible,
}];

type Limits = cri::LinuxContainerResources;

fn unified(file: &str, value: &str) -> Limits {
    Limits { unified: [(file.to_owned(), value.to_owned())].into(), ..Default::default() }
}

fn cpus(list: &str) -> Limits {
    Limits { cpuset_cpus: list.to_owned(), ..Default::default() }
}

fn pages(size: &str) -> Limits {
    let page_size = size.to_owned();
    Limits { hugepage_limits: vec![cri::HugepageLimit { page_size, limit: 0 }], ..Default::default() }
}

/// Limits, and a word that the answer must hold.
fn wrong() -> Vec<(Limits, &'static str)> {
    vec![
        (Limits { memory_limit_in_bytes: 1, ..Default::default() }, "memory_limit_in_bytes"),
        (Limits { memory_limit_in_bytes: -2, ..Default::default() }, "memory_limit_in_bytes"),
        (Limits { memory_limit_in_bytes: i64::MIN, ..Default::default() }, "memory_limit_in_bytes"),
        (
            Limits {
                memory_limit_in_bytes: 64 << 20,
                memory_swap_limit_in_bytes: 32 << 20,
                ..Default::default()
            },
            "memory_swap_limit_in_bytes",
        ),
        (Limits { cpu_quota: 999, ..Default::default() }, "cpu_quota"),
        (Limits { cpu_quota: -2, ..Default::default() }, "cpu_quota"),
        (Limits { cpu_period: 999, ..Default::default() }, "cpu_period"),
        (Limits { cpu_period: 1_000_001, ..Default::default() }, "cpu_period"),
        (Limits { cpu_period: -1, ..Default::default() }, "cpu_period"),
        (Limits { cpu_shares: -1, ..Default::default() }, "cpu_shares"),
        (cpus("0-99999"), "cpuset_cpus"),
        (cpus("a"), "cpuset_cpus"),
        (cpus("-1"), "cpuset_cpus"),
        (cpus("0\n1"), "cpuset_cpus"),
        (Limits { cpuset_mems: "77".to_owned(), ..Default::default() }, "cpuset_mems"),
        (pages("3MB"), "hugepage_limits"),
        (pages(""), "hugepage_limits"),
        (pages("../2MB"), "hugepage_limits"),
        (unified("memory.max", "max\nfoo"), "memory.max"),
        (unified("memory.max", "lots"), "memory.max"),
        (unified("../x", "1"), "../x"),
        (unified("../memory.max", "1"), "../memory.max"),
        (unified("cgroup.procs", "1"), "cgroup.procs"),
        (unified("memory.no_such_file", "1"), "memory.no_such_file"),
        (unified("", "1"), "unified"),
        (unified("memory.max\0", "1"), "unified"),
    ]
}

/// What an update could have changed.
const FILES: [&str; 7] =
    ["memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.mems", "pids.max"];

fn in_force(node: &Node, id: &str) -> Result<BTreeMap<&'static str, String>> {
    FILES.into_iter().map(|file| Ok((file, read(node, id, file).unwrap_or_default()))).collect()
}

fn update(node: &Node, id: &str, linux: Limits) -> crisp_tests::cri::Reply<()> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    node.cri().update_container_resources(request).map(drop)
}

fn impossible(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("impossible")?;
        let with = |name: &str, limits: Limits| -> Result<_> {
            let mut config = container_config(name, "busybox", &["sleep", "3600"]);
            config.linux.as_mut().context("linux")?.resources = Some(limits);
            Ok(config)
        };
        let possible = Limits { memory_limit_in_bytes: 128 << 20, cpu_shares: 512, ..Default::default() };
        let id = node.launch_as(&pod, &with("limited", possible)?)?;
        let before = in_force(node, &id)?;
        // Beside the pod of `untouched` and this one.
        let (host, all) = (node.snapshot()?, node.cri().containers()?);
        let all: Vec<_> = all.iter().map(|container| container.id.as_str()).collect();
        for (limits, word) in wrong() {
            let error = node.cri().create(&pod.id, &with("c", limits.clone())?, &pod.config).err();
            let error = error.with_context(|| format!("{limits:?}: a container was made"))?;
            ensure!(error.message().contains(word), "{word}: {error:?}");
            // Beside what could be done by itself.
            let mut mixed = limits.clone();
            if mixed.memory_limit_in_bytes == 0 {
                mixed.memory_limit_in_bytes = 96 << 20;
            }
            if mixed.cpu_shares == 0 {
                mixed.cpu_shares = 4096;
            }
            let error = update(node, &id, mixed).err();
            let error = error.with_context(|| format!("{limits:?}: an update was made"))?;
            ensure!(error.message().contains(word), "update, {word}: {error:?}");
            let now = in_force(node, &id)?;
            ensure!(now == before, "{limits:?}: was {before:?}\nis {now:?}");
            nothing_left(node, &host, &all).with_context(|| format!("{limits:?}"))?;
        }
        // Nothing is set by what says nothing, and everything is allowed by what says so.
        for (name, limit) in [("unset", 0), ("unlimited", -1), ("largest", i64::MAX)] {
            let limits =
                Limits { memory_limit_in_bytes: limit, cpu_quota: limit.min(0), ..Default::default() };
            let id = node.launch_as(&pod, &with(name, limits)?)?;
            let largest = read(node, &id, "memory.max")?;
            ensure!(largest == "max" || largest.parse::<i64>()? > i64::MAX / 2, "{name}: {largest}");
            ensure!(read(node, &id, "cpu.max")?.starts_with("max "), "{name}");
        }
        // Less than is in use would kill.
        node.cri().shell(&id, "dd if=/dev/zero of=/dev/shm/used bs=1M count=40 2>/dev/null")?;
        let less = Limits { memory_limit_in_bytes: 16 << 20, cpu_shares: 4096, ..Default::default() };
        let error = update(node, &id, less).err().context("an update to less than is in use was made")?;
        ensure!(error.message().contains("memory_limit_in_bytes"), "{error:?}");
        ensure!(in_force(node, &id)? == before && node.cri().shell(&id, "echo here")? == "here\n");
        node.end_pod(&pod)
    })
}
