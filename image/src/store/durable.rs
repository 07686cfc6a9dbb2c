//! Layers reach the disk. Purpose: what an image consists of is durable before its record is, and nobody else's data has to
//! be: syncfs(2) waits for everything that pods have written to the same file system, gigabytes perhaps. Knows no image.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crisp_sys::fd::{SyncRange, sync_file_range};
use rustix::fs::{Dir, FileType, OFlags};

use crate::rooted::{file_type, join, open_beneath, open_deep, open_dir, stat_at};

/// `EXT4_SUPER_MAGIC` (linux/magic.h).
const EXT4: u64 = 0xef53;

/// Makes the directories `trees` with all that is in them, and the files `files` that exist, survive a power cut. All of
/// them lie on the file system of `root`; `scratch` is a directory of it for a file that is gone afterwards.
///
/// On ext4 with a journal their data is written and waited for, and then one new file is synced: that commits the journal,
/// and with it every directory entry, inode and extent that was there before (fs/ext4/fsync.c: syncing a file is writing its
/// data and committing the transaction of its inode, and transactions are committed in order). Elsewhere it is syncfs: a
/// file's fsync promises nothing about other files on btrfs and f2fs, and on XFS this has not been tried.
pub(super) fn sync(root: &Path, scratch: &Path, trees: &[PathBuf], files: &[PathBuf]) -> io::Result<()> {
    let top = open_dir(root)?;
    if !has_ordered_journal(top.as_fd())? {
        return Ok(rustix::fs::syncfs(top)?);
    }
    // First all are begun, so that the disk has something to put in order, then each is waited for.
    for range in [SyncRange::Begin, SyncRange::Finish] {
        for tree in trees {
            each_file(tree, range)?;
        }
        for file in files {
            match std::fs::File::open(file) {
                Ok(file) => sync_file_range(&file, range).map_err(|e| io::Error::from(e.errno))?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    tempfile::Builder::new().prefix(".sync-").tempfile_in(scratch)?.as_file().sync_all()
}

/// Syncs the data of each regular file below `tree`. Nothing else is opened: a FIFO or a device would do something.
fn each_file(tree: &Path, range: SyncRange) -> io::Result<()> {
    let top = open_dir(tree)?;
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(at) = todo.pop() {
        let dir = open_deep(top.as_fd(), &at, OFlags::RDONLY | OFlags::DIRECTORY)?;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            match kind(dir.as_fd(), name, entry.file_type())? {
                FileType::Directory => todo.push(join(&at, name)),
                FileType::RegularFile => {
                    let file = open_beneath(dir.as_fd(), name, OFlags::RDONLY | OFlags::NOFOLLOW)?;
                    sync_file_range(&file, range).map_err(|e| io::Error::from(e.errno))?;
                }
                FileType::Symlink
                | FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => {}
            }
        }
    }
    Ok(())
}

/// What an entry is, also where directories do not say.
fn kind(dir: BorrowedFd<'_>, name: &[u8], told: FileType) -> io::Result<FileType> {
    if told != FileType::Unknown {
        return Ok(told);
    }
    Ok(stat_at(dir, name)?.map_or(FileType::Unknown, |stat| file_type(&stat)))
}

/// Whether the file system commits all metadata in one order: ext4 that has a journal, which `mkfs.ext4 -O ^has_journal`
/// leaves out.
fn has_ordered_journal(top: BorrowedFd<'_>) -> io::Result<bool> {
    let statfs = rustix::fs::fstatfs(top)?;
    if u64::try_from(statfs.f_type).ok() != Some(EXT4) {
        return Ok(false);
    }
    let device = rustix::fs::fstat(top)?.st_dev;
    let link = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    // Where /sys does not tell, the slower way is right, too.
    let Ok(target) = std::fs::read_link(link) else { return Ok(false) };
    let Some(name) = target.file_name() else { return Ok(false) };
    // The pid of the journal's thread, 0 where it is in another PID namespace, or "<none>" (fs/ext4/sysfs.c).
    let thread = std::fs::read_to_string(Path::new("/sys/fs/ext4").join(name).join("journal_task"));
    Ok(thread.is_ok_and(|thread| thread.trim().parse::<u32>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::require_root;

    #[test]
    fn t12_every_kind_of_entry_is_synced_and_no_node_is_opened() {
        require_root();
        for base in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
            let tmp = tempfile::tempdir_in(base).unwrap();
            let (tree, scratch) = (tmp.path().join("tree"), tmp.path().join("scratch"));
            std::fs::create_dir_all(tree.join("a/b")).unwrap();
            std::fs::create_dir(&scratch).unwrap();
            std::fs::write(tree.join("a/b/f"), vec![7; 1 << 20]).unwrap();
            std::fs::write(tree.join("empty"), "").unwrap();
            std::os::unix::fs::symlink("/nowhere", tree.join("link")).unwrap();
            // Opening it would block for ever.
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let fifo = tree.join("fifo");
            rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
            std::fs::write(tmp.path().join("split"), "s").unwrap();
            let files = ["split", "missing"].map(|name| tmp.path().join(name));
            sync(tmp.path(), &scratch, std::slice::from_ref(&tree), &files).unwrap();
            assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
        }
    }
}
