//! The verbose `info` maps: what `crictl inspect`, `inspectp` and `info`, and `crisp inspect` show beyond CRI's
//! own fields. Each value is one JSON object under the key that other runtimes use, so that tools find
//! `.info.pid` and `.info.runtimeSpec` where they look for them.

use std::{collections::HashMap, path::PathBuf};

use crisp_netns::namespaces::Pins;
use serde_json::{Value, json};

use crate::{
    node::Node,
    pod::{View, build},
    record::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord},
};

fn one(key: &str, value: &Value) -> HashMap<String, String> {
    [(key.to_owned(), value.to_string())].into()
}

/// Of the daemon. `config.stateDir` is a key that critest reads.
pub(super) fn status(node: &Node) -> HashMap<String, String> {
    let mut config = serde_json::to_value(&node.config).unwrap_or_default();
    if let Value::Object(map) = &mut config {
        map.insert("stateDir".to_owned(), json!(node.config.state));
        map.insert("rootDir".to_owned(), json!(node.config.root));
    }
    let mut info = one("config", &config);
    if node.config.network.mode != "bridge" {
        info.extend(one("cniconfig", &node.cni.describe()));
    }
    info.extend(one(
        "crisp",
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "instance": node.instance,
            "bootId": node.boot_id,
            "lsm": node.lsm.describe(),
            "cgroupControllers": node.cgroups.controllers().collect::<Vec<_>>(),
        }),
    ));
    info
}

/// Of a sandbox: `pid` is its monitor's, which lives in the pod's network, IPC and UTS namespaces.
pub(super) fn sandbox(node: &Node, view: &View) -> HashMap<String, String> {
    let record = &view.sandbox;
    let pins = build::pins(node, record);
    let linux = record.config.linux.as_ref();
    let alive = record.phase == SandboxPhase::Ready;
    one(
        "info",
        &json!({
            "pid": if alive { record.monitor_pid } else { 0 },
            "initPid": record.init.map(|init| init.pid),
            "hostname": record.hostname,
            "cgroupParent": record.cgroup_parent,
            "netNamespace": pins.net,
            "ipcNamespace": pins.ipc,
            "utsNamespace": pins.uts,
            "netNamespaceClosed": !alive,
            "network": record.network,
            "cniResult": cni_result(node, record),
            "runtimeSpec": runtime_spec(record, &pins),
            "overhead": linux.and_then(|linux| linux.overhead.as_ref()),
            "resources": linux.and_then(|linux| linux.resources.as_ref()),
            "config": record.config,
            "runtimeType": "crisp",
        }),
    )
}

/// As much of an OCI spec as a sandbox has, which has no process of its own: scripts look for the path of its network
/// namespace in `linux.namespaces`.
fn runtime_spec(record: &SandboxRecord, pins: &Pins) -> Value {
    let namespace =
        |kind: &str, path: &Option<PathBuf>| path.as_ref().map(|path| json!({"type": kind, "path": path}));
    let namespaces: Vec<_> = [("network", &pins.net), ("ipc", &pins.ipc), ("uts", &pins.uts)]
        .into_iter()
        .filter_map(|(kind, path)| namespace(kind, path))
        .collect();
    json!({
        "ociVersion": oci_spec::runtime::Spec::default().version(),
        "hostname": record.hostname,
        "annotations": record.config.annotations,
        "linux": {"cgroupsPath": record.cgroup_parent, "namespaces": namespaces},
    })
}

/// What the plugins have answered, from the ledger.
fn cni_result(node: &Node, record: &SandboxRecord) -> Option<Value> {
    if !record.is_in_cni_network() {
        return None;
    }
    node.cni.result(record.id.as_str())
}

/// Of a container: `pid` is its first process's, 0 when it has ended.
pub(super) fn container(node: &Node, record: &ContainerRecord) -> HashMap<String, String> {
    let pid = match record.phase {
        ContainerPhase::Exited(_) => 0,
        _ => record.process.map_or(0, |process| process.pid),
    };
    one(
        "info",
        &json!({
            "sandboxID": record.sandbox,
            "pid": pid,
            "cgroupPath": record.cgroup,
            "oom": record.oom,
            "cgroupRoot": node.config.cgroup.root,
            "snapshotKey": record.id,
            "snapshotter": "overlayfs",
            "runtimeType": "crisp",
            "config": record.config,
            "runtimeSpec": record.spec,
        }),
    )
}
