//! What a pod asks of the network: host ports, and limits of its bandwidth.

use std::{collections::HashMap, net::IpAddr};

use crisp_netns::network::{Bandwidth, HostPort, Protocol};
use crisp_proto::runtime::v1 as cri;

use crate::error::RequestError;

/// Annotations that limit a pod's bandwidth, as the Kubernetes documentation on network plugins names them.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// What they may be, bits a second: 1k to 1P.
const RATES: std::ops::RangeInclusive<u128> = 1_000..=1_000_000_000_000_000;

/// Checks all port mappings and gives those of the host. A mapping without a host port is what a container says about
/// itself.
///
/// # Errors
/// `Invalid`, naming the field.
pub fn host_ports(ports: &[cri::PortMapping]) -> Result<Vec<HostPort>, RequestError> {
    let mut found = Vec::new();
    for (index, mapping) in ports.iter().enumerate() {
        let refuse = |what: String| RequestError::invalid(format!("port_mappings[{index}].{what}"));
        let protocol = match cri::Protocol::try_from(mapping.protocol) {
            Ok(cri::Protocol::Tcp) => Protocol::Tcp,
            Ok(cri::Protocol::Udp) => Protocol::Udp,
            Ok(cri::Protocol::Sctp) => Protocol::Sctp,
            Err(_) => return Err(refuse(format!("protocol {} is unknown", mapping.protocol))),
        };
        let number =
            |field, number| u16::try_from(number).map_err(|_| refuse(format!("{field} {number} is no port")));
        let port = number("container_port", mapping.container_port)?;
        let host_port = number("host_port", mapping.host_port)?;
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => {
                Some(text.parse::<IpAddr>().map_err(|_| refuse(format!("host_ip {text:?} is no address")))?)
            }
        };
        match (host_port, port) {
            (0, _) => {}
            (_, 0) => return Err(refuse("container_port 0 cannot be what a host port leads to".into())),
            _ => found.push(HostPort { protocol, host_ip, host_port, port }),
        }
    }
    Ok(found)
}

/// The limits that a pod's annotations set.
///
/// # Errors
/// `Invalid`, naming the annotation.
pub fn bandwidth(annotations: &HashMap<String, String>) -> Result<Bandwidth, RequestError> {
    let rate = |name: &str| {
        let Some(text) = annotations.get(name) else { return Ok(None) };
        match quantity(text).filter(|rate| RATES.contains(rate)).and_then(|rate| u64::try_from(rate).ok()) {
            Some(rate) => Ok(Some(rate)),
            None => Err(RequestError::invalid(format!(
                "annotation {name} {text:?} is not a quantity of bits a second from 1k to 1P"
            ))),
        }
    };
    Ok(Bandwidth { ingress: rate(INGRESS)?, egress: rate(EGRESS)? })
}

/// A Kubernetes quantity (apimachinery, `resource.Quantity`), fractions rounded up. `None` when it is none, is negative
/// or too large to matter.
fn quantity(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() > 18 || whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let power = |base: u128, exponent: u32| base.checked_pow(exponent);
    let (multiplier, divisor) = match suffix {
        "" => (1, 1),
        "m" => (1, 1000),
        "k" => (power(1000, 1)?, 1),
        "M" => (power(1000, 2)?, 1),
        "G" => (power(1000, 3)?, 1),
        "T" => (power(1000, 4)?, 1),
        "P" => (power(1000, 5)?, 1),
        "Ki" => (power(1024, 1)?, 1),
        "Mi" => (power(1024, 2)?, 1),
        "Gi" => (power(1024, 3)?, 1),
        "Ti" => (power(1024, 4)?, 1),
        "Pi" => (power(1024, 5)?, 1),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let exponent: i32 = digits.parse().ok().filter(|exponent: &i32| exponent.abs() <= 18)?;
            let factor = power(10, exponent.unsigned_abs())?;
            if exponent < 0 { (1, factor) } else { (factor, 1) }
        }
    };
    let divisor = power(10, u32::try_from(fraction.len()).ok()?)?.checked_mul(divisor)?;
    Some(digits.checked_mul(multiplier)?.div_ceil(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, bits) in [
            ("1000", 1_000),
            ("1k", 1_000),
            ("1.5M", 1_500_000),
            ("10Mi", 10 << 20),
            ("1e6", 1_000_000),
            ("1E6", 1_000_000),
            ("12345e-1", 1_235),
            ("2500000m", 2_500),
            (".5G", 500_000_000),
            ("1P", 1_000_000_000_000_000),
        ] {
            assert_eq!(quantity(text), Some(bits), "{text}");
        }
        for text in ["", ".", "M", "-1M", "1 M", "1Mb", "1.2.3", "0x10", "1e", "1e99", "99999999999999999999"]
        {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn a_rate_out_of_bounds_is_refused_by_name() {
        let annotated = |text: &str| HashMap::from([(EGRESS.to_owned(), text.to_owned())]);
        assert_eq!(
            bandwidth(&annotated("1M")).unwrap(),
            Bandwidth { ingress: None, egress: Some(1_000_000) }
        );
        for text in ["999", "2P", "fast"] {
            let error = bandwidth(&annotated(text)).unwrap_err();
            assert!(error.text.starts_with("annotation kubernetes.io/egress-bandwidth"), "{error}");
        }
    }

    #[test]
    fn only_host_ports_reach_the_host() {
        let mapping = |container_port, host_port| cri::PortMapping {
            container_port,
            host_port,
            host_ip: "0.0.0.0".into(),
            ..Default::default()
        };
        let found = host_ports(&[mapping(80, 0), mapping(81, 8081)]).unwrap();
        assert_eq!(
            found,
            [HostPort {
                protocol: Protocol::Tcp,
                host_ip: "0.0.0.0".parse().ok(),
                host_port: 8081,
                port: 81
            }]
        );
        let error = host_ports(&[mapping(80, 0), mapping(0, 8081)]).unwrap_err();
        assert!(error.text.starts_with("port_mappings[1].container_port 0"), "{error}");
    }
}
