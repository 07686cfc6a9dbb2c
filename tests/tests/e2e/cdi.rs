//! CDI: devices by name, from spec files that drivers write. `c08_`: only the operator's files count, none can run
//! anything, and what does not work is named.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused};
use crisp_tests::node::Node;
use crisp_tests::untouched;
use serde_json::json;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "a_cdi_device_changes_its_container", needs: &[], images: &["busybox"], run: changes },
    Case {
        name: "c08_a_cdi_device_that_cannot_be_had_is_named",
        needs: &[],
        images: &["busybox"],
        run: cannot_be_had,
    },
];

fn write(node: &Node, name: &str, text: &str) -> Result<()> {
    let path = node.cdi().join(name);
    fs::create_dir_all(path.parent().context("parent")?)?;
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn named(name: &str, devices: &[&str]) -> cri::ContainerConfig {
    let device = |name: &&str| cri::CdiDevice { name: (*name).to_owned() };
    cri::ContainerConfig {
        cdi_devices: devices.iter().map(device).collect(),
        ..container_config(name, "busybox", &["sleep", "3600"])
    }
}

fn changes(node: &mut Node) -> Result<()> {
    let library = node.folder().join("library");
    fs::create_dir(&library)?;
    fs::write(library.join("lib"), "of the driver\n")?;
    let low = json!({
        "cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
        "containerEdits": {
            "env": ["DRIVER=1", "WHICH=none"],
            "mounts": [{"hostPath": library, "containerPath": "/usr/lib/driver", "options": ["ro", "nosuid", "nodev", "bind"]}],
        },
        "devices": [{"name": "0", "containerEdits": {"env": ["WHICH=low"]}}],
    });
    write(node, "low/gpu.json", &low.to_string())?;
    let pod = node.run_pod("cdi")?;
    let mut config = named("one", &["vendor.com/gpu=0"]);
    config.envs = vec![cri::KeyValue { key: "WHICH".to_owned(), value: "mine".into() }];
    let one = node.launch_as(&pod, &config)?;
    let shell = |id: &str, line: &str| node.cri().shell(id, line);
    ensure!(shell(&one, "echo $DRIVER $WHICH; cat /usr/lib/driver/lib")? == "1 low\nof the driver\n");
    let said = node.cri().exec(&one, &["touch", "/usr/lib/driver/x"])?;
    ensure!(said.code != 0 && said.stderr.contains("Read-only"), "{said:?}");
    ensure!(node.cri().container(&one)?.mounts.is_empty(), "only what was asked for is reported");

    // A later directory wins; written after the daemon has looked, in YAML, named by an annotation as well.
    write(
        node,
        "high/gpu.yaml",
        "cdiVersion: 1.1.0\nkind: vendor.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    env: [WHICH=high]\n\
         \x20   additionalGids: [4321]\n    deviceNodes:\n    - {path: /dev/gpu0, hostPath: /dev/kmsg, permissions: w, fileMode: 0622}\n\
         \x20   - {path: /dev/vendor/closed, type: c, major: 1, minor: 11, permissions: none}\n",
    )?;
    let mut config = named("two", &["vendor.com/gpu=0"]);
    config.annotations.insert("cdi.k8s.io/plugin".to_owned(), "vendor.com/gpu=0".to_owned());
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    security.context("security context")?.run_as_user = Some(cri::Int64Value { value: 1234 });
    let two = node.launch_as(&pod, &config)?;
    ensure!(shell(&two, "echo $DRIVER$WHICH; id -G; id -u")? == "high\n0 4321\n1234\n");
    ensure!(shell(&two, "stat -c '%F %t:%T %a %u' /dev/gpu0")? == "character special file 1:b 622 1234\n");
    shell(&two, ": >/dev/gpu0")?;
    for line in [": </dev/gpu0", ": </dev/vendor/closed"] {
        let said = node.cri().exec(&two, &["sh", "-c", line])?;
        ensure!(said.code != 0 && said.stderr.contains("not permitted"), "`{line}`: {said:?}");
    }
    let user = node.cri().container(&two)?.user.and_then(|user| user.linux).context("no user")?;
    ensure!(user.supplemental_groups.contains(&4321), "{user:?}");
    node.end_pod(&pod)
}

fn cannot_be_had(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let evil = node.folder().join("evil.json");
        let marker = node.folder().join("hook-ran");
        let device = |kind: &str, edits: serde_json::Value| {
            let device = json!({"name": "0", "containerEdits": edits});
            json!({"cdiVersion": "0.8.0", "kind": kind, "devices": [device]}).to_string()
        };
        let harmless = json!({"env": ["A=b"]});
        fs::write(&evil, device("outside.com/d", harmless.clone()))?;
        write(node, "low/ok.json", &device("ok.com/d", harmless.clone()))?;
        write(node, "low/twice-a.json", &device("twice.com/d", harmless.clone()))?;
        write(node, "low/twice-b.json", &device("twice.com/d", harmless))?;
        let hook = json!({"hookName": "createRuntime", "path": "/bin/touch", "args": ["touch", marker]});
        write(node, "high/hook.json", &device("hook.com/d", json!({"hooks": [hook]})))?;
        write(node, "high/broken.yaml", "kind: [")?;
        let target = json!({"hostPath": "/etc", "containerPath": "/proc/sys"});
        write(node, "high/proc.json", &device("proc.com/d", json!({"mounts": [target]})))?;
        symlink(&evil, node.cdi().join("high/link.json"))?;
        let pod = node.run_pod("refused")?;
        let before = node.snapshot()?;
        for (name, words) in [
            ("none.com/d=0", &["none.com/d=0", "/cdi/low", "/cdi/high", "broken.yaml"][..]),
            ("ok.com/d=1", &["ok.com/d=1"]),
            ("../../evil/d=0", &["../../evil/d=0", "malformed"]),
            ("ok.com/d=../0", &["ok.com/d=../0", "malformed"]),
            ("ok.com", &["ok.com"]),
            ("", &["\"\""]),
            ("twice.com/d=0", &["twice-a.json", "twice-b.json"]),
            ("outside.com/d=0", &["outside.com/d=0", "link.json"]),
            ("hook.com/d=0", &["hook.json", "/bin/touch"]),
        ] {
            let config = named("c", &["ok.com/d=0", name]);
            let message = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
            ensure!(message.contains("CDI_devices[1]"), "{name}: {message}");
            for word in words {
                ensure!(message.contains(word), "{name}: no {word}: {message}");
            }
            // The same by annotation.
            let mut config = container_config("c", "busybox", &["true"]);
            config.annotations.insert("cdi.k8s.io/x".to_owned(), format!("ok.com/d=0,{name}"));
            let message = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
            ensure!(message.contains("annotations[cdi.k8s.io/x]"), "{name}: {message}");
        }
        let over_proc = named("c", &["proc.com/d=0"]);
        let status =
            node.cri().create(&pod.id, &over_proc, &pod.config).err().context("a mount over /proc")?;
        ensure!(status.message().contains("/proc/sys"), "{status:?}");
        // An annotation that only looks like one is data.
        let mut config = container_config("data", "busybox", &["sleep", "3600"]);
        config.annotations.insert("cdi.k8s.io.example/x".to_owned(), "none.com/d=0".to_owned());
        let id = node.launch_as(&pod, &config)?;
        node.cri().remove(&id)?;
        node.wait_for_return(&before).context("after refusals")?;
        ensure!(!marker.exists(), "a hook ran");
        node.end_pod(&pod)
    })
}
