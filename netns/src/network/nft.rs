//! The nftables table: one static set of rules in a table of our own, loaded and removed through nft(8), each time as
//! one transaction.
//!
//! It must not know which namespaces exist, or that other tables do.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::{NetworkConfig, NetworkError};

/// Where nft is looked for: in PATH, then where distributions put it, because a service's PATH may lack /usr/sbin.
const NFT: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// Replaces the table. Without masquerading there is none.
pub(super) fn load(config: &NetworkConfig) -> Result<(), NetworkError> {
    if !config.masquerade {
        return match unload(&config.nft_table) {
            // Without nft nobody can have loaded a table either.
            Err(NetworkError::NftMissing) => Ok(()),
            other => other,
        };
    }
    apply(&config.nft_table, &ruleset(config))
}

/// Removes the table. One that is not there is no error.
pub(super) fn unload(table: &str) -> Result<(), NetworkError> {
    apply(table, &empty(table))
}

/// Deletes the table, which the first line makes sure exists.
fn empty(table: &str) -> String {
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

/// The whole table as nft reads it. What leaves through the bridge keeps its source, so namespaces see each other's and
/// the host's real addresses; `lo` is left out because the host's own connections to a gateway address go there.
fn ruleset(config: &NetworkConfig) -> String {
    let NetworkConfig { bridge, nft_table: table, .. } = config;
    let mut text = empty(table);
    let _ = writeln!(text, "table inet {table} {{\n  chain postrouting {{");
    text.push_str("    type nat hook postrouting priority srcnat; policy accept;\n");
    for subnet in config.subnets() {
        let family = match subnet {
            ipnet::IpNet::V4(_) => "ip",
            ipnet::IpNet::V6(_) => "ip6",
        };
        // Random source ports: two connections that are translated at the same moment must not pick the same one.
        let _ = writeln!(
            text,
            "    {family} saddr {subnet} oifname != {{ \"lo\", \"{bridge}\" }} masquerade fully-random"
        );
    }
    text.push_str("  }\n}\n");
    text
}

/// Feeds one transaction to nft, in the calling thread's network namespace.
fn apply(table: &str, commands: &str) -> Result<(), NetworkError> {
    let mut child = spawn()?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(commands.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output().map_err(NetworkError::NftRun)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let stderr = if stderr.is_empty() { output.status.to_string() } else { stderr };
        return Err(NetworkError::NftRefused { table: table.to_owned(), stderr });
    }
    written.map_err(NetworkError::NftRun)
}

fn spawn() -> Result<std::process::Child, NetworkError> {
    for program in NFT {
        let spawned = Command::new(program)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        match spawned {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.map_err(NetworkError::NftRun),
        }
    }
    Err(NetworkError::NftMissing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_replaced_in_one_transaction() {
        let text = ruleset(&NetworkConfig::default());
        assert_eq!(
            text,
            "table inet crisp {}\n\
             delete table inet crisp\n\
             table inet crisp {\n  chain postrouting {\n    \
             type nat hook postrouting priority srcnat; policy accept;\n    \
             ip saddr 10.89.0.0/16 oifname != { \"lo\", \"crisp0\" } masquerade fully-random\n    \
             ip6 saddr fd63:7269:7370::/64 oifname != { \"lo\", \"crisp0\" } masquerade fully-random\n  }\n}\n"
        );
    }

    #[test]
    fn a_network_without_ipv6_has_no_rule_for_it() {
        let config = NetworkConfig { ipv6: None, ..NetworkConfig::default() };
        assert!(!ruleset(&config).contains("ip6"));
    }
}
