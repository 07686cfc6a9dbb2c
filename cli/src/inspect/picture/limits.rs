//! What a cgroup allows, and how much of it is in use.

use super::{
    canvas::Drawing,
    font::Font,
    style::{ALLOWED, SOFT, TEXT, UNLIMITED, USED},
};
use crate::{
    inspect::cgroup::{self, Cgroup},
    text,
};

/// Height of a bar that shows how much of a limit is used.
const BAR: i32 = 8;

/// A line for CPUs, memory and processes each, as far as the kernel counts them here.
pub(super) fn draw(cgroup: &Cgroup, width: i32) -> Drawing {
    let mut drawing = Drawing::default();
    if let Some(max) = &cgroup.cpu_max {
        drawing.stack(0, cpu(max, cgroup, width));
    }
    let amounts = [
        ("memory", "Memory", &cgroup.memory_max, &cgroup.memory_current, text::bytes as fn(u64) -> String),
        ("pids", "Processes", &cgroup.pids_max, &cgroup.pids_current, |count| count.to_string()),
    ];
    for (what, title, max, used, show) in amounts {
        if let Some(max) = max {
            let used = used.as_ref().and_then(|used| used.parse().ok());
            drawing.stack(0, amount((what, title), (max.parse().ok(), used), show, width));
        }
    }
    if drawing.height == 0 {
        drawing.paragraph(0, width, Font::Body, SOFT, "Anything: here the kernel neither limits nor counts.");
    }
    drawing
}

/// Whether it limits anything.
pub(super) fn limits(cgroup: &Cgroup) -> bool {
    let limited = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.starts_with("max"));
    limited(&cgroup.cpu_max) || limited(&cgroup.memory_max) || limited(&cgroup.pids_max)
}

fn cpu(max: &str, cgroup: &Cgroup, width: i32) -> Drawing {
    let limit = match (cgroup::cpus(max).as_str(), &cgroup.cpu_weight) {
        ("max", Some(weight)) => format!("no limit, weight {weight}"),
        ("max", None) => "no limit".to_owned(),
        (cpus, _) => format!("at most {cpus}"),
    };
    let mut drawing = Drawing::default();
    drawing.sides(width, (Font::Label, TEXT, "CPU"), (Font::Body, TEXT, &limit));
    if let Some(used) = cgroup.cpu_usage.as_ref().and_then(|used| used.parse().ok()) {
        let held = match cgroup.cpu_throttled.as_deref() {
            None | Some("0") => String::new(),
            Some(count) => format!(", held back {count} times"),
        };
        drawing.line(0, width, Font::Body, SOFT, &format!("{} used so far{held}", seconds(used)));
    }
    drawing.gap(6);
    drawing.group("limit", vec![("what", "cpu".to_owned())])
}

fn amount(
    (what, title): (&str, &str),
    (limit, used): (Option<u64>, Option<u64>),
    show: fn(u64) -> String,
    width: i32,
) -> Drawing {
    let words = match (limit, used) {
        (Some(limit), Some(used)) => format!("{} of {}", show(used), show(limit)),
        (Some(limit), None) => format!("at most {}", show(limit)),
        (None, Some(used)) => format!("{}, no limit", show(used)),
        (None, None) => "no limit".to_owned(),
    };
    let mut drawing = Drawing::default();
    drawing.sides(width, (Font::Label, TEXT, title), (Font::Body, TEXT, &words));
    drawing.gap(1);
    let whole = if limit.is_some() { ALLOWED } else { UNLIMITED };
    drawing.area((0, drawing.height), (width, BAR), whole);
    let part = limit.zip(used).map_or(0, |(limit, used)| part(used, limit, width));
    if part > 0 {
        drawing.area((0, drawing.height), (part, BAR), USED);
    }
    drawing.gap(BAR);
    drawing.gap(6);
    drawing.group("limit", vec![("what", what.to_owned())])
}

/// Pixels of `width` for what is used: none for nothing, all for the limit or more.
fn part(used: u64, limit: u64, width: i32) -> i32 {
    if used == 0 {
        return 0;
    }
    let pixels = u128::from(used) * u128::from(width.unsigned_abs()) / u128::from(limit.max(1));
    i32::try_from(pixels).unwrap_or(width).clamp(BAR.min(width), width)
}

/// CPU time as people read it: 40 ms, 1.2 s, 12 min.
fn seconds(microseconds: u64) -> String {
    match microseconds / 1000 {
        milliseconds @ 0..1000 => format!("{milliseconds} ms"),
        milliseconds @ 1000..120_000 => format!("{}.{} s", milliseconds / 1000, milliseconds / 100 % 10),
        milliseconds => format!("{} min", milliseconds / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_what_is_used() {
        assert_eq!((part(0, 100, 200), part(50, 100, 200), part(100, 100, 200)), (0, 100, 200));
        assert_eq!((part(1, u64::MAX, 200), part(u64::MAX, 1, 200), part(1, 0, 200)), (BAR, 200, 200));
    }

    #[test]
    fn time_is_short() {
        assert_eq!(
            [seconds(0), seconds(40_999), seconds(1_250_000), seconds(720_000_000)],
            ["0 ms", "40 ms", "1.2 s", "12 min"]
        );
    }

    #[test]
    fn a_cgroup_without_limits_limits_nothing() {
        let max = |value: &str| Some(value.to_owned());
        assert!(!limits(&Cgroup {
            cpu_max: max("max 100000"),
            memory_max: max("max"),
            ..Default::default()
        }));
        assert!(limits(&Cgroup { cpu_max: max("20000 100000"), ..Default::default() }));
        assert!(limits(&Cgroup { pids_max: max("10"), ..Default::default() }));
    }
}
