//! What CNI plugins are told of a pod: the arguments that Kubernetes' plugins know, and the values of capabilities.

use std::collections::HashMap;

use crisp_netns::cni::Attachment;
use crisp_proto::runtime::v1 as cri;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::INTERFACE;
use crate::{convert::ports, error::RequestError, record::SandboxRecord};

/// The attachment of a sandbox whose network namespace is pinned at `netns`, where kubelet wants addresses of `ranges`.
///
/// # Errors
/// An annotation or a port mapping cannot be passed on.
pub(crate) fn attachment(
    record: &SandboxRecord,
    netns: std::path::PathBuf,
    ranges: &[IpNet],
) -> Result<Attachment, RequestError> {
    let id = record.id.to_string();
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let args = [
        ("IgnoreUnknown", "1".to_owned()),
        ("K8S_POD_NAMESPACE", metadata.namespace),
        ("K8S_POD_NAME", metadata.name),
        ("K8S_POD_INFRA_CONTAINER_ID", id.clone()),
        ("K8S_POD_UID", metadata.uid),
    ];
    Ok(Attachment {
        container_id: id,
        netns,
        ifname: INTERFACE.to_owned(),
        args: args.map(|(key, value)| (key.to_owned(), value)).into(),
        capabilities: capabilities(&record.config, &record.cgroup_parent, ranges)?,
    })
}

fn capabilities(
    config: &cri::PodSandboxConfig,
    cgroup_parent: &str,
    ranges: &[IpNet],
) -> Result<Map<String, Value>, RequestError> {
    let mut values = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            values.insert(name.to_owned(), value);
        }
    };
    put("portMappings", port_mappings(&config.port_mappings)?);
    put("bandwidth", bandwidth(&config.annotations)?);
    // A list of sets of ranges: one address of each set.
    let sets: Vec<Value> = ranges.iter().map(|range| json!([{ "subnet": range }])).collect();
    put("ipRanges", (!sets.is_empty()).then_some(Value::Array(sets)));
    put("dns", config.dns_config.as_ref().and_then(dns));
    let annotations = (!config.annotations.is_empty()).then(|| json!(config.annotations));
    // The first is containerd's, the second what the conventions of CNI say.
    put("io.kubernetes.cri.pod-annotations", annotations.clone());
    put("podAnnotations", annotations);
    put("cgroupPath", (!cgroup_parent.is_empty()).then(|| json!(cgroup_parent)));
    Ok(values)
}

fn port_mappings(mappings: &[cri::PortMapping]) -> Result<Option<Value>, RequestError> {
    let mappings: Vec<Value> = ports::host_ports(mappings)?
        .iter()
        .map(|port| {
            json!({
                "hostPort": port.host_port,
                "containerPort": port.port,
                "protocol": port.protocol.to_string(),
                "hostIP": port.host_ip.map(|address| address.to_string()).unwrap_or_default(),
            })
        })
        .collect();
    Ok((!mappings.is_empty()).then_some(Value::Array(mappings)))
}

/// Bits that may go at once: as many as the plugin takes, which is what other runtimes ask for.
const BURST: u64 = u32::MAX as u64;

fn bandwidth(annotations: &HashMap<String, String>) -> Result<Option<Value>, RequestError> {
    let limits = ports::bandwidth(annotations)?;
    let mut values = Map::new();
    for (direction, rate) in [("ingress", limits.ingress), ("egress", limits.egress)] {
        if let Some(rate) = rate {
            values.insert(format!("{direction}Rate"), json!(rate));
            values.insert(format!("{direction}Burst"), json!(BURST));
        }
    }
    Ok((!values.is_empty()).then_some(Value::Object(values)))
}

fn dns(config: &cri::DnsConfig) -> Option<Value> {
    let empty = config.servers.is_empty() && config.searches.is_empty() && config.options.is_empty();
    let value = json!({
        "servers": config.servers,
        "searches": config.searches,
        "options": config.options,
    });
    (!empty).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_becomes_a_capability() {
        let config = cri::PodSandboxConfig::default();
        assert_eq!(capabilities(&config, "/p", &[]).map(Value::Object), Ok(json!({ "cgroupPath": "/p" })));
        let port = |host_port| cri::PortMapping { host_port, container_port: 80, ..Default::default() };
        let config = cri::PodSandboxConfig {
            port_mappings: vec![port(0), port(8080)],
            dns_config: Some(cri::DnsConfig { servers: vec!["1.1.1.1".into()], ..Default::default() }),
            annotations: [("kubernetes.io/ingress-bandwidth".to_owned(), "1M".to_owned())].into(),
            ..Default::default()
        };
        let said = Value::Object(capabilities(&config, "", &["10.244.7.0/24".parse().unwrap()]).unwrap());
        assert_eq!(
            said["portMappings"],
            json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "" }])
        );
        assert_eq!(said["ipRanges"], json!([[{ "subnet": "10.244.7.0/24" }]]));
        assert_eq!(said["dns"]["servers"], json!(["1.1.1.1"]));
        assert_eq!(said["bandwidth"]["ingressRate"], json!(1_000_000));
        assert_eq!(said["podAnnotations"], said["io.kubernetes.cri.pod-annotations"]);
        assert!(said.get("cgroupPath").is_none());
    }
}
