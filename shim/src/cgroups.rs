//! The cgroup tree by the paths that records hold, and the parents that crisp makes when a client names none.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crisp_runtime::cgroup::{Cgroup, CgroupError, CgroupPath, Hierarchy};

/// How long a cgroup whose processes were killed may take to become empty.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub struct Cgroups {
    hierarchy: Hierarchy,
    /// Held while parents are made or removed: without it, one pod's removal of the last-used default parent
    /// could come between another's steps down the same path.
    parents: Mutex<()>,
}

impl Cgroups {
    /// The tree mounted at `root`.
    ///
    /// # Errors
    /// No cgroup v2 is mounted there.
    pub fn open(root: &Path) -> Result<Self, CgroupError> {
        Ok(Self { hierarchy: Hierarchy::open(root)?, parents: Mutex::default() })
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

    /// The topmost cgroup of `path` that is not there: what making `path` makes.
    ///
    /// # Errors
    /// It is no path of a cgroup.
    pub fn topmost_missing(&self, path: &str) -> Result<Option<String>, CgroupError> {
        let mut current = CgroupPath::new("/")?;
        for component in CgroupPath::new(path)?.components() {
            current = current.join(component)?;
            if !current.below(self.hierarchy.root()).exists() {
                return Ok(Some(current.to_string()));
            }
        }
        Ok(None)
    }

    /// Makes the cgroup `path` and those above it, as far as they are not there.
    ///
    /// # Errors
    /// It is no path of a cgroup, or the kernel refuses.
    pub fn ensure(&self, path: &str) -> Result<(), CgroupError> {
        let path = CgroupPath::new(path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.name()) else { return Ok(()) };
        let _held = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
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
        match self.open_cgroup(path) {
            Ok(cgroup) => cgroup.remove(PATIENCE),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the cgroups from `path` up to `top`, both included, as far as nobody else has something in them.
    ///
    /// # Errors
    /// The kernel refuses for another reason than that they are in use.
    pub fn remove_made(&self, path: &str, top: &str) -> Result<(), CgroupError> {
        let top = CgroupPath::new(top)?;
        let depth = top.components().count();
        let mut path = CgroupPath::new(path)?;
        let _held = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
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
        Ok(())
    }
}
