//! The log file of one container: opened so that nothing but a plain file below the pod's log directory can be
//! written to, reopened between two lines, never a reason to block or stop a container.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, Whence, ftruncate, geteuid, lseek, unlinkat, write};

/// Why a log file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("log directory {}: open: {errno}", path.display())]
    Directory { path: PathBuf, errno: Errno },
    #[error("log path {}: not a relative path of plain names", path.display())]
    Path { path: PathBuf },
    #[error("log {}: make the parent directory {}: {errno}", log.display(), path.display())]
    Parent { log: PathBuf, path: PathBuf, errno: Errno },
    #[error("log {}: open: {errno}", path.display())]
    Open { path: PathBuf, errno: Errno },
    #[error("log {}: {reason}", path.display())]
    Refused { path: PathBuf, reason: &'static str },
}

impl LogError {
    pub(crate) fn errno(&self) -> i32 {
        match self {
            LogError::Directory { errno, .. }
            | LogError::Parent { errno, .. }
            | LogError::Open { errno, .. } => *errno as i32,
            LogError::Path { .. } | LogError::Refused { .. } => 0,
        }
    }
}

/// An open log file.
#[derive(Debug)]
pub(crate) struct LogFile {
    directory: PathBuf,
    name: PathBuf,
    file: File,
    /// The last write ended within a line that could not be taken back.
    torn: bool,
    /// Lines that were lost because a write did not succeed.
    dropped: u64,
}

impl LogFile {
    /// Opens (and makes, with its parents below `directory`) the file `name`.
    pub(crate) fn open(directory: &Path, name: &Path) -> Result<Self, LogError> {
        let file = open_beneath(directory, name)?;
        Ok(LogFile { directory: directory.to_owned(), name: name.to_owned(), file, torn: false, dropped: 0 })
    }

    /// Opens the same path anew and switches to it. On an error the present file stays in use.
    pub(crate) fn reopen(&mut self) -> Result<(), LogError> {
        self.file = open_beneath(&self.directory, &self.name)?;
        self.torn = false;
        Ok(())
    }

    /// Removes the file, if nothing is in it and it is still the one of that name: a container that could not be made has
    /// no log, from which kubelet would count one attempt more.
    pub(crate) fn discard(self) {
        let Ok(own) = fstat(&self.file) else { return };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(root) = open(&self.directory, flags, Mode::empty()) else { return };
        let parent = self.name.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.map_or(Ok(root.try_clone().ok()), |parent| {
            openat2(&root, parent, beneath(OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())).map(Some)
        });
        let (Ok(Some(parent)), Some(name)) = (parent, self.name.file_name()) else { return };
        let Ok(found) = fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { return };
        if own.st_size == 0 && (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino) {
            // One that cannot be removed is as empty as any.
            let _ = unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir);
        }
    }

    /// Lines lost so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Appends whole lines with one `write`. What does not go in (a full disk, a failing one) is dropped and
    /// counted; a line of which only a part went in is taken back.
    pub(crate) fn append(&mut self, lines: &[u8]) {
        if self.torn && !lines.is_empty() {
            match write(self.file.as_fd(), b"\n") {
                Ok(1) => self.torn = false,
                _ => return self.dropped += count_lines(lines),
            }
        }
        let mut left = lines;
        while !left.is_empty() {
            match write(self.file.as_fd(), left) {
                Err(Errno::EINTR) => {}
                // A short write of a regular file says that the next one will fail, and why.
                Ok(n) if n > 0 => left = &left[n..],
                _ => {
                    self.dropped += count_lines(left);
                    self.take_back(&lines[..lines.len() - left.len()]);
                    return;
                }
            }
        }
    }

    /// Removes the unterminated end of `written` from the file, if nobody has appended since.
    fn take_back(&mut self, written: &[u8]) {
        let torn = written.iter().rev().take_while(|byte| **byte != b'\n').count() as i64;
        if torn == 0 {
            return;
        }
        let end = lseek(self.file.as_fd(), 0, Whence::SeekCur);
        let size = fstat(self.file.as_fd()).map(|stat| stat.st_size);
        self.torn = match (end, size) {
            (Ok(end), Ok(size)) if end == size => ftruncate(self.file.as_fd(), end - torn).is_err(),
            _ => true,
        };
    }
}

/// Lines in `bytes`, whose first may have lost its beginning.
fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Resolution below the log directory never follows a link: a workload that can write to a volume there must
/// not choose the file that we append to (CVE-2026-53489 and its class).
fn beneath(flags: OFlag, mode: Mode) -> OpenHow {
    OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    )
}

fn open_beneath(directory: &Path, name: &Path) -> Result<File, LogError> {
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    let parents = name.parent().filter(|_| plain).ok_or_else(|| LogError::Path { path: name.to_owned() })?;
    let root = open(
        directory,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| LogError::Directory { path: directory.to_owned(), errno })?;
    let path = directory.join(name);
    make_parents(&root, parents).map_err(|(at, errno)| LogError::Parent {
        log: path.clone(),
        path: directory.join(at),
        errno,
    })?;
    // O_NONBLOCK: a FIFO in its place must not hold the monitor; it changes nothing for a regular file.
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = openat2(&root, name, beneath(flags, Mode::from_bits_truncate(0o640)))
        .map_err(|errno| LogError::Open { path: path.clone(), errno })?;
    check(&file).map_err(|reason| LogError::Refused { path, reason })?;
    Ok(File::from(file))
}

fn make_parents(root: &OwnedFd, parents: &Path) -> Result<(), (PathBuf, Errno)> {
    let mut at = root
        .try_clone()
        .map_err(|error| (PathBuf::new(), Errno::from_raw(error.raw_os_error().unwrap_or_default())))?;
    let mut made = PathBuf::new();
    for part in parents.components() {
        made.push(part);
        match mkdirat(&at, part.as_os_str(), Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err((made, errno)),
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        at = openat2(&at, part.as_os_str(), beneath(flags, Mode::empty()))
            .map_err(|errno| (made.clone(), errno))?;
    }
    Ok(())
}

/// A hard link would let whoever made it choose a file of the host; a device or FIFO is no log; a file that somebody
/// else has put there stays readable and writable to them.
fn check(file: &OwnedFd) -> Result<(), &'static str> {
    let stat = fstat(file).map_err(|_| "its attributes cannot be read")?;
    if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
        return Err("not a regular file");
    }
    if stat.st_nlink != 1 {
        return Err("has more than one hard link");
    }
    if stat.st_uid != geteuid().as_raw() {
        return Err("belongs to somebody else");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn content(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn the_file_and_its_parents_are_made_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        LogFile::open(dir.path(), Path::new("web/sub/0.log")).unwrap();
        let file = std::fs::metadata(dir.path().join("web/sub/0.log")).unwrap();
        assert_eq!((file.len(), file.permissions().mode() & 0o777), (0, 0o640));
        let parent = std::fs::metadata(dir.path().join("web/sub")).unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_log_without_a_container_is_removed_unless_something_is_in_it_or_it_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let (name, path) = (Path::new("c/0.log"), dir.path().join("c/0.log"));
        LogFile::open(dir.path(), name).unwrap().discard();
        assert!(!path.exists() && dir.path().join("c").exists());
        let mut log = LogFile::open(dir.path(), name).unwrap();
        log.append(b"one\n");
        log.discard();
        assert_eq!(content(&path), "one\n");
        std::fs::remove_file(&path).unwrap();
        let log = LogFile::open(dir.path(), name).unwrap();
        std::fs::rename(&path, dir.path().join("c/0.log.1")).unwrap();
        std::fs::write(&path, "").unwrap();
        log.discard();
        assert!(path.exists());
    }

    #[test]
    fn an_existing_log_is_appended_to_and_a_reopened_one_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "before\n").unwrap();
        let mut log = LogFile::open(dir.path(), Path::new("0.log")).unwrap();
        log.append(b"one\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        log.append(b"two\n");
        log.reopen().unwrap();
        log.append(b"three\n");
        assert_eq!(content(&dir.path().join("0.log.1")), "before\none\ntwo\n");
        assert_eq!(content(&path), "three\n");
    }

    #[test]
    fn links_and_paths_that_leave_the_directory_are_refused_and_nothing_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        symlink(&victim, logs.join("link")).unwrap();
        symlink(dir.path(), logs.join("dir")).unwrap();
        std::fs::hard_link(&victim, logs.join("hard")).unwrap();
        std::fs::create_dir(logs.join("folder")).unwrap();
        nix::unistd::mkfifo(&logs.join("fifo"), Mode::S_IRWXU).unwrap();
        std::fs::write(logs.join("others"), "").unwrap();
        std::os::unix::fs::chown(logs.join("others"), Some(4321), None).unwrap();
        let victim_path = victim.to_str().unwrap();
        for name in [
            "link",
            "dir/victim",
            "dir/new",
            "hard",
            "folder",
            "fifo",
            "others",
            "../victim",
            "a/../../x",
            "",
            victim_path,
        ] {
            let refused = LogFile::open(&logs, Path::new(name));
            assert!(refused.is_err(), "{name:?} was opened");
        }
        symlink(&logs, dir.path().join("logs-link")).unwrap();
        assert!(LogFile::open(&dir.path().join("logs-link"), Path::new("x")).is_err());
        assert_eq!(content(&victim), "untouched");
        assert_eq!(std::fs::metadata(&victim).unwrap().nlink(), 2);
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn a_reopen_that_is_refused_keeps_the_present_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(dir.path(), Path::new("0.log")).unwrap();
        std::fs::rename(&path, dir.path().join("kept")).unwrap();
        symlink("/dev/null", &path).unwrap();
        assert!(log.reopen().is_err());
        log.append(b"still here\n");
        assert_eq!(content(&dir.path().join("kept")), "still here\n");
    }

    #[test]
    fn a_full_disk_drops_whole_lines_and_counts_them() {
        // A file size limit would raise SIGXFSZ; /dev/full needs no limit and says ENOSPC.
        let full = File::options().append(true).open("/dev/full").unwrap();
        let mut log =
            LogFile { directory: PathBuf::new(), name: PathBuf::new(), file: full, torn: false, dropped: 0 };
        log.append(b"one\ntwo\n");
        log.append(b"three\n");
        assert_eq!(log.dropped(), 3);
        assert!(!log.torn);
    }

    #[test]
    fn a_line_cut_by_a_failed_write_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(dir.path(), Path::new("0.log")).unwrap();
        log.append(b"whole\n");
        // What a write that hits the end of the disk leaves behind.
        write(log.file.as_fd(), b"next\ncut he").unwrap();
        log.take_back(b"next\ncut he");
        log.append(b"after\n");
        assert_eq!(content(&dir.path().join("0.log")), "whole\nnext\nafter\n");
    }
}
