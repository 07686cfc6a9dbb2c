//! Into a PID namespace that others live in.
//!
//! Whoever has CAP_SYS_PTRACE there can look into every process of the namespace, dumpable or not: at its descriptors,
//! its root, its memory. So nothing is born there that has more than the program is to have (CVE-2016-9962). A first
//! process, in the host's PID namespace, does all the work: mounts, descriptors, ids, capabilities, the seccomp filter.
//! Then it clones its successor, a sibling, into the namespace, and ends; what is left to the successor is a session,
//! the terminal, the word to go, and `execve`.
//!
//! The new procfs that a container gets shows the PID namespace of the process that makes it, and the first process is
//! in the wrong one. A procfs of the right one is borrowed: that of a process which lives there.

#![expect(unsafe_code, reason = "cloning has no safe form")]

use super::{Failure, Step, Voice};
use crisp_sys::Errno;
use crisp_sys::memory::SharedWord;
use crisp_sys::raw::mount::{self, MountAttributes};
use crisp_sys::raw::{path, process};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Inode number of the root of every procfs (`PROC_ROOT_INO`).
const PROC_ROOT: u64 = 1;
const PROC: u64 = libc::PROC_SUPER_MAGIC as u64;

/// Which namespace, and how to get there.
#[derive(Clone, Copy)]
pub(crate) struct Crossing<'a> {
    /// A pidfd of a process that lives there.
    pub(crate) resident: BorrowedFd<'a>,
    /// Where that process's mount namespace has a procfs.
    pub(crate) procfs: &'a CStr,
    /// Gets the successor's pid.
    pub(crate) successor: &'a SharedWord,
}

impl Crossing<'_> {
    /// Lets children of this process be born in the namespace.
    pub(crate) fn aim(&self, voice: &Voice<'_>) -> Result<(), Failure> {
        voice.step(Step::Join, || process::setns(self.resident, libc::CLONE_NEWPID))
    }

    /// Goes on as the successor; this process ends.
    pub(crate) fn cross(&self, voice: &Voice<'_>) -> Result<(), Failure> {
        voice.step(Step::Birth, || {
            // SAFETY: this process has one thread and makes raw system calls only, before and after.
            match unsafe { process::clone_sibling(self.successor) }? {
                process::Sibling::Elder => process::exit_now(0),
                // The session of the elder has no leader here.
                process::Sibling::Younger => process::setsid(),
            }
        })
    }

    /// A detached copy of the resident's procfs.
    pub(crate) fn borrow_procfs(&self) -> Result<OwnedFd, Errno> {
        let wanted = identity_of(c"/proc/self/ns/pid_for_children")?;
        let own = process::open(c"/proc/self/ns/mnt", libc::O_RDONLY)?;
        process::setns(self.resident, libc::CLONE_NEWNS)?;
        let copied = copy_procfs(self.procfs);
        process::setns(own.as_fd(), libc::CLONE_NEWNS)?;
        let copy = copied?;
        // The resident may have mounted something else there since it was started.
        let root = path::stat(copy.as_fd(), c"")?;
        let right = root.inode == PROC_ROOT && path::fs_magic(copy.as_fd())? == PROC;
        if !right || pid_namespace_of_first(copy.as_fd())? != wanted {
            return Err(Errno::ESTALE);
        }
        Ok(copy)
    }
}

fn copy_procfs(at: &CStr) -> Result<OwnedFd, Errno> {
    let root = process::open(c"/", libc::O_PATH | libc::O_DIRECTORY)?;
    let strict = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS;
    let found = path::openat2(root.as_fd(), at, libc::O_PATH | libc::O_DIRECTORY, 0, strict)?;
    mount::open_tree(Some(found.as_fd()), c"", libc::OPEN_TREE_CLONE)
}

/// Device and inode of the PID namespace of process 1 of a procfs.
fn pid_namespace_of_first(procfs: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    // The last component is a magic link, and meant to be followed.
    let namespace = path::openat2(procfs, c"1/ns/pid", libc::O_RDONLY, 0, 0)?;
    let stat = path::stat(namespace.as_fd(), c"")?;
    Ok((stat.device, stat.inode))
}

fn identity_of(path: &CStr) -> Result<(u64, u64), Errno> {
    let file = process::open(path, libc::O_RDONLY)?;
    let stat = path::stat(file.as_fd(), c"")?;
    Ok((stat.device, stat.inode))
}

/// Attaches a borrowed procfs with the attributes that the plan gives a new one.
pub(crate) fn attach_procfs(
    borrowed: BorrowedFd<'_>,
    attributes: u64,
    target: BorrowedFd<'_>,
) -> Result<(), Errno> {
    const ALL: u64 = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC
        | libc::MOUNT_ATTR_NODIRATIME
        | libc::MOUNT_ATTR_NOSYMFOLLOW
        | libc::MOUNT_ATTR__ATIME;
    let change = MountAttributes { set: attributes, clear: ALL, ..MountAttributes::default() };
    mount::mount_setattr(borrowed, false, &change)?;
    mount::move_mount(borrowed, target)
}
