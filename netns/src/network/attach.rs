//! Attaching one namespace to the bridge.
//!
//! ```text
//!   host's socket         namespace's socket
//!   make veth pair ─────► (peer is born there)
//!                         which index has it?
//!   alias, hairpin, up
//!                         up, addresses, default routes
//! ```
//!
//! It must not know where the lease comes from.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use crisp_sys::netlink::{Message, Netlink, Refusal};
use ipnet::IpNet;
use nix::errno::Errno;

use super::bridge::{all_accepted, find};
use super::config::check_link_name;
use super::{Network, NetworkError};
use crate::ipam::{self, Lease};
use crate::link;

/// Longest alias of a link (IFALIASZ less the closing NUL), bytes.
const ALIAS_MAX: usize = 255;

/// What to attach, and how.
#[derive(Debug)]
pub struct AttachRequest<'a> {
    /// Name of the host's end, at most 15 bytes, not taken.
    pub name: &'a str,
    /// Mark of the host's end, at most 255 bytes, by which [`Network::owned_links`] finds it.
    pub alias: &'a str,
    /// Name of the interface inside, at most 15 bytes.
    pub ifname: &'a str,
    /// The network namespace.
    pub netns: BorrowedFd<'a>,
    /// A route socket that was opened inside it.
    pub inside: &'a mut Netlink,
    /// Its addresses, at most one of each family.
    pub lease: &'a Lease,
}

/// An attached namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The interface inside.
    pub ifname: String,
    /// The host's end.
    pub host_ifname: String,
    /// The addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// The default routes' gateways, IPv4 first.
    pub gateways: Vec<IpAddr>,
    /// Ethernet address of the interface inside; `Display` it with [`Attachment::mac_text`].
    pub mac: [u8; 6],
}

impl Attachment {
    /// The Ethernet address as text, `0a:58:0a:59:00:02`.
    pub fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

impl Network {
    /// Joins a namespace to the bridge: a veth pair whose other end is born in the namespace, with the leased addresses
    /// and default routes. When this returns the addresses work, with no detection of duplicates to wait for.
    ///
    /// # Errors
    /// The kernel's refusal, which names the link. The pair is removed again then; a link of the same name that was
    /// there before (EEXIST) is left alone.
    pub fn attach(&self, request: AttachRequest<'_>) -> Result<Attachment, NetworkError> {
        let plan = self.plan(&request)?;
        let AttachRequest { name, alias, ifname, netns, inside, lease: _ } = request;
        let veth = link::NewVeth {
            name,
            bridge: self.bridge,
            peer: ifname,
            mac: plan.mac,
            netns,
            mtu: self.config.mtu,
        };
        let veth = [link::new_veth(&veth)];
        self.sockets.with(|socket| all_accepted(socket, &veth, "make veth link", name))??;
        match self.configure(name, alias, ifname, inside, &plan) {
            Ok(()) => Ok(Attachment {
                ifname: ifname.to_owned(),
                host_ifname: name.to_owned(),
                ips: plan.addresses.iter().map(IpNet::addr).collect(),
                gateways: plan.gateways,
                mac: plan.mac,
            }),
            Err(error) => {
                if let Err(left) = self.detach(name) {
                    tracing::error!(link = name, error = %left, "link of a failed attachment stays behind");
                }
                Err(error)
            }
        }
    }

    /// Both ends of a pair that exists.
    fn configure(
        &self,
        name: &str,
        alias: &str,
        ifname: &str,
        inside: &mut Netlink,
        plan: &Plan,
    ) -> Result<(), NetworkError> {
        let port = [link::configure_port(name, alias), link::up_by_name(name)];
        self.sockets.with(|socket| all_accepted(socket, &port, "set up link", name))??;
        let index = match find(inside, ifname)? {
            Some(link) => link.index,
            // The descriptor and the socket are of different namespaces.
            None => {
                return Err(NetworkError::Refused {
                    doing: "find in its namespace link",
                    object: ifname.to_owned(),
                    source: Refusal { errno: Errno::ENODEV, message: None },
                });
            }
        };
        let addresses = plan.addresses.iter().map(|address| link::add_address(index, *address));
        let routes = plan.gateways.iter().map(|gateway| link::default_route(index, *gateway));
        let messages: Vec<Message> = [link::up(index)].into_iter().chain(addresses).chain(routes).collect();
        all_accepted(inside, &messages, "give addresses and routes to", ifname)
    }

    /// Everything that can be refused before a link exists.
    fn plan(&self, request: &AttachRequest<'_>) -> Result<Plan, NetworkError> {
        check_link_name("link name", request.name)?;
        check_link_name("interface name", request.ifname)?;
        let refuse =
            |field, value: &str, reason| Err(NetworkError::Config { field, value: value.to_owned(), reason });
        if request.alias.is_empty() || request.alias.len() > ALIAS_MAX {
            return refuse("alias", request.alias, "not 1 to 255 bytes");
        }
        let subnets = self.subnets();
        let mut plan = Plan { addresses: Vec::new(), gateways: Vec::new(), mac: [0; 6] };
        for address in request.lease.addresses() {
            // One subnet may lie in an earlier one: a node's share in the whole cluster's range.
            let around = subnets.iter().filter(|subnet| subnet.contains(&address));
            let Some(subnet) = around.max_by_key(|subnet| subnet.prefix_len()) else {
                return refuse("address", &address.to_string(), "not in a subnet of this network");
            };
            plan.addresses.push(IpNet::new_assert(address, subnet.prefix_len()));
            plan.gateways.push(ipam::gateway(*subnet));
        }
        if plan.addresses.is_empty() {
            return refuse("lease of", request.name, "no address");
        }
        if let Some(first) = plan.addresses.first() {
            plan.mac = link::mac_of(first.addr());
        }
        Ok(plan)
    }
}

/// What the interface inside gets.
#[derive(Debug)]
struct Plan {
    addresses: Vec<IpNet>,
    gateways: Vec<IpAddr>,
    mac: link::Mac,
}
