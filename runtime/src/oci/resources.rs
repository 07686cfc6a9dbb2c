//! `linux.resources` of a spec as cgroup limits and device rules.
//!
//! Must not know: cgroup files, BPF.

use crate::cgroup::{DeviceAccess, DeviceKind, DeviceRule, Resources};
use crate::error::PlanError;
use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources};

/// The limits that a spec asks for. `devices` are not among them: whoever makes the cgroup applies [`device_rules`].
///
/// # Errors
/// [`PlanError::Unsupported`] for a field that is set and has no counterpart in cgroup v2, or is not implemented.
pub fn resources(spec: &LinuxResources) -> Result<Resources, PlanError> {
    let mut limits = Resources::default();
    let unsupported = [
        ("blockIO", spec.block_io().is_some()),
        ("network", spec.network().is_some()),
        ("rdma", spec.rdma().as_ref().is_some_and(|map| !map.is_empty())),
    ];
    refuse("linux.resources", &unsupported)?;
    if let Some(spec) = spec.memory() {
        memory(spec, &mut limits)?;
    }
    if let Some(spec) = spec.cpu() {
        cpu(spec, &mut limits)?;
    }
    if let Some(spec) = spec.pids() {
        limits.pids = spec.limit();
    }
    for page in spec.hugepage_limits().as_deref().unwrap_or_default() {
        let bytes = u64::try_from(page.limit())
            .map_err(|_| PlanError::invalid("linux.resources.hugepageLimits", "negative"))?;
        limits.hugepages.push((page.page_size().clone(), bytes));
    }
    let unified = spec.unified().iter().flatten();
    limits.unified = unified.map(|(file, value)| (file.clone(), value.clone())).collect();
    Ok(limits)
}

/// `linux.resources.devices` as rules for [`crate::cgroup::DeviceProgram`]. An empty list allows nothing.
///
/// # Errors
/// [`PlanError::Invalid`] for a type that is no device's, a negative number other than the wildcard -1, and access that
/// is not made of `r`, `w` and `m`.
pub fn device_rules(list: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, PlanError> {
    list.iter().enumerate().map(|(index, rule)| device_rule(index, rule)).collect()
}

fn device_rule(index: usize, rule: &LinuxDeviceCgroup) -> Result<DeviceRule, PlanError> {
    let invalid = |field: &str, reason: String| {
        PlanError::invalid(format!("linux.resources.devices[{index}].{field}"), reason)
    };
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(DeviceKind::Block),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(DeviceKind::Character),
        Some(LinuxDeviceType::P) => return Err(invalid("type", "a FIFO is no device".to_owned())),
    };
    let number = |field: &str, number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => {
            u32::try_from(number).map(Some).map_err(|_| invalid(field, format!("device number {number}")))
        }
    };
    let text = rule.access().as_deref().unwrap_or_default();
    let letter = |letter| match letter {
        'r' => Ok(DeviceAccess::READ),
        'w' => Ok(DeviceAccess::WRITE),
        'm' => Ok(DeviceAccess::MKNOD),
        _ => Err(invalid("access", format!("{text:?} is not made of r, w and m"))),
    };
    let access = text
        .chars()
        .try_fold(DeviceAccess::empty(), |access, one| Ok::<_, PlanError>(access | letter(one)?))?;
    let (major, minor) = (number("major", rule.major())?, number("minor", rule.minor())?);
    Ok(DeviceRule { allow: rule.allow(), kind, major, minor, access })
}

fn memory(spec: &LinuxMemory, limits: &mut Resources) -> Result<(), PlanError> {
    let unsupported = [
        ("reservation", spec.reservation().is_some_and(|value| value != 0)),
        ("kernel", spec.kernel().is_some_and(|value| value != 0)),
        ("kernelTCP", spec.kernel_tcp().is_some_and(|value| value != 0)),
        ("swappiness", spec.swappiness().is_some()),
        ("disableOOMKiller", spec.disable_oom_killer().unwrap_or(false)),
        ("checkBeforeUpdate", spec.check_before_update().unwrap_or(false)),
    ];
    refuse("linux.resources.memory", &unsupported)?;
    limits.memory_limit = spec.limit().unwrap_or(0);
    limits.memory_swap = spec.swap().unwrap_or(0);
    Ok(())
}

fn cpu(spec: &LinuxCpu, limits: &mut Resources) -> Result<(), PlanError> {
    let unsupported = [
        ("idle", spec.idle().is_some_and(|value| value != 0)),
        ("burst", spec.burst().is_some_and(|value| value != 0)),
        ("realtimeRuntime", spec.realtime_runtime().is_some_and(|value| value != 0)),
        ("realtimePeriod", spec.realtime_period().is_some_and(|value| value != 0)),
    ];
    refuse("linux.resources.cpu", &unsupported)?;
    limits.cpu_shares = spec.shares().unwrap_or(0);
    limits.cpu_quota = spec.quota().unwrap_or(0);
    limits.cpu_period = spec.period().unwrap_or(0);
    limits.cpuset_cpus = spec.cpus().clone().unwrap_or_default();
    limits.cpuset_mems = spec.mems().clone().unwrap_or_default();
    Ok(())
}

fn refuse(at: &str, fields: &[(&str, bool)]) -> Result<(), PlanError> {
    match fields.iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(PlanError::unsupported(format!("{at}.{field}"), "")),
        None => Ok(()),
    }
}
