//! What one container sees and gets: root filesystem, mounts, user, capabilities, a clean process, the stop signal.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::Node;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "root_filesystems_are_separate", needs: &[], images: &["busybox"], run: roots },
    Case { name: "proc_sys_and_dev_are_masked", needs: &[], images: &["busybox"], run: masked },
    Case { name: "mounts_carry_the_hosts_files", needs: &[], images: &["busybox"], run: mounts },
    Case { name: "user_groups_env_and_directory_hold", needs: &[], images: &["busybox"], run: process },
    Case { name: "capabilities_are_added_and_dropped", needs: &[], images: &["busybox"], run: capabilities },
    Case { name: "a_container_starts_with_a_clean_process", needs: &[], images: &["busybox"], run: clean },
    Case { name: "stop_sends_the_stop_signal_first", needs: &[], images: &["busybox"], run: stop_signal },
    Case { name: "stop_takes_every_process_along", needs: &[], images: &["busybox"], run: stop_all },
    Case {
        name: "a_removed_image_leaves_its_container_running",
        needs: &[],
        images: &["busybox:1.36"],
        run: image_gone,
    },
];

fn roots(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("roots")?;
    let one = node.launch(&pod, "one", "busybox", &["sleep", "3600"])?;
    let two = node.launch(&pod, "two", "busybox", &["sleep", "3600"])?;
    node.cri().shell(&one, "echo mine >/note; rm /bin/cat")?;
    ensure!(node.cri().exec(&two, &["ls", "/note"])?.code != 0, "a file of one is seen by the other");
    node.cri().shell(&two, "ls /bin/cat")?;

    let mut config = container_config("readonly", "busybox", &["sleep", "3600"]);
    config
        .linux
        .as_mut()
        .context("linux")?
        .security_context
        .as_mut()
        .context("security context")?
        .readonly_rootfs = true;
    let readonly = node.launch_as(&pod, &config)?;
    let said = node.cri().exec(&readonly, &["touch", "/note"])?;
    ensure!(said.code != 0 && said.stderr.contains("Read-only file system"), "{said:?}");
    // Nothing of the host's tree is in sight.
    let mounts = node.cri().shell(&one, "cut -d' ' -f2 /proc/self/mounts")?;
    let host = node.folder().display().to_string();
    ensure!(!mounts.contains(&host) && !mounts.contains("/run/netns"), "{mounts}");
    node.end_pod(&pod)
}

fn masked(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("masked")?;
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    let security =
        config.linux.as_mut().context("linux")?.security_context.as_mut().context("security context")?;
    security.masked_paths =
        vec!["/proc/timer_list".to_owned(), "/proc/acpi".to_owned(), "/proc/no-such".to_owned()];
    security.readonly_paths = vec!["/proc/sys".to_owned().to_owned()];
    let id = node.launch_as(&pod, &config)?;
    ensure!(node.cri().shell(&id, "cat /proc/timer_list; ls /proc/acpi 2>/dev/null; true")?.is_empty());
    for path in ["/proc/sys/kernel/domainname", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        let said = node.cri().exec(&id, &["sh", "-c", &format!("echo x >{path}")])?;
        ensure!(said.code != 0 && said.stderr.contains("Read-only"), "{path}: {said:?}");
    }
    let devices = node.cri().shell(&id, "ls /dev")?;
    for device in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin"] {
        ensure!(devices.lines().any(|line| line == device), "no /dev/{device}: {devices}");
    }
    node.cri().shell(&id, "echo x >/dev/null; head -c 3 /dev/zero | wc -c | grep -x 3")?;
    ensure!(node.cri().exec(&id, &["sh", "-c", "mount -t tmpfs x /mnt"])?.code != 0, "mount works");
    node.end_pod(&pod)
}

fn mounts(node: &mut Node) -> Result<()> {
    let folder = node.folder().join("volume");
    fs::create_dir(&folder)?;
    fs::write(folder.join("in"), "from the host\n")?;
    let pod = node.run_pod("mounts")?;
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    let host_path = folder.display().to_string();
    let mount = |path: &str, readonly| cri::Mount {
        container_path: path.to_owned(),
        host_path: host_path.clone(),
        readonly,
        ..Default::default()
    };
    config.mounts = vec![mount("/made/for/it", false), mount("/readonly", true)];
    let id = node.launch_as(&pod, &config)?;
    ensure!(node.cri().shell(&id, "cat /made/for/it/in /readonly/in")? == "from the host\nfrom the host\n");
    node.cri().shell(&id, "echo from the container >/made/for/it/out")?;
    ensure!(fs::read_to_string(folder.join("out"))? == "from the container\n");
    let said = node.cri().exec(&id, &["touch", "/readonly/x"])?;
    ensure!(said.code != 0 && said.stderr.contains("Read-only"), "{said:?}");
    ensure!(
        node.cri().container(&id)?.mounts == config.mounts,
        "the status must show the mounts as they were asked for"
    );

    // As kubelet and everybody's manifests expect: a source that is missing is made, as a directory.
    let made = folder.join("not/there/yet");
    let mut missing = container_config("missing", "busybox", &["touch", "/x/inside"]);
    missing.mounts = vec![cri::Mount { host_path: made.display().to_string(), ..mount("/x", false) }];
    let id = node.launch_as(&pod, &missing)?;
    ensure!(node.wait_for_exit(&id)?.exit_code == 0 && made.join("inside").is_file());
    node.end_pod(&pod)
}

fn process(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("process")?;
    let mut config = container_config(
        "c",
        "busybox",
        &["sh", "-c", "id -u; id -g; id -G; pwd; echo $GREETING; sleep 3600"],
    );
    config.working_dir = "/var/made".to_owned();
    config.envs = vec![cri::KeyValue { key: "GREETING".to_owned(), value: "hello there".into() }];
    let security =
        config.linux.as_mut().context("linux")?.security_context.as_mut().context("security context")?;
    security.run_as_user = Some(cri::Int64Value { value: 1234 });
    security.run_as_group = Some(cri::Int64Value { value: 2345 });
    security.supplemental_groups = vec![3456];
    security.no_new_privs = true;
    let id = node.launch_as(&pod, &config)?;
    let log = crate::logs::wait_for_lines(node, &id, 5)?;
    let said: Vec<_> = log.iter().map(|line| line.content.as_str()).collect();
    ensure!(said == ["1234", "2345", "2345 3456", "/var/made", "hello there"], "{said:?}");
    let user =
        node.cri().container(&id)?.user.and_then(|user| user.linux).context("no user in the status")?;
    ensure!((user.uid, user.gid) == (1234, 2345) && user.supplemental_groups.contains(&3456), "{user:?}");
    ensure!(node.cri().shell(&id, "grep NoNewPrivs /proc/1/status")?.trim() == "NoNewPrivs:\t1");
    ensure!(node.cri().shell(&id, "grep CapEff /proc/1/status")?.trim() == "CapEff:\t0000000000000000");
    ensure!(node.cri().shell(&id, "id -u")? == "1234\n", "exec runs as another user");

    let mut group_only = container_config("group-only", "busybox", &["true"]);
    let security =
        group_only.linux.as_mut().context("linux")?.security_context.as_mut().context("security context")?;
    security.run_as_group = Some(cri::Int64Value { value: 5 });
    ensure!(
        node.cri().create(&pod.id, &group_only, &pod.config).is_err(),
        "a group without a user was accepted"
    );
    node.end_pod(&pod)
}

/// Effective capabilities of the container's first process as a bit set.
fn effective(node: &Node, id: &str) -> Result<u64> {
    let line = node.cri().shell(id, "grep CapEff /proc/1/status")?;
    Ok(u64::from_str_radix(line.trim_start_matches("CapEff:").trim(), 16)?)
}

fn capabilities(node: &mut Node) -> Result<()> {
    const CHOWN: u64 = 1;
    const NET_RAW: u64 = 1 << 13;
    const SYS_ADMIN: u64 = 1 << 21;
    const NET_ADMIN: u64 = 1 << 12;
    let pod = node.run_pod("capabilities")?;
    let launch = |name: &str, add: &[&str], drop: &[&str]| -> Result<u64> {
        let mut config = container_config(name, "busybox", &["sleep", "3600"]);
        let security =
            config.linux.as_mut().context("linux")?.security_context.as_mut().context("security context")?;
        security.capabilities = Some(cri::Capability {
            add_capabilities: crisp_tests::cri::words(add),
            drop_capabilities: crisp_tests::cri::words(drop),
            ..Default::default()
        });
        effective(node, &node.launch_as(&pod, &config)?)
    };
    let default = launch("default", &[], &[])?;
    ensure!(
        default & (CHOWN | NET_RAW) == CHOWN | NET_RAW && default & (SYS_ADMIN | NET_ADMIN) == 0,
        "{default:x}"
    );
    let changed = launch("changed", &["NET_ADMIN"], &["CHOWN"])?;
    ensure!(changed == (default | NET_ADMIN) & !CHOWN, "{changed:x}");
    ensure!(launch("none", &[], &["ALL"])? == 0);
    ensure!(launch("one", &["NET_RAW"], &["ALL"])? == NET_RAW);
    let mut config = container_config("unknown", "busybox", &["true"]);
    config
        .linux
        .as_mut()
        .context("linux")?
        .security_context
        .as_mut()
        .context("security context")?
        .capabilities =
        Some(cri::Capability { add_capabilities: vec!["NO_SUCH".to_owned()], ..Default::default() });
    let message = node
        .cri()
        .create(&pod.id, &config, &pod.config)
        .err()
        .context("an unknown capability was accepted")?;
    ensure!(message.message().contains("NO_SUCH"), "{message:?}");
    node.end_pod(&pod)
}

fn clean(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("clean")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let status = node.cri().shell(&id, "cat /proc/1/status")?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim().to_owned();
    ensure!(field("SigBlk:") == "0000000000000000" && field("SigIgn:") == "0000000000000000", "{status}");
    ensure!(field("Umask:") == "0022", "{status}");
    ensure!(
        node.cri().shell(&id, "ls /proc/1/fd | tr '\\n' ' '")? == "0 1 2 ",
        "more than stdio reached the container"
    );
    ensure!(node.cri().shell(&id, "cat /proc/1/oom_score_adj")? == "0\n");
    // A session of its own.
    let stat = node.cri().shell(&id, "cut -d' ' -f6 /proc/1/stat")?;
    ensure!(stat.trim() == "1", "session {stat}");
    node.end_pod(&pod)
}

fn trap(signal: &str) -> [String; 3] {
    let line = format!("trap 'echo got {signal}; exit 9' {signal}; echo ready; while :; do sleep 0.1; done");
    ["sh".to_owned(), "-c".to_owned(), line]
}

fn stop_signal(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("signals")?;
    for (name, signal) in [("TERM", cri::Signal::RuntimeDefault), ("USR1", cri::Signal::Sigusr1)] {
        let mut config = container_config(&name.to_lowercase(), "busybox", &[]);
        config.command = trap(name).to_vec();
        config.stop_signal = signal.into();
        let id = node.launch_as(&pod, &config)?;
        crate::logs::wait_for_lines(node, &id, 1)?;
        node.cri().stop(&id, 600)?;
        let status = node.cri().container(&id)?;
        ensure!((status.exit_code, status.reason.as_str()) == (9, "Error"), "{status:?}");
        let log = crate::logs::wait_for_lines(node, &id, 2)?;
        ensure!(log[1].content == format!("got {name}"), "{log:?}");
    }
    node.end_pod(&pod)
}

fn stop_all(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("all")?;
    let mut config =
        container_config("c", "busybox", &["sh", "-c", "trap '' TERM; sleep 4000 & sleep 4000 & wait"]);
    config.linux = None;
    let id = node.launch_as(&pod, &config)?;
    let cgroup_of = |id: &str| -> Result<String> {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", node.cri().pid(id)?))?;
        Ok(text.lines().find_map(|line| line.strip_prefix("0::")).context("no v2 cgroup")?.to_owned())
    };
    let cgroup = node.cgroup(&cgroup_of(&id)?);
    node.cri().stop(&id, 0)?;
    let left = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    ensure!(left.is_empty(), "processes left: {left}");
    ensure!(node.cri().container(&id)?.exit_code == 137);
    node.end_pod(&pod)
}

fn image_gone(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("image-gone")?;
    let id = node.launch(&pod, "c", "busybox:1.36", &["sleep", "3600"])?;
    let before = node.cri().container(&id)?;
    let image = node.cri().image_id("busybox:1.36")?.context("no image")?;
    let removal = cri::RemoveImageRequest { image: Some(crisp_tests::cri::image(&image)) };
    node.cri().remove_image(removal)?;
    ensure!(node.cri().image_id("busybox:1.36")?.is_none());
    node.cri().shell(&id, "ls /bin/cat")?;
    let after = node.cri().container(&id)?;
    ensure!(
        after.image == before.image && after.image_ref == before.image_ref && !after.image_ref.is_empty(),
        "{after:?}"
    );
    node.kill_and_restart()?;
    node.cri().shell(&id, "ls /bin/cat")?;
    let late = node.cri().create(&pod.id, &container_config("late", "busybox:1.36", &["true"]), &pod.config);
    let message = late.err().context("created from a removed image")?;
    ensure!(message.message().contains("busybox:1.36") && message.code() == Code::NotFound, "{message:?}");
    node.end_pod(&pod)?;
    // The layers are gone with their last user; the next test finds the image again.
    node.ensure_images(&["busybox:1.36"])
}
