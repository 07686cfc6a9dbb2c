//! What went through a pod's interfaces.

use crisp_netns::stats::InterfaceStats;

use super::family::{Family, Needs::Nothing, Sample};

type Interfaces = Family<[InterfaceStats]>;

const LABELS: &[&str] = &["interface"];

pub(super) const ALL: &[Interfaces] = &[
    Interfaces::counter("container_network_receive_bytes_total", "Bytes received.", Nothing, |all| {
        each(all, |one| one.rx_bytes)
    })
    .by(LABELS),
    Interfaces::counter("container_network_receive_packets_total", "Packets received.", Nothing, |all| {
        each(all, |one| one.rx_packets)
    })
    .by(LABELS),
    Interfaces::counter(
        "container_network_receive_packets_dropped_total",
        "Packets received and dropped.",
        Nothing,
        |all| each(all, |one| one.rx_dropped),
    )
    .by(LABELS),
    Interfaces::counter("container_network_receive_errors_total", "Bad packets received.", Nothing, |all| {
        each(all, |one| one.rx_errors)
    })
    .by(LABELS),
    Interfaces::counter("container_network_transmit_bytes_total", "Bytes sent.", Nothing, |all| {
        each(all, |one| one.tx_bytes)
    })
    .by(LABELS),
    Interfaces::counter("container_network_transmit_packets_total", "Packets sent.", Nothing, |all| {
        each(all, |one| one.tx_packets)
    })
    .by(LABELS),
    Interfaces::counter(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped before they were sent.",
        Nothing,
        |all| each(all, |one| one.tx_dropped),
    )
    .by(LABELS),
    Interfaces::counter(
        "container_network_transmit_errors_total",
        "Packets that could not be sent.",
        Nothing,
        |all| each(all, |one| one.tx_errors),
    )
    .by(LABELS),
];

fn each(all: &[InterfaceStats], value: fn(&InterfaceStats) -> u64) -> Vec<Sample> {
    all.iter().map(|one| Sample { labels: vec![one.name.clone()], value: value(one) }).collect()
}
