//! The pods of the comparison, and those containers for which the pod is what matters.
//!
//! Must not know: what comes out of it.

use std::path::Path;

use crisp_proto::runtime::v1 as cri;

use super::super::images::PLAIN;
use super::{IDENTITY, Pod, SURROUNDINGS, Scenario, apparmor, scenario, security, uid, usual};
use crate::cri::{bind, words};

/// All pods.
pub const PODS: &[Pod] = &[
    Pod { name: "first", change: |_| {}, scenarios: IDENTITY },
    Pod { name: "second", change: |_| {}, scenarios: SURROUNDINGS },
    Pod {
        name: "privileged",
        change: |pod| linux(pod).security_context.get_or_insert_default().privileged = true,
        scenarios: PRIVILEGED,
    },
    Pod {
        name: "shared",
        change: |pod| namespaces(pod).pid = cri::NamespaceMode::Pod.into(),
        scenarios: SHARED,
    },
    Pod {
        name: "configured",
        change: |pod| {
            pod.hostname = "a-name-of-its-own".to_owned();
            pod.dns_config = Some(cri::DnsConfig {
                servers: words(&["10.0.0.10", "fd00::10"]),
                searches: words(&["default.svc.cluster.local", "cluster.local"]),
                options: words(&["ndots:5", "edns0"]),
            });
            let sysctls = [
                ("kernel.shm_rmid_forced", "1"),
                ("kernel.msgmax", "9000"),
                ("fs.mqueue.msg_max", "20"),
                ("net.ipv4.ip_unprivileged_port_start", "50"),
                ("net.ipv4.ping_group_range", "0 100"),
                ("net.core.somaxconn", "99"),
            ];
            linux(pod).sysctls =
                sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        },
        scenarios: CONFIGURED,
    },
    Pod {
        name: "host-network",
        change: |pod| {
            // The host's, which is what kubelet sends.
            pod.hostname.clear();
            namespaces(pod).network = cri::NamespaceMode::Node.into();
        },
        scenarios: HOST_NETWORK,
    },
    Pod {
        name: "host",
        change: |pod| {
            pod.hostname.clear();
            linux(pod).security_context.get_or_insert_default().privileged = true;
            let options = namespaces(pod);
            options.network = cri::NamespaceMode::Node.into();
            options.pid = cri::NamespaceMode::Node.into();
            options.ipc = cri::NamespaceMode::Node.into();
        },
        scenarios: HOST,
    },
];

fn linux(pod: &mut cri::PodSandboxConfig) -> &mut cri::LinuxPodSandboxConfig {
    pod.linux.get_or_insert_default()
}

fn namespaces(pod: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    linux(pod).security_context.get_or_insert_default().namespace_options.get_or_insert_default()
}

fn own(config: &mut cri::ContainerConfig) -> &mut cri::NamespaceOption {
    security(config).namespace_options.get_or_insert_default()
}

fn privileged(config: &mut cri::ContainerConfig) {
    let security = security(config);
    security.privileged = true;
    // kubelet masks nothing there.
    security.masked_paths.clear();
    security.readonly_paths.clear();
}

const PRIVILEGED: &[Scenario] = &[
    scenario!(privileged, |config, _| privileged(config)),
    scenario!(privileged_user, |config, _| {
        privileged(config);
        security(config).run_as_user = uid(1000);
        security(config).readonly_rootfs = true;
    }),
    scenario!(privileged_mounts, |config, data| {
        privileged(config);
        config.mounts = vec![cri::Mount {
            propagation: cri::MountPropagation::PropagationBidirectional.into(),
            ..bind(&data.join("folder"), "/data")
        }];
    }),
    scenario!(unprivileged_beside_privileged, |_, _| {}),
];

fn shared(config: &mut cri::ContainerConfig) {
    own(config).pid = cri::NamespaceMode::Pod.into();
}

const SHARED: &[Scenario] = &[
    // Without a profile that would keep it from looking into others.
    scenario!(shared_pids, |config, _| {
        shared(config);
        apparmor(config, cri::security_profile::ProfileType::Unconfined);
    }),
    scenario!(shared_pids_second, |config, _| {
        shared(config);
        security(config).run_as_user = uid(1000);
    }),
    scenario!(own_pids_beside_shared, |_, _| {}),
];

const CONFIGURED: &[Scenario] = &[
    scenario!(configured, |_, _| {}),
    scenario!(configured_user, |config, _| security(config).run_as_user = uid(1000)),
];

const HOST_NETWORK: &[Scenario] =
    &[scenario!(host_network, |config, _| own(config).network = cri::NamespaceMode::Node.into())];

fn all_of_the_host(config: &mut cri::ContainerConfig) {
    let options = own(config);
    options.network = cri::NamespaceMode::Node.into();
    options.pid = cri::NamespaceMode::Node.into();
    options.ipc = cri::NamespaceMode::Node.into();
}

const HOST: &[Scenario] = &[
    scenario!(host_namespaces, |config, _| all_of_the_host(config)),
    scenario!(host_namespaces_privileged, |config, _| {
        all_of_the_host(config);
        privileged(config);
    }),
];
