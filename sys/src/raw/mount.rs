//! The mount calls: `fsopen` to `pivot_root`.

#![expect(unsafe_code, reason = "system calls have no safe form")]

use super::{check, descriptor};
use crate::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear, before `set` is applied.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or 0.
    pub propagation: u64,
    /// User namespace of an id-mapped mount (with `MOUNT_ATTR_IDMAP`).
    pub userns_fd: u64,
}

/// `fsopen(2)` with `FSOPEN_CLOEXEC`.
pub fn fsopen(fstype: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads a NUL-terminated string, which `fstype` is.
    descriptor(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), libc::FSOPEN_CLOEXEC) })
}

/// `fsconfig(2)`: `FSCONFIG_SET_FLAG`.
pub fn fsconfig_flag(fs: BorrowedFd<'_>, key: &CStr) -> Result<(), Errno> {
    let none = std::ptr::null::<u8>();
    let call = libc::SYS_fsconfig;
    // SAFETY: `key` is NUL-terminated; this command demands a null value and 0.
    let answer =
        unsafe { libc::syscall(call, fs.as_raw_fd(), libc::FSCONFIG_SET_FLAG, key.as_ptr(), none, 0) };
    check(answer).map(drop)
}

/// `fsconfig(2)`: `FSCONFIG_SET_STRING`. The kernel refuses values of 256 bytes and more.
pub fn fsconfig_string(fs: BorrowedFd<'_>, key: &CStr, value: &CStr) -> Result<(), Errno> {
    let (call, command) = (libc::SYS_fsconfig, libc::FSCONFIG_SET_STRING);
    // SAFETY: both strings are NUL-terminated and only read.
    let answer = unsafe { libc::syscall(call, fs.as_raw_fd(), command, key.as_ptr(), value.as_ptr(), 0) };
    check(answer).map(drop)
}

/// `fsconfig(2)`: `FSCONFIG_SET_FD`.
pub fn fsconfig_fd(fs: BorrowedFd<'_>, key: &CStr, value: BorrowedFd<'_>) -> Result<(), Errno> {
    let (call, command, none) = (libc::SYS_fsconfig, libc::FSCONFIG_SET_FD, std::ptr::null::<u8>());
    // SAFETY: `key` is NUL-terminated; this command demands a null value and takes the descriptor as aux.
    let answer =
        unsafe { libc::syscall(call, fs.as_raw_fd(), command, key.as_ptr(), none, value.as_raw_fd()) };
    check(answer).map(drop)
}

/// `fsconfig(2)`: `FSCONFIG_CMD_CREATE`.
pub fn fsconfig_create(fs: BorrowedFd<'_>) -> Result<(), Errno> {
    let (call, none) = (libc::SYS_fsconfig, std::ptr::null::<u8>());
    // SAFETY: this command demands null for key and value.
    let answer = unsafe { libc::syscall(call, fs.as_raw_fd(), libc::FSCONFIG_CMD_CREATE, none, none, 0) };
    check(answer).map(drop)
}

/// `fsmount(2)` with `FSMOUNT_CLOEXEC`: a detached mount.
pub fn fsmount(fs: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    descriptor(unsafe {
        libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes as libc::c_uint)
    })
}

/// `move_mount(2)` of the mount behind `mount` onto the very inode behind `target`: no path is looked up.
pub fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let empty = c"".as_ptr();
    // SAFETY: both paths are the empty string, a constant.
    let answer = unsafe {
        libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), empty, target.as_raw_fd(), empty, flags)
    };
    check(answer).map(drop)
}

/// `move_mount(2)` of the mount behind `mount` to a path of the host.
pub fn move_mount_to(mount: BorrowedFd<'_>, target: &CStr) -> Result<(), Errno> {
    let (call, flags) = (libc::SYS_move_mount, libc::MOVE_MOUNT_F_EMPTY_PATH);
    // SAFETY: the source path is empty, the target NUL-terminated.
    let answer = unsafe {
        libc::syscall(call, mount.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD, target.as_ptr(), flags)
    };
    check(answer).map(drop)
}

/// `open_tree(2)`; `flags` may hold `OPEN_TREE_CLONE`, `AT_RECURSIVE`, `AT_SYMLINK_NOFOLLOW`. An empty path with
/// a directory means that directory itself.
pub fn open_tree(dir: Option<BorrowedFd<'_>>, path: &CStr, flags: u32) -> Result<OwnedFd, Errno> {
    let empty = if path.is_empty() { libc::AT_EMPTY_PATH as u32 } else { 0 };
    let at = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
    let flags = flags | empty | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is NUL-terminated.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, at, path.as_ptr(), flags) })
}

/// `mount_setattr(2)` on the mount behind a descriptor, and on those below it with `recursive`.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    attributes: &MountAttributes,
) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let size = size_of::<MountAttributes>();
    let pointer = std::ptr::from_ref(attributes);
    // SAFETY: `pointer` and `size` describe a live `struct mount_attr`, which the kernel only reads.
    let answer = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, pointer, size)
    };
    check(answer).map(drop)
}

/// `mount(2)`; the fields are the kernel's, null where `None`.
pub fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    let flags = flags as libc::c_ulong;
    // SAFETY: every string is NUL-terminated or null, which mount(2) allows for all but the target.
    let answer = unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(fstype), flags, pointer(data).cast())
    };
    check(answer.into()).map(drop)
}

/// `umount2(2)`.
pub fn umount2(target: &CStr, flags: i32) -> Result<(), Errno> {
    // SAFETY: `target` is NUL-terminated.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }.into()).map(drop)
}

/// `pivot_root(2)`.
pub fn pivot_root(new_root: &CStr, put_old: &CStr) -> Result<(), Errno> {
    // SAFETY: both paths are NUL-terminated.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, new_root.as_ptr(), put_old.as_ptr()) }).map(drop)
}
