//! What was asked of plugins, on disk until it is given back: one file an attachment.
//!
//! An entry is written before the first plugin is started and synced with its folder, so that neither a killed process
//! nor a power cut can leave something with a plugin that nobody knows of. What plugins answered is written without a
//! sync: it is there after a kill, and after a power cut the interfaces and rules that it tells of are gone as well.
//!
//! It must not know what plugins are.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::NetworkList;
use super::invoke::Attachment;

/// Version of the entries that are written.
const VERSION: u32 = 1;
/// Ending of an entry's file name.
const ENDING: &str = "json";
/// Ending of what is being written.
const UNFINISHED: &str = "new";

/// What was asked of the plugins of one list for one interface.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The list as it was then.
    pub list: NetworkList,
    /// What was asked for.
    pub attachment: Attachment,
    /// What the last plugin that succeeded has answered.
    pub result: Option<Value>,
    /// All plugins have succeeded.
    pub complete: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    list: Value,
    attachment: Attachment,
    #[serde(default)]
    result: Option<Value>,
    #[serde(default)]
    complete: bool,
}

/// The ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("CNI ledger: {doing} {}: {reason}", path.display())]
pub struct LedgerError {
    /// The operation.
    pub doing: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, or the kernel's answer.
    pub reason: String,
}

/// See the module. One process at a time may use a folder; within it, one thread an attachment.
#[derive(Debug)]
pub struct Ledger {
    folder: PathBuf,
}

impl Ledger {
    /// Opens the ledger in `folder`, which is made when it is not there.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(folder: PathBuf) -> Result<Self, LedgerError> {
        let failed =
            |doing, error: io::Error| LedgerError { doing, path: folder.clone(), reason: error.to_string() };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| failed("make the folder", error))?;
        for entry in fs::read_dir(&folder).map_err(|error| failed("read the folder", error))?.flatten() {
            // Cut off while it was written: what it should have replaced is beside it, or was never.
            if entry.path().extension().is_some_and(|ending| ending == UNFINISHED) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { folder })
    }

    fn path(&self, container_id: &str, ifname: &str) -> PathBuf {
        // Neither has a slash, and no interface name has a colon.
        self.folder.join(format!("{container_id}:{ifname}.{ENDING}"))
    }

    /// The container ids and interface names of all entries, those that cannot be read among them.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn keys(&self) -> Result<Vec<(String, String)>, LedgerError> {
        let failed = |error: io::Error| LedgerError {
            doing: "read the folder",
            path: self.folder.clone(),
            reason: error.to_string(),
        };
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            let key = name.strip_suffix(ENDING).and_then(|name| name.strip_suffix('.'));
            if let Some((id, ifname)) = key.and_then(|key| key.split_once(':')) {
                keys.push((id.to_owned(), ifname.to_owned()));
            }
        }
        keys.sort();
        Ok(keys)
    }

    /// The entry of an attachment; `None`: nothing is with any plugin.
    ///
    /// # Errors
    /// It cannot be read, or is not one. It stays: a person has to look at it.
    pub fn read(&self, container_id: &str, ifname: &str) -> Result<Option<Entry>, LedgerError> {
        let path = self.path(container_id, ifname);
        let failed = |reason: String| LedgerError { doing: "read", path: path.clone(), reason };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
        if stored.version != VERSION {
            return Err(failed(format!("format version {}; known is {VERSION}", stored.version)));
        }
        if stored.attachment.container_id != container_id || stored.attachment.ifname != ifname {
            return Err(failed("it is the entry of another attachment".to_owned()));
        }
        let list = NetworkList::of_json(&stored.list).map_err(failed)?;
        Ok(Some(Entry {
            list,
            attachment: stored.attachment,
            result: stored.result,
            complete: stored.complete,
        }))
    }

    /// Writes an entry that is to outlive a power cut.
    ///
    /// # Errors
    /// The file system refuses; what was there before is still there.
    pub(super) fn write_synced(&self, entry: &Entry) -> Result<(), LedgerError> {
        self.write(entry, true)
    }

    /// Writes an entry that is to outlive this process.
    ///
    /// # Errors
    /// As [`Self::write_synced`].
    pub(super) fn write_kept(&self, entry: &Entry) -> Result<(), LedgerError> {
        self.write(entry, false)
    }

    fn write(&self, entry: &Entry, synced: bool) -> Result<(), LedgerError> {
        let path = self.path(&entry.attachment.container_id, &entry.attachment.ifname);
        let failed = |reason: String| LedgerError { doing: "write", path: path.clone(), reason };
        let stored = Stored {
            version: VERSION,
            list: entry.list.to_json(),
            attachment: entry.attachment.clone(),
            result: entry.result.clone(),
            complete: entry.complete,
        };
        let bytes = serde_json::to_vec(&stored).map_err(|error| failed(error.to_string()))?;
        let beside = path.with_extension(UNFINISHED);
        replace(&beside, &path, &bytes, synced).map_err(|error| failed(error.to_string()))?;
        if synced { self.sync() } else { Ok(()) }
    }

    /// Forgets an attachment: everything is given back.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn forget(&self, container_id: &str, ifname: &str) -> Result<(), LedgerError> {
        let path = self.path(container_id, ifname);
        match fs::remove_file(&path) {
            // After a power cut it may be there again; a DEL of what is gone is no error.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LedgerError { doing: "remove", path, reason: error.to_string() })
            }
            _ => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), LedgerError> {
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(|error| LedgerError {
            doing: "sync",
            path: self.folder.clone(),
            reason: error.to_string(),
        })
    }
}

fn replace(beside: &Path, path: &Path, bytes: &[u8], synced: bool) -> io::Result<()> {
    let mut file = File::create(beside)?;
    file.write_all(bytes)?;
    if synced {
        file.sync_all()?;
    }
    fs::rename(beside, path)
}

#[cfg(test)]
mod tests;
