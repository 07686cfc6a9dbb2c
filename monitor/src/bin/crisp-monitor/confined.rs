//! Becomes another program in another cgroup.
//!
//! Must not know: which.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::execv;

/// How often a program that somebody is still writing is tried again.
const BUSY_TRIES: u32 = 200;
/// Pause between these.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Enters the cgroup whose `cgroup.procs` is the first word, and executes the second.
pub(crate) fn become_program(mut words: impl Iterator<Item = OsString>) -> Result<Infallible, String> {
    let (Some(members), Some(program), None) = (words.next(), words.next(), words.next()) else {
        return Err("a cgroup.procs and a program are needed, and nothing else".to_owned());
    };
    // 0 is whoever writes (cgroup-v2.rst, "Processes").
    fs::write(&members, "0").map_err(|error| format!("enter {}: {error}", members.display()))?;
    let shown = program.display().to_string();
    let failed = |errno: Errno| format!("execute {shown}: {}", io::Error::from(errno));
    let path = CString::new(program.into_vec()).map_err(|_| failed(Errno::EINVAL))?;
    let mut tries = 0;
    loop {
        match execv(&path, &[&path]) {
            Ok(never) => return Ok(never),
            Err(Errno::ETXTBSY) if tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
}
