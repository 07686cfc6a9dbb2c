use super::super::apply::drop_unused_hugepages;
use super::*;
use std::collections::BTreeSet;

fn lines(resources: &Resources) -> Vec<String> {
    let settings = resources.settings().unwrap();
    settings.into_iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
}

fn refused(resources: &Resources) -> String {
    resources.settings().unwrap_err().to_string()
}

#[test]
fn shares_become_weights_on_the_new_curve() {
    let weights: Vec<_> = [0, 1, 2, 3, 102, 1024, 2048, 262_143, 262_144, u64::MAX].map(weight).to_vec();
    let expected = [None, Some(1), Some(1), Some(2), Some(17), Some(100), Some(174), Some(10_000)];
    assert_eq!(weights[..8], expected);
    assert_eq!(weights[8..], [Some(10_000), Some(10_000)]);
}

#[test]
fn cpu_quota_and_period_complete_each_other() {
    let cpu = |cpu_quota, cpu_period| Resources { cpu_quota, cpu_period, ..Resources::default() };
    assert_eq!(lines(&cpu(20_000, 0)), ["cpu.max=20000 100000"]);
    assert_eq!(lines(&cpu(-1, 50_000)), ["cpu.max=max 50000"]);
    assert_eq!(lines(&cpu(0, 50_000)), ["cpu.max=max 50000"]);
    assert!(lines(&cpu(0, 0)).is_empty());
    assert_eq!(refused(&cpu(-2, 0)), "cpu_quota: -2 is negative");
}

#[test]
fn swap_is_what_is_left_of_the_sum() {
    let memory = |memory_limit, memory_swap| Resources { memory_limit, memory_swap, ..Resources::default() };
    assert_eq!(lines(&memory(100, 0)), ["memory.swap.max=0", "memory.max=100"]);
    assert_eq!(lines(&memory(100, 150)), ["memory.swap.max=50", "memory.max=100"]);
    assert_eq!(lines(&memory(100, -1)), ["memory.swap.max=max", "memory.max=100"]);
    assert_eq!(lines(&memory(-1, 0)), ["memory.max=max"]);
    assert_eq!(
        refused(&memory(100, 99)),
        "memory_swap_limit_in_bytes: 99 is less than memory_limit_in_bytes"
    );
    assert_eq!(refused(&memory(0, 99)), "memory_swap_limit_in_bytes: 99 without memory_limit_in_bytes");
}

#[test]
fn unified_values_come_last_and_override() {
    let unified = BTreeMap::from([("memory.max".to_owned(), "7".to_owned())]);
    let resources = Resources { memory_limit: 100, pids: 5, unified, ..Resources::default() };
    assert_eq!(lines(&resources), ["memory.swap.max=0", "pids.max=5", "memory.max=7"]);
    for bad in ["memory", "../memory.max", "a/b.c", ".x", "cgroup.procs", "memory.max\n", "rdma.max", "x.y"] {
        let unified = BTreeMap::from([(bad.to_owned(), "1".to_owned())]);
        assert!(refused(&Resources { unified, ..Resources::default() }).starts_with("unified["), "{bad}");
    }
}

#[test]
fn huge_pages_that_nobody_uses_need_no_controller() {
    let hugepages = vec![("2MB".to_owned(), 0), ("1GB".to_owned(), 0)];
    let mut settings = Resources { hugepages, ..Resources::default() }.settings().unwrap();
    assert_eq!(settings.len(), 4);
    drop_unused_hugepages(&mut settings, &BTreeSet::new());
    assert!(settings.is_empty());
}

#[test]
fn c14_a_unified_value_is_one_line() {
    for bad in ["max\nfoo", "1\0", "1\n\n2", "\u{7f}"] {
        let unified = BTreeMap::from([("memory.max".to_owned(), bad.to_owned())]);
        let error = refused(&Resources { unified, ..Resources::default() });
        assert!(error.starts_with("unified[\"memory.max\"]: "), "{error}");
    }
    let unified = BTreeMap::from([("memory.max".to_owned(), "max\n".to_owned())]);
    assert_eq!(lines(&Resources { unified, ..Resources::default() }), ["memory.max=max"]);
}
