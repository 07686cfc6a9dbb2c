//! Route netlink messages, in and out: what this crate says about links, addresses and routes as bytes for the socket,
//! and what it wants to know about a link from the bytes that come back.
//!
//! Answers are read by walking their attributes: a full decoder would refuse a whole list for one foreign link with an
//! attribute newer than the decoder.
//!
//! It must not know why a link is made.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use crisp_sys::netlink::{Message, Reply};
use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkSerializable, NlasIterator, parse_u32,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// LOOPBACK_IFINDEX: `lo` is the first link of every network namespace.
pub(crate) const LOOPBACK: u32 = 1;
/// IFNAMSIZ without the closing NUL.
pub(crate) const NAME_MAX: usize = 15;
/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

fn message(content: RouteNetlinkMessage, flags: u16) -> Message {
    let mut payload = vec![0; content.buffer_len()];
    content.serialize(&mut payload);
    Message { kind: content.message_type(), flags, payload }
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

fn set_up(link: &mut LinkMessage) {
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
}

/// Brings the link with this index up.
pub(crate) fn up(index: u32) -> Message {
    let mut link = LinkMessage::default();
    link.header.index = index;
    set_up(&mut link);
    message(RouteNetlinkMessage::SetLink(link), 0)
}

/// Brings the link of this name up.
pub(crate) fn up_by_name(name: &str) -> Message {
    let mut link = named(name);
    set_up(&mut link);
    message(RouteNetlinkMessage::SetLink(link), 0)
}

/// Asks for the link of this name.
pub(crate) fn get(name: &str) -> Message {
    message(RouteNetlinkMessage::GetLink(named(name)), 0)
}

/// Asks for all links.
pub(crate) fn list() -> Message {
    message(RouteNetlinkMessage::GetLink(LinkMessage::default()), 0)
}

/// Removes the link of this name.
pub(crate) fn delete(name: &str) -> Message {
    message(RouteNetlinkMessage::DelLink(named(name)), 0)
}

/// Makes a bridge. An address that was set is kept; one that the kernel chose would change with the ports, and with it
/// the entries in everybody's neighbour tables.
pub(crate) fn new_bridge(name: &str, mac: Mac, mtu: Option<u32>) -> Message {
    let mut link = named(name);
    link.attributes.push(LinkAttribute::Address(mac.to_vec()));
    link.attributes.extend(mtu.map(LinkAttribute::Mtu));
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    message(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

/// Both ends of a veth pair.
#[derive(Debug)]
pub(crate) struct NewVeth<'a> {
    /// The end in the socket's own namespace, made down and as a port of `bridge`.
    pub(crate) name: &'a str,
    /// Index of the bridge.
    pub(crate) bridge: u32,
    /// The other end, born down in `netns`: neither end comes up before the other exists (ENOTCONN).
    pub(crate) peer: &'a str,
    /// Its Ethernet address.
    pub(crate) mac: Mac,
    /// Its network namespace.
    pub(crate) netns: BorrowedFd<'a>,
    /// Of both ends; the kernel's 1500 when `None`.
    pub(crate) mtu: Option<u32>,
}

/// Makes a veth pair.
pub(crate) fn new_veth(veth: &NewVeth<'_>) -> Message {
    let mut peer = named(veth.peer);
    peer.attributes.push(LinkAttribute::NetNsFd(veth.netns.as_raw_fd()));
    peer.attributes.push(LinkAttribute::Address(veth.mac.to_vec()));
    peer.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    let mut host = named(veth.name);
    host.attributes.push(LinkAttribute::Controller(veth.bridge));
    host.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    message(RouteNetlinkMessage::NewLink(host), NLM_F_CREATE | NLM_F_EXCL)
}

/// Makes a link that what is redirected to it leaves by (kind ifb).
pub(crate) fn new_ifb(name: &str) -> Message {
    let mut link = named(name);
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
    message(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

/// Marks a link with an alias, which is not heeded when it is made.
pub(crate) fn set_alias(name: &str, alias: &str) -> Message {
    let mut link = named(name);
    link.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    message(RouteNetlinkMessage::SetLink(link), 0)
}

/// Sets a bridge port's alias, hairpin mode (a frame may leave through the port it came in by, which a pod needs to
/// reach itself through an address that is translated back to it), and keeps the port from making itself an IPv6
/// address.
pub(crate) fn configure_port(name: &str, alias: &str) -> Message {
    let mut link = named(name);
    link.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ]));
    link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
        AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
    ])]));
    // RTM_NEWLINK without NLM_F_CREATE: RTM_SETLINK ignores the settings of a port.
    message(RouteNetlinkMessage::NewLink(link), 0)
}

/// Gives the link with this index an address, or makes sure that it has it. IPv6 addresses are valid at once: leases
/// are unique, so duplicate address detection would only cost its second.
pub(crate) fn add_address(index: u32, address: IpNet) -> Message {
    let mut content = AddressMessage::default();
    content.header.index = index;
    content.header.prefix_len = address.prefix_len();
    content.attributes.push(AddressAttribute::Address(address.addr()));
    match address {
        IpNet::V4(v4) => {
            content.header.family = AddressFamily::Inet;
            content.attributes.push(AddressAttribute::Local(v4.addr().into()));
            content.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpNet::V6(_) => {
            content.header.family = AddressFamily::Inet6;
            content.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message(RouteNetlinkMessage::NewAddress(content), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Routes everything else through `gateway` on the link with this index.
pub(crate) fn default_route(index: u32, gateway: IpAddr) -> Message {
    let mut content = RouteMessage::default();
    content.header.address_family = match gateway {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    content.header.table = RouteHeader::RT_TABLE_MAIN;
    content.header.protocol = RouteProtocol::Boot;
    content.header.scope = RouteScope::Universe;
    content.header.kind = RouteType::Unicast;
    content.attributes.push(RouteAttribute::Gateway(gateway.into()));
    content.attributes.push(RouteAttribute::Oif(index));
    message(RouteNetlinkMessage::NewRoute(content), NLM_F_CREATE | NLM_F_EXCL)
}

/// Asks for the routes of each family, IPv4 first.
pub(crate) fn list_routes() -> [Message; 2] {
    [AddressFamily::Inet, AddressFamily::Inet6].map(|family| {
        let mut content = RouteMessage::default();
        content.header.address_family = family;
        message(RouteNetlinkMessage::GetRoute(content), 0)
    })
}

/// What an RTM_NEWROUTE says about a route, as far as it matters here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// Whether it is a unicast route of the main table to everywhere.
    pub(crate) is_default: bool,
    /// Index of the interface; a route over several has none here.
    pub(crate) interface: Option<u32>,
    /// The smaller is preferred.
    pub(crate) metric: u32,
}

impl Route {
    /// `None` for an answer that is no route.
    pub(crate) fn parse(reply: &Reply) -> Option<Self> {
        const RTM_NEWROUTE: u16 = 24;
        const RTMSG: usize = 12;
        const RTN_UNICAST: u8 = 1;
        const RTA_OIF: u16 = 4;
        const RTA_PRIORITY: u16 = 6;
        // struct rtmsg: family, destination length, source length, tos, table, protocol, scope, type, flags.
        let (header, attributes) = reply.payload.split_at_checked(RTMSG)?;
        if reply.kind != RTM_NEWROUTE {
            return None;
        }
        let is_default =
            header[1] == 0 && header[4] == RouteHeader::RT_TABLE_MAIN && header[7] == RTN_UNICAST;
        let mut route = Self { is_default, ..Self::default() };
        for attribute in NlasIterator::new(attributes).flatten() {
            match attribute.kind() {
                RTA_OIF => route.interface = parse_u32(attribute.value()).ok(),
                RTA_PRIORITY => route.metric = parse_u32(attribute.value()).unwrap_or_default(),
                _ => {}
            }
        }
        Some(route)
    }
}

/// Counters of a link since it was made (`struct rtnl_link_stats64`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) rx_packets: u64,
    pub(crate) tx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_errors: u64,
    pub(crate) tx_errors: u64,
    pub(crate) rx_dropped: u64,
    pub(crate) tx_dropped: u64,
}

impl Counters {
    fn parse(value: &[u8]) -> Self {
        // Older kernels send a shorter structure: what they do not count is 0.
        let at = |index: usize| {
            let field = value.get(index * 8..index * 8 + 8).and_then(|field| field.try_into().ok());
            field.map_or(0, u64::from_ne_bytes)
        };
        Self {
            rx_packets: at(0),
            tx_packets: at(1),
            rx_bytes: at(2),
            tx_bytes: at(3),
            rx_errors: at(4),
            tx_errors: at(5),
            rx_dropped: at(6),
            tx_dropped: at(7),
        }
    }
}

/// What an RTM_NEWLINK says about a link, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    /// `IFLA_INFO_KIND`, such as "veth"; physical links have none.
    pub(crate) kind: Option<String>,
    /// Index of the bridge it is a port of.
    pub(crate) master: Option<u32>,
    /// Bytes.
    pub(crate) mtu: u32,
    pub(crate) counters: Counters,
}

impl Link {
    /// `None` for an answer that is no link, or one without a name.
    pub(crate) fn parse(reply: &Reply) -> Option<Self> {
        const RTM_NEWLINK: u16 = 16;
        const IFINFOMSG: usize = 16;
        const IFLA_IFNAME: u16 = 3;
        const IFLA_MTU: u16 = 4;
        const IFLA_MASTER: u16 = 10;
        const IFLA_LINKINFO: u16 = 18;
        const IFLA_IFALIAS: u16 = 20;
        const IFLA_STATS64: u16 = 23;
        const IFLA_INFO_KIND: u16 = 1;
        if reply.kind != RTM_NEWLINK {
            return None;
        }
        let index = u32::from_ne_bytes(reply.payload.get(4..8)?.try_into().ok()?);
        let mut link = Self { index, ..Self::default() };
        for attribute in NlasIterator::new(reply.payload.get(IFINFOMSG..)?).flatten() {
            match attribute.kind() {
                IFLA_IFNAME => link.name = text(attribute.value()),
                IFLA_MTU => link.mtu = parse_u32(attribute.value()).unwrap_or_default(),
                IFLA_MASTER => link.master = parse_u32(attribute.value()).ok(),
                IFLA_IFALIAS => link.alias = Some(text(attribute.value())),
                IFLA_STATS64 => link.counters = Counters::parse(attribute.value()),
                IFLA_LINKINFO => {
                    link.kind = NlasIterator::new(attribute.value())
                        .flatten()
                        .find(|info| info.kind() == IFLA_INFO_KIND)
                        .map(|info| text(info.value()));
                }
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }
}

/// A string attribute, which may end with a NUL.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// Ethernet address of an interface with this IP address: locally administered, so never some vendor's, and the same
/// whenever the address is used again, so that nobody's neighbour table goes stale. `0a:58` and the four bytes is what
/// CNI's bridge plugin uses.
pub(crate) fn mac_of(address: IpAddr) -> Mac {
    let low = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => low_bytes(v6),
    };
    [0x0a, 0x58, low[0], low[1], low[2], low[3]]
}

fn low_bytes(address: Ipv6Addr) -> [u8; 4] {
    let [.., a, b, c, d] = address.octets();
    [a, b, c, d]
}

/// Checks a name for a link as the kernel's dev_valid_name() does, and a bit stricter: letters, digits, `.`, `_`, `-`.
pub(crate) fn valid_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_subnet_have_different_ethernet_addresses() {
        assert_eq!(mac_of("10.89.1.2".parse().unwrap()), [0x0a, 0x58, 10, 89, 1, 2]);
        assert_eq!(mac_of("fd00::1:2".parse().unwrap()), [0x0a, 0x58, 0, 1, 0, 2]);
    }

    #[test]
    fn link_names_are_checked() {
        for (name, valid) in
            [("eth0", true), ("cr0123456789ab", true), ("", false), ("a b", false), ("..", false)]
        {
            assert_eq!(valid_name(name), valid, "{name:?}");
        }
        assert!(valid_name(&"x".repeat(15)) && !valid_name(&"x".repeat(16)));
        assert!(!valid_name("a/b") && !valid_name("a\"b"));
    }

    #[test]
    fn a_broken_attribute_does_not_hide_the_link() {
        // ifinfomsg for index 7, a name, then an attribute that claims more than there is.
        let mut payload = vec![0; 16];
        payload[4..8].copy_from_slice(&7u32.to_ne_bytes());
        payload.extend_from_slice(&[9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0]);
        payload.extend_from_slice(&[200, 0, 20, 0]);
        let link = Link::parse(&Reply { kind: 16, payload }).unwrap();
        assert_eq!((link.index, link.name.as_str(), link.alias), (7, "eth0", None));
    }
}
