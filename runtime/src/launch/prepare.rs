//! Plan to prepared data: everything the child needs, in the form in which it hands it to the kernel.
//!
//! This is also where a plan that came from elsewhere is checked: absolute paths, no NUL bytes, descriptor
//! numbers within what came along, the root first and the pivot last.

use crate::error::PlanError;
use crate::plan::{self, Capabilities, Kind, Plan, Rlimit};
use crisp_sys::raw::process::StringArray;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Largest plan, in bytes.
const MAX_PLAN: usize = 4 * 1024 * 1024;
/// Longest seccomp program that the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// Where a program without a slash is looked for when the environment has no `PATH` (execvp(3) does the same).
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// A plan with its descriptors, ready to be run by a child.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) plan: Arc<Plan>,
    pub(crate) ready: Ready,
}

/// What the child reads.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) ops: Vec<Op>,
    pub(crate) task: Task,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) cgroup_namespace: bool,
    pub(crate) user: Option<User>,
}

/// The user namespace of the process; see [`plan::User`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    /// Index of its descriptor; `None` for an exec, which takes the container's.
    pub(crate) fd: Option<usize>,
    pub(crate) host_uid: u32,
}

/// An operation in the kernel's terms; see [`plan::Kind`].
#[derive(Debug)]
pub(crate) enum Op {
    Root { staging: CString, host_propagation: u64, masks: bool, kit: Option<usize> },
    Mount(MountAt),
    Attach(AttachAt),
    Device(DeviceAt),
    Symlink { at: Parent, target: CString },
    Mask { path: CString },
    Readonly { path: CString },
    Directory { path: Vec<u8>, mode: u32 },
    Console { path: CString },
    Pivot { readonly: bool, shared: bool },
}

#[derive(Debug)]
pub(crate) struct MountAt {
    pub(crate) path: CString,
    pub(crate) target: Vec<u8>,
    pub(crate) fstype: CString,
    pub(crate) options: Vec<(CString, Option<CString>)>,
    pub(crate) attributes: u64,
    /// Symbolic links in the target are refused: nobody may choose where procfs and sysfs go (CVE-2023-27561).
    pub(crate) strict: bool,
}

#[derive(Debug)]
pub(crate) struct AttachAt {
    pub(crate) fd: usize,
    pub(crate) target: Parent,
    pub(crate) path: CString,
    pub(crate) directory: bool,
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) recursive: bool,
    pub(crate) propagation: u64,
    pub(crate) propagation_recursive: bool,
    pub(crate) set_recursive: u64,
}

#[derive(Debug)]
pub(crate) struct DeviceAt {
    pub(crate) at: Parent,
    pub(crate) mode: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bound from the kit instead of made.
    pub(crate) bound: Option<Bound>,
}

/// A device node of the kit.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Its name there.
    pub(crate) name: CString,
    /// Where it goes.
    pub(crate) path: CString,
}

/// A path taken apart.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) whole: Vec<u8>,
    pub(crate) parent: Vec<u8>,
    pub(crate) name: CString,
}

/// The process in the kernel's terms; see [`plan::Process`].
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) candidates: Vec<CString>,
    pub(crate) args: StringArray,
    pub(crate) env: StringArray,
    pub(crate) cwd: CString,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) capabilities: Capabilities,
    pub(crate) no_new_privs: bool,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) umask: u32,
    pub(crate) seccomp: Vec<libc::sock_filter>,
    pub(crate) seccomp_flags: u32,
    /// What is written to `attr/apparmor/exec`: `exec NAME`.
    pub(crate) apparmor: Option<Vec<u8>>,
    pub(crate) terminal: bool,
    /// The filter allows all that is left to do after it when a process is born into a PID namespace of others.
    pub(crate) filter_allows_crossing: bool,
}

impl Prepared {
    /// Reads a plan from a sealed memory file and makes it ready. `fds` are the plan's descriptors in order: for a
    /// container the root mount, then the mount sources; for an exec none.
    ///
    /// # Errors
    /// [`PlanError::Sys`] when the file is not sealed (its content could change after the check) or too large,
    /// [`PlanError::Decode`] and [`PlanError::Invalid`] when it is no usable plan.
    pub fn decode(plan_memfd: BorrowedFd<'_>, fds: Vec<OwnedFd>) -> Result<Self, PlanError> {
        let bytes = crisp_sys::fd::read_sealed(plan_memfd, MAX_PLAN)?;
        Self::new(Plan::from_bytes(&bytes)?, fds)
    }

    /// As [`Self::decode`], from a plan in memory.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] when it is no usable plan.
    pub fn new(plan: Plan, fds: Vec<OwnedFd>) -> Result<Self, PlanError> {
        if fds.len() != plan.fds as usize {
            let reason = format!("{} descriptors needed, {} given", plan.fds, fds.len());
            return Err(PlanError::invalid("fds", reason));
        }
        if fds.iter().any(|fd| fd.as_raw_fd() <= 2) {
            return Err(PlanError::invalid("fds", "0 to 2 must stay open in the launching process"));
        }
        let ops = ops(&plan)?;
        let process = plan.process.as_ref().ok_or_else(|| PlanError::invalid("process", "missing"))?;
        let task = task(process)?;
        let user = user(&plan)?;
        let consoles = ops.iter().filter(|op| matches!(op, Op::Console { .. })).count();
        if consoles != usize::from(task.terminal && !ops.is_empty()) {
            let reason = format!("{consoles} operations that open it");
            return Err(PlanError::invalid("process.terminal", reason));
        }
        let cgroup_namespace = plan.cgroup_namespace;
        Ok(Self { plan: Arc::new(plan), ready: Ready { ops, task, fds, cgroup_namespace, user } })
    }

    /// The user namespace that the plan's container is born into.
    pub(crate) fn user_namespace(&self) -> Option<BorrowedFd<'_>> {
        let index = self.ready.user.and_then(|user| user.fd)?;
        self.ready.fds.get(index).map(AsFd::as_fd)
    }

    /// A limit that the program gets unless the plan sets that one: for a launching process that has raised its own
    /// and must not hand that on.
    pub fn limit_by_default(&mut self, limit: Rlimit) {
        let limits = &mut self.ready.task.rlimits;
        if limits.iter().all(|planned| planned.resource != limit.resource) {
            // Behind those of the plan, whose places reports of failures name.
            limits.push(limit);
        }
    }

    /// Whether the process gets a terminal and no pipes.
    pub fn has_terminal(&self) -> bool {
        self.ready.task.terminal
    }

    /// The container's root mount, for exec look-ups; the other descriptors are closed. `None` for an exec.
    pub fn into_root(self) -> Option<OwnedFd> {
        self.ready.fds.into_iter().next()
    }
}

/// A container needs a descriptor of its user namespace, an exec has none.
fn user(plan: &Plan) -> Result<Option<User>, PlanError> {
    let Some(user) = &plan.user else { return Ok(None) };
    let fd = match (plan.ops.is_empty(), user.fd) {
        (true, 0) => None,
        (false, fd) if fd > 0 && fd < plan.fds => Some(fd as usize),
        (_, fd) => {
            return Err(PlanError::invalid("user", format!("descriptor {fd} of {}", plan.fds)));
        }
    };
    Ok(Some(User { fd, host_uid: user.host_uid }))
}

fn ops(plan: &Plan) -> Result<Vec<Op>, PlanError> {
    let kinds: Option<Vec<&Kind>> = plan.ops.iter().map(|op| op.kind.as_ref()).collect();
    // A kind that a newer daemon knows and this monitor does not decodes to nothing.
    let kinds = kinds.ok_or_else(|| PlanError::invalid("ops", "an operation of an unknown kind"))?;
    let ends_right = matches!(kinds.as_slice(), [] | [Kind::Root(_), .., Kind::Pivot(_)]);
    let inner = kinds.get(1..kinds.len().saturating_sub(1)).unwrap_or_default();
    if !ends_right || inner.iter().any(|kind| matches!(kind, Kind::Root(_) | Kind::Pivot(_))) {
        return Err(PlanError::invalid("ops", "the root must come first and the pivot last, once each"));
    }
    if kinds.len() > usize::from(u16::MAX) {
        return Err(PlanError::invalid("ops", "too many"));
    }
    let masks = kinds.iter().any(|kind| matches!(kind, Kind::Mask(_)));
    let shared = kinds.iter().any(|kind| match kind {
        Kind::Root(root) => root.propagation == libc::MS_SHARED,
        _ => false,
    });
    kinds.into_iter().map(|kind| op(kind, plan.fds, masks, shared)).collect()
}

fn op(kind: &Kind, fds: u32, masks: bool, shared: bool) -> Result<Op, PlanError> {
    Ok(match kind {
        Kind::Root(root) => {
            if fds == 0 {
                return Err(PlanError::invalid("ops.root", "no descriptor for it"));
            }
            Op::Root {
                staging: path(&root.staging)?,
                // Never shared: what is attached to the staging directory would appear on the host.
                host_propagation: match root.propagation {
                    0 | libc::MS_PRIVATE => libc::MS_PRIVATE,
                    libc::MS_SLAVE | libc::MS_SHARED => libc::MS_SLAVE,
                    other => return Err(PlanError::invalid("ops.root", format!("propagation {other:#x}"))),
                },
                masks,
                kit: match root.kit {
                    0 => None,
                    fd if fd < fds => Some(fd as usize),
                    fd => {
                        return Err(PlanError::invalid("ops.root.kit", format!("descriptor {fd} of {fds}")));
                    }
                },
            }
        }
        Kind::Mount(new) => Op::Mount(MountAt {
            path: path(&new.target)?,
            target: path(&new.target)?.into_bytes(),
            fstype: string("ops.mount.fstype", new.fstype.as_bytes())?,
            options: new.options.iter().map(|option| fs_option(option)).collect::<Result<_, _>>()?,
            attributes: new.attributes,
            strict: matches!(new.fstype.as_str(), "proc" | "sysfs"),
        }),
        Kind::Attach(attach) => {
            if attach.fd == 0 || attach.fd >= fds {
                return Err(PlanError::invalid("ops.attach", format!("descriptor {} of {fds}", attach.fd)));
            }
            Op::Attach(AttachAt {
                fd: attach.fd as usize,
                target: parent(&attach.target)?,
                path: path(&attach.target)?,
                directory: attach.directory,
                set: attach.set,
                clear: attach.clear,
                recursive: attach.recursive,
                propagation: attach.propagation,
                propagation_recursive: attach.propagation_recursive,
                set_recursive: attach.set_recursive,
            })
        }
        Kind::Device(device) => Op::Device(device_at(device)?),
        Kind::Symlink(link) => Op::Symlink {
            at: parent(&link.path)?,
            target: string("ops.symlink.target", link.target.as_bytes())?,
        },
        Kind::Mask(hidden) => Op::Mask { path: path(&hidden.path)? },
        Kind::Readonly(readonly) => Op::Readonly { path: path(&readonly.path)? },
        Kind::Directory(directory) => {
            Op::Directory { path: path(&directory.path)?.into_bytes(), mode: directory.mode & 0o7777 }
        }
        Kind::Console(console) => Op::Console { path: path(&console.path)? },
        Kind::Pivot(pivot) => Op::Pivot { readonly: pivot.readonly, shared },
    })
}

fn device_at(device: &plan::Device) -> Result<DeviceAt, PlanError> {
    if !matches!(device.mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO) {
        return Err(PlanError::invalid(format!("device {}", device.path), "not a device"));
    }
    Ok(DeviceAt {
        at: parent(&device.path)?,
        mode: device.mode,
        major: device.major,
        minor: device.minor,
        uid: device.uid,
        gid: device.gid,
        bound: match device.node {
            0 => None,
            node => Some(Bound { name: crate::nodes::name(node)?, path: path(&device.path)? }),
        },
    })
}

fn fs_option(option: &str) -> Result<(CString, Option<CString>), PlanError> {
    let field = "ops.mount.options";
    Ok(match option.split_once('=') {
        Some((key, value)) => (string(field, key.as_bytes())?, Some(string(field, value.as_bytes())?)),
        None => (string(field, option.as_bytes())?, None),
    })
}

fn string(field: &str, bytes: &[u8]) -> Result<CString, PlanError> {
    CString::new(bytes).map_err(|_| PlanError::invalid(field, "holds a NUL byte"))
}

/// An absolute path that the kernel can take.
fn path(text: &str) -> Result<CString, PlanError> {
    if !text.starts_with('/') {
        return Err(PlanError::invalid(format!("path {text:?}"), "not absolute"));
    }
    if text.len() >= crisp_sys::raw::path::PATH_MAX {
        return Err(PlanError::invalid("path", format!("{} bytes long", text.len())));
    }
    string(&format!("path {text:?}"), text.as_bytes())
}

fn parent(text: &str) -> Result<Parent, PlanError> {
    let whole = path(text)?.into_bytes();
    let trimmed = text.trim_end_matches('/');
    let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", ""));
    if matches!(name, ".." | ".") {
        return Err(PlanError::invalid(format!("path {text:?}"), "names no file"));
    }
    let parent = format!("{parent}/").into_bytes();
    Ok(Parent { whole, parent, name: string("path", name.as_bytes())? })
}

fn task(process: &plan::Process) -> Result<Task, PlanError> {
    let field = |name: &'static str| move |bytes: &Vec<u8>| string(name, bytes);
    let args: Vec<CString> = process.args.iter().map(field("process.args")).collect::<Result<_, _>>()?;
    let env: Vec<CString> = process.env.iter().map(field("process.env")).collect::<Result<_, _>>()?;
    let Some(program) = args.first() else { return Err(PlanError::invalid("process.args", "empty")) };
    let seccomp = instructions(&process.seccomp)?;
    Ok(Task {
        candidates: candidates(program.as_bytes(), &process.env)?,
        args: StringArray::new(args),
        env: StringArray::new(env),
        cwd: path(&process.cwd)?,
        uid: process.uid,
        gid: process.gid,
        groups: process.groups.clone(),
        capabilities: process.capabilities.unwrap_or_default(),
        no_new_privs: process.no_new_privs,
        oom_score_adj: process.oom_score_adj,
        rlimits: process.rlimits.clone(),
        umask: process.umask & 0o777,
        filter_allows_crossing: allows_crossing(&seccomp, process),
        seccomp,
        seccomp_flags: process.seccomp_flags,
        apparmor: apparmor(&process.apparmor)?,
        terminal: process.terminal,
    })
}

/// The request for a profile as the kernel takes it (see `init::label`).
fn apparmor(profile: &str) -> Result<Option<Vec<u8>>, PlanError> {
    if profile.len() > crate::init::label::MAX_NAME || profile.contains(['\n', '\0']) {
        return Err(PlanError::invalid("process.apparmor", "not one short line"));
    }
    Ok((!profile.is_empty()).then(|| format!("exec {profile}").into_bytes()))
}

/// See `init::crossing`.
fn allows_crossing(filter: &[libc::sock_filter], process: &plan::Process) -> bool {
    let sibling = crisp_sys::raw::process::SIBLING_FLAGS as u64;
    let always = [
        (libc::SYS_clone, sibling),
        (libc::SYS_setsid, 0),
        (libc::SYS_write, 0),
        (libc::SYS_read, 0),
        (libc::SYS_execve, 0),
    ];
    let terminal = process.terminal.then_some((libc::SYS_ioctl, 0));
    let privileged = (!process.no_new_privs).then_some((libc::SYS_capset, 0));
    let mut calls = always.into_iter().chain(terminal).chain(privileged);
    filter.is_empty() || calls.all(|(call, first)| super::filter::allows(filter, call, first))
}

/// A seccomp program as the kernel takes it.
pub(super) fn instructions(bytes: &[u8]) -> Result<Vec<libc::sock_filter>, PlanError> {
    let (whole, rest) = bytes.as_chunks::<{ size_of::<libc::sock_filter>() }>();
    if !rest.is_empty() || whole.len() > MAX_INSTRUCTIONS {
        return Err(PlanError::invalid("process.seccomp", format!("{} bytes are no program", bytes.len())));
    }
    let instruction = |&[a, b, jt, jf, c, d, e, f]: &[u8; 8]| libc::sock_filter {
        code: u16::from_ne_bytes([a, b]),
        jt,
        jf,
        k: u32::from_ne_bytes([c, d, e, f]),
    };
    Ok(whole.iter().map(instruction).collect())
}

/// The paths to try, in order. With a slash in its name a program is where it says, else in one of PATH's
/// directories; an empty entry means the working directory.
fn candidates(program: &[u8], env: &[Vec<u8>]) -> Result<Vec<CString>, PlanError> {
    if program.is_empty() {
        // execve("") is ENOENT, and so is this.
        return Ok(Vec::new());
    }
    if program.contains(&b'/') {
        return Ok(vec![string("process.args", program)?]);
    }
    // The last assignment counts, as for a process that reads its environment into a map.
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    path.split(|&byte| byte == b':')
        .map(|dir| {
            let mut candidate = if dir.is_empty() { b".".to_vec() } else { dir.to_vec() };
            candidate.push(b'/');
            candidate.extend_from_slice(program);
            string("process.args", &candidate)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(program: &[u8], path: &str) -> Vec<String> {
        let env = [format!("PATH={path}").into_bytes()];
        let found = candidates(program, &env).unwrap();
        found.into_iter().map(|text| text.into_string().unwrap()).collect()
    }

    #[test]
    fn programs_are_searched_as_execvp_does() {
        assert_eq!(texts(b"sh", "/a:/b"), ["/a/sh", "/b/sh"]);
        assert_eq!(texts(b"sh", ":/b"), ["./sh", "/b/sh"]);
        assert_eq!(texts(b"./sh", "/a"), ["./sh"]);
        assert_eq!(candidates(b"sh", &[]).unwrap().len(), 2);
        assert!(texts(b"", "/a").is_empty());
    }

    #[test]
    fn paths_are_taken_apart() {
        let at = parent("/dev/pts/ptmx").unwrap();
        assert_eq!((at.parent.as_slice(), at.name.as_bytes()), (&b"/dev/pts/"[..], &b"ptmx"[..]));
        assert_eq!(parent("/data").unwrap().parent, b"/");
        assert!(parent("/data/..").is_err());
        assert!(parent("data").is_err());
        assert!(parent("/da\0ta").is_err());
    }

    #[test]
    fn a_plan_without_its_root_or_with_too_few_descriptors_is_refused() {
        let process =
            plan::Process { args: vec![b"/x".to_vec()], cwd: "/".into(), ..plan::Process::default() };
        let pivot = plan::Op { kind: Some(Kind::Pivot(plan::Pivot { readonly: false })) };
        let plan = Plan { ops: vec![pivot], process: Some(process.clone()), ..Plan::default() };
        assert!(Prepared::new(plan, Vec::new()).unwrap_err().to_string().contains("root must come first"));
        let plan = Plan { fds: 1, process: Some(process), ..Plan::default() };
        let error = Prepared::new(plan, Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "fds: 1 descriptors needed, 0 given");
    }
}
