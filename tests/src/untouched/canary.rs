//! A folder of the host that nobody has any business in, and a picture of a tree that shows any change.
//!
//! Must not know: who might change it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// What the canary's file says: a container that can read it has read the host.
pub const SECRET: &str = "a secret of the host\n";

/// The folder, and how it was.
#[derive(Debug)]
pub struct Canary {
    folder: PathBuf,
    before: BTreeMap<String, String>,
}

impl Canary {
    /// Makes the folder: `secret` and `dir/file` (both saying [`SECRET`]), `passwd`, `link`, with owners and modes that
    /// nothing else has.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(folder: &Path) -> Result<Self> {
        let made = || -> std::io::Result<()> {
            fs::create_dir_all(folder.join("dir"))?;
            for name in ["secret", "dir/file"] {
                fs::write(folder.join(name), SECRET)?;
                fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o640))?;
                chown(folder.join(name), Some(4321), Some(5432))?;
            }
            fs::write(folder.join("passwd"), "root:x:0:0:canary:/canary:/bin/canary\n")?;
            symlink("secret", folder.join("link"))?;
            fs::set_permissions(folder.join("dir"), fs::Permissions::from_mode(0o751))
        };
        made().with_context(|| format!("make the canary {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), before: tree(folder)? })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The folder, or something in it, as text; `name` may be empty.
    pub fn text(&self, name: &str) -> String {
        let path = if name.is_empty() { self.folder.clone() } else { self.folder.join(name) };
        path.display().to_string()
    }

    /// Shows that it is as it was.
    ///
    /// # Errors
    /// What has changed.
    pub fn unchanged(&self) -> Result<()> {
        super::same("files of the canary", &self.before, &tree(&self.folder)?)
    }
}

/// Everything in and below a folder, by path: kind, mode, owner, links, times and content.
///
/// # Errors
/// Something cannot be read.
pub fn tree(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut paths = vec![folder.to_owned()];
    while let Some(path) = paths.pop() {
        if fs::symlink_metadata(&path).with_context(|| path.display().to_string())?.is_dir() {
            for entry in fs::read_dir(&path)? {
                paths.push(entry?.path());
            }
        }
        found.insert(path.display().to_string(), describe(&path)?);
    }
    Ok(found)
}

/// One file. The access time is left out: looking changes it.
pub(super) fn describe(path: &Path) -> Result<String> {
    let meta = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    let content = match meta.file_type() {
        kind if kind.is_symlink() => format!("-> {}", fs::read_link(path)?.display()),
        kind if kind.is_file() => digest(path)?,
        kind if kind.is_dir() => "folder".to_owned(),
        kind if kind.is_fifo() => "fifo".to_owned(),
        kind if kind.is_socket() => "socket".to_owned(),
        _ => format!("device {:#x}", meta.rdev()),
    };
    Ok(format!(
        "mode {:o} owner {}:{} links {} inode {} changed {}.{:09} {content}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.ino(),
        meta.mtime(),
        meta.mtime_nsec(),
    ))
}

fn digest(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                length += count;
            }
        }
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{length} bytes {hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_shows() {
        type Change = fn(&Path) -> std::io::Result<()>;
        let changes: [(&str, Change); 6] = [
            ("content", |folder| fs::write(folder.join("secret"), "other")),
            ("new", |folder| fs::write(folder.join("dir/new"), "")),
            ("gone", |folder| fs::remove_file(folder.join("link"))),
            ("mode", |folder| fs::set_permissions(folder.join("dir"), fs::Permissions::from_mode(0o700))),
            ("links", |folder| fs::hard_link(folder.join("secret"), folder.with_extension("hard"))),
            ("replaced", |folder| {
                fs::copy(folder.join("secret"), folder.join("copy"))?;
                fs::rename(folder.join("copy"), folder.join("secret"))
            }),
        ];
        for (name, change) in changes {
            let place = tempfile::tempdir().unwrap();
            let folder = place.path().join("canary");
            fs::create_dir_all(folder.join("dir")).unwrap();
            fs::write(folder.join("secret"), SECRET).unwrap();
            symlink("secret", folder.join("link")).unwrap();
            let canary = Canary { before: tree(&folder).unwrap(), folder: folder.clone() };
            canary.unchanged().unwrap();
            change(&folder).unwrap();
            assert!(canary.unchanged().is_err(), "{name} was not seen");
        }
    }
}
