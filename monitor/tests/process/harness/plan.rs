//! What a test runs: the plans of containers and of further processes.

use std::path::Path;

use crisp_monitor::wire::PidNamespace;
use crisp_runtime::plan::{
    Capabilities, Device, Kind, NewMount, Op, PathOnly, Pivot, Plan, Process, RootMount,
};

/// How to create a container.
pub(crate) struct Spec {
    pub(crate) script: String,
    pub(crate) args: Vec<String>,
    pub(crate) pid: PidNamespace,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) target: String,
    pub(crate) terminal: bool,
    /// No /dev is made, the image has one; whether a devpts is mounted in it.
    pub(crate) image_dev: Option<bool>,
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
            stdin_once: false,
            target: String::new(),
            terminal: false,
            image_dev: None,
            line_bytes: 0,
        }
    }

    pub(crate) fn in_pid(mut self, pid: PidNamespace) -> Self {
        self.pid = pid;
        self
    }

    /// In the PID namespace of another container.
    pub(crate) fn in_pid_of(mut self, target: &str) -> Self {
        (self.pid, self.target) = (PidNamespace::Target, target.to_owned());
        self
    }

    pub(crate) fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    pub(crate) fn with_stdin_once(mut self) -> Self {
        (self.stdin, self.stdin_once) = (true, true);
        self
    }

    pub(crate) fn with_terminal(mut self) -> Self {
        self.terminal = true;
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

pub(super) fn container_plan(staging: &Path, spec: &Spec) -> Plan {
    let root =
        RootMount { staging: staging.to_str().unwrap().to_owned(), propagation: libc::MS_PRIVATE, kit: 0 };
    let mount = |target: &str, fstype: &str| {
        Kind::Mount(NewMount {
            target: target.into(),
            fstype: fstype.into(),
            options: if fstype == "devpts" { vec!["mode=0620".into(), "gid=5".into()] } else { Vec::new() },
            attributes: 0,
        })
    };
    let device = |path: &str, minor| {
        let (path, mode) = (path.to_owned(), libc::S_IFCHR | 0o666);
        Kind::Device(Device { path, mode, major: 1, minor, uid: 0, gid: 0, node: 0 })
    };
    let mut ops = vec![Kind::Root(root), mount("/proc", "proc")];
    if spec.image_dev.is_none() {
        ops.push(mount("/dev", "tmpfs"));
    }
    if spec.image_dev != Some(false) {
        ops.push(mount("/dev/pts", "devpts"));
    }
    // A shell opens it for every background job.
    ops.extend([device("/dev/null", 3), device("/dev/zero", 5)]);
    if spec.terminal {
        ops.push(Kind::Console(PathOnly { path: "/dev/console".into() }));
    }
    ops.push(Kind::Pivot(Pivot { readonly: false }));
    Plan {
        ops: ops.into_iter().map(|kind| Op { kind: Some(kind) }).collect(),
        process: Some(Process { terminal: spec.terminal, ..process(spec.args()) }),
        fds: 1,
        cgroup_namespace: true,
        user: None,
    }
}
