use std::collections::BTreeSet;

use crisp_runtime::cgroup::{CgroupStats, CpuStat, IoStat, Pressure};

use super::*;

fn subject() -> Subject {
    Subject {
        id: "id".to_owned(),
        image: "image".to_owned(),
        namespace: "namespace".to_owned(),
        pod: "pod".to_owned(),
        container: "container".to_owned(),
    }
}

/// Of a container for which the kernel counts everything, all of it 0 but for CPU time and one device.
fn reading() -> Reading {
    let pressure = || Some(Pressure { full: Some(Default::default()), ..Default::default() });
    Reading {
        stats: CgroupStats {
            cpu: Some(CpuStat { usage_usec: 7_900_000, ..Default::default() }),
            memory_current: Some(0),
            memory_peak: Some(0),
            memory: Some(Default::default()),
            memory_events: Some(Default::default()),
            pids_current: Some(0),
            io: Some(vec![IoStat { major: 8, minor: 0, rbytes: 512, ..Default::default() }]),
            cpu_pressure: pressure(),
            memory_pressure: pressure(),
            io_pressure: pressure(),
            ..Default::default()
        },
        processes: 1,
        descriptors: 3,
        sockets: 0,
        soft_open_files: Some(1024),
        layer: Some(crisp_image::Written { bytes: 4096, inodes: 1, at: std::time::SystemTime::now() }),
        storage: Storage { device: "/dev/sda".to_owned(), space: Some(Default::default()) },
        resources: Default::default(),
        started_nanos: 5_000_000_001,
        now_nanos: 6_000_000_000,
    }
}

fn interfaces() -> Vec<InterfaceStats> {
    vec![InterfaceStats {
        name: "eth0".to_owned(),
        rx_bytes: 1,
        rx_packets: 2,
        rx_errors: 3,
        rx_dropped: 4,
        tx_bytes: 5,
        tx_packets: 6,
        tx_errors: 7,
        tx_dropped: 8,
    }]
}

/// Every row's descriptor with what it gives for a container and an interface that have everything.
fn rows() -> Vec<(cri::MetricDescriptor, Vec<cri::Metric>)> {
    let (reading, interfaces) = (reading(), interfaces());
    let container = CONTAINER.iter().copied().flatten();
    let sandbox = SANDBOX.iter().copied().flatten();
    let container = container.map(|row| (row.descriptor(), row.metrics(&subject(), 1, &reading)));
    let sandbox = sandbox.map(|row| (row.descriptor(), row.metrics(&subject(), 1, interfaces.as_slice())));
    container.chain(sandbox).collect()
}

#[test]
fn what_is_advertised_is_given_with_as_many_labels() {
    for (descriptor, metrics) in rows() {
        assert!(!metrics.is_empty(), "{descriptor:?}");
        assert!(!descriptor.help.is_empty() && descriptor.label_keys.len() >= 5, "{descriptor:?}");
        for metric in metrics {
            assert_eq!(metric.name, descriptor.name);
            assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{metric:?}");
            assert!(metric.value.is_some(), "{metric:?}");
        }
    }
}

#[test]
fn names_are_cadvisors_and_stand_once() {
    let rows = rows();
    let names: BTreeSet<_> = rows.iter().map(|(descriptor, _)| descriptor.name.as_str()).collect();
    assert_eq!(names.len(), rows.len());
    assert!(names.iter().all(|name| name.starts_with("container_")), "{names:?}");
    for (descriptor, metrics) in &rows {
        // Prometheus' rule: what only grows is a total.
        let counter = metrics.iter().any(|metric| metric.metric_type() == cri::MetricType::Counter);
        // cAdvisor's two exceptions.
        let odd =
            ["container_memory_failcnt", "container_fs_inodes_total"].contains(&descriptor.name.as_str());
        assert_eq!(counter, descriptor.name.ends_with("_total") != odd, "{}", descriptor.name);
    }
}

#[test]
fn series_of_one_metric_differ_in_their_labels() {
    for (descriptor, metrics) in rows() {
        let labels: BTreeSet<_> = metrics.iter().map(|metric| &metric.label_values).collect();
        assert_eq!(labels.len(), metrics.len(), "{descriptor:?}");
    }
}

#[test]
fn values_are_in_the_units_of_their_names() {
    let value = |name: &str| {
        let rows = rows();
        let row = rows.iter().find(|(descriptor, _)| descriptor.name == name);
        row.unwrap().1[0].value.as_ref().unwrap().value
    };
    assert_eq!(value("container_cpu_usage_seconds_total"), 7);
    assert_eq!(value("container_start_time_seconds"), 5);
    assert_eq!(value("container_last_seen"), 6);
    assert_eq!(value("container_fs_usage_bytes"), 4096);
    assert_eq!(value("container_fs_reads_bytes_total"), 512);
    assert_eq!(value("container_network_transmit_packets_dropped_total"), 8);
}

#[test]
fn what_the_kernel_does_not_count_is_not_given() {
    let reading = Reading { stats: CgroupStats::default(), layer: None, ..reading() };
    let rows = CONTAINER.iter().copied().flatten();
    let given: Vec<_> = rows.flat_map(|row| row.metrics(&subject(), 1, &reading)).collect();
    let of = |part: &str| given.iter().filter(|metric| metric.name.contains(part)).count();
    assert_eq!((of("_cpu_usage"), of("_memory_usage"), of("_fs_usage"), of("_pressure_")), (0, 0, 0, 0));
    assert_eq!(of("container_processes"), 1);
}
