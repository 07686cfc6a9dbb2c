//! User namespaces and id mappings that cannot be, and what an attack on them must not reach. Named by the cases of the
//! adversarial list: `r12_` a writable cgroup mount, `r34_` a pod outside of kubelet's cgroups, `r35_` mappings.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused};
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::untouched;
use tonic::Code;

use crate::case::Case;
use crate::userns::{HOST, container, options, range, sandbox, security, volume};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "r12_the_cgroup_mount_is_read_only", needs: &[], images: &["busybox"], run: cgroup_mount },
    Case {
        name: "r34_limits_of_the_pod_hold_in_a_user_namespace",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: limits,
    },
    Case { name: "r35_a_pod_with_a_bad_mapping_never_runs", needs: &[], images: &["busybox"], run: mappings },
    Case {
        name: "r35_a_container_with_another_mapping_never_runs",
        needs: &[],
        images: &["busybox"],
        run: mismatch,
    },
    Case { name: "mounts_have_mappings_of_their_own", needs: &[], images: &["busybox"], run: mounts },
    Case {
        name: "volumes_of_images_belong_to_the_pods_root",
        needs: &[],
        images: &["busybox"],
        run: image_volumes,
    },
];

fn own() -> cri::NamespaceOption {
    options(HOST, cri::NamespaceMode::Container)
}

fn cgroup_mount(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let mut config = sandbox(node, "r12", own())?;
        let linux = config.linux.as_mut().context("linux")?;
        linux.security_context.as_mut().context("security context")?.privileged = true;
        let pod = node.run_pod_as(config)?;
        for (name, privileged) in [("plain", false), ("privileged", true)] {
            let mut config = container(name, &["sleep", "3600"], &own())?;
            security(&mut config)?.privileged = privileged;
            let id = node.launch_as(&pod, &config)?;
            let mounts = node.cri().shell(&id, "grep /sys/fs/cgroup /proc/self/mountinfo")?;
            ensure!(mounts.lines().count() == 1, "{mounts}");
            let fields: Vec<&str> = mounts.split_whitespace().collect();
            let (mine, below) = (fields.get(5).context("options")?, fields.get(3).context("root")?);
            ensure!(mine.split(',').any(|option| option == "ro"), "{mounts}");
            ensure!(*below == "/", "a cgroup namespace of its own would show its root: {mounts}");
            for line in [
                "mkdir /sys/fs/cgroup/x",
                "echo 0 >/sys/fs/cgroup/cgroup.procs",
                "echo +pids >/sys/fs/cgroup/cgroup.subtree_control",
                "echo 1 >/sys/fs/cgroup/cgroup.kill",
            ] {
                let said = node.cri().exec(&id, &["sh", "-c", line])?;
                // The mount's answer, and not that of a file that is not there.
                ensure!(
                    said.code != 0 && said.stderr.contains("Read-only file system"),
                    "{name}: {line}: {said:?}"
                );
            }
            if privileged {
                // Even where it can be made writable, the files are the host's.
                let line = "mount -o remount,bind,rw /sys/fs/cgroup && mkdir /sys/fs/cgroup/x";
                let said = node.cri().exec(&id, &["sh", "-c", line])?;
                let refused = ["Permission denied", "Operation not permitted"];
                let named = refused.iter().any(|text| said.stderr.contains(text));
                ensure!(said.code != 0 && named, "{said:?}");
            }
        }
        node.end_pod(&pod)
    })
}

fn limits(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let parent = node.pod_config("r34").linux.context("linux")?.cgroup_parent;
        let shared = options(HOST, cri::NamespaceMode::Pod);
        let pod = node.run_pod_as(sandbox(node, "r34", shared.clone())?)?;
        // The pod's limits, which are kubelet's to write.
        let cgroup = node.cgroup(&parent);
        for (file, value) in [("memory.max", "67108864"), ("memory.swap.max", "0"), ("pids.max", "100")] {
            fs::write(cgroup.join(file), value).with_context(|| file.to_owned())?;
        }
        let id = node.launch_as(&pod, &container("c", &["sleep", "3600"], &shared)?)?;
        let init = node.cri().shell(&id, "cat /proc/1/comm")?;
        ensure!(init == "crisp-init\n", "{init}");
        for leaf in [&id, &pod.id] {
            let procs = fs::read_to_string(cgroup.join(leaf).join("cgroup.procs"))?;
            ensure!(!procs.trim().is_empty(), "nobody is in {leaf} below the pod's cgroup");
        }
        let own = fs::read_to_string(format!("/proc/{}/cgroup", node.cri().pid(&id)?))?;
        ensure!(own.trim_end().ends_with(&format!("{parent}/{id}")), "{own}");
        // 200 MB against 64.
        let hog = container(
            "hog",
            &["sh", "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}"],
            &shared,
        )?;
        let hog = node.launch_as(&pod, &hog)?;
        let status = node.wait_for_exit(&hog)?;
        ensure!(status.exit_code == 137, "{status:?}");
        // The pod's own limit of processes holds, too.
        let said = node.cri().exec(
            &id,
            &["sh", "-c", "i=0; while [ $i -lt 150 ]; do sleep 60 >/dev/null 2>&1 & i=$((i+1)); done"],
        )?;
        ensure!(said.stderr.contains("an't fork"), "{said:?}");
        node.end_pod(&pod)
    })
}

fn one(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
    cri::IdMapping { container_id, host_id, length }
}

fn mappings(node: &mut Node) -> Result<()> {
    let many: Vec<_> = (0..341).map(|at| one(at, HOST + at, 1)).collect();
    let bad = [
        ("empty", vec![], "no mapping"),
        ("length", vec![one(0, HOST, 0)], "length 0"),
        ("root", vec![one(0, 0, 65536)], "host_id 0"),
        ("identity", vec![one(0, 0, u32::MAX)], "host_id 0"),
        ("gap", vec![one(1, HOST, 65536)], "container_id 0"),
        ("overlap", vec![one(0, HOST, 100), one(50, HOST + 1000, 100)], "overlap"),
        ("overlap-outside", vec![one(0, HOST, 100), one(100, HOST + 50, 100)], "overlap"),
        ("two", vec![one(0, HOST, 100), one(100, HOST + 100, 100)], "only one"),
        ("beyond", vec![one(0, u32::MAX - 10, 65536)], "beyond"),
        ("many", many, "340"),
    ];
    untouched::around(node, |node, _| {
        let before = node.snapshot()?;
        for (name, list, reason) in &bad {
            for (field, uids, gids) in
                [("uids", list.clone(), range(HOST)), ("gids", range(HOST), list.clone())]
            {
                let mode = cri::NamespaceMode::Pod.into();
                let userns = cri::UserNamespace { mode, uids, gids };
                let options = cri::NamespaceOption { userns_options: Some(userns), ..own() };
                let text =
                    refused(node.cri().run_pod(&sandbox(node, name, options)?), Code::InvalidArgument)?;
                ensure!(
                    text.contains(&format!("userns_options.{field}")) && text.contains(reason),
                    "{name}: {text}"
                );
            }
        }
        let node_mode = i32::from(cri::NamespaceMode::Node);
        let wrong = |mode: cri::NamespaceMode| {
            let mut options = own();
            if let Some(userns) = &mut options.userns_options {
                userns.mode = mode.into();
            }
            options
        };
        for (name, options, word) in [
            ("pid", cri::NamespaceOption { pid: node_mode, ..own() }, "namespace_options.pid"),
            ("ipc", cri::NamespaceOption { ipc: node_mode, ..own() }, "namespace_options.ipc"),
            ("node", wrong(cri::NamespaceMode::Node), "userns_options"),
            ("container", wrong(cri::NamespaceMode::Container), "userns_options"),
            ("target", wrong(cri::NamespaceMode::Target), "userns_options"),
        ] {
            let text = refused(node.cri().run_pod(&sandbox(node, name, options)?), Code::InvalidArgument)?;
            ensure!(text.contains(word), "{name}: {text}");
        }
        node.wait_for_return(&before)
    })
}

fn mismatch(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod_as(sandbox(node, "guest", own())?)?;
        let host = node.run_pod("host")?;
        let before = node.snapshot()?;
        let create = |pod: &crisp_tests::node::Pod, config: &cri::ContainerConfig| {
            refused(node.cri().create(&pod.id, config, &pod.config), Code::InvalidArgument)
        };
        let other = container("c", &["sleep", "1"], &options(HOST + 65536, cri::NamespaceMode::Container))?;
        let none = container_config("c", "busybox", &["sleep", "1"]);
        let same = container("c", &["sleep", "1"], &own())?;
        for (pod, config) in [(&pod, &other), (&pod, &none), (&host, &same)] {
            let text = create(pod, config)?;
            ensure!(text.contains("userns_options"), "{text}");
        }
        type Change = fn(&mut cri::LinuxContainerSecurityContext);
        let who: [(Change, &str); 3] = [
            (|context| context.run_as_user = Some(cri::Int64Value { value: 65536 }), "user 65536"),
            (|context| context.supplemental_groups = vec![70000], "group 70000"),
            (
                |context| {
                    context.run_as_user = Some(cri::Int64Value { value: 1 });
                    context.run_as_group = Some(cri::Int64Value { value: 65536 });
                },
                "group 65536",
            ),
        ];
        for (change, word) in who {
            let mut config = container("c", &["sleep", "1"], &own())?;
            change(security(&mut config)?);
            let text = create(&pod, &config)?;
            ensure!(text.contains(word), "{text}");
        }
        node.wait_for_return(&before)?;
        node.end_pod(&host)?;
        node.end_pod(&pod)
    })
}

fn mounts(node: &mut Node) -> Result<()> {
    let folder = node.folder().join("volume");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "x")?;
    // Without a user namespace of the pod, and with another than the pod's: the mount has the mapping that it asks for.
    let plain = node.run_pod("plain")?;
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    config.mounts = vec![cri::Mount {
        uid_mappings: vec![one(0, 1000, 1)],
        gid_mappings: vec![one(0, 2000, 1)],
        ..volume(&folder, "/volume", HOST)
    }];
    let id = node.launch_as(&plain, &config)?;
    ensure!(node.cri().shell(&id, "stat -c %u:%g /volume/file")? == "1000:2000\n");
    let guest = node.run_pod_as(sandbox(node, "guest", own())?)?;
    let mut config = container("c", &["sleep", "3600"], &own())?;
    config.mounts = vec![cri::Mount {
        uid_mappings: vec![one(0, HOST + 5, 1)],
        gid_mappings: vec![one(0, HOST + 6, 1)],
        ..volume(&folder, "/volume", HOST)
    }];
    let id = node.launch_as(&guest, &config)?;
    ensure!(node.cri().shell(&id, "stat -c %u:%g /volume/file")? == "5:6\n");
    let before = node.snapshot()?;
    let create = |name: &str, mount: cri::Mount| {
        let mut config = container(name, &["sleep", "1"], &own())?;
        config.mounts = vec![mount];
        Ok::<_, anyhow::Error>(node.cri().create(&guest.id, &config, &guest.config))
    };
    let half = cri::Mount { gid_mappings: vec![], ..volume(&folder, "/volume", HOST) };
    let text = refused(create("half", half)?, Code::InvalidArgument)?;
    ensure!(text.contains("mounts[0]: gidMappings: no mapping"), "{text}");
    let error = create("sysfs", volume(Path::new("/sys/kernel"), "/volume", HOST))?
        .err()
        .context("id-mapped sysfs")?;
    ensure!(error.message().contains("/sys/kernel") && error.message().contains("id-mapped"), "{error:?}");
    node.wait_for_return(&before)?;
    node.end_pod(&guest)?;
    node.end_pod(&plain)
}

fn image_volumes(node: &mut Node) -> Result<()> {
    let pod = node.run_pod_as(sandbox(node, "images", own())?)?;
    let mut config = container("c", &["sleep", "3600"], &own())?;
    let image = Some(cri::ImageSpec { image: "busybox".to_owned(), ..Default::default() });
    let mount = |at: &str, sub: &str| cri::Mount {
        host_path: String::new(),
        image: image.clone(),
        image_sub_path: sub.to_owned(),
        readonly: true,
        ..volume(Path::new("/"), at, HOST)
    };
    config.mounts = vec![mount("/whole", ""), mount("/part", "bin")];
    let id = node.launch_as(&pod, &config)?;
    let said =
        node.cri().shell(&id, "stat -c %u:%g /whole/bin/busybox /part/busybox; /part/busybox echo runs")?;
    ensure!(said == "0:0\n0:0\nruns\n", "{said}");
    node.end_pod(&pod)
}
