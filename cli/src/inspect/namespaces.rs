//! Which namespaces a process is in. Two processes share one if its number (the inode in nsfs) is the same.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};

/// Kinds in the order in which they are shown, with what each isolates.
pub(super) const KINDS: [(&str, &str); 7] = [
    ("net", "interfaces, addresses, ports"),
    ("ipc", "System V IPC, message queues"),
    ("uts", "hostname"),
    ("pid", "process numbers"),
    ("mnt", "mounts"),
    ("cgroup", "view of the cgroup tree"),
    ("user", "user and group ids"),
];

/// Kind -> number.
pub(super) type Namespaces = BTreeMap<String, u64>;

/// Reads /proc/PID/ns.
///
/// # Errors
/// The process is gone, or this user may not look at it.
pub(super) fn of(pid: u32) -> Result<Namespaces> {
    KINDS
        .iter()
        .map(|(kind, _)| {
            let path = format!("/proc/{pid}/ns/{kind}");
            let link = fs::read_link(&path).with_context(|| format!("read {path}"))?;
            let number =
                number(&link.to_string_lossy()).with_context(|| format!("{path}: {}", link.display()))?;
            Ok(((*kind).to_owned(), number))
        })
        .collect()
}

/// `net:[4026531840]` -> 4026531840.
fn number(link: &str) -> Option<u64> {
    link.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_in_brackets() {
        assert_eq!(number("net:[4026531840]"), Some(4_026_531_840));
        assert_eq!(number("net"), None);
    }

    #[test]
    fn this_process_has_one_of_each_kind() {
        let own = of(std::process::id()).unwrap();
        assert_eq!(own.len(), KINDS.len());
        assert!(of(u32::MAX).unwrap_err().to_string().contains("/proc/4294967295/ns/net"));
    }
}
