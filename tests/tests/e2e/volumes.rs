//! Volumes that come from images: an image mounted as a volume (CRI `Mount.image`), and the volumes that an image
//! declares. `r23_` and `r25_`: neither shows anything but the image.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::build::{Build, Tar};
use crisp_tests::cri::{container_config, image};
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched;
use serde_json::json;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "an_image_is_mounted_as_a_volume", needs: &[], images: &["busybox"], run: image_volume },
    Case {
        name: "r23_an_image_volume_shows_nothing_but_the_image",
        needs: &[],
        images: &["busybox"],
        run: confined,
    },
    Case {
        name: "an_image_volume_outlives_its_image",
        needs: &[],
        images: &["busybox"],
        run: outlives_its_image,
    },
    Case { name: "an_image_declares_volumes", needs: &[], images: &["busybox"], run: declared },
    Case {
        name: "r25_a_declared_volume_shows_nothing_but_the_image",
        needs: &[],
        images: &["busybox"],
        run: declared_confined,
    },
];

/// What every refusal of an image volume begins with: kubelet looks for it there.
const KEYWORD: &str = "ImageVolumeMountFailed: ";

fn volume(place: &str, name: &str, sub_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: place.to_owned(),
        image: Some(image(name)),
        image_sub_path: sub_path.to_owned(),
        readonly: true,
        ..Default::default()
    }
}

fn with_mounts(name: &str, mounts: Vec<cri::Mount>) -> cri::ContainerConfig {
    cri::ContainerConfig { mounts, ..container_config(name, "busybox", &["sleep", "3600"]) }
}

/// Two layers, so that the volume is an overlay; `tool` is a program.
fn data() -> Build {
    let tool = b"#!/bin/sh\necho runs\n";
    Build::empty()
        .layer(Tar::default().dir("etc").file("etc/passwd", b"of the image\n").dir("d").file("d/gone", b"x"))
        .layer(
            Tar::default()
                .entry(b'0', "tool", "", tool, 0o755)
                .dir("d")
                .file("d/.wh.gone", b"")
                .dir("d/deep")
                .file("d/deep/f", b"deep\n")
                .symlink("link", "/d/deep")
                .symlink("up", "../../../../../../../../d")
                .symlink("out", "/proc/1/root/etc")
                .symlink("file", "/etc/passwd"),
        )
}

fn image_volume(node: &mut Node) -> Result<()> {
    node.build_image("test/data:1", data())?;
    let pod = node.run_pod("image-volume")?;
    let wanted = vec![volume("/all", "test/data:1", ""), volume("/made/for/it", "test/data:1", "d/deep")];
    let id = node.launch_as(&pod, &with_mounts("one", wanted.clone()))?;
    let shell = |line: &str| node.cri().shell(&id, line);
    ensure!(shell("cat /all/etc/passwd /all/d/deep/f /made/for/it/f")? == "of the image\ndeep\ndeep\n");
    ensure!(shell("ls -A /all/d /made/for/it")? == "/all/d:\ndeep\n\n/made/for/it:\nf\n");
    // Programs run; nobody writes, whatever rights he has in the container.
    ensure!(shell("/all/tool")? == "runs\n");
    for line in ["echo x >/all/new", "rm /all/tool", "echo x >/made/for/it/f", "mkdir /made/for/it/d"] {
        let said = node.cri().exec(&id, &["sh", "-c", line])?;
        ensure!(said.code != 0 && said.stderr.contains("Read-only"), "`{line}`: {said:?}");
    }
    let flags = shell("grep -E ' (/all|/made/for/it) ' /proc/self/mounts | cut -d' ' -f4")?;
    for flag in ["ro", "nosuid", "nodev"] {
        ensure!(flags.lines().all(|line| line.split(',').any(|word| word == flag)), "{flag}: {flags}");
    }
    ensure!(!flags.contains("noexec"), "{flags}");
    // The status has the mounts as they were asked for, and which image that is: what PullImage would return.
    let image_id = node.cri().image_id("test/data:1")?.context("image id")?;
    let shown = node.cri().container(&id)?.mounts;
    for (shown, wanted) in shown.iter().zip(&wanted) {
        let mut wanted = wanted.clone();
        wanted.image.as_mut().context("image")?.image_ref = image_id.clone();
        ensure!(*shown == wanted, "{shown:?}\n{wanted:?}");
    }
    // By its id, as kubelet names it; a second container has the same tree.
    let other = node.launch_as(&pod, &with_mounts("two", vec![volume("/all", &image_id, "link")]))?;
    ensure!(node.cri().shell(&other, "cat /all/f")? == "deep\n");
    ensure!(node.crisp(&["inspect", &pod.id])?.ok()?.contains("image test/data:1"));
    node.end_pod(&pod)?;
    node.remove_image("test/data:1")
}

/// Checks that a container is refused with all of `words`, the keyword at the front.
fn refused(node: &Node, pod: &Pod, mount: cri::Mount, words: &[&str]) -> Result<()> {
    let first = volume("/first", "test/data:1", "");
    let config = with_mounts("refused", vec![first, mount]);
    let status = node.cri().create(&pod.id, &config, &pod.config).err();
    let status = status.with_context(|| format!("accepted: {:?}", config.mounts))?;
    let message = status.message();
    ensure!(message.starts_with(KEYWORD), "{status:?}");
    for word in words.iter().chain(&["mounts[1]"]) {
        ensure!(message.contains(word), "no {word}: {message}");
    }
    Ok(())
}

fn confined(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        node.build_image("test/data:1", data())?;
        let pod = node.run_pod("confined")?;
        let before = node.snapshot()?;
        let sub = |path: &str| volume("/v", "test/data:1", path);
        for path in ["../..", "d/../../etc", "/etc", "/", "..", "d/.."] {
            refused(node, &pod, sub(path), &["image_sub_path", path])?;
        }
        for path in ["nowhere", "d/gone", "tool", "file", "out", "d/deep/f/x", "out/passwd"] {
            refused(node, &pod, sub(path), &[path])?;
        }
        refused(node, &pod, volume("/v", "test/no-such:7", ""), &["test/no-such:7", "not found"])?;
        refused(node, &pod, cri::Mount { readonly: false, ..sub("") }, &["readonly"])?;
        refused(node, &pod, cri::Mount { host_path: "/tmp".to_owned(), ..sub("") }, &["host_path"])?;
        refused(node, &pod, volume("/proc/sys", "test/data:1", ""), &["/proc"])?;
        let open = cri::MountPropagation::PropagationBidirectional.into();
        refused(node, &pod, cri::Mount { propagation: open, ..sub("") }, &["propagation"])?;
        node.wait_for_return(&before).context("after refusals")?;
        // Links lead where they lead in the image: `up` and `link` to its own folders.
        let mounts = vec![volume("/a", "test/data:1", "up"), volume("/b", "test/data:1", "link")];
        let id = node.launch_as(&pod, &with_mounts("links", mounts))?;
        ensure!(node.cri().shell(&id, "cd /a; ls -d *; cat /a/deep/f /b/f")? == "deep\ndeep\ndeep\n");
        ensure!(node.cri().shell(&id, "cat /a/../etc/passwd /b/../etc/passwd")?.contains("root:"));
        node.end_pod(&pod)?;
        node.remove_image("test/data:1")
    })
}

fn outlives_its_image(node: &mut Node) -> Result<()> {
    node.build_image("test/data:1", data())?;
    let pod = node.run_pod("outlives")?;
    let mounts = vec![volume("/v", "test/data:1", "d")];
    let id = node.launch_as(&pod, &with_mounts("c", mounts))?;
    let before = node.cri().image_fs_info(cri::ImageFsInfoRequest {})?;
    node.remove_image("test/data:1")?;
    ensure!(node.cri().image_id("test/data:1")?.is_none());
    ensure!(node.cri().shell(&id, "cat /v/deep/f")? == "deep\n");
    // A daemon that begins anew knows from its own records what is in use.
    node.kill()?;
    node.serve()?;
    ensure!(node.cri().shell(&id, "cat /v/deep/f")? == "deep\n");
    node.end_pod(&pod)?;
    // Now the layers are nobody's.
    crisp_tests::wait::until("the layers to be removed", crisp_tests::wait::LONG, || {
        let bytes = |info: &cri::ImageFsInfoResponse| {
            info.image_filesystems.iter().filter_map(|fs| fs.used_bytes.map(|used| used.value)).sum::<u64>()
        };
        let now = node.cri().image_fs_info(cri::ImageFsInfoRequest {}).map_err(|e| e.to_string())?;
        if bytes(&now) < bytes(&before) { Ok(()) } else { Err(format!("{now:?}")) }
    })
}

fn declared(node: &mut Node) -> Result<()> {
    let volumes = json!({"/data": {}, "/data/in/it": {}, "relative": {}, "/mine": {}, "/dev/shm": {}, "/etc/hosts": {}});
    let tar = Tar::default()
        .entry(b'5', "data", "", b"", 0o1777)
        .file("data/seed", b"from the image\n")
        .entry(b'0', "data/program", "", b"#!/bin/sh\necho runs\n", 0o755)
        .dir("data/in")
        .dir("data/in/it")
        .file("data/in/it/f", b"inner\n");
    node.build_image("test/declared:1", Build::on("busybox").layer(tar).set("Volumes", volumes))?;
    let own = node.folder().join("own");
    fs::create_dir(&own)?;
    let pod = node.run_pod("declared")?;
    let mut config = container_config("c", "test/declared:1", &["sleep", "3600"]);
    config.mounts = vec![cri::Mount {
        container_path: "/mine/".to_owned(),
        host_path: own.display().to_string(),
        ..Default::default()
    }];
    let one = node.launch_as(&pod, &config)?;
    let shell = |line: &str| node.cri().shell(&one, line);
    ensure!(shell("cat /data/seed /data/in/it/f; /data/program")? == "from the image\ninner\nruns\n");
    ensure!(shell("stat -c %a /data /relative")? == "1777\n755\n");
    // Mounts of their own, which the writable layer has no part in, but for what was mounted explicitly, and what is the
    // runtime's own anyway.
    let mounted = shell("cut -d' ' -f2 /proc/self/mounts")?;
    let times = |place: &str| mounted.lines().filter(|line| *line == place).count();
    for place in ["/data", "/data/in/it", "/relative", "/mine", "/dev/shm", "/etc/hosts"] {
        ensure!(times(place) == 1, "{place}: {mounted}");
    }
    shell(
        "echo x >/data/new; echo x >/relative/new; echo x >/mine/new; echo x >/data/in/it/new; rm /data/seed",
    )?;
    ensure!(own.join("new").is_file(), "the request's mount wins");
    ensure!(node.cri().container(&one)?.mounts == config.mounts, "only what was asked for is reported");
    // Another container of the image begins with what the image has, with a read-only root, too.
    let mut readonly = container_config("two", "test/declared:1", &["sleep", "3600"]);
    let security = readonly.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    security.context("security context")?.readonly_rootfs = true;
    let two = node.launch_as(&pod, &readonly)?;
    ensure!(node.cri().shell(&two, "ls /data; echo x >/data/new")? == "in\nprogram\nseed\n");
    node.end_pod(&pod)?;
    node.remove_image("test/declared:1")
}

fn declared_confined(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let host = canary.path().display().to_string();
        let layer = Tar::default()
            .symlink("vol", "/etc")
            .symlink("up", "../../../../../../../../../../etc")
            .symlink("to-canary", &host)
            .symlink("through-proc", "/proc/1/root/etc")
            .file("plain", b"x");
        let build =
            |volume: &str| Build::on("busybox").layer(layer.clone()).set("Volumes", json!({volume: {}}));
        let pod = node.run_pod("hostile")?;
        let before = node.snapshot()?;
        // Resolved in the image, or nothing there.
        for (volume, place) in
            [("/vol", "/vol"), ("/up", "/up"), ("//vol/./", "/vol"), (host.as_str(), host.as_str())]
        {
            node.build_image("test/hostile:1", build(volume))?;
            let config = container_config("c", "test/hostile:1", &["sleep", "3600"]);
            let id = node.launch_as(&pod, &config).with_context(|| volume.to_owned())?;
            let names = node.cri().shell(&id, &format!("ls -A {place}/"))?;
            ensure!(!names.contains("secret") && !names.contains("shadow-"), "{volume}: {names}");
            if place != host {
                ensure!(
                    node.cri().shell(&id, &format!("cat {place}/passwd"))?
                        == node.cri().shell(&id, "cat /etc/passwd")?
                );
            }
            node.cri().shell(&id, &format!("echo x >{place}/written"))?;
            node.cri().remove(&id)?;
            node.remove_image("test/hostile:1")?;
        }
        // A link to a directory of the host leads to one of that name in the container.
        node.build_image("test/hostile:1", build("/to-canary"))?;
        let id = node.launch_as(&pod, &container_config("c", "test/hostile:1", &["sleep", "3600"]))?;
        node.cri().shell(&id, "[ -z \"$(ls -A /to-canary/)\" ]; echo x >/to-canary/written")?;
        node.cri().remove(&id)?;
        node.remove_image("test/hostile:1")?;
        let long = format!("/{}", "x".repeat(4100));
        for (volume, named) in [
            ("/../../../../../../../../etc", "/../../../../../../../../etc"),
            ("/", "\"/\""),
            ("//", "\"//\""),
            ("", "\"\""),
            ("/plain", "/plain"),
            ("/through-proc", "/through-proc"),
            ("/proc/sys", "/proc/sys"),
            (&long, "xxxxxxxx"),
        ] {
            node.build_image("test/hostile:1", build(volume))?;
            let config = container_config("c", "test/hostile:1", &["sleep", "3600"]);
            let status = node.cri().create(&pod.id, &config, &pod.config).err();
            let status = status.with_context(|| format!("a volume at {volume:.40} was made"))?;
            ensure!(status.message().contains(named), "{status:?}");
            node.remove_image("test/hostile:1")?;
        }
        node.wait_for_return(&before)?;
        node.end_pod(&pod)
    })
}
