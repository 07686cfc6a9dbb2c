//! Paths inside a root that somebody else controls: every look-up goes through `openat2` and stays inside.
//!
//! A container may turn any component of its file system into a symbolic link at any time. With RESOLVE_IN_ROOT the
//! kernel itself treats the root's descriptor as `/`; what is found is used through its own descriptor, never by a
//! path that was checked earlier (CVE-2019-14271's and CVE-2024-9676's class).
//!
//! Must not know: what the files mean.

use crate::errno::{Context, Errno, SysError};
use crate::mount::cstring;
use crate::raw;
pub use nix::fcntl::OFlag;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A directory as the root of look-ups, held by an `O_PATH` descriptor.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens a trusted path of the host.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`.
    pub fn open(path: &Path) -> Result<Self, SysError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mode = nix::sys::stat::Mode::empty();
        let fd = nix::fcntl::open(path, flags, mode).on("open", || path.to_string_lossy())?;
        Ok(Self { fd })
    }

    /// Takes a directory's descriptor (also the one of a detached mount).
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// A root of its own for the same directory.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn duplicate(fd: impl AsFd) -> Result<Self, SysError> {
        let fd = fd.as_fd().try_clone_to_owned().map_err(|error| SysError::io("dup", "root", &error))?;
        Ok(Self { fd })
    }

    /// Gives the descriptor back.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// `openat2(2)` with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS; close-on-exec. Symbolic links are followed
    /// inside the root (also at the end of the path, without `O_NOFOLLOW`).
    ///
    /// # Errors
    /// The kernel's answer; `ELOOP` for a magic link.
    pub fn open_at(&self, path: &Path, flags: OFlag, mode: u32) -> Result<OwnedFd, SysError> {
        let text = cstring("openat2", path)?;
        raw::path::open_in_root(self.as_fd(), &text, flags.bits(), mode)
            .on("openat2", || path.to_string_lossy())
    }

    /// An `O_PATH` descriptor of the directory at `path`; what is missing is made with `mode` (and the umask).
    ///
    /// # Errors
    /// `ENOTDIR` when something else is in the way.
    pub fn mkdir_all(&self, path: &Path, mode: u32) -> Result<OwnedFd, SysError> {
        cstring("mkdir", path)?;
        raw::path::mkdir_all(self.as_fd(), path.as_os_str().as_bytes(), mode)
            .on("mkdir", || path.to_string_lossy())
    }

    /// The regular file at `path`, opened for writing and emptied, made with `mode` when missing. Its directory
    /// must exist.
    ///
    /// # Errors
    /// `EINVAL` when something is there that is no regular file; the kernel's answer.
    pub fn create_file(&self, path: &Path, mode: u32) -> Result<File, SysError> {
        // Not with O_TRUNC at once: opening a FIFO or device must have no effect before it is recognised.
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW;
        match self.open_at(path, flags, mode) {
            Ok(fd) => return Ok(fd.into()),
            Err(error) if error.errno == Errno::EEXIST => {}
            Err(error) => return Err(error),
        }
        let there = self.regular(path)?;
        reopen(&there, OFlag::O_WRONLY | OFlag::O_TRUNC).on("open", || path.to_string_lossy())
    }

    /// Reads the regular file at `path` whole.
    ///
    /// # Errors
    /// `EINVAL` for anything but a regular file (which is not opened: opening a device can have effects, and a FIFO
    /// can block for ever); `EFBIG` above `limit` bytes; the kernel's answer.
    pub fn read_file(&self, path: &Path, limit: u64) -> Result<Vec<u8>, SysError> {
        let shown = || path.to_string_lossy();
        let there = self.regular(path)?;
        let too_large = || SysError::new("read", shown(), Errno::EFBIG);
        let size = raw::path::stat(there.as_fd(), c"").on("fstat", shown)?.size;
        if size > limit {
            return Err(too_large());
        }
        let file = reopen(&there, OFlag::O_RDONLY).on("open", shown)?;
        let mut bytes = Vec::with_capacity(size as usize);
        // It may grow while it is read.
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| SysError::io("read", shown(), &error))?;
        if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
    }

    fn regular(&self, path: &Path) -> Result<OwnedFd, SysError> {
        let there = self.open_at(path, OFlag::O_PATH, 0)?;
        let stat = raw::path::stat(there.as_fd(), c"").on("fstat", || path.to_string_lossy())?;
        if stat.kind() == libc::S_IFREG {
            Ok(there)
        } else {
            let object = format!("{} (no regular file)", path.display());
            Err(SysError::new("open", object, Errno::EINVAL))
        }
    }
}

/// Opens the very inode behind an `O_PATH` descriptor.
fn reopen(fd: &OwnedFd, flags: OFlag) -> Result<File, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).map(File::from)
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An `O_PATH` descriptor of a path of the host that somebody else has chosen. Symbolic links are followed, but not the
/// magic ones of procfs: `/proc/self` is the caller, whose program and descriptors are nobody else's.
///
/// # Errors
/// `ELOOP` for a magic link; the kernel's answer.
pub fn open_host(path: &Path) -> Result<OwnedFd, SysError> {
    let root = Root::open(Path::new("/"))?;
    let text = cstring("openat2", path)?;
    raw::path::openat2(root.as_fd(), &text, OFlag::O_PATH.bits(), 0, libc::RESOLVE_NO_MAGICLINKS)
        .on("open", || path.to_string_lossy())
}

/// The path that leads to the file behind a descriptor, as the caller's mount namespace has it.
///
/// # Errors
/// The kernel's answer.
pub fn of_descriptor(fd: impl AsFd) -> Result<PathBuf, SysError> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    nix::fcntl::readlink(link.as_str()).map(PathBuf::from).on("readlink", || link)
}

/// Whether the file behind a descriptor is a directory.
///
/// # Errors
/// The kernel's answer.
pub fn is_directory(fd: impl AsFd) -> Result<bool, SysError> {
    Ok(raw::path::stat(fd.as_fd(), c"").on("fstat", String::new)?.is_dir())
}

/// The magic number of the file system that a descriptor is on (statfs(2)).
///
/// # Errors
/// The kernel's answer.
pub fn fs_magic(fd: impl AsFd) -> Result<u64, SysError> {
    raw::path::fs_magic(fd.as_fd()).on("fstatfs", String::new)
}

/// How large a file system is, and what is left of it (statvfs(3)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsSpace {
    /// Its size in bytes.
    pub bytes: u64,
    /// Inodes it can have; 0 where there is no such limit.
    pub inodes: u64,
    /// Of them unused.
    pub inodes_free: u64,
}

/// The size of the file system that a descriptor is on.
///
/// # Errors
/// The kernel's answer.
pub fn fs_space(fd: impl AsFd) -> Result<FsSpace, SysError> {
    let space = nix::sys::statvfs::fstatvfs(fd).on("fstatvfs", String::new)?;
    Ok(FsSpace {
        bytes: space.blocks().saturating_mul(space.fragment_size()),
        inodes: space.files(),
        inodes_free: space.files_free(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(dir.path().join("canary"), "outside").unwrap();
        let root = Root::open(&inside).unwrap();
        (dir, root)
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let (dir, root) = root();
        symlink("../canary", dir.path().join("root/relative")).unwrap();
        symlink(dir.path().join("canary"), dir.path().join("root/absolute")).unwrap();
        for path in ["relative", "absolute", "../canary", "/../../canary"] {
            let error = root.read_file(Path::new(path), 100).unwrap_err();
            assert_eq!(error.errno, Errno::ENOENT, "{path}");
        }
        std::fs::write(dir.path().join("root/canary"), "inside").unwrap();
        assert_eq!(root.read_file(Path::new("relative"), 100).unwrap(), b"inside");
    }

    #[test]
    fn directories_are_made_through_links_that_point_to_nothing_yet() {
        let (dir, root) = root();
        std::fs::create_dir(dir.path().join("root/var")).unwrap();
        symlink("/run", dir.path().join("root/var/run")).unwrap();
        symlink("../../../../escaped/deep", dir.path().join("root/out")).unwrap();
        root.mkdir_all(Path::new("/var/run/secrets//token/"), 0o755).unwrap();
        assert!(dir.path().join("root/run/secrets/token").is_dir());
        root.mkdir_all(Path::new("out/x"), 0o755).unwrap();
        assert!(dir.path().join("root/escaped/deep/x").is_dir());
        assert!(!dir.path().join("escaped").exists());
        // Where everything exists, nothing is made.
        root.mkdir_all(Path::new("/"), 0o755).unwrap();
        std::fs::write(dir.path().join("root/file"), "").unwrap();
        assert_eq!(root.mkdir_all(Path::new("file/x"), 0o755).unwrap_err().errno, Errno::ENOTDIR);
    }

    #[test]
    fn a_link_to_itself_ends() {
        let (dir, root) = root();
        symlink("loop", dir.path().join("root/loop")).unwrap();
        symlink("b/x", dir.path().join("root/a")).unwrap();
        symlink("a/x", dir.path().join("root/b")).unwrap();
        for path in ["loop", "loop/x", "a"] {
            assert_eq!(root.mkdir_all(Path::new(path), 0o755).unwrap_err().errno, Errno::ELOOP, "{path}");
        }
    }

    #[test]
    fn c12_a_path_of_the_host_leads_to_no_process() {
        let (dir, _root) = root();
        symlink("canary", dir.path().join("link")).unwrap();
        let found = open_host(&dir.path().join("link")).unwrap();
        assert_eq!(of_descriptor(&found).unwrap(), dir.path().join("canary").canonicalize().unwrap());
        symlink("/proc/self/exe", dir.path().join("program")).unwrap();
        for path in ["/proc/self/exe", "/proc/thread-self/root/etc", "/proc/self/fd/0"] {
            assert_eq!(open_host(Path::new(path)).unwrap_err().errno, Errno::ELOOP, "{path}");
        }
        assert_eq!(open_host(&dir.path().join("program")).unwrap_err().errno, Errno::ELOOP);
        assert_eq!(open_host(&dir.path().join("none")).unwrap_err().errno, Errno::ENOENT);
    }

    /// Another thread exchanges `a` and `b` as fast as it can while `work` runs.
    fn while_exchanging(a: &Path, b: &Path, work: impl FnOnce()) -> u64 {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        use std::sync::atomic::{AtomicBool, Ordering};
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let flipper = scope.spawn(|| {
                let mut flips = 0;
                while !stop.load(Ordering::Relaxed) {
                    renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE).unwrap();
                    flips += 1;
                }
                flips
            });
            work();
            stop.store(true, Ordering::Relaxed);
            flipper.join().unwrap()
        })
    }

    #[test]
    fn r06_nothing_is_made_outside_while_a_directory_becomes_a_link_and_back() {
        const ROUNDS: usize = 3_000;
        for target in ["absolute", "../../outside", "../../../../../../../../"] {
            let (dir, root) = root();
            let outside = dir.path().join("outside");
            std::fs::create_dir(&outside).unwrap();
            let target = target.replace("absolute", &outside.display().to_string());
            let at = |name: &str| dir.path().join("root").join(name);
            std::fs::create_dir(at("shared")).unwrap();
            symlink(&target, at("link")).unwrap();
            let mut made = 0;
            let flips = while_exchanging(&at("shared"), &at("link"), || {
                for round in 0..ROUNDS / 3 {
                    match root.mkdir_all(Path::new(&format!("shared/r06-dir{round}/deep")), 0o755) {
                        Ok(_) => made += 1,
                        Err(error) => assert_ne!(error.errno, Errno::EIO, "{error}"),
                    }
                    let _ = root.create_file(Path::new(&format!("shared/r06-file{round}")), 0o644);
                }
            });
            assert!(made > 0 && flips > 100, "{made} made, {flips} flips");
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{target}");
            // Beside the root there is what was there before: it, the canary, and the folder outside.
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "{target}");
            assert!(
                std::fs::read_dir("/")
                    .unwrap()
                    .flatten()
                    .all(|e| !e.file_name().to_string_lossy().starts_with("r06-"))
            );
        }
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let (dir, root) = root();
        nix::unistd::mkfifo(&dir.path().join("root/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(root.read_file(Path::new("fifo"), 10).unwrap_err().errno, Errno::EINVAL);
        assert_eq!(root.create_file(Path::new("fifo"), 0o644).unwrap_err().errno, Errno::EINVAL);
        assert_eq!(root.read_file(Path::new("."), 10).unwrap_err().errno, Errno::EINVAL);
        let sparse = File::create(dir.path().join("root/sparse")).unwrap();
        sparse.set_len(8 << 30).unwrap();
        assert_eq!(root.read_file(Path::new("sparse"), 1 << 20).unwrap_err().errno, Errno::EFBIG);
    }

    #[test]
    fn a_created_file_replaces_content_but_not_links() {
        let (dir, root) = root();
        std::fs::write(dir.path().join("root/old"), "long content").unwrap();
        root.create_file(Path::new("old"), 0o644).unwrap().write_all(b"new").unwrap();
        assert_eq!(root.read_file(Path::new("old"), 10).unwrap(), b"new");
        symlink(dir.path().join("canary"), dir.path().join("root/link")).unwrap();
        assert!(root.create_file(Path::new("link"), 0o644).is_err());
        assert_eq!(std::fs::read(dir.path().join("canary")).unwrap(), b"outside");
    }
}
