//! `crisp netns`: a pod's network namespace as a person at a terminal finds and enters it.

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1::{self as cri, NamespaceMode};
use crisp_tests::node::Node;

use crate::case::Case;
use crate::network;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "netns_ls_tells_where_each_pod_is", needs: &[], images: &[], run: listed },
    Case { name: "netns_exec_enters_the_network_and_nothing_else", needs: &[], images: &[], run: entered },
];

fn on_the_host(node: &Node) -> Result<cri::PodSandboxConfig> {
    let mut config = node.pod_config("host");
    let linux = config.linux.as_mut().context("linux")?;
    let options = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
    options.network = NamespaceMode::Node.into();
    Ok(config)
}

fn listed(node: &mut Node) -> Result<()> {
    let (pod, host) = (node.run_pod("listed")?, node.run_pod_as(on_the_host(node)?)?);
    let text = node.crisp(&["netns", "ls"])?.ok()?;
    let line = |name: &str| {
        let line = text.lines().find(|line| line.split_whitespace().nth(1) == Some(name));
        line.map(|line| line.split_whitespace().collect::<Vec<_>>()).with_context(|| text.clone())
    };
    let words = line("listed")?;
    let ips: Vec<_> = network::ips(node, &pod.id)?.iter().map(ToString::to_string).collect();
    let link = format!("cr{}", &pod.id[..12]);
    ensure!(words[2..5] == [&pod.id[..13], &ips.join(","), &link], "{text}");
    ensure!(words[5].starts_with("/run/netns/crisp-") && words[5].ends_with(&pod.id[..16]), "{text}");
    ensure!(std::path::Path::new(words[5]).exists(), "{text}");
    ensure!(line("host")?[5..] == ["(the", "host's)"], "{text}");
    node.end_pod(&host)?;
    node.cri().stop_pod(&pod.id)?;
    let text = node.crisp(&["netns", "ls"])?.ok()?;
    ensure!(text.lines().count() == 1, "a stopped pod has none: {text}");
    node.end_pod(&pod)
}

fn entered(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("entered")?;
    let ips = network::ips(node, &pod.id)?;
    let own = |kind: &str| {
        std::fs::read_link(format!("/proc/self/ns/{kind}")).map(|link| link.display().to_string())
    };
    for wanted in ["entered", &pod.id[..10]] {
        let said = node.crisp(&["netns", "exec", wanted, "ip", "-o", "addr"])?.ok()?;
        ensure!(ips.iter().all(|ip| said.contains(&ip.to_string())), "{wanted}: {said}");
    }
    let said = node.crisp(&["netns", "exec", "entered", "sh", "-c", "readlink /proc/self/ns/*; exit 7"])?;
    ensure!(said.status.code() == Some(7), "{said}");
    ensure!(!said.stdout.contains(&own("net")?), "{said}");
    for kind in ["mnt", "ipc", "uts", "pid", "user", "cgroup"] {
        ensure!(said.stdout.contains(&own(kind)?), "{kind}: {said}");
    }
    let missing = node.crisp(&["netns", "exec", "entered", "no-such-program", "--flag"])?;
    ensure!(missing.status.code() == Some(127) && missing.stderr.contains("no-such-program"), "{missing}");
    let refused = node.crisp(&["netns", "exec", "nobody", "true"])?.refused()?;
    ensure!(refused.contains("pod \"nobody\" not found"), "{refused}");
    let host = node.run_pod_as(on_the_host(node)?)?;
    let refused = node.crisp(&["netns", "exec", "host", "true"])?.refused()?;
    ensure!(refused.contains("has the host's network"), "{refused}");
    node.end_pod(&host)?;
    node.cri().stop_pod(&pod.id)?;
    let refused = node.crisp(&["netns", "exec", "entered", "true"])?.refused()?;
    ensure!(refused.contains("is stopped"), "{refused}");
    node.end_pod(&pod)
}
