//! The embedded network: one bridge, addresses on it, masquerading, and namespaces attached to it by veth pairs.
//!
//! ```text
//!   host namespace                                      attached namespace
//!   ┌─ bridge: gateway addresses ─┐
//!   │  port: cr0123… (hairpin) ───┼──── veth pair ────── eth0: leased addresses, default routes to the gateway
//!   └─ port: …                    │
//!      └─ forwarding → other interfaces, masqueraded by one nftables table of our own
//! ```
//!
//! Attaching is netlink only: two requests on the host's socket, two on the namespace's, no helper process and no rule.
//! The nftables table is loaded at start, and again when host ports or subnets change. Tables of others are never
//! touched; a firewall of theirs that drops forwarded packets (Docker's does where it runs) has to be opened by its
//! owner.
//!
//! It must not know what is attached, or choose addresses: those come as a lease.

mod attach;
mod bridge;
mod config;
mod conntrack;
mod error;
mod forwarding;
mod nft;
mod ports;
mod shape;
mod sockets;
mod uplink;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crisp_sys::netlink::{Message, Refusal};
use ipnet::IpNet;
use nix::errno::Errno;

use crate::ipam::{self, Lease};
use crate::link::{self, Link};
use bridge::{all_accepted, ensure_bridge, find};
use config::{check_link_name, checked};
use ports::Ports;
use sockets::Sockets;

pub use attach::{AttachRequest, Attachment};
pub use config::NetworkConfig;
pub use error::NetworkError;
pub use ports::{HostPort, Protocol};
pub use shape::Bandwidth;

/// The network of this host. Shared by reference between threads; opened in the host's network namespace, it acts there
/// whichever thread it is called from, but for the rules, which are written from a thread of the host's namespace.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    /// Index of the bridge.
    bridge: u32,
    /// Whether the kernel has IPv6 at all.
    has_ipv6: bool,
    sockets: Sockets,
    /// Whose gateways the bridge has: the configured ones, and those added since.
    subnets: RwLock<Arc<[IpNet]>>,
    /// Held while rules are written: the last ones written are the latest. `None` until they have been loaded.
    ports: Mutex<Option<Ports>>,
}

impl Network {
    /// Makes the bridge, or takes the existing one, gives it the gateway addresses and switches forwarding on. Doing it
    /// again changes nothing, so that a restarted daemon finds its network as it was. The rules are as they were until
    /// [`Network::load`].
    ///
    /// Forwarding makes a kernel ignore router advertisements; interfaces that live by them keep them, see
    /// `Documentation/networking/ip-sysctl.rst`, `accept_ra`.
    ///
    /// # Errors
    /// The configuration or the kernel's refusal; what was made so far stays for the next attempt.
    pub fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let mut config = checked(config)?;
        let has_ipv6 = forwarding::has_ipv6();
        let sockets = Sockets::here()?;
        if config.mtu.is_none() {
            config.mtu = sockets.with(uplink::mtu)?.map_err(|source| NetworkError::Netlink {
                doing: "look for the default route, whose MTU is wanted for",
                object: config.bridge.clone(),
                source,
            })?;
        }
        if let (Some(subnet), false) = (config.ipv6, has_ipv6) {
            return Err(NetworkError::NoIpv6 { subnet });
        }
        let bridge = sockets.with(|socket| ensure_bridge(socket, &config))??;
        let subnets: Vec<IpNet> = config.subnets().collect();
        let network = Self {
            config,
            bridge,
            has_ipv6,
            sockets,
            subnets: RwLock::new([].into()),
            ports: Mutex::default(),
        };
        network.serve(&subnets)?;
        Ok(network)
    }

    /// Writes the rules, with the host ports of those who are attached already, each as an owner, its ports and its lease.
    ///
    /// # Errors
    /// As [`Network::publish`]; nft is missing or refuses.
    pub fn load<'a>(
        &self,
        published: impl IntoIterator<Item = (&'a str, Vec<HostPort>, Lease)>,
    ) -> Result<(), NetworkError> {
        let mut all = Ports::default();
        for (owner, ports, lease) in published {
            all.add(owner, &ports, &lease)?;
        }
        self.change_ports(|ports| {
            *ports = all;
            Ok(true)
        })
    }

    /// Lets host ports lead to the addresses of a lease. When this returns they do, for the host's own connections too.
    /// For the host's loopback this holds in IPv4 only: the kernel routes ::1 nowhere.
    ///
    /// # Errors
    /// [`NetworkError::PortTaken`], nft is missing or refuses; no port is there then.
    pub fn publish(&self, owner: &str, wanted: &[HostPort], lease: &Lease) -> Result<(), NetworkError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut added = Ports::default();
        added.add(owner, wanted, lease)?;
        self.change_ports(|ports| {
            ports.add(owner, wanted, lease)?;
            Ok(true)
        })?;
        // Who sent to a UDP port before the rule was there is remembered as not translated, and stays so while it sends.
        self.forget_connections(|flow| {
            flow.protocol == Protocol::Udp.number()
                && added.iter().any(|(entrance, target)| {
                    entrance.takes(flow.protocol, flow.to.0, flow.to.1)
                        && flow.answered_by != (target.address, target.port)
                })
        });
        Ok(())
    }

    /// Takes back what [`Network::publish`] did for `owner`. Nothing to take back is no error.
    ///
    /// # Errors
    /// nft is missing or refuses; the ports stay then.
    pub fn unpublish(&self, owner: &str) -> Result<(), NetworkError> {
        let mut removed = Vec::new();
        self.change_ports(|ports| {
            removed = ports.remove(owner);
            Ok(!removed.is_empty())
        })?;
        if !removed.is_empty() {
            // What is still translated would go to whoever gets the address next.
            self.forget_connections(|flow| {
                removed.iter().any(|(entrance, target)| {
                    entrance.takes(flow.protocol, flow.to.0, flow.to.1)
                        && flow.answered_by == (target.address, target.port)
                })
            });
        }
        Ok(())
    }

    /// A kernel without connection tracking over netlink has nothing to forget by: said, and lived with.
    fn forget_connections(&self, which: impl Fn(&conntrack::Flow) -> bool) {
        if let Err(error) = conntrack::forget(which) {
            tracing::warn!(%error, "connections of host ports that changed are still tracked");
        }
    }

    /// Changes the host ports and, when `change` says so, the rules; both or neither.
    fn change_ports(
        &self,
        change: impl FnOnce(&mut Ports) -> Result<bool, NetworkError>,
    ) -> Result<(), NetworkError> {
        let mut held = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = held.clone().unwrap_or_default();
        if change(&mut changed)? {
            self.write_rules(&changed)?;
        }
        *held = Some(changed);
        Ok(())
    }

    fn write_rules(&self, ports: &Ports) -> Result<(), NetworkError> {
        let subnets = self.subnets();
        let route_loopback = |on| match subnets.iter().any(|subnet| subnet.addr().is_ipv4()) {
            true => forwarding::route_loopback(&self.config.bridge, on),
            false => Ok(()),
        };
        // Never without the rule that guards it.
        if ports.is_empty() {
            route_loopback(false)?;
        }
        nft::load(&self.config, &subnets, ports)?;
        if !ports.is_empty() {
            route_loopback(true)?;
        }
        Ok(())
    }

    /// Takes addresses of `subnets` too from now on. Those of earlier ones go on to work.
    ///
    /// # Errors
    /// A subnet is too small, the kernel's refusal or nft's.
    pub fn add_subnets(&self, subnets: &[IpNet]) -> Result<(), NetworkError> {
        let known = self.subnets();
        let new: Vec<IpNet> =
            subnets.iter().map(IpNet::trunc).filter(|subnet| !known.contains(subnet)).collect();
        if new.is_empty() {
            return Ok(());
        }
        self.serve(&new)?;
        // Before they are loaded the rules are those of the run before, host ports among them.
        let loaded = self.ports.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if loaded { self.change_ports(|_| Ok(true)) } else { Ok(()) }
    }

    /// Makes the bridge the gateway of more subnets.
    fn serve(&self, new: &[IpNet]) -> Result<(), NetworkError> {
        for subnet in new {
            // Whoever makes the pools would find out too, but only after the bridge has the address.
            ipam::check(*subnet)?;
            if let (IpNet::V6(subnet), false) = (*subnet, self.has_ipv6) {
                return Err(NetworkError::NoIpv6 { subnet });
            }
        }
        let all: Vec<IpNet> = self.subnets().iter().chain(new).copied().collect();
        let has = |ipv4: bool| all.iter().any(|subnet| subnet.addr().is_ipv4() == ipv4);
        let bridge = &self.config.bridge;
        forwarding::prepare_bridge(bridge, self.has_ipv6, has(false))?;
        let gateways = new.iter().map(|subnet| {
            link::add_address(self.bridge, IpNet::new_assert(ipam::gateway(*subnet), subnet.prefix_len()))
        });
        let messages: Vec<Message> = gateways.chain([link::up(self.bridge)]).collect();
        self.sockets.with(|socket| all_accepted(socket, &messages, "give its addresses to", bridge))??;
        forwarding::enable(has(true), has(false))?;
        *self.subnets.write().unwrap_or_else(PoisonError::into_inner) = all.into();
        Ok(())
    }

    /// The subnets whose addresses can be attached, in the order in which they came.
    pub fn subnets(&self) -> Arc<[IpNet]> {
        self.subnets.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The configuration, subnets without host bits; the MTU is `Some` when one was given or found.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Sysctls that a namespace needs before it is attached, for [`crate::namespaces::Request`]: no duplicate address
    /// detection, which would keep link-local addresses unusable for a second, and no router advertisements, with which
    /// any namespace on the bridge could redirect the others' IPv6 traffic (CVE-2020-10749).
    pub fn sysctls(&self) -> Vec<(String, String)> {
        let default = |name: &str, value: &str| (format!("net.ipv6.conf.default.{name}"), value.to_owned());
        let mut sysctls = Vec::new();
        if self.has_ipv6 {
            sysctls.extend([default("accept_dad", "0"), default("accept_ra", "0")]);
        }
        if self.subnets().iter().any(|subnet| !subnet.addr().is_ipv4()) {
            // Kernels started with ipv6.disable_ipv6=1 have it off in every new namespace.
            sysctls.push(default("disable_ipv6", "0"));
        }
        sysctls
    }

    /// Limits what an attached namespace may send and receive. `name` and `alias` are those it was attached with; a limit
    /// for what it sends needs a `name` of at most 14 bytes.
    ///
    /// # Errors
    /// The name is too long, or the kernel's refusal; detaching takes away what was made.
    pub fn limit(&self, name: &str, alias: &str, bandwidth: Bandwidth) -> Result<(), NetworkError> {
        if !bandwidth.is_limited() {
            return Ok(());
        }
        let index = self.index(name)?;
        let mut messages = Vec::from_iter(bandwidth.ingress.map(|bits| shape::limit(index, bits)));
        if let Some(bits) = bandwidth.egress {
            let Some(shaper) = shaper(name) else {
                let reason = "over 14 bytes, and what it sends is to be limited";
                return Err(NetworkError::Config { field: "link name", value: name.to_owned(), reason });
            };
            let made = [link::new_ifb(&shaper), link::set_alias(&shaper, alias)];
            self.sockets.with(|socket| all_accepted(socket, &made, "make ifb link", &shaper))??;
            let through = self.index(&shaper)?;
            messages.extend([shape::limit(through, bits), link::up(through)]);
            messages.extend(shape::redirect(index, through));
        }
        self.sockets.with(|socket| all_accepted(socket, &messages, "limit the bandwidth of", name))?
    }

    fn index(&self, name: &str) -> Result<u32, NetworkError> {
        match self.sockets.with(|socket| find(socket, name))?? {
            Some(link) => Ok(link.index),
            None => Err(NetworkError::Refused {
                doing: "find link",
                object: name.to_owned(),
                source: Refusal { errno: Errno::ENODEV, message: None },
            }),
        }
    }

    /// Takes a namespace off the network by deleting its link. A link that is gone already, as it is when its namespace
    /// ended, is no error. The kernel needs 20 to 40 ms for it, waiting for RCU; other calls go on meanwhile.
    ///
    /// # Errors
    /// The kernel's refusal, which names the link.
    pub fn detach(&self, name: &str) -> Result<(), NetworkError> {
        check_link_name("link name", name)?;
        if let Some(shaper) = shaper(name) {
            self.delete(&shaper)?;
        }
        self.delete(name)
    }

    fn delete(&self, name: &str) -> Result<(), NetworkError> {
        let deleted =
            self.sockets.with(|socket| all_accepted(socket, &[link::delete(name)], "delete link", name))?;
        match deleted {
            Err(NetworkError::Refused { source: Refusal { errno: Errno::ENODEV, .. }, .. }) => Ok(()),
            other => other,
        }
    }

    /// Name and alias of each link of this host whose alias starts with `prefix`: what an earlier run attached.
    ///
    /// # Errors
    /// When the links cannot be listed.
    pub fn owned_links(&self, prefix: &str) -> Result<Vec<(String, String)>, NetworkError> {
        let ours = |link: &Link| matches!(link.kind.as_deref(), Some("veth" | "ifb"));
        let owned = self.links()?.into_iter().filter(ours);
        Ok(owned
            .filter_map(|link| Some((link.name, link.alias?)))
            .filter(|(_, alias)| alias.starts_with(prefix))
            .collect())
    }

    /// Removes the nftables table, and the bridge unless something is still attached to it; returns whether the bridge is
    /// gone. Forwarding stays switched on: nobody can tell who else relies on it.
    ///
    /// # Errors
    /// The kernel's refusal, or nft's.
    pub fn teardown_host(&self) -> Result<bool, NetworkError> {
        nft::unload(&self.config.nft_table)?;
        if self.links()?.iter().any(|link| link.master == Some(self.bridge)) {
            return Ok(false);
        }
        self.detach(&self.config.bridge)?;
        Ok(true)
    }

    fn links(&self) -> Result<Vec<Link>, NetworkError> {
        let replies = self.sockets.with(|socket| socket.dump(&link::list()))?.map_err(|source| {
            let object = self.config.bridge.clone();
            NetworkError::Netlink { doing: "list the links beside", object, source }
        })?;
        Ok(replies.iter().filter_map(Link::parse).collect())
    }
}

/// Name of the link that what comes from a namespace is sent through when it has a limit; `None` when the name of the
/// host's end has no room for it, so that there is none.
fn shaper(name: &str) -> Option<String> {
    (name.len() < link::NAME_MAX).then(|| format!("i{name}"))
}
