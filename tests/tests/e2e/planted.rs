//! Images and volumes in which somebody has put something else at the places that a runtime reads, makes or mounts.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::build::{Build, Tar};
use crisp_tests::cri::container_config;
use crisp_tests::flipper::{self, Flipper};
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched::{self, SECRET};
use nix::sys::stat::Mode;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "r08_a_planted_console_or_pts_is_not_followed_out",
        needs: &[],
        images: &["busybox"],
        run: terminals,
    },
    Case {
        name: "r11_a_planted_dev_leads_nowhere_outside",
        needs: &[],
        images: &["busybox"],
        run: device_folders,
    },
    Case {
        name: "r19_files_read_or_mounted_in_a_root_stay_in_it",
        needs: &[],
        images: &["busybox"],
        run: etc_files,
    },
    Case {
        name: "r19_an_exec_reads_nothing_that_the_container_has_replaced",
        needs: &[],
        images: &["busybox"],
        run: replaced_while_running,
    },
    Case {
        name: "r22_removal_follows_nothing_that_the_container_has_replaced",
        needs: &[],
        images: &["busybox"],
        run: replaced_mount_points,
    },
];

const NAME: &str = "test/planted:1";

/// Runs a container of busybox with `layer` on top. It may be refused; what it shows, if it runs, is for `check`.
fn with_layer(
    node: &Node,
    pod: &Pod,
    layer: Tar,
    change: impl Fn(&mut cri::ContainerConfig),
    check: impl Fn(&str) -> Result<()>,
) -> Result<bool> {
    node.build_image(NAME, Build::on("busybox").layer(layer))?;
    let made = planted(node, pod, change, check)?;
    node.remove_image(NAME)?;
    Ok(made)
}

/// Runs a container of the image that was built last.
fn planted(
    node: &Node,
    pod: &Pod,
    change: impl Fn(&mut cri::ContainerConfig),
    check: impl Fn(&str) -> Result<()>,
) -> Result<bool> {
    let mut config = container_config("planted", NAME, &["sleep", "3600"]);
    change(&mut config);
    let made = node.cri().create(&pod.id, &config, &pod.config).ok();
    if let Some(id) = &made {
        if node.cri().start(id).is_ok() {
            check(id)?;
        }
        node.cri().remove(id)?;
    }
    Ok(made.is_some())
}

/// The devices of a container are devices, and nothing that it can reach is the canary's.
fn sane_devices(node: &Node, id: &str) -> Result<()> {
    node.cri().shell(id, "[ -c /dev/null ] && echo x >/dev/null && [ -z \"$(cat /dev/null)\" ]")?;
    node.cri().shell(id, "[ \"$(head -c 4 /dev/zero | wc -c)\" = 4 ] && : <>/dev/ptmx")?;
    Ok(())
}

fn terminals(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("terminals")?;
        let secret = canary.text("secret");
        let layers = [
            Tar::default().dir("dev").symlink("dev/console", &secret).symlink("dev/pts", &canary.text("dir")),
            Tar::default()
                .dir("dev")
                .symlink("dev/console", "/proc/1/root/etc/shadow")
                .file("dev/ptmx", b"x"),
            Tar::default()
                .dir("dev")
                .dir("dev/pts")
                .symlink("dev/pts/0", &secret)
                .symlink("dev/tty", &secret),
        ];
        for layer in layers {
            for tty in [false, true] {
                let check = |id: &str| {
                    sane_devices(node, id)?;
                    // 88: a terminal of devpts.
                    let console = "[ -c /dev/console ] && stat -c %t /dev/console || echo none";
                    let console = node.cri().shell(id, console)?;
                    ensure!(console.trim() == if tty { "88" } else { "none" }, "{console}");
                    Ok(())
                };
                let made = with_layer(node, &pod, layer.clone(), |config| config.tty = tty, check)?;
                ensure!(made, "the image's /dev is covered: none of this is in the way");
            }
        }
        // The same in a volume that is mounted over /dev: what is there is the volume's, and nothing of it is followed.
        let volume = node.folder().join("dev");
        fs::create_dir(&volume)?;
        symlink(&secret, volume.join("console"))?;
        symlink(canary.path(), volume.join("pts"))?;
        symlink(canary.path(), volume.join("shm"))?;
        let mut config = container_config("volume", "busybox", &["sleep", "3600"]);
        config.mounts = vec![cri::Mount {
            host_path: volume.display().to_string(),
            container_path: "/dev".to_owned(),
            ..Default::default()
        }];
        if let Ok(id) = node.cri().create(&pod.id, &config, &pod.config) {
            node.cri().remove(&id)?;
        }
        node.end_pod(&pod)
    })
}

fn device_folders(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("devices")?;
        let absolute = canary.text("");
        let relative = format!("../../../../../../../..{absolute}");
        let mut ran = 0;
        for target in
            [absolute.as_str(), &relative, "../../../../../../..", "/proc", "/sys", "/proc/1/root/dev"]
        {
            for place in ["dev", "dev/pts", "dev/shm", "dev/mqueue", "dev/null", "dev/ptmx"] {
                let tar = if place == "dev" { Tar::default() } else { Tar::default().dir("dev") };
                let check = |id: &str| {
                    sane_devices(node, id)?;
                    let found = node.cri().shell(id, "cat /dev/secret /dev/*/secret 2>/dev/null || true")?;
                    ensure!(!found.contains(SECRET.trim()), "{place} -> {target}: {found}");
                    Ok(())
                };
                let made = with_layer(node, &pod, tar.symlink(place, target), |_| {}, check)
                    .with_context(|| format!("{place} -> {target}"))?;
                ran += u32::from(made);
                // A device of the request goes the same way.
                if place == "dev" {
                    let device = |config: &mut cri::ContainerConfig| {
                        config.devices = vec![cri::Device {
                            host_path: "/dev/full".to_owned(),
                            container_path: "/dev/secret-device".to_owned(),
                            permissions: "rw".to_owned(),
                        }];
                    };
                    with_layer(node, &pod, Tar::default().symlink(place, target), device, |_| Ok(()))?;
                }
            }
        }
        ensure!(ran > 0, "no image was accepted: nothing was tried");
        let file = Tar::default().file("dev", b"no directory");
        with_layer(node, &pod, file, |_| {}, |_| Ok(()))?;
        node.end_pod(&pod)
    })
}

fn etc_files(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("etc")?;
        let absolute = |name: &str| canary.text(name);
        let relative = |name: &str| format!("../../../../../../../..{}", canary.text(name));
        let mut ran = 0;
        for place in
            ["etc", "etc/passwd", "etc/group", "etc/mtab", "etc/hosts", "etc/hostname", "etc/resolv.conf"]
        {
            let name = if place == "etc" { "" } else { "passwd" };
            let link = |target: &str| {
                // busybox has an /etc, which a link of that name replaces.
                Tar::default().symlink(place, target)
            };
            let layers = [
                link(&absolute(name)),
                link(&relative(name)),
                link("/proc/1/root/etc/shadow"),
                link("/dev/zero"),
                Tar::default().entry(b'6', place, "", b"", 0o666),
            ];
            for (number, layer) in layers.into_iter().enumerate() {
                node.build_image(NAME, Build::on("busybox").layer(layer))?;
                for user in ["", "root", "canary"] {
                    let change = |config: &mut cri::ContainerConfig| {
                        let security =
                            config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
                        if let Some(security) = security {
                            security.run_as_username = user.to_owned();
                        }
                    };
                    let check = |id: &str| {
                        // busybox' timeout: a FIFO and /dev/zero have no end.
                        let said = node.cri().exec(
                            id,
                            &["timeout", "-s", "KILL", "2", "head", "-c", "10000", &format!("/{place}")],
                        )?;
                        let shown = format!("{}{}", said.stdout, said.stderr);
                        ensure!(
                            !shown.contains("/bin/canary") && !shown.contains("root:$"),
                            "{place}: {shown}"
                        );
                        let home = node.cri().exec(id, &["sh", "-c", "echo $HOME"])?;
                        ensure!(!home.stdout.contains("/canary"), "the canary's passwd was read: {home:?}");
                        Ok(())
                    };
                    let made = planted(node, &pod, change, check)
                        .with_context(|| format!("{place}, layer {number}, user {user:?}"))?;
                    ran += u32::from(made);
                    // Only the canary's passwd has a user of that name in it.
                    ensure!(!made || user != "canary", "{place}, layer {number}: user canary was found");
                }
                node.remove_image(NAME)?;
            }
        }
        ensure!(ran > 0, "no image was accepted: nothing was tried");
        node.end_pod(&pod)
    })
}

fn replaced_while_running(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("replaced")?;
        let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
        let etc = PathBuf::from(format!("/proc/{}/root/etc", node.cri().pid(&id)?));
        for name in ["passwd", "group"] {
            symlink(canary.text("passwd"), etc.join(format!("{name}-canary")))?;
            symlink("/dev/zero", etc.join(format!("{name}-endless")))?;
            nix::unistd::mkfifo(&etc.join(format!("{name}-fifo")), Mode::S_IRWXU)?;
        }
        let rounds = flipper::rounds().div_ceil(3);
        for trap in ["canary", "endless", "fifo"] {
            let flip = |name: &str| Flipper::start(&etc.join(name), &etc.join(format!("{name}-{trap}")));
            let flippers = [flip("passwd"), flip("group")];
            for round in 0..rounds {
                // No program that looks into /etc itself.
                let said = node.cri().exec(&id, &["grep", "Uid:", "/proc/self/status"])?;
                ensure!(said.code == 0 && said.stdout == "Uid:\t0\t0\t0\t0\n", "{trap}, {round}: {said:?}");
            }
            for flipper in flippers {
                flipper.stop(rounds)?;
            }
        }
        ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning);
        node.end_pod(&pod)
    })
}

fn replaced_mount_points(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("stubs")?;
        let volume = node.folder().join("volume");
        let payload = node.folder().join("payload");
        fs::create_dir(&volume)?;
        fs::create_dir(&payload)?;
        fs::write(payload.join("kept"), "x")?;
        let file = node.folder().join("file");
        fs::write(&file, "kept")?;
        let mount = |host: &std::path::Path, place: &str| cri::Mount {
            host_path: host.display().to_string(),
            container_path: place.to_owned(),
            ..Default::default()
        };
        // None of the mount points is there before. The container moves the folders that they are in out of the way and
        // puts links to the canary in their places.
        let line = format!(
            "set -e; mv /stub /moved; ln -s {dir} /stub; mv /vol/stub /vol/moved; ln -s {dir} /vol/stub; echo done",
            dir = canary.text("")
        );
        let mut config = container_config("c", "busybox", &["sh", "-c", &format!("{line}; sleep 3600")]);
        config.mounts = vec![
            mount(&volume, "/vol"),
            mount(&payload, "/stub/secret/deep"),
            mount(&file, "/stub/dir/file"),
            mount(&payload, "/vol/stub/dir"),
            mount(&file, "/vol/stub/secret"),
        ];
        let id = node.launch_as(&pod, &config)?;
        crate::logs::wait_for_lines(node, &id, 1)?;
        node.cri().remove(&id)?;
        ensure!(fs::read_to_string(payload.join("kept"))? == "x" && fs::read_to_string(&file)? == "kept");
        ensure!(
            fs::read_link(volume.join("stub"))? == canary.path(),
            "what the container made in its volume stays"
        );
        // Again, through the links that are in the volume now: they lead where they lead in the container.
        if let Ok(id) = node.cri().create(&pod.id, &config, &pod.config) {
            node.cri().remove(&id)?;
        }
        node.end_pod(&pod)
    })
}
