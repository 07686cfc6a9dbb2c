//! Tracked connections (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`): finding those that a change of rules has
//! made wrong, and forgetting them. A rule for address translation is asked for a connection's first packet only.
//!
//! It must not know which connections are wrong.

use std::net::IpAddr;

use crisp_sys::netlink::{Message, Netlink, NetlinkError};
use netlink_packet_core::NlasIterator;
use nix::errno::Errno;

/// NFNL_SUBSYS_CTNETLINK, the upper byte of a message's type.
const SUBSYSTEM: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
/// Length of `struct nfgenmsg`, bytes: family, version, resource.
const HEADER: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

/// One connection, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flow {
    /// Protocol number of the IP header.
    pub(super) protocol: u8,
    /// Where the first packet was sent to.
    pub(super) to: (IpAddr, u16),
    /// Who answers: another address when it was translated.
    pub(super) answered_by: (IpAddr, u16),
}

/// Forgets the connections of the calling thread's network namespace that `which` points at.
///
/// # Errors
/// The conversation breaks, or this kernel has no connection tracking over netlink.
pub(super) fn forget(which: impl Fn(&Flow) -> bool) -> Result<(), NetlinkError> {
    let mut socket = Netlink::open_netfilter()?;
    let kind = SUBSYSTEM | IPCTNL_MSG_CT_GET;
    // Family 0: all.
    let list = Message { kind, flags: 0, payload: vec![0; HEADER] };
    let mut doomed = Vec::new();
    for reply in socket.dump(&list)? {
        if let Some((flow, original)) = parse(&reply.payload)
            && which(&flow)
        {
            let mut payload = reply.payload[..HEADER].to_vec();
            payload.extend_from_slice(original);
            doomed.push(Message { kind: SUBSYSTEM | IPCTNL_MSG_CT_DELETE, flags: 0, payload });
        }
    }
    for verdict in socket.request(&doomed)? {
        match verdict {
            // Ended by itself meanwhile.
            Err(refusal) if refusal.errno == Errno::ENOENT => {}
            Err(refusal) => return Err(NetlinkError::Refused(refusal)),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// A listed connection, and the attribute by which it is named. `None`: it has no ports.
fn parse(payload: &[u8]) -> Option<(Flow, &[u8])> {
    let attributes = payload.get(HEADER..)?;
    let (mut original, mut reply) = (None, None);
    let mut at = 0;
    for attribute in NlasIterator::new(attributes).flatten() {
        let length = attribute.value().len() + 4;
        // Padded, as it is to be sent back.
        let bytes = attributes.get(at..(at + length).next_multiple_of(4));
        at += length.next_multiple_of(4);
        match attribute.kind() {
            CTA_TUPLE_ORIG => original = Some((tuple(attribute.value())?, bytes?)),
            CTA_TUPLE_REPLY => reply = tuple(attribute.value()),
            _ => {}
        }
    }
    let ((original, bytes), reply) = (original?, reply?);
    let flow = Flow {
        protocol: original.protocol,
        to: (original.destination, original.destination_port),
        answered_by: (reply.source, reply.source_port),
    };
    Some((flow, bytes))
}

struct Tuple {
    protocol: u8,
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
}

fn tuple(value: &[u8]) -> Option<Tuple> {
    let (mut protocol, mut ports, mut addresses) = (None, [None; 2], [None; 2]);
    for part in NlasIterator::new(value).flatten() {
        match part.kind() {
            // CTA_IP_V4_SRC, V4_DST, V6_SRC, V6_DST count from 1.
            CTA_TUPLE_IP => {
                for field in NlasIterator::new(part.value()).flatten() {
                    let slot = addresses.get_mut(usize::from(field.kind()).checked_sub(1)? % 2)?;
                    *slot = address(field.value());
                }
            }
            // CTA_PROTO_NUM 1, CTA_PROTO_SRC_PORT 2, CTA_PROTO_DST_PORT 3.
            CTA_TUPLE_PROTO => {
                for field in NlasIterator::new(part.value()).flatten() {
                    match field.kind() {
                        1 => protocol = field.value().first().copied(),
                        kind @ 2..=3 => {
                            ports[usize::from(kind) - 2] =
                                field.value().try_into().ok().map(u16::from_be_bytes);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Tuple {
        protocol: protocol?,
        source: addresses[0]?,
        source_port: ports[0]?,
        destination: addresses[1]?,
        destination_port: ports[1]?,
    })
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}
