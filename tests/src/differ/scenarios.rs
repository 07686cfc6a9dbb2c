//! What both runtimes are asked for: pods, and in each of them containers that differ in one thing from a plain one.
//!
//! Must not know: what comes out of it.

mod pods;

use std::path::Path;

use crisp_proto::runtime::v1 as cri;

use super::images::{PLAIN, USER};
use crate::cri::{bind, words};
use crate::place::Need;

pub use pods::PODS;

/// A pod, and the containers in it in the order in which they are started.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    /// Its name.
    pub name: &'static str,
    /// What is special about it.
    pub change: fn(&mut cri::PodSandboxConfig),
    /// Its containers.
    pub scenarios: &'static [Scenario],
}

/// A container.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Its image.
    pub image: &'static str,
    /// What the kernel must have for it.
    pub needs: &'static [Need],
    /// Turns a configuration with nothing in it into the scenario's; the folder holds what
    /// it may mount: `folder`, `shm`, `hosts`, `profile.json`.
    pub change: fn(&mut cri::ContainerConfig, &Path),
}

/// The Localhost profile: one call fails with an error of its own, one ends the process.
pub const PROFILE: &str = r#"{
  "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
  "syscalls": [
    {"names": ["chroot"], "action": "SCMP_ACT_ERRNO"},
    {"names": ["kcmp"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
    {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 262144, "op": "SCMP_CMP_EQ"}]}
  ]
}"#;

/// What kubelet sends unless a pod asks for unmasked ones.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Security context of a configuration.
fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn resources(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// As kubelet sends it: the probe as the program, the usual paths masked.
fn usual(config: &mut cri::ContainerConfig) {
    config.command = words(&["/probe", "--stay"]);
    let security = security(config);
    security.masked_paths = words(MASKED);
    security.readonly_paths = words(READ_ONLY);
}

fn seccomp(config: &mut cri::ContainerConfig, kind: cri::security_profile::ProfileType, path: &str) {
    let profile = cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() };
    security(config).seccomp = Some(profile);
}

fn apparmor(config: &mut cri::ContainerConfig, kind: cri::security_profile::ProfileType) {
    let profile = cri::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() };
    security(config).apparmor = Some(profile);
}

fn capabilities(config: &mut cri::ContainerConfig, add: &[&str], drop: &[&str]) {
    let change = cri::Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        ..Default::default()
    };
    security(config).capabilities = Some(change);
}

fn uid(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

fn variable(key: &str, value: &str) -> cri::KeyValue {
    cri::KeyValue { key: key.to_owned(), value: value.into() }
}

/// A scenario with the usual settings and a change to them.
macro_rules! scenario {
    ($name:ident, $change:expr) => {
        scenario!($name, PLAIN, [], $change)
    };
    ($name:ident, $image:expr, $needs:expr, $change:expr) => {
        Scenario {
            name: stringify!($name),
            image: $image,
            needs: &$needs,
            change: |config, data| {
                usual(config);
                let change: fn(&mut cri::ContainerConfig, &Path) = $change;
                change(config, data);
            },
        }
    };
}
use scenario;

/// Users, groups, privileges.
const IDENTITY: &[Scenario] = &[
    scenario!(plain, |_, _| {}),
    Scenario {
        name: "bare",
        image: PLAIN,
        needs: &[],
        change: |config, _| config.command = words(&["/probe", "--stay"]),
    },
    scenario!(run_as_user, |config, _| security(config).run_as_user = uid(1000)),
    scenario!(run_as_group, |config, _| {
        security(config).run_as_user = uid(1234);
        security(config).run_as_group = uid(777);
    }),
    scenario!(run_as_username, |config, _| security(config).run_as_username = "other".to_owned()),
    scenario!(supplemental_groups, |config, _| {
        security(config).run_as_user = uid(1234);
        security(config).supplemental_groups = vec![55, 29, 1234, 55];
    }),
    scenario!(unknown_user, |config, _| security(config).run_as_username = "nobody-knows".to_owned()),
    scenario!(capabilities_added, |config, _| capabilities(config, &["NET_ADMIN", "cap_sys_ptrace"], &[])),
    scenario!(capabilities_dropped, |config, _| {
        capabilities(config, &["NET_BIND_SERVICE"], &["ALL"]);
        security(config).run_as_user = uid(1000);
    }),
    scenario!(capabilities_all, |config, _| capabilities(config, &["ALL"], &["NET_RAW", "MKNOD"])),
    scenario!(no_new_privileges, |config, _| security(config).no_new_privs = true),
    scenario!(restricted, |config, _| {
        capabilities(config, &[], &["ALL"]);
        seccomp(config, cri::security_profile::ProfileType::RuntimeDefault, "");
        let security = security(config);
        security.run_as_user = uid(1000);
        security.no_new_privs = true;
        security.readonly_rootfs = true;
    }),
    scenario!(seccomp_default, |config, _| {
        seccomp(config, cri::security_profile::ProfileType::RuntimeDefault, "");
    }),
    scenario!(seccomp_default_with_capabilities, |config, _| {
        seccomp(config, cri::security_profile::ProfileType::RuntimeDefault, "");
        capabilities(
            config,
            &["SYS_ADMIN", "SYS_PTRACE", "BPF", "SYS_TIME", "DAC_READ_SEARCH", "SYSLOG"],
            &[],
        );
    }),
    scenario!(seccomp_unconfined, |config, _| {
        seccomp(config, cri::security_profile::ProfileType::Unconfined, "");
    }),
    scenario!(seccomp_localhost, |config, data| {
        let profile = data.join("profile.json").display().to_string();
        seccomp(config, cri::security_profile::ProfileType::Localhost, &profile);
    }),
    scenario!(apparmor_default, PLAIN, [Need::AppArmor], |config, _| {
        apparmor(config, cri::security_profile::ProfileType::RuntimeDefault);
    }),
    scenario!(apparmor_unconfined, PLAIN, [Need::AppArmor], |config, _| {
        apparmor(config, cri::security_profile::ProfileType::Unconfined);
    }),
];

/// Programs, files, limits.
const SURROUNDINGS: &[Scenario] = &[
    scenario!(environment, |config, _| {
        config.envs = vec![
            variable("CHANGED", "request"),
            variable("ADDED", "first"),
            variable("ADDED", "second"),
            variable("WITH", "a = sign and \"quotes\""),
            variable("NOTHING", ""),
        ];
    }),
    scenario!(working_directory, |config, _| config.working_dir = "/work/deep".to_owned()),
    scenario!(image_settings, USER, [], |config, _| config.command.clear()),
    scenario!(image_with_arguments, USER, [], |config, _| {
        config.command.clear();
        config.args = words(&["of the request"]);
    }),
    scenario!(command_over_image, USER, [], |_, _| {}),
    scenario!(missing_program, |config, _| config.command = words(&["/no/such/program"])),
    scenario!(masked_otherwise, |config, _| {
        security(config).masked_paths =
            words(&["/proc/iomem", "/sys/fs/cgroup", "/etc/passwd", "/no/such/path"]);
        security(config).readonly_paths = words(&["/proc/sys/net", "/tmp", "/etc/group", "/no/such/path"]);
    }),
    scenario!(read_only_root, |config, _| security(config).readonly_rootfs = true),
    scenario!(mounts, |config, data| {
        let folder = data.join("folder");
        let read_only = cri::Mount { readonly: true, ..bind(&folder, "/read-only") };
        let follows = cri::Mount {
            propagation: cri::MountPropagation::PropagationHostToContainer.into(),
            ..bind(&folder, "/follows")
        };
        config.mounts = vec![
            bind(&folder, "/data"),
            read_only,
            follows,
            bind(&folder.join("file"), "/file"),
            bind(&folder, "/new/place/for/it"),
        ];
    }),
    scenario!(mounts_over_the_runtimes, |config, data| {
        config.mounts = vec![bind(&data.join("hosts"), "/etc/hosts"), bind(&data.join("shm"), "/dev/shm")];
    }),
    scenario!(limits, PLAIN, [Need::Controllers], |config, _| {
        let resources = resources(config);
        resources.cpu_period = 100_000;
        resources.cpu_quota = 50_000;
        resources.cpu_shares = 512;
        resources.memory_limit_in_bytes = 64 << 20;
        resources.oom_score_adj = 500;
        resources.cpuset_cpus = "0".to_owned();
    }),
    scenario!(more_limits, PLAIN, [Need::Controllers], |config, _| {
        let resources = resources(config);
        resources.cpu_shares = 2;
        resources.memory_limit_in_bytes = 64 << 20;
        resources.memory_swap_limit_in_bytes = 96 << 20;
        resources.oom_score_adj = -900;
        let huge = cri::HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 };
        resources.hugepage_limits = vec![huge];
        let unified = [("memory.high", "50331648"), ("pids.max", "100"), ("cpu.max", "20000 100000")];
        resources.unified = unified.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    }),
    scenario!(terminal, |config, _| {
        config.tty = true;
        config.stdin = true;
    }),
    scenario!(standard_input, |config, _| {
        config.stdin = true;
        config.stdin_once = true;
    }),
    scenario!(devices, |config, _| {
        let device = |host: &str, container: &str, permissions: &str| cri::Device {
            host_path: host.to_owned(),
            container_path: container.to_owned(),
            permissions: permissions.to_owned(),
        };
        config.devices =
            vec![device("/dev/kmsg", "/dev/probe-kmsg", "r"), device("/dev/zero", "/dev/probe/zero", "rwm")];
    }),
];
