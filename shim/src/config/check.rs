//! Values that have the right type and still cannot be meant. Pure: looks at no file and no device.

use std::{net::IpAddr, path::Path};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::systemd::unit::slice_for;

use super::{CgroupConfig, Config, ContainerConfig, ImageConfig, NetworkConfig, StreamConfig};

/// Bytes of an interface name without the NUL (kernel: IFNAMSIZ).
const INTERFACE_NAME_MAX: usize = 15;
/// Smallest MTU that carries IPv6 (RFC 8200, section 5).
const MTU_MIN: u32 = 1280;
const MTU_MAX: u32 = 65535;
/// Namespaces that are kept ready: more would only be memory of the kernel's, some 200 KiB each.
const POOL_MAX: usize = 256;
/// Bytes of a piece of a log line: shorter pieces would be mostly time stamps.
const LOG_LINE_MIN: u32 = 256;
/// Longest piece that the monitor takes into one write.
const LOG_LINE_MAX: u32 = 1 << 20;

impl Config {
    /// Notes everything that cannot work; each entry starts with the key's path.
    pub(super) fn check(&self, problems: &mut Vec<String>) {
        match self.listen.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => {}
            _ => problems.push(format!("listen: {:?} is not unix:// and an absolute path", self.listen)),
        }
        absolute("root", &self.root, problems);
        absolute("state", &self.state, problems);
        if !self.monitor.is_empty() {
            absolute("monitor", &self.monitor, problems);
        }
        if self.root == self.state {
            problems
                .push(format!("state: {:?} is root as well; they need directories of their own", self.state));
        }
        self.cgroup.check(problems);
        self.network.check(problems);
        self.image.check(problems);
        self.container.check(problems);
        self.stream.check(problems);
    }
}

fn absolute(key: &str, path: &str, problems: &mut Vec<String>) {
    let plain = Path::new(path).components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if !path.starts_with('/') || !plain {
        problems.push(format!("{key}: {path:?} is not an absolute path without .."));
    }
}

impl CgroupConfig {
    fn check(&self, problems: &mut Vec<String>) {
        absolute("cgroup.root", &self.root, problems);
        absolute("cgroup.default_parent", &self.default_parent, problems);
        if self.default_parent.trim_matches('/').is_empty() {
            problems
                .push("cgroup.default_parent: the root itself is not crisp's to make and remove".to_owned());
        }
        match self.driver.as_str() {
            "cgroupfs" => {}
            "systemd" => {
                if let Err(reason) = slice_for(&self.default_parent) {
                    problems.push(format!("cgroup.default_parent: {:?}: {reason}", self.default_parent));
                }
            }
            other => {
                problems.push(format!("cgroup.driver: {other:?} is neither \"cgroupfs\" nor \"systemd\""));
            }
        }
    }
}

impl NetworkConfig {
    fn check(&self, problems: &mut Vec<String>) {
        let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace();
        if self.bridge.is_empty()
            || self.bridge.len() > INTERFACE_NAME_MAX
            || matches!(self.bridge.as_str(), "." | "..")
            || self.bridge.contains(bad)
        {
            problems.push(format!("network.bridge: {:?} is no interface name of 1 to 15 bytes", self.bridge));
        }
        if !self.ipv4.is_empty() && self.ipv4.parse::<Ipv4Net>().is_err() {
            problems.push(format!("network.ipv4: {:?} is no range such as 10.89.0.0/16", self.ipv4));
        }
        if !self.ipv6.is_empty() && self.ipv6.parse::<Ipv6Net>().is_err() {
            problems.push(format!("network.ipv6: {:?} is no range such as fd00:1::/64", self.ipv6));
        }
        if self.ipv4.is_empty() && self.ipv6.is_empty() {
            problems.push("network.ipv4: empty, and network.ipv6 as well; pods need one of them".into());
        }
        if self.mtu != 0 && !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            problems.push(format!("network.mtu: {} is not 0 and not {MTU_MIN} to {MTU_MAX}", self.mtu));
        }
        let mut seen: Vec<IpNet> = Vec::new();
        for text in &self.native_ranges {
            let Ok(range) = text.parse::<IpNet>() else {
                problems.push(format!("network.native_ranges: {text:?} is no range such as 10.244.0.0/16"));
                continue;
            };
            if let Some(other) = seen.iter().find(|other| other.contains(&range) || range.contains(*other)) {
                problems.push(format!("network.native_ranges: {text:?} overlaps {other}"));
            }
            seen.push(range);
        }
        absolute("network.pin_dir", &self.pin_dir, problems);
        if !matches!(self.mode.as_str(), "auto" | "bridge" | "cni") {
            problems.push(format!("network.mode: {:?} is none of \"auto\", \"bridge\", \"cni\"", self.mode));
        }
        absolute("network.cni_conf_dir", &self.cni_conf_dir, problems);
        if self.cni_bin_dirs.is_empty() && self.mode != "bridge" {
            problems.push("network.cni_bin_dirs: empty; a CNI network has plugins".into());
        }
        for (index, directory) in self.cni_bin_dirs.iter().enumerate() {
            absolute(&format!("network.cni_bin_dirs[{index}]"), directory, problems);
            if directory.contains(':') {
                problems.push(format!(
                    "network.cni_bin_dirs[{index}]: {directory:?}: CNI_PATH cannot hold a colon"
                ));
            }
        }
        if self.cni_timeout_seconds == 0 {
            problems.push("network.cni_timeout_seconds: 0 would kill every plugin".into());
        }
        if self.pool > POOL_MAX {
            problems.push(format!("network.pool: {} is more than {POOL_MAX}", self.pool));
        }
    }
}

impl ImageConfig {
    fn check(&self, problems: &mut Vec<String>) {
        absolute("image.hosts_dir", &self.hosts_dir, problems);
        for (key, path) in [("image.auth_file", &self.auth_file), ("image.policy", &self.policy)] {
            if !path.is_empty() {
                absolute(key, path, problems);
            }
        }
        if self.max_parallel_downloads == 0 {
            problems.push("image.max_parallel_downloads: 0 would never fetch anything".into());
        }
        if self.progress_timeout_seconds == 0 {
            problems.push("image.progress_timeout_seconds: 0 would give up every pull".into());
        }
        for (index, reference) in self.pinned.iter().enumerate() {
            if reference.is_empty() || reference.contains(char::is_whitespace) {
                problems.push(format!("image.pinned[{index}]: {reference:?} is no image reference"));
            }
        }
    }
}

impl ContainerConfig {
    fn check(&self, problems: &mut Vec<String>) {
        if !(LOG_LINE_MIN..=LOG_LINE_MAX).contains(&self.log_line_bytes) {
            problems.push(format!(
                "container.log_line_bytes: {} is not {LOG_LINE_MIN} to {LOG_LINE_MAX}",
                self.log_line_bytes
            ));
        }
        for (index, directory) in self.cdi_spec_dirs.iter().enumerate() {
            absolute(&format!("container.cdi_spec_dirs[{index}]"), directory, problems);
        }
        for (index, name) in self.capabilities.iter().enumerate() {
            let known =
                !name.starts_with("CAP_") && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            if !known || name.is_empty() {
                problems
                    .push(format!("container.capabilities[{index}]: {name:?} is no name such as NET_RAW"));
            }
        }
    }
}

impl StreamConfig {
    fn check(&self, problems: &mut Vec<String>) {
        match self.address.parse::<IpAddr>() {
            Err(_) => problems.push(format!("stream.address: {:?} is no IP address", self.address)),
            Ok(address) if address.is_unspecified() => problems.push(format!(
                "stream.address: {:?} is every address of the node; clients are told one, so name it",
                self.address
            )),
            Ok(address) if !address.is_loopback() && self.tls_certificate.is_empty() => problems.push(format!(
                "stream.address: {:?} is not the loopback; that needs stream.tls_certificate and stream.tls_key",
                self.address
            )),
            Ok(_) => {}
        }
        for (key, file) in
            [("stream.tls_certificate", &self.tls_certificate), ("stream.tls_key", &self.tls_key)]
        {
            if !file.is_empty() {
                absolute(key, file, problems);
            }
        }
        if self.tls_certificate.is_empty() != self.tls_key.is_empty() {
            problems.push("stream.tls_certificate: certificate and stream.tls_key come together".into());
        }
    }
}
