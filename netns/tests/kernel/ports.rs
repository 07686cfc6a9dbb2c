//! Host ports: who gets in by them, from where, and that they are gone when they should be.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crisp_netns::ipam::Lease;
use crisp_netns::namespaces::{Created, run_in};
use crisp_netns::network::{HostPort, NetworkConfig, NetworkError, Protocol};

use crate::host::{Host, net_of, on_own_host, run, run_inside};
use crate::network::Opened;

const LONG: Duration = Duration::from_secs(20);

fn tcp(host_port: u16, port: u16) -> HostPort {
    HostPort { protocol: Protocol::Tcp, host_ip: None, host_port, port }
}

/// Lets the one client that a listener in `net` gets read `text`.
fn serve(net: BorrowedFd<'_>, port: u16, text: &'static str) -> TcpListener {
    let listener = run_in(net, || TcpListener::bind(("::", port)).unwrap()).unwrap();
    let accepting = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut client, peer)) = accepting.accept() {
            let _ = write!(client, "{text} {}", peer.ip().to_canonical());
        }
    });
    listener
}

/// What the server says to a client in `net`, `None` when nobody lets it in.
fn ask(net: BorrowedFd<'_>, address: &str, port: u16) -> Option<String> {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    let mut stream = run_in(net, || TcpStream::connect_timeout(&to, LONG)).unwrap().ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    Some(text)
}

/// A namespace behind a link of the host, with addresses 192.0.2.2 and 2001:db8::2; the host has those with a 1.
fn outside(host: &Host, opened: &Opened) -> Created {
    let outside = host.unattached(&opened.network);
    let wan = format!("/proc/{}/fd/{}", std::process::id(), net_of(&outside).as_raw_fd());
    run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "wan", "netns", &wan]);
    for (link, last) in [("up0", "1"), ("wan", "2")] {
        for address in [format!("192.0.2.{last}/24"), format!("2001:db8::{last}/64")] {
            let add = ["addr", "add", &address, "dev", link, "nodad"];
            match link {
                "up0" => run("ip", &add),
                _ => run_inside(net_of(&outside), "ip", &add),
            };
        }
    }
    run("ip", &["link", "set", "up0", "up"]);
    run_inside(net_of(&outside), "ip", &["link", "set", "wan", "up"]);
    outside
}

#[test]
fn a_host_port_is_reached_from_everywhere() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let lease = opened.lease();
        let (pod, at) = host.attached(&opened.network, "crA", &lease);
        let (other, other_at) = host.attached(&opened.network, "crB", &opened.lease());
        let world = outside(host, &opened);
        let _server = serve(net_of(&pod), 80, "pod-a");
        opened.network.publish("a", &[tcp(8080, 80)], &lease).unwrap();
        let world = net_of(&world);
        // From outside, with the client's own address.
        assert_eq!(ask(world, "192.0.2.1", 8080).unwrap(), "pod-a 192.0.2.2");
        assert_eq!(ask(world, "2001:db8::1", 8080).unwrap(), "pod-a 2001:db8::2");
        // From the host itself: by its loopback, which the pod cannot see, and by its other addresses.
        let gateway = at.gateways[0].to_string();
        assert_eq!(ask(host.net(), "127.0.0.1", 8080).unwrap(), format!("pod-a {gateway}"));
        for address in ["127.0.0.2", "192.0.2.1", "2001:db8::1", &gateway] {
            assert!(ask(host.net(), address, 8080).is_some(), "{address}");
        }
        // From another pod and from the pod itself (hairpin): the answer has to come back through the host.
        for net in [net_of(&other), net_of(&pod)] {
            for (address, gateway) in [("192.0.2.1", &at.gateways[0]), ("2001:db8::1", &at.gateways[1])] {
                assert_eq!(ask(net, address, 8080).unwrap(), format!("pod-a {gateway}"));
            }
        }
        // Without the host port nothing is translated.
        assert_eq!(
            ask(net_of(&other), &at.ips[0].to_string(), 80).unwrap(),
            format!("pod-a {}", other_at.ips[0])
        );
        assert!(ask(world, "192.0.2.1", 80).is_none());
        opened.network.unpublish("a").unwrap();
        opened.network.unpublish("a").unwrap();
        assert!(ask(world, "192.0.2.1", 8080).is_none());
        assert!(ask(host.net(), "127.0.0.1", 8080).is_none());
        assert!(!run("nft", &["list", "table", "inet", "crisp"]).contains("8080"));
    });
}

#[test]
fn a_host_address_narrows_a_host_port_down() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig { masquerade: false, ..NetworkConfig::default() });
        let (one, two) = (opened.lease(), opened.lease());
        let (a, _) = host.attached(&opened.network, "crA", &one);
        let (b, _) = host.attached(&opened.network, "crB", &two);
        let world = outside(host, &opened);
        let _servers = [serve(net_of(&a), 80, "a"), serve(net_of(&b), 80, "b")];
        let at = |address: &str| HostPort { host_ip: address.parse().ok(), ..tcp(8080, 80) };
        opened.network.publish("a", &[at("127.0.0.1")], &one).unwrap();
        opened.network.publish("b", &[at("192.0.2.1")], &two).unwrap();
        assert!(ask(net_of(&world), "192.0.2.1", 8080).unwrap().starts_with("b "));
        assert!(ask(host.net(), "127.0.0.1", 8080).unwrap().starts_with("a "));
        assert!(ask(net_of(&world), "2001:db8::1", 8080).is_none());
        let error = opened.network.publish("c", &[tcp(9090, 80), tcp(8080, 80)], &one).unwrap_err();
        assert!(matches!(&error, NetworkError::PortTaken { owner, .. } if owner == "a"), "{error}");
        assert!(ask(host.net(), "127.0.0.1", 9090).is_none());
        // All of one family.
        opened
            .network
            .publish("c", &[HostPort { host_ip: "::".parse().ok(), ..tcp(8081, 80) }], &one)
            .unwrap();
        assert!(ask(net_of(&world), "2001:db8::1", 8081).is_some());
        assert!(ask(net_of(&world), "192.0.2.1", 8081).is_none());
    });
}

/// CVE-2020-8558: routing loopback addresses over a bridge opens what listens on the host's loopback to its ports.
#[test]
fn a_namespace_does_not_reach_the_hosts_loopback() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let lease = opened.lease();
        let (pod, at) = host.attached(&opened.network, "crA", &lease);
        opened.network.publish("a", &[tcp(8080, 80)], &lease).unwrap();
        let secret = UdpSocket::bind("127.0.0.1:5353").unwrap();
        let gateway = at.gateways[0].to_string();
        let inside = net_of(&pod);
        for (name, value) in [("all", "1"), ("eth0", "1")] {
            let path = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
            run_in(inside, || std::fs::write(path, value)).unwrap().unwrap();
        }
        // Takes loopback addresses off the pod's own table, so that they go out by eth0.
        run_inside(inside, "ip", &["rule", "add", "pref", "10", "lookup", "local"]);
        run_inside(inside, "ip", &["rule", "del", "pref", "0"]);
        run_inside(inside, "ip", &["rule", "add", "pref", "1", "to", "127.0.0.1", "lookup", "100"]);
        run_inside(
            inside,
            "ip",
            &["route", "add", "127.0.0.1", "via", &gateway, "dev", "eth0", "table", "100"],
        );
        let client = run_in(inside, || UdpSocket::bind((at.ips[0], 0)).unwrap()).unwrap();
        client.send_to(b"in?", "127.0.0.1:5353").unwrap();
        // What came in by another way comes in after what was sent before it.
        let allowed = UdpSocket::bind((at.gateways[0], 5353)).unwrap();
        client.send_to(b"fence", (at.gateways[0], 5353)).unwrap();
        allowed.set_read_timeout(Some(LONG)).unwrap();
        assert_eq!(allowed.recv(&mut [0; 16]).unwrap(), 5);
        secret.set_nonblocking(true).unwrap();
        assert!(secret.recv(&mut [0; 16]).is_err(), "the host's loopback was reached");
    });
}

#[test]
fn a_udp_sender_that_goes_on_is_led_to_the_new_owner_of_a_port() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let world = outside(host, &opened);
        let client = run_in(net_of(&world), || UdpSocket::bind("192.0.2.2:0").unwrap()).unwrap();
        let udp = [HostPort { protocol: Protocol::Udp, ..tcp(5353, 53) }];
        // One socket all the time, so that the connection is one for the kernel; the host itself is there at first.
        let early = UdpSocket::bind("192.0.2.1:5353").unwrap();
        client.send_to(b"early", "192.0.2.1:5353").unwrap();
        assert_eq!(early.recv(&mut [0; 16]).unwrap(), 5);
        for name in ["crA", "crB"] {
            let lease = opened.lease();
            let (pod, at) = host.attached(&opened.network, name, &lease);
            let server = run_in(net_of(&pod), || UdpSocket::bind((at.ips[0], 53)).unwrap()).unwrap();
            server.set_read_timeout(Some(LONG)).unwrap();
            opened.network.publish(name, &udp, &lease).unwrap();
            client.send_to(name.as_bytes(), "192.0.2.1:5353").unwrap();
            let mut buffer = [0; 16];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (&buffer[..length], from.ip()),
                (name.as_bytes(), "192.0.2.2".parse::<IpAddr>().unwrap())
            );
            opened.network.unpublish(name).unwrap();
            opened.network.detach(name).unwrap();
        }
    });
}

#[test]
fn ports_are_there_again_after_a_restart_and_after_somebody_flushed_them() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let lease = opened.lease();
        let (pod, _) = host.attached(&opened.network, "crA", &lease);
        let _server = serve(net_of(&pod), 80, "pod-a");
        opened.network.publish("a", &[tcp(8080, 80)], &lease).unwrap();
        opened.network.publish("gone", &[tcp(9090, 80)], &lease).unwrap();
        // As a restarted daemon does, with what its records say.
        let again = crisp_netns::network::Network::open(NetworkConfig::default()).unwrap();
        assert!(ask(host.net(), "127.0.0.1", 8080).is_some(), "there all the time");
        let recorded: [(&str, Vec<HostPort>, Lease); 1] = [("a", vec![tcp(8080, 80)], lease.clone())];
        again.load(recorded).unwrap();
        assert!(ask(host.net(), "127.0.0.1", 8080).is_some());
        assert!(ask(host.net(), "127.0.0.1", 9090).is_none());
        run("nft", &["flush", "ruleset"]);
        again.publish("b", &[tcp(7070, 80)], &lease).unwrap();
        assert!(ask(host.net(), "127.0.0.1", 8080).is_some());
        run("nft", &["flush", "ruleset"]);
        again.unpublish("a").unwrap();
        again.unpublish("b").unwrap();
        let left = std::fs::read_to_string("/proc/sys/net/ipv4/conf/crisp0/route_localnet").unwrap();
        assert_eq!(left, "0\n");
    });
}

#[test]
fn sctp_has_rules_like_the_others() {
    on_own_host(|_| {
        let opened = Opened::new(NetworkConfig::default());
        let sctp = [HostPort { protocol: Protocol::Sctp, ..tcp(3868, 3868) }];
        opened.network.publish("a", &sctp, &opened.lease()).unwrap();
        let table = run("nft", &["list", "table", "inet", "crisp"]);
        assert!(table.contains("sctp . 3868 : 10.89.0.2 . 3868"), "{table}");
    });
}
