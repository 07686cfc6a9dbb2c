//! `LinuxContainerResources` -> what `runtime::cgroup` writes, and how an update changes what is in force.

use crisp_proto::runtime::v1 as cri;
use crisp_runtime::cgroup::Resources;

use crate::error::RequestError;

/// The limits of a request, in the words of the cgroup room. Zero means "leave" throughout (CRI).
///
/// # Errors
/// `Invalid`, naming the field.
pub fn resources(wanted: Option<&cri::LinuxContainerResources>) -> Result<Resources, RequestError> {
    let Some(wanted) = wanted else { return Ok(Resources::default()) };
    let field = |name: &str, value: i64| {
        RequestError::invalid(format!("linux.resources.{name}: {value} is not possible"))
    };
    if wanted.cpu_shares < 0 {
        return Err(field("cpu_shares", wanted.cpu_shares));
    }
    if wanted.cpu_period < 0 {
        return Err(field("cpu_period", wanted.cpu_period));
    }
    if wanted.cpu_quota < -1 {
        return Err(field("cpu_quota", wanted.cpu_quota));
    }
    if wanted.memory_limit_in_bytes < -1 {
        return Err(field("memory_limit_in_bytes", wanted.memory_limit_in_bytes));
    }
    if wanted.memory_swap_limit_in_bytes < -1 {
        return Err(field("memory_swap_limit_in_bytes", wanted.memory_swap_limit_in_bytes));
    }
    // The kernel takes any white space for a comma.
    for (name, list) in [("cpuset_cpus", &wanted.cpuset_cpus), ("cpuset_mems", &wanted.cpuset_mems)] {
        if list.chars().any(|one| one.is_whitespace() || one.is_control()) {
            return Err(RequestError::invalid(format!(
                "linux.resources.{name}: {list:?} is no list of numbers and ranges"
            )));
        }
    }
    Ok(Resources {
        cpu_shares: wanted.cpu_shares.unsigned_abs(),
        cpu_quota: wanted.cpu_quota,
        cpu_period: wanted.cpu_period.unsigned_abs(),
        memory_limit: wanted.memory_limit_in_bytes,
        memory_swap: wanted.memory_swap_limit_in_bytes,
        cpuset_cpus: wanted.cpuset_cpus.clone(),
        cpuset_mems: wanted.cpuset_mems.clone(),
        hugepages: wanted.hugepage_limits.iter().map(|one| (one.page_size.clone(), one.limit)).collect(),
        unified: wanted.unified.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        ..Resources::default()
    })
}

/// What is in force after an update: only fields that are given change. `oom_score_adj` is a process's and not
/// changed by an update (CRI).
#[must_use]
pub fn merge(
    present: &cri::LinuxContainerResources,
    wanted: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &str, new: &str| if new.is_empty() { old.to_owned() } else { new.to_owned() };
    let mut unified = present.unified.clone();
    unified.extend(wanted.unified.clone());
    let asked =
        |one: &cri::HugepageLimit| wanted.hugepage_limits.iter().any(|new| new.page_size == one.page_size);
    let kept = present.hugepage_limits.iter().filter(|one| !asked(one));
    let hugepage_limits = kept.chain(&wanted.hugepage_limits).cloned().collect();
    cri::LinuxContainerResources {
        cpu_period: number(present.cpu_period, wanted.cpu_period),
        cpu_quota: number(present.cpu_quota, wanted.cpu_quota),
        cpu_shares: number(present.cpu_shares, wanted.cpu_shares),
        memory_limit_in_bytes: number(present.memory_limit_in_bytes, wanted.memory_limit_in_bytes),
        oom_score_adj: present.oom_score_adj,
        cpuset_cpus: text(&present.cpuset_cpus, &wanted.cpuset_cpus),
        cpuset_mems: text(&present.cpuset_mems, &wanted.cpuset_mems),
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes: number(
            present.memory_swap_limit_in_bytes,
            wanted.memory_swap_limit_in_bytes,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_given_fields_change() {
        let present = cri::LinuxContainerResources {
            cpu_shares: 100,
            memory_limit_in_bytes: 1 << 20,
            oom_score_adj: 5,
            ..Default::default()
        };
        let wanted =
            cri::LinuxContainerResources { cpu_shares: 200, oom_score_adj: 900, ..Default::default() };
        let merged = merge(&present, &wanted);
        assert_eq!(
            (merged.cpu_shares, merged.memory_limit_in_bytes, merged.oom_score_adj),
            (200, 1 << 20, 5)
        );
    }

    #[test]
    fn a_size_of_huge_pages_that_is_not_given_keeps_its_limit() {
        let limits = |all: &[(&str, u64)]| cri::LinuxContainerResources {
            hugepage_limits: all
                .iter()
                .map(|(size, limit)| cri::HugepageLimit { page_size: (*size).to_owned(), limit: *limit })
                .collect(),
            ..Default::default()
        };
        let merged = merge(&limits(&[("2MB", 1), ("1GB", 2)]), &limits(&[("2MB", 3)]));
        assert_eq!(merged, limits(&[("1GB", 2), ("2MB", 3)]));
    }

    #[test]
    fn c14_impossible_values_name_their_field() {
        for (wanted, field) in [
            (cri::LinuxContainerResources { cpu_quota: -2, ..Default::default() }, "cpu_quota"),
            (
                cri::LinuxContainerResources { memory_limit_in_bytes: -5, ..Default::default() },
                "memory_limit",
            ),
            (cri::LinuxContainerResources { cpu_shares: -1, ..Default::default() }, "cpu_shares"),
            (
                cri::LinuxContainerResources { cpuset_cpus: "0\n1".into(), ..Default::default() },
                "cpuset_cpus",
            ),
        ] {
            assert!(resources(Some(&wanted)).unwrap_err().text.contains(field));
        }
    }
}
