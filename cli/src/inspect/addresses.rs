//! The IP addresses of a network namespace, as /proc tells them of any process in it.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result};

/// The addresses under which others can reach the network namespace of a process: not loopback's, not those of a link.
/// IPv4 comes first.
///
/// # Errors
/// The process is gone.
pub(super) fn of(pid: u32) -> Result<Vec<String>> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/net/{name}");
        match fs::read_to_string(&path) {
            // A kernel without IPv6 has no such file.
            Err(error) if error.kind() == ErrorKind::NotFound && name == "if_inet6" => Ok(String::new()),
            other => other.with_context(|| format!("read {path}")),
        }
    };
    let (four, six) = (ipv4(&read("fib_trie")?), ipv6(&read("if_inet6")?));
    Ok(four.iter().map(Ipv4Addr::to_string).chain(six.iter().map(Ipv6Addr::to_string)).collect())
}

/// fib_trie: a line `|-- ADDRESS`, then one for each of its routes; a route of the host to itself is `/32 host LOCAL`.
fn ipv4(trie: &str) -> BTreeSet<Ipv4Addr> {
    let mut last = None;
    let mut found = BTreeSet::new();
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found
                .extend(last.filter(|address: &Ipv4Addr| !address.is_loopback() && !address.is_link_local()));
        }
    }
    found
}

/// if_inet6: a line for each address, which is its first word, in hexadecimal.
fn ipv6(table: &str) -> BTreeSet<Ipv6Addr> {
    let addresses = table.lines().filter_map(|line| {
        let digits = line.split_whitespace().next()?;
        u128::from_str_radix(digits, 16).ok().map(Ipv6Addr::from_bits)
    });
    addresses.filter(|address| !address.is_loopback() && !address.is_unicast_link_local()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_reach_is_found() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
            |-- 127.0.0.1\n  /32 host LOCAL\n |-- 10.88.0.0\n  /16 link UNICAST\n |-- 10.88.0.7\n  /32 host LOCAL\n\
            Local:\n |-- 10.88.0.7\n  /32 host LOCAL\n |-- 10.88.255.255\n  /32 link BROADCAST\n";
        assert_eq!(ipv4(trie).into_iter().collect::<Vec<_>>(), [Ipv4Addr::new(10, 88, 0, 7)]);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
            fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n\
            fd000000000000000000000000000002 04 40 00 82     eth0\n";
        let found: Vec<_> = ipv6(table).into_iter().map(|address| address.to_string()).collect();
        assert_eq!(found, ["fd00::2"]);
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        assert!(of(u32::MAX).unwrap_err().to_string().contains("/proc/4294967295/net/fib_trie"));
    }
}
