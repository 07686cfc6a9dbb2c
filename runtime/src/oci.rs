//! OCI runtime spec to plan: a pure function, checked before any privilege is used.
//!
//! Every field that is set and not implemented is an error that names it: a profile that is silently not applied
//! is worse than a container that does not start. The parts of a spec that are not the child's work are left to
//! the caller: `linux.resources` and `linux.cgroupsPath` ([`resources`] gives the limits, [`device_rules`] who may use
//! which device), the PID, network, IPC and UTS namespaces, `root.path` (the root comes as a descriptor) and annotations.
//!
//! With a user namespace in the spec all ids are ids inside of it, with one exception: `uid` and `gid` of a listed device
//! are the host's. A node that belongs to the host's root stays out of reach for the container's, as it is with runtimes
//! that bind the host's own node.
//!
//! Must not know: CRI, files of the host.

mod devices;
mod mounts;
mod process;
mod refuse;
mod resources;
mod user;

pub use mounts::hides_proc;
pub use process::exec_plan;
pub use resources::{device_rules, resources};
pub use user::id_mappings;

use crate::error::PlanError;
use crate::mounts::{Ready, Source};
use crate::nodes::Made;
use crate::plan::{self, Directory, Kind, Op, PathOnly, Pivot, Plan, RootMount};
use crate::userns::IdMappings;
use crisp_sys::mount::Propagation;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What a plan needs besides the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanInput {
    /// An existing directory of the host, on which the root is attached for the moment before the pivot, in the
    /// child's own mount namespace.
    pub staging: PathBuf,
}

/// A plan and the mount sources it refers to.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Descriptor 0 is the root mount, descriptor 1 + n is source n; then what is made, then the user namespace.
    pub plan: Plan,
    /// The bind mounts' sources, in order.
    pub sources: Vec<Source>,
    /// What the child may not make itself.
    pub made: Vec<Made>,
    /// The mapping of the container's user namespace, if it has one.
    pub user: Option<IdMappings>,
}

impl Planned {
    /// Opens or makes all descriptors of the plan but the root's, in order, and notes in the plan which sources are
    /// directories. Those in `ready` have been opened by the caller: detached mounts, taken by path and target.
    /// `namespace` gives a user namespace with a mapping, for id-mapped mounts and for the container.
    ///
    /// # Errors
    /// The first path that cannot be opened or id-mapped; a mount in `ready` that the plan has no place for; the first
    /// thing that cannot be made.
    pub fn open_sources(
        &mut self,
        mut ready: Vec<Ready>,
        namespace: NamespaceFor<'_>,
    ) -> Result<Vec<OwnedFd>, PlanError> {
        let mut opened = Vec::with_capacity(self.sources.len());
        for source in &self.sources {
            let at = ready.iter().position(|it| it.path == source.path && it.target == source.target);
            opened.push(match at {
                Some(at) => source.finish(ready.remove(at).fd, namespace)?,
                None => source.open(namespace)?,
            });
        }
        if let Some(left) = ready.first() {
            return Err(PlanError::invalid(format!("mounts[{}]", left.target), "has no place in the plan"));
        }
        for op in &mut self.plan.ops {
            if let Some(Kind::Attach(attach)) = &mut op.kind {
                let source = (attach.fd as usize).checked_sub(1).and_then(|index| opened.get(index));
                // What is not among the sources was made, and its plan says what it is.
                attach.directory = source.map_or(attach.directory, |source| source.directory);
            }
        }
        let mut fds: Vec<OwnedFd> = opened.into_iter().map(|source| source.fd).collect();
        for made in &self.made {
            fds.push(made.make()?);
        }
        if let Some(mappings) = &self.user {
            fds.push(namespace(mappings)?);
        }
        Ok(fds)
    }
}

/// Gives a descriptor of a user namespace with a mapping.
pub type NamespaceFor<'a> = &'a dyn Fn(&IdMappings) -> Result<OwnedFd, PlanError>;

/// Plans the start of a container.
///
/// # Errors
/// [`PlanError::Unsupported`] for a field that is set and not implemented, [`PlanError::Invalid`] for a value that
/// makes no sense; both name the field.
pub fn plan(spec: &Spec, input: &PlanInput) -> Result<Planned, PlanError> {
    refuse::unsupported(spec)?;
    let linux = spec.linux().as_ref().ok_or_else(|| PlanError::invalid("linux", "missing"))?;
    let process = spec.process().as_ref().ok_or_else(|| PlanError::invalid("process", "missing"))?;
    let cgroup_namespace = namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
    let user = id_mappings(linux)?;
    if let Some(limits) = linux.resources() {
        resources(limits)?;
        // Checked only: a BPF program of the cgroup holds them, and whoever makes the cgroup attaches it.
        device_rules(limits.devices().as_deref().unwrap_or_default())?;
    }
    let mut kinds = vec![Kind::Root(RootMount {
        staging: text("staging", &input.staging)?,
        propagation: root_propagation(linux.rootfs_propagation().as_deref())?,
        kit: 0,
    })];
    let mut sources = Vec::new();
    let list = spec.mounts().as_deref().unwrap_or_default();
    mounts::plan(list, &mut kinds, &mut sources)?;
    let devices = linux.devices().as_deref().unwrap_or_default();
    devices::plan(list, devices, user.as_ref(), &mut kinds)?;
    let process = process::plan(process, "process", linux.seccomp().as_ref())?;
    if process.terminal {
        kinds.push(Kind::Console(PathOnly { path: "/dev/console".to_owned() }));
    }
    // Before anything becomes read-only.
    kinds.push(Kind::Directory(Directory { path: process.cwd.clone(), mode: 0o755 }));
    let paths =
        |field: &str, list: &Option<Vec<String>>| unique_paths(field, list.as_deref().unwrap_or_default());
    let readonly = paths("linux.readonlyPaths", linux.readonly_paths())?;
    kinds.extend(readonly.into_iter().map(|path| Kind::Readonly(PathOnly { path })));
    // After the read-only binds: those copy what is mounted below them.
    let masked = paths("linux.maskedPaths", linux.masked_paths())?;
    kinds.extend(masked.into_iter().map(|path| Kind::Mask(PathOnly { path })));
    let root = spec.root().as_ref().ok_or_else(|| PlanError::invalid("root", "missing"))?;
    kinds.push(Kind::Pivot(Pivot { readonly: root.readonly().unwrap_or(false) }));
    let mut fds = sources.len() as u32 + 1;
    let mut made = Vec::new();
    let inside = match &user {
        None => None,
        Some(mappings) => {
            made = user::made_outside(&mut kinds, fds, mappings)?;
            fds += made.len() as u32 + 1;
            Some(plan::User { fd: fds - 1, host_uid: user::host_uid(mappings, &process)? })
        }
    };
    let ops = kinds.into_iter().map(|kind| Op { kind: Some(kind) }).collect();
    let plan = Plan { ops, process: Some(process), fds, cgroup_namespace, user: inside };
    Ok(Planned { plan, sources, made, user })
}

/// Whether the container gets a cgroup namespace of its own.
fn namespaces(list: &[oci_spec::runtime::LinuxNamespace]) -> Result<bool, PlanError> {
    let mut seen = BTreeSet::new();
    for namespace in list {
        let kind = namespace.typ();
        let field = format!("linux.namespaces[{kind}]");
        if !seen.insert(kind.to_string()) {
            return Err(PlanError::invalid(field, "given twice"));
        }
        match kind {
            LinuxNamespaceType::Mount | LinuxNamespaceType::Cgroup | LinuxNamespaceType::User => {
                if let Some(path) = namespace.path() {
                    return Err(PlanError::unsupported(format!("{field}.path"), path.to_string_lossy()));
                }
            }
            LinuxNamespaceType::Time => {
                return Err(PlanError::unsupported(field, ""));
            }
            // Made or joined by the caller, who is the parent.
            LinuxNamespaceType::Pid
            | LinuxNamespaceType::Network
            | LinuxNamespaceType::Ipc
            | LinuxNamespaceType::Uts => {}
        }
    }
    if !seen.contains(&LinuxNamespaceType::Mount.to_string()) {
        return Err(PlanError::invalid("linux.namespaces", "a container without a mount namespace"));
    }
    Ok(seen.contains(&LinuxNamespaceType::Cgroup.to_string()))
}

fn root_propagation(text: Option<&str>) -> Result<u64, PlanError> {
    match text {
        None | Some("" | "private" | "rprivate") => Ok(Propagation::Private.bits()),
        Some("slave" | "rslave") => Ok(Propagation::Slave.bits()),
        Some("shared" | "rshared") => Ok(Propagation::Shared.bits()),
        Some(other) => Err(PlanError::unsupported("linux.rootfsPropagation", other)),
    }
}

/// Absolute paths, each once, in the given order.
fn unique_paths(field: &str, list: &[String]) -> Result<Vec<String>, PlanError> {
    let mut seen = BTreeSet::new();
    let mut unique = Vec::new();
    for path in list {
        if !path.starts_with('/') {
            return Err(PlanError::invalid(field, format!("{path:?} is not absolute")));
        }
        if seen.insert(path) {
            unique.push(path.clone());
        }
    }
    Ok(unique)
}

/// A path as text: plans carry UTF-8.
fn text(field: &str, path: &std::path::Path) -> Result<String, PlanError> {
    match path.to_str() {
        Some(text) if text.starts_with('/') => Ok(text.to_owned()),
        Some(text) => Err(PlanError::invalid(field, format!("{text:?} is not absolute"))),
        None => Err(PlanError::invalid(field, "not UTF-8")),
    }
}

#[cfg(test)]
mod tests;
