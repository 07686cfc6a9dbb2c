//! Two nodes with a network of their own each, and routes between them: pods reach each other by their own addresses,
//! as with any routed CNI.

use std::fs;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use crisp_tests::node::Node;
use crisp_tests::{command, wait};

use crate::case::Case;
use crate::network::ips;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[Case {
    name: "pods_of_two_nodes_reach_each_other_by_routes",
    needs: &[],
    images: &["busybox"],
    run: routed,
}];

/// Network namespace of the second machine.
const NAMESPACE: &str = "crisp-test-node2";
/// Each machine's range of pods; all of them are in 10.244.0.0/16 and fd00:244::/32.
const RANGES: [(&str, &str); 2] =
    [("10.244.1.0/24", "fd00:244:1::/64"), ("10.244.2.0/24", "fd00:244:2::/64")];
/// Each machine's own addresses, on one link.
const ADDRESSES: [(&str, &str); 2] = [("192.0.2.1", "2001:db8::1"), ("192.0.2.2", "2001:db8::2")];

/// The second machine: a network namespace joined to this one by a veth pair. It goes away with this value.
struct Machine;

impl Machine {
    fn make() -> Result<Self> {
        ip(&["netns", "add", NAMESPACE])?;
        let machine = Self;
        ip(&["link", "add", "wire0", "type", "veth", "peer", "name", "wire1", "netns", NAMESPACE])?;
        for (here, link) in [(true, "wire0"), (false, "wire1")] {
            let (v4, v6) = ADDRESSES[usize::from(!here)];
            let (other_v4, other_v6) = ADDRESSES[usize::from(here)];
            let (far_v4, far_v6) = RANGES[usize::from(here)];
            let on = |arguments: &[&str]| match here {
                true => ip(arguments),
                false => ip(&[&["-n", NAMESPACE], arguments].concat()),
            };
            on(&["link", "set", link, "up"])?;
            on(&["addr", "add", &format!("{v4}/24"), "dev", link])?;
            on(&["-6", "addr", "add", &format!("{v6}/64"), "dev", link, "nodad"])?;
            on(&["route", "add", far_v4, "via", other_v4])?;
            on(&["-6", "route", "add", far_v6, "via", other_v6])?;
        }
        ip(&["-n", NAMESPACE, "link", "set", "lo", "up"])?;
        Ok(machine)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = ip(&["link", "del", "wire0"]);
        let _ = ip(&["netns", "del", NAMESPACE]);
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    command::run(Command::new("ip").args(arguments))?.ok()
}

/// Gives a node a range of the cluster's.
fn configure(node: &Node, (v4, v6): (&str, &str)) -> Result<()> {
    let text = fs::read_to_string(node.config())?;
    let native = "native_ranges = [\"10.244.0.0/16\", \"fd00:244::/32\"]";
    // Not the bridge of the node that every test has.
    let ours = text
        .replace("crisp-test0", "crisp-two0")
        .replace("10.213.0.0/16", v4)
        .replace("\"fd00:c215::/64\"", &format!("\"{v6}\"\n{native}"));
    ensure!(ours != text, "the configuration has other ranges: {text}");
    fs::write(node.config(), ours).context("write the configuration")
}

/// Tells each client its address.
const SERVER: &str = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo $REMOTE_ADDR\\n' >/www/cgi-bin/who; \
                      chmod +x /www/cgi-bin/who; exec httpd -f -p 8080 -h /www";

fn routed(_: &mut Node) -> Result<()> {
    let _machine = Machine::make()?;
    let root = tempfile::tempdir_in(crisp_tests::place::disk())?;
    let mut here = Node::prepare("")?;
    configure(&here, RANGES[0])?;
    let mut there = Node::prepare("")?;
    configure(&there, RANGES[1])?;
    // A machine has its own disk; the first test's daemon holds the one that all nodes share.
    there.use_root(root.path().join("there"))?;
    here.use_root(root.path().join("here"))?;
    here.serve()?;
    let command = there.serve_command();
    let mut inside = Command::new("nsenter");
    inside.arg(format!("--net=/run/netns/{NAMESPACE}")).arg(command.get_program()).args(command.get_args());
    inside.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    there.adopt(inside.spawn().context("start the second daemon")?)?;
    let mut pods = Vec::new();
    for node in [&here, &there] {
        node.ensure_images(&["busybox"])?;
        let pod = node.run_pod("routed")?;
        let server = node.launch(&pod, "server", "busybox", &["sh", "-c", SERVER])?;
        pods.push((node, pod, server));
    }
    for (near, far) in [(0, 1), (1, 0)] {
        let own = ips(pods[near].0, &pods[near].1.id)?;
        for (family, ip) in ips(pods[far].0, &pods[far].1.id)?.into_iter().enumerate() {
            let line = format!("wget -q -O - http://{}/cgi-bin/who", std::net::SocketAddr::new(ip, 8080));
            let (node, _, client) = &pods[near];
            let seen =
                wait::until("an answer from the other node", wait::LONG, || node.cri().shell(client, &line))?;
            // Nobody on the way has changed it.
            let seen: IpAddr = seen.trim().trim_matches(['[', ']']).parse().context(seen)?;
            ensure!(seen.to_canonical() == own[family], "{ip} sees {seen}, not {}", own[family]);
        }
    }
    for (node, pod, ..) in &pods {
        node.end_pod(pod)?;
    }
    drop(pods);
    here.finish()?;
    there.finish()
}
