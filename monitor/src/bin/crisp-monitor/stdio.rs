//! Standard input and output of a container: the ends it gets and the ends that are kept.

use crisp_runtime::launch::Stdio;
use crisp_sys::errno::SysError;
use crisp_sys::fd;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::container::Pipes;

/// Pipes for output, and for input if `stdin` (else `/dev/null`). The container's ends block, as programs
/// expect; ours do not.
pub(crate) fn container(stdin: bool) -> Result<(Stdio, Pipes), SysError> {
    let (stdout, stdout_end) = fd::pipe2(false)?;
    let (stderr, stderr_end) = fd::pipe2(false)?;
    fd::set_nonblocking(&stdout, true)?;
    fd::set_nonblocking(&stderr, true)?;
    let (stdin_end, stdin) = if stdin {
        let (end, kept) = fd::pipe2(false)?;
        (end, Some(kept))
    } else {
        let null = open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| SysError::new("open", "/dev/null", errno))?;
        (null, None)
    };
    let stdio = Stdio { stdin: stdin_end, stdout: stdout_end, stderr: stderr_end };
    Ok((stdio, Pipes { stdin, stdout: Some(stdout), stderr: Some(stderr) }))
}
