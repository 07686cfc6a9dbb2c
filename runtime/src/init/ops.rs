//! Executes a plan's operations: builds the container's view of the file system and pivots into it.
//!
//! A path is looked up once, inside the root, and what is found is acted upon through its descriptor: nothing that
//! another container renames meanwhile can lead out (CVE-2021-30465, CVE-2024-45310). Masks come from a tmpfs of
//! our own, never from a file that the image could have replaced (CVE-2025-31133).

use super::crossing::{self, Crossing};
use super::terminal::{self, Terminal};
use super::{Failure, Step, Voice};
use crate::launch::prepare::{AttachAt, DeviceAt, MountAt, Op, Parent};
use crisp_sys::Errno;
use crisp_sys::raw::mount::{self, MountAttributes};
use crisp_sys::raw::path::{self, Stat};
use crisp_sys::raw::process;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Runs all operations in order; gives the terminal that one of them has opened.
/// `crossing`: the PID namespace is another one than this process's.
pub(crate) fn run(
    voice: &Voice<'_>,
    ops: &[Op],
    fds: &[OwnedFd],
    crossing: Option<Crossing<'_>>,
) -> Result<Option<Terminal>, Failure> {
    let mut tree = Tree { root: None, masks: Masks::None, terminal: None, crossing };
    for (op, index) in ops.iter().zip(0..) {
        voice.at(Step::Operation, index, || tree.apply(op, fds))?;
    }
    Ok(tree.terminal)
}

/// The container's file system while it is being built.
struct Tree<'a> {
    /// The root mount, once attached.
    root: Option<BorrowedFd<'a>>,
    masks: Masks<'a>,
    /// The process's own, once opened.
    terminal: Option<Terminal>,
    crossing: Option<Crossing<'a>>,
}

/// A tmpfs with the things that hide others: `null` and `empty`.
enum Masks<'a> {
    None,
    /// Our own.
    Own(OwnedFd),
    /// The plan's, which holds device nodes, too.
    Kit(BorrowedFd<'a>),
}

impl Masks<'_> {
    fn get(&self) -> Result<BorrowedFd<'_>, Errno> {
        match self {
            Self::None => Err(Errno::EBADF),
            Self::Own(tmpfs) => Ok(tmpfs.as_fd()),
            Self::Kit(tmpfs) => Ok(*tmpfs),
        }
    }
}

impl<'a> Tree<'a> {
    fn apply(&mut self, op: &Op, fds: &'a [OwnedFd]) -> Result<(), Errno> {
        if let Op::Root { staging, host_propagation, masks, kit } = op {
            // First of all: nothing that happens to this copy of the host's mounts may reach the host.
            mount::mount(None, c"/", None, host_propagation | libc::MS_REC, None)?;
            self.masks = match kit {
                Some(index) => Masks::Kit(fds.get(*index).ok_or(Errno::EBADF)?.as_fd()),
                None if *masks => {
                    let tmpfs = masks_tmpfs()?;
                    let readonly =
                        MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
                    mount::mount_setattr(tmpfs.as_fd(), false, &readonly)?;
                    Masks::Own(tmpfs)
                }
                None => Masks::None,
            };
            return self.attach_root(fds.first().ok_or(Errno::EBADF)?.as_fd(), staging);
        }
        let root = self.root.ok_or(Errno::EBADF)?;
        match op {
            Op::Root { .. } => Ok(()),
            Op::Mount(new) => match &self.crossing {
                Some(crossing) if new.fstype.as_c_str() == c"proc" => {
                    let borrowed = crossing.borrow_procfs()?;
                    let target = mount_point(root, new)?;
                    crossing::attach_procfs(borrowed.as_fd(), new.attributes, target.as_fd())
                }
                _ => new_mount(root, new),
            },
            Op::Attach(attach) => attach_source(root, attach, fds),
            Op::Device(device) => self.make_device(root, device),
            Op::Symlink { at, target } => make_symlink(root, at, target),
            Op::Mask { path } => self.mask(root, path),
            Op::Readonly { path } => make_readonly(root, path),
            Op::Directory { path, mode } => path::mkdir_all(root, path, *mode).map(drop),
            Op::Console { path } => {
                let opened = terminal::open(root)?;
                terminal::mount_console(root, path, &opened)?;
                self.terminal = Some(opened);
                Ok(())
            }
            Op::Pivot { readonly, shared } => pivot(root, *readonly, *shared),
        }
    }

    fn attach_root(&mut self, root: BorrowedFd<'a>, staging: &CStr) -> Result<(), Errno> {
        if let Ok(masks) = self.masks.get() {
            // The root goes on a directory of the masks' tmpfs: open_tree can only copy what is attached (before
            // Linux 6.15), and this way it is gone with the old root.
            mount::move_mount_to(masks, staging)?;
            let place = path::open_in_root(masks, c"root", libc::O_PATH | libc::O_DIRECTORY, 0)?;
            mount::move_mount(root, place.as_fd())?;
        } else {
            mount::move_mount_to(root, staging)?;
        }
        self.root = Some(root);
        Ok(())
    }

    fn make_device(&self, root: BorrowedFd<'_>, device: &DeviceAt) -> Result<(), Errno> {
        let Some(bound) = &device.bound else { return make_device(root, device) };
        let node = mount::open_tree(Some(self.masks.get()?), &bound.name, libc::OPEN_TREE_CLONE)?;
        // The mount of the kit is more than its nodes may be used for.
        let writable = MountAttributes {
            clear: libc::MOUNT_ATTR_RDONLY,
            set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
            ..MountAttributes::default()
        };
        mount::mount_setattr(node.as_fd(), false, &writable)?;
        let target = make_file(root, &device.at, &bound.path)?;
        mount::move_mount(node.as_fd(), target.as_fd())
    }

    /// Hides a path. What is not there needs no hiding.
    fn mask(&self, root: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
        let Some(target) = existing(root, path)? else { return Ok(()) };
        let masks = self.masks.get()?;
        let directory = path::stat(target.as_fd(), c"")?.is_dir();
        let name = if directory { c"empty" } else { c"null" };
        let cover = mount::open_tree(Some(masks), name, libc::OPEN_TREE_CLONE)?;
        mount::move_mount(cover.as_fd(), target.as_fd())
    }
}

/// A tmpfs with a null device, an empty directory, and a place for the root; still writable.
pub(crate) fn masks_tmpfs() -> Result<OwnedFd, Errno> {
    let fs = mount::fsopen(c"tmpfs")?;
    mount::fsconfig_string(fs.as_fd(), c"size", c"4k")?;
    mount::fsconfig_string(fs.as_fd(), c"mode", c"0755")?;
    mount::fsconfig_create(fs.as_fd())?;
    let tmpfs = mount::fsmount(fs.as_fd(), libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)?;
    path::mknodat(tmpfs.as_fd(), c"null", libc::S_IFCHR | 0o666, 1, 3)?;
    // Made just now and seen by nobody: the check costs nothing and states what the masks rely on.
    let null = path::stat(tmpfs.as_fd(), c"null")?;
    if !is_device(&null, libc::S_IFCHR, 1, 3) {
        return Err(Errno::ENODEV);
    }
    path::mkdirat(tmpfs.as_fd(), c"empty", 0o555)?;
    path::mkdirat(tmpfs.as_fd(), c"root", 0o755)?;
    Ok(tmpfs)
}

/// The file at `path`, whatever it is; `None` when it is not there.
fn existing(root: BorrowedFd<'_>, path: &CStr) -> Result<Option<OwnedFd>, Errno> {
    match path::open_in_root(root, path, libc::O_PATH, 0) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        answer => answer.map(Some),
    }
}

fn new_mount(root: BorrowedFd<'_>, new: &MountAt) -> Result<(), Errno> {
    let fs = mount::fsopen(&new.fstype)?;
    for (key, value) in &new.options {
        match value {
            Some(value) => mount::fsconfig_string(fs.as_fd(), key, value)?,
            None => mount::fsconfig_flag(fs.as_fd(), key)?,
        }
    }
    mount::fsconfig_create(fs.as_fd())?;
    let mounted = mount::fsmount(fs.as_fd(), new.attributes)?;
    let target = mount_point(root, new)?;
    check_target(root, target.as_fd(), &new.path)?;
    mount::move_mount(mounted.as_fd(), target.as_fd())
}

/// The directory to mount on, made when missing.
fn mount_point(root: BorrowedFd<'_>, new: &MountAt) -> Result<OwnedFd, Errno> {
    if !new.strict {
        return path::mkdir_all(root, &new.target, 0o755);
    }
    let strict = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS;
    let open = || path::openat2(root, &new.path, libc::O_PATH | libc::O_DIRECTORY, 0, strict);
    match open() {
        Err(Errno::ENOENT) => {
            drop(path::mkdir_all(root, &new.target, 0o755)?);
            open()
        }
        answer => answer,
    }
}

fn attach_source(root: BorrowedFd<'_>, attach: &AttachAt, fds: &[OwnedFd]) -> Result<(), Errno> {
    let source = fds.get(attach.fd).ok_or(Errno::EBADF)?.as_fd();
    if attach.set != 0 || attach.clear != 0 {
        let change = MountAttributes { set: attach.set, clear: attach.clear, ..MountAttributes::default() };
        mount::mount_setattr(source, attach.recursive, &change)?;
    }
    if attach.set_recursive != 0 {
        let change = MountAttributes { set: attach.set_recursive, ..MountAttributes::default() };
        mount::mount_setattr(source, true, &change)?;
    }
    if attach.propagation != 0 {
        let change = MountAttributes { propagation: attach.propagation, ..MountAttributes::default() };
        mount::mount_setattr(source, attach.propagation_recursive, &change)?;
    }
    let target = if attach.directory {
        path::mkdir_all(root, &attach.target.whole, 0o755)?
    } else {
        make_file(root, &attach.target, &attach.path)?
    };
    check_target(root, target.as_fd(), &attach.path)?;
    mount::move_mount(source, target.as_fd())
}

/// A link in the image may lead to the root itself: a mount there would be seen by processes that join the container, and
/// not by the first one. Or it may lead into proc, where a mount would hide the kernel's files from what relies on them
/// (CVE-2019-16884, CVE-2025-52881): only a plan that names proc means it.
fn check_target(root: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    if path::is_same_file(root, target)? {
        return Err(Errno::EBUSY);
    }
    let means_proc = matches!(path.to_bytes(), b"/proc" | [b'/', b'p', b'r', b'o', b'c', b'/', ..]);
    if !means_proc && path::fs_magic(target)? == libc::PROC_SUPER_MAGIC as u64 {
        return Err(Errno::EXDEV);
    }
    Ok(())
}

/// An `O_PATH` descriptor of the file at the target, made empty when missing.
fn make_file(root: BorrowedFd<'_>, target: &Parent, at: &CStr) -> Result<OwnedFd, Errno> {
    match path::open_in_root(root, at, libc::O_PATH, 0) {
        Err(Errno::ENOENT) => {}
        answer => return answer,
    }
    let parent = path::mkdir_all(root, &target.parent, 0o755)?;
    // With the root as scope, so that a dangling link at the end creates its target inside the root, too: its
    // directories are the only thing that is not made.
    drop(parent);
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_NOCTTY | libc::O_NONBLOCK;
    drop(path::open_in_root(root, at, flags, 0o644)?);
    path::open_in_root(root, at, libc::O_PATH, 0)
}

fn is_device(stat: &Stat, kind: u32, major: u32, minor: u32) -> bool {
    stat.kind() == kind && stat.major == major && stat.minor == minor
}

fn make_device(root: BorrowedFd<'_>, device: &DeviceAt) -> Result<(), Errno> {
    let parent = path::mkdir_all(root, &device.at.parent, 0o755)?;
    let kind = device.mode & libc::S_IFMT;
    match path::mknodat(parent.as_fd(), &device.at.name, device.mode, device.major, device.minor) {
        Ok(()) if device.uid == 0 && device.gid == 0 => Ok(()),
        Ok(()) => path::fchownat(parent.as_fd(), &device.at.name, device.uid, device.gid),
        // A mount over /dev may bring it along; anything else of that name is not what was asked for.
        Err(Errno::EEXIST) => {
            let there = path::stat(parent.as_fd(), &device.at.name)?;
            if is_device(&there, kind, device.major, device.minor) { Ok(()) } else { Err(Errno::EEXIST) }
        }
        Err(errno) => Err(errno),
    }
}

fn make_symlink(root: BorrowedFd<'_>, at: &Parent, target: &CStr) -> Result<(), Errno> {
    let parent = path::mkdir_all(root, &at.parent, 0o755)?;
    match path::symlinkat(target, parent.as_fd(), &at.name) {
        Err(Errno::EEXIST) => Ok(()),
        answer => answer,
    }
}

/// Binds a path onto itself, read-only with everything below. What is not there cannot be written.
fn make_readonly(root: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let Some(target) = existing(root, path)? else { return Ok(()) };
    let flags = libc::OPEN_TREE_CLONE | libc::AT_RECURSIVE as u32;
    let copy = mount::open_tree(Some(target.as_fd()), c"", flags)?;
    let readonly = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    mount::mount_setattr(copy.as_fd(), true, &readonly)?;
    mount::move_mount(copy.as_fd(), target.as_fd())
}

fn pivot(root: BorrowedFd<'_>, readonly: bool, shared: bool) -> Result<(), Errno> {
    if readonly {
        let change = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
        mount::mount_setattr(root, false, &change)?;
    }
    enter(root)?;
    if shared {
        // Only now: pivot_root refuses a shared root.
        let propagation = libc::MS_SHARED;
        let change = MountAttributes { propagation, ..MountAttributes::default() };
        mount::mount_setattr(root, false, &change)?;
    }
    Ok(())
}

/// Makes `root` the root and working directory, and lets go of the old one.
pub(crate) fn enter(root: BorrowedFd<'_>) -> Result<(), Errno> {
    path::fchdir(root)?;
    // With "." for both, the old root ends up on top of the new one, and needs no directory (pivot_root(2)).
    mount::pivot_root(c".", c".")?;
    mount::umount2(c".", libc::MNT_DETACH)?;
    let new = process::open(c"/", libc::O_PATH | libc::O_DIRECTORY)?;
    path::fchdir(new.as_fd())
}
