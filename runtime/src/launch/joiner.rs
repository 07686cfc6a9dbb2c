//! The parent's side of a joiner: a short-lived child that enters a user namespace and clones the real one there.
//!
//! Must not know: what the real child is.

use crate::error::LaunchError;
use crate::init::Step;
use crate::init::userns::Passage;
use crate::launch::report::{Role, step};
use crisp_sys::memory::SharedWord;
use crisp_sys::process::{Cloned, Exited, Wait, pidfd_open, waitid};
use crisp_sys::{Errno, SysError};

/// Waits for a joiner's end, some tenths of a millisecond, and gives the child that it has made. That one is a child of
/// this process (`CLONE_PARENT`). `gone`: what has ended when its PID namespace cannot be joined.
pub(super) fn child_of(
    joiner: &Cloned,
    passage: &Passage<'_>,
    progress: &SharedWord,
    role: &Role,
    gone: Option<&'static str>,
) -> Result<Cloned, LaunchError> {
    let ended = waitid(&joiner.pidfd, Wait::Block)?;
    let pid = passage.born.get() as i32;
    if pid > 0 {
        // Nobody has reaped it. Should there be no descriptor for it, its report ends, and with that the child: it
        // waits for a word before it does anything that lasts.
        return Ok(Cloned { pid, pidfd: pidfd_open(pid)? });
    }
    let (step, index) = step(progress);
    let died = || LaunchError::Died { what: role.describe(step, index), how: ended };
    let Some(Exited::Code(code)) = ended.filter(|ended| ended.code() != 0) else { return Err(died()) };
    let errno = Errno::from_raw(code);
    Err(match (step, errno, gone) {
        // ESRCH: the process has ended. ENOMEM: the namespace's first process has (pid_namespaces(7)).
        (Step::Namespaces | Step::Born, Errno::ESRCH | Errno::ENOMEM, Some(what)) => {
            LaunchError::Gone { what }
        }
        (Step::Born, ..) => SysError::new("clone3", format!("{:?}", passage.flags), errno).into(),
        _ => LaunchError::Child { step, what: role.describe(step, index), errno },
    })
}
