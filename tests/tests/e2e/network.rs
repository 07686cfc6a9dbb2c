//! The embedded network: addresses of both families, reach from the host and between pods, nothing kept after the pod.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::node::{Node, Pod};
use crisp_tests::{command, wait};

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "a_pod_is_reached_over_both_families", needs: &[], images: &["busybox"], run: reach },
    Case {
        name: "pods_have_different_addresses_that_are_freed",
        needs: &[],
        images: &["busybox"],
        run: addresses,
    },
    Case { name: "the_network_namespace_is_pinned", needs: &[], images: &["busybox"], run: pinned },
    Case { name: "an_address_outlives_the_container", needs: &[], images: &["busybox"], run: outlives },
    Case {
        name: "the_network_works_while_the_daemon_is_dead",
        needs: &[],
        images: &["busybox"],
        run: without_daemon,
    },
    Case {
        name: "what_leaves_the_range_has_the_hosts_address",
        needs: &[],
        images: &["busybox"],
        run: masquerade,
    },
];

/// Addresses of a sandbox: the first is IPv4, the second IPv6.
pub(crate) fn ips(node: &Node, pod: &str) -> Result<Vec<IpAddr>> {
    let network = node.cri().pod(pod)?.network.context("no network in the status")?;
    let additional = network.additional_ips.iter().map(|ip| ip.ip.as_str());
    let all = std::iter::once(network.ip.as_str())
        .chain(additional)
        .map(str::parse)
        .collect::<Result<Vec<IpAddr>, _>>()?;
    ensure!(all.len() == 2 && all[0].is_ipv4() && all[1].is_ipv6(), "{all:?}");
    Ok(all)
}

/// Asks for `/` over HTTP/1.0 and returns the whole answer; waits until somebody listens.
pub(crate) fn http(ip: IpAddr, port: u16) -> Result<String> {
    wait::until("an answer over HTTP", wait::LONG, || http_once(ip, port))
}

fn http_once(ip: IpAddr, port: u16) -> std::io::Result<String> {
    let limit = Duration::from_secs(20);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Starts a web server on port 8080 that says `text`.
fn serve(node: &Node, pod: &Pod, text: &str) -> Result<String> {
    let line = format!("mkdir /www; echo {text} >/www/index.html; exec httpd -f -p 8080 -h /www");
    node.launch(pod, "web", "busybox", &["sh", "-c", &line])
}

pub(crate) fn reach(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("server")?;
    serve(node, &pod, "here-i-am")?;
    let client = node.run_pod("client")?;
    let id = node.launch(&client, "c", "busybox", &["sleep", "3600"])?;
    for ip in ips(node, &pod.id)? {
        let answer = http(ip, 8080)?;
        ensure!(answer.contains("here-i-am"), "from the host, {ip}: {answer}");
        let url = SocketAddr::new(ip, 8080);
        let answer = node.cri().shell(&id, &format!("wget -q -O - http://{url}/"))?;
        ensure!(answer == "here-i-am\n", "from a pod, {ip}: {answer}");
    }
    // Within the pod, by name of the loopback.
    let second = node.launch(&pod, "second", "busybox", &["sleep", "3600"])?;
    ensure!(node.cri().shell(&second, "wget -q -O - http://127.0.0.1:8080/")? == "here-i-am\n");
    node.end_pod(&client)?;
    node.end_pod(&pod)
}

fn addresses(node: &mut Node) -> Result<()> {
    let pods: Vec<Pod> = (0..4).map(|n| node.run_pod(&format!("p{n}"))).collect::<Result<_>>()?;
    let mut seen = BTreeSet::new();
    for pod in &pods {
        for ip in ips(node, &pod.id)? {
            ensure!(seen.insert(ip), "{ip} was given twice");
        }
    }
    // A sandbox that is stopped holds no address any more, whatever its status still says.
    let host_links = || -> Result<usize> { Ok(fs::read_to_string("/proc/net/dev")?.lines().count()) };
    let before = host_links()?;
    node.cri().stop_pod(&pods[0].id)?;
    wait::until_true("the link to go away", wait::LONG, || {
        host_links().is_ok_and(|count| count == before - 1)
    })?;
    for pod in &pods {
        node.end_pod(pod)?;
    }
    // More pods than would fit side by side in a leaky range, one after the other: addresses come back.
    for n in 0..6 {
        let pod = node.run_pod(&format!("again{n}"))?;
        ips(node, &pod.id)?;
        node.end_pod(&pod)?;
    }
    Ok(())
}

pub(crate) fn pinned(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("pinned")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let inside = node.cri().shell(&id, "readlink /proc/self/ns/net")?;
    let inode: u64 = inside.trim().trim_start_matches("net:[").trim_end_matches(']').parse()?;
    let mut pins = Vec::new();
    for entry in fs::read_dir("/run/netns")? {
        let path = entry?.path();
        if std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path)?) == inode {
            pins.push(path);
        }
    }
    ensure!(pins.len() == 1, "pins of {inside}: {pins:?}");
    let name = pins[0].file_name().context("a name")?.to_string_lossy().into_owned();
    ensure!(
        name.starts_with("crisp-") && name.contains(&pod.id[..8]),
        "{name} does not name the pod {}",
        pod.id
    );
    node.end_pod(&pod)?;
    ensure!(!pins[0].exists(), "the pin is still there");
    Ok(())
}

fn outlives(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("outlives")?;
    let before = ips(node, &pod.id)?;
    let first = serve(node, &pod, "first")?;
    ensure!(http(before[0], 8080)?.contains("first"));
    node.cri().stop(&first, 0)?;
    node.cri().remove(&first)?;
    let mut config = crisp_tests::cri::container_config("web", "busybox", &[]);
    config.metadata.as_mut().context("metadata")?.attempt = 1;
    config.command = crisp_tests::cri::words(&[
        "sh",
        "-c",
        "mkdir /w; echo second >/w/index.html; exec httpd -f -p 8080 -h /w",
    ]);
    node.launch_as(&pod, &config)?;
    ensure!(ips(node, &pod.id)? == before);
    ensure!(http(before[0], 8080)?.contains("second"));
    node.end_pod(&pod)
}

pub(crate) fn without_daemon(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("alone")?;
    serve(node, &pod, "alone")?;
    let all = ips(node, &pod.id)?;
    http(all[0], 8080)?;
    node.kill()?;
    for ip in &all {
        ensure!(http(*ip, 8080)?.contains("alone"), "{ip}");
    }
    node.serve()?;
    ensure!(ips(node, &pod.id)? == all, "addresses have changed");
    ensure!(node.cri().pod(&pod.id)?.state() == cri::PodSandboxState::SandboxReady);
    // A new pod gets none of the addresses in use.
    let other = node.run_pod("other")?;
    let fresh = ips(node, &other.id)?;
    ensure!(fresh.iter().all(|ip| !all.contains(ip)), "{fresh:?} and {all:?}");
    ensure!(http(all[0], 8080)?.contains("alone"));
    node.end_pod(&other)?;
    node.end_pod(&pod)
}

/// A network namespace behind the host with one address of each family and no route back to any pod. It goes away with
/// this value.
struct Outside;

impl Outside {
    const NAME: &str = "crisp-test-outside";

    fn make() -> Result<Self> {
        ip(&["netns", "add", Self::NAME])?;
        let outside = Self;
        ip(&["link", "add", "outside0", "type", "veth", "peer", "name", "inside0", "netns", Self::NAME])?;
        for (family, host, peer) in
            [("-4", "192.0.2.1/24", "192.0.2.2/24"), ("-6", "2001:db8::1/64", "2001:db8::2/64")]
        {
            // Without duplicate address detection an address can be used at once.
            let flags = if family == "-6" { &["nodad"][..] } else { &[] };
            ip(&[&[family, "addr", "add", host, "dev", "outside0"], flags].concat())?;
            ip(&[&["-n", Self::NAME, family, "addr", "add", peer, "dev", "inside0"], flags].concat())?;
        }
        ip(&["link", "set", "outside0", "up"])?;
        ip(&["-n", Self::NAME, "link", "set", "inside0", "up"])?;
        Ok(outside)
    }

    /// Listens on port 80 in there; each client is told, over HTTP, the address that it came from.
    fn serve(&self) -> Result<()> {
        let namespace = fs::File::open(format!("/run/netns/{}", Self::NAME))?;
        // The socket stays in the namespace that its thread was in.
        let listener = std::thread::spawn(move || -> Result<TcpListener> {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))?)
        });
        let listener = listener.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;
        std::thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                let seen = from.ip().to_canonical();
                // A client that goes away early is the test's to notice.
                let _ = stream.read(&mut [0; 4096]);
                let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{seen}\n");
            }
        });
        Ok(())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The veth goes with the namespace, or, when the listener still holds that, by its name.
        let _ = ip(&["link", "del", "outside0"]);
        let _ = ip(&["netns", "del", Self::NAME]);
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    command::run(Command::new("ip").args(arguments))?.ok()
}

fn masquerade(node: &mut Node) -> Result<()> {
    let outside = Outside::make()?;
    outside.serve()?;
    let pod = node.run_pod("leaving")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    for (url, host) in [("http://192.0.2.2/", "192.0.2.1\n"), ("http://[2001:db8::2]/", "2001:db8::1\n")] {
        let seen = node.cri().shell(&id, &format!("wget -q -O - {url}"))?;
        ensure!(seen == host, "{url} was asked by {seen}");
    }
    node.end_pod(&pod)
}
