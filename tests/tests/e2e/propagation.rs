//! Who sees a mount that is made below a volume, on which side; and how far read-only goes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_proto::runtime::v1::MountPropagation::{
    PropagationBidirectional as BIDIRECTIONAL, PropagationHostToContainer as HOST_TO_CONTAINER,
    PropagationPrivate as PRIVATE,
};
use crisp_tests::cri::container_config;
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "r30_mounts_cross_a_volume_only_as_its_propagation_says",
        needs: &[],
        images: &["busybox"],
        run: crossing,
    },
    Case {
        name: "r30_a_propagation_that_cannot_be_is_refused",
        needs: &[],
        images: &["busybox"],
        run: refused,
    },
    Case {
        name: "r31_recursive_read_only_reaches_every_mount_below",
        needs: &[],
        images: &["busybox"],
        run: read_only,
    },
];

/// A tmpfs of the test, unmounted with all that is below it when the test ends.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn at(path: PathBuf, propagation: MsFlags) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let none = None::<&str>;
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), none).context("mount a tmpfs")?;
        let made = Self(path);
        mount(none, &made.0, none, propagation, none).context("set the propagation")?;
        Ok(made)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Nothing can be done about a failure, and the next look at the host's mounts shows it.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn volume(host: &Path, place: &str, mode: cri::MountPropagation) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: place.to_owned(),
        propagation: mode.into(),
        ..Default::default()
    }
}

fn privileged_pod(node: &Node) -> Result<Pod> {
    let mut config = node.pod_config("propagation");
    let linux = config.linux.as_mut().context("linux")?;
    linux.security_context.as_mut().context("security context")?.privileged = true;
    node.run_pod_as(config)
}

/// A container that may mount: privileged, or with the one capability that it takes and no filter.
fn config(name: &str, mounts: Vec<cri::Mount>, privileged: bool) -> Result<cri::ContainerConfig> {
    let mut config = cri::ContainerConfig { mounts, ..container_config(name, "busybox", &["sleep", "3600"]) };
    let linux = config.linux.as_mut().context("linux")?;
    let security = linux.security_context.as_mut().context("security context")?;
    security.privileged = privileged;
    let unconfined = cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::Unconfined.into(),
        ..Default::default()
    };
    security.seccomp = Some(unconfined.clone());
    security.apparmor = Some(unconfined);
    security.capabilities =
        Some(cri::Capability { add_capabilities: vec!["SYS_ADMIN".to_owned()], ..Default::default() });
    Ok(config)
}

/// Whether something is mounted at `path`, on the host.
fn mounted(path: &Path) -> Result<bool> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let path = path.display().to_string();
    Ok(table.lines().any(|line| line.split(' ').nth(4) == Some(path.as_str())))
}

fn crossing(node: &mut Node) -> Result<()> {
    let folder = node.folder().join("shared");
    untouched::around(node, |node, _| {
        let shared = Tmpfs::at(folder.clone(), MsFlags::MS_SHARED)?;
        for name in ["before", "after", "inside"] {
            fs::create_dir(shared.0.join(name))?;
        }
        let before = Tmpfs::at(shared.0.join("before"), MsFlags::MS_SHARED)?;
        fs::write(before.0.join("file"), "x")?;
        let pod = privileged_pod(node)?;
        let modes = [
            (PRIVATE, false),
            (PRIVATE, true),
            (HOST_TO_CONTAINER, false),
            (HOST_TO_CONTAINER, true),
            (BIDIRECTIONAL, true),
        ];
        for (number, (mode, privileged)) in modes.into_iter().enumerate() {
            let config = config(&format!("c{number}"), vec![volume(&shared.0, "/v", mode)], privileged)?;
            let id = node.launch_as(&pod, &config)?;
            let what = format!("{mode:?}, privileged {privileged}");
            ensure!(node.cri().container(&id)?.mounts == config.mounts, "{what}: the status");
            // What is mounted when the container is made comes along in any case.
            node.cri().shell(&id, "[ -f /v/before/file ]").with_context(|| what.clone())?;
            // Later mounts of the host.
            let after = Tmpfs::at(shared.0.join("after"), MsFlags::MS_SHARED)?;
            fs::write(after.0.join("file"), "x")?;
            let seen = node.cri().exec(&id, &["test", "-f", "/v/after/file"])?.code == 0;
            ensure!(seen == (mode != PRIVATE), "{what}: the host's later mount is seen: {seen}");
            drop(after);
            // Mounts of the container.
            node.cri().shell(&id, "mount -t tmpfs mine /v/inside && touch /v/inside/mine")?;
            let seen = mounted(&shared.0.join("inside"))?;
            ensure!(seen == (mode == BIDIRECTIONAL), "{what}: the container's mount is seen: {seen}");
            if mode == BIDIRECTIONAL {
                node.cri().shell(&id, "umount /v/inside")?;
                ensure!(!mounted(&shared.0.join("inside"))?, "{what}: its end is seen, too");
            }
            node.cri().remove(&id)?;
            ensure!(
                mounted(&before.0)? && before.0.join("file").is_file(),
                "{what}: the operator's mount stays"
            );
            ensure!(!mounted(&shared.0.join("inside"))?, "{what}: nothing of the container's stays");
        }
        node.end_pod(&pod)
    })
}

fn refused(node: &mut Node) -> Result<()> {
    let folder = node.folder().join("private");
    untouched::around(node, |node, _| {
        let private = Tmpfs::at(folder.clone(), MsFlags::MS_PRIVATE)?;
        let pod = privileged_pod(node)?;
        let before = node.snapshot()?;
        let mount = |place: &str, mode| volume(&private.0, place, mode);
        let plain = |place: &str| volume(node.folder(), place, PRIVATE);
        for (mounts, privileged, words) in [
            (vec![plain("/a"), mount("/v", HOST_TO_CONTAINER)], true, ["mounts[1]", "HOST_TO_CONTAINER"]),
            (vec![plain("/a"), mount("/v", BIDIRECTIONAL)], true, ["mounts[1]", "BIDIRECTIONAL"]),
            (vec![plain("/a"), mount("/v", BIDIRECTIONAL)], false, ["mounts[1]", "privileged"]),
            (vec![mount("/v", BIDIRECTIONAL), plain("/v/in")], true, ["mounts[1]", "mounts[0]"]),
        ] {
            let config = config("refused", mounts, privileged)?;
            let status = node.cri().create(&pod.id, &config, &pod.config).err();
            let status = status.with_context(|| format!("accepted: {:?}", config.mounts))?;
            ensure!(words.iter().all(|word| status.message().contains(word)), "{words:?}: {status:?}");
        }
        let unknown = cri::Mount { propagation: 7, ..plain("/v") };
        let config = config("refused", vec![unknown], true)?;
        let status = node.cri().create(&pod.id, &config, &pod.config).err().context("propagation 7")?;
        ensure!(status.message().contains("mounts[0]: propagation 7"), "{status:?}");
        node.wait_for_return(&before).context("after refusals")?;
        node.end_pod(&pod)
    })
}

fn read_only(node: &mut Node) -> Result<()> {
    let folder = node.folder().join("tree");
    untouched::around(node, |node, _| {
        let top = Tmpfs::at(folder.clone(), MsFlags::MS_SHARED)?;
        let one = Tmpfs::at(top.0.join("one"), MsFlags::MS_SHARED)?;
        let two = Tmpfs::at(one.0.join("two"), MsFlags::MS_SHARED)?;
        let pod = privileged_pod(node)?;
        let mount = |readonly, recursive_read_only, mode| cri::Mount {
            readonly,
            recursive_read_only,
            ..volume(&top.0, "/v", mode)
        };
        let id = node.launch_as(&pod, &config("ro", vec![mount(true, false, PRIVATE)], false)?)?;
        ensure!(node.cri().exec(&id, &["touch", "/v/x"])?.stderr.contains("Read-only"));
        node.cri().shell(&id, "touch /v/one/x /v/one/two/x")?;
        ensure!(one.0.join("x").is_file() && two.0.join("x").is_file());
        node.cri().remove(&id)?;

        let config_of = |mount| config("rro", vec![mount], false);
        let wanted = config_of(mount(true, true, PRIVATE))?;
        let id = node.launch_as(&pod, &wanted)?;
        for path in ["/v/y", "/v/one/y", "/v/one/two/y", "/v/one/x"] {
            let said = node.cri().exec(&id, &["sh", "-c", &format!("echo x >{path}")])?;
            ensure!(said.code != 0 && said.stderr.contains("Read-only"), "{path}: {said:?}");
        }
        ensure!(node.cri().container(&id)?.mounts == wanted.mounts);
        // On the host nothing became read-only.
        fs::write(two.0.join("z"), "x")?;
        node.cri().remove(&id)?;

        for (bad, word) in [
            (mount(false, true, PRIVATE), "readonly"),
            (mount(true, true, HOST_TO_CONTAINER), "PRIVATE"),
            (mount(true, true, BIDIRECTIONAL), "PRIVATE"),
        ] {
            let config = config("bad", vec![bad], true)?;
            let status = node.cri().create(&pod.id, &config, &pod.config).err().context(word)?;
            let message = status.message();
            ensure!(
                message.contains("mounts[0]: recursive_read_only") && message.contains(word),
                "{message}"
            );
        }
        node.end_pod(&pod)
    })
}
