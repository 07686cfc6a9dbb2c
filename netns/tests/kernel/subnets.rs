//! Subnets that come later: a cluster tells a node its share when it has joined.

use crisp_netns::network::{HostPort, NetworkConfig, Protocol};

use crate::host::{connect, net_of, on_own_host, run};
use crate::network::Opened;

#[test]
fn a_later_subnet_works_beside_the_first() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig { ipv6: None, ..NetworkConfig::default() });
        let (first, first_at) = host.attached(&opened.network, "crA", &opened.lease());
        let v4 = "10.244.3.0/24".parse().unwrap();
        let v6 = "fd00:3::/64".parse().unwrap();
        opened.network.add_subnets(&[v4, v6]).unwrap();
        opened.network.add_subnets(&[v4, v6]).unwrap();
        opened.ipam.hand_out("10.244.3.0/24".parse().ok(), "fd00:3::/64".parse().ok()).unwrap();
        let lease = opened.lease();
        assert_eq!(lease.v4, "10.244.3.2".parse().ok());
        let (second, second_at) = host.attached(&opened.network, "crB", &lease);
        assert_eq!(second_at.gateways[0].to_string(), "10.244.3.1");
        connect(net_of(&second), host.net(), second_at.gateways[1]);
        // Between the two subnets the host routes; nothing is translated.
        assert_eq!(connect(net_of(&first), net_of(&second), second_at.ips[0]), first_at.ips[0]);
        let table = run("nft", &["list", "table", "inet", "crisp"]);
        for subnet in ["10.89.0.0/16", "10.244.3.0/24", "fd00:3::/64"] {
            assert_eq!(table.matches(&format!("saddr {subnet}")).count(), 1, "{subnet}: {table}");
        }
        let port = HostPort { protocol: Protocol::Tcp, host_ip: None, host_port: 8080, port: 80 };
        opened.network.publish("b", &[port], &lease).unwrap();
        assert!(run("nft", &["list", "table", "inet", "crisp"]).contains("10.244.3.2 . 80"));
        let refused = opened.network.add_subnets(&["10.9.9.9/32".parse().unwrap()]).unwrap_err();
        assert!(refused.to_string().contains("10.9.9.9/32 is too small"), "{refused}");
    });
}
