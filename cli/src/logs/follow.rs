//! A log file as it grows: over rotations, until its container has ended.
//!
//! CRI's rule for the end: the runtime writes everything before it reports the container as exited, so one read to the
//! end of the file after that report is complete.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use crisp_proto::runtime::v1::ContainerState;
use tonic::Code;

use crate::{
    endpoint::{Clients, code, is_away},
    target,
};

/// Between two looks at the file.
const FILE_INTERVAL: Duration = Duration::from_millis(200);

/// Looks at the file for each question to the runtime.
const LOOKS_PER_QUESTION: u32 = 3;

/// An open log file.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    file: File,
    /// Bytes of a line that is not complete yet.
    rest: Vec<u8>,
}

impl Follower {
    /// Opens the file at its beginning.
    ///
    /// # Errors
    /// It is not there, or may not be read.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: File::open(path)?, rest: Vec::new() })
    }

    /// The whole lines that are new. When the file was renamed and there is another one, that one's follow.
    ///
    /// # Errors
    /// Reading fails.
    pub(crate) fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut text = std::mem::take(&mut self.rest);
        self.file.read_to_end(&mut text)?;
        if let Ok(there) = std::fs::metadata(&self.path)
            && there.ino() != self.file.metadata()?.ino()
        {
            // The writer changed files before the new one could be seen, so one more read of the old one is its last.
            self.file.read_to_end(&mut text)?;
            self.file = File::open(&self.path)?;
            self.file.read_to_end(&mut text)?;
        }
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.rest = text.split_off(end);
        Ok(text)
    }
}

/// Hands over new lines until the container has ended and all of them were handed over.
///
/// # Errors
/// The file cannot be read, or `print` fails. A container that was removed meanwhile has ended.
pub(crate) async fn to_the_end(
    clients: &Clients,
    container: &str,
    mut file: Follower,
    mut print: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut looks = 0;
    loop {
        looks += 1;
        let ended = looks % LOOKS_PER_QUESTION == 0 && has_ended(clients, container).await?;
        let lines = file.read().with_context(|| format!("read the log {}", file.path.display()))?;
        print(&lines)?;
        if ended {
            return Ok(());
        }
        tokio::time::sleep(FILE_INTERVAL).await;
    }
}

/// A runtime that does not answer for the moment (it is being restarted) has not said that the container ended.
async fn has_ended(clients: &Clients, container: &str) -> Result<bool> {
    match target::status(clients, container, false).await {
        Ok((status, _)) => Ok(status.state() == ContainerState::ContainerExited),
        Err(error) if code(&error) == Some(Code::NotFound) => Ok(true),
        Err(error) if is_away(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    #[test]
    fn only_whole_lines_are_handed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut writer = File::create(&path).unwrap();
        let mut follower = Follower::open(&path).unwrap();
        writer.write_all(b"one\ntw").unwrap();
        assert_eq!(follower.read().unwrap(), b"one\n");
        writer.write_all(b"o\n").unwrap();
        assert_eq!(follower.read().unwrap(), b"two\n");
        assert_eq!(follower.read().unwrap(), b"");
    }

    #[test]
    fn a_rotation_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        fs::write(&path, "a\n").unwrap();
        let mut follower = Follower::open(&path).unwrap();
        assert_eq!(follower.read().unwrap(), b"a\n");
        let mut old = File::options().append(true).open(&path).unwrap();
        fs::rename(&path, folder.path().join("0.log.1")).unwrap();
        old.write_all(b"b\n").unwrap();
        assert_eq!(follower.read().unwrap(), b"b\n", "between the rename and the new file");
        old.write_all(b"c\n").unwrap();
        fs::write(&path, "d\n").unwrap();
        assert_eq!(follower.read().unwrap(), b"c\nd\n");
    }
}
