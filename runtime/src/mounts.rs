//! Mount sources: host paths that become detached mounts before a child is cloned.
//!
//! Must not know: where they will be attached.

use crisp_sys::SysError;
use std::os::fd::OwnedFd;
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
    /// The path with `ENOENT` when it is missing.
    pub fn open(&self) -> Result<Opened, SysError> {
        let fd = crisp_sys::mount::open_tree_clone(None, &self.path, self.recursive)
            .map_err(|error| SysError::new("mount source", self.path.to_string_lossy(), error.errno))?;
        Opened::new(fd)
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
