//! The pod CIDR: ranges that kubelet wants pods' addresses to be of (CRI `UpdateRuntimeConfig`), in place of the
//! configured ones.
//!
//! kubelet says it when the cluster has given the node its share, and not again when the runtime restarts: it is kept
//! in a file below the root directory. Pods that have addresses keep them, so the ranges before go on to work.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crisp_netns::{ipam::Ipam, network::Network};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    error::{RequestError, Stage},
    setup::write_synced,
};

/// One range of each family at most. A family without one is as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ranges {
    ipv4: Option<Ipv4Net>,
    ipv6: Option<Ipv6Net>,
}

/// What is in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    current: Ranges,
    /// Those that pods may still have addresses of.
    earlier: Vec<Ranges>,
}

/// See the module.
#[derive(Debug)]
pub struct PodCidr {
    path: PathBuf,
    saved: Mutex<Saved>,
}

impl PodCidr {
    /// What was said before this start is in force again.
    ///
    /// # Errors
    /// The file cannot be read or is none of ours, or the network does not take the ranges.
    pub(crate) fn restore(root: &Path, network: Option<&Network>, ipam: &Ipam) -> Result<Self, RequestError> {
        let path = root.join("pod-cidr.json");
        let saved: Saved = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).stage(format_args!("read {}", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Saved::default(),
            Err(error) => return Err(error).stage(format_args!("read {}", path.display())),
        };
        for ranges in saved.earlier.iter().chain([&saved.current]) {
            let Some(network) = network else { continue };
            take(network, ipam, *ranges).stage(format_args!("pod CIDR of {}", path.display()))?;
        }
        Ok(Self { path, saved: Mutex::new(saved) })
    }

    /// New pods get addresses of these ranges from now on, comma-separated, also after a restart; says whether they are
    /// others than before. An empty text changes nothing: kubelet sends it while the cluster has given the node no share.
    ///
    /// # Errors
    /// `Invalid` when the text holds something else than one range of each family that has room for pods.
    pub(crate) fn change(
        &self,
        network: Option<&Network>,
        ipam: &Ipam,
        text: &str,
    ) -> Result<bool, RequestError> {
        let ranges = parse(text)?;
        if ranges == Ranges::default() {
            return Ok(false);
        }
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        if saved.current == ranges {
            return Ok(false);
        }
        let mut earlier = saved.earlier.clone();
        earlier.push(saved.current);
        earlier.retain(|before| *before != ranges && *before != Ranges::default());
        let changed = Saved { current: ranges, earlier };
        if let Some(network) = network {
            take(network, ipam, ranges).stage("network_config.pod_cidr")?;
        }
        let json = serde_json::to_string(&changed).stage("write the pod CIDR")?;
        write_synced(&self.path, &json).stage(format_args!("write {}", self.path.display()))?;
        *saved = changed;
        drop(saved);
        tracing::info!(pod_cidr = text, "new pods get addresses of this range");
        Ok(true)
    }

    /// The ranges that are in force, IPv4 first; none while kubelet has named none. For CNI's plugins, which see to
    /// addresses where there is no bridge.
    pub(crate) fn ranges(&self) -> Vec<IpNet> {
        let current = self.saved.lock().unwrap_or_else(PoisonError::into_inner).current;
        current.ipv4.map(IpNet::V4).into_iter().chain(current.ipv6.map(IpNet::V6)).collect()
    }
}

/// The network first: no address is handed out that could not be attached.
fn take(network: &Network, ipam: &Ipam, ranges: Ranges) -> Result<(), RequestError> {
    let configured = network.config();
    let (ipv4, ipv6) = (ranges.ipv4.or(configured.ipv4), ranges.ipv6.or(configured.ipv6));
    let subnets: Vec<IpNet> =
        ipv4.map(IpNet::V4).into_iter().chain(ipv6.map(IpNet::V6)).map(|subnet| subnet.trunc()).collect();
    network.add_subnets(&subnets).stage("network")?;
    ipam.hand_out(ipv4, ipv6).stage("addresses")
}

fn parse(text: &str) -> Result<Ranges, RequestError> {
    let mut ranges = Ranges::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let refuse =
            |why: &str| Err(RequestError::invalid(format!("network_config.pod_cidr {part:?} {why}")));
        let Ok(range) = part.parse::<IpNet>() else { return refuse("is not a network") };
        if crisp_netns::ipam::check(range).is_err() {
            return refuse("has no room for pods");
        }
        let again = match range.trunc() {
            IpNet::V4(v4) => ranges.ipv4.replace(v4).is_some(),
            IpNet::V6(v6) => ranges.ipv6.replace(v6).is_some(),
        };
        if again {
            return refuse("is a second one of its family");
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_each_family_is_taken() {
        let ranges = parse("10.244.3.7/24, fd00:3::/64").unwrap();
        assert_eq!(ranges.ipv4, "10.244.3.0/24".parse().ok());
        assert_eq!(ranges.ipv6, "fd00:3::/64".parse().ok());
        assert_eq!(parse("").unwrap(), Ranges::default());
        for (text, why) in [
            ("10.0.0.0", "is not a network"),
            ("10.0.0.0/24,10.1.0.0/24", "is a second one of its family"),
            ("10.0.0.0/32", "has no room"),
            ("10.0.0.0/24,x", "\"x\" is not a network"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.text.contains(why), "{text}: {error}");
        }
    }
}
