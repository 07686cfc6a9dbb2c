//! What the runtime says of itself and is told of the node: version, conditions, features, kubelet's settings.

use crisp_proto::runtime::v1 as cri;

use super::info;
use crate::{cgroups::parent::Driver, node::Node};

/// The name that Kubernetes shows: `crisp://<container id>`.
const RUNTIME_NAME: &str = "crisp";

pub(super) fn version() -> cri::VersionResponse {
    cri::VersionResponse {
        version: "0.1.0".to_owned(),
        runtime_name: RUNTIME_NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

/// Whoever can ask is served; the network may have to wait for somebody's list or plugins.
pub(super) async fn status(node: &Node, verbose: bool) -> cri::StatusResponse {
    let runtime = condition("RuntimeReady", Ok(()));
    let network = condition("NetworkReady", node.cni.ready().await);
    let user_namespaces = node.user_namespaces.is_ok();
    let features = cri::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces };
    let handler = cri::RuntimeHandler { name: String::new(), features: Some(features) };
    cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions: vec![runtime, network] }),
        info: if verbose { info::status(node) } else { Default::default() },
        runtime_handlers: vec![handler],
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: user_namespaces,
        }),
    }
}

/// `reason` is a word for programs, the message for people.
fn condition(kind: &str, ready: Result<(), String>) -> cri::RuntimeCondition {
    cri::RuntimeCondition {
        r#type: kind.to_owned(),
        status: ready.is_ok(),
        reason: if ready.is_ok() { String::new() } else { "NetworkPluginNotReady".to_owned() },
        message: ready.err().unwrap_or_default(),
    }
}

pub(super) fn config(node: &Node) -> cri::RuntimeConfigResponse {
    let driver = match Driver::of(&node.config.cgroup) {
        Driver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        Driver::Systemd => cri::CgroupDriver::Systemd,
    };
    let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
    cri::RuntimeConfigResponse { linux: Some(linux) }
}
