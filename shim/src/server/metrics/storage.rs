//! A container's writable layer, the file system that it is on, and what it reads and writes.
//!
//! A device stands in `io.stat` from the container's first I/O on it: before that there is no series for it.

use crisp_runtime::cgroup::IoStat;

use super::{
    family::{
        Family,
        Needs::{Controller, Nothing},
        Sample,
    },
    reading::{self, Reading},
};

type Row = Family<Reading>;

const DEVICE: &[&str] = &["device"];
const IO: super::family::Needs = Controller("io");

pub(super) const ALL: &[Row] = &[
    Row::gauge("container_fs_usage_bytes", "Bytes that the writable layer takes up.", Nothing, |r| {
        on_storage(r, r.layer.map(|layer| layer.bytes))
    })
    .by(DEVICE),
    Row::gauge("container_fs_limit_bytes", "Size of the layer's file system.", Nothing, |r| {
        on_storage(r, r.storage.space.map(|space| space.bytes))
    })
    .by(DEVICE),
    Row::gauge("container_fs_inodes_free", "Unused inodes of the layer's file system.", Nothing, |r| {
        on_storage(r, r.storage.space.map(|space| space.inodes_free))
    })
    .by(DEVICE),
    Row::gauge("container_fs_inodes_total", "Inodes of the layer's file system.", Nothing, |r| {
        on_storage(r, r.storage.space.map(|space| space.inodes))
    })
    .by(DEVICE),
    Row::counter("container_fs_reads_bytes_total", "Bytes read.", IO, |r| each(r, |io| io.rbytes)).by(DEVICE),
    Row::counter("container_fs_reads_total", "Reads.", IO, |r| each(r, |io| io.rios)).by(DEVICE),
    Row::counter("container_fs_writes_bytes_total", "Bytes written.", IO, |r| each(r, |io| io.wbytes))
        .by(DEVICE),
    Row::counter("container_fs_writes_total", "Writes.", IO, |r| each(r, |io| io.wios)).by(DEVICE),
    Row::counter("container_blkio_device_usage_total", "Bytes read and written.", IO, blkio).by(&[
        "device",
        "major",
        "minor",
        "operation",
    ]),
];

fn on_storage(reading: &Reading, value: Option<u64>) -> Vec<Sample> {
    let sample = |value| Sample { labels: vec![reading.storage.device.clone()], value };
    value.map(sample).into_iter().collect()
}

fn devices(reading: &Reading) -> impl Iterator<Item = (String, &IoStat)> {
    let all = reading.stats.io.iter().flatten();
    all.map(|io| (reading::device_name(io.major, io.minor), io))
}

fn each(reading: &Reading, value: fn(&IoStat) -> u64) -> Vec<Sample> {
    devices(reading).map(|(device, io)| Sample { labels: vec![device], value: value(io) }).collect()
}

fn blkio(reading: &Reading) -> Vec<Sample> {
    let operations = |(device, io): (String, &IoStat)| {
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        [("Read", io.rbytes), ("Write", io.wbytes)].map(|(operation, value)| Sample {
            labels: vec![device.clone(), major.clone(), minor.clone(), operation.to_owned()],
            value,
        })
    };
    devices(reading).flat_map(operations).collect()
}
