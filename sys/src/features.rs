//! What this kernel can do, found by asking it.
//!
//! Must not know: what is done on kernels that cannot.

#![expect(unsafe_code, reason = "calls are probed with arguments that they must refuse")]

use crate::errno::{Context, Errno, SysError};
use std::os::fd::AsFd;

/// The kernel's abilities that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Its release, as `6.12.43-amd64`.
    pub release: String,
    /// `openat2` (5.6).
    pub openat2: bool,
    /// `close_range` (5.9).
    pub close_range: bool,
    /// `mount_setattr` (5.12).
    pub mount_setattr: bool,
    /// `clone3` with `CLONE_INTO_CGROUP` (5.7).
    pub clone_into_cgroup: bool,
    /// `cgroup.kill` (5.14).
    pub cgroup_kill: bool,
    /// `pidfd_open` (5.3) and pidfds for `waitid` and `setns`.
    pub pidfd: bool,
    /// `lowerdir+` of overlayfs in `fsconfig` (6.8).
    pub overlay_lowerdir_append: bool,
    /// Copies of detached mounts by `open_tree` (6.15).
    pub open_tree_detached: bool,
}

/// Asks the kernel. Needs the privilege to mount for the overlayfs answers; without, they are `false`.
///
/// # Errors
/// `uname` was refused.
pub fn probe() -> Result<Features, SysError> {
    let uname = nix::sys::utsname::uname().on("uname", String::new)?;
    let release = uname.release().to_string_lossy().into_owned();
    let version = version(&release);
    Ok(Features {
        openat2: known(libc::SYS_openat2, 0),
        close_range: known(libc::SYS_close_range, 0),
        mount_setattr: known(libc::SYS_mount_setattr, 0),
        clone_into_cgroup: clone_into_cgroup(),
        // A file in every cgroup but the root; the version says it without looking for one.
        cgroup_kill: version >= (5, 14),
        pidfd: known(libc::SYS_pidfd_open, 0),
        overlay_lowerdir_append: overlay_lowerdir_append(),
        open_tree_detached: open_tree_detached(),
        release,
    })
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether the kernel knows a call, by an invocation that every kernel refuses.
fn known(call: libc::c_long, first: libc::c_long) -> bool {
    let (none, bad) = (std::ptr::null::<u8>(), libc::c_long::MAX);
    // SAFETY: the calls asked about refuse these arguments before they do anything: flags that do not exist, a
    // size of nothing, a null pointer.
    let answer = unsafe { libc::syscall(call, first, none, bad, none, 0) };
    answer >= 0 || Errno::last() != Errno::ENOSYS
}

fn clone_into_cgroup() -> bool {
    let Ok(file) = crate::fd::memfd_create_sealed("crisp-probe", b"") else { return false };
    // A memory file is no cgroup: a kernel that knows the flag says EBADF, another one EINVAL or E2BIG.
    // SAFETY: there is never a child; it would only exit.
    let answer = unsafe {
        crate::process::clone3(crate::process::CloneFlags::empty(), Some(file.as_fd()), || {
            libc::_exit(1);
        })
    };
    answer.is_err_and(|error| error.errno == Errno::EBADF)
}

fn overlay_lowerdir_append() -> bool {
    // The context is configured, nothing is mounted.
    crate::mount::fsopen("overlay")
        .is_ok_and(|fs| crate::mount::fsconfig_string(&fs, "lowerdir+", "/").is_ok())
}

fn open_tree_detached() -> bool {
    let attributes = crate::mount::MountAttr::empty();
    crate::mount::tmpfs(&[], attributes).is_ok_and(|tmpfs| {
        crate::mount::open_tree_clone(Some(tmpfs.as_fd()), std::path::Path::new(""), false).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_all_sorts_of_releases() {
        assert_eq!(version("6.12.43+deb13-amd64"), (6, 12));
        assert_eq!(version("6.1"), (6, 1));
        assert_eq!(version("rolling"), (0, 0));
    }

    #[test]
    fn what_every_kernel_since_6_1_has_is_found() {
        let features = probe().unwrap();
        assert!(features.openat2 && features.close_range && features.mount_setattr && features.pidfd);
        assert!(features.clone_into_cgroup && features.cgroup_kill);
        assert!(!known(9999, 0));
    }
}
