//! Races in which a container, through a volume that it shares with another one, exchanges what lies on the way of a
//! mount while that other one is being created.
//!
//! A thread plays the first container: it exchanges two names in the volume all the time ([`Flipper`]). The other one is
//! created [`flipper::rounds`] times, 300 natively and 100 in a virtual machine. Whether that succeeds is a matter of
//! luck; where things land is not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::flipper::{self, Flipper};
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "r05_a_mount_lands_in_its_container_whatever_is_exchanged",
        needs: &[],
        images: &["busybox"],
        run: nested_mount,
    },
    Case {
        name: "r06_mount_points_are_made_in_the_container_whatever_is_exchanged",
        needs: &[],
        images: &["busybox"],
        run: made_mount_points,
    },
    Case {
        name: "r07_a_mask_is_no_file_of_the_container",
        needs: &[],
        images: &["busybox"],
        run: masked_by_null,
    },
    Case {
        name: "r08_a_terminal_is_the_containers_whatever_is_exchanged",
        needs: &[],
        images: &["busybox"],
        run: terminal,
    },
];

fn bind(host: &Path, place: &str) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: place.to_owned(),
        ..Default::default()
    }
}

fn folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    Ok(path)
}

/// Mounts of the process of a container that was created: (root within the file system, place, type).
pub(crate) fn mounts(node: &Node, id: &str) -> Result<Vec<(String, String, String)>> {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", node.cri().pid(id)?))?;
    let entry = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let words: Vec<_> = before.split(' ').collect();
        let kind = after.split(' ').next()?;
        Some(((*words.get(3)?).to_owned(), (*words.get(4)?).to_owned(), kind.to_owned()))
    };
    Ok(table.lines().filter_map(entry).collect())
}

/// Creates a container again and again while `a` and `b` are exchanged. What became of it is looked at by `check`.
fn race(
    node: &Node,
    pod: &Pod,
    config: &cri::ContainerConfig,
    (a, b): (&Path, &Path),
    check: impl Fn(&str) -> Result<()>,
) -> Result<()> {
    let rounds = flipper::rounds();
    let race = Flipper::start(a, b);
    let mut made = 0;
    for round in 0..rounds {
        // A failure is an answer, too; it must have cleaned up after itself, which the oracle sees.
        if let Ok(id) = node.cri().create(&pod.id, config, &pod.config) {
            made += 1;
            check(&id).with_context(|| format!("round {round}"))?;
            node.cri().remove(&id)?;
        }
    }
    let flips = race.stop(rounds)?;
    ensure!(made > 0, "none of {rounds} creates succeeded under {flips} exchanges: nothing was tried");
    Ok(())
}

fn nested_mount(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let volume = folder(node.folder().join("volume"))?;
        let payload = folder(node.folder().join("payload"))?;
        let pod = node.run_pod("race")?;
        for target in [canary.text("dir"), "../../../../../../../..".to_owned()] {
            let (inside, link) = (folder(volume.join("dir"))?, volume.join("link"));
            // The mount point exists on both ways.
            folder(inside.join("dir"))?;
            symlink(&target, &link)?;
            let mut config = container_config("c", "busybox", &["sleep", "3600"]);
            config.mounts = vec![bind(&volume, "/a"), bind(&payload, "/a/dir/dir")];
            race(node, &pod, &config, (&inside, &link), |id| {
                let all = mounts(node, id)?;
                let payloads = all.iter().filter(|(root, ..)| root.ends_with("/payload"));
                let places: Vec<_> = payloads.map(|(_, place, _)| place.as_str()).collect();
                let through_link = format!("{}/dir", canary.text("dir"));
                let known = ["/a/dir/dir", "/a/link/dir", "/dir", &through_link];
                ensure!(places.len() == 1 && known.contains(&places[0]), "{places:?}");
                Ok(())
            })?;
            // One of them is the directory now, the other one the link.
            for path in [&inside, &link] {
                if path.is_symlink() { fs::remove_file(path)? } else { fs::remove_dir_all(path)? }
            }
        }
        ensure!(fs::read_dir(&payload)?.count() == 0);
        node.end_pod(&pod)
    })
}

fn made_mount_points(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let volume = folder(node.folder().join("volume"))?;
        let payload = folder(node.folder().join("payload"))?;
        let file = node.folder().join("file");
        fs::write(&file, "payload")?;
        let (inside, link) = (folder(volume.join("dir"))?, volume.join("link"));
        symlink(canary.path(), &link)?;
        let pod = node.run_pod("race")?;
        let mut config = container_config("c", "busybox", &["sleep", "3600"]);
        config.mounts = vec![
            bind(&volume, "/a"),
            bind(&payload, "/a/dir/new/deep"),
            bind(&file, "/a/dir/new-file"),
            bind(&file, "/a/dir/other/new-file"),
        ];
        race(node, &pod, &config, (&inside, &link), |_| {
            // What was made in the volume goes again, so that the next round has to make it. Whichever of the two names
            // is the directory: neither of these follows a link.
            for folder in [&inside, &link] {
                if !folder.is_symlink() {
                    for name in ["new", "other"] {
                        let _ = fs::remove_dir_all(folder.join(name));
                    }
                    let _ = fs::remove_file(folder.join("new-file"));
                }
            }
            Ok(())
        })?;
        node.end_pod(&pod)
    })
}

/// What kubelet asks for.
const MASKED: [&str; 6] =
    ["/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/acpi", "/sys/firmware"];

fn masked_by_null(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("race")?;
        for (name, target) in [("core", "/proc/sys/kernel/core_pattern"), ("sysrq", "/proc/sysrq-trigger")] {
            let volume = folder(node.folder().join(name))?;
            let (null, link) = (volume.join("null"), volume.join("link"));
            mknod(&null, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3))?;
            symlink(target, &link)?;
            let mut config = container_config(name, "busybox", &["sleep", "3600"]);
            config.mounts = vec![bind(&volume, "/dev")];
            let linux = config.linux.as_mut().context("linux")?;
            let security = linux.security_context.as_mut().context("security context")?;
            security.masked_paths = MASKED.map(str::to_owned).into();
            security.readonly_paths = vec!["/proc/sys".to_owned(), "/proc/sysrq-trigger".to_owned()];
            race(node, &pod, &config, (&null, &link), |id| masked(&mounts(node, id)?))?;
            // And what the container can do about it.
            let id = node.launch_as(&pod, &config)?;
            let files = ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"];
            for file in files.into_iter().filter(|file| Path::new(file).exists()) {
                let said = node.cri().exec(&id, &["sh", "-c", &format!("echo x >{file}")])?;
                ensure!(said.code != 0 && said.stderr.contains("Read-only"), "{file}: {said:?}");
            }
            let shown = node.cri().shell(&id, "cat /proc/kcore /proc/keys /proc/timer_list | wc -c")?;
            ensure!(shown.trim() == "0", "{shown}");
        }
        node.end_pod(&pod)
    })
}

/// Masks are the runtime's own files, and what is read-only in /proc is what it was asked to be.
fn masked(all: &[(String, String, String)]) -> Result<()> {
    for path in MASKED.iter().filter(|path| Path::new(path).exists()) {
        let mask = all.iter().rev().find(|(_, place, _)| place == path);
        let (root, _, kind) = mask.with_context(|| format!("{path} is not masked"))?;
        ensure!(kind == "tmpfs" && (root == "/null" || root == "/empty"), "{path}: {root} of {kind}");
    }
    let proc = all.iter().filter(|(_, place, kind)| kind == "proc" && place != "/proc");
    let places: Vec<_> = proc.map(|(root, place, _)| (root.as_str(), place.as_str())).collect();
    let readonly = |path: &str| format!("/{}", path.trim_start_matches("/proc/"));
    for (root, place) in &places {
        ensure!(*root == readonly(place), "{places:?}");
    }
    Ok(())
}

fn terminal(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("race")?;
        // The folder of terminals is exchanged, in a volume that is all of /dev; and then a terminal in that folder.
        for (name, place, inside) in [("dev", "/dev", "pts"), ("pts", "/dev/pts", "0")] {
            let volume = folder(node.folder().join(name))?;
            let (own, link) = (volume.join(inside), volume.join("link"));
            if name == "dev" {
                folder(own.clone())?;
                symlink(canary.text("secret"), volume.join("console"))?;
                symlink(canary.text("dir"), &link)?;
            } else {
                mknod(&own, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3))?;
                symlink(canary.text("secret"), &link)?;
            }
            let mut config = container_config(name, "busybox", &["sleep", "3600"]);
            config.tty = true;
            config.mounts = vec![bind(&volume, place)];
            let race = Flipper::start(&own, &link);
            // A terminal needs the runtime's own devices, so no volume in their place gives one, in whichever state it is.
            for round in 0..flipper::rounds() / 2 {
                let error = node.cri().create(&pod.id, &config, &pod.config);
                let error =
                    error.err().with_context(|| format!("{name}, round {round}: a container was made"))?;
                let stage = "open a terminal and mount it at /dev/console: ";
                ensure!(error.message().contains(stage), "{name}, round {round}: {error}");
            }
            race.stop(flipper::rounds())?;
        }
        // Without a volume in the way it works, whatever went before.
        let mut config = container_config("free", "busybox", &["sh", "-c", "tty; sleep 3600"]);
        config.tty = true;
        let id = node.launch_as(&pod, &config)?;
        ensure!(crate::logs::wait_for_lines(node, &id, 1)?[0].content == "/dev/pts/0");
        node.end_pod(&pod)
    })
}
