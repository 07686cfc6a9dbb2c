//! `PodSandboxConfig` -> [`SandboxPlan`]: everything checked before anything is made.
//!
//! `linux.security_context`'s user, groups, seccomp, AppArmor and read-only root describe a sandbox process;
//! crisp has none, so they have no object here. `linux.resources` and `linux.overhead` are size hints for
//! virtual machines (CRI contract): kept with the record, never written to a cgroup.

use std::collections::HashMap;
use std::net::IpAddr;

use crisp_netns::network::{Bandwidth, HostPort};
use crisp_netns::sysctl::{Owner, Sysctl};
use crisp_proto::runtime::v1 as cri;
use crisp_runtime::userns::IdMappings;

use super::{ports, userns};
use crate::{config::NetworkConfig, error::RequestError};

/// Most that each list of a DNS configuration may come to, bytes. Kubernetes allows 2048 for searches.
const DNS_BYTES: usize = 16 << 10;
/// Longest hostname the kernel takes, in bytes (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES: usize = 64;

/// A checked sandbox configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxPlan {
    /// The name under which a repeated request finds the first one's result: the parts of its metadata, between them a
    /// character that none can have.
    pub key: String,
    /// Use the host's network (and, with it, its UTS namespace).
    pub host_network: bool,
    /// Use the host's System V IPC, POSIX queues and `/dev/shm`.
    pub host_ipc: bool,
    /// The containers share one PID namespace, which needs an init of crisp's.
    pub shared_pid: bool,
    /// Size of `/dev/shm`, bytes.
    pub shm_bytes: u64,
    /// The mapping of a user namespace of its own.
    pub user: Option<IdMappings>,
    /// Sysctls to write inside the new namespaces, defaults among them, sorted by name.
    pub sysctls: Vec<(String, String)>,
    /// Ports of the host that lead into it.
    pub host_ports: Vec<HostPort>,
    /// What it may send and receive.
    pub bandwidth: Bandwidth,
}

/// Checks a sandbox configuration.
///
/// # Errors
/// `Invalid` or `Unimplemented`, naming the field.
pub fn plan(config: &cri::PodSandboxConfig, network: &NetworkConfig) -> Result<SandboxPlan, RequestError> {
    let key = key(config)?;
    check_notes(&config.labels, &config.annotations)?;
    check_hostname(&config.hostname)?;
    check_log_directory(&config.log_directory)?;
    if let Some(dns) = &config.dns_config {
        check_dns(dns)?;
    }
    let host_ports = ports::host_ports(&config.port_mappings)?;
    let bandwidth = ports::bandwidth(&config.annotations)?;
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let options = security.namespace_options.clone().unwrap_or_default();
    let user = userns::wanted(Some(&options))?;
    let host_network = shared_or_host("network", options.network)?;
    let host_ipc = shared_or_host("ipc", options.ipc)?;
    let shared_pid = shared_pid(options.pid)?;
    super::selinux::check("linux.security_context.selinux_options", security.selinux_options.as_ref())?;
    let defaults = if host_network { Vec::new() } else { default_sysctls(network, user.as_ref()) };
    let sysctls = sysctls(&linux, defaults, host_network, host_ipc, user.as_ref())?;
    let shm_bytes = super::shm::size(config, host_ipc)?;
    // The host's network has the host's ports and nothing to limit.
    let (host_ports, bandwidth) = match host_network {
        true => Default::default(),
        false => (host_ports, bandwidth),
    };
    Ok(SandboxPlan {
        key,
        host_network,
        host_ipc,
        shared_pid,
        shm_bytes,
        user,
        sysctls,
        host_ports,
        bandwidth,
    })
}

/// Stands between the parts of a key. `a_b` in `c` and `a` in `b_c` are two names, so it is no character of a name.
const SEPARATOR: char = '\u{1f}';

impl SandboxPlan {
    /// The key as people write it: `name_namespace_uid_attempt`.
    #[must_use]
    pub fn shown_key(&self) -> String {
        self.key.replace(SEPARATOR, "_")
    }
}

/// The name under which a sandbox is reserved.
fn key(config: &cri::PodSandboxConfig) -> Result<String, RequestError> {
    let Some(metadata) = &config.metadata else {
        return Err(RequestError::invalid("sandbox config: metadata is missing"));
    };
    for (field, value) in
        [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)]
    {
        if value.is_empty() {
            return Err(RequestError::invalid(format!("sandbox config: metadata.{field} is empty")));
        }
        if value.len() > 1024 || value.chars().any(char::is_control) {
            return Err(RequestError::invalid(format!(
                "sandbox config: metadata.{field} is too long or has control characters"
            )));
        }
    }
    let attempt = metadata.attempt.to_string();
    Ok([&metadata.name, &metadata.namespace, &metadata.uid, &attempt]
        .map(String::as_str)
        .join(&SEPARATOR.to_string()))
}

/// Most bytes of labels and annotations of one object: four times what Kubernetes allows. They are in every list, and a
/// client takes 16 MiB of a list: one object must not be what breaks them all.
const NOTES_BYTES: usize = 1 << 20;

/// Checks the size of what a client has an object remember.
///
/// # Errors
/// `Invalid`.
pub fn check_notes(
    labels: &HashMap<String, String>,
    annotations: &HashMap<String, String>,
) -> Result<(), RequestError> {
    let bytes: usize = labels.iter().chain(annotations).map(|(key, value)| key.len() + value.len()).sum();
    if bytes <= NOTES_BYTES {
        return Ok(());
    }
    Err(RequestError::invalid(format!(
        "labels and annotations have {bytes} bytes; at most {NOTES_BYTES} are kept"
    )))
}

fn check_hostname(hostname: &str) -> Result<(), RequestError> {
    if hostname.len() > HOSTNAME_BYTES {
        return Err(RequestError::invalid(format!(
            "hostname has {} bytes; the kernel takes {HOSTNAME_BYTES}",
            hostname.len()
        )));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if hostname.chars().all(allowed) {
        Ok(())
    } else {
        Err(RequestError::invalid(format!("hostname {hostname:?} has a character no hostname may have")))
    }
}

fn check_log_directory(directory: &str) -> Result<(), RequestError> {
    if directory.is_empty() {
        return Ok(());
    }
    check_absolute("log_directory", directory)
}

/// An absolute path without `..` and control characters.
///
/// # Errors
/// `Invalid`, naming the field.
pub fn check_absolute(field: &str, path: &str) -> Result<(), RequestError> {
    let clean = path.starts_with('/')
        && !path.split('/').any(|part| part == "..")
        && !path.chars().any(char::is_control)
        && path.len() < 4096;
    if clean {
        Ok(())
    } else {
        Err(RequestError::invalid(format!("{field} {path:?} is not an absolute path without `..`")))
    }
}

fn check_dns(dns: &cri::DnsConfig) -> Result<(), RequestError> {
    let groups = [("servers", &dns.servers), ("searches", &dns.searches), ("options", &dns.options)];
    for (field, values) in groups {
        for value in values {
            if value.is_empty() || value.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(RequestError::invalid(format!("dns_config.{field}: {value:?} is not one word")));
            }
        }
        let bytes: usize = values.iter().map(|value| value.len() + 1).sum();
        if bytes > DNS_BYTES {
            return Err(RequestError::invalid(format!(
                "dns_config.{field}: {bytes} bytes are more than {DNS_BYTES}"
            )));
        }
    }
    for server in &dns.servers {
        // A link-local address may name its interface (resolv.conf(5)).
        let address = server.split_once('%').map_or(server.as_str(), |(address, _)| address);
        if address.parse::<IpAddr>().is_err() {
            return Err(RequestError::invalid(format!("dns_config.servers: {server:?} is no address")));
        }
    }
    Ok(())
}

/// `false`: the pod's own; `true`: the host's.
fn shared_or_host(which: &str, mode: i32) -> Result<bool, RequestError> {
    match cri::NamespaceMode::try_from(mode) {
        Ok(cri::NamespaceMode::Pod | cri::NamespaceMode::Container) => Ok(false),
        Ok(cri::NamespaceMode::Node) => Ok(true),
        _ => Err(RequestError::invalid(format!(
            "linux.security_context.namespace_options.{which}: mode {mode} is not possible"
        ))),
    }
}

fn shared_pid(mode: i32) -> Result<bool, RequestError> {
    match cri::NamespaceMode::try_from(mode) {
        Ok(cri::NamespaceMode::Target) | Err(_) => Err(RequestError::invalid(format!(
            "linux.security_context.namespace_options.pid: mode {mode} is not possible for a sandbox"
        ))),
        Ok(mode) => Ok(mode == cri::NamespaceMode::Pod),
    }
}

/// What a pod's own network has without being asked for it.
fn default_sysctls(network: &NetworkConfig, user: Option<&IdMappings>) -> Vec<(String, String)> {
    let everybody = || ("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    let ports = ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
    let ping = || user.and_then(userns::all_ping_groups).unwrap_or_else(everybody);
    let ports = network.unprivileged_ports.then_some(ports);
    ports.into_iter().chain(network.unprivileged_ping.then(ping)).collect()
}

/// Only names that a namespace of the pod owns, and values that are one line: CVE-2022-0811 smuggled a second
/// setting in a value, CVE-2022-0532 reached the host through a namespace that the pod did not have.
fn sysctls(
    linux: &cri::LinuxPodSandboxConfig,
    defaults: Vec<(String, String)>,
    host_network: bool,
    host_ipc: bool,
    user: Option<&IdMappings>,
) -> Result<Vec<(String, String)>, RequestError> {
    let mut all: std::collections::BTreeMap<_, _> = defaults.into_iter().collect();
    for (name, value) in &linux.sysctls {
        let refuse = |why: &str| Err(RequestError::invalid(format!("linux.sysctls: {name:?} {why}")));
        let sysctl =
            Sysctl::parse(name).map_err(|error| RequestError::invalid(format!("linux.sysctls: {error}")))?;
        if value.is_empty() || value.chars().any(char::is_control) || value.len() > 1024 {
            return refuse("has a value that is not one short line");
        }
        match sysctl.owner() {
            Owner::Ipc if host_ipc => return refuse("would change the host's IPC namespace"),
            Owner::Net if host_network => return refuse("would change the host's network"),
            Owner::Uts => return refuse("is what the field hostname is for"),
            Owner::Ipc | Owner::Net => {}
        }
        let value = user.map_or(Ok(value.clone()), |mappings| userns::sysctl(mappings, name, value))?;
        all.insert(name.clone(), value);
    }
    Ok(all.into_iter().collect())
}

/// The text of `/etc/resolv.conf` for a DNS configuration; the host's own file when there is none.
#[must_use]
pub fn resolv_conf(dns: Option<&cri::DnsConfig>, host: &str) -> String {
    let Some(dns) = dns else { return host.to_owned() };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn config() -> cri::PodSandboxConfig {
        let metadata = cri::PodSandboxMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: "default".into(),
            attempt: 2,
        };
        cri::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
    }

    fn network() -> NetworkConfig {
        NetworkConfig::default()
    }

    #[test]
    fn what_a_pod_gets_without_asking_is_the_operators_choice() {
        let network = NetworkConfig { unprivileged_ports: false, unprivileged_ping: false, ..network() };
        assert_eq!(plan(&config(), &network).unwrap().sysctls, []);
        let asked =
            plan(&with_sysctl("net.ipv4.ip_unprivileged_port_start", "80"), &network).unwrap().sysctls;
        assert_eq!(asked, [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())]);
    }

    fn with_sysctl(name: &str, value: &str) -> cri::PodSandboxConfig {
        let linux = cri::LinuxPodSandboxConfig {
            sysctls: [(name.to_owned(), value.to_owned())].into(),
            ..Default::default()
        };
        cri::PodSandboxConfig { linux: Some(linux), ..config() }
    }

    #[test]
    fn the_least_config_makes_a_pod_with_its_own_namespaces() {
        let plan = plan(&config(), &network()).unwrap();
        assert_eq!(plan.shown_key(), "web_default_u_2");
        assert!(!plan.host_network && !plan.host_ipc);
    }

    #[test]
    fn c04_c05_sysctls_reach_only_namespaces_that_the_pod_has() {
        for name in
            ["kernel.core_pattern", "kernel.shm_rmid_forced/../core_pattern", "vm.swappiness", "", "net..x"]
        {
            assert_eq!(
                plan(&with_sysctl(name, "1"), &network()).unwrap_err().class,
                Class::Invalid,
                "{name}"
            );
        }
        for value in ["1\nkernel.core_pattern=|/evil", "1\0", ""] {
            assert!(plan(&with_sysctl("kernel.shm_rmid_forced", value), &network()).is_err(), "{value:?}");
        }
        assert!(plan(&with_sysctl("kernel.shm_rmid_forced", "1"), &network()).is_ok());
        let mut host = with_sysctl("net.ipv4.ip_forward", "1");
        let options = cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..Default::default() };
        host.linux.as_mut().unwrap().security_context =
            Some(cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() });
        assert!(plan(&host, &network()).unwrap_err().text.contains("host's network"));
    }

    #[test]
    fn c13_hostname_and_dns_are_checked() {
        for hostname in ["a\nb", "a b", &"x".repeat(65)] {
            assert!(
                plan(&cri::PodSandboxConfig { hostname: hostname.into(), ..config() }, &network()).is_err()
            );
        }
        let dns =
            cri::DnsConfig { servers: vec!["1.1.1.1\nnameserver 6.6.6.6".into()], ..Default::default() };
        assert!(plan(&cri::PodSandboxConfig { dns_config: Some(dns), ..config() }, &network()).is_err());
        let servers = ["10.0.0.1", "fd00::1", "fe80::1%eth0"].map(str::to_owned).to_vec();
        let dns = cri::DnsConfig { servers, ..Default::default() };
        assert!(plan(&cri::PodSandboxConfig { dns_config: Some(dns), ..config() }, &network()).is_ok());
    }

    #[test]
    fn resolv_conf_is_as_kubelet_expects() {
        let dns = cri::DnsConfig {
            servers: vec!["10.10.10.10".into()],
            searches: vec!["google.com".into(), "x.y".into()],
            options: vec!["ndots:8".into()],
        };
        assert_eq!(
            resolv_conf(Some(&dns), "host"),
            "search google.com x.y\nnameserver 10.10.10.10\noptions ndots:8\n"
        );
        assert_eq!(resolv_conf(Some(&cri::DnsConfig::default()), "host"), "");
        assert_eq!(resolv_conf(None, "host"), "host");
    }
}
