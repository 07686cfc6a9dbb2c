//! Pins: a namespace bound to a file, as ip-netns(8) does it, and the folders that hold them.
//!
//! A pin is an empty file with a bind mount of an nsfs inode on it. The mount is what keeps the namespace; the file is
//! only its place.
//!
//! It must not know which namespace a pin holds.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::{NamespaceError, Pins};

/// Pins made so far by a set-up that may still fail: undone on drop unless kept.
#[derive(Debug, Default)]
pub(super) struct Pinned(Vec<PathBuf>);

impl Pinned {
    /// Binds `namespace` to a new file at `path`. A file that exists is an error: it may be somebody's pin.
    pub(super) fn pin(&mut self, namespace: &Path, path: &Path) -> Result<(), NamespaceError> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(path)
            .map_err(|source| file_error("make the pin", path, source))?;
        self.0.push(path.to_owned());
        mount(Some(namespace), path, None::<&Path>, MsFlags::MS_BIND, None::<&Path>)
            .map_err(|errno| file_error("bind a namespace to", path, errno.into()))
    }

    /// The pins stay.
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = unpin_one(path) {
                tracing::error!(pin = %path.display(), %error, "pin of a failed set-up stays behind");
            }
        }
    }
}

/// Takes every pin of `pins` away, mount and file. What is gone already is no error; the rest is still tried after a
/// failure.
///
/// # Errors
/// The first failure, which names the pin.
pub fn unpin(pins: &Pins) -> Result<(), NamespaceError> {
    let outcomes: Vec<_> = pins.paths().map(unpin_one).collect();
    outcomes.into_iter().collect()
}

fn unpin_one(path: &Path) -> Result<(), NamespaceError> {
    loop {
        // Detached, because a process that looks at the pin just now must not keep it. More than one mount may lie on
        // it when two set-ups with one name raced.
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: no mount point.
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(file_error("unmount the pin", path, errno.into())),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(file_error("remove the pin", path, error))
        }
        _ => Ok(()),
    }
}

/// Opens the namespace behind a pin.
///
/// # Errors
/// [`NamespaceError::PinGone`] when it is missing or holds no namespace.
pub fn open_pin(path: &Path) -> Result<OwnedFd, NamespaceError> {
    let gone = || NamespaceError::PinGone { path: path.to_owned() };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
        Err(error) => return Err(file_error("open the pin", path, error)),
    };
    let kind = fstatfs(&file).map_err(|errno| file_error("statfs the pin", path, errno.into()))?;
    if kind.filesystem_type() != NSFS_MAGIC {
        return Err(gone());
    }
    Ok(file.into())
}

/// Makes `dir` a folder for pins: a mount point of its own, shared with other mount namespaces (`shared`, what
/// `/run/netns` has to be for `ip netns` and CNI plugins) or private, so that pins there cost no other mount namespace
/// anything. Doing it again changes nothing.
///
/// # Errors
/// [`NamespaceError::File`], which names the folder.
pub fn ensure_pin_dir(dir: &Path, shared: bool) -> Result<(), NamespaceError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|source| file_error("make the folder", dir, source))?;
    // ip-netns(8) takes the same lock: two that come here at once would each put a mount on the folder, and pins made
    // between the two would be covered.
    let lock = File::open(dir).map_err(|source| file_error("open the folder", dir, source))?;
    lock.lock().map_err(|source| file_error("lock the folder", dir, source))?;
    let propagation = if shared { MsFlags::MS_SHARED } else { MsFlags::MS_PRIVATE };
    let set = || mount(None::<&Path>, dir, None::<&Path>, propagation | MsFlags::MS_REC, None::<&Path>);
    match set() {
        // Not a mount point yet.
        Err(Errno::EINVAL) => {
            mount(Some(dir), dir, None::<&Path>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&Path>)
                .map_err(|errno| file_error("bind to itself", dir, errno.into()))?;
            set()
        }
        other => other,
    }
    .map_err(|errno| file_error("set the mount propagation of", dir, errno.into()))
}

fn file_error(doing: &'static str, path: &Path, source: io::Error) -> NamespaceError {
    NamespaceError::File { doing, path: path.to_owned(), source }
}
