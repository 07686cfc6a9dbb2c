//! What `crisp inspect` says, against what the kernel says.
//!
//! Must not know: which pod it is.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_tests::node::Node;

/// `crisp inspect` of a pod of two containers with the usual namespaces: each letter is the kernel's word.
pub(crate) fn inspected(node: &Node, pod: &str, containers: [&str; 2]) -> Result<()> {
    let table = node.crisp(&["inspect", pod])?.ok()?;
    let pids = [node.cri().pid(containers[0])?, node.cri().pid(containers[1])?];
    for (kind, letters) in [
        ("net", ["A", "A"]),
        ("ipc", ["A", "A"]),
        ("uts", ["A", "A"]),
        ("pid", ["A", "B"]),
        ("mnt", ["A", "B"]),
        ("cgroup", ["A", "B"]),
        ("user", ["H", "H"]),
    ] {
        let link = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        let (host, first, second) = (link(1)?, link(pids[0])?, link(pids[1])?);
        let kernel = match (first == host, second == host, first == second) {
            (true, true, _) => ["H", "H"],
            (true, false, _) => ["H", "A"],
            (false, true, _) => ["A", "H"],
            (false, false, true) => ["A", "A"],
            (false, false, false) => ["A", "B"],
        };
        ensure!(kernel == letters, "{kind} is not what it should be: {host:?} {first:?} {second:?}");
        let row =
            table.lines().map(|line| line.split_whitespace().filter(|cell| *cell != "│").collect::<Vec<_>>());
        let cells = row.into_iter().find(|cells| cells.first() == Some(&kind)).context(kind)?;
        ensure!(cells[1] == "H" && cells[2..4] == letters, "{kind} is {kernel:?}:\n{table}");
    }
    for word in ["NAMESPACES", "CGROUP", "MOUNTS", "host"] {
        ensure!(table.contains(word), "{word} is missing:\n{table}");
    }
    Ok(())
}
