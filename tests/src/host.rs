//! What is on the host that a runtime could leave behind, as a set of facts that can be compared.
//!
//! Sees the mount and network namespace of the calling process, and cgroups, processes and folders of one crisp only, so
//! that what others do on the machine at the same time does not count. Must not know: how crisp names its things.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::wait;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Mount point of the cgroup2 file system.
    pub cgroup_root: PathBuf,
    /// Path below it that crisp was told to use.
    pub cgroup_parent: String,
    /// Folders and how deep to look into each.
    pub folders: Vec<(PathBuf, usize)>,
    /// The monitor's binary: a process that executes it is crisp's.
    pub monitor: PathBuf,
}

/// Facts about the host at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks around.
    ///
    /// # Errors
    /// Something that must be readable is not.
    pub fn take(scope: &Scope) -> Result<Self> {
        let mut facts = BTreeSet::new();
        mounts(&mut facts)?;
        links(&mut facts)?;
        cgroups(scope, &mut facts);
        processes(scope, &mut facts);
        nftables(&mut facts)?;
        for (folder, depth) in &scope.folders {
            files(folder, *depth, &mut facts);
        }
        files(Path::new("/run/netns"), 1, &mut facts);
        Ok(Self(facts))
    }

    /// What is there now and was not, and the other way round; empty: nothing has changed.
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let gone = self.0.difference(&later.0).map(|fact| format!("gone: {fact}"));
        let left = later.0.difference(&self.0).map(|fact| format!("left: {fact}"));
        gone.chain(left).collect()
    }

    /// Facts that mention `text`.
    pub fn mentions(&self, text: &str) -> Vec<String> {
        self.0.iter().filter(|fact| fact.contains(text)).cloned().collect()
    }

    /// Waits until the host looks like this again: the kernel takes namespaces and links away in its own time.
    ///
    /// # Errors
    /// It never does; the error lists what is left over and what is missing.
    pub fn wait_for_return(&self, scope: &Scope, limit: Duration) -> Result<()> {
        wait::until("the host to look as before", limit, || {
            let now = Self::take(scope).map_err(|error| error.to_string())?;
            let difference = self.difference(&now);
            if difference.is_empty() { Ok(()) } else { Err(difference.join("\n  ")) }
        })
    }
}

fn mounts(facts: &mut BTreeSet<String>) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let mut pins = 0;
    for line in table.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let place = words.get(4).unwrap_or(&"?");
        let kind = words.iter().position(|w| *w == "-").and_then(|at| words.get(at + 1)).unwrap_or(&"?");
        // The mount's id tells two mounts on one place apart, and a mount from its successor. A daemon that ends with no pod
        // takes the mount of its pins along, and the next one makes another.
        if place.ends_with("/state/ns") {
            pins += 1;
            facts.insert(format!("mount {place} {kind} (number {pins})"));
        } else {
            facts.insert(format!("mount {place} {kind} (id {})", words[0]));
        }
    }
    Ok(())
}

fn links(facts: &mut BTreeSet<String>) -> Result<()> {
    let table = fs::read_to_string("/proc/self/net/dev").context("read the list of links")?;
    for line in table.lines().skip(2) {
        if let Some((name, _)) = line.split_once(':') {
            facts.insert(format!("link {}", name.trim()));
        }
    }
    Ok(())
}

fn cgroups(scope: &Scope, facts: &mut BTreeSet<String>) {
    let top = scope.cgroup_root.join(scope.cgroup_parent.trim_start_matches('/'));
    let mut folders = vec![top];
    while let Some(folder) = folders.pop() {
        // A cgroup may go away while it is looked at.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        facts.insert(format!("cgroup {}", folder.display()));
        folders.extend(entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()));
    }
}

fn processes(scope: &Scope, facts: &mut BTreeSet<String>) {
    for pid in all_pids() {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let executes_monitor = executes(pid, &scope.monitor);
        let contained = fs::read_to_string(proc.join("cgroup")).is_ok_and(|text| {
            text.lines()
                .filter_map(|l| l.strip_prefix("0::"))
                .any(|path| is_below(path, &scope.cgroup_parent))
        });
        if (executes_monitor || contained) && !is_dead(&proc) {
            let name = fs::read_to_string(proc.join("comm")).unwrap_or_default();
            facts.insert(format!("process {pid} {}", name.trim()));
        }
    }
}

/// Whether process `pid` executes the file `program`, on whatever mount it has found that.
pub fn executes(pid: i32, program: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    file(&PathBuf::from(format!("/proc/{pid}/exe"))).is_some_and(|exe| Some(exe) == file(program))
}

/// Whether cgroup `path` is `parent` or lies below it.
fn is_below(path: &str, parent: &str) -> bool {
    let rest = path.trim_start_matches('/').strip_prefix(parent.trim_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Every pid that `/proc` lists.
pub fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str().and_then(|name| name.parse().ok())).collect()
}

/// A process that has ended and that its parent has not asked about; some virtual machines' init never does.
pub fn is_dead(proc: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(proc.join("stat")) else { return true };
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Whether process `pid` runs.
pub fn lives(pid: i32) -> bool {
    !is_dead(&PathBuf::from(format!("/proc/{pid}")))
}

fn nftables(facts: &mut BTreeSet<String>) -> Result<()> {
    let rules = command::run(Command::new("nft").args(["--stateless", "list", "ruleset"]))?.ok()?;
    let mut table = "";
    for line in rules.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "}") {
        if line.starts_with("table ") {
            table = line;
        }
        facts.insert(format!("nft {table} {line}"));
    }
    Ok(())
}

fn files(folder: &Path, depth: usize, facts: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    facts.insert(format!("file {}", folder.display()));
    for entry in entries.flatten() {
        facts.insert(format!("file {}", entry.path().display()));
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&entry.path(), depth - 1, facts);
        }
    }
}

/// Mount point of the cgroup2 file system, if there is one.
pub fn cgroup_root() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::{Snapshot, is_below};

    #[test]
    fn a_difference_names_both_directions() {
        let before = Snapshot(["link lo".to_owned(), "link old".to_owned()].into());
        let after = Snapshot(["link lo".to_owned(), "link new".to_owned()].into());
        assert_eq!(before.difference(&after), ["gone: link old", "left: link new"]);
        assert!(before.difference(&before).is_empty());
    }

    #[test]
    fn a_cgroup_with_a_longer_name_is_not_below() {
        assert!(is_below("/crisp-a/x", "/crisp-a"));
        assert!(is_below("/crisp-a", "crisp-a"));
        assert!(!is_below("/crisp-ab", "/crisp-a"));
    }
}
