//! Why the network could not be set up, changed or asked.

use crisp_sys::netlink::{NetlinkError, Refusal};
use ipnet::Ipv6Net;

use super::Protocol;
use crate::ipam::IpamError;
use crate::namespaces::NamespaceError;
use crate::sysctl::SysctlError;

/// Why the network could not be set up, changed or asked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A value that cannot work.
    #[error("network {field} {value:?}: {reason}")]
    Config {
        /// Which field of the configuration or the request.
        field: &'static str,
        /// Its value.
        value: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A subnet with nothing to hand out.
    #[error(transparent)]
    Subnet(#[from] IpamError),
    /// No socket in the host's network namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The conversation with the kernel broke.
    #[error("{doing} {object}")]
    Netlink {
        /// The operation.
        doing: &'static str,
        /// The link or namespace.
        object: String,
        /// What broke.
        #[source]
        source: NetlinkError,
    },
    /// The kernel said no.
    #[error("{doing} {object}")]
    Refused {
        /// The operation.
        doing: &'static str,
        /// The link.
        object: String,
        /// Its answer.
        #[source]
        source: Refusal,
    },
    /// Another link has the bridge's name.
    #[error("{name} exists and is a {kind} link, not a bridge: name another one in the configuration")]
    NotABridge {
        /// The name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// An IPv6 subnet is configured and the kernel has no IPv6.
    #[error("this kernel has IPv6 switched off: take the IPv6 subnet {subnet} out of the configuration")]
    NoIpv6 {
        /// The subnet.
        subnet: Ipv6Net,
    },
    /// A setting of the host's kernel.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The interfaces of the host could not be listed.
    #[error("list {path}")]
    ListSysctls {
        /// The folder.
        path: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody has the host port.
    #[error("host port {port}/{protocol} is in use by {owner}")]
    PortTaken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Who has it.
        owner: String,
    },
    /// No nft binary.
    #[error(
        "nft is not installed, masquerading and host ports need it: install the package nftables \
         (apt-get install nftables, dnf install nftables, apk add nftables) or switch masquerading off"
    )]
    NftMissing,
    /// nft did not run.
    #[error("run nft")]
    NftRun(#[source] std::io::Error),
    /// nft, or the kernel behind it, did not take the rules.
    #[error("load nftables table inet {table}: {stderr}")]
    NftRefused {
        /// The table.
        table: String,
        /// What nft printed.
        stderr: String,
    },
}
