//! Containers in a user namespace.

use super::harness::{
    Place, exec_script_in, failure, finish, report, rootfs, run, running, stdio, user_namespace,
};
use crate::launch::{PidNs, Prepared, Report, exec, pod_init, start};
use crate::userns::{IdMapping, IdMappings};
use crisp_sys::mount::{AttrChange, mount_setattr};
use crisp_sys::process::{Exited, Wait, pidfd_send_signal, waitid};
use serde_json::{Value, json};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Where the ids begin outside.
const HOST: u32 = 300_000;

fn mappings() -> IdMappings {
    let all = vec![IdMapping { container: 0, host: HOST, length: 65536 }];
    IdMappings { uids: all.clone(), gids: all }
}

fn mapping() -> Value {
    json!([{"containerID": 0, "hostID": HOST, "size": 65536}])
}

/// A root that belongs to the container's root, and where the host sees it.
fn mapped_rootfs() -> (OwnedFd, PathBuf) {
    let (root, path) = rootfs();
    let namespace = user_namespace(&mappings());
    let change = AttrChange { userns: Some(namespace.as_fd()), ..AttrChange::default() };
    mount_setattr(&root, false, &change).expect("a kernel with id-mapped tmpfs (6.3)");
    (root, path)
}

/// Makes it a spec of a container in a user namespace. Without sysfs: the test's network namespace is the host's.
fn inside(spec: &mut Value) {
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = mapping();
    spec["linux"]["gidMappings"] = mapping();
    spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
    spec["linux"]["maskedPaths"] = json!(["/proc/kcore", "/proc/scsi", "/etc"]);
}

fn container(place: &Place, script: &str, change: impl FnOnce(&mut Value)) -> (Prepared, PathBuf) {
    let (root, path) = mapped_rootfs();
    let prepared = place.container(root, script, |spec| {
        inside(spec);
        change(spec);
    });
    (prepared, path)
}

#[test]
fn root_inside_is_nobody_outside() {
    let place = Place::new("userns");
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("given"), "x").unwrap();
    let script = r"
        echo map $(cat /proc/self/uid_map); echo pid $$; id -u; id -g; id -G
        echo root $(stat -c %u:%g /); echo volume $(stat -c %u:%g /volume/given) $(stat -c %u:%g /plain)
        echo made > /volume/made; touch /tmp/own; echo own $(stat -c %u:%g /tmp/own)
        echo dev $(ls /dev) null $(stat -c %u:%g:%a /dev/null); echo x > /dev/null && echo null-works
        echo fuse $(stat -c %u:%g:%a /dev/sub/fuse) far $(stat -c %u:%g:%a /opt/far); head -c 3 /opt/far | wc -c
        echo kcore $(head -c 1 /proc/kcore | grep -c .) etc $(ls /etc | grep -c .)
        echo pts $(stat -c %u:%g:%a /dev/pts/ptmx); echo score $(cat /proc/self/oom_score_adj)
        grep -E '^(CapInh|CapEff|CapBnd|NoNewPrivs)' /proc/self/status
        echo cgroup $(grep ^0 /proc/self/cgroup)
        echo > /dev/stderr
    ";
    let (prepared, root) = container(&place, script, |spec| {
        spec["process"]["oomScoreAdj"] = json!(300);
        spec["linux"]["devices"] = json!([
            {"path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 0, "gid": 7},
            {"path": "/opt/far", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666, "uid": 0, "gid": 0},
        ]);
        let volume = volume.path();
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/volume", "source": volume, "options": ["rbind", "rprivate"],
            "uidMappings": mapping(), "gidMappings": mapping()}));
        mounts.push(json!({"destination": "/plain", "source": volume, "options": ["rbind", "ro"]}));
    });
    let finished = run(&prepared, &place.cgroup("web"));
    let wanted = [
        &format!("map 0 {HOST} 65536"),
        "pid 1",
        "0\n0\n0",
        "root 0:0",
        "volume 0:0 65534:65534",
        "own 0:0",
        "dev fd full null ptmx pts random stderr stdin stdout sub tty urandom zero null 0:0:666",
        "null-works",
        "fuse 65534:65534:640 far 65534:65534:666\n3",
        "kcore 0 etc 0",
        "pts 0:0:666",
        "score 300",
        "CapInh:\t0000000000000000\nCapEff:\t00000000000000a1\nCapBnd:\t00000000000000a1\nNoNewPrivs:\t0",
        "cgroup 0::/",
    ];
    for line in wanted {
        assert!(finished.output.contains(line), "{line:?} is not in\n{}", finished.output);
    }
    assert_eq!(finished.exited, Exited::Code(0), "{}", finished.output);
    let owner = |path: PathBuf| std::fs::metadata(path).map(|file| (file.uid(), file.gid())).unwrap();
    assert_eq!(owner(volume.path().join("made")), (0, 0), "what is written through an id-mapped mount");
    assert_eq!(owner(root.join("tmp/own")), (HOST, HOST), "as the mount shows it to the host");
}

#[test]
fn an_exec_joins_the_user_namespace() {
    let place = Place::new("usernsexec");
    let cgroup = place.cgroup("web");
    let (prepared, _) = container(&place, "echo up; sleep 1000", |_| {});
    let (child, _output) = running(&prepared, PidNs::Own, &cgroup);
    let script = "cat /proc/self/uid_map; id -u; id -G; echo err >/dev/stderr; grep CapEff /proc/self/status";
    let (stdio, output) = stdio();
    let prepared = exec_script_in(Some(&mappings()), script);
    let mut exec = exec(&prepared, child.pidfd.as_fd(), cgroup.as_fd(), stdio).unwrap();
    assert!(matches!(report(&mut exec), Report::Ready));
    assert!(matches!(report(&mut exec), Report::Executed));
    let finished = finish(&exec, output);
    let words: Vec<&str> = finished.output.split_whitespace().collect();
    let host = HOST.to_string();
    assert_eq!(words, ["0", &host, "65536", "0", "0", "err", "CapEff:", "0000000000000000"]);
    pidfd_send_signal(&child.pidfd, libc::SIGKILL).unwrap();
    waitid(&child.pidfd, Wait::Block).unwrap();
}

#[test]
fn a_shared_init_lives_inside_and_shows_nothing() {
    let place = Place::new("usernsinit");
    let namespace = place.user_namespace(&mappings());
    let mut init = pod_init(Some(place.cgroup("init").as_fd()), Some(namespace.as_fd()), 200).unwrap();
    assert!(matches!(report(&mut init), Report::Ready));
    assert!(matches!(report(&mut init), Report::Executed));
    let proc = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", init.pid)).unwrap();
    let status = proc("status");
    for line in
        ["Uid:\t365534\t365534", "Groups:\t \n", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"]
    {
        assert!(status.contains(line), "{line:?} is not in\n{status}");
    }
    assert_eq!(proc("oom_score_adj").trim(), "200");
    // All capabilities inside are not enough to look into it.
    let script =
        "echo up; ls /proc/1/root /proc/1/fd 2>&1 | grep -c 'ermission denied'; kill -9 1; echo alive";
    let (prepared, _) = container(&place, script, |spec| {
        let all = json!(["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETPCAP"]);
        spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    });
    let (child, output) = running(&prepared, PidNs::Join(init.pidfd.as_fd()), &place.cgroup("web"));
    let finished = finish(&child, output);
    assert_eq!(finished.output, "2\nalive\n");
    pidfd_send_signal(&init.pidfd, libc::SIGTERM).unwrap();
    assert_eq!(waitid(&init.pidfd, Wait::Block).unwrap(), Some(Exited::Code(0)));
    let (stdio, cgroup) = (stdio().0, place.cgroup("late"));
    let error = start(&prepared, PidNs::Join(init.pidfd.as_fd()), Some(cgroup.as_fd()), stdio).unwrap_err();
    assert_eq!(error.to_string(), "pod init exited");
}

#[test]
fn a_namespace_too_small_for_nobody_will_do() {
    let place = Place::new("usernssmall");
    let one = vec![IdMapping { container: 0, host: HOST, length: 1 }];
    let namespace = user_namespace(&IdMappings { uids: one.clone(), gids: one });
    let mut init = pod_init(Some(place.cgroup("init").as_fd()), Some(namespace.as_fd()), 0).unwrap();
    assert!(matches!(report(&mut init), Report::Ready));
    let status = std::fs::read_to_string(format!("/proc/{}/status", init.pid)).unwrap();
    assert!(
        status.contains(&format!("Uid:\t{HOST}")) && status.contains("CapEff:\t0000000000000000"),
        "{status}"
    );
    pidfd_send_signal(&init.pidfd, libc::SIGKILL).unwrap();
    waitid(&init.pidfd, Wait::Block).unwrap();
}

#[test]
fn what_a_joiner_cannot_do_is_named() {
    let place = Place::new("usernsfail");
    let (prepared, _) = container(&place, "true", |spec| {
        spec["process"]["rlimits"] =
            json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1_000_000_000_000_u64}]);
    });
    let (cgroup, stdio) = (place.cgroup("web"), stdio().0);
    let error = start(&prepared, PidNs::Own, Some(cgroup.as_fd()), stdio).unwrap_err().to_string();
    assert_eq!(error, "set resource limit 7: 1:1000000000000: operation not permitted");
    // sysfs belongs to the network namespace, which is not the container's.
    let (prepared, _) = container(&place, "true", |spec| {
        let sysfs = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
        spec["mounts"].as_array_mut().unwrap().push(sysfs);
    });
    assert_eq!(failure(&prepared, &cgroup), "mount /sys (sysfs): operation not permitted");
}
