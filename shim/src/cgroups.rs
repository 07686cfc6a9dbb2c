//! The cgroup tree by the paths that records hold: cgroups made with mkdir, or by systemd. Which one made a pod's is
//! told by its parent's name, so that a daemon can look after what it made under another configuration.

pub(crate) mod parent;
mod property;
mod scope;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crisp_runtime::cgroup::{Applied, Cgroup, CgroupError, CgroupPath, Hierarchy, Resources};
use tokio::runtime::Handle;

use crate::{
    error::{RequestError, Stage, chain},
    systemd::{self, Systemd, unit},
};

/// How long a cgroup whose processes were killed may take to become empty.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub struct Cgroups {
    hierarchy: Hierarchy,
    /// The topmost cgroups that were made for pods. Held while parents are made or removed: without it, one pod's
    /// removal of the last-used default parent could come between another's steps down the same path.
    made: Mutex<BTreeSet<String>>,
    systemd: Systemd,
    /// For waiting on systemd from threads that block.
    runtime: Handle,
}

/// Whether the cgroup at `path` is a slice: what is below it is systemd's to make.
#[must_use]
pub(crate) fn is_slice(path: &str) -> bool {
    path.ends_with(".slice")
}

/// Path of the cgroup of a container or a pod's init, below that of its pod.
#[must_use]
pub(crate) fn leaf(parent: &str, id: &str) -> String {
    let parent = parent.trim_end_matches('/');
    match is_slice(parent) {
        true => format!("{parent}/{}", unit::scope(id)),
        false => format!("{parent}/{id}"),
    }
}

/// A limit of memory below what is used and cannot be given back kills processes at once. That is not what an update
/// is for; kubelet tries again later.
fn check_room(cgroup: &Cgroup, resources: &Resources) -> Result<(), RequestError> {
    let Ok(limit @ 1..) = u64::try_from(resources.memory_limit) else { return Ok(()) };
    let stats = cgroup.stats().stage("look at its cgroup")?;
    let (Some(current), Some(memory)) = (stats.memory_current, stats.memory) else { return Ok(()) };
    if stats.memory_max.is_some_and(|present| present <= limit) {
        return Ok(());
    }
    // The page cache, without what of it is shared memory, can be written back or dropped.
    let needed = current.saturating_sub(memory.file.saturating_sub(memory.shmem));
    if needed <= limit {
        return Ok(());
    }
    Err(RequestError::invalid(format!(
        "linux.resources.memory_limit_in_bytes: {limit} is less than the {needed} bytes that are in use"
    )))
}

/// A limit that was refused: the client's fault where the value is.
fn limit_error(error: CgroupError) -> RequestError {
    let text = format!("linux.resources.{}", chain(&error));
    if error.is_value() { RequestError::invalid(text) } else { RequestError::unknown(text) }
}

impl Cgroups {
    /// The tree mounted at `root`. To be called in a tokio runtime.
    ///
    /// # Errors
    /// No cgroup v2 is mounted there.
    pub fn open(root: &Path) -> Result<Self, CgroupError> {
        Ok(Self {
            hierarchy: Hierarchy::open(root)?,
            made: Mutex::default(),
            systemd: Systemd::new(Path::new(systemd::SOCKET)),
            runtime: Handle::current(),
        })
    }

    /// Those of `needed` that this host does not have.
    #[must_use]
    pub fn missing<'a>(&self, needed: &[&'a str]) -> Vec<&'a str> {
        self.hierarchy.missing(needed)
    }

    /// The controllers that this host has.
    pub fn controllers(&self) -> impl Iterator<Item = &str> {
        self.hierarchy.controllers().iter().map(String::as_str)
    }

    /// The topmost cgroup that crisp makes for `path`, or has made for another pod below it: whoever is the last there
    /// takes it away, and that need not be whoever made it. `None`: all of `path` is somebody else's.
    ///
    /// # Errors
    /// It is no path of a cgroup.
    pub fn claim(&self, path: &str) -> Result<Option<String>, CgroupError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut current = CgroupPath::new("/")?;
        for component in CgroupPath::new(path)?.components() {
            current = current.join(component)?;
            let name = current.to_string();
            if made.contains(&name) || !current.below(self.hierarchy.root()).exists() {
                made.insert(name.clone());
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Takes note of what a record says was made.
    pub fn reclaim(&self, made: &str) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(made.to_owned());
    }

    /// Makes the cgroup `path` and those above it, as far as they are not there. A slice comes with its first scope.
    ///
    /// # Errors
    /// It is no path of a cgroup, or the kernel refuses.
    pub fn ensure(&self, path: &str) -> Result<(), CgroupError> {
        if is_slice(path) {
            return Ok(());
        }
        let path = CgroupPath::new(path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.name()) else { return Ok(()) };
        let _held = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match self.hierarchy.create(&parent, name) {
            Err(error) if !error.is_exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the cgroup `name` below `parent`.
    ///
    /// # Errors
    /// It is there already, or the kernel refuses.
    pub fn create_in(&self, parent: &str, name: &str) -> Result<Cgroup, CgroupError> {
        self.hierarchy.create(&CgroupPath::new(parent)?, name)
    }

    /// Puts limits on a new cgroup.
    ///
    /// # Errors
    /// `Invalid`, naming the field, when the value is not possible; anything else the kernel refuses. None is in force
    /// then.
    pub fn apply(&self, cgroup: &Cgroup, resources: &Resources) -> Result<(), RequestError> {
        self.limit(cgroup, resources).map_err(limit_error).map(drop)
    }

    fn limit(&self, cgroup: &Cgroup, resources: &Resources) -> Result<Applied, CgroupError> {
        match cgroup.apply(resources) {
            // systemd hands on what it knows, and does not know huge pages.
            Err(CgroupError::MissingController { .. }) if scope::is_scope(&cgroup.path.to_string()) => {
                if let Some(parent) = cgroup.path.parent() {
                    self.hierarchy.pass_on(&parent)?;
                }
                cgroup.apply(resources)
            }
            applied => applied,
        }
    }

    /// Changes the limits of the cgroup `path`, all of them or none, and has them recorded. Blocks.
    ///
    /// # Errors
    /// As [`Self::apply`], and those of `record`, after which the limits are what they were.
    pub fn update(
        &self,
        path: &str,
        resources: &Resources,
        record: impl FnOnce() -> Result<(), RequestError>,
    ) -> Result<(), RequestError> {
        let cgroup = self.open_cgroup(path).stage("open its cgroup")?;
        check_room(&cgroup, resources)?;
        let applied = self.limit(&cgroup, resources).map_err(limit_error)?;
        let told = match scope::is_scope(path) {
            // systemd writes what it makes of them, which is coarser.
            true => self.tell(path, resources).and_then(|()| self.apply(&cgroup, resources)),
            false => Ok(()),
        };
        told.and_then(|()| record()).inspect_err(|_| applied.put_back())
    }

    /// Opens the cgroup `path`.
    ///
    /// # Errors
    /// It is not there.
    pub fn open_cgroup(&self, path: &str) -> Result<Cgroup, CgroupError> {
        self.hierarchy.open_cgroup(&CgroupPath::new(path)?)
    }

    /// The processes in the cgroup `path` and in those below it: what was exec'd sits in one of its own.
    ///
    /// # Errors
    /// It is no path of a cgroup. One that goes away meanwhile has no processes.
    pub fn processes(&self, path: &str) -> Result<Vec<i32>, CgroupError> {
        let mut found = Vec::new();
        let mut left = vec![CgroupPath::new(path)?];
        while let Some(path) = left.pop() {
            let processes = self.hierarchy.open_cgroup(&path).and_then(|cgroup| cgroup.processes());
            // 0 stands for a process outside of this PID namespace.
            found.extend(processes.unwrap_or_default().into_iter().filter(|pid| *pid > 0));
            for name in self.hierarchy.list(&path).unwrap_or_default() {
                left.push(path.join(&name)?);
            }
        }
        Ok(found)
    }

    /// Lets the processes in the cgroup `path` and in those below it run on, if they are frozen there. One that goes away
    /// meanwhile is not.
    ///
    /// # Errors
    /// It is no path of a cgroup, or the kernel refuses.
    pub fn thaw(&self, path: &str) -> Result<(), CgroupError> {
        let mut left = vec![CgroupPath::new(path)?];
        while let Some(path) = left.pop() {
            match self.hierarchy.open_cgroup(&path).and_then(|cgroup| cgroup.thaw()) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
            for name in self.hierarchy.list(&path).unwrap_or_default() {
                left.push(path.join(&name)?);
            }
        }
        Ok(())
    }

    /// The names of the cgroups directly below `path`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn children(&self, path: &str) -> Result<Vec<String>, CgroupError> {
        self.hierarchy.list(&CgroupPath::new(path)?)
    }

    /// Removes the cgroup `path` and those below it; waits for killed processes to be gone. Not there: fine.
    ///
    /// # Errors
    /// Processes are left in it.
    pub fn remove(&self, path: &str) -> Result<(), CgroupError> {
        if scope::is_scope(path) {
            return self.remove_scope(path);
        }
        match self.open_cgroup(path) {
            Ok(cgroup) => cgroup.remove(PATIENCE),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the cgroups from `path` up to `top`, both included, as far as nobody else has something in them. Blocks.
    ///
    /// # Errors
    /// The kernel or systemd refuses for another reason than that they are in use.
    pub fn remove_made(&self, path: &str, top: &str) -> Result<(), RequestError> {
        let top = CgroupPath::new(top).stage("cgroup_parent")?;
        let bottom = CgroupPath::new(path).stage("cgroup_parent")?;
        if is_slice(path) {
            self.stop_slices(&bottom, &top)?;
            self.made.lock().unwrap_or_else(PoisonError::into_inner).remove(&top.to_string());
            return Ok(());
        }
        self.remove_empty(bottom, &top).stage("cgroup_parent")
    }

    fn remove_empty(&self, mut path: CgroupPath, top: &CgroupPath) -> Result<(), CgroupError> {
        let depth = top.components().count();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        while path.components().count() >= depth {
            if !self.hierarchy.list(&path)?.is_empty() {
                return Ok(());
            }
            match self.hierarchy.open_cgroup(&path) {
                Ok(cgroup) => match cgroup.remove(Duration::ZERO) {
                    Err(CgroupError::Populated { .. }) => return Ok(()),
                    other => other?,
                },
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
            let Some(parent) = path.parent() else { return Ok(()) };
            path = parent;
        }
        made.remove(&top.to_string());
        Ok(())
    }
}
