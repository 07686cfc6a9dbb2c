//! Fields of a spec that are set and not implemented.
//!
//! Must not know: the fields that are.

use crate::error::PlanError;
use oci_spec::runtime::{Hooks, Linux, Process, Spec};

/// The first unsupported field as an error.
pub(super) fn unsupported(spec: &Spec) -> Result<(), PlanError> {
    let hooks = spec.hooks().as_ref().is_some_and(any_hook);
    let pod = "the pod's UTS namespace has it";
    refuse(&[
        ("hooks", hooks, ""),
        ("hostname", spec.hostname().is_some(), pod),
        ("domainname", spec.domainname().is_some(), pod),
        ("solaris", spec.solaris().is_some(), ""),
        ("windows", spec.windows().is_some(), ""),
        ("vm", spec.vm().is_some(), ""),
        ("zos", spec.zos().is_some(), ""),
        ("uidMappings", filled(spec.uid_mappings()), ""),
        ("gidMappings", filled(spec.gid_mappings()), ""),
    ])?;
    spec.linux().as_ref().map_or(Ok(()), linux)
}

fn linux(linux: &Linux) -> Result<(), PlanError> {
    let label = linux.mount_label().as_deref().unwrap_or_default();
    refuse(&[
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|map| !map.is_empty()), ""),
        ("linux.sysctl", linux.sysctl().as_ref().is_some_and(|map| !map.is_empty()), ""),
        ("linux.mountLabel", !label.is_empty(), label),
        ("linux.intelRdt", linux.intel_rdt().is_some(), ""),
        ("linux.memoryPolicy", linux.memory_policy().is_some(), ""),
        ("linux.personality", linux.personality().is_some(), ""),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|map| !map.is_empty()), ""),
    ])
}

/// The first unsupported field of a process; `at` is its own place in the spec.
pub(super) fn process(process: &Process, at: &str) -> Result<(), PlanError> {
    let label = process.selinux_label().as_deref().unwrap_or_default();
    let username = process.user().username().as_deref().unwrap_or_default();
    let fields = [
        ("consoleSize", process.console_size().is_some(), ""),
        ("commandLine", process.command_line().is_some(), ""),
        ("selinuxLabel", !label.is_empty(), label),
        ("ioPriority", process.io_priority().is_some(), ""),
        ("scheduler", process.scheduler().is_some(), ""),
        ("execCPUAffinity", process.exec_cpu_affinity().is_some(), ""),
        ("user.username", !username.is_empty(), username),
    ];
    match fields.iter().find(|(_, set, _)| *set) {
        Some((field, _, value)) => Err(PlanError::unsupported(format!("{at}.{field}"), *value)),
        None => Ok(()),
    }
}

fn refuse(fields: &[(&str, bool, &str)]) -> Result<(), PlanError> {
    match fields.iter().find(|(_, set, _)| *set) {
        Some((field, _, value)) => Err(PlanError::unsupported(*field, *value)),
        None => Ok(()),
    }
}

fn filled<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn any_hook(hooks: &Hooks) -> bool {
    [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ]
    .into_iter()
    .any(filled)
}
