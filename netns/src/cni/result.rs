//! What an ADD gave: checked, and the addresses taken out of it. The whole of it is kept as the JSON that it came in,
//! because the next plugin, CHECK and DEL get it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::version::Version;

/// The result of a chain of plugins.
#[derive(Debug, Clone, PartialEq)]
pub struct AttachResult {
    /// Addresses of the interface that was asked for, IPv4 first, in the plugins' order otherwise; at least one.
    pub addresses: Vec<IpAddr>,
    /// As the last plugin printed it.
    pub json: Value,
}

/// A result that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResultProblem {
    /// Not JSON, or not of the form of a result.
    #[error("{reason}; it printed {printed}")]
    Form {
        /// What the reader says.
        reason: String,
        /// The beginning of what was printed.
        printed: String,
    },
    /// A version that is not spoken here.
    #[error("cniVersion {version:?} is not supported")]
    Version {
        /// What it says.
        version: String,
    },
    /// Something that should be an address.
    #[error("{field} {value:?} is no {kind}")]
    Address {
        /// Where it stands.
        field: String,
        /// What stands there.
        value: String,
        /// What should stand there.
        kind: &'static str,
    },
    /// An address of an interface that the result does not list.
    #[error("ips[{at}].interface is {index}, and there are {count} interfaces")]
    Interface {
        /// Which address.
        at: usize,
        /// What it says.
        index: i64,
        /// How many there are.
        count: usize,
    },
    /// No address for the interface that was asked for.
    #[error("there is no address for {ifname}")]
    NoAddress {
        /// The interface.
        ifname: String,
    },
}

#[derive(Debug, Deserialize)]
struct Raw {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    #[serde(default)]
    interfaces: Option<Vec<RawInterface>>,
    #[serde(default)]
    ips: Option<Vec<RawIp>>,
    #[serde(default)]
    routes: Option<Vec<RawRoute>>,
    #[serde(default, rename = "dns")]
    _dns: Option<RawDns>,
}

#[derive(Debug, Deserialize)]
struct RawInterface {
    name: String,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawIp {
    /// Versions 0.3 and 0.4 only: "4" or "6".
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    interface: Option<i64>,
    address: String,
    #[serde(default)]
    gateway: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawRoute {
    dst: String,
    #[serde(default)]
    gw: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawDns {
    #[serde(default, rename = "nameservers")]
    _servers: Option<Vec<String>>,
    #[serde(default, rename = "search")]
    _search: Option<Vec<String>>,
}

/// Checks what one plugin printed; gives it as JSON, and its addresses for `ifname`.
pub(super) fn read(
    printed: &[u8],
    ifname: &str,
    spoken: Version,
) -> Result<(Value, Vec<IpAddr>), ResultProblem> {
    let form = |error: serde_json::Error| ResultProblem::Form {
        reason: error.to_string(),
        printed: super::output::shown(printed),
    };
    let json: Value = serde_json::from_slice(printed).map_err(form)?;
    let raw = Raw::deserialize(&json).map_err(form)?;
    let version = match raw.version.as_deref() {
        None | Some("") => spoken,
        Some(text) => {
            Version::parse(text).ok_or_else(|| ResultProblem::Version { version: text.to_owned() })?
        }
    };
    let addresses = addresses(&raw, ifname, version)?;
    for (at, route) in raw.routes.iter().flatten().enumerate() {
        parse::<IpNet>(format!("routes[{at}].dst"), &route.dst, "network")?;
        optional(format!("routes[{at}].gw"), route.gw.as_deref())?;
    }
    Ok((json, addresses))
}

/// The addresses of `ifname` inside the namespace; one without an interface counts as such.
fn addresses(raw: &Raw, ifname: &str, version: Version) -> Result<Vec<IpAddr>, ResultProblem> {
    let interfaces = raw.interfaces.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for (at, ip) in raw.ips.iter().flatten().enumerate() {
        let net: IpNet = parse(format!("ips[{at}].address"), &ip.address, "address with a prefix length")?;
        optional(format!("ips[{at}].gateway"), ip.gateway.as_deref())?;
        if let (Some(family), true) = (ip.version.as_deref(), version < Version::V1_0_0)
            && family != if net.addr().is_ipv4() { "4" } else { "6" }
        {
            return Err(ResultProblem::Address {
                field: format!("ips[{at}].address"),
                value: ip.address.clone(),
                kind: "address of the version beside it",
            });
        }
        let ours = match ip.interface {
            None => true,
            Some(index) => {
                let interface = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
                let interface =
                    interface.ok_or(ResultProblem::Interface { at, index, count: interfaces.len() })?;
                interface.name == ifname && interface.sandbox.as_deref().is_some_and(|path| !path.is_empty())
            }
        };
        if ours && !found.contains(&net.addr()) {
            found.push(net.addr());
        }
    }
    // Stable: within a family the plugins' order stays.
    found.sort_by_key(IpAddr::is_ipv6);
    Ok(found)
}

fn parse<T: std::str::FromStr>(field: String, text: &str, kind: &'static str) -> Result<T, ResultProblem> {
    text.parse().map_err(|_| ResultProblem::Address { field, value: text.to_owned(), kind })
}

fn optional(field: String, text: Option<&str>) -> Result<(), ResultProblem> {
    match text {
        None | Some("") => Ok(()),
        Some(text) => parse::<IpAddr>(field, text, "address").map(drop),
    }
}

#[cfg(test)]
mod tests;
