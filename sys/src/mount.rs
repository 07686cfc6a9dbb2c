//! Mounts by descriptor: `fsopen` ... `fsmount` makes a detached one, `open_tree` copies one, `move_mount`
//! attaches it. See mount_setattr(2) and Documentation/filesystems/mount_api.rst of the kernel.
//!
//! Must not know: overlay layers, containers; what is mounted for whom.

use crate::errno::{Context, Errno, SysError};
use crate::raw::mount as raw;
use bitflags::bitflags;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

mod table;

pub use nix::mount::{MntFlags, MsFlags};
pub use table::{Peers, peers};

bitflags! {
    /// `MOUNT_ATTR_*`: properties of one mount, as opposed to its file system.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct MountAttr: u64 {
        /// Read-only.
        const RDONLY = libc::MOUNT_ATTR_RDONLY;
        /// Set-user-id bits and file capabilities have no effect.
        const NOSUID = libc::MOUNT_ATTR_NOSUID;
        /// Device nodes cannot be opened.
        const NODEV = libc::MOUNT_ATTR_NODEV;
        /// Nothing can be executed.
        const NOEXEC = libc::MOUNT_ATTR_NOEXEC;
        /// The access time field; to change it, clear this and set one of the three values.
        const ATIME = libc::MOUNT_ATTR__ATIME;
        /// Access times are never written.
        const NOATIME = libc::MOUNT_ATTR_NOATIME;
        /// Access times are always written.
        const STRICTATIME = libc::MOUNT_ATTR_STRICTATIME;
        /// Access times of directories are never written.
        const NODIRATIME = libc::MOUNT_ATTR_NODIRATIME;
        /// Ids are mapped through a user namespace.
        const IDMAP = libc::MOUNT_ATTR_IDMAP;
        /// Symbolic links are not followed.
        const NOSYMFOLLOW = libc::MOUNT_ATTR_NOSYMFOLLOW;
    }
}

/// How mount events spread from and to a mount (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the peer group in, not out.
    Slave,
    /// Both ways.
    Shared,
}

impl Propagation {
    /// The `MS_*` value.
    pub fn bits(self) -> u64 {
        let flag = match self {
            Self::Private => MsFlags::MS_PRIVATE,
            Self::Slave => MsFlags::MS_SLAVE,
            Self::Shared => MsFlags::MS_SHARED,
        };
        flag.bits()
    }
}

/// What [`mount_setattr`] changes.
#[derive(Debug, Default)]
pub struct AttrChange<'a> {
    /// Bits to set.
    pub set: MountAttr,
    /// Bits to clear (first).
    pub clear: MountAttr,
    /// New propagation, if any.
    pub propagation: Option<Propagation>,
    /// User namespace whose mapping the mount gets; implies [`MountAttr::IDMAP`].
    pub userns: Option<BorrowedFd<'a>>,
}

/// A string for the kernel; a NUL inside is `EINVAL`.
pub(crate) fn cstring(call: &'static str, bytes: impl AsRef<OsStr>) -> Result<CString, SysError> {
    let bytes = bytes.as_ref();
    CString::new(bytes.as_bytes())
        .map_err(|_| SysError::new(call, bytes.to_string_lossy().into_owned(), Errno::EINVAL))
}

/// Opens a new file system instance for configuration.
///
/// # Errors
/// `ENODEV` when the kernel does not know the type.
pub fn fsopen(fstype: &str) -> Result<OwnedFd, SysError> {
    raw::fsopen(&cstring("fsopen", fstype)?).on("fsopen", || fstype)
}

/// Sets an option without a value.
///
/// # Errors
/// The kernel's answer with the explanation it left in the context's log.
pub fn fsconfig_flag(fs: impl AsFd, key: &str) -> Result<(), SysError> {
    let fs = fs.as_fd();
    let answer = raw::fsconfig_flag(fs, &cstring("fsconfig", key)?);
    answer.on("fsconfig", || explained(fs, key.to_owned()))
}

/// Sets an option to a string. The kernel refuses values of 256 bytes and more.
///
/// # Errors
/// The kernel's answer with the explanation it left in the context's log.
pub fn fsconfig_string(fs: impl AsFd, key: &str, value: impl AsRef<OsStr>) -> Result<(), SysError> {
    let (fs, value) = (fs.as_fd(), value.as_ref());
    let answer = raw::fsconfig_string(fs, &cstring("fsconfig", key)?, &cstring("fsconfig", value)?);
    answer.on("fsconfig", || explained(fs, format!("{key}={}", value.display())))
}

/// Sets an option to a descriptor.
///
/// # Errors
/// The kernel's answer with the explanation it left in the context's log.
pub fn fsconfig_fd(fs: impl AsFd, key: &str, value: impl AsFd) -> Result<(), SysError> {
    let fs = fs.as_fd();
    let answer = raw::fsconfig_fd(fs, &cstring("fsconfig", key)?, value.as_fd());
    answer.on("fsconfig", || explained(fs, format!("{key}=<fd>")))
}

/// Makes the file system instance that was configured.
///
/// # Errors
/// The kernel's answer with the explanation it left in the context's log.
pub fn fsconfig_create(fs: impl AsFd) -> Result<(), SysError> {
    let fs = fs.as_fd();
    raw::fsconfig_create(fs).on("fsconfig", || explained(fs, "create".to_owned()))
}

/// A detached mount of the instance that was made.
///
/// # Errors
/// The kernel's answer.
pub fn fsmount(fs: impl AsFd, attributes: MountAttr) -> Result<OwnedFd, SysError> {
    raw::fsmount(fs.as_fd(), attributes.bits()).on("fsmount", String::new)
}

/// Attaches (or moves) the mount behind `mount` onto the inode behind `target`; no path is looked up.
///
/// # Errors
/// The kernel's answer; `EINVAL` also when the mount is attached in another mount namespace.
pub fn move_mount(mount: impl AsFd, target: impl AsFd) -> Result<(), SysError> {
    raw::move_mount(mount.as_fd(), target.as_fd()).on("move_mount", String::new)
}

/// Attaches (or moves) the mount behind `mount` to a trusted path of the host.
///
/// # Errors
/// The kernel's answer.
pub fn move_mount_to(mount: impl AsFd, target: &Path) -> Result<(), SysError> {
    let path = cstring("move_mount", target)?;
    raw::move_mount_to(mount.as_fd(), &path).on("move_mount", || target.to_string_lossy())
}

/// A detached copy of the mount at `path` (with `recursive`: and of those below it). A symbolic link at the end
/// is followed. With `dir`, the path is relative to it, and an empty path means `dir` itself.
///
/// # Errors
/// `ENOENT` for a missing path; `EINVAL` when the mount is detached itself and the kernel is older than 6.15.
pub fn open_tree_clone(
    dir: Option<BorrowedFd<'_>>,
    path: &Path,
    recursive: bool,
) -> Result<OwnedFd, SysError> {
    let flags = libc::OPEN_TREE_CLONE | if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    raw::open_tree(dir, &cstring("open_tree", path)?, flags).on("open_tree", || path.to_string_lossy())
}

/// Changes properties of the mount behind `mount` (with `recursive`: and of those below it, all or none).
///
/// # Errors
/// The kernel's answer.
pub fn mount_setattr(mount: impl AsFd, recursive: bool, change: &AttrChange<'_>) -> Result<(), SysError> {
    use std::os::fd::AsRawFd;
    let mut set = change.set;
    if change.userns.is_some() {
        set |= MountAttr::IDMAP;
    }
    let attributes = raw::MountAttributes {
        set: set.bits(),
        clear: change.clear.bits(),
        propagation: change.propagation.map_or(0, Propagation::bits),
        userns_fd: change.userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    raw::mount_setattr(mount.as_fd(), recursive, &attributes).on("mount_setattr", || format!("{set:?}"))
}

/// `mount(2)`: the old way, for what the new calls cannot do on older kernels. Paths may be relative to the
/// calling thread's working directory; `data` is the option string (one page at most).
///
/// # Errors
/// The kernel's answer.
pub fn mount(
    source: &OsStr,
    target: &Path,
    fstype: Option<&str>,
    flags: MsFlags,
    data: &OsStr,
) -> Result<(), SysError> {
    let fstype_text = fstype.map(|name| cstring("mount", name)).transpose()?;
    let (from, to, data) = (cstring("mount", source)?, cstring("mount", target)?, cstring("mount", data)?);
    let data = Some(data.as_c_str()).filter(|data| !data.is_empty());
    raw::mount(Some(&from), &to, fstype_text.as_deref(), flags.bits(), data)
        .on("mount", || format!("{} ({})", target.display(), fstype.unwrap_or("no type")))
}

/// Changes the propagation of the mount at a trusted path of the host; `recursive` includes those below.
///
/// # Errors
/// `EINVAL` when nothing is mounted there.
pub fn set_propagation(target: &Path, propagation: Propagation, recursive: bool) -> Result<(), SysError> {
    let flags = propagation.bits() | if recursive { MsFlags::MS_REC.bits() } else { 0 };
    let path = cstring("mount", target)?;
    raw::mount(None, &path, None, flags, None).on("mount", || format!("{propagation:?} {}", target.display()))
}

/// `umount2(2)`; never follows a symbolic link at the end of the path.
///
/// # Errors
/// `EINVAL` when nothing is mounted there, `EBUSY` when it is in use (without `MNT_DETACH`).
pub fn umount2(target: &Path, flags: MntFlags) -> Result<(), SysError> {
    let flags = flags | MntFlags::UMOUNT_NOFOLLOW;
    raw::umount2(&cstring("umount2", target)?, flags.bits()).on("umount2", || target.to_string_lossy())
}

/// `pivot_root(2)`.
///
/// # Errors
/// The kernel's answer.
pub fn pivot_root(new_root: &Path, put_old: &Path) -> Result<(), SysError> {
    let (new, old) = (cstring("pivot_root", new_root)?, cstring("pivot_root", put_old)?);
    raw::pivot_root(&new, &old).on("pivot_root", || new_root.to_string_lossy())
}

/// Binds `source` to `target`, both trusted paths of the host, with the given properties added.
///
/// # Errors
/// The first step that the kernel refused; nothing is attached then.
pub fn bind(source: &Path, target: &Path, recursive: bool, set: MountAttr) -> Result<(), SysError> {
    let tree = open_tree_clone(None, source, recursive)?;
    if !set.is_empty() {
        mount_setattr(&tree, recursive, &AttrChange { set, ..AttrChange::default() })?;
    }
    move_mount_to(&tree, target)
}

/// A detached tmpfs with the given `fsconfig` strings.
///
/// # Errors
/// The first step that the kernel refused.
pub fn tmpfs(options: &[(&str, &str)], attributes: MountAttr) -> Result<OwnedFd, SysError> {
    let fs = fsopen("tmpfs")?;
    for (key, value) in options {
        fsconfig_string(&fs, key, value)?;
    }
    fsconfig_create(&fs)?;
    fsmount(&fs, attributes)
}

/// Whether a trusted path of the host is the root of a mount (`STATX_ATTR_MOUNT_ROOT`).
///
/// # Errors
/// The kernel's answer, `ENOENT` included.
pub fn is_mount_point(path: &Path) -> Result<bool, SysError> {
    crate::raw::path::is_mount_root(&cstring("statx", path)?).on("statx", || path.to_string_lossy())
}

/// The object of an fsconfig error, with what the kernel wrote about it into the context's log.
fn explained(fs: BorrowedFd<'_>, what: String) -> String {
    let mut line = [0u8; 512];
    let Ok(length) = nix::unistd::read(fs, &mut line) else { return what };
    let said = String::from_utf8_lossy(line.get(..length).unwrap_or_default());
    // A line begins with its class: "e " is an error, "w " a warning, "i " information.
    let said = said.trim().trim_start_matches(['e', 'w', 'i']).trim_start();
    if said.is_empty() { what } else { format!("{what} ({said})") }
}
