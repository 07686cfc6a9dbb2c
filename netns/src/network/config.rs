//! What the network looks like, and whether that can work.
//!
//! It must not know what is there already.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::NetworkError;
use crate::{ipam, link};

/// Smallest MTU of a link that carries IPv6 (RFC 8200, section 5), bytes.
pub(super) const MTU_MIN: u32 = 1280;
/// Largest MTU of a veth or a bridge, bytes.
pub(super) const MTU_MAX: u32 = 65535;

/// What the network looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Name of the bridge, at most 15 bytes. An existing bridge of this name is used as it is.
    pub bridge: String,
    /// IPv4 subnet to begin with; its first address is the gateway. `None`: no IPv4.
    pub ipv4: Option<Ipv4Net>,
    /// IPv6 subnet to begin with; its first address is the gateway. `None`: no IPv6.
    pub ipv6: Option<Ipv6Net>,
    /// MTU of the bridge and of both ends of every veth pair, bytes, 1280 to 65535. `None`: that of
    /// the interface with the default route when the network is opened, 1500 when there is none.
    pub mtu: Option<u32>,
    /// Whether connections to outside the subnets get the host's address as their source.
    pub masquerade: bool,
    /// Ranges to which they keep their own: whoever is there has a route back.
    pub native: Vec<IpNet>,
    /// Name of the nftables table of family inet that holds the rules. It is replaced at start.
    pub nft_table: String,
}

impl Default for NetworkConfig {
    /// Bridge and table `crisp0` and `crisp`, 10.89.0.0/16 and a unique local IPv6 subnet (RFC 4193), masqueraded.
    fn default() -> Self {
        Self {
            bridge: "crisp0".to_owned(),
            ipv4: Ipv4Net::new([10, 89, 0, 0].into(), 16).ok(),
            ipv6: Ipv6Net::new([0xfd63, 0x7269, 0x7370, 0, 0, 0, 0, 0].into(), 64).ok(),
            mtu: None,
            masquerade: true,
            native: Vec::new(),
            nft_table: "crisp".to_owned(),
        }
    }
}

impl NetworkConfig {
    /// The subnets, IPv4 first.
    pub(super) fn subnets(&self) -> impl Iterator<Item = IpNet> {
        self.ipv4.map(IpNet::V4).into_iter().chain(self.ipv6.map(IpNet::V6))
    }
}

/// Refuses a configuration that cannot work, before anything is touched.
pub(super) fn checked(mut config: NetworkConfig) -> Result<NetworkConfig, NetworkError> {
    let refuse = |field, value: &dyn ToString, reason| {
        Err(NetworkError::Config { field, value: value.to_string(), reason })
    };
    check_link_name("bridge", &config.bridge)?;
    let table = &config.nft_table;
    if !table.starts_with(|c: char| c.is_ascii_alphabetic())
        || !table.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        return refuse("nft_table", table, "not a letter followed by letters, digits and underscores");
    }
    match config.mtu {
        Some(mtu) if !(MTU_MIN..=MTU_MAX).contains(&mtu) => {
            return refuse("mtu", &mtu, "not from 1280 to 65535");
        }
        _ => {}
    }
    if config.subnets().next().is_none() {
        return refuse("subnets", &"", "neither an IPv4 nor an IPv6 subnet");
    }
    config.subnets().try_for_each(ipam::check)?;
    config.ipv4 = config.ipv4.map(|net| net.trunc());
    config.ipv6 = config.ipv6.map(|net| net.trunc());
    Ok(config)
}

/// Refuses a name that no link can have.
pub(super) fn check_link_name(field: &'static str, name: &str) -> Result<(), NetworkError> {
    if link::valid_name(name) {
        return Ok(());
    }
    let reason = "not 1 to 15 letters, digits, dots, underscores and dashes";
    Err(NetworkError::Config { field, value: name.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut NetworkConfig)) -> String {
        let mut config = NetworkConfig::default();
        change(&mut config);
        checked(config).unwrap_err().to_string()
    }

    #[test]
    fn the_default_configuration_is_sound() {
        let config = checked(NetworkConfig::default()).unwrap();
        let gateways: Vec<String> =
            config.subnets().map(|subnet| ipam::gateway(subnet).to_string()).collect();
        assert_eq!(gateways, ["10.89.0.1", "fd63:7269:7370::1"]);
    }

    #[test]
    fn a_bad_value_is_refused_by_name() {
        assert!(
            refused(|config| config.bridge = "a-name-too-long-for-a-link".into())
                .starts_with("network bridge")
        );
        assert!(
            refused(|config| config.nft_table = "a; flush ruleset".into()).starts_with("network nft_table")
        );
        assert!(refused(|config| config.nft_table = String::new()).starts_with("network nft_table"));
        assert!(refused(|config| config.mtu = Some(576)).starts_with("network mtu \"576\""));
        assert!(
            refused(|config| config.ipv4 = "10.0.0.0/31".parse().ok()).contains("10.0.0.0/31 is too small")
        );
        let neither = refused(|config| (config.ipv4, config.ipv6) = (None, None));
        assert!(neither.contains("neither an IPv4 nor an IPv6 subnet"), "{neither}");
    }

    #[test]
    fn host_bits_of_subnets_are_cut_off() {
        let config = NetworkConfig { ipv4: "10.1.2.3/24".parse().ok(), ..NetworkConfig::default() };
        assert_eq!(checked(config).unwrap().ipv4, "10.1.2.0/24".parse().ok());
    }
}
