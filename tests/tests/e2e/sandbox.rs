//! What containers of one pod share and what they own: namespaces, hostname and DNS, /dev/shm, sysctls.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::Node;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "containers_share_net_ipc_and_uts",
        needs: &[],
        images: &["busybox"],
        run: shared_namespaces,
    },
    Case { name: "the_zero_value_is_one_pid_namespace", needs: &[], images: &["busybox"], run: pod_pid },
    Case { name: "host_namespaces_are_the_hosts", needs: &[], images: &["busybox"], run: host_namespaces },
    Case { name: "hostname_and_dns_files_are_the_pods", needs: &[], images: &["busybox"], run: files },
    Case { name: "dev_shm_is_the_pods", needs: &[], images: &["busybox"], run: shm },
    Case { name: "sysctls_hold_in_the_pod_only", needs: &[], images: &["busybox"], run: sysctls },
];

/// `/proc/1/ns/*` as a container with its own PID namespace sees itself.
fn namespace(node: &Node, id: &str, kind: &str) -> Result<String> {
    node.cri().shell(id, &format!("readlink /proc/self/ns/{kind}"))
}

fn shared_namespaces(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("shared")?;
    let one = node.launch(&pod, "one", "busybox", &["sleep", "3600"])?;
    let two = node.launch(&pod, "two", "busybox", &["sleep", "3600"])?;
    let other_pod = node.run_pod("other")?;
    let other = node.launch(&other_pod, "one", "busybox", &["sleep", "3600"])?;
    for (kind, shared) in
        [("net", true), ("ipc", true), ("uts", true), ("mnt", false), ("pid", false), ("cgroup", false)]
    {
        let (first, second) = (namespace(node, &one, kind)?, namespace(node, &two, kind)?);
        ensure!((first == second) == shared, "{kind}: {first} and {second}");
        let host = fs::read_link(format!("/proc/self/ns/{kind}"))?;
        ensure!(first.trim() != host.to_string_lossy(), "{kind} is the host's");
        ensure!(first != namespace(node, &other, kind)?, "{kind} is shared with another pod");
    }
    ensure!(node.cri().shell(&one, "cat /proc/self/cgroup")?.trim() == "0::/" || cgroup_is_root(node, &one)?);
    node.end_pod(&other_pod)?;
    node.end_pod(&pod)
}

/// On a host with v1 hierarchies /proc/self/cgroup has more lines; the v2 one begins with `0::`. An exec'd process may
/// sit in a sub-cgroup of the container's.
fn cgroup_is_root(node: &Node, id: &str) -> Result<bool> {
    let text = node.cri().shell(id, "cat /proc/1/cgroup")?;
    Ok(text.lines().any(|line| line == "0::/"))
}

fn pod_pid(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("pid")?;
    let launch = |name: &str| {
        let mut config = container_config(name, "busybox", &["sleep", "3600"]);
        config.linux = None;
        node.launch_as(&pod, &config)
    };
    let (one, two) = (launch("one")?, launch("two")?);
    ensure!(namespace(node, &one, "pid")? == namespace(node, &two, "pid")?);
    let seen = node.cri().shell(&one, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?;
    ensure!(seen.matches("sleep 3600").count() == 2, "{seen}");
    let first = node.cri().shell(&one, "tr '\\0' ' ' </proc/1/cmdline")?;
    ensure!(!first.contains("sleep"), "PID 1 is the application: {first}");
    // PID 1 is ours and gives nothing of the host away.
    ensure!(node.cri().exec(&one, &["ls", "/proc/1/root/etc"])?.code != 0, "the root of PID 1 is open");
    ensure!(
        node.cri()
            .shell(&one, "grep -E '^(Uid|CapEff|CapBnd):' /proc/1/status")?
            .contains("CapEff:\t0000000000000000")
    );
    // An orphan is reaped.
    node.cri().shell(&one, "(sleep 0.1 &) ; true")?;
    crisp_tests::wait::until("the orphan to be reaped", crisp_tests::wait::LONG, || {
        let states = node
            .cri()
            .shell(&two, "grep -h ^State /proc/[0-9]*/status 2>/dev/null; true")
            .unwrap_or_default();
        if states.contains('Z') { Err(states) } else { Ok(()) }
    })?;
    // The end of one is not the end of the other.
    node.cri().stop(&one, 0)?;
    ensure!(node.cri().container(&two)?.state() == cri::ContainerState::ContainerRunning);
    node.end_pod(&pod)
}

fn host_namespaces(node: &mut Node) -> Result<()> {
    let mut config = node.pod_config("host");
    let node_mode: i32 = cri::NamespaceMode::Node.into();
    let options =
        cri::NamespaceOption { network: node_mode, pid: node_mode, ipc: node_mode, ..Default::default() };
    let linux = config.linux.as_mut().context("linux")?;
    linux.security_context.as_mut().context("security context")?.namespace_options = Some(options.clone());
    config.hostname.clear();
    let pod = node.run_pod_as(config)?;
    let mut container = container_config("c", "busybox", &["sleep", "3600"]);
    let linux = container.linux.as_mut().context("linux")?;
    linux.security_context.as_mut().context("security context")?.namespace_options = Some(options);
    let id = node.launch_as(&pod, &container)?;
    for kind in ["net", "pid", "ipc"] {
        let host = fs::read_link(format!("/proc/self/ns/{kind}"))?;
        ensure!(namespace(node, &id, kind)?.trim() == host.to_string_lossy(), "{kind} is not the host's");
    }
    let status = node.cri().pod(&pod.id)?;
    ensure!(status.network.is_none_or(|network| network.ip.is_empty()), "a host-network pod with an IP");
    let requested =
        status.linux.context("linux")?.namespaces.context("namespaces")?.options.context("options")?;
    ensure!(requested.network() == cri::NamespaceMode::Node && requested.pid() == cri::NamespaceMode::Node);
    node.cri().stop(&id, 0)?;
    node.end_pod(&pod)
}

fn files(node: &mut Node) -> Result<()> {
    let mut config = node.pod_config("files");
    config.hostname = "my-host".to_owned();
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.10.10.10".to_owned()],
        searches: vec!["google.com".to_owned(), "svc".to_owned()],
        options: vec!["ndots:8".to_owned()],
    });
    let pod = node.run_pod_as(config)?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    ensure!(
        node.cri().shell(&id, "hostname; cat /etc/hostname; echo $HOSTNAME")?
            == "my-host\nmy-host\nmy-host\n"
    );
    let resolv = node.cri().shell(&id, "cat /etc/resolv.conf")?;
    ensure!(resolv == "search google.com svc\nnameserver 10.10.10.10\noptions ndots:8\n", "{resolv}");
    let hosts = node.cri().shell(&id, "cat /etc/hosts")?;
    ensure!(hosts.contains("localhost"), "{hosts}");
    node.end_pod(&pod)
}

fn shm(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("shm")?;
    let one = node.launch(&pod, "one", "busybox", &["sleep", "3600"])?;
    let two = node.launch(&pod, "two", "busybox", &["sleep", "3600"])?;
    node.cri().shell(&one, "echo shared >/dev/shm/note")?;
    ensure!(node.cri().shell(&two, "cat /dev/shm/note")? == "shared\n");
    let line = node.cri().shell(&two, "grep ' /dev/shm ' /proc/mounts")?;
    for option in ["nosuid", "nodev", "noexec", "size=65536k"] {
        ensure!(line.contains(option), "{option} is missing: {line}");
    }
    ensure!(node.cri().shell(&one, "ls -ld /dev/shm")?.starts_with("drwxrwxrwt"));
    node.end_pod(&pod)
}

fn sysctls(node: &mut Node) -> Result<()> {
    let host = fs::read_to_string("/proc/sys/kernel/shm_rmid_forced")?;
    let mut config = node.pod_config("sysctls");
    let wanted =
        [("kernel.shm_rmid_forced", "1"), ("fs.mqueue.msg_max", "100"), ("net.ipv4.ip_default_ttl", "77")];
    config.linux.as_mut().context("linux")?.sysctls =
        wanted.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let pod = node.run_pod_as(config)?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    for (key, value) in wanted {
        let seen = node.cri().shell(&id, &format!("cat /proc/sys/{}", key.replace('.', "/")))?;
        ensure!(seen.trim() == value, "{key} is {seen}");
    }
    ensure!(fs::read_to_string("/proc/sys/kernel/shm_rmid_forced")? == host, "the host's value has changed");
    node.end_pod(&pod)?;

    let mut config = node.pod_config("bad-sysctl");
    config.linux.as_mut().context("linux")?.sysctls =
        [("kernel.hostname".to_owned(), "x".to_owned()), ("vm.swappiness".to_owned(), "1".to_owned())].into();
    let message = node.cri().run_pod(&config).err().context("a sysctl of the host was accepted")?;
    ensure!(
        message.message().contains("vm.swappiness") || message.message().contains("kernel.hostname"),
        "{message:?}"
    );
    Ok(())
}
