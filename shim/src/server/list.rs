//! Which pods and containers a list gives: from memory, waiting for nothing.

use crisp_proto::runtime::v1 as cri;

use crate::{convert::status as convert, node::Node};

/// The sandboxes that fit; no filter: all.
pub(super) fn sandboxes(node: &Node, filter: Option<cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
    let filter = filter.unwrap_or_default();
    let records = node.pods().into_iter().map(|pod| pod.sandbox());
    let fitting = records.filter(|record| convert::sandbox_fits(record, &filter));
    fitting.map(|record| convert::sandbox(&record)).collect()
}

/// The containers that fit; no filter: all.
pub(super) fn containers(node: &Node, filter: Option<cri::ContainerFilter>) -> Vec<cri::Container> {
    let filter = filter.unwrap_or_default();
    let records = node.pods().into_iter().flat_map(|pod| pod.view().containers.into_values());
    let fitting = records.filter(|record| convert::container_fits(record, &filter));
    fitting.map(|record| convert::container(&record)).collect()
}
