//! Requests and limits of a container as CRI resources, by kubelet's formulas. Pure.
//!
//! One difference: where neither a request nor a limit for CPUs is given, kubelet sends two shares and crisp play
//! nothing, so that pods without limits run on hosts without cgroup controllers.

use crisp_proto::runtime::v1::LinuxContainerResources;

use crate::manifest::{
    Pod,
    model::{Amounts, Container},
    quantity::Quantity,
};

/// Microseconds; the kernel's and kubelet's default.
const PERIOD: i64 = 100_000;
/// Smallest quota the kernel takes, microseconds.
const QUOTA_MIN: i64 = 1000;
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;

/// How soon the OOM killer takes a container, by the pod's quality of service.
const GUARANTEED: i64 = -997;
const BEST_EFFORT: i64 = 1000;

/// What a container may use. `memory` is the host's, in bytes.
pub(super) fn resources(pod: &Pod, container: &Container, memory: i64) -> LinuxContainerResources {
    let (requests, limits) = (effective(container), &container.resources.limits);
    let limit = limits.memory.map_or(0, Quantity::units);
    LinuxContainerResources {
        cpu_shares: requests.cpu.map_or(0, |cpu| shares(cpu.milli())),
        cpu_quota: limits.cpu.map_or(0, |cpu| quota(cpu.milli())),
        cpu_period: if limits.cpu.is_some() { PERIOD } else { 0 },
        memory_limit_in_bytes: limit,
        oom_score_adj: oom_score_adj(pod, requests.memory.map_or(0, Quantity::units), memory),
        // All of a container or nothing, as kubelet has it.
        unified: if limit == 0 {
            [].into()
        } else {
            [("memory.oom.group".to_owned(), "1".to_owned())].into()
        },
        ..Default::default()
    }
}

/// Requests, which are the limits where none are given.
fn effective(container: &Container) -> Amounts {
    let (requests, limits) = (&container.resources.requests, &container.resources.limits);
    Amounts { cpu: requests.cpu.or(limits.cpu), memory: requests.memory.or(limits.memory) }
}

fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

fn quota(milli: i64) -> i64 {
    if milli == 0 { 0 } else { (milli.saturating_mul(PERIOD) / 1000).max(QUOTA_MIN) }
}

fn oom_score_adj(pod: &Pod, request: i64, memory: i64) -> i64 {
    let zero = Quantity::default();
    let nothing =
        |amounts: &Amounts| amounts.cpu.unwrap_or(zero) == zero && amounts.memory.unwrap_or(zero) == zero;
    if pod.all_containers().all(|c| nothing(&effective(c))) {
        return BEST_EFFORT;
    }
    let guaranteed = |c: &Container| {
        let (requests, limits) = (effective(c), &c.resources.limits);
        let same = |request: Option<Quantity>, limit: Option<Quantity>| {
            limit.is_some_and(|limit| limit > zero) && request == limit
        };
        same(requests.cpu, limits.cpu) && same(requests.memory, limits.memory)
    };
    if pod.all_containers().all(guaranteed) {
        return GUARANTEED;
    }
    let share = i128::from(request) * 1000 / i128::from(memory.max(1));
    i64::try_from(1000 - share).unwrap_or(0).clamp(1000 + GUARANTEED, BEST_EFFORT - 1)
}

/// MemTotal of /proc/meminfo in bytes.
pub(super) fn memory_total(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<i64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    const HOST: i64 = 10 << 30;

    fn converted(resources_of: &[&str]) -> Vec<LinuxContainerResources> {
        let mut text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n".to_owned();
        for (index, one) in resources_of.iter().enumerate() {
            text += &format!("  - {{name: c{index}, image: i, resources: {one}}}\n");
        }
        let pod = manifest::parse(&text).unwrap().remove(0);
        pod.spec.containers.iter().map(|c| resources(&pod, c, HOST)).collect()
    }

    #[test]
    fn example_06_becomes_what_its_readme_says() {
        let all = converted(&[
            "{requests: {cpu: 100m, memory: 128Mi}, limits: {cpu: 200m, memory: 256Mi}}",
            "{requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}",
        ]);
        let spinner = &all[0];
        assert_eq!((spinner.cpu_shares, spinner.cpu_quota, spinner.cpu_period), (102, 20_000, 100_000));
        assert_eq!((spinner.memory_limit_in_bytes, spinner.oom_score_adj), (256 << 20, 988));
        assert_eq!(spinner.unified["memory.oom.group"], "1");
        assert_eq!(all[1].memory_limit_in_bytes, 64 << 20);
    }

    #[test]
    fn a_limit_is_a_request_and_makes_a_guarantee() {
        let one = converted(&["{limits: {cpu: 2, memory: 1Gi}}"]).remove(0);
        assert_eq!((one.cpu_shares, one.cpu_quota, one.oom_score_adj), (2048, 200_000, GUARANTEED));
    }

    #[test]
    fn nothing_asked_is_nothing_sent() {
        let one = converted(&["{}"]).remove(0);
        assert_eq!(one, LinuxContainerResources { oom_score_adj: BEST_EFFORT, ..Default::default() });
    }

    #[test]
    fn small_values_are_what_the_kernel_takes() {
        let one = converted(&["{limits: {cpu: 1m}}"]).remove(0);
        assert_eq!((one.cpu_shares, one.cpu_quota), (SHARES_MIN, QUOTA_MIN));
        assert_eq!(converted(&["{requests: {memory: 1}}"])[0].oom_score_adj, 999);
        assert_eq!(converted(&["{requests: {memory: 100Gi}}"])[0].oom_score_adj, 3);
    }

    #[test]
    fn the_hosts_memory_is_read() {
        assert_eq!(memory_total("MemTotal:       8000 kB\nMemFree: 1 kB\n"), Some(8000 * 1024));
        assert_eq!(memory_total("x"), None);
    }
}
