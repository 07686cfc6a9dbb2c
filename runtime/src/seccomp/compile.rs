//! OCI seccomp to BPF, with libseccomp. Each distinct profile is compiled once: a node has a handful of them and starts
//! thousands of containers.
//!
//! Must not know: conditions, files.

use super::newer;
use super::profile::{ProfileError, field};
use super::stub::{Block, stub};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};
use std::collections::VecDeque;
use std::io::{Read, Seek};
use std::sync::{Arc, Mutex, PoisonError};

/// How many compiled profiles are kept.
const KEPT: usize = 32;
/// Largest errno that the kernel hands out (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;
/// Most instructions that the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// An array of `struct sock_filter`, native byte order.
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

/// Compiles a profile, or finds it compiled already.
///
/// # Errors
/// [`ProfileError::Field`], naming the field below `linux.seccomp`.
pub fn compile(profile: &LinuxSeccomp) -> Result<Arc<Filter>, ProfileError> {
    static MADE: Mutex<VecDeque<(LinuxSeccomp, Arc<Filter>)>> = Mutex::new(VecDeque::new());
    let made = || MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, filter)) = made().iter().find(|(known, _)| known == profile) {
        return Ok(filter.clone());
    }
    // Without the lock: two that meet here compile the same twice, once.
    let filter = Arc::new(build(profile, Search::Tree)?);
    let mut list = made();
    list.truncate(KEPT - 1);
    list.push_front((profile.clone(), filter.clone()));
    Ok(filter)
}

/// How a program finds the rule for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// By halves. The kernel runs a program once for each call there is when it is installed (`seccomp_cache_prepare`),
    /// which with a list takes as long as all the rest of starting a process.
    Tree,
    /// One comparison after the other: libseccomp's default.
    #[cfg(test)]
    List,
}

pub(super) fn build(profile: &LinuxSeccomp, search: Search) -> Result<Filter, ProfileError> {
    if profile.listener_path().is_some() || profile.listener_metadata().is_some() {
        return Err(field("listenerPath", "a notification listener is not supported"));
    }
    let flags = flags(profile.flags().as_deref().unwrap_or_default())?;
    let default = action("defaultAction", profile.default_action(), profile.default_errno_ret())?;
    let trouble = |at: &str| {
        let at = at.to_owned();
        move |error: libseccomp::error::SeccompError| field(&at, &error.to_string())
    };
    let mut context = ScmpFilterContext::new(default).map_err(trouble("defaultAction"))?;
    if search == Search::Tree {
        context.set_ctl_optimize(2).map_err(trouble("search tree"))?;
    }
    let architectures = architectures(profile.architectures().as_deref().unwrap_or_default())?;
    for (architecture, _) in &architectures {
        if !context.is_arch_present(*architecture).map_err(trouble("architectures"))? {
            context.add_arch(*architecture).map_err(trouble("architectures"))?;
        }
    }
    let mut blocks = Vec::new();
    for (architecture, audit) in architectures {
        let block = Block { architecture: audit.unwrap_or_default(), answers: vec![], last_known: None };
        blocks.push((architecture, block));
    }
    for (index, syscall) in profile.syscalls().iter().flatten().enumerate() {
        let at = format!("syscalls[{index}]");
        rule(&mut context, syscall, &at, default, &mut blocks)?;
    }
    let refuses = refuses(default);
    let blocks: Vec<_> = blocks
        .into_iter()
        .filter(|(_, block)| block.architecture != 0)
        .map(|(_, block)| Block { last_known: block.last_known.filter(|_| refuses), ..block })
        .collect();
    let mut program: Vec<u8> =
        stub(&blocks).into_iter().flat_map(super::stub::Instruction::to_bytes).collect();
    program.extend(export(&context)?);
    if program.len() / 8 > MAX_INSTRUCTIONS {
        return Err(field("syscalls", "the program has more instructions than the kernel takes"));
    }
    Ok(Filter { program, flags })
}

fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, ProfileError> {
    let trouble = |error: &dyn std::fmt::Display| field("syscalls", &format!("compile: {error}"));
    let file = memfd_create("crisp-seccomp", MFdFlags::MFD_CLOEXEC).map_err(|error| trouble(&error))?;
    context.export_bpf(&file).map_err(|error| trouble(&error))?;
    let mut file = std::fs::File::from(file);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(|error| trouble(&error))?;
    Ok(bytes)
}

/// Adds one entry of `syscalls` for all of its names.
fn rule(
    context: &mut ScmpFilterContext,
    syscall: &LinuxSyscall,
    at: &str,
    default: ScmpAction,
    blocks: &mut [(ScmpArch, Block)],
) -> Result<(), ProfileError> {
    let wanted = action(&format!("{at}.action"), syscall.action(), syscall.errno_ret())?;
    let args = syscall.args().as_deref().unwrap_or_default();
    let compares = args.iter().map(|arg| compare(arg, at)).collect::<Result<Vec<_>, _>>()?;
    for name in syscall.names() {
        let Ok(number) = ScmpSyscall::from_name(name) else {
            // An answer of ours cannot look at arguments: such a call gets the default's.
            if let Some(number) = newer::number(name).filter(|_| compares.is_empty()) {
                let answer = syscall.action().as_u32(errno(syscall.action(), syscall.errno_ret()));
                blocks.iter_mut().for_each(|(_, block)| block.answers.push((number, answer)));
            } else if refuses(wanted) && !refuses(default) {
                let text = format!("{name:?} is not known here on any architecture and would stay allowed");
                return Err(field(&format!("{at}.names"), &text));
            }
            continue;
        };
        for (architecture, block) in blocks.iter_mut() {
            let here = ScmpSyscall::from_name_by_arch(name, *architecture).map(ScmpSyscall::as_raw_syscall);
            // Negative: libseccomp's own number for a call that this architecture does not have.
            let here = here.ok().and_then(|number| u32::try_from(number).ok());
            block.last_known = block.last_known.max(here);
        }
        // libseccomp refuses a rule that says what is said already.
        if wanted == default {
            continue;
        }
        let trouble =
            |error: libseccomp::error::SeccompError| field(&format!("{at} ({name})"), &error.to_string());
        if compares.is_empty() {
            context.add_rule(wanted, number).map_err(trouble)?;
        } else if args
            .iter()
            .enumerate()
            .any(|(nth, arg)| args[..nth].iter().any(|one| one.index() == arg.index()))
        {
            // Two conditions on one argument: either is enough, as every runtime reads it.
            for compare in &compares {
                context.add_rule_conditional(wanted, number, &[*compare]).map_err(trouble)?;
            }
        } else {
            context.add_rule_conditional(wanted, number, &compares).map_err(trouble)?;
        }
    }
    Ok(())
}

/// Whether a call with this action is not made.
fn refuses(action: ScmpAction) -> bool {
    !matches!(action, ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_))
}

fn errno(action: Action, given: Option<u32>) -> Option<u32> {
    matches!(action, Action::ScmpActErrno | Action::ScmpActTrace).then(|| given.unwrap_or(libc::EPERM as u32))
}

fn action(at: &str, action: Action, given: Option<u32>) -> Result<ScmpAction, ProfileError> {
    let value = errno(action, given).unwrap_or_default();
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActErrno if value > MAX_ERRNO => {
            return Err(field(at, &format!("errnoRet {value} is above {MAX_ERRNO}")));
        }
        Action::ScmpActErrno => ScmpAction::Errno(value as i32),
        Action::ScmpActTrace => ScmpAction::Trace(
            u16::try_from(value).map_err(|_| field(at, &format!("errnoRet {value} is above 65535")))?,
        ),
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActAllow => ScmpAction::Allow,
        Action::ScmpActNotify => return Err(field(at, "SCMP_ACT_NOTIFY is not supported")),
    })
}

fn compare(arg: &LinuxSeccompArg, at: &str) -> Result<ScmpArgCompare, ProfileError> {
    let index = u32::try_from(arg.index()).ok().filter(|index| *index < 6);
    let index =
        index.ok_or_else(|| field(&format!("{at}.args"), &format!("index {} is above 5", arg.index())))?;
    let (op, datum) = match arg.op() {
        Operator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        Operator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        Operator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        Operator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        Operator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        Operator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        Operator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or_default())
        }
    };
    Ok(ScmpArgCompare::new(index, op, datum))
}

fn flags(list: &[Flag]) -> Result<u32, ProfileError> {
    list.iter().try_fold(0, |bits, flag| {
        Ok(bits
            | match flag {
                Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
                Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
                // For the other threads of the installing process, which has none.
                Flag::SeccompFilterFlagTsync => 0,
                Flag::SeccompFilterFlagWaitKillableRecv => {
                    return Err(field("flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a listener"));
                }
            })
    })
}

/// Libseccomp's name and the kernel's number (`AUDIT_ARCH_*`); none for x32, which is x86-64 to the kernel.
fn architectures(list: &[Arch]) -> Result<Vec<(ScmpArch, Option<u32>)>, ProfileError> {
    let native = ScmpArch::native();
    let mut found: Vec<(ScmpArch, Option<u32>)> = vec![(native, audit(native))];
    for arch in list {
        let known = match arch {
            Arch::ScmpArchNative => native,
            Arch::ScmpArchX86 => ScmpArch::X86,
            Arch::ScmpArchX86_64 => ScmpArch::X8664,
            Arch::ScmpArchX32 => ScmpArch::X32,
            Arch::ScmpArchArm => ScmpArch::Arm,
            Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
            Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
            Arch::ScmpArchS390 => ScmpArch::S390,
            Arch::ScmpArchS390x => ScmpArch::S390X,
            Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
            // Profiles list what no kernel of this machine can run; a call from there is killed anyway.
            _ => continue,
        };
        if !found.iter().any(|(one, _)| *one == known) {
            found.push((known, audit(known)));
        }
    }
    // Of another byte order than the machine's: libseccomp cannot put them into one filter.
    found.retain(|(arch, _)| sibling(native, *arch));
    Ok(found)
}

/// Whether a kernel of `native` can run programs of `other`.
fn sibling(native: ScmpArch, other: ScmpArch) -> bool {
    use ScmpArch::{Aarch64, Arm, S390, S390X, X32, X86, X8664};
    native == other || matches!((native, other), (X8664, X86 | X32) | (Aarch64, Arm) | (S390X, S390))
}

fn audit(arch: ScmpArch) -> Option<u32> {
    Some(match arch {
        ScmpArch::X86 => 0x4000_0003,
        ScmpArch::X8664 => 0xc000_003e,
        ScmpArch::Arm => 0x4000_0028,
        ScmpArch::Aarch64 => 0xc000_00b7,
        ScmpArch::Ppc64Le => 0xc000_0015,
        ScmpArch::S390 => 0x0000_0016,
        ScmpArch::S390X => 0x8000_0016,
        ScmpArch::Riscv64 => 0xc000_00f3,
        _ => return None,
    })
}
