//! A root file system with a shell, a cgroup, and a way to run things in them.
//!
//! Children get a mount namespace of their own, so nothing here lands on the host. `clone3` from a test process,
//! which has threads, is safe because the child makes system calls only.

use crate::cgroup::tests::{hierarchy, my_turn};
use crate::cgroup::{Cgroup, CgroupPath, Hierarchy};
use crate::launch::{Child, PidNs, Prepared, Report, Stdio, start};
use crate::oci::{PlanInput, exec_plan, plan};
use crate::userns::IdMappings;
use crisp_sys::mount::{MountAttr, tmpfs};
use crisp_sys::poll::{Interest, Poll};
use crisp_sys::process::{Exited, Wait, waitid};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio as Pipe};
use std::sync::{MutexGuard, OnceLock};
use std::time::{Duration, Instant};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where containers of one test live.
pub(super) struct Place {
    _turn: MutexGuard<'static, ()>,
    hierarchy: Hierarchy,
    top: CgroupPath,
    pub(super) staging: tempfile::TempDir,
    /// The one user namespace of this place.
    user: OnceLock<OwnedFd>,
}

impl Place {
    pub(super) fn new(test: &str) -> Self {
        let turn = my_turn();
        let hierarchy = hierarchy().expect("a writable cgroup v2 hierarchy");
        let top = CgroupPath::new(&format!("/crisp-test-launch-{test}-{}", std::process::id())).unwrap();
        Self { _turn: turn, hierarchy, top, staging: tempfile::tempdir().unwrap(), user: OnceLock::new() }
    }

    pub(super) fn cgroup(&self, name: &str) -> Cgroup {
        self.hierarchy.create(&self.top, name).unwrap()
    }

    /// The user namespace of this place, made with these mappings when it is first asked for.
    pub(super) fn user_namespace(&self, mappings: &IdMappings) -> OwnedFd {
        self.user.get_or_init(|| user_namespace(mappings)).try_clone().unwrap()
    }

    /// Prepares a container; `change` edits the spec.
    pub(super) fn container(&self, root: OwnedFd, script: &str, change: impl FnOnce(&mut Value)) -> Prepared {
        let mut value = spec(script);
        change(&mut value);
        let spec = serde_json::from_value(value).unwrap();
        let input = PlanInput { staging: self.staging.path().to_owned() };
        let mut planned = plan(&spec, &input).unwrap();
        let mut fds = vec![root];
        fds.extend(planned.open_sources(Vec::new(), &|mappings| Ok(self.user_namespace(mappings))).unwrap());
        let memfd = planned.plan.to_memfd().unwrap();
        Prepared::decode(memfd.as_fd(), fds).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Ok(top) = self.hierarchy.open_cgroup(&self.top) {
            let _killed = top.kill();
            let removed = top.remove(PATIENCE);
            assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
        }
    }
}

/// A user namespace with these mappings, made by a process that is gone when this returns.
pub(super) fn user_namespace(mappings: &IdMappings) -> OwnedFd {
    let mut maker = Command::new("unshare")
        .args(["--user", "cat"])
        .stdin(Pipe::piped())
        .stdout(Pipe::piped())
        .spawn()
        .unwrap();
    // What cat sends back says that unshare is done.
    maker.stdin.as_mut().unwrap().write_all(b".").unwrap();
    maker.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    for (file, list) in [("gid_map", &mappings.gids), ("uid_map", &mappings.uids)] {
        let lines: String =
            list.iter().map(|one| format!("{} {} {}\n", one.container, one.host, one.length)).collect();
        std::fs::write(format!("/proc/{}/{file}", maker.id()), lines).unwrap();
    }
    let namespace = File::open(format!("/proc/{}/ns/user", maker.id())).unwrap();
    drop(maker.stdin.take());
    maker.wait().unwrap();
    namespace.into()
}

/// A fresh tmpfs with busybox in /bin.
pub(super) fn rootfs() -> (OwnedFd, PathBuf) {
    let root = tmpfs(&[("mode", "0755")], MountAttr::empty()).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
    for dir in ["bin", "etc", "tmp"] {
        std::fs::create_dir(path.join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", path.join("bin/busybox")).expect("a static /bin/busybox");
    for name in [
        "sh", "cat", "ls", "id", "sleep", "stat", "mount", "kill", "grep", "head", "readlink", "nc", "touch",
        "ps",
    ] {
        symlink("busybox", path.join("bin").join(name)).unwrap();
    }
    (root, path)
}

fn spec(script: &str) -> Value {
    let caps = ["CAP_CHOWN", "CAP_SETUID", "CAP_KILL"];
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/sbin:/bin"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps}
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/proc/scsi", "/sys/firmware", "/etc/secret", "/nowhere"],
            "readonlyPaths": ["/proc/sys", "/nowhere"]
        }
    })
}

/// Prepares an exec of a shell script.
pub(super) fn exec_script(script: &str) -> Prepared {
    exec_script_in(None, script)
}

/// Prepares an exec of a shell script in a container with a user namespace.
pub(super) fn exec_script_in(user: Option<&IdMappings>, script: &str) -> Prepared {
    let process =
        json!({"args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
    Prepared::new(exec_plan(&serde_json::from_value(process).unwrap(), None, user).unwrap(), Vec::new())
        .unwrap()
}

/// Standard input from /dev/null, output and errors into one pipe, whose other end is returned.
pub(super) fn stdio() -> (Stdio, File) {
    let (reader, writer) = crisp_sys::fd::pipe2(false).unwrap();
    let stdin = File::open("/dev/null").unwrap().into();
    (Stdio { stdin, stdout: writer.try_clone().unwrap(), stderr: writer }, reader.into())
}

/// Waits for the child's next report.
pub(super) fn report(child: &mut Child) -> Report {
    let poll = Poll::new().unwrap();
    poll.add(&child.report, 0, Interest::Read).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut events = Vec::new();
    loop {
        if let Some(report) = child.read_report().unwrap() {
            return report;
        }
        assert!(Instant::now() < deadline, "no report");
        poll.wait(&mut events, Some(PATIENCE)).unwrap();
    }
}

/// What a finished process left.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) output: String,
    pub(super) exited: Exited,
}

/// Reads all output, reaps.
pub(super) fn finish(child: &Child, mut output: File) -> Finished {
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    Finished { output: text, exited: waitid(&child.pidfd, Wait::Block).unwrap().unwrap() }
}

/// Starts a container, lets it go, and waits for its end.
pub(super) fn run(prepared: &Prepared, cgroup: &Cgroup) -> Finished {
    let (stdio, output) = stdio();
    let mut child = start(prepared, PidNs::Own, Some(cgroup.as_fd()), stdio).unwrap();
    let ready = report(&mut child);
    assert!(matches!(ready, Report::Ready), "{ready:?}");
    child.go().unwrap();
    let executed = report(&mut child);
    assert!(matches!(executed, Report::Executed), "{executed:?}");
    finish(&child, output)
}

/// Starts a container that must fail, before or after the word to go; the error's text.
pub(super) fn failure(prepared: &Prepared, cgroup: &Cgroup) -> String {
    let (stdio, output) = stdio();
    let mut child = start(prepared, PidNs::Own, Some(cgroup.as_fd()), stdio).unwrap();
    let mut news = report(&mut child);
    if matches!(news, Report::Ready) {
        child.go().unwrap();
        news = report(&mut child);
    }
    let finished = finish(&child, output);
    match news {
        Report::Failed(error) => error.to_string(),
        other => panic!("{other:?}, then {finished:?}"),
    }
}

/// Starts a container and leaves it running; `marker` is the first line of its output.
pub(super) fn running(prepared: &Prepared, pid: PidNs<'_>, cgroup: &Cgroup) -> (Child, File) {
    let (stdio, mut output) = stdio();
    let mut child = start(prepared, pid, Some(cgroup.as_fd()), stdio).unwrap();
    let news = report(&mut child);
    assert!(matches!(news, Report::Ready), "{news:?}");
    child.go().unwrap();
    let news = report(&mut child);
    assert!(matches!(news, Report::Executed), "{news:?}");
    let mut byte = [0; 1];
    while output.read(&mut byte).unwrap() == 1 && byte != *b"\n" {}
    (child, output)
}
