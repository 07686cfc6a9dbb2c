//! The nftables table: rules in a table of our own, replaced and removed through nft(8), each time as one transaction.
//!
//! It must not know which namespaces exist, or that other tables do.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use ipnet::IpNet;

use super::ports::{Entrance, Ports, Target};
use super::{NetworkConfig, NetworkError};

/// Where nft is looked for: in PATH, then where distributions put it, because a service's PATH may lack /usr/sbin.
const NFT: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// Replaces the table. Without masquerading and host ports there is none.
pub(super) fn load(config: &NetworkConfig, subnets: &[IpNet], ports: &Ports) -> Result<(), NetworkError> {
    if !config.masquerade && ports.is_empty() {
        return match unload(&config.nft_table) {
            // Without nft nobody can have loaded a table either.
            Err(NetworkError::NftMissing) => Ok(()),
            other => other,
        };
    }
    apply(&config.nft_table, &ruleset(config, subnets, ports))
}

/// Removes the table. One that is not there is no error.
pub(super) fn unload(table: &str) -> Result<(), NetworkError> {
    apply(table, &empty(table))
}

/// Deletes the table, which the first line makes sure exists.
fn empty(table: &str) -> String {
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

/// The whole table as nft reads it.
fn ruleset(config: &NetworkConfig, subnets: &[IpNet], ports: &Ports) -> String {
    let NetworkConfig { bridge, nft_table: table, masquerade, native, .. } = config;
    let mut text = empty(table);
    let _ = writeln!(text, "table inet {table} {{");
    if !ports.is_empty() {
        text.push_str(&translation(bridge, ports));
    }
    text.push_str("  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n");
    if !ports.is_empty() {
        text.push_str(&hairpin(bridge, subnets));
    }
    // What leaves through the bridge keeps its source, so namespaces see each other's and the host's real addresses; `lo`
    // is left out because the host's own connections to a gateway address go there.
    for subnet in subnets.iter().filter(|_| *masquerade) {
        let (ip, _) = words(subnet.addr().is_ipv4());
        let native: Vec<String> = native
            .iter()
            .filter(|range| range.addr().is_ipv4() == subnet.addr().is_ipv4())
            .map(|range| range.trunc().to_string())
            .collect();
        let elsewhere = match native.is_empty() {
            true => String::new(),
            false => format!("{ip} daddr != {{ {} }} ", native.join(", ")),
        };
        // Random source ports: two connections that are translated at the same moment must not pick the same one.
        let _ = writeln!(
            text,
            "    {ip} saddr {subnet} {elsewhere}oifname != {{ \"lo\", \"{bridge}\" }} masquerade fully-random"
        );
    }
    text.push_str("  }\n}\n");
    text
}

/// Maps from host port to address and port inside, and the chains that ask them, for packets that come in and for the
/// host's own. A mapping for one address of the host goes before one for all.
fn translation(bridge: &str, ports: &Ports) -> String {
    let mut text = targets(ports);
    let mut rules = String::new();
    for (name, v4, one) in
        [("one4", true, true), ("one6", false, true), ("any4", true, false), ("any6", false, false)]
    {
        let elements: Vec<String> = ports
            .iter()
            .filter(|(entrance, _)| {
                entrance.address.is_ipv4() == v4 && entrance.address.is_unspecified() != one
            })
            .map(|(entrance, target)| element(entrance, target))
            .collect();
        if elements.is_empty() {
            continue;
        }
        let (ip, kind) = words(v4);
        let (key, lookup) = match one {
            true => (format!("{kind} . "), format!("{ip} daddr . ")),
            false => Default::default(),
        };
        let _ = writeln!(
            text,
            "  map {name} {{\n    type {key}inet_proto . inet_service : {kind} . inet_service\n    \
             elements = {{ {} }}\n  }}",
            elements.join(", ")
        );
        let only = match (one, v4) {
            (true, _) => "",
            (false, true) => "meta nfproto ipv4 ",
            (false, false) => "meta nfproto ipv6 ",
        };
        let _ = writeln!(rules, "    {only}dnat {ip} to {lookup}meta l4proto . th dport map @{name}");
    }
    let _ = write!(
        text,
        // A namespace that sends to the host's loopback through the bridge would be let in, because the bridge routes
        // loopback addresses for the answers to the host's own connections (CVE-2020-8558).
        "  chain guard {{\n    type filter hook prerouting priority raw; policy accept;\n    \
         iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop\n    iifname \"{bridge}\" ip saddr 127.0.0.0/8 drop\n  }}\n  \
         chain translate {{\n{rules}  }}\n  \
         chain prerouting {{\n    type nat hook prerouting priority dstnat; policy accept;\n    \
         fib daddr type local jump translate\n  }}\n  \
         chain output {{\n    type nat hook output priority -100; policy accept;\n    \
         fib daddr type local jump translate\n  }}\n"
    );
    text
}

fn element(entrance: &Entrance, target: &Target) -> String {
    let at = match entrance.address {
        any if any.is_unspecified() => String::new(),
        address => format!("{address} . "),
    };
    let (protocol, port) = (entrance.protocol, entrance.port);
    format!("{at}{protocol} . {port} : {} . {}", target.address, target.port)
}

/// Sets of what host ports lead to; see [`hairpin`].
fn targets(ports: &Ports) -> String {
    let mut text = String::new();
    for v4 in [true, false] {
        let elements: BTreeSet<String> = ports
            .iter()
            .filter(|(_, target)| target.address.is_ipv4() == v4)
            .map(|(entrance, target)| format!("{} . {} . {}", target.address, entrance.protocol, target.port))
            .collect();
        let elements = match elements.len() {
            0 => String::new(),
            _ => format!("    elements = {{ {} }}\n", Vec::from_iter(elements).join(", ")),
        };
        let (ip, kind) = words(v4);
        let _ = write!(
            text,
            "  set targets_{ip} {{\n    type {kind} . inet_proto . inet_service\n{elements}  }}\n"
        );
    }
    text
}

/// Connections that come back to the bridge they began at, through a host port: without the host's address as their
/// source the answer would go straight to the other namespace, which never asked that address. The host's loopback is no
/// source that anybody could answer either.
fn hairpin(bridge: &str, subnets: &[IpNet]) -> String {
    let mut text = format!("    oifname \"{bridge}\" ip saddr 127.0.0.0/8 masquerade fully-random\n");
    for subnet in subnets {
        let (ip, _) = words(subnet.addr().is_ipv4());
        let _ = writeln!(
            text,
            "    oifname \"{bridge}\" {ip} saddr {subnet} ct status dnat \
             {ip} daddr . meta l4proto . th dport @targets_{ip} masquerade fully-random"
        );
    }
    text
}

/// What nft calls a family, and an address of it.
fn words(v4: bool) -> (&'static str, &'static str) {
    match v4 {
        true => ("ip", "ipv4_addr"),
        false => ("ip6", "ipv6_addr"),
    }
}

/// Feeds one transaction to nft, in the calling thread's network namespace.
fn apply(table: &str, commands: &str) -> Result<(), NetworkError> {
    let mut child = spawn()?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(commands.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output().map_err(NetworkError::NftRun)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let stderr = if stderr.is_empty() { output.status.to_string() } else { stderr };
        return Err(NetworkError::NftRefused { table: table.to_owned(), stderr });
    }
    written.map_err(NetworkError::NftRun)
}

fn spawn() -> Result<std::process::Child, NetworkError> {
    for program in NFT {
        let spawned = Command::new(program)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        match spawned {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.map_err(NetworkError::NftRun),
        }
    }
    Err(NetworkError::NftMissing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::Lease;
    use crate::network::ports::{HostPort, Protocol};

    fn text(config: &NetworkConfig, ports: &Ports) -> String {
        ruleset(config, &config.subnets().collect::<Vec<_>>(), ports)
    }

    #[test]
    fn the_table_is_replaced_in_one_transaction() {
        assert_eq!(
            text(&NetworkConfig::default(), &Ports::default()),
            "table inet crisp {}\n\
             delete table inet crisp\n\
             table inet crisp {\n  chain postrouting {\n    \
             type nat hook postrouting priority srcnat; policy accept;\n    \
             ip saddr 10.89.0.0/16 oifname != { \"lo\", \"crisp0\" } masquerade fully-random\n    \
             ip6 saddr fd63:7269:7370::/64 oifname != { \"lo\", \"crisp0\" } masquerade fully-random\n  }\n}\n"
        );
    }

    #[test]
    fn a_network_without_ipv6_has_no_rule_for_it() {
        let config = NetworkConfig { ipv6: None, ..NetworkConfig::default() };
        assert!(!text(&config, &Ports::default()).contains("ip6"));
    }

    #[test]
    fn what_has_a_route_back_is_not_masqueraded() {
        let native = vec!["10.244.0.9/16".parse().unwrap(), "10.96.0.0/12".parse().unwrap()];
        let config = NetworkConfig { native, ..NetworkConfig::default() };
        let text = text(&config, &Ports::default());
        assert!(text.contains("ip daddr != { 10.244.0.0/16, 10.96.0.0/12 } oifname != "), "{text}");
        assert!(text.contains("ip6 saddr fd63:7269:7370::/64 oifname != "), "{text}");
    }

    #[test]
    fn host_ports_are_there_without_masquerading_too() {
        let config = NetworkConfig { masquerade: false, ..NetworkConfig::default() };
        let mut ports = Ports::default();
        let lease = Lease { v4: "10.89.0.2".parse().ok(), v6: "fd63:7269:7370::2".parse().ok() };
        let tcp = HostPort { protocol: Protocol::Tcp, host_ip: None, host_port: 8080, port: 80 };
        let udp = HostPort { protocol: Protocol::Udp, host_ip: "127.0.0.1".parse().ok(), ..tcp };
        ports.add("a", &[tcp, udp], &lease).unwrap();
        let text = text(&config, &ports);
        for line in [
            "elements = { 10.89.0.2 . tcp . 80, 10.89.0.2 . udp . 80 }",
            "elements = { tcp . 8080 : 10.89.0.2 . 80 }",
            "elements = { tcp . 8080 : fd63:7269:7370::2 . 80 }",
            "elements = { 127.0.0.1 . udp . 8080 : 10.89.0.2 . 80 }",
            "dnat ip to ip daddr . meta l4proto . th dport map @one4",
            "meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @any6",
            "iifname \"crisp0\" ip daddr 127.0.0.0/8 drop",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("one6") && !text.contains("oifname != "), "{text}");
    }
}
