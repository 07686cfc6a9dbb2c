//! Attempts to turn what the runtime does in `/proc` and `/sys` against the host, and to see what is masked there. `r09_`,
//! `r10_` and `r26_` of the adversarial cases.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1::{self as cri, security_profile::ProfileType};
use crisp_tests::apparmor::label;
use crisp_tests::build::{Build, Tar};
use crisp_tests::cri::{bind, secured, words};
use crisp_tests::flipper::{self, Flipper};
use crisp_tests::node::{Node, Pod};
use crisp_tests::place::{self, Need};
use crisp_tests::untouched;

use crate::case::Case;
use crate::races;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "r09_nothing_takes_the_writes_to_proc", needs: &[], images: &["busybox"], run: redirected },
    Case { name: "r09_a_race_takes_no_write_to_proc", needs: &[], images: &["busybox"], run: raced },
    Case {
        name: "r09_a_race_takes_no_label_either",
        needs: &[Need::AppArmor],
        images: &["busybox"],
        run: raced,
    },
    Case { name: "r10_an_image_cannot_move_proc_or_sys", needs: &[], images: &["busybox"], run: moved },
    Case { name: "r26_masked_paths_stay_masked", needs: &[], images: &["busybox"], run: masked },
    Case { name: "r26_any_list_of_paths_is_bounded", needs: &[], images: &["busybox"], run: lists },
];

/// What kubelet sends for a container with an ordinary `/proc`.
pub(crate) const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sets the lists of [`MASKED`] and read-only paths.
pub(crate) fn default_paths(security: &mut cri::LinuxContainerSecurityContext) {
    security.masked_paths = words(&MASKED);
    security.readonly_paths = words(&READONLY);
}

/// Only the kernel's own rules: no profile stands in front of them.
pub(crate) fn unconfined(security: &mut cri::LinuxContainerSecurityContext) {
    let profile_type = ProfileType::Unconfined.into();
    security.apparmor = Some(cri::SecurityProfile { profile_type, ..Default::default() });
}

/// Shows that init's profile is in force, as the kernel says from outside; where there is none, that it has its score.
fn in_force(node: &Node, id: &str) -> Result<()> {
    let pid = node.cri().pid(id)?;
    if place::has_apparmor() {
        ensure!(label(pid)? == "crisp-default (enforce)", "{}", label(pid)?);
    }
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    ensure!(score.trim() == "789", "oom_score_adj {score}");
    Ok(())
}

/// A container with something to be written about it in `/proc`.
fn scored(name: &str, image: &str, mounts: Vec<cri::Mount>) -> cri::ContainerConfig {
    let mut config = secured(name, image, &["sleep", "3600"], default_paths);
    if let Some(resources) = config.linux.as_mut().and_then(|linux| linux.resources.as_mut()) {
        resources.oom_score_adj = 789;
    }
    cri::ContainerConfig { mounts, ..config }
}

/// A folder that looks like a process's own in `/proc`, with links to the kernel's files in place of its files.
fn false_proc(folder: &Path) -> Result<()> {
    for below in ["self/attr/apparmor", "thread-self/attr/apparmor", "sys/kernel", "sys/net/ipv4"] {
        fs::create_dir_all(folder.join(below))?;
    }
    for (name, target) in [
        ("self/attr/exec", "/proc/self/sched"),
        ("self/attr/apparmor/exec", "/proc/self/sched"),
        ("thread-self/attr/apparmor/exec", "/proc/sysrq-trigger"),
        ("self/oom_score_adj", "/proc/sys/kernel/core_pattern"),
        ("thread-self/oom_score_adj", "/proc/sys/kernel/core_pattern"),
        ("sys/kernel/shm_rmid_forced", "/proc/sys/kernel/core_pattern"),
    ] {
        symlink(target, folder.join(name))?;
    }
    Ok(())
}

/// A folder that looks like a process's own `attr` in `/proc`.
fn false_attributes(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("apparmor"))?;
    for name in ["exec", "current", "apparmor/exec", "apparmor/current"] {
        symlink("/proc/self/sched", folder.join(name))?;
    }
    Ok(())
}

fn sysctl_pod(node: &Node, name: &str) -> Result<Pod> {
    let mut config = node.pod_config(name);
    let linux = config.linux.as_mut().context("linux")?;
    linux.sysctls = [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into();
    node.run_pod_as(config)
}

fn redirected(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let folder = node.folder().join("false-proc");
        false_proc(&folder)?;
        let pod = sysctl_pod(node, "redirected")?;
        for path in [
            "/proc",
            "/proc/",
            "/proc/.",
            "/proc/self",
            "/proc/self/attr",
            "/proc/thread-self/attr/apparmor",
            "/proc/1",
            "/proc/sys",
            "/proc/sys/kernel/core_pattern",
            "/proc/sysrq-trigger",
        ] {
            let config = scored("c", "busybox", vec![bind(&folder, path)]);
            let error = node.cri().create(&pod.id, &config, &pod.config).err();
            let error = error.with_context(|| format!("{path}: a container was made"))?;
            ensure!(error.message().contains("proc"), "{path}: {error:?}");
        }
        // The same through links of the image; and an image that brings a tree of its own for /proc.
        let layer = Tar::default().symlink("way", "/proc/self").symlink("up", "../proc").dir("p");
        node.build_image("test/ways:1", Build::on("busybox").layer(layer))?;
        for path in ["/way", "/way/attr", "/up/self/attr", "/up/sys/kernel"] {
            let config = scored("c", "test/ways:1", vec![bind(&folder, path)]);
            let error = node.cri().create(&pod.id, &config, &pod.config).err();
            ensure!(error.is_some(), "{path}: a container was made");
        }
        let fake = Tar::default()
            .dir("proc/self/attr/apparmor")
            .symlink("proc/self/attr/apparmor/exec", &canary.text("secret"))
            .symlink("proc/self/oom_score_adj", &canary.text("secret"));
        node.build_image("test/fake:1", Build::on("busybox").layer(fake))?;
        let id = node.launch_as(&pod, &scored("fake", "test/fake:1", vec![]))?;
        in_force(node, &id)?;
        ensure!(node.cri().shell(&id, "cat /proc/sys/kernel/shm_rmid_forced")? == "1\n");
        node.end_pod(&pod)?;
        node.remove_image("test/fake:1")?;
        node.remove_image("test/ways:1")
    })
}

fn raced(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let shared = node.folder().join("shared");
        let decoy = node.folder().join("decoy");
        false_attributes(&decoy)?;
        fs::create_dir_all(shared.join("place/attr"))?;
        symlink("/proc/self", shared.join("link"))?;
        let pod = sysctl_pod(node, "raced")?;
        let mounts = vec![bind(&shared, "/shared"), bind(&decoy, "/shared/place/attr")];
        let rounds = flipper::rounds();
        let flipper = Flipper::start(&shared.join("place"), &shared.join("link"));
        race(node, &pod, &mounts, rounds)?;
        flipper.stop(rounds)?;
        node.end_pod(&pod)
    })
}

/// Makes containers until the rounds are over: each one either is not made, or lives as it should. Of those that are
/// made, some are started: the label is in force only then.
fn race(node: &Node, pod: &Pod, mounts: &[cri::Mount], rounds: usize) -> Result<()> {
    const STARTED: usize = 10;
    let mut made = 0;
    for round in 0..rounds {
        let config = scored("c", "busybox", mounts.to_vec());
        let Ok(id) = node.cri().create(&pod.id, &config, &pod.config) else {
            continue;
        };
        made += 1;
        only_masks_in_proc(&races::mounts(node, &id)?).with_context(|| format!("round {round}"))?;
        // To look at one that runs takes longer than to make it: not each has to be seen running.
        if made % STARTED == 1 {
            node.cri().start(&id)?;
            in_force(node, &id).with_context(|| format!("round {round}"))?;
        } else {
            let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", node.cri().pid(&id)?))?;
            ensure!(score.trim() == "789", "oom_score_adj {score}");
        }
        node.cri().remove(&id)?;
    }
    ensure!(made > 0, "none of {rounds} creates succeeded: nothing was tried");
    let id = node.launch_as(pod, &scored("last", "busybox", vec![]))?;
    in_force(node, &id)?;
    ensure!(node.cri().shell(&id, "cat /proc/sys/kernel/shm_rmid_forced")? == "1\n");
    Ok(())
}

/// Below `/proc` nothing is mounted but what the request masks and makes read-only: a decoy that got there has won.
fn only_masks_in_proc(mounts: &[(String, String, String)]) -> Result<()> {
    for (root, place, kind) in mounts.iter().filter(|(_, place, _)| place.starts_with("/proc/")) {
        let masked = MASKED.contains(&place.as_str()) && kind == "tmpfs";
        let readonly = READONLY.contains(&place.as_str()) && kind == "proc";
        ensure!(masked || readonly, "{root} of a {kind} is mounted at {place}");
    }
    Ok(())
}

fn moved(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("moved")?;
        let evil = || Tar::default().dir("evil");
        let out = format!("../../../../../../..{}", canary.text(""));
        for (what, layer, word) in [
            ("/proc is a link", evil().symlink("proc", "/evil"), "/proc"),
            ("/proc leads out", evil().symlink("proc", &out), "/proc"),
            ("/proc is a file", evil().file("proc", b"x"), "/proc"),
            ("/sys is /proc", evil().symlink("sys", "/proc"), "/sys"),
            ("/sys leads out", evil().symlink("sys", &out), "/sys"),
            ("/sys is a file", evil().file("sys", b"x"), "/sys"),
        ] {
            node.build_image("test/moved:1", Build::empty().layer(layer))?;
            let config = scored("c", "test/moved:1", vec![]);
            let error = node.cri().create(&pod.id, &config, &pod.config).err();
            let error = error.with_context(|| format!("{what}: a container was made"))?;
            ensure!(error.message().contains(word), "{what}: {error:?}");
            node.remove_image("test/moved:1")?;
        }
        let id = node.launch_as(&pod, &scored("fine", "busybox", vec![]))?;
        in_force(node, &id)?;
        node.end_pod(&pod)
    })
}

/// Of a list of paths: those that the kernel has, by the kind that they are on the host.
fn present(paths: &[&'static str]) -> Vec<(&'static str, bool)> {
    let exists = paths.iter().filter(|path| Path::new(path).exists());
    exists.map(|path| (*path, Path::new(path).is_dir())).collect()
}

fn masked(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("masked")?;
        let plain = node.launch_as(&pod, &secured("plain", "busybox", &["sleep", "3600"], default_paths))?;
        let free = secured("free", "busybox", &["sleep", "3600"], |security| {
            default_paths(security);
            unconfined(security);
        });
        let free = node.launch_as(&pod, &free)?;
        ensure!(!present(&MASKED).is_empty() && !present(&READONLY).is_empty(), "nothing here to be masked");
        for id in [&plain, &free] {
            for (path, directory) in present(&MASKED) {
                let look = if directory { format!("ls -A {path}") } else { format!("head -c 1 {path}") };
                ensure!(node.cri().exec(id, &["sh", "-c", &look])?.stdout.is_empty(), "{path} can be read");
                let write = if directory { format!("touch {path}/x") } else { format!("umount {path}") };
                ensure!(node.cri().exec(id, &["sh", "-c", &write])?.code != 0, "{path}: {write}");
                for way in [
                    format!("umount -l {path}"),
                    format!("mount -o remount,rw,bind {path}"),
                    format!("mount --bind /tmp {path}"),
                    format!("mount --move {path} /tmp"),
                ] {
                    ensure!(node.cri().exec(id, &["sh", "-c", &way])?.code != 0, "{way} works");
                }
            }
            for (path, directory) in present(&READONLY) {
                let write = if directory { format!("touch {path}/x") } else { format!("echo h >{path}") };
                ensure!(node.cri().exec(id, &["sh", "-c", &write])?.code != 0, "{path} can be written");
            }
        }
        // In a user namespace of its own, with all capabilities there, the mounts are locked.
        let (file, _) =
            present(&MASKED).into_iter().find(|(_, directory)| !directory).context("no masked file")?;
        let script = format!(
            "umount {file} && echo open; mount -t proc proc /tmp && echo new; \
             mkdir /tmp/b; mount --rbind / /tmp/b && head -c 1 /tmp/b{file}"
        );
        let said = node.cri().exec(&free, &["unshare", "-Urm", "sh", "-c", &script])?;
        ensure!(said.stdout.is_empty(), "{said:?}");
        node.end_pod(&pod)
    })
}

fn lists(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let mut layer = Tar::default().dir("m").symlink("m/link", "/m/d0").symlink("m/away", "/m/nothing");
        for number in 0..100 {
            layer = layer.dir(&format!("m/d{number}")).file(&format!("m/d{number}/f"), b"seen\n");
        }
        node.build_image("test/lists:1", Build::on("busybox").layer(layer))?;
        let pod = node.run_pod("lists")?;
        let launch = |name: &str, list: Vec<String>| -> Result<String> {
            let config =
                secured(name, "test/lists:1", &["sleep", "3600"], |security| security.masked_paths = list);
            node.launch_as(&pod, &config)
        };
        let none = launch("none", Vec::new())?;
        ensure!(node.cri().shell(&none, "cat /m/d0/f")? == "seen\n");
        let mut all: Vec<String> = (0..100).map(|number| format!("/m/d{number}")).collect();
        all.extend((0..10_000).map(|number| format!("/m/missing-{number}")));
        all.extend(words(&["/m/d1", "/m/d1", "/m/link", "/m/away", "/m/d2/", "/m/d3/f"]));
        let many = launch("many", all)?;
        ensure!(
            node.cri().shell(&many, "cat /m/*/f 2>/dev/null; ls /m/nothing 2>/dev/null; true")?.is_empty()
        );
        // Masks are copies of one mount: they take no superblock each.
        let table = node.cri().shell(&many, "cat /proc/self/mountinfo")?;
        let masks =
            table.lines().filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with("/m/")));
        let devices: Vec<_> = masks.filter_map(|line| line.split(' ').nth(2)).collect();
        ensure!(devices.len() >= 100 && BTreeSet::from_iter(&devices).len() == 1, "{devices:?}");
        for bad in ["relative", "", "/m/../etc", "/m/\n"] {
            let error =
                launch("bad", words(&[bad])).err().with_context(|| format!("{bad:?} was accepted"))?;
            ensure!(format!("{error:#}").contains("masked_paths"), "{bad:?}: {error:#}");
        }
        node.end_pod(&pod)?;
        node.remove_image("test/lists:1")
    })
}
