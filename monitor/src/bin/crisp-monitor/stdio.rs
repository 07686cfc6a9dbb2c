//! Standard input and output of a container: the ends it gets and the ends that are kept.

use std::os::fd::OwnedFd;

use crisp_runtime::launch::Stdio;
use crisp_sys::errno::SysError;
use crisp_sys::fd;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::attach::Outlet;
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
        fd::set_nonblocking(&kept, true)?;
        (end, Some(Outlet::new(kept)))
    } else {
        (null()?, None)
    };
    let stdio = Stdio { stdin: stdin_end, stdout: stdout_end, stderr: stderr_end };
    Ok((stdio, Pipes { stdin, stdout: Some(stdout), stderr: Some(stderr), _console: None }))
}

/// For a process that opens a terminal itself and has nothing until then.
pub(crate) fn nothing() -> Result<Stdio, SysError> {
    Ok(Stdio { stdin: null()?, stdout: null()?, stderr: null()? })
}

/// What is kept of a terminal, given the end that its process has handed up; `stdin`: it is written to.
pub(crate) fn terminal(master: OwnedFd, stdin: bool) -> Result<Pipes, SysError> {
    fd::set_nonblocking(&master, true)?;
    let console = crisp_sys::terminal::peer(&master)?;
    // A descriptor of its own, because waiting for room is another thing than waiting for output.
    let copy = || master.try_clone().map_err(|error| SysError::io("dup", "terminal", &error));
    let stdin = if stdin { Some(Outlet::new(copy()?)) } else { None };
    Ok(Pipes { stdin, stdout: Some(master), stderr: None, _console: Some(console) })
}

fn null() -> Result<OwnedFd, SysError> {
    open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| SysError::new("open", "/dev/null", errno))
}
