//! Ports of the host, limits of bandwidth, and ranges that kubelet names: the embedded network beyond its addresses.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::command;
use crisp_tests::node::{Node, Pod};

use crate::case::Case;
use crate::network::{http, ips, serve};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "a_host_port_leads_into_the_pod", needs: &[], images: &["busybox"], run: host_port },
    Case {
        name: "host_ports_outlive_the_daemon_and_end_with_the_pod",
        needs: &[],
        images: &["busybox"],
        run: outlives,
    },
    Case { name: "a_taken_host_port_is_refused", needs: &[], images: &["busybox"], run: taken },
    Case { name: "a_pods_bandwidth_is_limited_on_the_host", needs: &[], images: &["busybox"], run: limited },
    Case { name: "a_pod_cidr_is_where_new_pods_are", needs: &[], images: &["busybox"], run: pod_cidr },
];

fn tcp(container_port: i32, host_port: i32, host_ip: &str) -> cri::PortMapping {
    cri::PortMapping { protocol: 0, container_port, host_port, host_ip: host_ip.to_owned() }
}

fn run_with_ports(node: &Node, name: &str, ports: &[cri::PortMapping]) -> Result<Pod> {
    let mut config = node.pod_config(name);
    config.port_mappings = ports.to_vec();
    node.run_pod_as(config)
}

/// Addresses of this host that a host port is reached at, and those of the bridge.
fn gateways() -> Result<Vec<IpAddr>> {
    Ok(vec!["10.213.0.1".parse()?, "fd00:c215::1".parse()?])
}

pub(crate) fn host_port(node: &mut Node) -> Result<()> {
    let pod = run_with_ports(node, "ported", &[tcp(8080, 18_080, ""), tcp(8080, 0, "")])?;
    serve(node, &pod, "behind-a-port")?;
    let other = node.run_pod("client")?;
    let client = node.launch(&other, "c", "busybox", &["sleep", "3600"])?;
    let own = node.launch(&pod, "own", "busybox", &["sleep", "3600"])?;
    ensure!(http("127.0.0.1".parse()?, 18_080)?.contains("behind-a-port"), "from the host's loopback");
    for address in gateways()? {
        ensure!(http(address, 18_080)?.contains("behind-a-port"), "from the host, {address}");
        let url = std::net::SocketAddr::new(address, 18_080);
        for (who, id) in [("another pod", &client), ("the pod itself", &own)] {
            let answer = node.cri().shell(id, &format!("wget -q -O - http://{url}/"))?;
            ensure!(answer == "behind-a-port\n", "from {who}, {address}: {answer}");
        }
    }
    node.end_pod(&other)?;
    node.end_pod(&pod)
}

fn rules() -> Result<String> {
    command::run(Command::new("nft").args(["list", "ruleset"]))?.ok()
}

fn outlives(node: &mut Node) -> Result<()> {
    let pod = run_with_ports(node, "ported", &[tcp(8080, 18_080, "127.0.0.1")])?;
    serve(node, &pod, "still-there")?;
    let stopped = run_with_ports(node, "stopped", &[tcp(8080, 18_081, "")])?;
    let loopback: IpAddr = "127.0.0.1".parse()?;
    node.kill()?;
    ensure!(http(loopback, 18_080)?.contains("still-there"), "without a daemon");
    node.serve()?;
    ensure!(http(loopback, 18_080)?.contains("still-there"), "after the restart");
    node.cri().stop_pod(&stopped.id)?;
    ensure!(!rules()?.contains("18081"), "a stopped pod has its port: {}", rules()?);
    // Somebody empties the tables: the next change brings all of it back.
    command::run(Command::new("nft").args(["flush", "ruleset"]))?.ok()?;
    let late = run_with_ports(node, "late", &[tcp(8080, 18_082, "")])?;
    ensure!(http(loopback, 18_080)?.contains("still-there"), "after a flush");
    command::run(Command::new("nft").args(["flush", "ruleset"]))?.ok()?;
    for pod in [&late, &stopped, &pod] {
        node.end_pod(pod)?;
    }
    ensure!(!rules()?.contains("18080"), "{}", rules()?);
    Ok(())
}

fn taken(node: &mut Node) -> Result<()> {
    let pod = run_with_ports(node, "first", &[tcp(80, 18_080, "127.0.0.1")])?;
    let before = node.snapshot()?;
    for port in [tcp(80, 18_080, ""), tcp(81, 18_080, "127.0.0.1")] {
        let mut config = node.pod_config("second");
        config.port_mappings = vec![tcp(80, 18_099, ""), port];
        let error = node.cri().run_pod(&config).err().context("a taken port was accepted")?;
        let wanted = format!("host port 18080/tcp is in use by {}", pod.id);
        ensure!(error.message().contains(&wanted), "{error:?}");
    }
    ensure!(!rules()?.contains("18099"), "half of a refused pod's ports are there");
    node.wait_for_return(&before)?;
    // Free again with its owner's stop, as kubelet's next attempt for a static pod needs it.
    node.cri().stop_pod(&pod.id)?;
    let next = run_with_ports(node, "second", &[tcp(80, 18_080, "")])?;
    node.end_pod(&next)?;
    node.end_pod(&pod)
}

pub(crate) fn limited(node: &mut Node) -> Result<()> {
    let mut config = node.pod_config("slow");
    for (name, value) in
        [("kubernetes.io/ingress-bandwidth", "16M"), ("kubernetes.io/egress-bandwidth", "8M")]
    {
        config.annotations.insert(name.to_owned(), value.to_owned());
    }
    let mut wrong = config.clone();
    wrong.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "quick".to_owned());
    let before = node.snapshot()?;
    let error = node.cri().run_pod(&wrong).err().context("a rate that is none was accepted")?;
    ensure!(error.message().contains("kubernetes.io/egress-bandwidth \"quick\""), "{error:?}");
    node.wait_for_return(&before)?;

    let pod = node.run_pod_as(config)?;
    serve(node, &pod, "slowly")?;
    let shown = command::run(Command::new("tc").args(["qdisc", "show"]))?.ok()?;
    let rate = |link: &str, rate: &str| {
        let ours = |line: &str| line.contains(&format!(" dev {link}")) && line.contains("tbf");
        shown.lines().any(|line| ours(line) && line.contains(&format!("rate {rate} ")))
    };
    ensure!(rate(&format!("cr{} ", &pod.id[..12]), "16Mbit"), "what the pod receives: {shown}");
    ensure!(rate(&format!("icr{} ", &pod.id[..12]), "8Mbit"), "what the pod sends: {shown}");
    for ip in ips(node, &pod.id)? {
        ensure!(http(ip, 8080)?.contains("slowly"), "{ip}");
    }
    // A daemon that was killed leaves the links; the next one takes them away with the pod.
    node.kill_and_restart()?;
    node.end_pod(&pod)
}

fn update(node: &Node, cidr: &str) -> crisp_tests::cri::Reply<()> {
    let network_config = Some(cri::NetworkConfig { pod_cidr: cidr.to_owned() });
    let request =
        cri::UpdateRuntimeConfigRequest { runtime_config: Some(cri::RuntimeConfig { network_config }) };
    node.cri().update_runtime_config(request).map(|_| ())
}

pub(crate) fn pod_cidr(node: &mut Node) -> Result<()> {
    // It stays with the root directory, which all nodes of a run share.
    node.stop()?;
    let own = tempfile::tempdir_in(crisp_tests::place::disk())?;
    let shared = node.use_root(own.path().to_path_buf())?;
    node.serve()?;
    node.ensure_images(&["busybox"])?;
    let old = node.run_pod("old")?;
    serve(node, &old, "old")?;
    let old_ips = ips(node, &old.id)?;
    for (cidr, why) in
        [("10.0.0.0/33", "is not a network"), ("10.0.0.0/32", "has no room"), ("x", "is not a network")]
    {
        let error = update(node, cidr).err().with_context(|| format!("{cidr} was accepted"))?;
        ensure!(error.message().contains("pod_cidr") && error.message().contains(why), "{error:?}");
    }
    update(node, "")?;
    update(node, "10.244.7.0/24,fd00:7::/64")?;
    update(node, "10.244.7.0/24,fd00:7::/64")?;
    for round in 0..2 {
        let new = node.run_pod(&format!("new{round}"))?;
        let new_ips = ips(node, &new.id)?;
        let inside = |ip: usize, range: &str| new_ips[ip].to_string().starts_with(range);
        ensure!(inside(0, "10.244.7.") && inside(1, "fd00:7::"), "round {round}: {new_ips:?}");
        let id = node.launch(&new, "c", "busybox", &["sleep", "3600"])?;
        for ip in &old_ips {
            let url = std::net::SocketAddr::new(*ip, 8080);
            ensure!(node.cri().shell(&id, &format!("wget -q -O - http://{url}/"))? == "old\n", "{ip}");
        }
        node.end_pod(&new)?;
        // The cluster does not say it again to a runtime that was started anew.
        node.kill_and_restart()?;
        ensure!(ips(node, &old.id)? == old_ips);
    }
    node.end_pod(&old)?;
    node.stop()?;
    node.use_root(shared)?;
    fs::remove_dir_all(own.path()).context("remove the test's root directory")?;
    node.serve()
}
