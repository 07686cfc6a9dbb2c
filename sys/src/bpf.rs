//! BPF programs of one kind: those that decide which devices the processes of a cgroup may use
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`; bpf(2), Documentation/bpf and include/uapi/linux/bpf.h of the kernel).
//!
//! Must not know: which devices anybody may use.

#![expect(unsafe_code, reason = "bpf(2) has no safe form")]

use crate::errno::{Context, Errno, SysError};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Class, operation and kind of operand.
    pub code: u8,
    /// Destination register in the low half, source register in the high half, as the kernel has it on a
    /// little-endian machine; [`Instruction::new`] puts them in this machine's order.
    registers: u8,
    /// Jump distance or memory offset.
    pub offset: i16,
    /// Constant operand.
    pub immediate: i32,
}

impl Instruction {
    /// Puts one together; registers are numbers from 0 to 10.
    #[must_use]
    pub const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        let (low, high) =
            if cfg!(target_endian = "little") { (destination, source) } else { (source, destination) };
        Self { code, registers: (low & 0xf) | (high << 4), offset, immediate }
    }

    /// The register that is written, or compared.
    #[must_use]
    pub const fn destination(&self) -> u8 {
        if cfg!(target_endian = "little") { self.registers & 0xf } else { self.registers >> 4 }
    }

    /// The register that is read.
    #[must_use]
    pub const fn source(&self) -> u8 {
        if cfg!(target_endian = "little") { self.registers >> 4 } else { self.registers & 0xf }
    }
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;

/// Room for what the verifier says about a program that it refuses.
const LOG_BYTES: usize = 16 << 10;

/// How many of its last lines an error quotes.
const LOG_LINES: usize = 3;

/// How often a load is tried again that a signal or a busy verifier disturbed (`EAGAIN`, as libbpf does it).
const ATTEMPTS: u32 = 5;

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads, up to the name (4.15). The kernel takes a shorter one
/// than its own and zeroes the rest.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The part of `union bpf_attr` that `BPF_PROG_ATTACH` reads.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a device program; the kernel checks it first. `name` is what `bpftool prog` shows, cut to 15 bytes. The
/// descriptor is close-on-exec, as the kernel makes all of its kind.
///
/// # Errors
/// `EPERM` without `CAP_BPF` (or `CAP_SYS_ADMIN`), or where the host does not allow bpf(2) at all; `EINVAL` and
/// `EACCES` for a program that the verifier does not accept: the error then carries what it said.
pub fn load_device_program(program: &[Instruction], name: &str) -> Result<OwnedFd, SysError> {
    // Loaded without a log first, because writing one takes longer than the check itself.
    load(program, name, &mut []).map_err(|errno| {
        let said = if errno == Errno::EPERM { String::new() } else { verdict(program, name) };
        SysError::new("bpf", format!("BPF_PROG_LOAD {name}{said}"), errno)
    })
}

/// What the verifier says about a program that it has refused, to be put behind its name.
fn verdict(program: &[Instruction], name: &str) -> String {
    let mut log = vec![0; LOG_BYTES];
    // The answer is known, and with a log it may be another one: ENOSPC, where the log did not fit.
    drop(load(program, name, &mut log));
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    // A trace of all it has looked at; the reason and a summary stand at the end.
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    match &lines[lines.len().saturating_sub(LOG_LINES)..] {
        [] => String::new(),
        last => format!(" (the verifier says: {})", last.join("; ")),
    }
}

fn load(program: &[Instruction], name: &str, log: &mut [u8]) -> Result<OwnedFd, Errno> {
    let mut prog_name = [0; 16];
    let length = name.len().min(prog_name.len() - 1);
    prog_name[..length].copy_from_slice(&name.as_bytes()[..length]);
    // Not one of the GPL: only helper functions ask for that, and these programs call none.
    let license = c"Apache-2.0";
    let logged = !log.is_empty();
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: logged.into(),
        log_size: u32::try_from(log.len()).map_err(|_| Errno::E2BIG)?,
        log_buf: if logged { log.as_mut_ptr().expose_provenance() as u64 } else { 0 },
        kern_version: 0,
        prog_flags: 0,
        prog_name,
    };
    let mut attempt = 1;
    let number = loop {
        // SAFETY: `attr` begins a `union bpf_attr` and is passed with its own size; the addresses in it are those of
        // `program`, `license` and `log`, which live until the call returns, with the lengths given beside them (the
        // license ends with a NUL). Only `log` is written, which is borrowed mutably.
        let answer = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, std::ptr::from_mut(&mut attr), size_of::<LoadAttr>())
        };
        match Errno::result(answer) {
            Err(Errno::EAGAIN | Errno::EINTR) if attempt < ATTEMPTS => attempt += 1,
            answer => break answer?,
        }
    };
    // SAFETY: the call made this descriptor just now, and nobody else has seen its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number as libc::c_int) })
}

/// Puts a loaded device program on a cgroup, beside those that are there already and those above it: each of them must
/// allow a use (`BPF_F_ALLOW_MULTI`). It stays until the cgroup is removed; `program` may be closed.
///
/// # Errors
/// `EPERM` without the privilege, or where a cgroup above has a program that allows no others below; `EBADF` when
/// `cgroup` is none of version 2.
pub fn attach_device_program(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> Result<(), SysError> {
    let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().cast_unsigned();
    let attr = AttachAttr {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attr` begins a `union bpf_attr`, is passed with its own size, and is only read.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, std::ptr::from_ref(&attr), size_of::<AttachAttr>())
    };
    Errno::result(answer).map(drop).on("bpf", || "BPF_PROG_ATTACH")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const EXIT: Instruction = Instruction::new(0x95, 0, 0, 0, 0);
    const ALLOW: Instruction = Instruction::new(0xb7, 0, 0, 0, 1);

    #[test]
    fn a_program_loads_and_closes_on_exec() {
        let program = load_device_program(&[ALLOW, EXIT], "crisp_test").unwrap();
        let flags = nix::fcntl::fcntl(program.as_fd(), nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, libc::FD_CLOEXEC);
    }

    #[test]
    fn a_refused_program_tells_what_the_verifier_says() {
        // Leaves without a verdict.
        let error = load_device_program(&[EXIT], "crisp_test").unwrap_err();
        assert!(error.object.contains("R0"), "{error}");
        // No program at all: nothing for the verifier to say.
        let error = load_device_program(&[], "crisp_test").unwrap_err();
        assert_eq!((error.errno, error.object.as_str()), (Errno::E2BIG, "BPF_PROG_LOAD crisp_test"));
    }

    #[test]
    fn only_a_cgroup_takes_a_program() {
        let program = load_device_program(&[ALLOW, EXIT], "crisp_test").unwrap();
        let file = crate::fd::memfd_create_sealed("no-cgroup", b"").unwrap();
        let error = attach_device_program(program.as_fd(), file.as_fd()).unwrap_err();
        assert_eq!(error.errno, Errno::EBADF);
    }

    #[test]
    fn registers_are_found_again() {
        let one = Instruction::new(0, 3, 10, 0, 0);
        assert_eq!((one.destination(), one.source()), (3, 10));
    }
}
