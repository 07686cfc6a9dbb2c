//! AppArmor and SELinux as CRI asks for them: the label of a container's first process and of an exec'd one, what it
//! keeps them from, and what happens when it cannot be had.

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1::{self as cri, security_profile::ProfileType};
use crisp_tests::apparmor::{Profile, label};
use crisp_tests::cri::{container_config, words};
use crisp_tests::node::{Node, Pod};
use crisp_tests::place::{self, Need};
use crisp_tests::untouched;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "apparmor_default_holds_init_and_exec",
        needs: &[Need::AppArmor],
        images: &["busybox"],
        run: default,
    },
    Case {
        name: "apparmor_default_denies_what_mount_flags_would_not",
        needs: &[Need::AppArmor],
        images: &["busybox"],
        run: denials,
    },
    Case {
        name: "apparmor_unconfined_is_no_profile",
        needs: &[Need::AppArmor],
        images: &["busybox"],
        run: none,
    },
    Case {
        name: "apparmor_localhost_profiles_hold",
        needs: &[Need::AppArmor],
        images: &["busybox"],
        run: localhost,
    },
    Case {
        name: "apparmor_default_is_loaded_again",
        needs: &[Need::AppArmor],
        images: &["busybox"],
        run: reloaded,
    },
    Case { name: "r36_security_labels_fail_closed", needs: &[], images: &["busybox"], run: r36 },
];

type Security = cri::LinuxContainerSecurityContext;

fn config(name: &str, change: impl FnOnce(&mut Security)) -> Result<cri::ContainerConfig> {
    let mut config = container_config(name, "busybox", &["sleep", "3600"]);
    change(config.linux.as_mut().context("linux")?.security_context.as_mut().context("security context")?);
    Ok(config)
}

fn profile(kind: ProfileType, localhost_ref: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: localhost_ref.to_owned() })
}

fn launch(node: &Node, pod: &Pod, name: &str, change: impl FnOnce(&mut Security)) -> Result<String> {
    node.launch_as(pod, &config(name, change)?)
}

/// Shows that init and an exec'd process live under `expected`, by what the kernel says outside and inside.
fn assert_label(node: &Node, id: &str, expected: &str) -> Result<()> {
    let init = label(node.cri().pid(id)?)?;
    let exec = node.cri().shell(id, "cat /proc/self/attr/apparmor/current")?;
    ensure!(init == expected && exec.trim_end() == expected, "init: {init}, exec: {exec}");
    Ok(())
}

#[expect(deprecated, reason = "the old field is still there, and clients fill it")]
fn default(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("default")?;
    let plain = launch(node, &pod, "plain", |_| {})?;
    let said = launch(node, &pod, "said", |security| {
        security.apparmor = profile(ProfileType::RuntimeDefault, "");
    })?;
    let old =
        launch(node, &pod, "old", |security| "runtime/default".clone_into(&mut security.apparmor_profile))?;
    let strict = launch(node, &pod, "strict", |security| {
        security.no_new_privs = true;
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
        security.seccomp = profile(ProfileType::RuntimeDefault, "");
        security.capabilities =
            Some(cri::Capability { drop_capabilities: words(&["ALL"]), ..Default::default() });
    })?;
    for id in [&plain, &said, &old, &strict] {
        assert_label(node, id, "crisp-default (enforce)")?;
    }
    // Ordinary work goes on: files, children, signals among themselves.
    let work =
        "echo a >/tmp/x; cat /tmp/x; sleep 100 & kill $!; wait $! ; ls /proc >/dev/null; cat /proc/1/comm";
    ensure!(node.cri().shell(&plain, work)? == "a\nsleep\n");
    let request = cri::ContainerStatusRequest { container_id: plain, verbose: true };
    let info = node.cri().container_status(request)?.info.remove("info").context("no info")?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    ensure!(info["runtimeSpec"]["process"]["apparmorProfile"] == "crisp-default", "{info}");
    let request = cri::StatusRequest { verbose: true };
    let info = node.cri().status(request)?.info.remove("crisp").context("no info of crisp")?;
    ensure!(info.contains("\"apparmorDefaultProfile\":\"crisp-default\""), "{info}");
    // A stop signal from outside arrives.
    let mut config = config("stopped", |_| {})?;
    config.command = words(&["sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"]);
    let id = node.launch_as(&pod, &config)?;
    crate::logs::wait_for_lines(node, &id, 1)?;
    node.cri().stop(&id, 600)?;
    ensure!(node.cri().container(&id)?.exit_code == 9);
    node.end_pod(&pod)
}

/// What a root process with CAP_SYS_ADMIN and CAP_NET_ADMIN, all of /proc writable and no seccomp filter could do.
const ATTEMPTS: [&str; 5] = [
    "mount -t tmpfs x /tmp",
    "mount -t proc x /tmp",
    "echo h >/proc/sysrq-trigger",
    "echo crisp >/proc/sys/kernel/domainname",
    "echo 1 >/proc/sys/net/ipv4/ip_forward",
];

fn denials(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("denials")?;
        let admin = |security: &mut Security| {
            security.capabilities = Some(cri::Capability {
                add_capabilities: words(&["SYS_ADMIN", "NET_ADMIN"]),
                ..Default::default()
            });
        };
        let held = launch(node, &pod, "held", admin)?;
        let free = launch(node, &pod, "free", |security| {
            admin(security);
            security.apparmor = profile(ProfileType::Unconfined, "");
        })?;
        for attempt in ATTEMPTS {
            let said = node.cri().exec(&held, &["sh", "-c", attempt])?;
            let refused = said.stderr.to_lowercase().contains("permission denied");
            ensure!(said.code != 0 && refused, "{attempt}: {said:?}");
            // It is the profile, and nothing else, that stands in the way.
            node.cri().shell(&free, attempt)?;
        }
        // Shared memory's settings belong to the pod.
        node.cri().shell(&held, "echo 1 >/proc/sys/kernel/shm_rmid_forced")?;
        for path in ["/proc/kcore", "/sys/firmware/memmap", "/sys/kernel/security"] {
            let said = node.cri().exec(&held, &["sh", "-c", &format!("ls {path}/ || head -c 1 {path}")])?;
            ensure!(said.code != 0, "{path}: {said:?}");
        }
        node.end_pod(&pod)
    })
}

fn none(node: &mut Node) -> Result<()> {
    let mut sandbox = node.pod_config("unconfined");
    let security = cri::LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
    sandbox.linux.as_mut().context("linux")?.security_context = Some(security);
    let pod = node.run_pod_as(sandbox)?;
    let said = launch(node, &pod, "said", |security| {
        security.apparmor = profile(ProfileType::Unconfined, "");
    })?;
    let privileged = launch(node, &pod, "privileged", |security| {
        security.privileged = true;
        security.apparmor = profile(ProfileType::RuntimeDefault, "");
    })?;
    for id in [said, privileged] {
        assert_label(node, &id, "unconfined")?;
    }
    node.end_pod(&pod)
}

#[expect(deprecated, reason = "the old field is still there, and clients fill it")]
fn localhost(node: &mut Node) -> Result<()> {
    let held = Profile::load("crisp-test-no-note", "deny /note w,")?;
    let pod = node.run_pod("localhost")?;
    let reference = format!("localhost/{}", held.name);
    type Change<'a> = Box<dyn FnOnce(&mut Security) + 'a>;
    let ways: [(&str, Change<'_>); 3] = [
        ("bare", Box::new(|security| security.apparmor = profile(ProfileType::Localhost, &held.name))),
        ("prefixed", Box::new(|security| security.apparmor = profile(ProfileType::Localhost, &reference))),
        ("old", Box::new(|security| security.apparmor_profile = reference.clone())),
    ];
    for (name, change) in ways {
        let mut config = config(name, change)?;
        config.command = words(&["sh", "-c", "touch /note 2>&1; sleep 3600"]);
        let id = node.launch_as(&pod, &config)?;
        let log = crate::logs::wait_for_lines(node, &id, 1)?;
        ensure!(log[0].content.contains("Permission denied"), "{log:?}");
        assert_label(node, &id, "crisp-test-no-note (enforce)")?;
        let said = node.cri().exec(&id, &["touch", "/note"])?;
        ensure!(said.code != 0 && said.stderr.contains("Permission denied"), "{said:?}");
        node.cri().shell(&id, "touch /other")?;
    }
    // The message wins over the string.
    let both = launch(node, &pod, "both", |security| {
        security.apparmor = profile(ProfileType::Unconfined, "");
        security.apparmor_profile = reference.clone();
    })?;
    assert_label(node, &both, "unconfined")?;
    node.end_pod(&pod)
}

fn reloaded(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("reloaded")?;
    let first = launch(node, &pod, "first", |_| {})?;
    assert_label(node, &first, "crisp-default (enforce)")?;
    Profile::unload("crisp-default")?;
    // A process that would run without its profile does not run.
    let error = node.cri().exec(&first, &["true"]).err().context("exec went on without its profile")?;
    ensure!(error.message().contains("AppArmor profile crisp-default"), "{error:?}");
    let config = config("second", |_| {})?;
    let error = node.cri().create(&pod.id, &config, &pod.config).err();
    let error = error.context("a container was made without its profile")?;
    ensure!(error.message().contains("AppArmor profile crisp-default"), "{error:?}");
    let second = node.launch_as(&pod, &config)?;
    assert_label(node, &second, "crisp-default (enforce)")?;
    node.end_pod(&pod)
}

/// What is asked for, and the words that the answer must hold.
type Impossible = (&'static str, fn(&mut Security), [&'static str; 2]);

/// Requests for a label that cannot be had.
fn impossible() -> Vec<Impossible> {
    vec![
        (
            "profile that is not loaded",
            |security| security.apparmor = profile(ProfileType::Localhost, "localhost/crisp-test-missing"),
            ["security_context.apparmor", "crisp-test-missing"],
        ),
        (
            "profile without a name",
            |security| security.apparmor = profile(ProfileType::Localhost, ""),
            ["security_context.apparmor.localhost_ref", "names no profile"],
        ),
        (
            "second line that undoes the first",
            |security| security.apparmor = profile(ProfileType::Localhost, "a\nexec unconfined"),
            ["security_context.apparmor.localhost_ref", "control characters"],
        ),
        (
            "unknown type",
            |security| {
                security.apparmor =
                    Some(cri::SecurityProfile { profile_type: 9, localhost_ref: String::new() });
            },
            ["security_context.apparmor.profile_type", "9"],
        ),
        (
            "SELinux level with other characters",
            |security| {
                security.selinux_options =
                    Some(cri::SeLinuxOption { level: "s0:c1;x".to_owned(), ..Default::default() });
            },
            ["security_context.selinux_options.level", "s0:c1;x"],
        ),
        (
            "SELinux type with a colon",
            |security| {
                security.selinux_options =
                    Some(cri::SeLinuxOption { r#type: "a:b".to_owned(), ..Default::default() });
            },
            ["security_context.selinux_options.type", "a:b"],
        ),
    ]
}

fn r36(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("closed")?;
        for (what, change, expected) in impossible() {
            let config = config("c", change)?;
            let error = node.cri().create(&pod.id, &config, &pod.config).err();
            let error = error.with_context(|| format!("{what}: a container was made"))?;
            ensure!(expected.iter().all(|word| error.message().contains(word)), "{what}: {error:?}");
        }
        let mut bad = node.pod_config("bad");
        let options = cri::SeLinuxOption { level: "no level".to_owned(), ..Default::default() };
        let security = bad.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        security.context("security context")?.selinux_options = Some(options);
        let error = node.cri().run_pod(&bad).err().context("a sandbox with a bad label was made")?;
        ensure!(error.message().contains("selinux_options.level"), "{error:?}");
        // Options that make sense have no object on a kernel without SELinux.
        let fine = launch(node, &pod, "fine", |security| {
            security.selinux_options = Some(cri::SeLinuxOption {
                r#type: "container_t".to_owned(),
                level: "s0:c1,c2".to_owned(),
                ..Default::default()
            });
        })?;
        if place::has_apparmor() {
            assert_label(node, &fine, "crisp-default (enforce)")?;
        }
        node.end_pod(&pod)
    })
}
