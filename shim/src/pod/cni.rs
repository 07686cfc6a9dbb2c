//! A pod's place in the network: whose it is, and, where it is a CNI network's, how the pod gets it and gives it back.

use std::{fs, path::PathBuf};

use crisp_netns::namespaces;

use super::build;
use crate::{
    cni::{INTERFACE, arguments},
    convert::sandbox::SandboxPlan,
    error::{RequestError, Stage, chain},
    node::Node,
    record::{CniRecord, NetworkRecord, SandboxRecord},
};

/// Decides, for a pod that is being made, on the network that is its for life.
pub(super) fn place(
    node: &Node,
    record: &SandboxRecord,
    plan: &SandboxPlan,
) -> Result<Option<NetworkRecord>, RequestError> {
    if plan.host_network {
        return Ok(None);
    }
    match node.cni.choose().map_err(|error| error.at("network"))? {
        Some(list) => {
            let cni = CniRecord { network: list.name, addresses: Vec::new() };
            Ok(Some(NetworkRecord { cni: Some(cni), ..NetworkRecord::default() }))
        }
        None => build::lease(node, record).map(Some),
    }
}

/// ADD. Gives the network as it is then. Blocks as long as plugins take.
pub(super) fn attach(node: &Node, record: &SandboxRecord) -> Result<NetworkRecord, RequestError> {
    let Some(list) = node.cni.choose().map_err(|error| error.at("network"))? else {
        return Err(RequestError::unknown("network: the CNI network list has gone while the pod was made"));
    };
    let pin = build::pins(node, record).net.unwrap_or_default();
    let attachment = arguments::attachment(record, pin, &node.pod_cidr.ranges())?;
    let network = list.name.clone();
    let result = node.cni.cni().attach(&list, attachment).stage("network")?;
    let cni = CniRecord { network, addresses: result.addresses };
    let network = NetworkRecord { cni: Some(cni), ..NetworkRecord::default() };
    let attached = SandboxRecord { network: Some(network.clone()), ..record.clone() };
    // Written once without addresses, which are known only now; in place, so that its owner stays.
    fs::write(node.state.pod(&record.id).file("hosts"), build::hosts(&attached)).stage("write hosts")?;
    Ok(network)
}

/// DEL, with what is on file; nothing on file: nothing to do. The namespace must be pinned still, if it is there.
pub(super) fn detach(node: &Node, record: &SandboxRecord) -> Result<(), RequestError> {
    if !record.is_in_cni_network() {
        return Ok(());
    }
    let pin: Option<PathBuf> = build::pins(node, record).net;
    let there = pin.is_some_and(|pin| namespaces::open_pin(&pin).is_ok());
    let detached = node.cni.cni().detach(record.id.as_str(), INTERFACE, there);
    detached.map_err(|error| RequestError::unknown(format!("network: {}", chain(&error))))
}
