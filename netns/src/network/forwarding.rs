//! The host's kernel settings: forwarding, and what the bridge does with IPv6.
//!
//! It must not know about links; it writes files below `/proc/sys/net`, in the calling thread's network namespace.

use std::io;
use std::path::Path;

use super::NetworkError;
use crate::sysctl::{SysctlError, set_on_host};

const IPV6_CONF: &str = "/proc/sys/net/ipv6/conf";

/// Whether the kernel has IPv6 (not `ipv6.disable=1`).
pub(super) fn has_ipv6() -> bool {
    Path::new(IPV6_CONF).exists()
}

/// Settles what the bridge itself does with IPv6, before its first address: router advertisements that come from a port
/// would otherwise change the host's own routes (CVE-2020-10749).
pub(super) fn prepare_bridge(bridge: &str, has_ipv6: bool, use_ipv6: bool) -> Result<(), SysctlError> {
    if !has_ipv6 {
        return Ok(());
    }
    let set = |name: &str, value| set_on_host(&format!("net/ipv6/conf/{bridge}/{name}"), value);
    set("accept_ra", "0")?;
    set("accept_dad", "0")?;
    if use_ipv6 {
        // A host that has IPv6 off for `all` interfaces may still have it on this one.
        set("disable_ipv6", "0")?;
    }
    Ok(())
}

/// Whether packets from and to 127.0.0.0/8 may cross the bridge (`Documentation/networking/ip-sysctl.rst`,
/// `route_localnet`): the host's own connections to a host port at its loopback do.
pub(super) fn route_loopback(bridge: &str, on: bool) -> Result<(), SysctlError> {
    set_on_host(&format!("net/ipv4/conf/{bridge}/route_localnet"), if on { "1" } else { "0" })
}

/// Switches forwarding on.
pub(super) fn enable(ipv4: bool, ipv6: bool) -> Result<(), NetworkError> {
    if ipv4 {
        set_on_host("net/ipv4/ip_forward", "1")?;
    }
    if ipv6 {
        keep_router_advertisements()?;
        set_on_host("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// An interface with `accept_ra` 1 heeds router advertisements only while it does not forward. A host that got its
/// default route from one would lose it within minutes of the switch; 2 means "also when forwarding".
fn keep_router_advertisements() -> Result<(), NetworkError> {
    let failed = |source| NetworkError::ListSysctls { path: IPV6_CONF, source };
    for entry in std::fs::read_dir(IPV6_CONF).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str().filter(|name| !matches!(*name, "all" | "default" | "lo")) else {
            continue;
        };
        let holds = |setting: &str, value: &str| {
            let path = Path::new(IPV6_CONF).join(name).join(setting);
            std::fs::read_to_string(path).is_ok_and(|present| present.trim_end() == value)
        };
        if !(holds("accept_ra", "1") && holds("forwarding", "0")) {
            continue;
        }
        match set_on_host(&format!("net/ipv6/conf/{name}/accept_ra"), "2") {
            Ok(()) => tracing::info!(
                interface = name,
                "router advertisements kept although forwarding is switched on"
            ),
            // The interface went away since it was listed.
            Err(SysctlError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
