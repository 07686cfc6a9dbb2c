//! The picture of a pod: a row for each namespace, limit and mount, a column for the host and each container.
//!
//! A namespace is a letter: the same letter in a row is the same namespace. A mount's row has an entry in every container
//! that sees the same content. So what is shared stands side by side.

use comfy_table::{Table, presets};

use super::{
    cgroup,
    facts::{Container, Pod},
    mounts::{self, Mount},
    namespaces::{KINDS, Namespaces},
    sharing::{self, Scope},
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
    let idle: Vec<String> = pod.idle.iter().map(|one| format!("{} {}", one.name, one.state)).collect();
    let idle = if idle.is_empty() { String::new() } else { format!("Not running: {}.\n", idle.join(", ")) };
    format!(
        "pod {}/{}  {}\n{}\n{idle}{}",
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
    row.push(format!("{}: {what}", words(sharing::scope(pod, kind), all.len())));
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

fn words(scope: Option<Scope>, containers: usize) -> &'static str {
    match (scope, containers) {
        (Some(Scope::Host), _) => "the host's",
        (Some(Scope::Pod), 1) => "the pod's",
        (Some(Scope::Pod), _) => "shared by all",
        (Some(Scope::Own), 1) => "its own",
        (Some(Scope::Own), _) => "one each",
        (Some(Scope::Mixed), _) => "shared by some",
        (None, _) => "not known",
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
        row("cpu.max", &|c| c.cgroup.cpu_max.as_deref().map_or("-".to_owned(), cgroup::cpus)),
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

fn with_usage(limit: Option<&str>, usage: Option<&str>, show: &dyn Fn(u64) -> String) -> String {
    let number = |value: &str| value.parse().map_or_else(|_| value.to_owned(), show);
    match (limit, usage) {
        (None, _) => "-".to_owned(),
        (Some(limit), None) => number(limit),
        (Some(limit), Some(usage)) => format!("{} ({})", number(limit), number(usage)),
    }
}

/// One row for each content.
fn mount_rows(containers: &[Container]) -> Vec<Vec<String>> {
    let all = mounts::contents(containers.iter().map(|container| &container.mounts[..]));
    let rows = all.into_iter().map(|content| {
        let mut row = vec![format!("  {}", shortened(content.source)), String::new()];
        row.extend((0..containers.len()).map(|index| targets(content.of(index))));
        row.push(match content.containers() {
            1 => String::new(),
            all if all == containers.len() => "shared by all".to_owned(),
            _ => "shared by some".to_owned(),
        });
        row
    });
    rows.collect()
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

fn targets<'a>(mounts: impl Iterator<Item = &'a Mount>) -> String {
    let shown = |mount: &Mount| format!("{}{}", mount.target, if mount.read_only { " (ro)" } else { "" });
    mounts.map(shown).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::{super::samples, *};

    #[test]
    fn what_is_shared_stands_side_by_side() {
        let expected = include_str!("../../tests/data/inspect.txt");
        let shown = render(&samples::two_containers());
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
    }

    #[test]
    fn limits_are_read_as_people_read_them() {
        let bytes = |count| text::bytes(count);
        assert_eq!(with_usage(Some("67108864"), Some("1572864"), &bytes), "64Mi (1.5Mi)");
        assert_eq!(with_usage(Some("max"), None, &bytes), "max");
        assert_eq!(with_usage(None, Some("1"), &bytes), "-");
    }
}
