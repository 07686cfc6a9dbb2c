//! Account files and programs of an image that is out to harm whoever reads or runs them. `r20_`, `r21_` and `r24_` of
//! the adversarial cases.

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::build::{Build, Tar};
use crisp_tests::cri::{image, secured};
use crisp_tests::node::Node;
use crisp_tests::untouched::{self, Canary, Footprint, peak_kib};
use serde_json::json;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "r20_account_files_are_read_within_bounds", needs: &[], images: &["busybox"], run: bounds },
    Case { name: "r21_no_text_becomes_a_line_of_passwd", needs: &[], images: &["busybox"], run: lines },
    Case {
        name: "r24_nothing_of_an_image_runs_outside_of_it",
        needs: &[],
        images: &["busybox"],
        run: trojans,
    },
];

/// More than any account file that is meant to be read.
const LARGE: usize = 16 << 20;
/// More than there is memory for.
const SPARSE: u64 = (8 << 30) - 1;
/// How much more memory the daemon may use for looking into one, KiB.
const LOOK_KIB: u64 = 1024;

/// Account files that must not be read, and the words that the refusal holds.
fn unreadable() -> Vec<(&'static str, Tar, &'static str)> {
    let etc = || Tar::default().dir("etc");
    let mut members = String::from("root:x:0:\n");
    while members.len() < LARGE {
        members.push_str("g:x:50000:user,user,user,user,user,user,user,user\n");
    }
    let user = b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n";
    vec![
        ("a huge passwd", etc().file("etc/passwd", &vec![0; LARGE]), "etc/passwd"),
        (
            "a link to a huge file",
            etc().file("huge", &vec![b'x'; LARGE]).symlink("etc/passwd", "../huge"),
            "etc/passwd",
        ),
        ("a sparse passwd", etc().sparse("etc/passwd", SPARSE), "etc/passwd"),
        ("a device without end", etc().device(b'3', "etc/passwd", (1, 5)), "etc/passwd"),
        ("a FIFO", etc().entry(b'6', "etc/passwd", "", b"", 0o644), "etc/passwd"),
        ("a directory", etc().dir("etc/passwd"), "etc/passwd"),
        ("a link that leads round", etc().symlink("etc/passwd", "passwd"), "etc/passwd"),
        ("a huge group", etc().file("etc/passwd", user).file("etc/group", members.as_bytes()), "etc/group"),
    ]
}

fn bounds(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("bounds")?;
        for (what, layer, word) in unreadable() {
            // There is nothing in it to run: it does not come to that.
            node.build_image("test/accounts:1", Build::empty().layer(layer))?;
            let daemon = node.daemon_pid()?;
            type Ask = fn(&mut cri::LinuxContainerSecurityContext);
            let asks: [Ask; 2] = [
                |security| "user".clone_into(&mut security.run_as_username),
                |security| security.run_as_user = Some(cri::Int64Value { value: 1000 }),
            ];
            for ask in asks {
                let before = Footprint::of(daemon)?.resident_kib;
                let config = secured("c", "test/accounts:1", &["id"], ask);
                let error = node.cri().create(&pod.id, &config, &pod.config).err();
                let error = error.with_context(|| format!("{what}: a container was made"))?;
                ensure!(error.message().contains(word), "{what}: {error:?}");
                let peak = peak_kib(daemon)?;
                ensure!(peak <= before + LOOK_KIB, "{what}: {before} KiB, then {peak} KiB at the peak");
            }
            node.remove_image("test/accounts:1")?;
        }
        // Many short lines, within bounds: a user that is not there is an error, a number need not be there.
        let many = "somebody:x:1:1::/:/bin/sh\n".repeat(30_000);
        let layer = Tar::default().dir("etc").file("etc/passwd", many.as_bytes());
        node.build_image("test/accounts:1", Build::empty().layer(layer))?;
        let config = secured("c", "test/accounts:1", &["id"], |security| {
            "nobody-knows".clone_into(&mut security.run_as_username);
        });
        let error = node.cri().create(&pod.id, &config, &pod.config).err().context("an unknown user")?;
        ensure!(error.message().contains("nobody-knows"), "{error:?}");
        node.end_pod(&pod)?;
        node.remove_image("test/accounts:1")
    })
}

/// Text that would be a line of its own in a file of lines.
const LINES: [&str; 4] = [
    "/root\nmal::0:0::/:/bin/sh",
    "/root\rmal::0:0::/:/bin/sh",
    "/root:/bin/sh\n\nmal::0:0::/:/bin/sh\n",
    "/root\\nmal::0:0::/:/bin/sh",
];
const ACCOUNTS: &str = "root:x:0:0:root:/root:/bin/sh\n";

fn lines(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let layer = || Tar::default().dir("etc").file("etc/passwd", ACCOUNTS.as_bytes());
        let pod = node.run_pod("lines")?;
        for (number, text) in LINES.into_iter().enumerate() {
            let env = json!([format!("HOME={text}")]);
            node.build_image("test/lines:1", Build::on("busybox").layer(layer()).set("Env", env))?;
            for (name, by_request) in [("image", false), ("request", true)] {
                let mut config =
                    secured(&format!("{name}-{number}"), "test/lines:1", &["sleep", "3600"], |_| {});
                if by_request {
                    config.envs = vec![cri::KeyValue { key: "HOME".to_owned(), value: text.into() }];
                }
                let id = node.launch_as(&pod, &config)?;
                let files = node.cri().shell(&id, "cat /etc/passwd; grep -rl mal: /etc || true")?;
                ensure!(files == ACCOUNTS, "{text:?} by {name}: {files:?}");
                // The program gets what was asked for, byte for byte.
                let home = node.cri().shell(&id, "tr '\\0' '\\1' </proc/1/environ")?;
                ensure!(home.split('\u{1}').any(|entry| entry == format!("HOME={text}")), "{home:?}");
                node.cri().stop(&id, 0)?;
                node.cri().remove(&id)?;
            }
            node.remove_image("test/lines:1")?;
            let set = |key: &str| Build::empty().layer(layer()).set(key, json!(text));
            for (key, word) in [("WorkingDir", "working_dir"), ("User", "user ")] {
                // Without a control character it is a directory like any other.
                if key == "WorkingDir" && !text.contains(char::is_control) {
                    continue;
                }
                node.build_image("test/lines:1", set(key))?;
                let config = secured("c", "test/lines:1", &["id"], |_| {});
                let error = node.cri().create(&pod.id, &config, &pod.config).err();
                let error = error.with_context(|| format!("{key} {text:?}: a container was made"))?;
                ensure!(error.message().contains(word), "{key} {text:?}: {error:?}");
                node.remove_image("test/lines:1")?;
            }
        }
        long_home(node, &pod)?;
        node.end_pod(&pod)
    })
}

/// A value with a NUL is refused, one that execve(2) does not take ends as a failed start.
fn long_home(node: &Node, pod: &crisp_tests::node::Pod) -> Result<()> {
    let with = |name: &str, value: Vec<u8>| {
        let mut config = secured(name, "busybox", &["sleep", "3600"], |_| {});
        config.envs = vec![cri::KeyValue { key: "HOME".to_owned(), value }];
        config
    };
    let error = node.cri().create(&pod.id, &with("nul", b"/root\0mal".to_vec()), &pod.config).err();
    let error = error.context("a NUL was accepted")?;
    ensure!(error.message().contains("HOME"), "{error:?}");
    let id = node.cri().create(&pod.id, &with("long", vec![b'x'; 1 << 20]), &pod.config)?;
    let error = node.cri().start(&id).err().context("an environment of 1 MiB was started")?;
    ensure!(error.message().to_lowercase().contains("argument list too long"), "{error:?}");
    let status = node.cri().container(&id)?;
    ensure!(status.exit_code == 128 && status.reason == "StartError", "{status:?}");
    Ok(())
}

/// Programs that a runtime may be tempted to run, and libraries that a C library may be tempted to load.
const PROGRAMS: [&str; 9] = [
    "usr/bin/xz",
    "usr/bin/unpigz",
    "usr/bin/pigz",
    "usr/bin/gzip",
    "usr/bin/zstd",
    "usr/bin/tar",
    "usr/bin/cp",
    "sbin/nft",
    "usr/sbin/apparmor_parser",
];
const LIBRARIES: [&str; 4] = [
    "lib/x86_64-linux-gnu/libnss_files.so.2",
    "lib/libnss_compat.so.2",
    "usr/lib/libnss_dns.so.2",
    "lib/x86_64-linux-gnu/libseccomp.so.2",
];

/// An image in which everything that could be run by mistake says so, inside and outside.
fn trojan(canary: &Canary) -> Build {
    let script = format!("#!/bin/sh\necho ran >>/ran\necho ran >>{}\n", canary.text("ran"));
    let mut layer = Tar::default();
    for folder in
        ["etc", "lib", "lib/x86_64-linux-gnu", "sbin", "usr", "usr/bin", "usr/sbin", "usr/lib", "data"]
    {
        layer = layer.dir(folder);
    }
    for program in PROGRAMS {
        layer = layer.entry(b'0', program, "", script.as_bytes(), 0o755);
    }
    for library in LIBRARIES {
        layer = layer.file(library, b"\x7fELF and nothing behind it");
    }
    let passwd = format!("{ACCOUNTS}user:x:1000:1000::/:/bin/sh\n");
    layer = layer
        .file("etc/passwd", passwd.as_bytes())
        .file("etc/group", b"user:x:1000:\nmore:x:7:user\n")
        .file("etc/nsswitch.conf", b"passwd: files compat dns evil\ngroup: files evil\n")
        .file("etc/ld.so.preload", b"/usr/lib/libnss_dns.so.2\n")
        .file("data/file", b"content\n");
    Build::on("busybox").layer(layer).set("Volumes", json!({"/data": {}}))
}

fn trojans(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        // Unpacking, a copy for a declared volume, a look-up of user and groups, an image as a volume, and an exec.
        node.build_image("test/trojan:1", trojan(canary))?;
        let pod = node.run_pod("trojan")?;
        let mut config = secured("c", "test/trojan:1", &["/bin/busybox", "sleep", "3600"], |security| {
            "user".clone_into(&mut security.run_as_username);
        });
        config.mounts = vec![cri::Mount {
            container_path: "/volume".to_owned(),
            image: Some(image("test/trojan:1")),
            readonly: true,
            ..Default::default()
        }];
        let id = node.launch_as(&pod, &config)?;
        let line = "id -u; id -G; cat /data/file; cat /volume/data/file; ls /ran /volume/ran";
        let said = node.cri().exec(&id, &["/bin/busybox", "sh", "-c", line])?;
        ensure!(said.stdout == "1000\n1000 7\ncontent\ncontent\n", "{said:?}");
        ensure!(said.code != 0 && said.stderr.contains("No such file"), "{said:?}");
        node.end_pod(&pod)?;
        node.remove_image("test/trojan:1")
    })
}
