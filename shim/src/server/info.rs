//! The verbose `info` maps: what `crictl inspect`, `inspectp` and `info`, and `crisp inspect` show beyond CRI's
//! own fields. Each value is one JSON object under the key that other runtimes use, so that tools find
//! `.info.pid` and `.info.runtimeSpec` where they look for them.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::{
    node::Node,
    pod::{View, build},
    record::{ContainerPhase, ContainerRecord, SandboxPhase},
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
            "overhead": linux.and_then(|linux| linux.overhead.as_ref()),
            "resources": linux.and_then(|linux| linux.resources.as_ref()),
            "config": record.config,
            "runtimeType": "crisp",
        }),
    )
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
