//! Files of the configuration folder, which become programs that root runs: what anybody but the owner of the folder
//! could have put there is not read.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crisp_sys::raw;
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};

/// Largest file that is read, bytes.
pub(super) const FILE_MAX: u64 = 1 << 20;
/// The mode bit that lets everybody write.
const OTHERS_WRITE: u32 = 0o002;

/// Names below `folder` with one of `endings`, sorted by their bytes. A folder that is not there has none.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn names(folder: &Path, endings: &[&str]) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let ending = Path::new(&name).extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| endings.contains(&ending)) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Reads a file of `folder`.
///
/// # Errors
/// Why it is not used, for a person to act on.
pub(super) fn read(folder: &Path, name: &str) -> Result<Vec<u8>, String> {
    let said = |error: io::Error| error.to_string();
    let dir = File::open(folder).map_err(said)?;
    let c_name = CString::new(Path::new(name).as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // Not blocking: a FIFO of nobody's would make this wait for ever.
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let file = match raw::path::openat2(dir.as_fd(), &c_name, flags.bits(), 0, resolve.bits()) {
        Ok(file) => File::from(file),
        Err(Errno::EXDEV) => return Err("it is a symbolic link that leads out of the folder".to_owned()),
        Err(errno) => return Err(io::Error::from(errno).to_string()),
    };
    let meta = file.metadata().map_err(said)?;
    if !meta.is_file() {
        return Err("it is no regular file".to_owned());
    }
    if meta.mode() & OTHERS_WRITE != 0 {
        return Err(format!("everybody may write to it (mode {:03o})", meta.mode() & 0o777));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(said)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(format!("it is larger than {FILE_MAX} bytes"));
    }
    Ok(bytes)
}
