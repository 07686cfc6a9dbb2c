//! `process` of a spec.
//!
//! Must not know: file systems.

use super::refuse;
use crate::error::PlanError;
use crate::plan::{Capabilities, Plan, Process, Rlimit, User};
use crate::userns::IdMappings;
use oci_spec::runtime::{self as spec, PosixRlimitType};
use std::str::FromStr;

/// What a process gets when the spec has no umask (Docker, containerd and CRI-O agree on it).
const DEFAULT_UMASK: u32 = 0o022;

/// Longest name of an AppArmor profile, bytes. The kernel takes a page; this leaves room for what stands around it.
const MAX_PROFILE: usize = 1024;

/// Plans a further process in a running container; `seccomp` is `linux.seccomp` of the container's spec, `user` the
/// mapping of its user namespace ([`super::id_mappings`]).
///
/// # Errors
/// As [`super::plan`].
pub fn exec_plan(
    process: &spec::Process,
    seccomp: Option<&spec::LinuxSeccomp>,
    user: Option<&IdMappings>,
) -> Result<Plan, PlanError> {
    let process = plan(process, "process", seccomp)?;
    let host_uid = user.map(|mappings| super::user::host_uid(mappings, &process)).transpose()?;
    let user = host_uid.map(|host_uid| User { fd: 0, host_uid });
    Ok(Plan { ops: Vec::new(), process: Some(process), fds: 0, cgroup_namespace: false, user })
}

/// The process of a plan; `at` is its place in the spec, for error texts.
pub(super) fn plan(
    process: &spec::Process,
    at: &str,
    seccomp: Option<&spec::LinuxSeccomp>,
) -> Result<Process, PlanError> {
    refuse::process(process, at)?;
    let words = |field: &str, list: &Option<Vec<String>>| {
        let list = list.as_deref().unwrap_or_default();
        match list.iter().find(|word| word.contains('\0')) {
            Some(_) => Err(PlanError::invalid(format!("{at}.{field}"), "holds a NUL byte")),
            None => Ok(list.iter().map(|word| word.clone().into_bytes()).collect::<Vec<_>>()),
        }
    };
    let args = words("args", process.args())?;
    if args.is_empty() {
        return Err(PlanError::invalid(format!("{at}.args"), "empty"));
    }
    let filter = seccomp.map(crate::seccomp::compile).transpose();
    let filter = filter.map_err(|error| PlanError::invalid("linux.seccomp", error.to_string()))?;
    let user = process.user();
    let rlimits = process.rlimits().as_deref().unwrap_or_default();
    Ok(Process {
        args,
        env: words("env", process.env())?,
        cwd: super::text(&format!("{at}.cwd"), process.cwd())?,
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        capabilities: Some(capabilities(process.capabilities().as_ref(), at)?),
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: process.oom_score_adj().map(|score| oom_score_adj(score, at)).transpose()?,
        rlimits: rlimits.iter().map(|limit| rlimit(limit, at)).collect::<Result<_, _>>()?,
        umask: user.umask().unwrap_or(DEFAULT_UMASK),
        seccomp_flags: filter.as_ref().map_or(0, |filter| filter.flags),
        terminal: process.terminal().unwrap_or(false),
        seccomp: filter.map(|filter| filter.program.clone()).unwrap_or_default(),
        apparmor: apparmor(process.apparmor_profile().as_deref().unwrap_or_default(), at)?,
    })
}

/// The name of a profile, as one line of a procfs file.
fn apparmor(profile: &str, at: &str) -> Result<String, PlanError> {
    if profile.len() > MAX_PROFILE || profile.chars().any(char::is_control) {
        return Err(PlanError::invalid(format!("{at}.apparmorProfile"), "not one short line"));
    }
    Ok(profile.to_owned())
}

fn oom_score_adj(score: i32, at: &str) -> Result<i32, PlanError> {
    if (-1000..=1000).contains(&score) {
        return Ok(score);
    }
    Err(PlanError::invalid(format!("{at}.oomScoreAdj"), format!("{score} is not within -1000 to 1000")))
}

/// Capability sets as masks; a spec without capabilities asks for none.
fn capabilities(sets: Option<&spec::LinuxCapabilities>, at: &str) -> Result<Capabilities, PlanError> {
    let Some(sets) = sets else { return Ok(Capabilities::default()) };
    let mask = |set: &Option<spec::Capabilities>| -> Result<u64, PlanError> {
        set.iter().flatten().try_fold(0, |mask, name| {
            let known = caps::Capability::from_str(&format!("CAP_{name}"))
                .map_err(|_| PlanError::unsupported(format!("{at}.capabilities"), format!("CAP_{name}")))?;
            Ok(mask | known.bitmask())
        })
    };
    Ok(Capabilities {
        bounding: mask(sets.bounding())?,
        effective: mask(sets.effective())?,
        permitted: mask(sets.permitted())?,
        inheritable: mask(sets.inheritable())?,
        ambient: mask(sets.ambient())?,
    })
}

fn rlimit(limit: &spec::PosixRlimit, at: &str) -> Result<Rlimit, PlanError> {
    if limit.soft() > limit.hard() {
        let reason =
            format!("{:?}: soft limit {} above hard limit {}", limit.typ(), limit.soft(), limit.hard());
        return Err(PlanError::invalid(format!("{at}.rlimits"), reason));
    }
    let resource = match limit.typ() {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    Ok(Rlimit { resource, soft: limit.soft(), hard: limit.hard() })
}
