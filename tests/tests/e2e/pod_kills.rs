//! SIGKILL to the daemon at random moments of a sandbox's set-up and tear-down. After the next start what is leased,
//! linked, pinned and published is what the live pods have, no more and no less; with the last pod all of it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::node::Node;
use crisp_tests::random::Random;
use crisp_tests::{command, place, wait};

use crate::case::Case;
use crate::given_up::cut;
use crate::network::ips;
use crate::pool::with_pool;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "a_kill_at_any_moment_leaves_what_live_pods_have",
        needs: &[],
        images: &[],
        run: |node| around(node, |node| kills(node, 0)),
    },
    Case {
        name: "a_kill_at_any_moment_leaves_what_live_pooled_pods_have",
        needs: &[],
        images: &[],
        run: |node| around(node, |node| with_pool(node, 2, |node| kills(node, 2))),
    },
];

/// Longest wait before a kill, microseconds: a little more than a set-up or a tear-down takes.
const LATEST: usize = 60_000;
/// Pods that live side by side.
const PODS: usize = 6;
/// First of the host ports; a pod's own is counted from here.
const PORTS: usize = 20_000;

fn around(node: &mut Node, test: impl FnOnce(&mut Node) -> Result<()>) -> Result<()> {
    let before = node.snapshot()?;
    test(node)?;
    node.wait_for_return(&before)
}

/// `ready` is how many namespaces the daemon keeps for pods to come.
fn kills(node: &mut Node, ready: usize) -> Result<()> {
    let mut dice = Random::announced("pod_kills");
    let rounds = place::rounds(60, 10);
    let mut configs = BTreeMap::new();
    for round in 0..rounds {
        let after = Duration::from_micros(dice.below(LATEST) as u64);
        let pods: Vec<String> = node.cri().pods()?.into_iter().map(|pod| pod.id).collect();
        let what = format!("round {round} of seed {}, killed after {after:?}", dice.seed);
        match dice.below(4) {
            0 | 1 if pods.len() < PODS => {
                let config = config(node, &mut dice, round);
                // A caller that was not told asks again, and gets the one that it asked for.
                let first = cut(node, after, |node| node.cri().run_pod(&config))?;
                check(node, &configs, ready).context(what.clone())?;
                let pod = node.cri().run_pod(&config).with_context(|| what.clone())?;
                ensure!(first.is_none_or(|first| first == pod), "{what}: another sandbox");
                configs.insert(pod, config);
            }
            2 if !pods.is_empty() => {
                let pod = dice.one_of(&pods).clone();
                cut(node, after, |node| node.cri().stop_pod(&pod))?;
            }
            _ if !pods.is_empty() => {
                let pod = dice.one_of(&pods).clone();
                cut(node, after, |node| node.cri().remove_pod(&pod))?;
            }
            _ => {}
        }
        check(node, &configs, ready).context(what)?;
    }
    for pod in node.cri().pods()? {
        node.cri().stop_pod(&pod.id)?;
        node.cri().remove_pod(&pod.id)?;
    }
    Ok(())
}

/// A pod with or without a host port and limits.
fn config(node: &Node, dice: &mut Random, round: usize) -> cri::PodSandboxConfig {
    let mut config = node.pod_config(&format!("killed-{round}"));
    if dice.below(2) == 0 {
        let host_port = (PORTS + round) as i32;
        config.port_mappings = vec![cri::PortMapping { container_port: 80, host_port, ..Default::default() }];
    }
    if dice.below(3) == 0 {
        config.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "10M".to_owned());
    }
    config
}

/// Compares the host with the pods that are ready. Those that the caller was never told of are among them.
fn check(node: &Node, configs: &BTreeMap<String, cri::PodSandboxConfig>, spare: usize) -> Result<()> {
    let ready: Vec<String> = node
        .cri()
        .pods()?
        .into_iter()
        .filter(|pod| pod.state() == cri::PodSandboxState::SandboxReady)
        .map(|pod| pod.id)
        .collect();
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for pod in &ready {
        for ip in ips(node, pod)? {
            ensure!(addresses.insert(ip), "{ip} has two owners");
        }
    }
    let short: BTreeSet<String> = ready.iter().map(|id| id[..12].to_owned()).collect();
    // The kernel takes links away in its own time, and the daemon looks after dead pods beside serving.
    wait::until("links and pins of the live pods only", wait::LONG, || {
        let table = fs::read_to_string("/proc/self/net/dev").map_err(|error| error.to_string())?;
        let links: BTreeSet<String> = table
            .lines()
            .filter_map(|line| line.trim().split_once(':')?.0.strip_prefix("cr").map(str::to_owned))
            .filter(|name| name.len() == 12 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .collect();
        let pins: BTreeSet<String> = fs::read_dir("/run/netns")
            .map_err(|error| error.to_string())?
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                Some(name.strip_prefix("crisp-")?.split_once('-')?.1[..12].to_owned())
            })
            .collect();
        let to_come = links.difference(&short).count();
        match short.is_subset(&links) && to_come == spare && pins == short {
            true => Ok(()),
            false => Err(format!("ready {short:?}, links {links:?}, pins {pins:?}")),
        }
    })?;
    let rules = command::run(Command::new("nft").args(["list", "ruleset"]))?.ok()?;
    for (pod, config) in configs {
        for mapping in &config.port_mappings {
            let there = rules.contains(&format!("tcp . {} : ", mapping.host_port));
            ensure!(there == ready.contains(pod), "{pod}: host port {}: {rules}", mapping.host_port);
        }
    }
    Ok(())
}
