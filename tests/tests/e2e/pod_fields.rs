//! Names, addresses and ports of a pod that are none. `c13_` of the adversarial cases.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::words;
use crisp_tests::node::Node;
use crisp_tests::untouched;

use crate::case::Case;
use crate::network::ips;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "c13_hostname_dns_and_ports_are_what_they_say",
        needs: &[],
        images: &["busybox"],
        run: refused_fields,
    },
    Case { name: "c13_the_files_of_a_pod_are_exact", needs: &[], images: &["busybox"], run: exact },
];

type Change = Box<dyn FnOnce(&mut cri::PodSandboxConfig)>;

fn hostname(text: &str) -> Change {
    let text = text.to_owned();
    Box::new(|config| config.hostname = text)
}

fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> Change {
    let dns = cri::DnsConfig { servers: words(servers), searches: words(searches), options: words(options) };
    Box::new(|config| config.dns_config = Some(dns))
}

fn port(protocol: i32, container_port: i32, host_port: i32, host_ip: &str) -> Change {
    let port = cri::PortMapping { protocol, container_port, host_port, host_ip: host_ip.to_owned() };
    Box::new(|config| config.port_mappings = vec![port])
}

/// What is wrong, and the field that the answer must name.
fn wrong() -> Vec<(Change, &'static str)> {
    let long = "x".repeat(300);
    let many = "a.example ".repeat(100_000);
    vec![
        (hostname(&long), "hostname"),
        (hostname("a\nb"), "hostname"),
        (hostname("a\0b"), "hostname"),
        (hostname("a b"), "hostname"),
        (hostname("a/../b"), "hostname"),
        (dns(&["1.1.1.1\nnameserver 6.6.6.6"], &[], &[]), "dns_config.servers"),
        (dns(&["1.1.1.1 "], &[], &[]), "dns_config.servers"),
        (dns(&[""], &[], &[]), "dns_config.servers"),
        (dns(&["not-an-address"], &[], &[]), "dns_config.servers"),
        (dns(&[], &["a\nnameserver 6.6.6.6"], &[]), "dns_config.searches"),
        (dns(&[], &["a\0"], &[]), "dns_config.searches"),
        (dns(&[], &["a b"], &[]), "dns_config.searches"),
        (dns(&[], &["x".repeat(1 << 20).as_str()], &[]), "dns_config.searches"),
        (dns(&[], &many.split_whitespace().collect::<Vec<_>>(), &[]), "dns_config.searches"),
        (dns(&[], &[], &["ndots:1\r"]), "dns_config.options"),
        (port(0, -1, 0, ""), "port_mappings[0].container_port"),
        (port(0, 70_000, 0, ""), "port_mappings[0].container_port"),
        (port(0, 80, -1, ""), "port_mappings[0].host_port"),
        (port(0, 80, 70_000, ""), "port_mappings[0].host_port"),
        (port(0, 0, 80, ""), "port_mappings[0].container_port"),
        (port(9, 80, 0, ""), "port_mappings[0].protocol"),
        (port(0, 80, 0, "garbage"), "port_mappings[0].host_ip"),
        (port(0, 80, 0, "1.1.1.1\n"), "port_mappings[0].host_ip"),
    ]
}

fn refused_fields(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let before = node.snapshot()?;
        for (change, field) in wrong() {
            let mut config = node.pod_config("fields");
            change(&mut config);
            let error = node.cri().run_pod(&config).err().with_context(|| format!("{field}: accepted"))?;
            ensure!(error.message().contains(field), "{field}: {error:?}");
        }
        ensure!(node.cri().pods()?.len() == 1, "more than the victim is listed");
        node.wait_for_return(&before)
    })
}

fn exact(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let mut config = node.pod_config("exact");
        config.hostname = "name-of.the.pod".to_owned();
        config.dns_config = Some(cri::DnsConfig {
            servers: words(&["10.1.2.3", "fd00::53", "fe80::1%eth0"]),
            searches: words(&["a.example", "b.example"]),
            options: words(&["ndots:5", "edns0"]),
        });
        config.port_mappings = vec![cri::PortMapping { container_port: 80, ..Default::default() }];
        let pod = node.run_pod_as(config)?;
        let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
        let resolv = "search a.example b.example\nnameserver 10.1.2.3\nnameserver fd00::53\n\
                      nameserver fe80::1%eth0\noptions ndots:5 edns0\n";
        ensure!(node.cri().shell(&id, "cat /etc/resolv.conf")? == resolv);
        ensure!(
            node.cri().shell(&id, "hostname; cat /etc/hostname")? == "name-of.the.pod\nname-of.the.pod\n"
        );
        let hosts = node.cri().shell(&id, "cat /etc/hosts")?;
        let own = ips(node, &pod.id)?.into_iter().map(|address| format!("{address}\tname-of.the.pod\n"));
        let expected = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        ensure!(hosts == expected + &own.collect::<String>(), "{hosts:?}");
        // The host's own are others.
        ensure!(fs::read_to_string("/etc/hostname").unwrap_or_default() != "name-of.the.pod\n");
        node.end_pod(&pod)
    })
}
