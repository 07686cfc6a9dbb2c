//! Which devices a container can use: the few that everybody needs, what it is given, and nothing else. `r32_` after
//! the class of attacks in which a device node is usable although nobody granted the device.
//!
//! The device granted and denied is /dev/kmsg (c 1:11): every kernel has it, root may open it for writing without a
//! capability, and opening it for writing changes nothing. So only device control can stand in the way.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::build::{Build, Tar};
use crisp_tests::cri::{container_config, refused};
use crisp_tests::node::Node;
use crisp_tests::untouched;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, chown};
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "r32_a_made_node_gives_no_access", needs: &[], images: &["busybox"], run: denied },
    Case { name: "r32_a_node_of_an_image_gives_no_access", needs: &[], images: &["busybox"], run: shipped },
    Case { name: "a_granted_device_works_as_granted", needs: &[], images: &["busybox"], run: granted },
    Case {
        name: "device_control_outlives_the_daemon",
        needs: &[],
        images: &["busybox"],
        run: outlives_the_daemon,
    },
    Case {
        name: "r32_devices_that_cannot_be_are_refused",
        needs: &[],
        images: &["busybox"],
        run: refused_devices,
    },
    Case {
        name: "a_privileged_container_has_every_device",
        needs: &[],
        images: &["busybox"],
        run: privileged,
    },
];

/// Lines for a container's shell that open a node and do nothing else.
const OPEN_TO_WRITE: &str = ": >/dev/made";
const OPEN_TO_READ: &str = ": </dev/made";

/// Checks that a shell line is refused with EPERM: what device control answers, and neither a missing device (ENXIO) nor
/// a mount with nodev (EACCES).
fn not_permitted(node: &Node, id: &str, line: &str) -> Result<()> {
    let said = node.cri().exec(id, &["sh", "-c", line])?;
    ensure!(said.code != 0 && said.stderr.contains("Operation not permitted"), "`{line}`: {said:?}");
    Ok(())
}

fn denied(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("devices")?;
        let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
        for device in ["c 1 11", "c 1 1", "b 8 0", "b 7 0", "c 10 229", "c 10 200"] {
            node.cri().shell(&id, &format!("rm -f /dev/made; mknod /dev/made {device}"))?;
            not_permitted(node, &id, OPEN_TO_READ).context(device)?;
            not_permitted(node, &id, OPEN_TO_WRITE).context(device)?;
        }
        // The first process too, not only what is exec'd. In a subshell, because a redirection of `:` that fails ends it.
        let mut config = container_config(
            "first",
            "busybox",
            &["sh", "-c", "mknod /dev/made c 1 11; (: >/dev/made); echo then $?; sleep 3600"],
        );
        config.linux.as_mut().context("linux")?.resources = None;
        let first = node.launch_as(&pod, &config)?;
        let said = crate::logs::wait_for_lines(node, &first, 2)?;
        let said: Vec<_> = said.iter().map(|line| line.content.as_str()).collect();
        ensure!(said.iter().any(|line| line.contains("Operation not permitted")), "{said:?}");
        // What every container needs works.
        node.cri().shell(
            &id,
            "set -e; echo x >/dev/null; cat /dev/null; [ $(head -c 7 /dev/zero | wc -c) = 7 ]; \
         [ $(head -c 7 /dev/urandom | wc -c) = 7 ]; [ $(head -c 7 /dev/random | wc -c) = 7 ]; \
         [ $(head -c 7 /dev/full | wc -c) = 7 ]; : <>/dev/ptmx; mknod /dev/zwei c 1 3; echo x >/dev/zwei",
        )?;
        node.end_pod(&pod)
    })
}

/// Device nodes that a layer brings, opened by a container's first process and by an exec'd one. They are there,
/// and give no access.
fn shipped(node: &mut Node) -> Result<()> {
    const NAME: &str = "test/nodes:1";
    const NODES: [(u8, &str, (u32, u32)); 4] = [
        (b'4', "nodes/disk", (8, 0)),
        (b'3', "nodes/memory", (1, 1)),
        (b'3', "nodes/fuse", (10, 229)),
        (b'3', "nodes/kmsg", (1, 11)),
    ];
    untouched::around(node, |node, _| {
        let layer = NODES.iter().fold(Tar::default().dir("nodes"), |tar, (kind, name, numbers)| {
            tar.device(*kind, name, *numbers)
        });
        node.build_image(NAME, Build::on("busybox").layer(layer))?;
        let pod = node.run_pod("shipped")?;
        let tries = NODES.map(|(_, name, _)| {
            format!("[ -b /{name} -o -c /{name} ] || echo missing; (: </{name}); (: >/{name}); ")
        });
        let tries = tries.concat();
        let line = format!("({tries}) 2>&1; echo over; sleep 3600");
        let id = node.launch(&pod, "c", NAME, &["sh", "-c", &line])?;
        let log = crate::logs::wait_for_lines(node, &id, 2 * NODES.len() + 1)?;
        let first: Vec<_> = log.iter().map(|line| line.content.as_str()).collect();
        let said = node.cri().exec(&id, &["sh", "-c", &format!("({tries}) 2>&1")])?;
        let second: Vec<_> = said.stdout.lines().collect();
        for (who, lines) in [("first process", &first[..first.len() - 1]), ("exec", &second)] {
            ensure!(lines.len() == 2 * NODES.len(), "{who}: {lines:?}");
            let refused = |line: &&str| line.contains("Operation not permitted");
            ensure!(lines.iter().all(refused), "{who}: {lines:?}");
        }
        node.end_pod(&pod)?;
        node.remove_image(NAME)
    })
}

/// A folder of device nodes: `kmsg`, mode 0640, owned by 3:4, `below/loop`, a link to the former, and a plain file.
fn nodes(node: &Node) -> Result<PathBuf> {
    let folder = node.folder().join("devices");
    fs::create_dir_all(folder.join("below"))?;
    let make = |path: &Path, kind, major, minor| -> Result<()> {
        mknod(path, kind, Mode::from_bits_truncate(0o600), makedev(major, minor))
            .with_context(|| format!("mknod {}", path.display()))
    };
    let kmsg = folder.join("kmsg");
    make(&kmsg, SFlag::S_IFCHR, 1, 11)?;
    fs::set_permissions(&kmsg, std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    chown(&kmsg, Some(Uid::from_raw(3)), Some(Gid::from_raw(4)))?;
    make(&folder.join("below/loop"), SFlag::S_IFBLK, 7, 0)?;
    fs::write(folder.join("below/file"), "not a device")?;
    symlink("devices/kmsg", node.folder().join("link"))?;
    Ok(folder)
}

fn device(host: &Path, container: &str, permissions: &str) -> cri::Device {
    cri::Device {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        permissions: permissions.to_owned(),
    }
}

fn granted(node: &mut Node) -> Result<()> {
    let folder = nodes(node)?;
    let pod = node.run_pod("granted")?;
    let launch = |name: &str, devices: Vec<cri::Device>| {
        let mut config = container_config(name, "busybox", &["sleep", "3600"]);
        config.devices = devices;
        node.launch_as(&pod, &config)
    };
    // Through a link, to a place of its own, with the node's own owner and mode; as granted and not more.
    let id = launch("writes", vec![device(&node.folder().join("link"), "/dev/made", "w")])?;
    ensure!(node.cri().shell(&id, "stat -c '%F %t:%T %a %u:%g' /dev/made")?.contains("1:b 640 3:4"));
    node.cri().shell(&id, OPEN_TO_WRITE)?;
    not_permitted(node, &id, OPEN_TO_READ)?;
    not_permitted(node, &id, "mknod /dev/loop b 7 0; : </dev/loop")?;
    let rules = info(node, &id)?["runtimeSpec"]["linux"]["resources"]["devices"].take();
    let rule = serde_json::json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"});
    let list = rules.as_array().context("no device rules in the status")?;
    ensure!(list.first().is_some_and(|first| first["allow"] == false), "{rules}");
    ensure!(list.contains(&rule), "{rules}");
    let reads = launch("reads", vec![device(&folder.join("kmsg"), "/dev/made", "rm")])?;
    not_permitted(node, &reads, OPEN_TO_WRITE)?;

    // A directory: every node below it, and nothing else of it.
    let all = launch("directory", vec![device(&folder, "/dev/all", "rwm")])?;
    let found = node.cri().shell(&all, "cd /dev/all && find . ! -type d | sort")?;
    ensure!(found == "./below/loop\n./kmsg\n", "{found}");
    node.cri().shell(&all, ": >/dev/all/kmsg")?;

    // Without a place it has its host's; one of those that every container has may be given, too.
    let same = launch("same", vec![device(Path::new("/dev/null"), "", "rwm")])?;
    node.cri().shell(&same, "echo x >/dev/null; [ -c /dev/null ]")?;
    node.end_pod(&pod)
}

/// The verbose status of a container.
fn info(node: &Node, id: &str) -> Result<serde_json::Value> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let info = node.cri().container_status(request)?.info;
    Ok(serde_json::from_str(info.get("info").context("the verbose status has no key info")?)?)
}

fn outlives_the_daemon(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("outlives")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    node.cri().shell(&id, "mknod /dev/made c 1 11")?;
    node.kill_and_restart()?;
    not_permitted(node, &id, OPEN_TO_WRITE)?;
    let resources = cri::LinuxContainerResources::default();
    node.cri().update_container_resources(cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(resources),
        ..Default::default()
    })?;
    not_permitted(node, &id, OPEN_TO_WRITE)?;
    node.end_pod(&pod)
}

fn refused_devices(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let folder = nodes(node)?;
        fs::create_dir(folder.join("empty"))?;
        symlink("/etc/passwd", folder.join("passwd"))?;
        let pod = node.run_pod("refused")?;
        let kmsg = folder.join("kmsg");
        for (bad, named) in [
            (device(Path::new("/dev/../etc"), "", "r"), "devices[1].host_path"),
            (device(&kmsg, "/dev/../etc/x", "r"), "devices[1].container_path"),
            (device(&kmsg, "", "rwmx"), "devices[1].permissions \"rwmx\""),
            (device(&kmsg, "", ""), "devices[1].permissions"),
            (device(&folder.join("below/file"), "", "r"), "below/file: not a device"),
            (device(&folder.join("passwd"), "", "r"), "passwd: not a device"),
            (device(&folder.join("empty"), "", "r"), "empty: there is no device"),
            (device(&folder.join("missing"), "", "r"), "missing: no such file or directory"),
        ] {
            let mut config = container_config("c", "busybox", &["sleep", "3600"]);
            config.devices = vec![device(Path::new("/dev/zero"), "/dev/one", "r"), bad];
            let message = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
            ensure!(message.contains("devices[1]") && message.contains(named), "{named}: {message}");
        }
        node.end_pod(&pod)
    })
}

fn privileged(node: &mut Node) -> Result<()> {
    let mut config = node.pod_config("privileged");
    let linux = config.linux.as_mut().context("linux")?;
    linux.security_context.as_mut().context("security context")?.privileged = true;
    let pod = node.run_pod_as(config)?;
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    let linux = config.linux.as_mut().context("linux")?;
    linux.security_context.as_mut().context("security context")?.privileged = true;
    let id = node.launch_as(&pod, &config)?;
    node.cri().shell(&id, ": >/dev/kmsg; mknod /dev/made c 1 11")?;
    node.cri().shell(&id, OPEN_TO_WRITE)?;
    let rules = info(node, &id)?["runtimeSpec"]["linux"]["resources"]["devices"].take();
    ensure!(rules == serde_json::json!([{"allow": true, "type": "a", "access": "rwm"}]), "{rules}");
    // Its neighbour is none.
    let plain = node.launch(&pod, "plain", "busybox", &["sleep", "3600"])?;
    node.cri().shell(&plain, "mknod /dev/made c 1 11")?;
    not_permitted(node, &plain, OPEN_TO_WRITE)?;
    node.end_pod(&pod)
}
