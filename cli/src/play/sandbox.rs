//! A pod as the configuration of its sandbox. No cgroup parent is sent: without a kubelet there is nobody who makes and
//! limits a pod's cgroup beforehand, so the runtime's default parent is right.

use anyhow::Result;
use crisp_proto::runtime::v1 as cri;

use super::{
    folder::{self, Folder},
    network, security,
};
use crate::{
    manifest::{Pod, model::Port},
    target::label,
};

/// The configuration for RunPodSandbox.
///
/// # Errors
/// The host's resolver settings are needed and cannot be read.
pub(super) fn config(pod: &Pod, uid: &str, folder: &Folder) -> Result<cri::PodSandboxConfig> {
    let text = |text: &str| text.to_owned();
    let mut labels = pod.metadata.labels.clone();
    labels.insert(text(label::POD_NAME), pod.metadata.name.clone());
    labels.insert(text(label::POD_NAMESPACE), text(pod.namespace()));
    labels.insert(text(label::POD_UID), text(uid));
    let mut annotations = pod.metadata.annotations.clone();
    annotations.insert(text(folder::ANNOTATION), folder.path().display().to_string());
    let sysctls = &pod.spec.security_context.sysctls;
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod.metadata.name.clone(),
            uid: text(uid),
            namespace: text(pod.namespace()),
            attempt: 0,
        }),
        hostname: network::hostname(pod),
        log_directory: folder.logs().display().to_string(),
        dns_config: network::dns(pod)?,
        port_mappings: ports(pod),
        labels: labels.into_iter().collect(),
        annotations: annotations.into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(security::sandbox(pod)),
            sysctls: sysctls.iter().map(|one| (one.name.clone(), one.value.clone())).collect(),
            ..Default::default()
        }),
        windows: None,
    })
}

/// Ports of the host only: a container's own ports need nothing. On the host's network they are the host's anyway.
fn ports(pod: &Pod) -> Vec<cri::PortMapping> {
    if pod.spec.host_network {
        return Vec::new();
    }
    let all = pod.all_containers().flat_map(|container| &container.ports);
    all.filter_map(|port| Some(mapping(port, port.host_port?))).collect()
}

fn mapping(port: &Port, host_port: i64) -> cri::PortMapping {
    let protocol = match port.protocol.as_deref() {
        Some("UDP") => cri::Protocol::Udp,
        Some("SCTP") => cri::Protocol::Sctp,
        _ => cri::Protocol::Tcp,
    };
    // The range was checked with the manifest.
    let number = |port: i64| i32::try_from(port).unwrap_or_default();
    cri::PortMapping {
        protocol: protocol.into(),
        container_port: number(port.container_port),
        host_port: number(host_port),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    #[test]
    fn a_pod_is_found_again_by_kubelets_labels() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {run: nginx}, annotations: {a: b}}\nspec:\n  containers:\n  - name: c\n    image: i\n    ports: [{containerPort: 80}, {containerPort: 53, hostPort: 5353, protocol: UDP, hostIP: 127.0.0.1}]\n  securityContext: {sysctls: [{name: net.core.somaxconn, value: \"9\"}]}\n";
        let pod = manifest::parse(text).unwrap().remove(0);
        let base = tempfile::tempdir().unwrap();
        let folder = Folder::create(base.path(), &pod, "uid-1", None).unwrap();
        let config = config(&pod, "uid-1", &folder).unwrap();
        assert_eq!(config.hostname, "web");
        assert_eq!(config.labels.len(), 4);
        assert_eq!(config.labels["io.kubernetes.pod.uid"], "uid-1");
        assert_eq!(config.labels["run"], "nginx");
        assert_eq!(config.annotations["a"], "b");
        assert_eq!(config.annotations[folder::ANNOTATION], folder.path().display().to_string());
        assert_eq!(config.log_directory, folder.path().join("logs").display().to_string());
        let port = cri::PortMapping {
            protocol: 1,
            container_port: 53,
            host_port: 5353,
            host_ip: "127.0.0.1".into(),
        };
        assert_eq!(config.port_mappings, [port]);
        let linux = config.linux.unwrap();
        assert_eq!((linux.cgroup_parent.as_str(), linux.sysctls["net.core.somaxconn"].as_str()), ("", "9"));
        assert_eq!(config.dns_config, None);
    }
}
