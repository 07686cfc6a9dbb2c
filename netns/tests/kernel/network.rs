//! The bridge: who reaches whom, what is left behind, what is left alone.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Barrier;

use crisp_netns::ipam::{Ipam, Lease};
use crisp_netns::namespaces::{Request, create, run_in};
use crisp_netns::network::{AttachRequest, Network, NetworkConfig, NetworkError};
use crisp_netns::stats::{interface_stats, interface_stats_in};
use crisp_netns::sysctl::Sysctl;

use crate::host::{attach, connect, net_of, on_own_host, run, run_inside};

pub(crate) struct Opened {
    pub(crate) network: Network,
    pub(crate) ipam: Ipam,
}

impl Opened {
    pub(crate) fn new(config: NetworkConfig) -> Self {
        let ipam = Ipam::new(config.ipv4, config.ipv6).unwrap();
        let network = Network::open(config).unwrap();
        network.load([]).unwrap();
        Self { network, ipam }
    }

    pub(crate) fn lease(&self) -> Lease {
        self.ipam.allocate().unwrap()
    }
}

/// Whether the namespace has the interface. It may have others: modules for tunnels put one in each namespace.
fn has_eth0(net: BorrowedFd<'_>) -> bool {
    interface_stats_in(net).unwrap().iter().any(|one| one.name == "eth0")
}

fn links() -> String {
    run("ip", &["-d", "-o", "link"])
}

#[test]
fn attached_namespaces_reach_each_other_the_host_and_themselves() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let (a, at) = host.attached(&opened.network, "crA", &opened.lease());
        let (b, bt) = host.attached(&opened.network, "crB", &opened.lease());
        assert_eq!((at.ips.len(), at.gateways.len()), (2, 2));
        for family in 0..2 {
            // The real addresses are seen on both sides: nothing between them is translated.
            assert_eq!(connect(net_of(&a), net_of(&b), bt.ips[family]), at.ips[family]);
            assert_eq!(connect(net_of(&b), net_of(&a), at.ips[family]), bt.ips[family]);
            assert_eq!(connect(net_of(&a), host.net(), at.gateways[family]), at.ips[family]);
            assert_eq!(connect(host.net(), net_of(&b), bt.ips[family]), bt.gateways[family]);
            assert_eq!(connect(net_of(&a), net_of(&a), at.ips[family]), at.ips[family]);
        }
        let link = run_inside(net_of(&a), "ip", &["-o", "link", "show", "eth0"]);
        assert!(link.contains(&at.mac_text()), "{link}");
        let host_end = links().lines().find(|line| line.contains("crA@")).unwrap().to_owned();
        assert!(host_end.contains("hairpin on") && host_end.contains("alias test/crA"), "{host_end}");
    });
}

#[test]
fn a_namespace_is_attached_from_the_thread_that_lives_in_it() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let (sysctls, lease) = (opened.network.sysctls(), opened.lease());
        let request = Request { net: true, sysctls: &sysctls, ..Request::default() };
        let (created, at) =
            create(&request, |created| attach(&opened.network, "crA", created, &lease)).unwrap();
        connect(host.net(), net_of(&created), at.ips[0]);
        // More calls at once than there are idle sockets: new ones are opened on the host, not in the caller's namespace.
        let calls = 20;
        let together = Barrier::new(calls);
        std::thread::scope(|scope| {
            for _ in 0..calls {
                scope.spawn(|| {
                    let listed = run_in(net_of(&created), || {
                        together.wait();
                        opened.network.owned_links("test/")
                    });
                    assert_eq!(listed.unwrap().unwrap(), [("crA".to_owned(), "test/crA".to_owned())]);
                });
            }
        });
    });
}

#[test]
fn a_sysctl_of_the_interface_is_written_once_it_is_attached() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let sysctl = Sysctl::parse("net.ipv4.conf.eth0.rp_filter").unwrap();
        assert!(sysctl.waits_for_link());
        let (created, _) = host.attached(&opened.network, "crA", &opened.lease());
        let read = || fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/rp_filter").unwrap();
        let after = run_in(net_of(&created), || {
            sysctl.write("2").unwrap();
            read()
        });
        assert_eq!(after.unwrap(), "2\n");
    });
}

#[test]
fn what_leaves_the_host_has_the_hosts_address() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let (pod, _) = host.attached(&opened.network, "crA", &opened.lease());
        // The world outside has no route back to the subnets, as usual.
        let outside = host.unattached(&opened.network);
        let wan = format!("/proc/{}/fd/{}", std::process::id(), net_of(&outside).as_raw_fd());
        run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "wan", "netns", &wan]);
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            run("ip", &["addr", "add", address, "dev", "up0", "nodad"]);
        }
        run("ip", &["link", "set", "up0", "up"]);
        for address in ["192.0.2.2/24", "2001:db8::2/64"] {
            run_inside(net_of(&outside), "ip", &["addr", "add", address, "dev", "wan", "nodad"]);
        }
        run_inside(net_of(&outside), "ip", &["link", "set", "wan", "up"]);
        for (outer, host_side) in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")] {
            let seen = connect(net_of(&pod), net_of(&outside), outer.parse().unwrap());
            assert_eq!(seen, host_side.parse::<IpAddr>().unwrap());
        }
    });
}

#[test]
fn detaching_removes_the_link_and_may_be_repeated() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let (kept, _) = host.attached(&opened.network, "crA", &opened.lease());
        assert!(links().contains("crA@"));
        opened.network.detach("crA").unwrap();
        assert!(!links().contains("crA@"));
        assert!(!has_eth0(net_of(&kept)));
        opened.network.detach("crA").unwrap();
        opened.network.detach("never-there").unwrap();
    });
}

#[test]
fn links_of_an_earlier_run_are_found_by_their_mark() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let _held = [
            host.attached(&opened.network, "crA", &opened.lease()),
            host.attached(&opened.network, "crB", &opened.lease()),
        ];
        let again = Network::open(NetworkConfig::default()).unwrap();
        let mut owned = again.owned_links("test/").unwrap();
        owned.sort();
        let expected = [("crA", "test/crA"), ("crB", "test/crB")];
        assert_eq!(owned, expected.map(|(name, alias)| (name.to_owned(), alias.to_owned())));
        assert_eq!(again.owned_links("other/").unwrap(), []);
    });
}

#[test]
fn opening_again_keeps_connections_and_foreign_tables() {
    on_own_host(|host| {
        run("nft", &["add table inet foreign; add chain inet foreign mine"]);
        let opened = Opened::new(NetworkConfig::default());
        let (a, at) = host.attached(&opened.network, "crA", &opened.lease());
        let again = Network::open(NetworkConfig::default()).unwrap();
        again.load([]).unwrap();
        let tables = run("nft", &["list", "ruleset"]);
        assert!(tables.contains("chain mine"), "{tables}");
        assert_eq!(tables.matches("ip saddr 10.89.0.0/16").count(), 1, "{tables}");
        let (b, _) = host.attached(&again, "crB", &opened.lease());
        connect(net_of(&b), net_of(&a), at.ips[1]);
        drop((a, b));
        for name in ["crA", "crB"] {
            again.detach(name).unwrap();
        }
        assert!(again.teardown_host().unwrap());
        assert_eq!(run("nft", &["list", "tables"]), "table inet foreign\n");
    });
}

#[test]
fn a_name_that_is_taken_is_refused_and_its_owner_left_alone() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let (first, at) = host.attached(&opened.network, "crA", &opened.lease());
        let mut second = host.unattached(&opened.network);
        let error = attach(&opened.network, "crA", &mut second, &opened.lease()).unwrap_err();
        assert!(
            matches!(error, NetworkError::Refused { .. }) && error.to_string() == "make veth link crA",
            "{error:?}"
        );
        connect(host.net(), net_of(&first), at.ips[0]);
    });
}

#[test]
fn a_failed_attachment_leaves_no_link() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let a = host.unattached(&opened.network);
        let mut b = host.unattached(&opened.network);
        // The socket of another namespace does not find the interface.
        let failed = opened.network.attach(AttachRequest {
            name: "crA",
            alias: "test/crA",
            ifname: "eth0",
            netns: net_of(&a),
            inside: b.socket.as_mut().unwrap(),
            lease: &opened.lease(),
        });
        assert!(failed.is_err());
        assert!(!links().contains("crA@"));
        assert!(!has_eth0(net_of(&a)));
    });
}

#[test]
fn a_lease_that_does_not_fit_the_network_is_refused_before_a_link_exists() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let mut created = host.unattached(&opened.network);
        let good = opened.lease();
        for lease in [Lease::default(), Lease { v4: Some("192.0.2.1".parse().unwrap()), ..good }] {
            let refused = attach(&opened.network, "crA", &mut created, &lease);
            assert!(matches!(refused, Err(NetworkError::Config { .. })), "{refused:?}");
        }
        assert!(!links().contains("crA@"));
    });
}

#[test]
fn another_link_of_the_bridges_name_is_refused() {
    on_own_host(|_| {
        run("ip", &["link", "add", "crisp0", "type", "veth", "peer", "name", "x"]);
        let error = Network::open(NetworkConfig::default()).unwrap_err();
        assert!(matches!(&error, NetworkError::NotABridge { kind, .. } if kind == "veth"), "{error:?}");
        assert!(run("nft", &["list", "tables"]).is_empty());
    });
}

#[test]
fn tearing_down_spares_a_bridge_in_use_and_leaves_nothing_otherwise() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let held = host.attached(&opened.network, "crA", &opened.lease());
        assert!(!opened.network.teardown_host().unwrap());
        assert!(links().contains("crisp0"));
        opened.network.detach("crA").unwrap();
        drop(held);
        assert!(opened.network.teardown_host().unwrap());
        assert!(!links().contains("crisp0"));
        assert!(run("nft", &["list", "tables"]).is_empty());
        assert!(opened.network.teardown_host().unwrap());
    });
}

#[test]
fn forwarding_is_on_and_an_uplink_keeps_its_router_advertisements() {
    on_own_host(|host| {
        run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "wan"]);
        fs::write("/proc/sys/net/ipv6/conf/up0/accept_ra", "1").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/wan/accept_ra", "0").unwrap();
        let opened = Opened::new(NetworkConfig::default());
        let read =
            |path: &str| fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap().trim().to_owned();
        assert_eq!(read("ipv4/ip_forward"), "1");
        assert_eq!(read("ipv6/conf/all/forwarding"), "1");
        assert_eq!(read("ipv6/conf/up0/accept_ra"), "2");
        assert_eq!(read("ipv6/conf/wan/accept_ra"), "0");
        assert_eq!(read("ipv6/conf/crisp0/accept_ra"), "0");
        let (created, _) = host.attached(&opened.network, "crA", &opened.lease());
        assert_eq!(run_in(net_of(&created), || read("ipv6/conf/eth0/accept_ra")).unwrap(), "0");
    });
}

#[test]
fn the_mtu_is_that_of_the_preferred_default_route() {
    on_own_host(|host| {
        for (link, mtu, metric) in [("up0", "1400", "10"), ("up1", "1450", "20")] {
            let peer = format!("{link}-peer");
            run("ip", &["link", "add", link, "mtu", mtu, "type", "veth", "peer", "name", &peer]);
            run("ip", &["link", "set", link, "up"]);
            run("ip", &["route", "add", "default", "dev", link, "metric", metric]);
        }
        let opened = Opened::new(NetworkConfig::default());
        assert_eq!(opened.network.config().mtu, Some(1400));
        let (created, _) = host.attached(&opened.network, "crA", &opened.lease());
        let link = run_inside(net_of(&created), "ip", &["-o", "link", "show", "eth0"]);
        assert!(link.contains("mtu 1400 "), "{link}");
        run("ip", &["route", "del", "default", "dev", "up0"]);
        run("ip", &["route", "del", "default", "dev", "up1"]);
        run("ip", &["-6", "route", "add", "default", "dev", "up1"]);
        assert_eq!(Network::open(NetworkConfig::default()).unwrap().config().mtu, Some(1450));
    });
}

#[test]
fn a_network_of_one_family_attaches_with_that_family() {
    on_own_host(|host| {
        for config in [
            NetworkConfig { ipv6: None, ..NetworkConfig::default() },
            NetworkConfig { ipv4: None, mtu: Some(1400), masquerade: false, ..NetworkConfig::default() },
        ] {
            let masquerade = config.masquerade;
            let mtu = config.mtu.unwrap_or(1500);
            let opened = Opened::new(config);
            let (a, at) = host.attached(&opened.network, "crA", &opened.lease());
            assert_eq!(at.ips.len(), 1);
            connect(net_of(&a), host.net(), at.gateways[0]);
            let link = run_inside(net_of(&a), "ip", &["-o", "link", "show", "eth0"]);
            assert!(link.contains(&format!("mtu {mtu} ")), "{link}");
            assert_eq!(run("nft", &["list", "tables"]).contains("inet crisp"), masquerade);
            opened.network.detach("crA").unwrap();
            assert!(opened.network.teardown_host().unwrap());
        }
    });
}

#[test]
fn counters_show_the_traffic_and_leave_out_the_loopback() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let (mut a, at) = host.attached(&opened.network, "crA", &opened.lease());
        let before = interface_stats(a.socket.as_mut().unwrap()).unwrap();
        connect(host.net(), a.net.as_ref().unwrap().as_fd(), at.ips[0]);
        let after = interface_stats(a.socket.as_mut().unwrap()).unwrap();
        let [before, after] = [before, after].map(|stats| {
            assert!(stats.iter().all(|one| one.name != "lo"), "{stats:?}");
            stats.into_iter().find(|one| one.name == "eth0").unwrap()
        });
        // A handshake is three segments, two of them inwards.
        assert!(after.rx_packets >= before.rx_packets + 2 && after.tx_packets > before.tx_packets);
        assert!(after.rx_bytes > before.rx_bytes && after.tx_bytes > before.tx_bytes);
        assert_eq!((after.rx_errors, after.tx_errors), (0, 0));
    });
}

#[test]
fn many_threads_attach_and_detach_at_once() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let opened = &opened;
                scope.spawn(move || {
                    for round in 0..5 {
                        let (name, lease) = (format!("cr{thread}x{round}"), opened.lease());
                        let (created, at) = host.attached(&opened.network, &name, &lease);
                        connect(host.net(), net_of(&created), at.ips[round % 2]);
                        opened.network.detach(&name).unwrap();
                        opened.ipam.release(&lease);
                    }
                });
            }
        });
        assert!(opened.network.teardown_host().unwrap());
    });
}
