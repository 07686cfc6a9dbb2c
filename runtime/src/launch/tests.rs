//! Real containers, as root: namespaces, mounts, identity, failures.

mod filter;
mod harness;
mod pod;
mod seccomp;
mod userns;

use super::{PidNs, Report, exec, start};
use crate::error::LaunchError;
use crisp_sys::process::{Exited, Wait, pidfd_send_signal, waitid};
use harness::{Place, exec_script, failure, finish, report, rootfs, run, running, stdio};
use serde_json::json;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn a_container_has_its_own_world_and_nothing_of_the_host() {
    let place = Place::new("world");
    let (root, path) = rootfs();
    std::fs::write(path.join("etc/secret"), "hidden").unwrap();
    let script = r"
        echo pid $$; echo fds $(ls /proc/self/fd); echo root $(ls /)
        cat /etc/secret; echo secret $?
        echo kcore $(head -c 1 /proc/kcore | grep -c .)
        echo firmware $(ls -a /sys/firmware)
        touch /sys/firmware/x 2>/dev/null || echo firmware-is-read-only
        ( echo 1 > /proc/sys/vm/drop_caches ) 2>/dev/null || echo sys-is-read-only
        echo dev $(ls /dev); echo null > /dev/null && echo null-works
        echo ptmx $(readlink /dev/ptmx) mode $(stat -c %a /dev/zero)
        grep -E '^(Cap|NoNewPrivs|SigIgn|SigBlk|Umask)' /proc/self/status
        echo cgroup $(cat /proc/self/cgroup | grep ^0)
        echo mounts $(grep -c . /proc/self/mountinfo)
    ";
    let finished = run(&place.container(root, script, |_| {}), &place.cgroup("web"));
    assert_eq!(finished.exited, Exited::Code(0), "{}", finished.output);
    let has = |line: &str| finished.output.lines().any(|found| found == line);
    for line in [
        "pid 1",
        // The fourth is the directory that ls reads.
        "fds 0 1 2 3",
        "root bin dev etc proc sys tmp",
        "secret 0",
        "kcore 0",
        "firmware . ..",
        "firmware-is-read-only",
        "sys-is-read-only",
        "dev fd full null ptmx pts random stderr stdin stdout tty urandom zero",
        "null-works",
        "ptmx pts/ptmx mode 666",
        "Umask:\t0022",
        "SigBlk:\t0000000000000000",
        "CapInh:\t0000000000000000",
        "CapBnd:\t00000000000000a1",
        "CapEff:\t00000000000000a1",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "cgroup 0::/",
    ] {
        assert!(has(line), "{line:?} is not in\n{}", finished.output);
    }
    assert!(!finished.output.contains("hidden"));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(place.staging.path().to_str().unwrap()), "left on the host: {mounts}");
}

#[test]
fn the_process_is_who_the_plan_says() {
    let place = Place::new("who");
    let script = r"
        id; pwd; umask; cat /proc/self/oom_score_adj; ulimit -n
        grep -E '^(CapEff|CapAmb|CapPrm|NoNewPrivs|SigIgn)' /proc/self/status
        stat -c 'made %a %u' /srv/deep
    ";
    let prepared = place.container(rootfs().0, script, |spec| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 50, "additionalGids": [50, 1234], "umask": 63});
        spec["process"]["cwd"] = json!("/srv/deep");
        spec["process"]["oomScoreAdj"] = json!(321);
        spec["process"]["noNewPrivileges"] = json!(true);
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]);
        let caps = json!(["CAP_NET_RAW"]);
        spec["process"]["capabilities"] =
            json!({"bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": caps});
    });
    let finished = run(&prepared, &place.cgroup("web"));
    let expected = "uid=1000 gid=50 groups=50,1234\n/srv/deep\n0077\n321\n77\n\
        SigIgn:\t0000000000000000\nCapPrm:\t0000000000002000\nCapEff:\t0000000000002000\n\
        CapAmb:\t0000000000002000\nNoNewPrivs:\t1\nmade 755 0\n";
    assert_eq!(finished.output, expected);
}

#[test]
fn bind_mounts_land_where_they_should() {
    let place = Place::new("bind");
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), "from the host").unwrap();
    let (root, path) = rootfs();
    // As in many images: the target's directory is a link to one that does not exist.
    std::fs::create_dir(path.join("var")).unwrap();
    symlink("/run", path.join("var/run")).unwrap();
    let script = "cat /run/secrets/token; echo; cat /data/file; echo; touch /data/new && echo written
        touch /frozen/x || echo frozen";
    let prepared = place.container(root, script, |spec| {
        let bind = |target: &str, source: std::path::PathBuf, options: &[&str]| {
            json!({"destination": target, "type": "bind", "source": source, "options": options})
        };
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(bind("/var/run/secrets/token", host.path().join("file"), &["bind", "ro"]));
        mounts.push(bind("/data", host.path().to_owned(), &["rbind", "rslave"]));
        mounts.push(bind("/frozen", host.path().to_owned(), &["rbind", "rro", "rprivate"]));
    });
    let finished = run(&prepared, &place.cgroup("web"));
    assert!(finished.output.starts_with("from the host\nfrom the host\nwritten\n"), "{}", finished.output);
    assert!(finished.output.ends_with("frozen\n"), "{}", finished.output);
    assert!(host.path().join("new").exists());
}

#[test]
fn a_read_only_root_leaves_mounts_writable() {
    let place = Place::new("readonly");
    let script = "touch /x || echo root-ro; touch /dev/x && echo dev-rw";
    let prepared = place.container(rootfs().0, script, |spec| spec["root"]["readonly"] = json!(true));
    let output = run(&prepared, &place.cgroup("web")).output;
    assert!(output.contains("root-ro") && output.contains("dev-rw"), "{output}");
}

#[test]
fn programs_that_cannot_be_executed_are_told_apart() {
    let place = Place::new("program");
    let try_args = |name: &str, args: &[&str]| {
        let (root, path) = rootfs();
        std::fs::write(path.join("tmp/text"), "no program").unwrap();
        std::fs::set_permissions(path.join("tmp/text"), std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(path.join("tmp/format"), "no program").unwrap();
        std::fs::set_permissions(path.join("tmp/format"), std::fs::Permissions::from_mode(0o755)).unwrap();
        failure(&place.container(root, "", |spec| spec["process"]["args"] = json!(args)), &place.cgroup(name))
    };
    assert_eq!(try_args("a", &["no-such"]), "exec \"no-such\": executable file not found in $PATH");
    assert_eq!(try_args("b", &["/bin/no-such"]), "exec \"/bin/no-such\": no such file or directory");
    assert_eq!(try_args("c", &["/tmp/text"]), "exec \"/tmp/text\": permission denied");
    assert_eq!(try_args("d", &["/tmp/format"]), "exec \"/tmp/format\": exec format error");
    assert_eq!(try_args("e", &["/tmp"]), "exec \"/tmp\": permission denied");
    assert_eq!(try_args("f", &[""]), "exec \"\": executable file not found in $PATH");
}

#[test]
fn a_step_that_fails_is_named_with_its_object() {
    let place = Place::new("step");
    let add = |name: &str, mount: serde_json::Value| {
        let change = |spec: &mut serde_json::Value| spec["mounts"].as_array_mut().unwrap().push(mount);
        failure(&place.container(rootfs().0, "", change), &place.cgroup(name))
    };
    let below_a_file = json!({"destination": "/bin/busybox/x", "type": "tmpfs"});
    assert_eq!(add("a", below_a_file), "mount /bin/busybox/x (tmpfs): not a directory");
    let bad_option = json!({"destination": "/tmp", "type": "tmpfs", "options": ["size=rubbish"]});
    assert_eq!(add("b", bad_option), "mount /tmp (tmpfs): invalid argument");
    let directory_on_file = json!({"destination": "/bin/busybox", "type": "bind", "source": "/tmp"});
    assert_eq!(add("c", directory_on_file), "mount /bin/busybox (bind): not a directory");
}

#[test]
fn a_working_directory_that_only_root_or_only_the_user_may_enter_will_do() {
    let place = Place::new("workdir");
    for (name, owner) in [("root", 0), ("user", 7)] {
        let (root, path) = rootfs();
        let closed = path.join("closed");
        std::fs::create_dir_all(closed.join("inner")).unwrap();
        std::os::unix::fs::chown(&closed, Some(owner), None).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
        let prepared = place.container(root, "readlink /proc/$$/cwd", |spec| {
            spec["process"]["cwd"] = json!("/closed/inner");
            spec["process"]["user"] = json!({"uid": 7, "gid": 7});
            spec["process"]["capabilities"] = json!({});
        });
        let finished = run(&prepared, &place.cgroup(name));
        assert!(finished.output.starts_with("/closed/inner\n"), "{name}: {finished:?}");
    }
}

#[test]
fn standard_streams_can_be_opened_by_their_user() {
    let place = Place::new("streams");
    let as_user = |spec: &mut serde_json::Value| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        spec["process"]["capabilities"] = json!({});
    };
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; stat -c '%u %a' /dev/null";
    let finished = run(&place.container(rootfs().0, script, as_user), &place.cgroup("web"));
    assert_eq!(finished.output, "out\nerr\n0 666\n");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/dev/null").unwrap()), 0);
}

#[test]
fn a_link_in_an_image_puts_no_mount_into_proc() {
    let place = Place::new("inproc");
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), "ours").unwrap();
    let attach = |spec: &mut serde_json::Value, target: &str, source: std::path::PathBuf| {
        let mount = json!({"destination": target, "type": "bind", "source": source, "options": ["bind"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    };
    for (name, link, target, source) in [
        ("file", "/proc/version", "/link", source.path().join("file")),
        ("dir", "/proc/sys", "/link", source.path().to_owned()),
        ("below", "/proc", "/link/sys", source.path().to_owned()),
    ] {
        let (root, path) = rootfs();
        symlink(link, path.join("link")).unwrap();
        let prepared = place.container(root, "", |spec| attach(spec, target, source));
        let text = failure(&prepared, &place.cgroup(name));
        assert_eq!(text, format!("mount {target} (bind): cross-device link"));
    }
    let prepared = place.container(rootfs().0, "cat /proc/cpuinfo", |spec| {
        attach(spec, "/proc/cpuinfo", source.path().join("file"));
    });
    assert_eq!(run(&prepared, &place.cgroup("meant")).output, "ours");
}

#[test]
fn links_in_an_image_lead_nowhere_outside() {
    let place = Place::new("links");
    let canary = tempfile::tempdir().unwrap();
    let (root, path) = rootfs();
    symlink(canary.path(), path.join("dev")).unwrap();
    symlink(canary.path().join("file"), path.join("etc/hosts")).unwrap();
    symlink(canary.path().join("volume"), path.join("volume")).unwrap();
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("hosts"), "ours").unwrap();
    let prepared = place.container(root, "cat /etc/hosts", |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        let (dir, file) = (source.path(), source.path().join("hosts"));
        mounts
            .push(json!({"destination": "/etc/hosts", "type": "bind", "source": file, "options": ["bind"]}));
        mounts
            .push(json!({"destination": "/volume/deep", "type": "bind", "source": dir, "options": ["bind"]}));
    });
    // A file behind a link into a directory that is missing: made inside the root or refused, nothing else.
    let (stdio, output) = stdio();
    let mut child = start(&prepared, PidNs::Own, Some(place.cgroup("web").as_fd()), stdio).unwrap();
    if matches!(report(&mut child), Report::Ready) {
        child.go().unwrap();
        let _either = report(&mut child);
    }
    finish(&child, output);
    assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 0);
    assert_eq!(std::fs::read_to_string(source.path().join("hosts")).unwrap(), "ours");

    for (name, target) in [("proc", "/tmp"), ("sys", "/proc")] {
        let (root, path) = rootfs();
        symlink(target, path.join(name)).unwrap();
        let text = failure(&place.container(root, "", |_| {}), &place.cgroup(name));
        assert!(text.starts_with(&format!("mount /{name} (")), "{text}");
    }
}

#[test]
fn no_descriptor_becomes_a_working_directory() {
    let place = Place::new("cwd");
    for number in 3..12 {
        let cwd = format!("/proc/self/fd/{number}");
        let prepared = place.container(rootfs().0, "pwd", |spec| spec["process"]["cwd"] = json!(cwd));
        let text = failure(&prepared, &place.cgroup(&number.to_string()));
        assert!(text.contains(&cwd), "{text}");
    }
}

#[test]
fn an_exec_joins_the_container() {
    let place = Place::new("exec");
    let prepared = place.container(rootfs().0, "echo $$ > /tmp/first; echo up; sleep 1000", |_| {});
    let cgroup = place.cgroup("web");
    let (first, _output) = running(&prepared, PidNs::Own, &cgroup);
    let sub = cgroup.sub("exec-1").unwrap();
    let (stdio_of_exec, output) = stdio();
    let script =
        "cat /tmp/first; [ $$ != 1 ] && echo joined; cat /proc/self/cgroup | grep ^0; ls /proc/self/fd; ls /";
    let mut child = exec(&exec_script(script), first.pidfd.as_fd(), sub.as_fd(), stdio_of_exec).unwrap();
    assert!(matches!(report(&mut child), Report::Ready));
    assert!(matches!(report(&mut child), Report::Executed));
    let finished = finish(&child, output);
    assert_eq!(finished.output, "1\njoined\n0::/exec-1\n0\n1\n2\n3\nbin\ndev\netc\nproc\nsys\ntmp\n");
    pidfd_send_signal(&first.pidfd, libc::SIGKILL).unwrap();
    while waitid(&first.pidfd, Wait::Peek).unwrap().is_none() {
        std::thread::yield_now();
    }
    let mut late = exec(&exec_script(""), first.pidfd.as_fd(), sub.as_fd(), stdio().0).unwrap();
    let Report::Failed(error) = report(&mut late) else { panic!("joined what is gone") };
    assert_eq!(error.to_string(), "container exited");
    waitid(&late.pidfd, Wait::Block).unwrap();
    waitid(&first.pidfd, Wait::Block).unwrap();
}

#[test]
fn a_child_that_is_killed_while_it_waits_has_died() {
    let place = Place::new("died");
    let prepared = place.container(rootfs().0, "true", |_| {});
    let mut child = start(&prepared, PidNs::Own, Some(place.cgroup("web").as_fd()), stdio().0).unwrap();
    assert!(matches!(report(&mut child), Report::Ready));
    pidfd_send_signal(&child.pidfd, libc::SIGKILL).unwrap();
    let Report::Failed(error) = report(&mut child) else { panic!("not executed") };
    assert!(matches!(error, LaunchError::Died { .. }));
    assert_eq!(error.to_string(), "init died: wait for the start: killed by signal 9");
    assert_eq!(child.go().unwrap_err(), error);
    waitid(&child.pidfd, Wait::Block).unwrap();
}

#[test]
fn a_child_whose_parent_lets_go_ends() {
    let place = Place::new("letgo");
    let prepared = place.container(rootfs().0, "true", |_| {});
    let mut child = start(&prepared, PidNs::Own, Some(place.cgroup("web").as_fd()), stdio().0).unwrap();
    assert!(matches!(report(&mut child), Report::Ready));
    let pidfd = child.pidfd.try_clone().unwrap();
    drop(child);
    assert_ne!(waitid(&pidfd, Wait::Block).unwrap(), None);
}

#[test]
fn plans_do_not_fit_the_wrong_call() {
    let place = Place::new("fit");
    let cgroup = place.cgroup("web");
    let exec_only = exec_script("true");
    assert!(start(&exec_only, PidNs::Own, Some(cgroup.as_fd()), stdio().0).is_err());
    let container = place.container(rootfs().0, "true", |_| {});
    let own = crisp_sys::process::pidfd_open(std::process::id() as i32).unwrap();
    assert!(exec(&container, own.as_fd(), cgroup.as_fd(), stdio().0).is_err());
}
