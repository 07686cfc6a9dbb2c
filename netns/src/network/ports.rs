//! Host ports: which port of the host leads to which address, and who asked for it.
//!
//! The table here is what the nftables rules are made from. Every change writes all of them, as one transaction:
//! nothing can be half there, and what somebody flushed is back with the next change. Only pods with host ports pay.
//!
//! It must not know how rules are written.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::NetworkError;
use crate::ipam::Lease;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// Its number in an IP header.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the host that leads to one of an attached namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address that it is reached at. 0.0.0.0 and :: are all of their family, `None` all of both.
    pub host_ip: Option<IpAddr>,
    /// Port of the host, not 0.
    pub host_port: u16,
    /// Port inside, not 0.
    pub port: u16,
}

/// Where packets come in. `address` is an unspecified one for all addresses of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entrance {
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) address: IpAddr,
}

impl Entrance {
    /// Whether a packet to this address and port comes in here.
    pub(super) fn takes(&self, protocol: u8, address: IpAddr, port: u16) -> bool {
        let any = self.address.is_unspecified() && self.address.is_ipv4() == address.is_ipv4();
        self.protocol.number() == protocol && self.port == port && (any || self.address == address)
    }

    /// Whether one packet could belong to both.
    fn meets(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.port == other.port
            && self.address.is_ipv4() == other.address.is_ipv4()
            && (self.address == other.address
                || self.address.is_unspecified()
                || other.address.is_unspecified())
    }
}

/// Where they go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) owner: String,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// All host ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ports(BTreeMap<Entrance, Target>);

impl Ports {
    /// Adds the ports of one owner, all or none.
    ///
    /// # Errors
    /// [`NetworkError::PortTaken`], which names whose it is; a port whose host address has no counterpart in the lease.
    pub(super) fn add(&mut self, owner: &str, ports: &[HostPort], lease: &Lease) -> Result<(), NetworkError> {
        let mut added = Self::default();
        for port in ports {
            for (entrance, target) in entries(owner, port, lease)? {
                // An owner's own list may name a port twice, as containers of one pod do.
                if added.0.get(&entrance) == Some(&target) {
                    continue;
                }
                let taken = self.0.iter().chain(&added.0).find(|(other, _)| other.meets(&entrance));
                if let Some((_, by)) = taken {
                    return Err(NetworkError::PortTaken {
                        port: entrance.port,
                        protocol: entrance.protocol,
                        owner: by.owner.clone(),
                    });
                }
                added.0.insert(entrance, target);
            }
        }
        self.0.extend(added.0);
        Ok(())
    }

    /// Takes the ports of one owner out.
    pub(super) fn remove(&mut self, owner: &str) -> Vec<(Entrance, Target)> {
        self.0.extract_if(.., |_, target| target.owner == owner).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Entrance, &Target)> {
        self.0.iter()
    }
}

/// One entry for each family that the port is for.
fn entries(
    owner: &str,
    port: &HostPort,
    lease: &Lease,
) -> Result<impl Iterator<Item = (Entrance, Target)>, NetworkError> {
    let any = |inside: IpAddr| match inside {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let wanted = |inside: &IpAddr| port.host_ip.is_none_or(|address| address.is_ipv4() == inside.is_ipv4());
    let found: Vec<_> = lease
        .addresses()
        .filter(wanted)
        .map(|inside| {
            let address = port.host_ip.unwrap_or(any(inside));
            let entrance = Entrance { protocol: port.protocol, port: port.host_port, address };
            (entrance, Target { owner: owner.to_owned(), address: inside, port: port.port })
        })
        .collect();
    if found.is_empty() {
        return Err(NetworkError::Config {
            field: "host port's address",
            value: port.host_ip.map_or_else(String::new, |address| address.to_string()),
            reason: "of a family that this network has not",
        });
    }
    Ok(found.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease { v4: "10.89.0.2".parse().ok(), v6: "fd00::2".parse().ok() }
    }

    fn tcp(host_port: u16, host_ip: &str) -> HostPort {
        HostPort { protocol: Protocol::Tcp, host_ip: host_ip.parse().ok(), host_port, port: 80 }
    }

    #[test]
    fn a_port_without_an_address_is_there_in_both_families() {
        let mut ports = Ports::default();
        ports.add("a", &[tcp(8080, "")], &lease()).unwrap();
        let addresses: Vec<String> = ports.iter().map(|(entrance, _)| entrance.address.to_string()).collect();
        assert_eq!(addresses, ["0.0.0.0", "::"]);
    }

    #[test]
    fn a_taken_port_is_refused_whole_and_names_its_owner() {
        let mut ports = Ports::default();
        ports.add("a", &[tcp(8080, "127.0.0.1"), tcp(8080, "127.0.0.1")], &lease()).unwrap();
        let before = ports.clone();
        let error = ports.add("b", &[tcp(9090, ""), tcp(8080, "")], &lease()).unwrap_err();
        assert_eq!(error.to_string(), "host port 8080/tcp is in use by a");
        assert_eq!(ports, before);
        // Another address of the host, another protocol: others may have them.
        ports.add("b", &[tcp(8080, "127.0.0.2")], &lease()).unwrap();
        ports.add("c", &[HostPort { protocol: Protocol::Udp, ..tcp(8080, "") }], &lease()).unwrap();
        assert_eq!(ports.remove("b").len(), 1);
        assert_eq!(ports.remove("b").len(), 0);
    }

    #[test]
    fn a_host_address_needs_an_address_of_its_family_inside() {
        let only_v4 = Lease { v6: None, ..lease() };
        let error = Ports::default().add("a", &[tcp(80, "::1")], &only_v4).unwrap_err();
        assert!(error.to_string().contains("\"::1\""), "{error}");
    }
}
