//! Processes under a seccomp filter: what the kernel says about them, and what they cannot do.

use super::harness::{Place, failure, report, rootfs, run, running, stdio};
use crate::launch::{PidNs, Prepared, Report, exec};
use crate::oci::exec_plan;
use crate::seccomp::Profile;
use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde_json::{Value, json};
use std::os::fd::AsFd;

const SCRIPT: &str = r"
    grep -E '^(Seccomp|NoNewPrivs|CapPrm|CapEff|CapBnd):' /proc/self/status
    busybox unshare -U true 2>/dev/null && echo unshared
    busybox mount -t tmpfs x /tmp 2>/dev/null && echo mounted
    busybox chmod 700 /tmp && echo changed
    (echo pipes | cat)
";

fn runtime_default() -> Value {
    let set = [Capability::Chown, Capability::Setuid, Capability::Kill].into();
    serde_json::to_value(Profile::runtime_default().resolve(&set).unwrap()).unwrap()
}

fn with(profile: Value, no_new_privs: bool) -> impl FnOnce(&mut Value) {
    move |spec| {
        spec["process"]["noNewPrivileges"] = json!(no_new_privs);
        spec["linux"]["seccomp"] = profile;
    }
}

fn deny(name: &str, action: &str) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [name], "action": action}]})
}

#[test]
fn the_default_profile_holds_with_and_without_new_privileges() {
    let place = Place::new("seccomp");
    let free = run(&place.container(rootfs().0, SCRIPT, |_| {}), &place.cgroup("free"));
    assert!(free.output.contains("Seccomp:\t0\nunshared\nchanged\npipes\n"), "{free:?}");
    for (no_new_privs, uid) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
        let prepared = place.container(rootfs().0, SCRIPT, |spec| {
            with(runtime_default(), no_new_privs)(spec);
            spec["process"]["user"] = json!({"uid": uid, "gid": uid});
        });
        let name = format!("filtered-{no_new_privs}-{uid}");
        let output = run(&prepared, &place.cgroup(&name)).output;
        let caps = if uid == 0 { "00000000000000a1" } else { "0000000000000000" };
        let changed = if uid == 0 { "changed\n" } else { "chmod: /tmp: Operation not permitted\n" };
        // What it took to install the filter is gone.
        let expected = format!(
            "CapPrm:\t{caps}\nCapEff:\t{caps}\nCapBnd:\t00000000000000a1\nNoNewPrivs:\t{}\nSeccomp:\t2\n{changed}pipes\n",
            u8::from(no_new_privs)
        );
        assert_eq!(output, expected, "{name}");
    }
}

#[test]
fn an_exec_has_the_filter_that_it_is_given() {
    let place = Place::new("seccomp-exec");
    let script = "echo started; exec sleep 60";
    let cgroup = place.cgroup("web");
    let prepared = place.container(rootfs().0, script, with(deny("chmod", "SCMP_ACT_ERRNO"), false));
    let (child, _output) = running(&prepared, PidNs::Own, &cgroup);
    let script = "grep ^Seccomp: /proc/self/status; busybox chmod 700 /tmp 2>&1";
    let process =
        json!({"args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
    let profile: LinuxSeccomp = serde_json::from_value(deny("chmod", "SCMP_ACT_ERRNO")).unwrap();
    let plan = exec_plan(&serde_json::from_value(process).unwrap(), Some(&profile), None).unwrap();
    let (io, output) = stdio();
    let prepared = Prepared::new(plan, Vec::new()).unwrap();
    let mut second = exec(&prepared, child.pidfd.as_fd(), cgroup.as_fd(), io).unwrap();
    let mut news = report(&mut second);
    while matches!(news, Report::Ready) {
        news = report(&mut second);
    }
    assert!(matches!(news, Report::Executed), "{news:?}");
    let finished = super::harness::finish(&second, output);
    assert_eq!(finished.output, "Seccomp:\t2\nchmod: /tmp: Operation not permitted\n");
    crisp_sys::process::pidfd_send_signal(&child.pidfd, libc::SIGKILL).unwrap();
    crisp_sys::process::waitid(&child.pidfd, crisp_sys::process::Wait::Block).unwrap();
}

#[test]
fn r36_a_profile_without_execve_is_a_clear_error() {
    let place = Place::new("seccomp-execve");
    let text = |action: &str, no_new_privs: bool| {
        let prepared = place.container(rootfs().0, "true", with(deny("execve", action), no_new_privs));
        failure(&prepared, &place.cgroup(&format!("{action}-{no_new_privs}")))
    };
    for no_new_privs in [true, false] {
        let said = text("SCMP_ACT_ERRNO", no_new_privs);
        assert_eq!(
            said,
            "exec \"/bin/sh\": operation not permitted (does its seccomp profile allow execve?)"
        );
        let said = text("SCMP_ACT_KILL_PROCESS", no_new_privs);
        assert_eq!(said, "init died: execute the program: killed by its seccomp filter (SIGSYS)");
    }
}
