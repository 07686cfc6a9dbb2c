//! An overlay for a user namespace. Purpose: each layer becomes an id-mapped mount, and the overlay lies over those,
//! because an overlay itself cannot be id-mapped. Knows only directories.
//!
//! Before Linux 6.13 or so a detached mount cannot be a layer, so they are attached: in the mount namespace of a
//! thread, which ends with it. The overlay keeps mounts of its own. Nothing shows on the host.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crisp_sys::mount::{self as sys, AttrChange, MountAttr, MsFlags, Propagation};
use crisp_sys::process::{self, CloneFlags};
use crisp_sys::{Errno, SysError};
use rustix::fs::{AtFlags, Gid, Uid};

use super::overlay::OFF;
use super::{Snapshot, SnapshotError};

pub(super) fn mount(
    snapshot: &Snapshot,
    readonly: bool,
    namespace: BorrowedFd<'_>,
) -> Result<OwnedFd, SnapshotError> {
    let refused = |error| snapshot.refused(error);
    // Private, because a copy is a peer of the store's own mount: what is mounted on it would appear on the host.
    let change = AttrChange {
        userns: Some(namespace),
        propagation: Some(Propagation::Private),
        ..AttrChange::default()
    };
    let mut layers = Vec::with_capacity(snapshot.lowers().len());
    for layer in snapshot.lowers() {
        let tree = sys::open_tree_clone(None, layer, false).map_err(refused)?;
        sys::mount_setattr(&tree, false, &change).map_err(|error| refused(unmappable(error, layer)))?;
        layers.push(tree);
    }
    match (readonly, layers.as_slice()) {
        (true, [single]) => {
            let change = AttrChange { set: MountAttr::RDONLY, ..AttrChange::default() };
            sys::mount_setattr(single, false, &change).map_err(refused)?;
            return layers.pop().ok_or_else(|| refused(SysError::new("open_tree", "", Errno::ENOENT)));
        }
        (true, _) => {}
        (false, layers) => own_upper(snapshot, layers.first()).map_err(refused)?,
    }
    let dead = || SnapshotError::Thread { container: snapshot.container().to_owned() };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("overlay-mount".to_owned())
            .spawn_scoped(scope, || mount_privately(snapshot, readonly, layers))
            .map_err(|_| dead())?;
        thread.join().map_err(|_| dead())?.map_err(refused)
    })
}

/// EINVAL says of a mapping that the file system does not have them.
fn unmappable(error: SysError, layer: &Path) -> SysError {
    match error.errno {
        Errno::EINVAL => SysError::new(
            "mount_setattr",
            format!("{} (its file system has no id-mapped mounts on this kernel)", layer.display()),
            Errno::EINVAL,
        ),
        _ => error,
    }
}

/// The root of the merged tree shows the owner of the writable directory: it becomes what the top layer's is through
/// its mapping.
fn own_upper(snapshot: &Snapshot, top: Option<&OwnedFd>) -> Result<(), SysError> {
    let upper = snapshot.upper();
    let owned = || -> rustix::io::Result<()> {
        let Some(top) = top else { return Ok(()) };
        let shown = rustix::fs::statat(top, c"", AtFlags::EMPTY_PATH)?;
        let (uid, gid) = (Uid::from_raw(shown.st_uid), Gid::from_raw(shown.st_gid));
        rustix::fs::chownat(rustix::fs::CWD, &upper, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    };
    owned().map_err(|error| SysError::io("chown", upper.display().to_string(), &error.into()))
}

fn mount_privately(snapshot: &Snapshot, readonly: bool, layers: Vec<OwnedFd>) -> Result<OwnedFd, SysError> {
    // A new mount namespace brings a working directory of the thread's own with it (unshare(2)).
    process::unshare(CloneFlags::NEWNS)?;
    sys::set_propagation(Path::new("/"), Propagation::Private, true)?;
    // Any directory does as the mount point, one for all: a mount that is covered by the next can still be named by
    // its descriptor.
    let place = snapshot.root().join("empty");
    let mut lowers = Vec::with_capacity(layers.len());
    for layer in &layers {
        sys::move_mount_to(layer, &place)?;
        lowers.push(layer.as_raw_fd().to_string());
    }
    let names = crate::rooted::open_dir(Path::new("/proc/thread-self/fd"))
        .map_err(|error| SysError::io("open", "/proc/thread-self/fd", &error))?;
    rustix::process::fchdir(names)
        .map_err(|error| SysError::io("fchdir", "/proc/thread-self/fd", &error.into()))?;
    // Descriptors as relative names: mount(2) takes one page of options, there may be 128 layers, and no path needs to
    // be escaped.
    let mut options = format!("lowerdir={}", lowers.join(":"));
    for (key, value) in OFF {
        options.push_str(&format!(",{key}={value}"));
    }
    let mut _writable = None;
    if !readonly {
        // Opened in this namespace: an overlay is not made over mounts of another.
        let path = snapshot.directory();
        let opened = crate::rooted::open_dir(&path)
            .map_err(|error| SysError::io("open", path.display().to_string(), &error))?;
        let own = _writable.insert(opened).as_raw_fd();
        options.push_str(&format!(",upperdir={own}/upper,workdir={own}/work,volatile"));
    }
    let flags = if readonly { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    sys::mount(OsStr::new("overlay"), &place, Some("overlay"), flags, OsStr::new(&options))?;
    sys::open_tree_clone(None, &place, false)
}
