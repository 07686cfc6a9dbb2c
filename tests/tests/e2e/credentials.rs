//! Who a container's processes are: users and groups however they are spelled, capabilities that must not be inherited,
//! programs that would give more. `r14_` to `r18_` and `r40_` of the adversarial cases.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::build::{Build, Tar};
use crisp_tests::cri::{bind, secured, words};
use crisp_tests::node::{Node, Pod};
use crisp_tests::{place, untouched};
use serde_json::json;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "r14_no_capability_is_inheritable",
        needs: &[],
        images: &["python:3.9", "busybox"],
        run: inheritable,
    },
    Case { name: "r15_a_user_is_spelled_strictly", needs: &[], images: &["busybox"], run: spelling },
    Case { name: "r16_an_id_out_of_range_is_never_root", needs: &[], images: &["busybox"], run: range },
    Case { name: "r17_groups_are_exactly_the_policys", needs: &[], images: &["busybox"], run: groups },
    Case { name: "r18_a_number_is_never_a_name", needs: &[], images: &["busybox"], run: numeric_name },
    Case {
        name: "r40_no_new_privs_holds_against_setuid_programs",
        needs: &[],
        images: &[SETUID, "busybox"],
        run: setuid,
    },
];

/// Its `/nnp` is setuid and prints its effective user id.
const SETUID: &str = "registry.k8s.io/e2e-test-images/nonewprivs:1.3";

type Security = cri::LinuxContainerSecurityContext;

fn uid(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

/// A folder on a file system without `nosuid`.
fn volume() -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("crisp-volume-").tempdir_in(place::disk())?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// Lines `Cap*:` of a status file.
fn capabilities(status: &str, name: &str) -> Result<u64> {
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(u64::from_str_radix(line.trim_start_matches(':').trim(), 16)?)
}

/// Gives a copy of busybox inheritable and permitted file capabilities (capabilities(7), revision 2).
const FILE_CAPABILITIES: &str = "
import os, shutil, struct
shutil.copy('/bin/busybox', '/vol/busybox')
everything = 0xffffffff
os.setxattr('/vol/busybox', 'security.capability', struct.pack('<5I', 0x02000001, 0, everything, 0, 0xff))
";

fn inheritable(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let folder = volume()?;
        let pod = node.run_pod("inheritable")?;
        let asked = |user: i64| {
            move |security: &mut Security| {
                security.run_as_user = uid(user);
                let add_capabilities = words(&["NET_ADMIN", "SYS_TIME"]);
                security.capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
            }
        };
        for (name, user) in [("root", 0), ("other", 1000)] {
            let mut config = secured(name, "python:3.9", &["sleep", "3600"], asked(user));
            config.mounts = vec![bind(folder.path(), "/vol")];
            let id = node.launch_as(&pod, &config)?;
            for process in ["1", "self"] {
                let status = node.cri().shell(&id, &format!("cat /proc/{process}/status"))?;
                ensure!(capabilities(&status, "CapInh")? == 0, "{name}, {process}: {status}");
                ensure!(capabilities(&status, "CapAmb")? == 0, "{name}, {process}: {status}");
            }
            if user == 0 {
                let said = node.cri().exec(&id, &["python3", "-c", FILE_CAPABILITIES])?;
                ensure!(said.code == 0, "{said:?}");
            } else {
                let status = node.cri().shell(&id, "exec /vol/busybox cat /proc/self/status")?;
                ensure!(
                    capabilities(&status, "CapPrm")? == 0 && capabilities(&status, "CapEff")? == 0,
                    "{status}"
                );
            }
        }
        node.end_pod(&pod)
    })
}

/// Shows that a container is refused with `word` in the message.
fn refused(node: &Node, pod: &Pod, config: &cri::ContainerConfig, what: &str, word: &str) -> Result<()> {
    let error = node.cri().create(&pod.id, config, &pod.config).err();
    let error = error.with_context(|| format!("{what}: a container was made"))?;
    ensure!(error.message().contains(word), "{what}: {error:?}");
    Ok(())
}

/// Spellings of a user that somebody, somewhere, reads as root or as another user. The last two are digits, too.
const SPELLINGS: [&str; 12] = [
    "1000:",
    ":100",
    "0x0",
    " 0",
    "0 ",
    "+0",
    "-0",
    "1000:1000:1",
    "4294967296",
    "root\nx",
    "\u{ff11}\u{ff10}",
    "\u{0661}",
];

/// The layer of an image with these account files.
fn accounts(passwd: &str, group: &str) -> Tar {
    Tar::default().dir("etc").file("etc/passwd", passwd.as_bytes()).file("etc/group", group.as_bytes())
}

/// Runs `check` with an image that has this `USER`.
fn with_image(
    node: &mut Node,
    build: Build,
    user: &str,
    check: impl FnOnce(&Node, &str) -> Result<()>,
) -> Result<()> {
    let name = "test/user:1";
    node.build_image(name, build.set("User", json!(user)))?;
    check(node, name)?;
    node.remove_image(name)
}

fn spelling(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("spelling")?;
        for text in SPELLINGS {
            let config =
                secured("c", "busybox", &["id"], |security| text.clone_into(&mut security.run_as_username));
            refused(node, &pod, &config, &format!("run_as_username {text:?}"), "user ")?;
            // There is nothing in it to run: it does not come to that.
            let image = Build::empty().layer(accounts(PASSWD, GROUP));
            with_image(node, image, text, |node, image| {
                let config = secured("c", image, &["id"], |_| {});
                refused(node, &pod, &config, &format!("USER {text:?}"), "user ")
            })?;
        }
        ensure!(node.cri().containers()?.iter().all(|container| container.pod_sandbox_id != pod.id));
        node.end_pod(&pod)
    })
}

fn range(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("range")?;
        for number in [2_147_483_648, 4_294_967_295, 4_294_967_296, -1] {
            type Field = fn(&mut Security, i64);
            let fields: [(&str, Field); 3] = [
                ("run_as_user", |security, number| security.run_as_user = uid(number)),
                ("run_as_group", |security, number| {
                    security.run_as_user = uid(1);
                    security.run_as_group = uid(number);
                }),
                ("supplemental_groups", |security, number| security.supplemental_groups = vec![number]),
            ];
            for (field, set) in fields {
                let config = secured("c", "busybox", &["id"], |security| set(security, number));
                let word = number.to_string();
                refused(node, &pod, &config, &format!("{field} {number}"), &word)?;
            }
        }
        let wrap = "root:x:0:0::/:/bin/sh\nwrap:x:4294967296:4294967296::/:/bin/sh\n";
        for user in ["4294967296:0", "4294967296", "0:4294967296", "wrap"] {
            let image = Build::empty().layer(accounts(wrap, "wrap:x:4294967296:\n"));
            with_image(node, image, user, |node, image| {
                refused(node, &pod, &secured("c", image, &["id"], |_| {}), &format!("USER {user}"), "user ")
            })?;
        }
        let largest = 2_147_483_647;
        let config =
            secured("largest", "busybox", &["sleep", "3600"], |security| security.run_as_user = uid(largest));
        let id = node.launch_as(&pod, &config)?;
        ensure!(node.cri().shell(&id, "id -u")? == format!("{largest}\n"));
        node.end_pod(&pod)
    })
}

const PASSWD: &str =
    "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n1001:x:0:0::/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nuser:x:1000:\nin-image:x:50000:user\n";

fn on_busybox() -> Build {
    Build::on("busybox").layer(accounts(PASSWD, GROUP))
}

/// What is asked for, and the groups that both init and an exec'd process must have: the primary one, then all.
struct Membership {
    name: &'static str,
    user: &'static str,
    ask: fn(&mut Security),
    primary: u32,
    all: &'static [u32],
}

const STRICT: i32 = cri::SupplementalGroupsPolicy::Strict as i32;

const MEMBERSHIPS: [Membership; 7] = [
    Membership {
        name: "merged",
        user: "",
        ask: |security| {
            security.run_as_user = uid(1000);
            security.supplemental_groups = vec![60000];
        },
        primary: 1000,
        all: &[1000, 50000, 60000],
    },
    Membership {
        name: "strict",
        user: "",
        ask: |security| {
            security.run_as_user = uid(1000);
            security.supplemental_groups = vec![60000];
            security.supplemental_groups_policy = STRICT;
        },
        primary: 1000,
        all: &[1000, 60000],
    },
    Membership {
        name: "by-name",
        user: "",
        ask: |security| "user".clone_into(&mut security.run_as_username),
        primary: 1000,
        all: &[1000, 50000],
    },
    Membership {
        name: "other-primary",
        user: "",
        ask: |security| {
            security.run_as_user = uid(1000);
            security.run_as_group = uid(7);
        },
        primary: 7,
        all: &[7, 50000],
    },
    Membership { name: "of-image", user: "user", ask: |_| {}, primary: 1000, all: &[1000, 50000] },
    Membership { name: "of-image-with-group", user: "1000:7", ask: |_| {}, primary: 7, all: &[7, 50000] },
    Membership {
        name: "of-image-strict",
        user: "user",
        ask: |security| security.supplemental_groups_policy = STRICT,
        primary: 1000,
        all: &[1000],
    },
];

/// Readable for everybody but the members of group 50000.
fn closed_to_members(folder: &Path) -> Result<()> {
    let file = folder.join("not-for-members");
    fs::write(&file, "x")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604))?;
    Ok(chown(&file, Some(0), Some(50000))?)
}

fn groups(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let folder = volume()?;
        closed_to_members(folder.path())?;
        let pod = node.run_pod("groups")?;
        for membership in &MEMBERSHIPS {
            with_image(node, on_busybox(), membership.user, |node, image| {
                member(node, &pod, membership, image, folder.path())
                    .with_context(|| membership.name.to_owned())
            })?;
        }
        node.end_pod(&pod)
    })
}

fn member(node: &Node, pod: &Pod, expected: &Membership, image: &str, folder: &Path) -> Result<()> {
    let command = ["sh", "-c", "id -g; id -G; sleep 3600"];
    let mut config = secured(expected.name, image, &command, expected.ask);
    config.mounts = vec![bind(folder, "/vol")];
    let id = node.launch_as(pod, &config)?;
    let log = crate::logs::wait_for_lines(node, &id, 2)?;
    let exec = node.cri().shell(&id, "id -g; id -G")?;
    let init = format!("{}\n{}\n", log[0].content, log[1].content);
    ensure!(init == exec, "init: {init}, exec: {exec}");
    ensure!(log[0].content == expected.primary.to_string(), "{log:?}");
    let mut all: Vec<u32> = log[1].content.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    all.sort_unstable();
    ensure!(all == expected.all, "{all:?}, expected {:?}", expected.all);
    // Being left out of a group must not open what is closed to its members.
    let reads = node.cri().exec(&id, &["cat", "/vol/not-for-members"])?.code == 0;
    ensure!(
        reads != expected.all.contains(&50000),
        "a file that is closed to group 50000 is readable: {reads}"
    );
    // The image goes away with its container.
    node.cri().stop(&id, 0)?;
    Ok(node.cri().remove(&id)?)
}

fn numeric_name(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("numeric")?;
        type Ask = fn(&mut Security);
        let ways: [(&str, Ask); 3] = [
            ("", |security| security.run_as_user = uid(1001)),
            ("", |security| "1001".clone_into(&mut security.run_as_username)),
            ("1001", |_| {}),
        ];
        for (user, ask) in ways {
            with_image(node, on_busybox(), user, |node, image| {
                let id = node.launch_as(&pod, &secured("c", image, &["sleep", "3600"], ask))?;
                let ids = node.cri().shell(&id, "id -u; grep ^Uid /proc/1/status | cut -f2")?;
                ensure!(ids == "1001\n1001\n", "{ids}");
                node.cri().stop(&id, 0)?;
                Ok(node.cri().remove(&id)?)
            })?;
        }
        node.end_pod(&pod)
    })
}

fn setuid(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let folder = volume()?;
        let pod = node.run_pod("setuid")?;
        let launch = |name: &str, user: i64, strict: bool| -> Result<String> {
            let mut config = secured(name, SETUID, &["sleep", "3600"], |security| {
                security.run_as_user = uid(user);
                security.no_new_privs = strict;
                let add_ambient_capabilities = if strict { words(&["NET_ADMIN"]) } else { Vec::new() };
                security.capabilities =
                    Some(cri::Capability { add_ambient_capabilities, ..Default::default() });
            });
            config.mounts = vec![bind(folder.path(), "/vol")];
            node.launch_as(&pod, &config)
        };
        let root = launch("root", 0, false)?;
        node.cri().shell(&root, "cp /nnp /vol/nnp && chmod 4755 /vol/nnp")?;
        let loose = launch("loose", 1000, false)?;
        let strict = launch("strict", 1000, true)?;
        for program in ["/nnp", "/vol/nnp"] {
            // It is setuid, and would work.
            ensure!(node.cri().shell(&loose, program)? == "Effective uid: 0\n", "{program}");
            ensure!(node.cri().shell(&strict, program)? == "Effective uid: 1000\n", "{program}");
        }
        let status = node.cri().shell(&strict, "cat /proc/1/status")?;
        ensure!(capabilities(&status, "CapEff")? == 1 << 12, "{status}");
        node.end_pod(&pod)
    })
}
