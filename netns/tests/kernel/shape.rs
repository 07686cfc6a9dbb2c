//! Limits of bandwidth: what the kernel has been told, and that nothing of it stays.

use crisp_netns::namespaces::Created;
use crisp_netns::network::{Bandwidth, NetworkConfig, NetworkError};

use crate::host::{connect, net_of, on_own_host, run};
use crate::network::Opened;

/// Attaches and limits; gives the first address.
fn attach(
    opened: &Opened,
    name: &str,
    created: &mut Created,
    bandwidth: Bandwidth,
) -> Result<std::net::IpAddr, NetworkError> {
    let attached = crate::host::attach(&opened.network, name, created, &opened.lease())?;
    opened.network.limit(name, "test/shaped", bandwidth)?;
    Ok(attached.ips[0])
}

#[test]
fn both_directions_have_their_own_limit() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let mut pod = host.unattached(&opened.network);
        // The second one does not fit the 32 bits of bytes a second that the kernel first had.
        let bandwidth = Bandwidth { ingress: Some(8_000_000), egress: Some(80_000_000_000) };
        let address = attach(&opened, "cr0123456789ab", &mut pod, bandwidth).unwrap();
        let told = |link: &str| run("tc", &["-s", "qdisc", "show", "dev", link]);
        assert!(told("cr0123456789ab").contains("tbf 1: root refcnt"), "{}", told("cr0123456789ab"));
        assert!(told("cr0123456789ab").contains("rate 8Mbit burst 64Kb"), "{}", told("cr0123456789ab"));
        assert!(told("icr0123456789ab").contains("rate 80Gbit"), "{}", told("icr0123456789ab"));
        connect(net_of(&pod), host.net(), opened.network.subnets()[0].hosts().next().unwrap());
        connect(host.net(), net_of(&pod), address);
        // Both were gone through.
        for link in ["cr0123456789ab", "icr0123456789ab"] {
            let told = told(link);
            assert!(
                told.contains(" Sent ") && !told.lines().nth(1).unwrap().starts_with(" Sent 0 "),
                "{told}"
            );
        }
        let mut owned = opened.network.owned_links("test/").unwrap();
        owned.sort();
        let names: Vec<&str> = owned.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cr0123456789ab", "icr0123456789ab"]);
        opened.network.detach("cr0123456789ab").unwrap();
        assert_eq!(opened.network.owned_links("test/").unwrap(), []);
    });
}

#[test]
fn a_link_without_limits_has_none_and_one_that_can_have_none_is_refused() {
    on_own_host(|host| {
        let opened = Opened::new(NetworkConfig::default());
        let mut pod = host.unattached(&opened.network);
        let limit = Bandwidth { ingress: None, egress: Some(1_000_000) };
        let refused = attach(&opened, "fifteen-letters", &mut pod, limit).unwrap_err();
        assert!(refused.to_string().contains("over 14 bytes"), "{refused}");
        opened.network.detach("fifteen-letters").unwrap();
        assert_eq!(opened.network.owned_links("test/").unwrap(), []);
        attach(&opened, "fifteen-letters", &mut pod, Bandwidth::default()).unwrap();
        assert!(!run("tc", &["qdisc", "show", "dev", "fifteen-letters"]).contains("tbf"));
        opened.network.detach("fifteen-letters").unwrap();
    });
}
