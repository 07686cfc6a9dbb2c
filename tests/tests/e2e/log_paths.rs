//! Where a container's log goes is nobody's to choose but the client's: traps at the path of the log.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused};
use crisp_tests::flipper::Flipper;
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched::{self, Canary, Untouched};
use crisp_tests::{command, flipper};
use nix::sys::stat::Mode;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "c02_a_log_directory_leads_nowhere_else",
        needs: &[],
        images: &["busybox"],
        run: directories,
    },
    Case {
        name: "c02_what_is_mounted_at_a_log_directory_stays",
        needs: &[],
        images: &["busybox"],
        run: mounted,
    },
    Case { name: "c03_a_trap_in_place_of_a_log_is_refused", needs: &[], images: &["busybox"], run: traps },
    Case { name: "c03_a_log_path_leaves_no_directory", needs: &[], images: &["busybox"], run: paths },
    Case { name: "c03_a_race_leads_no_log_astray", needs: &[], images: &["busybox"], run: raced },
    Case {
        name: "c03_a_trap_is_refused_when_the_log_is_reopened",
        needs: &[],
        images: &["busybox"],
        run: reopened,
    },
];

fn directories(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let base = node.logs();
        let with = |directory: String| {
            let mut config = node.pod_config("directories");
            config.log_directory = directory;
            config
        };
        let up = |rest: &str| format!("{}/default_x/{rest}", base.display());
        for directory in [
            up("../../.."),
            up(".."),
            up("../../../../../../../../etc"),
            "relative/logs".to_owned(),
            "/logs\n/other".to_owned(),
            "/logs\0".to_owned(),
            format!("/{}", "d/".repeat(3000)),
        ] {
            let message = refused(node.cri().run_pod(&with(directory)), Code::InvalidArgument)?;
            ensure!(message.contains("log_directory"), "{message}");
        }
        // A link or a file where the directory is to be; the directory of a link that leads nowhere is not made.
        symlink(canary.path(), base.join("link"))?;
        symlink(canary.path().join("new"), base.join("dangling"))?;
        fs::write(base.join("file"), "")?;
        for name in ["link", "dangling", "file"] {
            let message = refused(
                node.cri().run_pod(&with(base.join(name).display().to_string())),
                Code::InvalidArgument,
            )?;
            ensure!(message.contains("log_directory"), "{message}");
            fs::remove_file(base.join(name))?;
        }
        // Exchanged when the sandbox is there: no container's log goes through it.
        let pod = node.run_pod("exchanged")?;
        let directory = PathBuf::from(&pod.config.log_directory);
        fs::remove_dir(&directory)?;
        symlink(canary.path(), &directory)?;
        let config = container_config("c", "busybox", &["echo", "x"]);
        let status = node.cri().launch(&pod.id, &config, &pod.config).err().context("a link was followed")?;
        ensure!(status.message().contains("log"), "{status:?}");
        fs::remove_file(&directory)?;
        node.end_pod(&pod)
    })
}

/// File systems of the operator's at a log directory and below it stay where they are, whatever becomes of the pod.
fn mounted(node: &mut Node) -> Result<()> {
    let mut watch = Untouched::before(node)?;
    let config = node.pod_config("mounted");
    let directory = PathBuf::from(&config.log_directory);
    let below = directory.join("c");
    let mounts = [&directory, &below].map(|place| -> Result<Mounted> {
        fs::create_dir_all(place)?;
        Mounted::tmpfs(place)
    });
    let mounts = mounts.into_iter().collect::<Result<Vec<_>>>()?;
    let still = |when: &str| -> Result<()> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        for place in [&directory, &below] {
            let at = place.display().to_string();
            let count = table.lines().filter(|line| line.split(' ').nth(4) == Some(&at)).count();
            ensure!(count == 1, "{when}: {count} mounts at {at}");
        }
        Ok(())
    };
    for what in ["removed", "stopped, daemon killed, removed"] {
        let pod = node.run_pod_as(config.clone())?;
        let id = node.launch(&pod, "c", "busybox", &["echo", "logged"])?;
        node.wait_for_exit(&id)?;
        ensure!(below.join("0.log").metadata()?.len() > 0, "the log is not in the inner file system");
        node.cri().stop_pod(&pod.id)?;
        still("after StopPodSandbox")?;
        if what != "removed" {
            node.kill_and_restart()?;
            watch.daemon_was_replaced(node)?;
            still("after a restart")?;
        }
        node.cri().remove(&id)?;
        still("after RemoveContainer")?;
        node.cri().remove_pod(&pod.id)?;
        still("after RemovePodSandbox")?;
    }
    node.kill_and_restart()?;
    watch.daemon_was_replaced(node)?;
    still("after the last restart")?;
    drop(mounts);
    watch.after(node)
}

/// A tmpfs that goes with this value, also when the test has failed.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(place: &Path) -> Result<Self> {
        command::run(Command::new("mount").args(["-t", "tmpfs", "operators"]).arg(place))?.ok()?;
        Ok(Self(place.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = command::run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

/// Everything that can stand where a log is to be and is none.
fn plant(kind: &str, at: &Path, canary: &Canary) -> Result<()> {
    match kind {
        "link to a file" => symlink(canary.path().join("secret"), at)?,
        "link to nothing" => symlink(canary.path().join("new"), at)?,
        "link to a device" => symlink("/dev/kmsg", at)?,
        "fifo" => nix::unistd::mkfifo(at, Mode::S_IRWXU)?,
        "directory" => fs::create_dir(at)?,
        "hard link" => {
            let beside = at.with_extension("hard");
            fs::write(&beside, "kept")?;
            fs::hard_link(&beside, at)?;
        }
        "device" => {
            let null = nix::sys::stat::makedev(1, 3);
            nix::sys::stat::mknod(at, nix::sys::stat::SFlag::S_IFCHR, Mode::S_IRWXU, null)?;
        }
        "somebody else's file" => {
            fs::write(at, "")?;
            chown(at, Some(4321), Some(4321))?;
        }
        other => anyhow::bail!("no trap {other}"),
    }
    Ok(())
}

const TRAPS: [&str; 8] = [
    "link to a file",
    "link to nothing",
    "link to a device",
    "fifo",
    "directory",
    "hard link",
    "device",
    "somebody else's file",
];

fn take_away(at: &Path) -> Result<()> {
    let _ = fs::remove_file(at.with_extension("hard"));
    match at.symlink_metadata()?.is_dir() {
        true => fs::remove_dir(at),
        false => fs::remove_file(at),
    }
    .with_context(|| format!("remove {}", at.display()))
}

fn traps(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("traps")?;
        let at = Path::new(&pod.config.log_directory).join("c.log");
        for kind in TRAPS {
            plant(kind, &at, canary)?;
            let mut config = container_config("c", "busybox", &["echo", "escaped"]);
            config.log_path = "c.log".to_owned();
            let status = node.cri().launch(&pod.id, &config, &pod.config).err();
            let status = status.with_context(|| format!("a {kind} was taken for a log"))?;
            ensure!(status.message().contains("c.log"), "{kind}: {status:?}");
            ensure!(
                node.cri().containers()?.iter().all(|one| one.pod_sandbox_id != pod.id),
                "{kind}: left behind"
            );
            take_away(&at)?;
        }
        // A parent that is a link, and another pod's log by its name.
        symlink(canary.path(), Path::new(&pod.config.log_directory).join("dir"))?;
        let other = node.run_pod("other")?;
        let id = node.launch(&other, "c", "busybox", &["echo", "mine"])?;
        node.wait_for_exit(&id)?;
        let others = node.cri().container(&id)?.log_path;
        let before = fs::read(&others)?;
        symlink(&others, Path::new(&pod.config.log_directory).join("others.log"))?;
        for path in ["dir/c.log", "dir/dir/c.log", "others.log"] {
            let mut config = container_config("c", "busybox", &["echo", "escaped"]);
            config.log_path = path.to_owned();
            ensure!(node.cri().launch(&pod.id, &config, &pod.config).is_err(), "{path} was followed");
        }
        ensure!(fs::read(&others)? == before, "another pod's log was written to");
        node.end_pod(&other)?;
        node.end_pod(&pod)
    })
}

fn paths(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("paths")?;
        for path in
            ["../../../etc/cron.d/x", "..", "a/../../x", "/etc/cron.d/x", "a\nb", "a\0b", &canary.text("new")]
        {
            let mut config = container_config("c", "busybox", &["echo", "escaped"]);
            config.log_path = path.to_owned();
            let message = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
            ensure!(message.contains("log_path"), "{message}");
        }
        // Too long for any file system, and a directory's name: an error all the same, and nothing is left.
        for path in ["n".repeat(300), "d/".repeat(3000), "d/".to_owned(), ".".to_owned()] {
            let mut config = container_config("c", "busybox", &["echo", "escaped"]);
            config.log_path = path;
            ensure!(node.cri().create(&pod.id, &config, &pod.config).is_err());
        }
        ensure!(!Path::new("/etc/cron.d/x").exists());
        // What is refused here is fine there: the mode of a log that was made.
        let id = node.launch(&pod, "fine", "busybox", &["true"])?;
        let mode = fs::metadata(node.cri().container(&id)?.log_path)?.permissions().mode() & 0o777;
        ensure!(mode == 0o640, "a log of mode {mode:o}");
        node.end_pod(&pod)
    })
}

fn reopened(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("reopened")?;
        let line = "n=0; while :; do echo $n; n=$((n+1)); sleep 0.02; done";
        let id = node.launch(&pod, "c", "busybox", &["sh", "-c", line])?;
        crate::logs::wait_for_lines(node, &id, 2)?;
        let at = PathBuf::from(node.cri().container(&id)?.log_path);
        let kept = at.with_extension("kept");
        let request = || cri::ReopenContainerLogRequest { container_id: id.clone() };
        fs::rename(&at, &kept)?;
        for kind in TRAPS {
            plant(kind, &at, canary)?;
            let status = node.cri().reopen_container_log(request()).err();
            let status = status.with_context(|| format!("a {kind} was taken for a log"))?;
            ensure!(status.message().contains("0.log"), "{kind}: {status:?}");
            take_away(&at)?;
            // The file that is open stays in use.
            let lines = fs::read_to_string(&kept)?.lines().count();
            crisp_tests::wait::until_true("the kept log to grow", crisp_tests::wait::LONG, || {
                fs::read_to_string(&kept).is_ok_and(|text| text.lines().count() > lines + 1)
            })?;
        }
        node.cri().reopen_container_log(request())?;
        crate::logs::wait_for_lines(node, &id, 2)?;
        node.cri().stop(&id, 0)?;
        let mut whole = fs::read_to_string(&kept)?;
        whole.push_str(&fs::read_to_string(&at)?);
        let numbers: Vec<usize> =
            crate::logs::parse(&whole)?.iter().map(|line| line.content.parse()).collect::<Result<_, _>>()?;
        ensure!(numbers.iter().enumerate().all(|(at, number)| at == *number), "lines lost or doubled");
        node.end_pod(&pod)
    })
}

/// The log, and then the folder that it is in, is exchanged with a link to the canary while containers are made, started and
/// told to open their logs anew. Each call does what it is asked to or is refused; nothing is written through the link.
fn raced(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("raced")?;
        let folder = PathBuf::from(&pod.config.log_directory).join("c");
        let beside = folder.with_extension("link");
        for (what, own, link, target) in [
            ("the file", folder.join("0.log"), folder.join("link"), canary.path().join("secret")),
            ("its folder", folder.clone(), beside, canary.path().to_owned()),
        ] {
            fs::create_dir_all(&folder)?;
            fs::write(folder.join("0.log"), "")?;
            symlink(&target, &link)?;
            let rounds = flipper::rounds() / 2;
            let race = Flipper::start(&own, &link);
            let mut done = BTreeMap::new();
            for _ in 0..rounds {
                for (call, worked) in one_life(node, &pod)? {
                    *done.entry(call).or_insert(0) += usize::from(worked);
                }
            }
            race.stop(rounds)?;
            for call in ["create", "start", "reopen"] {
                ensure!(
                    done.get(call).is_some_and(|times| *times > 0),
                    "{what}: nothing was tried: {done:?}"
                );
            }
            for path in [&own, &link] {
                if path.is_symlink() {
                    fs::remove_file(path)?;
                }
            }
            let _ = fs::rename(&link, &own);
        }
        node.end_pod(&pod)
    })
}

/// A container that writes what must not be found elsewhere; which calls of its life have worked.
fn one_life(node: &Node, pod: &Pod) -> Result<Vec<(&'static str, bool)>> {
    let line = "echo escaped; sleep 3600";
    let config = container_config("c", "busybox", &["sh", "-c", line]);
    let mut calls = Vec::new();
    let made = node.cri().create(&pod.id, &config, &pod.config);
    calls.push(("create", made.is_ok()));
    let Ok(id) = made else { return Ok(calls) };
    let started = node.cri().start(&id).is_ok();
    calls.push(("start", started));
    for _ in 0..3 {
        let request = cri::ReopenContainerLogRequest { container_id: id.clone() };
        calls.push(("reopen", started && node.cri().reopen_container_log(request).is_ok()));
    }
    node.cri().remove(&id)?;
    Ok(calls)
}
