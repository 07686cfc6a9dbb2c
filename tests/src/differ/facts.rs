//! What the probe prints -> facts that two containers can be compared by: everything that must differ between any two
//! containers (ids, inode numbers, addresses) becomes a word for what it is, and nothing else is left out.
//!
//! Must not know: which runtime made the container.

mod mount;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::compare::Facts;

/// Fields of /proc/self/status that say something about the container and not about the moment.
const STATUS: &[&str] = &[
    "CapAmb",
    "CapBnd",
    "CapEff",
    "CapInh",
    "CapPrm",
    "CoreDumping",
    "Cpus_allowed_list",
    "Gid",
    "Groups",
    "Mems_allowed_list",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "ShdPnd",
    "SigBlk",
    "SigCgt",
    "SigIgn",
    "SigPnd",
    "SpeculationIndirectBranch",
    "Speculation_Store_Bypass",
    "THP_enabled",
    "Threads",
    "Uid",
    "Umask",
];

/// What is known about a container from outside.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Texts that only this container's report can hold, each with the word to put in its place.
    pub names: Vec<(String, String)>,
    /// The host's namespaces, as the links in /proc/self/ns name them.
    pub host_namespaces: BTreeSet<String>,
    /// Number of the session keyring of the container's first process.
    pub keyring: Option<String>,
    /// The cgroups are not comparable: containerd has been told to leave them alone.
    pub without_cgroups: bool,
}

/// The number of a report's session keyring.
pub fn keyring(report: &str) -> Option<String> {
    report.lines().find_map(|line| Some(line.strip_prefix("keyring session\t")?.trim_end().to_owned()))
}

/// Adds the facts of a report to `facts`, their names behind `view`.
///
/// # Errors
/// The report is not complete, or a line is not of the probe's.
pub fn read(report: &str, view: &str, known: &Known, facts: &mut Facts) -> Result<()> {
    let lines = report.lines().map(|line| split(line.trim_end_matches('\r')));
    let lines = lines.collect::<Result<Vec<_>>>()?;
    ensure!(lines.last().is_some_and(|line| line.section == "end"), "the report breaks off:\n{report}");
    let find = |section: &str, key: &str| {
        lines.iter().find(|line| line.section == section && line.key == key).map(|line| line.value)
    };
    let pid = find("process", "pid").context("a report without a pid")?;
    let host_has = |kind: &str| find("ns", kind).is_some_and(|link| known.host_namespaces.contains(link));
    let (host_network, host_pids) = (host_has("net"), host_has("pid"));
    for line in &lines {
        // In the host's namespaces, the two runtimes see each other and all else that runs there.
        let left_out = match line.section {
            "link" | "address" => host_network,
            "visible" => host_pids,
            "cgroup" => known.without_cgroups,
            "content" => known.without_cgroups && line.key == "/proc/1/cgroup",
            _ => false,
        };
        if left_out {
            continue;
        }
        let Some((key, value)) = reduce(line, pid, known)? else { continue };
        let name = known.replace(&format!("{view} {} {key}", line.section));
        insert(facts, name.trim_end().to_owned(), known.replace(&value));
    }
    Ok(())
}

/// A name that is there already gets a number, as a mount on top of another does.
fn insert(facts: &mut Facts, name: String, value: String) {
    let mut free = name.clone();
    for number in 2.. {
        if !facts.contains_key(&free) {
            break;
        }
        free = format!("{name} #{number}");
    }
    facts.insert(free, value);
}

#[derive(Clone, Copy, Debug)]
struct Line<'a> {
    section: &'a str,
    key: &'a str,
    value: &'a str,
}

fn split(line: &str) -> Result<Line<'_>> {
    let parts = line.split_once('\t').and_then(|(head, value)| Some((head.split_once(' ')?, value)));
    let ((section, key), value) = parts.with_context(|| format!("not a line of the probe: {line:?}"))?;
    Ok(Line { section, key, value })
}

fn reduce(line: &Line<'_>, pid: &str, known: &Known) -> Result<Option<(String, String)>> {
    let Line { section, key, value } = *line;
    let kept = |value: String| Ok(Some((key.to_owned(), value)));
    match section {
        "end" => Ok(None),
        "status" if key == "NSpid" => kept(format!("{} deep", value.split("\\011").count())),
        "status" if !STATUS.contains(&key) => Ok(None),
        "process" if ["pid", "parent", "group", "session"].contains(&key) => {
            kept(relative(key, value, pid).to_owned())
        }
        "fd" => kept(without_inode(value)),
        "mount" => mount::reduce(value).map(Some),
        "ns" => {
            let own = if known.host_namespaces.contains(value) { "the host's" } else { "another" };
            kept(own.to_owned())
        }
        "keyring" if value == "-1" => kept("cannot be seen".to_owned()),
        "keyring" if known.keyring.as_deref() == Some(value) => kept("of the first process".to_owned()),
        "keyring" => kept("its own".to_owned()),
        // Pids differ, what is there does not.
        "visible" => Ok(Some((value.to_owned(), "visible".to_owned()))),
        _ => kept(value.to_owned()),
    }
}

/// A pid as seen from the process that it is compared with.
fn relative<'a>(key: &str, value: &'a str, pid: &str) -> &'a str {
    match value {
        "0" | "1" => value,
        value if value == pid && key != "pid" => "own",
        _ => "another",
    }
}

/// `pipe:[123] w` -> `pipe w`.
fn without_inode(value: &str) -> String {
    match (value.split_once(":["), value.split_once(']')) {
        (Some((kind, _)), Some((_, rest))) => format!("{kind}{rest}"),
        _ => value.to_owned(),
    }
}

impl Known {
    fn replace(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (name, word)| text.replace(name.as_str(), word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known {
            names: vec![("c0ffee".to_owned(), "<container>".to_owned())],
            host_namespaces: BTreeSet::from(["net:[1]".to_owned()]),
            keyring: Some("71".to_owned()),
            without_cgroups: false,
        }
    }

    fn facts(report: &str) -> Facts {
        let mut facts = Facts::new();
        read(&format!("process pid\t7\n{report}end \tcomplete\n"), "init", &known(), &mut facts).unwrap();
        facts
    }

    #[test]
    fn what_differs_between_any_two_containers_is_named_for_what_it_is() {
        let seen = facts(
            "fd 1\tpipe:[99] w\nns net\tnet:[1]\nns pid\tpid:[2]\nprocess session\t7\nprocess parent\t44\n\
             process session keyring\tkeyring;0;0;3f130000;_ses.c0ffee\nstatus VmPeak\t1\nstatus NSpid\t9\\0117\n\
             keyring session\t71\n",
        );
        let expected = [
            ("init fd 1", "pipe w"),
            ("init keyring session", "of the first process"),
            ("init ns net", "the host's"),
            ("init ns pid", "another"),
            ("init process parent", "another"),
            ("init process pid", "another"),
            ("init process session", "own"),
            ("init process session keyring", "keyring;0;0;3f130000;_ses.<container>"),
            ("init status NSpid", "2 deep"),
        ];
        let seen: Vec<_> = seen.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn links_of_the_hosts_network_are_left_out() {
        assert!(!facts("ns net\tnet:[1]\nlink eth0\tthere\n").contains_key("init link eth0"));
        assert!(facts("ns net\tnet:[5]\nlink eth0\tthere\n").contains_key("init link eth0"));
    }

    #[test]
    fn a_report_that_breaks_off_is_an_error() {
        let error = read("process pid\t7\n", "init", &known(), &mut Facts::new()).unwrap_err();
        assert!(error.to_string().contains("breaks off"), "{error}");
        let error = read("nonsense\n", "init", &known(), &mut Facts::new()).unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
    }
}
