//! What a test runs: the plans of containers and of further processes.

use std::path::Path;

use crisp_monitor::wire::PidNamespace;
use crisp_runtime::plan::{Capabilities, Device, Kind, NewMount, Op, Pivot, Plan, Process, RootMount};

/// How to create a container.
pub(crate) struct Spec {
    pub(crate) script: String,
    pub(crate) args: Vec<String>,
    pub(crate) pid: PidNamespace,
    pub(crate) stdin: bool,
    pub(crate) line_bytes: u32,
}

impl Spec {
    /// A container that runs `script` in busybox' shell.
    pub(crate) fn sh(script: &str) -> Self {
        Spec {
            script: script.to_owned(),
            args: Vec::new(),
            pid: PidNamespace::Own,
            stdin: false,
            line_bytes: 0,
        }
    }

    pub(crate) fn in_pid(mut self, pid: PidNamespace) -> Self {
        self.pid = pid;
        self
    }

    pub(crate) fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    pub(super) fn args(&self) -> Vec<Vec<u8>> {
        if self.args.is_empty() {
            ["/bin/busybox", "sh", "-c", &self.script].map(|arg| arg.as_bytes().to_vec()).to_vec()
        } else {
            self.args.iter().map(|arg| arg.as_bytes().to_vec()).collect()
        }
    }
}

pub(super) fn process(args: Vec<Vec<u8>>) -> Process {
    // What container runtimes usually leave: a machine may lack others.
    let usual = 0xa804_25fb;
    Process {
        args,
        env: vec![b"PATH=/bin".to_vec()],
        cwd: "/".into(),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        capabilities: Some(Capabilities {
            bounding: usual,
            effective: usual,
            permitted: usual,
            inheritable: 0,
            ambient: 0,
        }),
        no_new_privs: true,
        oom_score_adj: Some(0),
        rlimits: Vec::new(),
        umask: 0o022,
        ..Process::default()
    }
}

pub(super) fn container_plan(staging: &Path, args: Vec<Vec<u8>>) -> Plan {
    let root =
        RootMount { staging: staging.to_str().unwrap().to_owned(), propagation: libc::MS_PRIVATE, kit: 0 };
    let mount = |target: &str, fstype: &str| {
        Kind::Mount(NewMount {
            target: target.into(),
            fstype: fstype.into(),
            options: Vec::new(),
            attributes: 0,
        })
    };
    let device = |path: &str, minor| {
        let (path, mode) = (path.to_owned(), libc::S_IFCHR | 0o666);
        Kind::Device(Device { path, mode, major: 1, minor, uid: 0, gid: 0, node: 0 })
    };
    let ops = [
        Kind::Root(root),
        mount("/proc", "proc"),
        mount("/dev", "tmpfs"),
        // A shell opens it for every background job.
        device("/dev/null", 3),
        device("/dev/zero", 5),
        Kind::Pivot(Pivot { readonly: false }),
    ];
    Plan {
        ops: ops.into_iter().map(|kind| Op { kind: Some(kind) }).collect(),
        process: Some(process(args)),
        fds: 1,
        cgroup_namespace: true,
        user: None,
    }
}
