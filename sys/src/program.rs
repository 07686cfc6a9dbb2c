//! A program file that whoever executes it cannot change.
//!
//! A process can reach the file that it executes, through `/proc/<pid>/exe`, and so can everybody who may look at it:
//! with the mount that it was found on, in whatever root they are (CVE-2019-5736). That the kernel refuses to write to a
//! file which is being executed protects its bytes, as long as it runs, and neither its mode nor its owner. So the file
//! is executed from a read-only copy of that mount. The copy is attached nowhere, and from the moment at which this value
//! is dropped nobody can change its properties back.
//!
//! Must not know: which program.

use crate::errno::SysError;
use crate::mount::{AttrChange, MountAttr, Propagation, mount_setattr, open_tree_clone};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// See the module. Open it for one start and drop it when the process executes.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// The file at `path`; a symbolic link is followed.
    ///
    /// # Errors
    /// The kernel's answer: `ENOENT` for a missing file, `EINVAL` for one on a mount that is unbindable.
    pub fn open(path: &Path) -> Result<Self, SysError> {
        let file = open_tree_clone(None, path, false)?;
        let change = AttrChange {
            set: MountAttr::RDONLY,
            propagation: Some(Propagation::Private),
            ..AttrChange::default()
        };
        mount_setattr(&file, false, &change)?;
        Ok(Self(file))
    }

    /// What to execute, in this process or a child that still has its descriptors. The name that the kernel takes from
    /// this path says nothing.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    #[test]
    fn what_is_executed_cannot_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cat");
        fs::copy("/bin/cat", &file).unwrap();
        let program = Program::open(&file).unwrap();
        let mut child =
            Command::new(program.path()).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        drop(program);
        let exe = format!("/proc/{}/exe", child.id());
        let refused =
            |answer: std::io::Result<()>| Errno::from_raw(answer.unwrap_err().raw_os_error().unwrap());
        // Kernels differ in which of the two reasons they find first.
        let written = refused(File::options().write(true).open(&exe).map(drop));
        assert!([Errno::ETXTBSY, Errno::EROFS].contains(&written), "{written}");
        assert_eq!(refused(fs::set_permissions(&exe, Permissions::from_mode(0o777))), Errno::EROFS);
        assert_eq!(fs::read(&exe).unwrap(), fs::read("/bin/cat").unwrap());
        let writable = AttrChange { clear: MountAttr::RDONLY, ..AttrChange::default() };
        let handle = File::options().read(true).open(&exe).unwrap();
        // A child of another test may have a copy of the descriptor, until it executes something.
        let harmless = AttrChange { set: MountAttr::NODEV, ..AttrChange::default() };
        while mount_setattr(&handle, false, &harmless).is_ok() {
            std::thread::yield_now();
        }
        assert_eq!(mount_setattr(&handle, false, &writable).unwrap_err().errno, Errno::EINVAL);
        // The file itself is as writable as before.
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        fs::set_permissions(&file, Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn a_missing_program_is_an_error() {
        assert_eq!(Program::open(Path::new("/no/such/program")).unwrap_err().errno, Errno::ENOENT);
    }
}
