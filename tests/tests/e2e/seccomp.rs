//! Seccomp profiles as CRI asks for them: what the kernel says about a container, its exec'd processes, and their calls.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1::{self as cri, security_profile::ProfileType};
use crisp_tests::cri::container_config;
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "seccomp_default_filters_init_and_exec", needs: &[], images: &["busybox"], run: default },
    Case { name: "seccomp_unconfined_is_no_filter", needs: &[], images: &["busybox"], run: unconfined },
    Case { name: "seccomp_localhost_profiles_hold", needs: &[], images: &["busybox"], run: localhost },
    Case { name: "r36_seccomp_profiles_fail_closed", needs: &[], images: &["busybox"], run: r36 },
];

fn config(
    name: &str,
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> Result<cri::ContainerConfig> {
    let mut config = container_config(name, "busybox", &["sleep", "3600"]);
    change(config.linux.as_mut().context("linux")?.security_context.as_mut().context("security context")?);
    Ok(config)
}

fn profile(kind: ProfileType, localhost_ref: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: localhost_ref.to_owned() })
}

/// `Seccomp:` of the container's first process and of an exec'd one: 0 none, 2 a filter.
fn modes(node: &Node, id: &str) -> Result<(String, String)> {
    let mode = |process: &str| -> Result<String> {
        let line = node.cri().shell(id, &format!("grep ^Seccomp: /proc/{process}/status"))?;
        Ok(line.trim_start_matches("Seccomp:").trim().to_owned())
    };
    Ok((mode("1")?, mode("self")?))
}

fn launch(
    node: &Node,
    pod: &Pod,
    name: &str,
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> Result<String> {
    node.launch_as(pod, &config(name, change)?)
}

#[expect(deprecated, reason = "the old field is still there, and clients fill it")]
fn default(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("seccomp")?;
    let plain = launch(node, &pod, "plain", |security| {
        security.seccomp = profile(ProfileType::RuntimeDefault, "");
    })?;
    let strict = launch(node, &pod, "strict", |security| {
        security.seccomp = profile(ProfileType::RuntimeDefault, "");
        security.no_new_privs = true;
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
    })?;
    let old =
        launch(node, &pod, "old", |security| security.seccomp_profile_path = "runtime/default".to_owned())?;
    for id in [plain, strict, old] {
        ensure!(modes(node, &id)? == ("2".to_owned(), "2".to_owned()), "{:?}", modes(node, &id)?);
        ensure!(node.cri().exec(&id, &["unshare", "-U", "true"])?.code != 0, "a user namespace was made");
        ensure!(node.cri().shell(&id, "echo a | cat; sh -c 'echo b'")? == "a\nb\n");
    }
    node.end_pod(&pod)
}

fn unconfined(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("unconfined")?;
    let nothing = launch(node, &pod, "nothing", |security| security.seccomp = None)?;
    let said = launch(node, &pod, "said", |security| {
        security.seccomp = profile(ProfileType::Unconfined, "");
    })?;
    for id in [nothing, said] {
        ensure!(modes(node, &id)? == ("0".to_owned(), "0".to_owned()), "{:?}", modes(node, &id)?);
    }
    node.end_pod(&pod)
}

fn localhost(node: &mut Node) -> Result<()> {
    let file = node.folder().join("no-chmod.json");
    fs::write(
        &file,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
            [{"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}"#,
    )?;
    let path = file.display().to_string();
    let pod = node.run_pod("localhost")?;
    for (name, reference) in [("bare", path.clone()), ("prefixed", format!("localhost/{path}"))] {
        let mut config = config(name, |security| {
            security.seccomp = profile(ProfileType::Localhost, &reference);
        })?;
        config.command = ["sh", "-c", "chmod 700 /tmp 2>&1; sleep 3600"].map(str::to_owned).to_vec();
        let id = node.launch_as(&pod, &config)?;
        let log = crate::logs::wait_for_lines(node, &id, 1)?;
        ensure!(log[0].content.contains("Operation not permitted"), "{log:?}");
        ensure!(modes(node, &id)? == ("2".to_owned(), "2".to_owned()), "{:?}", modes(node, &id)?);
        let said = node.cri().exec(&id, &["chmod", "700", "/tmp"])?;
        ensure!(said.code != 0 && said.stderr.contains("Operation not permitted"), "{said:?}");
        node.cri().shell(&id, "touch /tmp/x")?;
    }
    node.end_pod(&pod)
}

fn r36(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let folder = node.folder().join("profiles");
        fs::create_dir(&folder)?;
        let path = |name: &str| folder.join(name).display().to_string();
        fs::write(path("broken.json"), "{")?;
        symlink(path("no-execve.json"), path("link.json"))?;
        let mut huge = String::from(r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": ["#);
        while huge.len() < 10 << 20 {
            huge.push_str(r#"{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}, "#);
        }
        fs::write(path("huge.json"), huge + r#"{"names": ["chown"], "action": "SCMP_ACT_ERRNO"}]}"#)?;
        fs::write(path("action.json"), r#"{"defaultAction": "SCMP_ACT_PERHAPS"}"#)?;
        fs::write(path("field.json"), r#"{"defaultAction": "SCMP_ACT_ALLOW", "disabled": true}"#)?;
        fs::write(path("empty.json"), "")?;
        nix::unistd::mkfifo(path("fifo").as_str(), nix::sys::stat::Mode::S_IRWXU)?;
        fs::write(path("notify.json"), r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#)?;
        fs::write(
            path("no-execve.json"),
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_ERRNO"}]}"#,
        )?;
        let forbids = |name: &str, syscall: &str| {
            let rule = format!(r#"{{"names": ["{syscall}"], "action": "SCMP_ACT_ERRNO"}}"#);
            fs::write(path(name), format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#))
        };
        forbids("unknown.json", "chmodd")?;
        let pod = node.run_pod("closed")?;
        for name in [
            "missing.json",
            "broken.json",
            "notify.json",
            ".",
            "link.json",
            "huge.json",
            "action.json",
            "field.json",
            "empty.json",
            "fifo",
            "unknown.json",
        ] {
            let config = config("c", |security| {
                security.seccomp = profile(ProfileType::Localhost, &path(name));
            })?;
            let error = node.cri().create(&pod.id, &config, &pod.config).err();
            let error = error.with_context(|| format!("{name}: a container was made without its profile"))?;
            let named = error.message().contains("security_context.seccomp")
                && error.message().contains(folder.to_str().context("UTF-8")?);
            ensure!(named, "{name}: {error:?}");
        }
        let config = config("c", |security| {
            security.seccomp = profile(ProfileType::Localhost, &path("no-execve.json"));
        })?;
        let id = node.cri().create(&pod.id, &config, &pod.config)?;
        let error = node.cri().start(&id).err().context("a program was executed that its profile forbids")?;
        ensure!(error.message().contains("seccomp"), "{error:?}");
        // Profiles are written for all architectures: what another one has is no mistake.
        for (number, foreign) in
            ["arm_fadvise64_64", "s390_pci_mmio_read", "riscv_flush_icache"].into_iter().enumerate()
        {
            forbids("foreign.json", foreign)?;
            let name = format!("foreign-{number}");
            let id = launch(node, &pod, &name, |security| {
                security.seccomp = profile(ProfileType::Localhost, &path("foreign.json"));
            })?;
            ensure!(modes(node, &id)?.0 == "2", "{foreign}");
        }
        node.end_pod(&pod)
    })
}
