//! Pods with user namespaces: who their processes are, inside and outside, and what belongs to whom.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::{Node, Pod};

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "user_namespaces_are_reported", needs: &[], images: &[], run: reported },
    Case {
        name: "root_in_a_user_namespace_is_somebody_else_outside",
        needs: &[],
        images: &["busybox"],
        run: identity,
    },
    Case { name: "files_belong_to_whom_they_should", needs: &[], images: &["busybox"], run: files },
    Case { name: "any_user_of_the_pod_works", needs: &[], images: &["busybox"], run: user },
    Case { name: "network_and_ipc_belong_to_the_pods_root", needs: &[], images: &["busybox"], run: network },
    Case { name: "two_pods_have_nothing_of_each_other", needs: &[], images: &["busybox"], run: two_pods },
    Case { name: "a_user_namespace_outlives_the_daemon", needs: &[], images: &["busybox"], run: restarted },
    Case {
        name: "the_hosts_network_goes_with_a_user_namespace",
        needs: &[],
        images: &["busybox"],
        run: host_network,
    },
    Case {
        name: "privileged_in_a_user_namespace_is_not_privileged_outside",
        needs: &[],
        images: &["busybox"],
        run: privileged,
    },
];

/// First id outside of the pods here; the next pod's ids begin where the last one's end, as kubelet does it.
pub(crate) const HOST: u32 = 65536 * 3;
/// How many ids.
const LENGTH: u32 = 65536;

/// Kubelet's kind of mapping: one range.
pub(crate) fn range(host: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping { container_id: 0, host_id: host, length: LENGTH }]
}

/// Namespace options with that mapping.
pub(crate) fn options(host: u32, pid: cri::NamespaceMode) -> cri::NamespaceOption {
    let userns =
        cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: range(host), gids: range(host) };
    cri::NamespaceOption { pid: pid.into(), userns_options: Some(userns), ..Default::default() }
}

/// A sandbox's configuration with these options.
pub(crate) fn sandbox(
    node: &Node,
    name: &str,
    options: cri::NamespaceOption,
) -> Result<cri::PodSandboxConfig> {
    let mut config = node.pod_config(name);
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    security.context("security context")?.namespace_options = Some(options);
    Ok(config)
}

/// A container for a sandbox with these options.
pub(crate) fn container(
    name: &str,
    command: &[&str],
    options: &cri::NamespaceOption,
) -> Result<cri::ContainerConfig> {
    let mut config = container_config(name, "busybox", command);
    security(&mut config)?.namespace_options = Some(options.clone());
    Ok(config)
}

/// The security context of a container.
pub(crate) fn security(config: &mut cri::ContainerConfig) -> Result<&mut cri::LinuxContainerSecurityContext> {
    let linux = config.linux.as_mut().context("linux")?;
    linux.security_context.as_mut().context("security context")
}

/// A volume with the pod's mapping, as kubelet sends it.
pub(crate) fn volume(host_path: &Path, container_path: &str, host: u32) -> cri::Mount {
    cri::Mount {
        host_path: host_path.display().to_string(),
        container_path: container_path.to_owned(),
        uid_mappings: range(host),
        gid_mappings: range(host),
        ..Default::default()
    }
}

fn own() -> cri::NamespaceOption {
    options(HOST, cri::NamespaceMode::Container)
}

/// A pod, and a container of it that sleeps.
fn sleeper(node: &Node, name: &str) -> Result<(Pod, String)> {
    let pod = node.run_pod_as(sandbox(node, name, own())?)?;
    let id = node.launch_as(&pod, &container("c", &["sleep", "3600"], &own())?)?;
    Ok((pod, id))
}

fn owner(path: &Path) -> Result<(u32, u32)> {
    let file = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    Ok((file.uid(), file.gid()))
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn reported(node: &mut Node) -> Result<()> {
    let status = node.cri().status(cri::StatusRequest { verbose: false })?;
    let handler =
        status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).context("default")?;
    let features = handler.features.context("features")?;
    ensure!(features.user_namespaces, "{}", node.daemon_said());
    ensure!(status.features.context("features")?.user_namespaces_host_network);
    // Nothing of the probe is left; the daemon itself stayed where it is.
    let own = fs::read_to_string(format!("/proc/{}/uid_map", node.daemon_pid()?))?;
    ensure!(own == fs::read_to_string("/proc/self/uid_map")?, "{own}");
    Ok(())
}

fn identity(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "identity")?;
    let map = format!("0 {HOST} {LENGTH}");
    let pid = node.cri().pid(&id)?;
    for file in ["uid_map", "gid_map"] {
        ensure!(words(&node.cri().shell(&id, &format!("cat /proc/1/{file}"))?) == words(&map));
        ensure!(words(&fs::read_to_string(format!("/proc/{pid}/{file}"))?) == words(&map));
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    for line in [format!("Uid:\t{HOST}\t{HOST}\t{HOST}\t{HOST}"), format!("Gid:\t{HOST}\t{HOST}")] {
        ensure!(status.contains(&line), "{line:?} is not in\n{status}");
    }
    // The first process, and one that is exec'd: root inside, with the default capabilities and no more.
    for process in ["1", "self"] {
        let said = node.cri().shell(&id, &format!("cat /proc/{process}/status"))?;
        for line in
            ["Uid:\t0\t0\t0\t0", "Gid:\t0\t0\t0\t0", "CapInh:\t0000000000000000", "CapEff:\t00000000a80425fb"]
        {
            ensure!(said.contains(line), "{line:?} is not in\n{said}");
        }
    }
    ensure!(node.cri().shell(&id, "id -u; id -g; hostname")? == "0\n0\nidentity\n");
    // What belongs to the host's root is out of reach, whatever root inside may do to files of its own.
    for line in
        ["echo 1 >/proc/sys/kernel/core_pattern", "echo b >/proc/sysrq-trigger", "mknod /tmp/null c 1 3"]
    {
        let said = node.cri().exec(&id, &["sh", "-c", line])?;
        ensure!(said.code != 0, "{line}: {said:?}");
    }
    // Each of these namespaces is the pod's; the mapping of one process says which user namespace it is.
    for kind in ["user", "net", "ipc", "uts", "mnt", "pid", "cgroup"] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        ensure!(link(&pid.to_string())? != link("self")?, "{kind} is the host's");
    }
    let echoed =
        node.cri().pod(&pod.id)?.linux.and_then(|linux| linux.namespaces).and_then(|all| all.options);
    ensure!(echoed == Some(own()), "{echoed:?}");
    node.end_pod(&pod)
}

fn files(node: &mut Node) -> Result<()> {
    let (mapped, plain) = (node.folder().join("mapped"), node.folder().join("plain"));
    for folder in [&mapped, &plain] {
        fs::create_dir(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
    }
    fs::write(mapped.join("given"), "x")?;
    let pod = node.run_pod_as(sandbox(node, "files", own())?)?;
    let mut config = container("c", &["sleep", "3600"], &own())?;
    config.mounts = vec![
        volume(&mapped, "/mapped", HOST),
        cri::Mount { uid_mappings: vec![], gid_mappings: vec![], ..volume(&plain, "/plain", HOST) },
    ];
    let id = node.launch_as(&pod, &config)?;
    let seen = node.cri().shell(
        &id,
        "stat -c '%n %u:%g %a' / /bin/busybox /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /dev /dev/null \
         /dev/pts/ptmx /mapped/given /proc/self/fd/1",
    )?;
    for line in seen.lines() {
        ensure!(line.contains(" 0:0 "), "not root's: {line}\n{seen}");
    }
    ensure!(seen.contains("/dev/shm 0:0 1777") && seen.contains("/dev/null 0:0 666"), "{seen}");
    ensure!(node.cri().shell(&id, "stat -c %u /plain")? == "65534\n", "the host's root has no place inside");
    let made = "set -e; echo a >>/etc/hosts; echo a >/dev/shm/x; rm /dev/shm/x; mkdir /own; chown 7:8 /own; \
                touch /etc/own; chown 1000:1001 /bin/busybox; \
                for at in /mapped /plain; do touch $at/root; touch $at/user; chown 1000:1001 $at/user; done";
    node.cri().shell(&id, made)?;
    ensure!(node.cri().shell(&id, "stat -c %u:%g /bin/busybox /mapped/user")? == "1000:1001\n1000:1001\n");
    // A mapped volume holds the ids that the container sees, another those that the host sees.
    ensure!(owner(&mapped.join("root"))? == (0, 0) && owner(&mapped.join("user"))? == (1000, 1001));
    ensure!(owner(&plain.join("root"))? == (HOST, HOST));
    ensure!(owner(&plain.join("user"))? == (HOST + 1000, HOST + 1001));
    let upper = node.root().join("containers").join(&id).join("upper");
    ensure!(owner(&upper)? == (HOST, HOST) && owner(&upper.join("own"))? == (HOST + 7, HOST + 8));
    for layer in fs::read_dir(node.root().join("layers"))?.flatten() {
        let binary: PathBuf = layer.path().join("bin/busybox");
        ensure!(!binary.exists() || owner(&binary)? == (0, 0), "{} was touched", binary.display());
    }
    node.end_pod(&pod)
}

fn user(node: &mut Node) -> Result<()> {
    let pod = node.run_pod_as(sandbox(node, "user", own())?)?;
    let script = "id -u; id -g; id -G; echo err >/dev/stderr; echo out >/dev/stdout; grep CapEff /proc/self/status; \
                  sleep 3600";
    let mut config = container("c", &["sh", "-c", script], &own())?;
    let context = security(&mut config)?;
    context.run_as_user = Some(cri::Int64Value { value: 1000 });
    context.run_as_group = Some(cri::Int64Value { value: 1001 });
    context.supplemental_groups = vec![7, 65535];
    context.no_new_privs = true;
    context.seccomp = Some(cri::SecurityProfile::default());
    let id = node.launch_as(&pod, &config)?;
    let lines = crate::logs::wait_for_lines(node, &id, 6)?;
    let said: Vec<_> = lines.iter().map(|line| line.content.as_str()).collect();
    for line in ["1000", "1001", "err", "out", "CapEff:\t0000000000000000"] {
        ensure!(said.contains(&line), "{line:?} is not in {said:?}");
    }
    let groups = "1001 7 65535";
    ensure!(said.contains(&groups), "{said:?}");
    ensure!(
        node.cri().shell(&id, "id -G; grep Seccomp: /proc/self/status")?
            == format!("{groups}\nSeccomp:\t2\n")
    );
    let status = fs::read_to_string(format!("/proc/{}/status", node.cri().pid(&id)?))?;
    ensure!(status.contains(&format!("Uid:\t{}", HOST + 1000)), "{status}");
    ensure!(status.contains(&format!("Groups:\t{} {} {}", HOST + 7, HOST + 1001, HOST + 65535)), "{status}");
    // The log is the host's, written by the monitor.
    ensure!(owner(Path::new(&node.cri().container(&id)?.log_path))? == (0, 0));
    node.end_pod(&pod)
}

fn network(node: &mut Node) -> Result<()> {
    let mut config = sandbox(node, "network", own())?;
    let sysctls = [
        ("net.ipv4.ip_local_port_range", "20000 20100"),
        ("net.ipv4.ping_group_range", "0 10"),
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "100"),
    ];
    let linux = config.linux.as_mut().context("linux")?;
    linux.sysctls = sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let pod = node.run_pod_as(config)?;
    let mut config = container("c", &["sleep", "3600"], &own())?;
    security(&mut config)?.capabilities =
        Some(cri::Capability { add_capabilities: vec!["NET_ADMIN".to_owned()], ..Default::default() });
    // The default AppArmor profile lets nobody write below /proc/sys.
    let unconfined = cri::security_profile::ProfileType::Unconfined.into();
    security(&mut config)?.apparmor =
        Some(cri::SecurityProfile { profile_type: unconfined, ..Default::default() });
    let id = node.launch_as(&pod, &config)?;
    for (name, value) in sysctls {
        let said = node.cri().shell(&id, &format!("cat /proc/sys/{}", name.replace('.', "/")))?;
        ensure!(words(&said) == words(value), "{name}: {said}");
    }
    // The right to administer counts where the namespace belongs to the one who has it.
    node.cri().shell(
        &id,
        "set -e; ip link set lo mtu 1400; echo 20001 20099 >/proc/sys/net/ipv4/ip_local_port_range; \
         [ -e /sys/class/net/eth0 ]; [ $(stat -c %u /proc/sys/net/ipv4/ip_forward) = 0 ]; \
         [ $(stat -c %u /dev/mqueue) = 0 ]; (nc -l -p 80 & echo $! >/tmp/pid); kill $(cat /tmp/pid)",
    )?;
    let other = node.run_pod("other")?;
    let ips = crate::network::ips(node, &other.id)?;
    let server =
        node.launch(&other, "c", "busybox", &["sh", "-c", "while :; do echo hi | nc -l -p 8080; done"])?;
    let ip = ips.first().context("no address")?;
    crisp_tests::wait::until("an answer", crisp_tests::wait::LONG, || {
        let said = node.cri().exec(&id, &["nc", "-w", "5", &ip.to_string(), "8080"]);
        match said.map_err(|error| error.to_string())? {
            said if said.stdout == "hi\n" => Ok(()),
            said => Err(format!("{said:?}")),
        }
    })?;
    ensure!(node.cri().container(&server)?.state() == cri::ContainerState::ContainerRunning);
    node.end_pod(&other)?;
    node.end_pod(&pod)
}

/// Both share a PID namespace each, whose init is crisp's.
fn two_pods(node: &mut Node) -> Result<()> {
    let shared = |host| options(host, cri::NamespaceMode::Pod);
    let folder = node.folder().join("common");
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    let mut pods = Vec::new();
    for (name, host) in [("one", HOST), ("other", HOST + LENGTH)] {
        let pod = node.run_pod_as(sandbox(node, name, shared(host))?)?;
        let mut config = container("c", &["sleep", "3600"], &shared(host))?;
        config.mounts = vec![cri::Mount {
            host_path: folder.display().to_string(),
            container_path: "/common".to_owned(),
            ..Default::default()
        }];
        let first = node.launch_as(&pod, &config)?;
        let second = node.launch_as(&pod, &container("d", &["sleep", "1234"], &shared(host))?)?;
        ensure!(
            words(&node.cri().shell(&first, "cat /proc/1/uid_map")?) == words(&format!("0 {host} {LENGTH}"))
        );
        ensure!(node.cri().shell(&first, "ps")?.contains("sleep 1234"), "the PID namespace is not shared");
        // The pod's init is as much a guest as they are, and shows nothing.
        let init = node
            .cri()
            .shell(&second, "cat /proc/1/comm; stat -c %u /proc/1/status; ls /proc/1/root 2>&1 || true")?;
        ensure!(init.starts_with("crisp-init\n") && init.contains("ermission denied"), "{init}");
        node.cri().shell(&first, &format!("echo {name} >/common/{name}; chmod 600 /common/{name}"))?;
        pods.push((pod, first, name));
    }
    for (index, (_, id, name)) in pods.iter().enumerate() {
        let (_, _, other) = &pods[1 - index];
        ensure!(node.cri().shell(id, &format!("cat /common/{name}"))? == format!("{name}\n"));
        let said = node.cri().exec(id, &["cat", &format!("/common/{other}")])?;
        ensure!(said.code != 0 && said.stderr.contains("ermission denied"), "{said:?}");
    }
    for (pod, ..) in &pods {
        node.end_pod(pod)?;
    }
    Ok(())
}

fn restarted(node: &mut Node) -> Result<()> {
    let pod = node.run_pod_as(sandbox(node, "restarted", own())?)?;
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done";
    let id = node.launch_as(&pod, &container("c", &["sh", "-c", script], &own())?)?;
    let waiting = node.cri().create(&pod.id, &container("d", &["sleep", "3600"], &own())?, &pod.config)?;
    crate::logs::wait_for_lines(node, &id, 1)?;
    node.kill_and_restart()?;
    let map = format!("0 {HOST} {LENGTH}");
    ensure!(words(&node.cri().shell(&id, "cat /proc/self/uid_map")?) == words(&map));
    node.cri().start(&waiting)?;
    ensure!(words(&node.cri().shell(&waiting, "cat /proc/1/uid_map")?) == words(&map));
    // A further container finds the namespace by its pin.
    let late = node.launch_as(&pod, &container("e", &["sleep", "3600"], &own())?)?;
    ensure!(words(&node.cri().shell(&late, "cat /proc/1/uid_map")?) == words(&map));
    let link = |id: &str| -> Result<PathBuf> {
        Ok(fs::read_link(format!("/proc/{}/ns/user", node.cri().pid(id)?))?)
    };
    ensure!(link(&id)? == link(&late)? && link(&id)? == link(&waiting)?, "not one user namespace");
    node.cri().stop(&id, 600)?;
    let status = node.cri().container(&id)?;
    ensure!(status.exit_code == 3, "{status:?}");
    crate::logs::wait_for_lines(node, &id, 2)?;
    node.kill()?;
    node.serve()?;
    node.end_pod(&pod)
}

fn host_network(node: &mut Node) -> Result<()> {
    let network = cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..own() };
    let mut config = sandbox(node, "hostnet", network.clone())?;
    config.hostname = String::new();
    let pod = node.run_pod_as(config)?;
    let mut config = container("c", &["sleep", "3600"], &network)?;
    security(&mut config)?.capabilities =
        Some(cri::Capability { add_capabilities: vec!["NET_ADMIN".to_owned()], ..Default::default() });
    let id = node.launch_as(&pod, &config)?;
    let pid = node.cri().pid(&id)?;
    for (kind, hosts) in [("net", true), ("uts", true), ("ipc", false), ("user", false)] {
        let own = fs::read_link(format!("/proc/{pid}/ns/{kind}"))?
            == fs::read_link(format!("/proc/self/ns/{kind}"))?;
        ensure!(own == hosts, "{kind}");
    }
    ensure!(node.cri().shell(&id, "ls /sys/class/net")?.contains("lo"));
    // The host's network is not this root's to change.
    for line in [
        "ip link set lo mtu 1400",
        "mkdir /sys/fs/cgroup/x",
        "touch /sys/x",
        "echo 1 >/proc/sys/net/ipv4/ip_forward",
    ] {
        ensure!(node.cri().exec(&id, &["sh", "-c", line])?.code != 0, "{line}");
    }
    let mounts = node.cri().shell(&id, "grep ' /sys' /proc/self/mountinfo")?;
    ensure!(mounts.lines().count() == 2, "{mounts}");
    node.end_pod(&pod)
}

fn privileged(node: &mut Node) -> Result<()> {
    let mut config = sandbox(node, "privileged", own())?;
    let linux = config.linux.as_mut().context("linux")?;
    linux.security_context.as_mut().context("security context")?.privileged = true;
    let pod = node.run_pod_as(config)?;
    let mut config = container("c", &["sleep", "3600"], &own())?;
    security(&mut config)?.privileged = true;
    let id = node.launch_as(&pod, &config)?;
    node.cri().shell(
        &id,
        "set -e; mkdir -p /m; mount -t tmpfs t /m; touch /m/x; umount /m; hostname other; ip link set lo mtu 1400; \
         mount -o remount,bind,ro /etc/hosts; mount -o remount,bind,rw /etc/hosts",
    )?;
    // The devices of the host stay the host's; those that every container has are its own.
    ensure!(node.cri().shell(&id, "stat -c %u /dev/null /dev/zero")? == "0\n0\n");
    let full = node.cri().shell(&id, "ls -ln /dev | grep '^[bc]' | grep -v ' 0  *0 ' | head -n 1")?;
    ensure!(full.is_empty() || full.contains("65534"), "{full}");
    for line in [
        "mknod /x b 7 0",
        "echo 1 >/proc/sys/kernel/core_pattern",
        "echo b >/proc/sysrq-trigger",
        "echo 1 >/sys/kernel/mm/ksm/run",
        "mkdir /sys/fs/cgroup/x",
    ] {
        ensure!(node.cri().exec(&id, &["sh", "-c", line])?.code != 0, "{line}");
    }
    node.end_pod(&pod)
}
