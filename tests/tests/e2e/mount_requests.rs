//! What a request may mount where: everything that cannot be meant is refused with the entry's index, and leaves nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::untouched;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "c12_mounts_that_cannot_be_are_refused_by_index",
        needs: &[],
        images: &["busybox"],
        run: refused,
    },
    Case { name: "c12_odd_mounts_have_a_defined_meaning", needs: &[], images: &["busybox"], run: odd },
    Case {
        name: "c12_the_runtimes_own_files_are_not_mounted",
        needs: &[],
        images: &["busybox"],
        run: own_files,
    },
    Case {
        name: "x14_dev_shm_has_the_size_that_was_asked_for",
        needs: &[],
        images: &["busybox"],
        run: shared_memory,
    },
    Case {
        name: "x14_what_a_container_writes_to_the_runtimes_files_counts_as_its_memory",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: files_of_the_runtime,
    },
];

fn bind(host: &Path, place: &str) -> cri::Mount {
    bind_text(&host.display().to_string(), place)
}

fn bind_text(host: &str, place: &str) -> cri::Mount {
    cri::Mount { host_path: host.to_owned(), container_path: place.to_owned(), ..Default::default() }
}

fn with(name: &str, mounts: Vec<cri::Mount>) -> cri::ContainerConfig {
    cri::ContainerConfig { mounts, ..container_config(name, "busybox", &["sleep", "3600"]) }
}

fn refused(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let folder = node.folder().join("volume");
        fs::create_dir(&folder)?;
        let file = node.folder().join("file");
        fs::write(&file, "x")?;
        let dangling = node.folder().join("dangling");
        symlink("/no/such/place/at/all", &dangling)?;
        let program = node.folder().join("program");
        symlink("/proc/self/exe", &program)?;
        let pod = node.run_pod("refused")?;
        let before = node.snapshot()?;
        let mut cases = Vec::new();
        for place in [
            "",
            "/",
            ".",
            "//",
            "/.",
            "relative",
            "./x",
            "/a/../b",
            "/..",
            "/a\nb",
            "/proc",
            "/proc/self/attr",
        ] {
            cases.push((bind(&folder, place), "container_path"));
        }
        for place in ["/proc/sys/kernel", "//proc//1", "/proc/./self/exe"] {
            cases.push((bind(&folder, place), "over /proc"));
        }
        for host in ["", "relative", "/a/../b", "../x", "/a\nb"] {
            cases.push((bind_text(host, "/x"), "host_path"));
        }
        // Of the daemon's own process.
        for host in ["/proc/self/exe", "/proc/self/fd/0", "/proc/self/root", "/proc/thread-self/cwd"] {
            cases.push((bind_text(host, "/x"), "host_path"));
        }
        cases.push((bind(&program, "/x"), "host_path"));
        cases.push((bind(&dangling, "/x"), "host_path"));
        // Something made below a file.
        cases.push((bind(&file.join("x"), "/x"), "host_path"));
        for (bad, word) in cases {
            let config = with("c", vec![bind(&folder, "/first"), bad]);
            let status = node.cri().create(&pod.id, &config, &pod.config).err();
            let status = status.with_context(|| format!("accepted: {:?}", config.mounts))?;
            let message = status.message();
            ensure!(message.contains("mounts[1]") && message.contains(word), "{word}: {message}");
        }
        // A folder where the image has a file, and the other way round: which it was is said by its place.
        for (mount, word) in [(bind(&folder, "/etc/passwd"), "/etc/passwd"), (bind(&file, "/etc"), "/etc")] {
            let config = with("c", vec![mount]);
            let status = node.cri().create(&pod.id, &config, &pod.config).err().context(word)?;
            ensure!(status.message().contains(word), "{status:?}");
        }
        let many = (0..1000).map(|number| bind(&folder, &format!("/n/{number}"))).collect();
        let config = with("c", many);
        let status = node.cri().create(&pod.id, &config, &pod.config).err().context("1000 mounts")?;
        ensure!(status.message().contains("mounts: 1000"), "{status:?}");
        node.wait_for_return(&before).context("after refusals")?;
        ensure!(!Path::new("/no/such").exists() && canary.path().is_dir());
        node.end_pod(&pod)
    })
}

fn odd(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let make = |name: &str| -> Result<_> {
            let path = node.folder().join(name);
            fs::create_dir(&path)?;
            fs::write(path.join("name"), format!("{name}\n"))?;
            Ok(path)
        };
        let (one, two, dev) = (make("one")?, make("two")?, make("devices")?);
        symlink("one", node.folder().join("link"))?;
        let pod = node.run_pod("odd")?;
        let run = |name: &str, mounts: Vec<cri::Mount>, line: &str| {
            let id = node.launch_as(&pod, &with(name, mounts)).with_context(|| name.to_owned())?;
            let said = node.cri().shell(&id, line);
            node.cri().remove(&id)?;
            said
        };
        // Of two mounts at one place the later one is seen, however the place is written.
        let said = run("twice", vec![bind(&one, "/x"), bind(&two, "//x/.")], "cat /x/name")?;
        ensure!(said == "two\n", "{said}");
        // Parents come before children, whatever the order of the request.
        let said = run("order", vec![bind(&two, "/x/y/z"), bind(&one, "/x")], "cat /x/name /x/y/z/name")?;
        ensure!(said == "one\ntwo\n", "{said}");
        // A link on the host leads to what it names; a missing directory is made.
        let missing = node.folder().join("made/for/it");
        let mounts = vec![bind(&node.folder().join("link"), "/link"), bind(&missing, "/missing")];
        let said = run("link", mounts, "cat /link/name; touch /missing/x")?;
        ensure!(said == "one\n" && missing.join("x").is_file(), "{said}");
        // A mount over /dev is what there is of /dev.
        let said = run("dev", vec![bind(&dev, "/dev")], "ls /dev")?;
        ensure!(said == "name\n", "{said}");
        // As many as fit, each in the one before.
        let deep: Vec<_> = (1..=150).map(|depth| bind(&one, &"/d".repeat(depth))).collect();
        let said = run("deep", deep, "cut -d' ' -f2 /proc/self/mounts | grep -c '^/d'")?;
        ensure!(said.trim().parse::<u32>()? >= 150, "{said}");
        node.end_pod(&pod)
    })
}

fn own_files(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("own")?;
        let before = node.snapshot()?;
        let state = node.state();
        let socket = node.endpoint().trim_start_matches("unix://").to_owned();
        let link = node.folder().join("innocent");
        symlink(&state, &link)?;
        let pods = state.join("pods").join(&pod.id);
        let hosts = [
            state.display().to_string(),
            format!("{}/", state.display()),
            format!("{}//./", state.display()),
            link.display().to_string(),
            pods.display().to_string(),
            pods.join("monitor.sock").display().to_string(),
            pods.join("missing").display().to_string(),
            node.root().display().to_string(),
            node.root().join("layers").display().to_string(),
            socket,
        ];
        for host in &hosts {
            let config = with("c", vec![bind_text("/tmp", "/tmp"), bind_text(host, "/x")]);
            let status = node.cri().create(&pod.id, &config, &pod.config).err();
            let status = status.with_context(|| format!("{host} was mounted"))?;
            ensure!(status.message().contains("mounts[1].host_path"), "{host}: {status:?}");
            ensure!(status.message().contains("mount_own_files"), "{host}: {status:?}");
        }
        fs::remove_file(&link)?;
        node.wait_for_return(&before).context("after refusals")?;
        node.end_pod(&pod)
    })
}

fn shared_memory(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let fill = |id: &str, mib: u32| -> Result<bool> {
            let line = format!("dd if=/dev/zero of=/dev/shm/x bs=1M count={mib} 2>&1; rm /dev/shm/x");
            Ok(!node.cri().exec(id, &["sh", "-c", &line])?.stdout.contains("No space"))
        };
        for (annotation, fits, does_not) in [(None, 64, 65), (Some("8Mi"), 8, 9), (Some("100M"), 95, 96)] {
            let mut config = node.pod_config("shm");
            if let Some(size) = annotation {
                config.annotations.insert("shm-size.crio.io".to_owned(), size.to_owned());
            }
            let pod = node.run_pod_as(config)?;
            let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
            ensure!(fill(&id, fits)? && !fill(&id, does_not)?, "{annotation:?}");
            let flags = node.cri().shell(&id, "grep ' /dev/shm ' /proc/self/mounts")?;
            ensure!(["nosuid", "nodev", "noexec"].iter().all(|flag| flags.contains(flag)), "{flags}");
            // Containers of the pod share it.
            let other = node.launch(&pod, "other", "busybox", &["sleep", "3600"])?;
            node.cri().shell(&id, "echo shared >/dev/shm/note")?;
            ensure!(node.cri().shell(&other, "cat /dev/shm/note; stat -c %a /dev/shm")? == "shared\n1777\n");
            node.end_pod(&pod)?;
        }
        for bad in ["", "lots", "-1", "64Mi,mode=0"] {
            let mut config = node.pod_config("shm");
            config.annotations.insert("shm-size.crio.io".to_owned(), bad.to_owned());
            let status =
                node.cri().run_pod(&config).err().with_context(|| format!("{bad:?} was accepted"))?;
            ensure!(status.message().contains("shm-size.crio.io"), "{status:?}");
        }
        Ok(())
    })
}

fn files_of_the_runtime(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("writes")?;
        for file in ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/dev/shm/x"] {
            let line = format!("dd if=/dev/zero of={file} bs=1M count=100");
            let name = file.trim_start_matches('/').replace(['/', '.'], "-");
            let mut config = container_config(&name, "busybox", &["sh", "-c", &line]);
            let linux = config.linux.as_mut().context("linux")?;
            linux.resources = Some(cri::LinuxContainerResources {
                memory_limit_in_bytes: 32 << 20,
                memory_swap_limit_in_bytes: 32 << 20,
                ..Default::default()
            });
            let id = node.launch_as(&pod, &config)?;
            let status = node.wait_for_exit(&id)?;
            ensure!(status.reason == "OOMKilled", "{file}: {status:?}");
            node.cri().remove(&id)?;
        }
        // The others of the pod, and later ones, still get what they need.
        let id = node.launch(&pod, "later", "busybox", &["sleep", "3600"])?;
        node.cri().shell(&id, "cat /etc/hostname >/dev/null")?;
        node.end_pod(&pod)
    })
}
