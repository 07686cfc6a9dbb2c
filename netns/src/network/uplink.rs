//! The MTU of the way out. A bridge with a larger one works until a host on the way, or the remote end, drops the
//! "packet too big" answers that path MTU discovery lives by; then large transfers hang (overlay and cloud networks with
//! 1400 or 1450 bytes).
//!
//! It must not know about the bridge.

use crisp_sys::netlink::{Netlink, NetlinkError};

use super::config::{MTU_MAX, MTU_MIN};
use crate::link::{self, Link, Route};

/// MTU of the interface with the preferred default route, bytes; IPv4's route counts before IPv6's. `None` without such
/// a route, with one over several interfaces, or when the MTU is none that a bridge can have.
pub(super) fn mtu(socket: &mut Netlink) -> Result<Option<u32>, NetlinkError> {
    let Some(index) = default_interface(socket)? else { return Ok(None) };
    let links = socket.dump(&link::list())?;
    let uplink = links.iter().filter_map(Link::parse).find(|link| link.index == index);
    Ok(uplink.map(|link| link.mtu).filter(|mtu| (MTU_MIN..=MTU_MAX).contains(mtu)))
}

fn default_interface(socket: &mut Netlink) -> Result<Option<u32>, NetlinkError> {
    for message in link::list_routes() {
        let routes = socket.dump(&message)?;
        let preferred = routes
            .iter()
            .filter_map(Route::parse)
            .filter(|route| route.is_default && route.interface.is_some_and(|index| index != link::LOOPBACK))
            .min_by_key(|route| route.metric);
        if let Some(route) = preferred {
            return Ok(route.interface);
        }
    }
    Ok(None)
}
