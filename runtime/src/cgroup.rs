//! Control groups, version 2 (Documentation/admin-guide/cgroup-v2.rst of the kernel).
//!
//! A [`Hierarchy`] makes cgroups below a parent that somebody else (kubelet) may own, and never removes that parent.
//! Where no controllers are available it works all the same, without limits; a limit that cannot hold is an error
//! that names the missing controller.
//!
//! Must not know: pods, CRI's way to spell resources, systemd.

mod apply;
mod devices;
mod error;
mod files;
mod limits;
mod path;
mod remove;
mod stats;

pub use apply::Applied;
pub use devices::{DeviceAccess, DeviceKind, DeviceProgram, DeviceRule};
pub use error::CgroupError;
pub use limits::{Resources, weight};
pub use path::CgroupPath;
pub use stats::{CgroupStats, CpuStat, IoStat, MemoryEvents, MemoryStat, Pressure, PressureLine};

use crisp_sys::path::{OFlag, fs_magic};
use crisp_sys::{Errno, SysError};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The controllers that limits and statistics of containers need, where the kernel has them.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// `CGROUP2_SUPER_MAGIC` (statfs(2)).
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// The mounted cgroup v2 hierarchy.
#[derive(Debug)]
pub struct Hierarchy {
    root: PathBuf,
    controllers: BTreeSet<String>,
}

impl Hierarchy {
    /// Opens the hierarchy mounted at `root`.
    ///
    /// # Errors
    /// [`CgroupError::NotCgroup2`] when something else is mounted there.
    pub fn open(root: &Path) -> Result<Self, CgroupError> {
        let dir = open_dir(root).map_err(|errno| CgroupError::sys("open", root, errno))?;
        if fs_magic(&dir)? != CGROUP2_MAGIC {
            return Err(CgroupError::NotCgroup2 { path: root.to_owned() });
        }
        let controllers = files::words(dir.as_fd(), "cgroup.controllers")
            .map_err(|errno| CgroupError::sys("read", &root.join("cgroup.controllers"), errno))?;
        Ok(Self { root: root.to_owned(), controllers })
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The controllers that its root offers.
    pub fn controllers(&self) -> &BTreeSet<String> {
        &self.controllers
    }

    /// Those of `needed` that the root does not offer (a host that has them mounted as version 1, say).
    pub fn missing<'a>(&self, needed: &[&'a str]) -> Vec<&'a str> {
        needed.iter().copied().filter(|name| !self.controllers.contains(*name)).collect()
    }

    /// Makes the cgroup `name` below `parent`. Missing ancestors are made, and each of them passes on the controllers
    /// that it has and that containers need.
    ///
    /// # Errors
    /// `EEXIST` when it is there already: it may be somebody else's. [`CgroupError::Write`] when an ancestor cannot
    /// pass on a controller (`EBUSY`: it has processes of its own).
    pub fn create(&self, parent: &CgroupPath, name: &str) -> Result<Cgroup, CgroupError> {
        let path = parent.join(name)?;
        let mut location = self.root.clone();
        delegate(&location)?;
        for component in parent.components() {
            location.push(component);
            match std::fs::create_dir(&location) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(SysError::io("mkdir", location.to_string_lossy(), &error).into());
                }
                Ok(()) | Err(_) => {}
            }
            delegate(&location)?;
        }
        location.push(name);
        make(path, location)
    }

    /// Lets what is below the cgroup `path` use all controllers that containers need: every cgroup from the root down
    /// to it passes on those that it has.
    ///
    /// # Errors
    /// As [`Self::create`]; `ENOENT` when it does not exist.
    pub fn pass_on(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let mut location = self.root.clone();
        delegate(&location)?;
        for component in path.components() {
            location.push(component);
            delegate(&location)?;
        }
        Ok(())
    }

    /// Opens a cgroup that exists.
    ///
    /// # Errors
    /// `ENOENT` when it does not.
    pub fn open_cgroup(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        let location = path.below(&self.root);
        let dir = open_dir(&location).map_err(|errno| CgroupError::sys("open", &location, errno))?;
        Ok(Cgroup { path: path.clone(), dir, location })
    }

    /// The names of the cgroups directly below `parent`; none when there is no such cgroup.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn list(&self, parent: &CgroupPath) -> Result<Vec<String>, CgroupError> {
        remove::children(&parent.below(&self.root))
    }
}

/// Lets the children of the cgroup at `location` use the controllers that it has.
fn delegate(location: &Path) -> Result<(), CgroupError> {
    let file = |name: &str| location.join(name);
    let sys = |errno| CgroupError::sys("open", location, errno);
    let dir = open_dir(location).map_err(sys)?;
    let read = |name: &str| {
        files::words(dir.as_fd(), name).map_err(|errno| CgroupError::sys("read", &file(name), errno))
    };
    let passed = read("cgroup.subtree_control")?;
    if CONTROLLERS.iter().all(|name| passed.contains(*name)) {
        return Ok(());
    }
    let available = read("cgroup.controllers")?;
    let wanted: Vec<String> = CONTROLLERS
        .iter()
        .filter(|name| available.contains(**name) && !passed.contains(**name))
        .map(|name| format!("+{name}"))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let value = wanted.join(" ");
    files::write(dir.as_fd(), "cgroup.subtree_control", &value).map_err(|errno| CgroupError::Write {
        file: file("cgroup.subtree_control"),
        value,
        errno,
    })
}

fn make(path: CgroupPath, location: PathBuf) -> Result<Cgroup, CgroupError> {
    std::fs::create_dir(&location)
        .map_err(|error| SysError::io("mkdir", location.to_string_lossy(), &error))?;
    let dir = open_dir(&location).map_err(|errno| CgroupError::sys("open", &location, errno))?;
    Ok(Cgroup { path, dir, location })
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    let text = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
    crisp_sys::raw::process::open(&text, (OFlag::O_RDONLY | OFlag::O_DIRECTORY).bits())
}

/// One cgroup. Dropping it does not remove it.
#[derive(Debug)]
pub struct Cgroup {
    /// Its place in the hierarchy.
    pub path: CgroupPath,
    /// Its directory, for `clone3(CLONE_INTO_CGROUP)`.
    pub dir: OwnedFd,
    location: PathBuf,
}

/// What `cgroup.events` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Events {
    /// It or a cgroup below it has a living process.
    pub populated: bool,
    /// It is frozen.
    pub frozen: bool,
}

impl Cgroup {
    /// Its directory in the host's file system.
    pub fn location(&self) -> &Path {
        &self.location
    }

    /// Applies limits: all of them, or none and an error (what was written before the failure is put back).
    ///
    /// # Errors
    /// [`CgroupError::MissingController`], [`CgroupError::Limit`] with file and value, [`CgroupError::Invalid`].
    pub fn apply(&self, resources: &Resources) -> Result<Applied, CgroupError> {
        apply::apply(self.dir.as_fd(), &self.location, resources)
    }

    /// Lets its processes run on, if it is frozen itself (`cgroup.freeze`). One that was removed meanwhile has none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        match files::write(self.dir.as_fd(), "cgroup.freeze", "0") {
            Ok(()) | Err(Errno::ENODEV | Errno::ENOENT) => Ok(()),
            Err(errno) => Err(CgroupError::Write {
                file: self.location.join("cgroup.freeze"),
                value: "0".to_owned(),
                errno,
            }),
        }
    }

    /// Kills every process in it and below (`cgroup.kill`). One that was removed meanwhile has none.
    ///
    /// # Errors
    /// `ENOENT` before Linux 5.14.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match files::write(self.dir.as_fd(), "cgroup.kill", "1") {
            // Somebody else's removal came between the opening of this directory and the write.
            Err(Errno::ENODEV) => Ok(()),
            // Or before the file was opened; `cgroup.procs` tells that from an old kernel.
            Err(Errno::ENOENT)
                if files::open(self.dir.as_fd(), "cgroup.procs", libc::O_RDONLY).err()
                    == Some(Errno::ENOENT) =>
            {
                Ok(())
            }
            written => written.map_err(|errno| CgroupError::Write {
                file: self.location.join("cgroup.kill"),
                value: "1".to_owned(),
                errno,
            }),
        }
    }

    /// Reads `cgroup.events`.
    ///
    /// # Errors
    /// `ENODEV` when the cgroup was removed.
    pub fn events(&self) -> Result<Events, CgroupError> {
        let text = self.read("cgroup.events")?;
        let flag = |name: &str| files::value(&text, name) == Some(1);
        Ok(Events { populated: flag("populated"), frozen: flag("frozen") })
    }

    /// Opens one of its files for reading, for use with `poll(2)`: `cgroup.events` and `memory.events` report a
    /// change as `POLLPRI`.
    ///
    /// # Errors
    /// `ENOENT` when the controller is not enabled.
    pub fn open_file(&self, name: &str) -> Result<OwnedFd, CgroupError> {
        files::open(self.dir.as_fd(), name, libc::O_RDONLY)
            .map_err(|errno| CgroupError::sys("open", &self.location.join(name), errno))
    }

    /// How many processes the OOM killer has killed in it and below; `None` without the memory controller.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn oom_kills(&self) -> Result<Option<u64>, CgroupError> {
        let text = files::read_optional(self.dir.as_fd(), "memory.events")
            .map_err(|errno| CgroupError::sys("read", &self.location.join("memory.events"), errno))?;
        Ok(text.and_then(|text| files::value(&text, "oom_kill")))
    }

    /// The processes directly in it, as the reader's PID namespace sees them (0 for one outside of it).
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Makes a cgroup below it, which gets no controllers: a place to tell an exec'd process's descendants apart.
    ///
    /// # Errors
    /// `EEXIST` when it is there already.
    pub fn sub(&self, name: &str) -> Result<Self, CgroupError> {
        make(self.path.join(name)?, self.location.join(name))
    }

    /// Waits until it and what is below it have no living process (`populated 0` in `cgroup.events`), for `patience` at
    /// most. One that is gone has none.
    ///
    /// # Errors
    /// [`CgroupError::Populated`] when processes are left in it.
    pub fn wait_empty(&self, patience: std::time::Duration) -> Result<(), CgroupError> {
        remove::wait_until_empty(&self.location, std::time::Instant::now() + patience)
    }

    /// Removes it and what is below it. Waits until its last process has ended, for `patience` at most; nothing is
    /// killed. One that is gone already is no error.
    ///
    /// # Errors
    /// [`CgroupError::Populated`] when processes are left in it.
    pub fn remove(&self, patience: std::time::Duration) -> Result<(), CgroupError> {
        remove::remove(&self.location, patience)
    }

    /// Waits until somebody else has removed it, for `patience` at most; whether that has happened.
    ///
    /// # Errors
    /// Its parent cannot be watched.
    pub fn wait_until_gone(&self, patience: std::time::Duration) -> Result<bool, CgroupError> {
        remove::wait_until_gone(&self.location, std::time::Instant::now() + patience)
    }

    /// Everything the kernel counts. A file that is not there (no controller, older kernel) is `None`.
    ///
    /// # Errors
    /// The kernel's answer other than that.
    pub fn stats(&self) -> Result<CgroupStats, CgroupError> {
        stats::read(self.dir.as_fd(), &self.location)
    }

    fn read(&self, name: &str) -> Result<String, CgroupError> {
        files::read(self.dir.as_fd(), name)
            .map_err(|errno| CgroupError::sys("read", &self.location.join(name), errno))
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

#[cfg(test)]
pub(crate) mod tests;
