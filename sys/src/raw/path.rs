//! The file calls: `openat2` and what is done with its descriptors.

#![expect(unsafe_code, reason = "system calls have no safe form")]

use super::{check, descriptor};
use crate::errno::Errno;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Longest path the kernel takes, with its NUL.
pub const PATH_MAX: usize = 4096;

/// How often [`mkdir_all`] follows a symbolic link that points to nothing yet.
const MAX_DANGLING: u32 = 8;

/// Opens `path` inside `root`: `..`, absolute paths and absolute symbolic links stay inside, magic links are
/// refused (`ELOOP`). `mode` only counts with `O_CREAT`.
pub fn open_in_root(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    mode: u32,
) -> Result<OwnedFd, Errno> {
    openat2(root, path, flags, mode, libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS)
}

/// `openat2(2)` with `O_CLOEXEC`; asks again when a rename elsewhere disturbed the look-up (`EAGAIN`).
pub fn openat2(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    mode: u32,
    resolve: u64,
) -> Result<OwnedFd, Errno> {
    // SAFETY: all-zero bytes are a valid `struct open_how`; it has no other constructor.
    let mut how: libc::open_how = unsafe { MaybeUninit::zeroed().assume_init() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = resolve;
    let (pointer, size) = (std::ptr::from_ref(&how), size_of::<libc::open_how>());
    // The kernel gives up when anything anywhere is renamed or mounted during a scoped look-up of `..`. Under
    // constant renaming a bounded number of attempts ends in an error instead of a hang.
    for _ in 0..256 {
        // SAFETY: `path` is NUL-terminated; `pointer` and `size` describe a live open_how, only read.
        let answer =
            unsafe { libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), pointer, size) };
        match descriptor(answer) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            answer => return answer,
        }
    }
    Err(Errno::EAGAIN)
}

/// `mkdirat(2)`.
pub fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: `name` is NUL-terminated.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }.into()).map(drop)
}

/// `mknodat(2)`; `mode` holds the type.
pub fn mknodat(dir: BorrowedFd<'_>, name: &CStr, mode: u32, major: u32, minor: u32) -> Result<(), Errno> {
    let device = libc::makedev(major, minor);
    // SAFETY: `name` is NUL-terminated.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device) }.into()).map(drop)
}

/// `symlinkat(2)`.
pub fn symlinkat(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // SAFETY: both strings are NUL-terminated.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }.into()).map(drop)
}

/// `fchmodat(2)`: the permission bits of a file. A symbolic link is followed: for directories that nobody else can
/// write to.
pub fn chmodat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: `name` is NUL-terminated.
    check(unsafe { libc::fchmodat(dir.as_raw_fd(), name.as_ptr(), mode, 0) }.into()).map(drop)
}

/// `fchownat(2)` of a name in `dir`, which is not followed; an empty name means `dir` itself, and an id of `u32::MAX`
/// stays as it is.
pub fn fchownat(dir: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> Result<(), Errno> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: `name` is NUL-terminated.
    check(unsafe { libc::fchownat(dir.as_raw_fd(), name.as_ptr(), uid, gid, flags) }.into()).map(drop)
}

/// What [`stat`] says about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// `S_IF*` and the permission bits.
    pub mode: u32,
    /// Major number of the device that a device node stands for.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Size in bytes.
    pub size: u64,
    /// The file system it is on (`st_dev`).
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

impl Stat {
    /// The type, one of `S_IF*`.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
}

/// `fstatat(2)` of a name in `dir` that is not followed; an empty name means `dir` itself.
pub fn stat(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    let mut buffer = MaybeUninit::<libc::stat>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: `name` is NUL-terminated, and the buffer is large enough for a stat.
    check(unsafe { libc::fstatat(dir.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr(), flags) }.into())?;
    // SAFETY: the call succeeded, so the kernel has filled the buffer.
    let stat = unsafe { buffer.assume_init() };
    let (major, minor) = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
    Ok(Stat {
        mode: stat.st_mode,
        major,
        minor,
        size: stat.st_size.max(0) as u64,
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// Whether two descriptors are of the same file.
pub fn is_same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Errno> {
    let number = |fd: BorrowedFd<'_>| {
        let mut buffer = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: the buffer is large enough for a stat.
        check(unsafe { libc::fstat(fd.as_raw_fd(), buffer.as_mut_ptr()) }.into())?;
        // SAFETY: the call succeeded, so the kernel has filled the buffer.
        let stat = unsafe { buffer.assume_init() };
        Ok((stat.st_dev, stat.st_ino))
    };
    Ok(number(one)? == number(other)?)
}

/// Whether `path` is the root of a mount.
pub(crate) fn is_mount_root(path: &CStr) -> Result<bool, Errno> {
    let mut buffer = MaybeUninit::<libc::statx>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let (wanted, out) = (libc::STATX_TYPE, buffer.as_mut_ptr());
    // SAFETY: `path` is NUL-terminated, and the buffer is large enough for a statx.
    let answer = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, wanted, out) };
    check(answer.into())?;
    // SAFETY: the call succeeded, so the kernel has filled the buffer.
    let statx = unsafe { buffer.assume_init() };
    Ok(statx.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}

/// The magic number of the file system that a descriptor is on (statfs(2)).
pub fn fs_magic(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut buffer = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the buffer is large enough for a statfs.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), buffer.as_mut_ptr()) }.into())?;
    // SAFETY: the call succeeded, so the kernel has filled the buffer.
    Ok(unsafe { buffer.assume_init() }.f_type as u64)
}

/// `fchdir(2)`.
pub fn fchdir(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::fchdir(dir.as_raw_fd()) }.into()).map(drop)
}

/// Whether the working directory can be reached from the root (getcwd(2) begins with `(unreachable)` if not).
pub fn cwd_is_inside_root() -> Result<bool, Errno> {
    let mut buffer = [0u8; PATH_MAX];
    // The raw call: glibc's getcwd walks the tree and allocates when the kernel's answer is not absolute.
    // SAFETY: pointer and length describe `buffer`.
    match check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) }) {
        Ok(_) => Ok(buffer[0] == b'/'),
        // Deleted, or deeper than the kernel can spell.
        Err(errno) => Err(errno),
    }
}

/// `read(2)`; asks again after `EINTR`.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        // SAFETY: pointer and length describe `buffer`, which is ours alone.
        let answer = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match check(answer as libc::c_long) {
            Err(Errno::EINTR) => {}
            answer => return answer.map(|length| length as usize),
        }
    }
}

/// `write(2)`; asks again after `EINTR`.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        // SAFETY: pointer and length describe `bytes`.
        let answer = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        match check(answer as libc::c_long) {
            Err(Errno::EINTR) => {}
            answer => return answer.map(|length| length as usize),
        }
    }
}

/// Opens `path` in `root` as an `O_PATH` descriptor; directories that are missing on the way and at its end are
/// made with `mode`. A symbolic link that points to nothing yet is followed inside the root, and its target made.
pub fn mkdir_all(root: BorrowedFd<'_>, path: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
    mkdir_level(root, path, mode, 0)
}

fn mkdir_level(root: BorrowedFd<'_>, path: &[u8], mode: u32, level: u32) -> Result<OwnedFd, Errno> {
    let mut buffer = PathBuffer::new();
    buffer.push(path)?;
    match open_in_root(root, buffer.as_cstr(path.len()), libc::O_PATH | libc::O_DIRECTORY, 0) {
        Err(Errno::ENOENT) => {}
        answer => return answer,
    }
    // Something is missing: walk from the left. The look-up restarts at the root for each prefix, because only
    // the kernel knows where a prefix with links in it ends.
    let mut parent = open_in_root(root, c".", libc::O_PATH | libc::O_DIRECTORY, 0)?;
    let mut position = 0;
    while let Some((start, end)) = component(path, position) {
        position = end;
        let opened = open_in_root(root, buffer.as_cstr(end), libc::O_PATH | libc::O_DIRECTORY, 0);
        parent = match opened {
            Err(Errno::ENOENT) => {
                make_component(root, parent.as_fd(), &mut buffer, (start, end), mode, level)?
            }
            answer => answer?,
        };
        buffer.restore(end, path);
    }
    Ok(parent)
}

/// Makes the directory named by `path[start..end]` in `parent`, or the target of a dangling link there.
fn make_component(
    root: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    path: &mut PathBuffer,
    (start, end): (usize, usize),
    mode: u32,
    level: u32,
) -> Result<OwnedFd, Errno> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    match mkdirat(parent, path.as_cstr_from(start, end), mode) {
        // By name in the directory just looked at: a link put in its place meanwhile is refused, not followed.
        Ok(()) => {
            let name = path.as_cstr_from(start, end);
            openat2(parent, name, flags, 0, libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_BENEATH)
        }
        Err(Errno::EEXIST) if level < MAX_DANGLING => {
            let mut link = PathBuffer::new();
            let mut target = [0u8; PATH_MAX];
            let length = readlinkat(parent, path.as_cstr_from(start, end), &mut target)?;
            let target = target.get(..length).unwrap_or_default();
            if target.first() != Some(&b'/') {
                link.push(path.bytes(start))?;
                link.push(b"/")?;
            }
            link.push(target)?;
            mkdir_level(root, link.bytes(link.length), mode, level + 1)
        }
        Err(errno) => Err(errno),
    }
}

/// `readlinkat(2)`; `ELOOP` stands for a name that is not a link but was one a moment ago.
fn readlinkat(dir: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: `name` is NUL-terminated; pointer and length describe `buffer`.
    let answer =
        unsafe { libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    match check(answer as libc::c_long) {
        Err(Errno::EINVAL) => Err(Errno::ELOOP),
        Ok(length) if length as usize == buffer.len() => Err(Errno::ENAMETOOLONG),
        answer => answer.map(|length| length as usize),
    }
}

/// The next component of a path at or after `position`: its first byte, and the byte behind its last.
fn component(path: &[u8], position: usize) -> Option<(usize, usize)> {
    let start = path.iter().skip(position).position(|&byte| byte != b'/')? + position;
    let length = path.iter().skip(start).take_while(|&&byte| byte != b'/').count();
    Some((start, start + length))
}

/// A path on the stack whose prefixes can be handed to the kernel.
struct PathBuffer {
    bytes: [u8; PATH_MAX],
    length: usize,
}

impl PathBuffer {
    fn new() -> Self {
        Self { bytes: [0; PATH_MAX], length: 0 }
    }

    fn push(&mut self, more: &[u8]) -> Result<(), Errno> {
        let end = self.length + more.len();
        // One byte stays 0 behind the last.
        if end >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        self.bytes.get_mut(self.length..end).ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(more);
        self.length = end;
        Ok(())
    }

    fn bytes(&self, end: usize) -> &[u8] {
        self.bytes.get(..end).unwrap_or_default()
    }

    /// The first `end` bytes as a string: a NUL is put behind them until [`Self::restore`].
    fn as_cstr(&mut self, end: usize) -> &CStr {
        self.as_cstr_from(0, end)
    }

    fn as_cstr_from(&mut self, start: usize, end: usize) -> &CStr {
        if let Some(byte) = self.bytes.get_mut(end) {
            *byte = 0;
        }
        CStr::from_bytes_until_nul(self.bytes.get(start..).unwrap_or_default()).unwrap_or(c"")
    }

    /// Puts back the byte that [`Self::as_cstr`] overwrote.
    fn restore(&mut self, end: usize, original: &[u8]) {
        if let (Some(byte), Some(&value)) = (self.bytes.get_mut(end), original.get(end)) {
            *byte = value;
        }
    }
}
