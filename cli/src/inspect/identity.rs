//! Who a process is, seen from the host and from its own namespaces: its number and its user.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// A process on both sides.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Identity {
    /// Its number in its own PID namespace.
    pub(super) pid_inside: u32,
    /// Its user on the host.
    pub(super) user: u32,
    /// The same user in its own user namespace; `None` where that has no name for it.
    pub(super) user_inside: Option<u32>,
    /// Which users of the host the users inside are.
    pub(super) user_map: Vec<Range>,
}

/// A range of users: `inside` is `host`, `inside + 1` is `host + 1`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Range {
    pub(super) inside: u32,
    pub(super) host: u32,
    pub(super) length: u32,
}

/// Reads /proc/PID/status and /proc/PID/uid_map.
///
/// # Errors
/// The process is gone.
pub(super) fn of(pid: u32) -> Result<Identity> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    };
    parse(&read("status")?, &read("uid_map")?)
        .with_context(|| format!("/proc/{pid}/status has changed its form"))
}

fn parse(status: &str, map: &str) -> Option<Identity> {
    let numbers = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<Vec<u32>>>()
    };
    // The second is the effective user, the one that counts.
    let user = *numbers("Uid")?.get(1)?;
    let user_map = map.lines().map(range).collect::<Option<Vec<_>>>()?;
    let user_inside = user_map.iter().find_map(|range| {
        let offset = user.checked_sub(range.host).filter(|offset| *offset < range.length)?;
        range.inside.checked_add(offset)
    });
    Some(Identity { pid_inside: *numbers("NSpid")?.last()?, user, user_inside, user_map })
}

fn range(line: &str) -> Option<Range> {
    let mut numbers = line.split_whitespace().map(|word| word.parse().ok());
    let mut next = || numbers.next().flatten();
    Some(Range { inside: next()?, host: next()?, length: next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tsh\nUid:\t196608\t196609\t196608\t196608\nNSpid:\t4242\t7\n";

    #[test]
    fn both_sides_are_told() {
        let found = parse(STATUS, "         0     196608      65536\n").unwrap();
        let range = Range { inside: 0, host: 196_608, length: 65_536 };
        let expected = Identity { pid_inside: 7, user: 196_609, user_inside: Some(1), user_map: vec![range] };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_user_without_a_name_inside_has_none() {
        assert_eq!(parse(STATUS, "0 0 1000\n5 196609 1\n").unwrap().user_inside, Some(5));
        assert_eq!(parse(STATUS, "0 0 1000\n").unwrap().user_inside, None);
        assert_eq!(parse(STATUS, "0 0 4294967295\n").unwrap().user_inside, Some(196_609));
        assert_eq!(parse("NSpid:\t1\n", ""), None);
    }

    #[test]
    fn this_process_is_itself() {
        let own = of(std::process::id()).unwrap();
        assert_eq!(own.user, rustix::process::geteuid().as_raw());
    }
}
