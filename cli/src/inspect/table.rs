//! The picture of a pod: a row for each namespace, limit and mount, a column for the host and each container.
//!
//! A namespace is a letter: the same letter in a row is the same namespace. A mount's row has an entry in every container
//! that sees the same content. So what is shared stands side by side.

use comfy_table::{Table, presets};

use super::{
    Container, Pod,
    mounts::Mount,
    namespaces::{KINDS, Namespaces},
};
use crate::{target, text};

/// The whole picture as text.
pub(super) fn render(pod: &Pod) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    let names = pod.containers.iter().map(|container| container.name.clone());
    table.set_header(["".to_owned(), "host".to_owned()].into_iter().chain(names).chain(["".to_owned()]));
    let mut section = |title: &str, rows: Vec<Vec<String>>| {
        let width = pod.containers.len() + 3;
        let blank = vec![String::new(); width];
        if table.row_count() > 0 {
            table.add_row(blank.clone());
        }
        let mut head = blank;
        head[0] = title.to_owned();
        table.add_row(head);
        table.add_rows(rows);
    };
    section("NAMESPACES", KINDS.iter().map(|(kind, what)| namespace_row(pod, kind, what)).collect());
    section("CGROUP", limit_rows(pod));
    section("MOUNTS", mount_rows(&pod.containers));
    format!(
        "pod {}/{}  {}\n{}\n{}",
        pod.namespace,
        pod.name,
        target::short(&pod.id),
        table.trim_fmt(),
        "The same letter in a row is the same namespace; H is the host's. A mount with an entry in several\n\
         columns is the same content in each. (ro) cannot be written. Usage is in brackets.\n"
    )
}

fn namespace_row(pod: &Pod, kind: &str, what: &str) -> Vec<String> {
    let number = |namespaces: &Namespaces| namespaces.get(kind).copied().unwrap_or(0);
    let host = number(&pod.host);
    let all: Vec<u64> = pod.containers.iter().map(|container| number(&container.namespaces)).collect();
    let mut row = vec![format!("  {kind}"), "H".to_owned()];
    row.extend(letters(host, &all));
    row.push(format!("{}: {what}", sharing(host, &all)));
    row
}

/// H for the host's namespace, A, B, C … for others in the order in which they come.
fn letters(host: u64, all: &[u64]) -> Vec<String> {
    let mut known: Vec<u64> = Vec::new();
    all.iter()
        .map(|number| {
            if *number == host {
                return "H".to_owned();
            }
            let at = known.iter().position(|other| other == number).unwrap_or_else(|| {
                known.push(*number);
                known.len() - 1
            });
            letter(at)
        })
        .collect()
}

/// A to G and I to Z (H is the host), then A1, B1 …
fn letter(index: usize) -> String {
    const LETTERS: &[u8] = b"ABCDEFGIJKLMNOPQRSTUVWXYZ";
    let name = char::from(LETTERS[index % LETTERS.len()]);
    match index / LETTERS.len() {
        0 => name.to_string(),
        round => format!("{name}{round}"),
    }
}

fn sharing(host: u64, all: &[u64]) -> &'static str {
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    if all.iter().all(|number| *number == host) {
        "the host's"
    } else if all.len() == 1 {
        "not the host's"
    } else if distinct.len() == 1 {
        "shared by all"
    } else if distinct.len() == all.len() && !distinct.contains(&host) {
        "one each"
    } else {
        "shared by some"
    }
}

fn limit_rows(pod: &Pod) -> Vec<Vec<String>> {
    let row = |name: &str, cell: &dyn Fn(&Container) -> String| {
        let mut row = vec![format!("  {name}"), String::new()];
        row.extend(pod.containers.iter().map(cell));
        row.push(String::new());
        row
    };
    let plain = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    vec![
        row("cpu.max", &|c| c.cgroup.cpu_max.as_deref().map_or("-".to_owned(), cpus)),
        row("cpu.weight", &|c| plain(&c.cgroup.cpu_weight)),
        row("memory.max", &|c| {
            with_usage(c.cgroup.memory_max.as_deref(), c.cgroup.memory_current.as_deref(), &|count| {
                text::bytes(count)
            })
        }),
        row("pids.max", &|c| {
            with_usage(c.cgroup.pids_max.as_deref(), c.cgroup.pids_current.as_deref(), &|count| {
                count.to_string()
            })
        }),
    ]
}

/// `20000 100000` -> `0.2 CPUs`.
fn cpus(value: &str) -> String {
    let parts: Vec<Option<f64>> = value.split(' ').map(|part| part.parse().ok()).collect();
    match parts[..] {
        [Some(quota), Some(period)] if period > 0.0 => format!("{} CPUs", quota / period),
        _ => "max".to_owned(),
    }
}

fn with_usage(limit: Option<&str>, usage: Option<&str>, show: &dyn Fn(u64) -> String) -> String {
    let number = |value: &str| value.parse().map_or_else(|_| value.to_owned(), show);
    match (limit, usage) {
        (None, _) => "-".to_owned(),
        (Some(limit), None) => number(limit),
        (Some(limit), Some(usage)) => format!("{} ({})", number(limit), number(usage)),
    }
}

/// One row for each content: the containers' roots first, then in the order in which the first container has them.
fn mount_rows(containers: &[Container]) -> Vec<Vec<String>> {
    let mut contents: Vec<(&str, &str)> = Vec::new();
    for mount in containers.iter().flat_map(|container| &container.mounts) {
        if !contents.iter().any(|(content, _)| *content == mount.content) {
            contents.push((&mount.content, &mount.source));
        }
    }
    let is_root = |content: &str| {
        containers.iter().flat_map(|c| &c.mounts).any(|mount| mount.content == content && mount.target == "/")
    };
    contents.sort_by_key(|(content, _)| !is_root(content));
    contents
        .into_iter()
        .map(|(content, source)| {
            let cells: Vec<String> = containers.iter().map(|container| targets(container, content)).collect();
            let seen = cells.iter().filter(|cell| !cell.is_empty()).count();
            let mut row = vec![format!("  {}", shortened(source)), String::new()];
            row.extend(cells);
            row.push(match seen {
                1 => String::new(),
                all if all == containers.len() => "shared by all".to_owned(),
                _ => "shared by some".to_owned(),
            });
            row
        })
        .collect()
}

/// Longest source that is shown whole, in characters.
const SOURCE_MAX: usize = 36;

/// The end of a long path, from a whole component on if that leaves anything. `-o json` has all of it.
fn shortened(source: &str) -> String {
    let count = source.chars().count();
    if count <= SOURCE_MAX {
        return source.to_owned();
    }
    let end: String = source.chars().skip(count - SOURCE_MAX + 1).collect();
    format!("…{}", end.find('/').map_or(end.as_str(), |at| &end[at..]))
}

fn targets(container: &Container, content: &str) -> String {
    let shown = |mount: &Mount| format!("{}{}", mount.target, if mount.read_only { " (ro)" } else { "" });
    let all: Vec<String> =
        container.mounts.iter().filter(|mount| mount.content == content).map(shown).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::{super::cgroup::Cgroup, *};

    fn namespaces(numbers: [u64; 7]) -> Namespaces {
        KINDS.iter().map(|(kind, _)| (*kind).to_owned()).zip(numbers).collect()
    }

    fn mount(target: &str, source: &str, content: &str, read_only: bool) -> Mount {
        Mount { target: target.into(), source: source.into(), content: content.into(), read_only }
    }

    fn pod() -> Pod {
        let limits = |cpu: &str, memory: &str| Cgroup {
            path: "/crisp/x".into(),
            cpu_max: Some(cpu.into()),
            cpu_weight: Some("100".into()),
            memory_max: Some(memory.into()),
            memory_current: Some("1572864".into()),
            pids_max: None,
            pids_current: None,
        };
        let container = |name: &str, numbers, cgroup, mounts| Container {
            name: name.into(),
            id: name.into(),
            pid: 1,
            namespaces: namespaces(numbers),
            cgroup,
            mounts,
        };
        Pod {
            namespace: "default".into(),
            name: "demo".into(),
            id: "0123456789abcdef".into(),
            host: namespaces([1, 2, 3, 4, 5, 6, 7]),
            containers: vec![
                container(
                    "main",
                    [11, 12, 13, 14, 15, 16, 7],
                    limits("20000 100000", "67108864"),
                    vec![mount("/", "overlay", "0:1 /", false), mount("/data", "/v", "8:1 /v", false)],
                ),
                container(
                    "helper",
                    [11, 12, 13, 24, 25, 26, 7],
                    limits("max 100000", "max"),
                    vec![mount("/", "overlay", "0:2 /", true), mount("/in", "/v", "8:1 /v", true)],
                ),
            ],
        }
    }

    #[test]
    fn what_is_shared_stands_side_by_side() {
        let expected = include_str!("../../tests/data/inspect.txt");
        let shown = render(&pod());
        assert!(shown == expected, "{shown}");
    }

    #[test]
    fn long_sources_are_shown_by_their_end() {
        assert_eq!(shortened("/short/path"), "/short/path");
        let long = "/var/lib/crisp-play/default_web_3e964473-985f-4ce9-ae1c-3c0dd2161def/volumes/data";
        assert_eq!(shortened(long), "…/volumes/data");
        assert_eq!(shortened(&"x".repeat(40)), format!("…{}", "x".repeat(35)));
    }

    #[test]
    fn letters_name_namespaces() {
        assert_eq!(letters(1, &[5, 1, 6, 5]), ["A", "H", "B", "A"]);
        assert_eq!((letter(6), letter(7), letter(25)), ("G".into(), "I".into(), "A1".into()));
        assert_eq!(sharing(1, &[1, 1]), "the host's");
        assert_eq!(sharing(1, &[2, 2]), "shared by all");
        assert_eq!(sharing(1, &[2, 3]), "one each");
        assert_eq!(sharing(1, &[2, 3, 2]), "shared by some");
        assert_eq!(sharing(1, &[2, 1]), "shared by some");
        assert_eq!(sharing(1, &[2]), "not the host's");
    }

    #[test]
    fn limits_are_read_as_people_read_them() {
        assert_eq!((cpus("20000 100000"), cpus("max 100000")), ("0.2 CPUs".into(), "max".into()));
        let bytes = |count| text::bytes(count);
        assert_eq!(with_usage(Some("67108864"), Some("1572864"), &bytes), "64Mi (1.5Mi)");
        assert_eq!(with_usage(Some("max"), None, &bytes), "max");
        assert_eq!(with_usage(None, Some("1"), &bytes), "-");
    }
}
