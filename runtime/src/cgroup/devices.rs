//! Which devices the processes of a cgroup may use: rules become a BPF program, because cgroup v2 has no files for it
//! (Documentation/admin-guide/cgroup-v2.rst, "Device controller").
//!
//! The rules read as OCI's `linux.resources.devices`: the last one that matches decides, separately for reading,
//! writing and making a node; what no rule mentions is denied.
//!
//! Must not know: which devices containers get.

use super::{Cgroup, CgroupError};
use crisp_sys::bpf::{Instruction, attach_device_program, load_device_program};
use std::os::fd::{AsFd, OwnedFd};

bitflags::bitflags! {
    /// Ways to use a device; the numbers are the kernel's (`BPF_DEVCG_ACC_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct DeviceAccess: u8 {
        /// `m`: make a node for it, with mknod(2).
        const MKNOD = 1;
        /// `r`: open it to read.
        const READ = 2;
        /// `w`: open it to write.
        const WRITE = 4;
    }
}

/// Block or character device; the numbers are the kernel's (`BPF_DEVCG_DEV_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DeviceKind {
    /// `b`.
    Block = 1,
    /// `c`.
    Character = 2,
}

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    /// Whether it gives or takes.
    pub allow: bool,
    /// `None`: both kinds.
    pub kind: Option<DeviceKind>,
    /// `None`: every one.
    pub major: Option<u32>,
    /// `None`: every one.
    pub minor: Option<u32>,
    /// What it gives or takes.
    pub access: DeviceAccess,
}

impl DeviceRule {
    /// Gives everything.
    pub const ALLOW_ALL: Self =
        Self { allow: true, kind: None, major: None, minor: None, access: DeviceAccess::all() };
}

/// Rules as a program that the kernel has checked; serves any number of cgroups.
#[derive(Debug)]
pub struct DeviceProgram {
    rules: Vec<DeviceRule>,
    fd: OwnedFd,
}

impl DeviceProgram {
    /// Loads the program for `rules`.
    ///
    /// # Errors
    /// `EPERM` where this host does not allow bpf(2).
    pub fn load(rules: &[DeviceRule]) -> Result<Self, CgroupError> {
        let fd = load_device_program(&program(rules), "crisp_devices")?;
        Ok(Self { rules: rules.to_owned(), fd })
    }

    /// What it was made from.
    #[must_use]
    pub fn rules(&self) -> &[DeviceRule] {
        &self.rules
    }
}

impl Cgroup {
    /// Holds every process that is or ever will be in it, or below it, to the program's rules. Cannot be taken back.
    /// What is open already stays open.
    ///
    /// # Errors
    /// `EPERM` where this host does not allow bpf(2), or a cgroup above has a program that allows no others.
    pub fn control_devices(&self, program: &DeviceProgram) -> Result<(), CgroupError> {
        attach_device_program(program.fd.as_fd(), self.as_fd()).map_err(|mut error| {
            error.object = format!("{} {}", error.object, self.location().display());
            error.into()
        })
    }
}

// What of the instruction set is needed (Documentation/bpf/standardization/instruction-set.rst): class, size or
// operation, and operand in one byte. All of it on 32 bits, so that a number is compared as it is.
/// `dst = *(u32 *)(src + offset)`
const LOAD: u8 = 0x61;
/// `dst = src`
const COPY: u8 = 0xbc;
/// `dst = immediate`
const SET: u8 = 0xb4;
/// `dst &= immediate`
const AND: u8 = 0x54;
/// `dst >>= immediate`
const SHIFT_RIGHT: u8 = 0x74;
/// Jump where `dst == immediate`
const JUMP_IF_EQUAL: u8 = 0x16;
/// Jump where `dst != immediate`
const JUMP_UNLESS_EQUAL: u8 = 0x56;
/// Jump where `dst & immediate`
const JUMP_IF_ANY_BIT: u8 = 0x46;
/// Jump
const JUMP: u8 = 0x05;
/// Return r0
const EXIT: u8 = 0x95;

/// The verdict.
const RESULT: u8 = 0;
/// Points to `struct bpf_cgroup_dev_ctx`: access in the high and kind in the low half of the first word, then major
/// and minor.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// What is asked for and has not been given yet.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program for `rules`.
///
/// It walks them from the last to the first: an allowing rule strikes out of what is wanted what it gives, and when
/// nothing is left the answer is yes; a denying rule that meets something still wanted makes it no. So each way to use
/// a device is decided by the last rule that speaks of it.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let set = |code, register, immediate| Instruction::new(code, register, 0, 0, immediate);
    let load = |register, offset| Instruction::new(LOAD, register, CONTEXT, offset, 0);
    let mut program = vec![
        load(KIND, 0),
        Instruction::new(COPY, WANTED, KIND, 0, 0),
        set(SHIFT_RIGHT, WANTED, 16),
        // Nothing else is ever set; it lets the verifier know that after all three nothing is left.
        set(AND, WANTED, DeviceAccess::all().bits().into()),
        set(AND, KIND, 0xffff),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(block(rule));
    }
    program.extend([set(SET, RESULT, 0), set(EXIT, 0, 0)]);
    program
}

/// One rule; where it does not decide, what follows runs.
fn block(rule: &DeviceRule) -> Vec<Instruction> {
    let plain = |code, register, immediate| Instruction::new(code, register, 0, 0, immediate);
    let jump = |code, register, distance, immediate| Instruction::new(code, register, 0, distance, immediate);
    let access = i32::from(rule.access.bits());
    let verdict = if rule.allow {
        [plain(AND, WANTED, !access), jump(JUMP_UNLESS_EQUAL, WANTED, 2, 0)]
    } else {
        [jump(JUMP_IF_ANY_BIT, WANTED, 1, access), jump(JUMP, 0, 2, 0)]
    };
    let mut block: Vec<_> =
        verdict.into_iter().chain([plain(SET, RESULT, rule.allow.into()), plain(EXIT, 0, 0)]).collect();
    let conditions = [(KIND, rule.kind.map(|kind| kind as u32)), (MAJOR, rule.major), (MINOR, rule.minor)];
    // From the inside out: each one jumps over a jump to the end of all that is there so far. Not "jump to the end
    // unless equal": the verifier follows what does not jump first, and only when that is the way past the rule with
    // nothing known about the device has it seen all that the other ways can lead to. The other way round its work
    // grows with the square of the number of rules and more, and ends in E2BIG for some hundred devices.
    for (register, value) in conditions.into_iter().rev() {
        if let Some(value) = value {
            let skip = jump(JUMP, 0, block.len() as i16, 0);
            block.splice(0..0, [jump(JUMP_IF_EQUAL, register, 1, value.cast_signed()), skip]);
        }
    }
    block
}

#[cfg(test)]
mod tests;
