//! The child's side of a start: everything between `clone3` and `execve`.
//!
//! Whatever runs here was prepared by the parent and allocates nothing: no `String`, no `Vec`, no `format!`, no
//! lock. A failure is three numbers, which the parent turns into words. Everything that a process inherits is
//! set here, because the monitor is not a neutral parent (a Rust program ignores SIGPIPE, to name one).
//!
//! Must not know: OCI, the monitor. Trusts the prepared data, not the file system it walks: paths are resolved
//! inside the root (`RESOLVE_IN_ROOT`, no magic links) and acted upon through the descriptor.

#![expect(unsafe_code, reason = "clone3, and closing descriptors that the parent's copy owns")]

pub(crate) mod crossing;
pub(crate) mod identity;
pub(crate) mod label;
pub(crate) mod ops;
pub(crate) mod pod;
pub(crate) mod terminal;
pub(crate) mod userns;

use crate::launch::prepare::{Ready, Task};
use crisp_sys::memory::SharedWord;
use crisp_sys::process::{CloneFlags, Cloned, clone3};
use crisp_sys::raw::{self, path, process};
use crisp_sys::{Errno, SysError};
use crossing::Crossing;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What a child was doing when something went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Step {
    /// Not begun.
    Born = 0,
    /// Signal dispositions, session, nice, keyring.
    Reset = 1,
    /// `oom_score_adj`.
    OomScore = 2,
    /// Standard input, output, error; closing all others.
    Descriptors = 3,
    /// Joining or making namespaces.
    Namespaces = 4,
    /// An operation of the plan.
    Operation = 5,
    /// A resource limit.
    Rlimit = 6,
    /// Working directory.
    WorkingDirectory = 7,
    /// Bounding set.
    BoundingSet = 8,
    /// Supplementary groups.
    Groups = 9,
    /// Group id.
    Gid = 10,
    /// User id.
    Uid = 11,
    /// Effective, permitted and inheritable capabilities.
    Capabilities = 12,
    /// Ambient capabilities.
    Ambient = 13,
    /// `no_new_privs`.
    NoNewPrivs = 14,
    /// Waiting for the word to go.
    Waiting = 15,
    /// `execve`.
    Execute = 16,
    /// The seccomp filter, and giving up what was needed to install it.
    Seccomp = 17,
    /// Waiting to be put into its cgroup.
    Cgroup = 18,
    /// Entering a user namespace.
    UserNamespace = 19,
    /// Asking for an AppArmor profile.
    AppArmor = 20,
    /// Opening a terminal and making it the process's own.
    Terminal = 21,
    /// Choosing a PID namespace that others live in.
    Join = 22,
    /// Being born there.
    Birth = 23,
}

impl Step {
    const ALL: [Self; 24] = [
        Self::Born,
        Self::Reset,
        Self::OomScore,
        Self::Descriptors,
        Self::Namespaces,
        Self::Operation,
        Self::Rlimit,
        Self::WorkingDirectory,
        Self::BoundingSet,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::Capabilities,
        Self::Ambient,
        Self::NoNewPrivs,
        Self::Waiting,
        Self::Execute,
        Self::Seccomp,
        Self::Cgroup,
        Self::UserNamespace,
        Self::AppArmor,
        Self::Terminal,
        Self::Join,
        Self::Birth,
    ];

    /// The step of a number that came over the report socket or out of the shared word.
    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// A failed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    /// Of the operation or limit.
    pub(crate) index: u16,
    pub(crate) errno: Errno,
}

/// Length of a report, bytes: step, index (little-endian u16), errno (i32).
pub(crate) const RECORD: usize = 8;

/// A report: ready for the word to go ([`Step::Waiting`], errno 0), or failed.
pub(crate) fn encode(step: Step, index: u16, errno: i32) -> [u8; RECORD] {
    let ([a, b], [c, d], [e, f, g, h]) =
        ((step as u16).to_le_bytes(), index.to_le_bytes(), errno.to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

/// The reverse of [`encode`].
pub(crate) fn decode(record: [u8; RECORD]) -> Option<(Step, u16, i32)> {
    let [a, b, c, d, e, f, g, h] = record;
    let step = Step::from_number(u16::from_le_bytes([a, b]))?;
    Some((step, u16::from_le_bytes([c, d]), i32::from_le_bytes([e, f, g, h])))
}

/// What a child tells about itself: the step it is in (readable after its death), and its reports.
#[derive(Clone, Copy)]
pub(crate) struct Voice<'a> {
    pub(crate) control: BorrowedFd<'a>,
    pub(crate) progress: &'a SharedWord,
}

impl Voice<'_> {
    /// Notes that a step begins.
    pub(crate) fn enter(&self, step: Step, index: u16) {
        self.progress.set(u32::from(step as u16) << 16 | u32::from(index));
    }

    /// Notes a step, does it, and puts its name to an error.
    pub(crate) fn step<T>(&self, step: Step, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Failure> {
        self.at(step, 0, work)
    }

    /// As [`Self::step`], for one of several.
    pub(crate) fn at<T>(
        &self,
        step: Step,
        index: u16,
        work: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Failure> {
        self.enter(step, index);
        work().map_err(|errno| Failure { step, index, errno })
    }

    /// Sends a failure and ends the process.
    pub(crate) fn fail(&self, failure: Failure) -> ! {
        let record = encode(failure.step, failure.index, failure.errno as i32);
        // Nobody is left to tell when this fails: the parent sees the death instead.
        let _lost = path::write(self.control, &record);
        process::exit_now(1)
    }

    /// Says that only the word to go is missing, and waits for it.
    fn wait_for_go(&self) -> Result<(), Failure> {
        self.step(Step::Waiting, || {
            path::write(self.control, &encode(Step::Waiting, 0, 0))?;
            self.hear_word()
        })
    }

    /// Waits until the parent says that it has put this process into its cgroup. Before anything else: memory that is
    /// used earlier is charged elsewhere, and a cgroup namespace begins where its maker is. `parents_end` is this
    /// process's copy of the other end of `control`: with it open, the end of the parent would not be heard.
    pub(crate) fn wait_for_cgroup(&self, parents_end: BorrowedFd<'_>) -> Result<(), Failure> {
        self.step(Step::Cgroup, || {
            let end = parents_end.as_raw_fd() as u32;
            // SAFETY: the parent's variable owns it; nothing in this copy of the process uses or drops it.
            unsafe { process::close_range(end, end) }?;
            self.hear_word()
        })
    }

    fn hear_word(&self) -> Result<(), Errno> {
        match path::read(self.control, &mut [0; 1])? {
            1 => Ok(()),
            // The monitor is gone.
            _ => Err(Errno::EPIPE),
        }
    }
}

/// Everything the child of a start or exec needs, borrowed from the parent's memory as it was at the clone.
pub(crate) struct Errand<'a> {
    pub(crate) ready: &'a Ready,
    pub(crate) voice: Voice<'a>,
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// It is born outside of its cgroup and waits until it was moved there; the other end of `voice.control`.
    pub(crate) held: Option<BorrowedFd<'a>>,
    /// The PID namespace, when others live in it.
    pub(crate) crossing: Option<Crossing<'a>>,
    /// Exec: the container's first process, whose mount and cgroup namespaces are joined.
    pub(crate) target: Option<BorrowedFd<'a>>,
    /// Born in a user namespace, by a joiner that has done what takes the host's privileges.
    pub(crate) joined: bool,
}

/// Clones a child that runs the errand.
pub(crate) fn clone(
    flags: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    errand: &Errand<'_>,
) -> Result<Cloned, SysError> {
    // SAFETY: the child calls nothing but `run`, which makes raw system calls on prepared data only and never
    // returns; so this holds in a process with several threads (tests), too.
    unsafe { clone3(flags, cgroup, || run(errand)) }
}

/// As [`clone`], in a user namespace; the joiner that does it is returned.
pub(crate) fn clone_in(passage: &userns::Passage<'_>, errand: &Errand<'_>) -> Result<Cloned, SysError> {
    let before = || userns::before_crossing(errand);
    userns::clone_joiner(passage, &errand.voice, before, || run(errand))
}

/// Runs in the child: never returns.
fn run(errand: &Errand<'_>) -> ! {
    let Err(failure) = become_process(errand) else {
        errand.voice.enter(Step::Execute, 0);
        let errno = execute(&errand.ready.task);
        errand.voice.fail(Failure { step: Step::Execute, index: 0, errno })
    };
    errand.voice.fail(failure)
}

fn become_process(errand: &Errand<'_>) -> Result<(), Failure> {
    let (voice, task) = (&errand.voice, &errand.ready.task);
    if let Some(parents_end) = errand.held {
        voice.wait_for_cgroup(parents_end)?;
    }
    prepare(errand)?;
    let filtered = errand.crossing.is_some() && task.filter_allows_crossing;
    if filtered {
        identity::confine(voice, task)?;
        identity::confine_at_last(voice, task)?;
    }
    if let Some(crossing) = &errand.crossing {
        crossing.cross(voice)?;
    }
    if task.terminal {
        voice.step(Step::Terminal, raw::terminal::control)?;
    }
    if !filtered {
        identity::confine(voice, task)?;
    }
    voice.wait_for_go()?;
    if filtered { Ok(()) } else { identity::confine_at_last(voice, task) }
}

fn prepare(errand: &Errand<'_>) -> Result<(), Failure> {
    let (voice, task) = (&errand.voice, &errand.ready.task);
    reset(voice)?;
    if errand.joined {
        userns::become_root(voice)?;
    } else {
        with_privilege(errand)?;
    }
    if let Some(crossing) = &errand.crossing {
        crossing.aim(voice)?;
    }
    let terminal = if let Some(target) = errand.target {
        userns::enter_container(errand, target)?;
        let open = || terminal::open(identity::root()?.as_fd());
        task.terminal.then(|| voice.step(Step::Terminal, open)).transpose()?
    } else {
        // clone3(NEWCGROUP) would make the *monitor's* cgroup the root of the namespace.
        if errand.ready.cgroup_namespace {
            voice.step(Step::Namespaces, || process::unshare(libc::CLONE_NEWCGROUP))?;
        }
        ops::run(voice, &errand.ready.ops, &errand.ready.fds, errand.crossing)?
    };
    if let Some(terminal) = terminal {
        voice.step(Step::Terminal, || terminal::take(&terminal, task.uid, voice.control))?;
    }
    voice.step(Step::Descriptors, || close_all_but(voice.control))?;
    identity::assume(voice, task)?;
    voice.step(Step::Reset, || process::set_signal_mask(0))
}

/// What takes the privileges of the host's root, and is inherited.
fn with_privilege(errand: &Errand<'_>) -> Result<(), Failure> {
    let (voice, task) = (&errand.voice, &errand.ready.task);
    // Through the monitor's own /proc, before any file system of the container is in sight: nothing in there can
    // redirect the write (CVE-2025-52881).
    if let Some(score) = task.oom_score_adj {
        voice.step(Step::OomScore, || oom_score_adj(score))?;
    }
    if let Some(request) = &task.apparmor {
        voice.step(Step::AppArmor, || label::on_execute(request))?;
    }
    let owner = errand.ready.user.map_or(task.uid, |user| user.host_uid);
    voice.step(Step::Descriptors, || {
        for (fd, number) in errand.stdio.iter().zip(0..) {
            give_pipe(*fd, owner)?;
            process::dup_onto_standard(*fd, number)?;
        }
        Ok(())
    })?;
    match errand.ready.user {
        Some(_) => userns::raise_limits(voice, task),
        None => Ok(()),
    }
}

/// Lets the user of the process open /dev/stdin, /dev/stdout and /dev/stderr anew, which is what programs and shells
/// do: a pipe belongs to root, with mode 0600. Nothing but a pipe may change hands: /dev/null is everybody's.
fn give_pipe(fd: BorrowedFd<'_>, uid: u32) -> Result<(), Errno> {
    if path::stat(fd, c"")?.kind() != libc::S_IFIFO {
        return Ok(());
    }
    path::fchownat(fd, c"", uid, u32::MAX)
}

/// Undoes what a parent may have set for itself.
pub(crate) fn reset(voice: &Voice<'_>) -> Result<(), Failure> {
    voice.step(Step::Reset, || {
        process::default_dispositions()?;
        process::setsid()?;
        process::umask(0);
        process::set_nice(0)?;
        match process::join_session_keyring() {
            // A kernel without keyrings has none to share.
            Err(Errno::ENOSYS) => Ok(()),
            answer => answer,
        }
    })
}

/// Closes every descriptor from 3 on, except one. What is still owned by a variable of this copy of the process is
/// never dropped: the process ends in `execve` or `_exit`.
fn close_all_but(one: BorrowedFd<'_>) -> Result<(), Errno> {
    let number = one.as_raw_fd() as u32;
    // SAFETY: this copy of the process never returns to code that uses a descriptor other than this one and 0 to 2:
    // the operations' own ones were dropped when `ops::run` returned, the parent's are borrowed.
    unsafe {
        process::close_range(3, number.saturating_sub(1))?;
        process::close_range(number + 1, u32::MAX)
    }
}

/// Writes `oom_score_adj` of the calling process.
pub(crate) fn oom_score_adj(score: i32) -> Result<(), Errno> {
    let file = label::open_own(c"thread-self/oom_score_adj")?;
    let fd = file.as_fd();
    let mut buffer = [0u8; 12];
    match path::write(fd, decimal(score, &mut buffer)) {
        // Less protection than asked for is no reason to refuse a start; more than allowed never happens.
        Err(Errno::EACCES) if present_score(fd)? >= score => Ok(()),
        answer => answer.map(drop),
    }
}

fn present_score(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    let mut buffer = [0u8; 12];
    let length = path::read(fd, &mut buffer)?;
    let text = std::str::from_utf8(buffer.get(..length).unwrap_or_default()).map_err(|_| Errno::EBADMSG)?;
    text.trim_ascii_end().parse().map_err(|_| Errno::EBADMSG)
}

/// A number in decimal digits, at the end of `buffer`.
fn decimal(number: i32, buffer: &mut [u8; 12]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        start -= 1;
        buffer[start] = b'-';
    }
    buffer.get(start..).unwrap_or_default()
}

/// Tries each candidate as execvp(3) does; returns the errno that says most.
fn execute(task: &Task) -> Errno {
    let mut answer = Errno::ENOENT;
    for candidate in &task.candidates {
        match process::execve(candidate, &task.args, &task.env) {
            // Not here: the next directory may have it.
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Here, but not for us: look on, and say so if nothing else turns up.
            Errno::EACCES => answer = Errno::EACCES,
            errno => return errno,
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_socket() {
        let record = encode(Step::Operation, 513, 13);
        assert_eq!(decode(record), Some((Step::Operation, 513, 13)));
        assert_eq!(decode([0xff; RECORD]), None);
        for (step, number) in Step::ALL.into_iter().zip(0..) {
            assert_eq!(step as u16, number);
        }
    }

    #[test]
    fn numbers_are_spelled_without_allocating() {
        for number in [0, 7, -1, 1000, -998, i32::MAX, i32::MIN] {
            assert_eq!(decimal(number, &mut [0; 12]), number.to_string().as_bytes());
        }
    }
}
