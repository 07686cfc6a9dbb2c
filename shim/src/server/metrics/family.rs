//! One metric: what it is called, what it needs, and where its values come from.

use std::path::Path;

use crisp_proto::runtime::v1 as cri;

use crate::node::Node;

/// Labels of every metric, in this order; a metric's own ones follow.
const LABELS: [&str; 5] = ["id", "image", "namespace", "pod", "container"];

/// What a metric is about: the values of [`LABELS`].
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) id: String,
    pub(super) image: String,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) container: String,
}

/// What this node must have for a metric to be there at all.
#[derive(Clone, Copy, Debug)]
pub(super) enum Needs {
    Nothing,
    /// A cgroup controller.
    Controller(&'static str),
    /// Pressure stall information: a kernel may be built or booted without.
    Pressure,
}

impl Needs {
    pub(super) fn met(self, node: &Node) -> bool {
        match self {
            Needs::Nothing => true,
            Needs::Controller(name) => node.cgroups.missing(&[name]).is_empty(),
            Needs::Pressure => Path::new("/proc/pressure").exists(),
        }
    }
}

/// One value, and the values of the labels that are the metric's own.
pub(super) struct Sample {
    pub(super) labels: Vec<String>,
    pub(super) value: u64,
}

/// The value of a metric without labels of its own; none: nothing is given.
pub(super) fn one(value: Option<u64>) -> Vec<Sample> {
    value.map(|value| Sample { labels: Vec::new(), value }).into_iter().collect()
}

/// See the module.
pub(super) struct Family<R: ?Sized + 'static> {
    name: &'static str,
    help: &'static str,
    kind: cri::MetricType,
    labels: &'static [&'static str],
    pub(super) needs: Needs,
    values: fn(&R) -> Vec<Sample>,
}

impl<R: ?Sized> Family<R> {
    /// Something that only grows.
    pub(super) const fn counter(
        name: &'static str,
        help: &'static str,
        needs: Needs,
        values: fn(&R) -> Vec<Sample>,
    ) -> Self {
        Self { name, help, kind: cri::MetricType::Counter, labels: &[], needs, values }
    }

    /// Something that goes up and down.
    pub(super) const fn gauge(
        name: &'static str,
        help: &'static str,
        needs: Needs,
        values: fn(&R) -> Vec<Sample>,
    ) -> Self {
        Self { name, help, kind: cri::MetricType::Gauge, labels: &[], needs, values }
    }

    /// The same with labels of its own.
    pub(super) const fn by(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }

    pub(super) fn descriptor(&self) -> cri::MetricDescriptor {
        cri::MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: LABELS.iter().chain(self.labels).map(|label| (*label).to_owned()).collect(),
        }
    }

    /// Its values now; `now`: when `reading` was taken, nanoseconds since the epoch.
    pub(super) fn metrics(&self, subject: &Subject, now: i64, reading: &R) -> Vec<cri::Metric> {
        let Subject { id, image, namespace, pod, container } = subject;
        let metric = |sample: Sample| cri::Metric {
            name: self.name.to_owned(),
            timestamp: now,
            metric_type: self.kind.into(),
            label_values: [id, image, namespace, pod, container]
                .into_iter()
                .cloned()
                .chain(sample.labels)
                .collect(),
            value: Some(cri::UInt64Value { value: sample.value }),
        };
        (self.values)(reading).into_iter().map(metric).collect()
    }
}
