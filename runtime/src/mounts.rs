//! Mount sources: host paths that become detached mounts before a child is cloned.
//!
//! Must not know: where they will be attached.

use crate::error::PlanError;
use crate::userns::IdMappings;
use crisp_sys::mount::AttrChange;
use crisp_sys::{Errno, SysError};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// A host path to be bound into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The path, absolute; symbolic links on the host are followed.
    pub path: PathBuf,
    /// Take the mounts below it along (`rbind`).
    pub recursive: bool,
    /// Where it goes in the container: tells sources of the same path apart.
    pub target: String,
    /// The ids that files have in the container.
    pub idmap: Option<IdMap>,
}

/// An id-mapped mount (mount_setattr(2), "ID-mapped mounts"): what belongs to an id inside of the mapping on disk
/// appears as the id outside that it stands for, and the other way round for what is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// As of a user namespace.
    pub mappings: IdMappings,
    /// The mounts below are mapped, too.
    pub recursive: bool,
}

/// A source that somebody else has opened.
#[derive(Debug)]
pub struct Ready {
    /// See [`Source::path`].
    pub path: PathBuf,
    /// See [`Source::target`].
    pub target: String,
    /// A detached mount.
    pub fd: OwnedFd,
}

/// An opened [`Source`].
#[derive(Debug)]
pub struct Opened {
    /// A detached copy of the mount.
    pub fd: OwnedFd,
    /// It is a directory, so its target must be one.
    pub directory: bool,
}

impl Source {
    /// Copies the mount at the path (`open_tree(OPEN_TREE_CLONE)`). It keeps its peer group, so that propagation
    /// can be chosen later.
    ///
    /// # Errors
    /// The path with `ENOENT` when it is missing; [`PlanError::Invalid`] when its file system cannot be id-mapped.
    pub fn open(
        &self,
        namespace: &dyn Fn(&IdMappings) -> Result<OwnedFd, PlanError>,
    ) -> Result<Opened, PlanError> {
        let fd = crisp_sys::mount::open_tree_clone(None, &self.path, self.recursive)
            .map_err(|error| SysError::new("mount source", self.path.to_string_lossy(), error.errno))?;
        self.finish(fd, namespace)
    }

    /// Gives a detached mount of the source the ids that it is to have.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn finish(
        &self,
        fd: OwnedFd,
        namespace: &dyn Fn(&IdMappings) -> Result<OwnedFd, PlanError>,
    ) -> Result<Opened, PlanError> {
        if let Some(IdMap { mappings, recursive }) = &self.idmap {
            let userns = namespace(mappings)?;
            let change = AttrChange { userns: Some(userns.as_fd()), ..AttrChange::default() };
            crisp_sys::mount::mount_setattr(&fd, *recursive, &change).map_err(|error| match error.errno {
                Errno::EINVAL => PlanError::invalid(
                    format!("mount source {}", self.path.display()),
                    "its file system has no id-mapped mounts on this kernel",
                ),
                _ => SysError::new("id-map mount source", self.path.to_string_lossy(), error.errno).into(),
            })?;
        }
        Ok(Opened::new(fd)?)
    }
}

impl Opened {
    /// Looks at a detached mount.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new(fd: OwnedFd) -> Result<Self, SysError> {
        let directory = crisp_sys::path::is_directory(&fd)?;
        Ok(Self { fd, directory })
    }
}
