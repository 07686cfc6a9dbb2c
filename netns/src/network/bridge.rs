//! The bridge itself, and what all conversations about links have in common.
//!
//! It must not know what is attached.

use crisp_sys::netlink::{Message, Netlink, NetlinkError, Refusal};
use nix::errno::Errno;

use super::{NetworkConfig, NetworkError};
use crate::ipam;
use crate::link::{self, Link};

/// Index of the bridge, which is made when there is none.
pub(super) fn ensure_bridge(socket: &mut Netlink, config: &NetworkConfig) -> Result<u32, NetworkError> {
    let name = &config.bridge;
    if let Some(bridge) = find(socket, name)? {
        return adopt(bridge);
    }
    let mac = config.subnets().next().map(ipam::gateway).map(link::mac_of).unwrap_or_default();
    match all_accepted(socket, &[link::new_bridge(name, mac, config.mtu)], "make bridge", name) {
        // Somebody else made it since we looked.
        Err(NetworkError::Refused { source: Refusal { errno: Errno::EEXIST, .. }, .. }) => {}
        other => other?,
    }
    match find(socket, name)? {
        Some(bridge) => adopt(bridge),
        None => Err(NetworkError::Refused {
            doing: "find bridge",
            object: name.clone(),
            source: Refusal { errno: Errno::ENODEV, message: None },
        }),
    }
}

fn adopt(link: Link) -> Result<u32, NetworkError> {
    match link.kind {
        Some(kind) if kind == "bridge" => Ok(link.index),
        kind => Err(NetworkError::NotABridge {
            name: link.name,
            kind: kind.unwrap_or_else(|| "hardware".to_owned()),
        }),
    }
}

/// The link of this name, `None` when there is none.
pub(super) fn find(socket: &mut Netlink, name: &str) -> Result<Option<Link>, NetworkError> {
    match socket.query(&link::get(name)) {
        Ok(reply) => Ok(Link::parse(&reply)),
        Err(NetlinkError::Refused(Refusal { errno: Errno::ENODEV, .. })) => Ok(None),
        Err(source) => Err(NetworkError::Netlink { doing: "look for link", object: name.to_owned(), source }),
    }
}

/// Sends messages about one object; the first refusal is the error.
pub(super) fn all_accepted(
    socket: &mut Netlink,
    messages: &[Message],
    doing: &'static str,
    object: &str,
) -> Result<(), NetworkError> {
    let verdicts = socket.request(messages).map_err(|source| NetworkError::Netlink {
        doing,
        object: object.to_owned(),
        source,
    })?;
    verdicts.into_iter().try_for_each(|verdict| {
        verdict.map_err(|source| NetworkError::Refused { doing, object: object.to_owned(), source })
    })
}
