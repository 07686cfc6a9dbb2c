//! The two ways to an overlay mount. Purpose: `fsconfig` with one `lowerdir+` a layer where the kernel has
//! it, else mount(2) on a thread of its own. Knows only directories.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crisp_sys::mount::{self as sys, AttrChange, MountAttr, MsFlags, Propagation};
use crisp_sys::process::{self, CloneFlags};
use crisp_sys::{Errno, SysError};

use super::{Snapshot, SnapshotError};

/// fsconfig(2) takes strings of up to 255 bytes.
const FSCONFIG_MAX: usize = 255;

/// Set once the old way worked where the new one did not; the kernel will not learn it later.
static NO_LOWERDIR_ADD: AtomicBool = AtomicBool::new(false);

/// The features that make an upper directory useless or dangerous outside the mount that wrote it are
/// off whatever the kernel's defaults are: redirects and metadata-only copies in a layer could name
/// paths that the layer has no right to.
pub(super) const OFF: [(&str, &str); 3] =
    [("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow")];

pub(super) fn mount(snapshot: &Snapshot, readonly: bool) -> Result<OwnedFd, SnapshotError> {
    if readonly && let [single] = snapshot.lowers() {
        return bind(single).map_err(|e| snapshot.refused(e));
    }
    if NO_LOWERDIR_ADD.load(Ordering::Relaxed) {
        return on_thread(snapshot, readonly);
    }
    match configure(snapshot, readonly) {
        // A kernel that does not know an option says so at once or only when it makes the file system,
        // and in the same word in which it refuses directories: the old way tells which it was.
        Err(e) if e.errno == Errno::EINVAL => {
            let mounted = on_thread(snapshot, readonly)?;
            NO_LOWERDIR_ADD.store(true, Ordering::Relaxed);
            Ok(mounted)
        }
        other => other.map_err(|e| snapshot.refused(e)),
    }
}

fn bind(layer: &Path) -> Result<OwnedFd, SysError> {
    let tree = sys::open_tree_clone(None, layer, false)?;
    sys::mount_setattr(&tree, false, &AttrChange { set: MountAttr::RDONLY, ..AttrChange::default() })?;
    Ok(tree)
}

/// A directory as a string that fits into fsconfig, and the fd that keeps the short form alive.
struct Named {
    text: PathBuf,
    _fd: Option<OwnedFd>,
}

impl Named {
    fn new(path: &Path) -> Result<Self, SysError> {
        let bytes = path.as_os_str().as_bytes();
        // The option parser takes backslashes as escapes in some of the options.
        if bytes.len() <= FSCONFIG_MAX && !bytes.contains(&b'\\') {
            return Ok(Self { text: path.to_owned(), _fd: None });
        }
        let fd = crate::rooted::open_dir(path)
            .map_err(|e| SysError::io("open", path.display().to_string(), &e))?;
        Ok(Self { text: format!("/proc/self/fd/{}", fd.as_raw_fd()).into(), _fd: Some(fd) })
    }
}

fn configure(snapshot: &Snapshot, readonly: bool) -> Result<OwnedFd, SysError> {
    let fs = sys::fsopen("overlay")?;
    sys::fsconfig_string(&fs, "source", "overlay")?;
    let mut keep = Vec::new();
    for lower in snapshot.lowers() {
        let name = Named::new(lower)?;
        sys::fsconfig_string(&fs, "lowerdir+", &name.text)?;
        keep.push(name);
    }
    for (key, value) in OFF {
        sys::fsconfig_string(&fs, key, value)?;
    }
    let mut attributes = MountAttr::empty();
    if readonly {
        attributes |= MountAttr::RDONLY;
    } else {
        for (key, path) in [("upperdir", snapshot.upper()), ("workdir", snapshot.directory().join("work"))] {
            let name = Named::new(&path)?;
            sys::fsconfig_string(&fs, key, &name.text)?;
            keep.push(name);
        }
        sys::fsconfig_flag(&fs, "volatile")?;
    }
    sys::fsconfig_create(&fs)?;
    sys::fsmount(&fs, attributes)
}

/// mount(2) needs a mount point and takes one page of options. The thread has a mount namespace of its
/// own, so nothing shows on the host and nothing stays if it dies; its working directory is `layers`, so
/// that 128 short relative names fit.
pub(super) fn on_thread(snapshot: &Snapshot, readonly: bool) -> Result<OwnedFd, SnapshotError> {
    let dead = || SnapshotError::Thread { container: snapshot.container().to_owned() };
    let job = snapshot.clone();
    let thread = std::thread::Builder::new()
        .name("overlay-mount".to_owned())
        .spawn(move || mount_privately(&job, readonly))
        .map_err(|_| dead())?;
    thread.join().map_err(|_| dead())?.map_err(|e| snapshot.refused(e))
}

fn mount_privately(snapshot: &Snapshot, readonly: bool) -> Result<OwnedFd, SysError> {
    // A new mount namespace brings a working directory of the thread's own with it (unshare(2)).
    process::unshare(CloneFlags::NEWNS)?;
    sys::set_propagation(Path::new("/"), Propagation::Private, true)?;
    let layers = snapshot.root().join("layers");
    let shown = || layers.display().to_string();
    let dir = crate::rooted::open_dir(&layers).map_err(|e| SysError::io("open", shown(), &e))?;
    rustix::process::fchdir(dir).map_err(|e| SysError::io("fchdir", shown(), &e.into()))?;
    let flags = if readonly { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let options = options(snapshot, readonly);
    // Any directory does as the mount point: nobody else sees this namespace.
    let target = Path::new("../empty");
    sys::mount(OsStr::new("overlay"), target, Some("overlay"), flags, OsStr::new(&options))?;
    sys::open_tree_clone(None, target, false)
}

/// Options with paths relative to `layers`.
pub(super) fn options(snapshot: &Snapshot, readonly: bool) -> String {
    let lowers: Vec<String> = snapshot.lowers().iter().map(|path| relative(path)).collect();
    let mut out = format!("lowerdir={}", lowers.join(":"));
    for (key, value) in OFF {
        out.push_str(&format!(",{key}={value}"));
    }
    if !readonly {
        let dir = format!("../containers/{}", snapshot.container());
        out.push_str(&format!(",upperdir={dir}/upper,workdir={dir}/work,volatile"));
    }
    out
}

/// Layers lie in `layers`, and the empty directory beside it.
fn relative(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name == "empty" { "../empty".to_owned() } else { name.into_owned() }
}
