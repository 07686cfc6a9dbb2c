//! Namespaces that are kept ready: a pod cannot tell whether it was given one, nobody is given one twice, and none
//! outlives its daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::node::{Node, Pod};
use crisp_tests::place::Need;
use crisp_tests::{command, wait};
use serde_json::Value;

use crate::case::Case;
use crate::{host_ports, network, restart};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "a_pod_from_the_pool_is_like_any_other", needs: &[], images: &["busybox"], run: alike },
    Case { name: "a_sysctl_of_one_pod_is_in_no_other", needs: &[], images: &["busybox"], run: sysctls },
    Case {
        name: "a_ready_namespace_is_not_older_than_its_host",
        // The kernel copies from its first network namespace, which hack/node is not in.
        needs: &[Need::OwnKernel],
        images: &["busybox"],
        run: outdated,
    },
    Case { name: "ready_namespaces_end_with_their_daemon", needs: &[], images: &["busybox"], run: killed },
    Case { name: "many_pods_at_once_share_no_namespace", needs: &[], images: &["busybox"], run: many },
    Case {
        name: "a_pooled_pod_is_reached_over_both_families",
        needs: &[],
        images: &["busybox"],
        run: |node| with_pool(node, 2, network::reach),
    },
    Case {
        name: "a_pooled_pod_has_its_host_ports_and_limits",
        needs: &[],
        images: &["busybox"],
        run: |node| {
            with_pool(node, 2, |node| {
                host_ports::host_port(node)?;
                host_ports::limited(node)
            })
        },
    },
    Case {
        name: "a_pool_follows_the_pod_cidr",
        needs: &[],
        images: &["busybox"],
        run: |node| with_pool(node, 2, host_ports::pod_cidr),
    },
    Case {
        name: "the_namespace_of_a_pooled_pod_is_pinned",
        needs: &[],
        images: &["busybox"],
        run: |node| with_pool(node, 2, network::pinned),
    },
    Case {
        name: "the_network_of_pooled_pods_works_without_daemon",
        needs: &[],
        images: &["busybox"],
        run: |node| with_pool(node, 2, network::without_daemon),
    },
    Case {
        name: "a_kill_between_any_two_calls_loses_no_pooled_pod",
        needs: &[],
        images: &["busybox"],
        run: |node| with_pool(node, 2, |node| restart::each_cut(node, |node| full(node, 2).map(drop))),
    },
];

/// Runs a test with a daemon that keeps `size` namespaces ready, and goes back to one that keeps none.
pub(crate) fn with_pool(
    node: &mut Node,
    size: usize,
    test: impl FnOnce(&mut Node) -> Result<()>,
) -> Result<()> {
    serve_with(node, size)?;
    test(node)?;
    serve_with(node, 0)
}

fn serve_with(node: &mut Node, size: usize) -> Result<()> {
    node.stop()?;
    node.configure_network(&format!("pool = {size}"))?;
    node.serve()?;
    full(node, size).map(drop)
}

/// Names of the links of the pods and of those to come.
fn ports() -> Result<BTreeSet<String>> {
    let entries = fs::read_dir("/sys/class/net/crisp-test0/brif").context("list the ports of the bridge")?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn link_of(pod: &str) -> String {
    format!("cr{}", &pod[..12])
}

/// Waits until `size` namespaces are ready beside the pods that there are; gives their links.
fn full(node: &Node, size: usize) -> Result<BTreeSet<String>> {
    let pods: BTreeSet<String> = node.cri().pods()?.iter().map(|pod| link_of(&pod.id)).collect();
    wait::until("the pool to be full", wait::LONG, || {
        let ready: BTreeSet<_> =
            ports().map_err(|error| format!("{error:#}"))?.difference(&pods).cloned().collect();
        if ready.len() == size { Ok(ready) } else { Err(format!("{ready:?}")) }
    })
}

/// Runs a pod and says whether it was given what was ready.
fn run(node: &Node, size: usize, config: cri::PodSandboxConfig) -> Result<(Pod, bool)> {
    let ready = full(node, size)?;
    let pod = node.run_pod_as(config)?;
    let given = ready.contains(&link_of(&pod.id));
    Ok((pod, given))
}

/// A program of the host's in the network, IPC and UTS namespaces of a pod.
fn inside(node: &Node, pod: &Pod, line: &str) -> Result<String> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let answer = node.cri().pod_sandbox_status(request)?;
    let info: Value = serde_json::from_str(answer.info.get("info").context("no info")?)?;
    let pid = info["pid"].as_i64().context("no pid")?.to_string();
    let mut nsenter = Command::new("nsenter");
    command::run(nsenter.args(["--target", &pid, "--net", "--ipc", "--uts", "sh", "-c", line]))?.ok()
}

/// Everything about a pod's namespaces that a process in them could see, less what no two pods have alike.
fn facts(node: &Node, pod: &Pod) -> Result<BTreeMap<String, String>> {
    let mut facts = BTreeMap::new();
    let own = "net fs/mqueue kernel/sem kernel/sem_next_id kernel/shm* kernel/msg* kernel/hostname kernel/domainname";
    // Some cannot be read.
    let settings = inside(node, pod, &format!("cd /proc/sys && grep -rs '' {own}; true"))?;
    ensure!(
        settings.contains("net/ipv4/conf/eth0/rp_filter:") && settings.contains("kernel/sem:"),
        "{settings}"
    );
    for line in settings.lines() {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        // How much of it is in use just now.
        if name != "net/netfilter/nf_conntrack_count" {
            let known: &mut String = facts.entry(name.to_owned()).or_default();
            known.push_str(value);
            known.push('\n');
        }
    }
    let ips = network::ips(node, &pod.id)?;
    let links: Value = serde_json::from_str(&inside(node, pod, "ip -j link show dev eth0")?)?;
    let mac = links[0]["address"].as_str().context("no address of eth0")?.to_owned();
    let local = inside(node, pod, "ip -6 -o addr show dev eth0 scope link")?;
    let local =
        local.split_whitespace().find(|word| word.starts_with("fe80")).unwrap_or("fe80/64").to_owned();
    let local = local.trim_end_matches("/64");
    for ask in
        ["-d link", "addr", "route show table all", "-6 route show table all", "rule", "-6 rule", "maddr"]
    {
        let said = inside(node, pod, &format!("ip -o {ask}"))?;
        let (v4, v6) = (ips[0].to_string(), ips[1].to_string());
        let said = said.replace(&v4, "V4").replace(&v6, "V6").replace(&mac, "MAC").replace(local, "LOCAL");
        let words: Vec<&str> = said
            .split_whitespace()
            // The other end's number, and multicast groups that are made of the addresses.
            .map(|word| if word.starts_with("eth0@if") { "eth0" } else { word })
            .filter(|word| !word.starts_with("ff02::1:ff") && !word.starts_with("33:33:ff"))
            .collect();
        facts.insert(format!("ip {ask}"), words.join(" "));
    }
    Ok(facts)
}

fn named(node: &Node, sysctls: &[(&str, &str)]) -> Result<cri::PodSandboxConfig> {
    let mut config = node.pod_config("pooled");
    config.hostname = "a-name-of-its-own".to_owned();
    let linux = config.linux.as_mut().context("linux")?;
    linux.sysctls = sysctls.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Ok(config)
}

fn alike(node: &mut Node) -> Result<()> {
    let own = [("kernel.shm_rmid_forced", "1"), ("net.ipv4.ip_local_port_range", "20000 30000")];
    for sysctls in [&[][..], &own] {
        let mut seen = Vec::new();
        for size in [0, 2] {
            serve_with(node, size)?;
            let (pod, given) = run(node, size, named(node, sysctls)?)?;
            ensure!(given == (size > 0), "pool of {size}: a ready namespace was used: {given}");
            seen.push(facts(node, &pod)?);
            node.end_pod(&pod)?;
        }
        let (one, two) = (&seen[0], &seen[1]);
        for name in one.keys().chain(two.keys()) {
            ensure!(one.get(name) == two.get(name), "{name}: {:?} and {:?}", one.get(name), two.get(name));
        }
    }
    serve_with(node, 0)
}

fn sysctls(node: &mut Node) -> Result<()> {
    with_pool(node, 2, |node| {
        let (plain, _) = run(node, 2, named(node, &[])?)?;
        let before = facts(node, &plain)?;
        node.end_pod(&plain)?;
        // What an interface begins with has to be there before it, so such a pod is made from nothing.
        let early = [("net.ipv4.conf.default.forwarding", "0"), ("net.ipv4.conf.eth0.arp_ignore", "1")];
        let late = [("kernel.sem", "1 2 3 4"), ("net.ipv4.ip_unprivileged_port_start", "1000")];
        for (sysctls, from_pool) in [(early, false), (late, true)] {
            let (pod, given) = run(node, 2, named(node, &sysctls)?)?;
            ensure!(given == from_pool, "{sysctls:?}: a ready namespace was used: {given}");
            for (name, value) in sysctls {
                let path = name.replace('.', "/");
                let found = inside(node, &pod, &format!("cat /proc/sys/{path}"))?;
                ensure!(found.split_whitespace().eq(value.split_whitespace()), "{name}: {found}");
            }
            node.end_pod(&pod)?;
            let (next, given) = run(node, 2, named(node, &[])?)?;
            ensure!(given && facts(node, &next)? == before, "after {sysctls:?}");
            node.end_pod(&next)?;
        }
        Ok(())
    })
}

/// A setting of the host's as it was, put back at the end.
struct Setting(&'static str, String);

impl Setting {
    fn change(path: &'static str, value: &str) -> Result<Self> {
        let before = fs::read_to_string(path)?;
        fs::write(path, value).with_context(|| format!("write {path}"))?;
        Ok(Self(path, before))
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.0, &self.1);
    }
}

fn outdated(node: &mut Node) -> Result<()> {
    const PATH: &str = "/proc/sys/net/ipv4/conf/default/rp_filter";
    with_pool(node, 2, |node| {
        let before = fs::read_to_string(PATH)?;
        let other = if before.trim() == "2" { "0" } else { "2" };
        full(node, 2)?;
        let _changed = Setting::change(PATH, other)?;
        for n in 0..3 {
            let pod = node.run_pod(&format!("new{n}"))?;
            let found = inside(node, &pod, &format!("cat {PATH} /proc/sys/net/ipv4/conf/eth0/rp_filter"))?;
            ensure!(found.split_whitespace().eq([other, other]), "pod {n}: {found}, the host's is {other}");
            let ips = network::ips(node, &pod.id)?;
            inside(node, &pod, &format!("ip addr | grep -q {}", ips[0]))?;
            node.end_pod(&pod)?;
        }
        Ok(())
    })
}

fn killed(node: &mut Node) -> Result<()> {
    with_pool(node, 2, |node| {
        let pod = node.run_pod("stays")?;
        let first = full(node, 2)?;
        node.kill_and_restart()?;
        let second = full(node, 2)?;
        ensure!(first.is_disjoint(&second), "{first:?} and {second:?}");
        let mut seen: BTreeSet<_> = network::ips(node, &pod.id)?.into_iter().collect();
        let more: Vec<Pod> = (0..6).map(|n| node.run_pod(&format!("more{n}"))).collect::<Result<_>>()?;
        for other in &more {
            for ip in network::ips(node, &other.id)? {
                ensure!(seen.insert(ip), "{ip} was given twice");
            }
            node.end_pod(other)?;
        }
        // A daemon that is asked to end takes them away itself, also beside a pod.
        node.stop()?;
        ensure!(ports()? == [link_of(&pod.id)].into(), "{:?}", ports()?);
        node.serve()?;
        node.end_pod(&pod)
    })
}

fn many(node: &mut Node) -> Result<()> {
    with_pool(node, 2, |node| {
        let shared = &*node;
        let pods: Vec<Result<Pod>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..12)
                .map(|n| {
                    scope.spawn(move || {
                        let cri = crisp_tests::cri::Cri::new(&shared.folder().join("crisp.sock"))?;
                        let config = shared.pod_config(&format!("p{n}"));
                        Ok(Pod { id: cri.run_pod(&config)?, config })
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|end| end.unwrap_or_else(|_| bail!("a client panicked"))).collect()
        });
        let pods: Vec<Pod> = pods.into_iter().collect::<Result<_>>()?;
        let (mut namespaces, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for pod in &pods {
            let own = inside(node, pod, "for kind in net ipc uts; do readlink /proc/self/ns/$kind; done")?;
            for namespace in own.lines() {
                ensure!(namespaces.insert(namespace.to_owned()), "{namespace} is two pods'");
            }
            for ip in network::ips(node, &pod.id)? {
                ensure!(addresses.insert(ip), "{ip} is two pods'");
            }
        }
        full(node, 2)?;
        pods.iter().try_for_each(|pod| node.end_pod(pod))
    })
}
