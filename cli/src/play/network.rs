//! What a pod knows of the network: its addresses, /etc/hosts, and resolver settings.

use std::fs;

use anyhow::{Context, Result};
use crisp_proto::runtime::v1 as cri;

use super::folder::Folder;
use crate::{
    endpoint::{Asked, Clients},
    manifest::{Pod, expand::Facts},
};

/// Domain of pods with a subdomain; kubelet's usual one, as there is no cluster to ask.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Longest hostname (Kubernetes: a DNS label).
const HOSTNAME_MAX: usize = 63;

/// What can be said about a pod once its sandbox is ready.
pub(super) async fn facts(clients: &Clients, sandbox: &str, uid: &str) -> Result<Facts> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
    let answer = clients.runtime.clone().pod_sandbox_status(request).await.asked("ask for the sandbox")?;
    let network = answer.status.unwrap_or_default().network.unwrap_or_default();
    let more = network.additional_ips.into_iter().map(|one| one.ip);
    let pod_ips = std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect();
    Ok(Facts { uid: uid.to_owned(), node_name: node_name()?, pod_ips })
}

fn node_name() -> Result<String> {
    let file = "/proc/sys/kernel/hostname";
    Ok(fs::read_to_string(file).with_context(|| format!("read {file}"))?.trim().to_lowercase())
}

/// The pod's hostname; empty for the host's, which goes with its network.
pub(super) fn hostname(pod: &Pod) -> String {
    if pod.spec.host_network {
        return String::new();
    }
    let name = pod.spec.hostname.as_deref().unwrap_or(&pod.metadata.name);
    name.chars().take(HOSTNAME_MAX).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// Writes the file that containers see as /etc/hosts.
pub(super) fn write_hosts(pod: &Pod, facts: &Facts, folder: &Folder) -> Result<()> {
    let text = if pod.spec.host_network {
        let host = fs::read_to_string("/etc/hosts").context("read /etc/hosts")?;
        format!("# Kubernetes-managed hosts file (host network).\n{host}")
    } else {
        let mut text = "# Kubernetes-managed hosts file.\n\
            127.0.0.1\tlocalhost\n\
            ::1\tlocalhost ip6-localhost ip6-loopback\n\
            fe00::0\tip6-localnet\n\
            fe00::0\tip6-mcastprefix\n\
            fe00::1\tip6-allnodes\n\
            fe00::2\tip6-allrouters\n"
            .to_owned();
        let name = hostname(pod);
        for ip in &facts.pod_ips {
            text.push_str(&match &pod.spec.subdomain {
                Some(sub) => format!("{ip}\t{name}.{sub}.{}.svc.{CLUSTER_DOMAIN}\t{name}\n", pod.namespace()),
                None => format!("{ip}\t{name}\n"),
            });
        }
        text
    };
    let aliases = aliases(pod);
    let path = folder.hosts();
    fs::write(&path, text + &aliases).with_context(|| format!("write {}", path.display()))?;
    super::folder::set_mode(&path, 0o644)
}

fn aliases(pod: &Pod) -> String {
    if pod.spec.host_aliases.is_empty() {
        return String::new();
    }
    let lines =
        pod.spec.host_aliases.iter().map(|alias| format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
    std::iter::once("\n# Entries added by HostAliases.\n".to_owned()).chain(lines).collect()
}

/// Resolver settings. Without a cluster every policy but None means the host's settings (as kubelet does when it knows
/// no cluster DNS); `dnsConfig` is added to them.
pub(super) fn dns(pod: &Pod) -> Result<Option<cri::DnsConfig>> {
    let Some(own) = &pod.spec.dns_config else { return Ok(None) };
    let mut config = if pod.spec.dns_policy.as_deref() == Some("None") {
        cri::DnsConfig::default()
    } else {
        resolver(&fs::read_to_string("/etc/resolv.conf").context("read /etc/resolv.conf")?)
    };
    let options = own.options.iter().map(|option| match &option.value {
        Some(value) => format!("{}:{value}", option.name),
        None => option.name.clone(),
    });
    for (list, more) in [
        (&mut config.servers, own.nameservers.clone()),
        (&mut config.searches, own.searches.clone()),
        (&mut config.options, options.collect()),
    ] {
        for one in more {
            // A later value of an option wins.
            let name = one.split(':').next().unwrap_or_default().to_owned();
            list.retain(|other| {
                *other != one && !(other.starts_with(&format!("{name}:")) && one.contains(':'))
            });
            list.push(one);
        }
    }
    Ok(Some(config))
}

/// resolv.conf(5).
fn resolver(text: &str) -> cri::DnsConfig {
    let mut config = cri::DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words.next()),
            Some("search" | "domain") => config.searches = words.collect(),
            Some("options") => config.options.extend(words),
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn pod(spec: &str) -> Pod {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop}}\nspec:\n  containers: [{{name: c, image: i}}]\n{spec}"
        );
        manifest::parse(&text).unwrap().remove(0)
    }

    fn hosts(spec: &str) -> String {
        let base = tempfile::tempdir().unwrap();
        let pod = pod(spec);
        let folder = Folder::create(base.path(), &pod, "u", None).unwrap();
        let facts = Facts { pod_ips: vec!["10.89.0.2".into(), "fd00::2".into()], ..Default::default() };
        write_hosts(&pod, &facts, &folder).unwrap();
        fs::read_to_string(folder.hosts()).unwrap()
    }

    #[test]
    fn the_hosts_file_has_every_address_of_the_pod() {
        let text = hosts("");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{text}");
        assert!(text.ends_with("10.89.0.2\tweb\nfd00::2\tweb\n"), "{text}");
        assert!(hosts("  subdomain: sub\n").contains("10.89.0.2\tweb.sub.shop.svc.cluster.local\tweb\n"));
        let text = hosts("  hostAliases: [{ip: 1.2.3.4, hostnames: [a, b]}]\n");
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }

    #[test]
    fn hostnames_are_labels() {
        assert_eq!(hostname(&pod("  hostname: other\n")), "other");
        assert_eq!(hostname(&pod("  hostNetwork: true\n")), "");
        let mut long = pod("");
        long.metadata.name = format!("{}-b", "a".repeat(62));
        assert_eq!(hostname(&long), "a".repeat(62));
    }

    #[test]
    fn resolver_settings_are_the_hosts_unless_the_pod_has_some() {
        assert_eq!(dns(&pod("")).unwrap(), None);
        let spec = "  dnsPolicy: None\n  dnsConfig: {nameservers: [1.1.1.1], searches: [x], options: [{name: ndots, value: \"2\"}, {name: edns0}]}\n";
        let config = dns(&pod(spec)).unwrap().unwrap();
        assert_eq!((config.servers, config.searches), (vec!["1.1.1.1".to_owned()], vec!["x".to_owned()]));
        assert_eq!(config.options, ["ndots:2", "edns0"]);
        let host = resolver("# c\nsearch a b\nnameserver 9.9.9.9\noptions ndots:5 rotate\nnameserver ::1\n");
        assert_eq!((host.servers.len(), host.searches.len(), host.options.len()), (2, 2, 2));
    }
}
