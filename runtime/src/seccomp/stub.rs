//! The few instructions in front of libseccomp's program: answers for system calls that libseccomp does not know, and
//! ENOSYS for those that the profile is too old to know.
//!
//! A program of libseccomp starts with loading what it looks at, and its jumps are relative: it can be put behind
//! other instructions. Everything here only reads architecture and number, so the kernel's cache of constant
//! answers still works.
//!
//! Must not know: profiles.

/// `struct sock_filter`: code, jump if true, jump if false, operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction(pub(super) u16, pub(super) u8, pub(super) u8, pub(super) u32);

pub(super) const LOAD: u16 = 0x20;
pub(super) const JUMP: u16 = 0x05;
pub(super) const IF_EQUAL: u16 = 0x15;
pub(super) const IF_ABOVE: u16 = 0x25;
pub(super) const IF_NOT_BELOW: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;
/// Offset of the number in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
/// Offset of the architecture in `struct seccomp_data`.
pub(super) const ARCHITECTURE: u32 = 4;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Set in the numbers of x32 calls, which have their own numbering.
const X32_BIT: u32 = 0x4000_0000;
const RETURN_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;

/// What is to be done for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// `AUDIT_ARCH_*`.
    pub(super) architecture: u32,
    /// Calls with their answers (`SECCOMP_RET_*`).
    pub(super) answers: Vec<(u32, u32)>,
    /// Above this number: ENOSYS.
    pub(super) last_known: Option<u32>,
}

impl Instruction {
    /// As the kernel reads it.
    pub(super) fn to_bytes(self) -> [u8; 8] {
        let Self(code, yes, no, operand) = self;
        let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), operand.to_ne_bytes());
        [a, b, yes, no, c, d, e, f]
    }
}

/// The instructions; the last one falls through to what follows them.
pub(super) fn stub(blocks: &[Block]) -> Vec<Instruction> {
    // Backwards: each block ends with a jump over all blocks behind it.
    let mut behind: Vec<Instruction> = Vec::new();
    for block in blocks.iter().rev() {
        let mut inner = instructions(block);
        inner.push(Instruction(JUMP, 0, 0, behind.len() as u32));
        let to_next = Instruction(JUMP, 0, 0, inner.len() as u32);
        let mut front = vec![Instruction(IF_EQUAL, 1, 0, block.architecture), to_next];
        front.append(&mut inner);
        front.append(&mut behind);
        behind = front;
    }
    if !behind.is_empty() {
        behind.insert(0, Instruction(LOAD, 0, 0, ARCHITECTURE));
    }
    behind
}

fn instructions(block: &Block) -> Vec<Instruction> {
    let mut answers = Vec::new();
    for (number, answer) in &block.answers {
        answers.push(Instruction(IF_EQUAL, 0, 1, *number));
        answers.push(Instruction(RETURN, 0, 0, *answer));
    }
    if let Some(last) = block.last_known {
        answers.push(Instruction(IF_ABOVE, 0, 1, last));
        answers.push(Instruction(RETURN, 0, 0, RETURN_ENOSYS));
    }
    let mut list = vec![Instruction(LOAD, 0, 0, NUMBER)];
    if block.architecture == AUDIT_ARCH_X86_64 {
        // An x32 call is left to the program behind.
        list.push(Instruction(IF_NOT_BELOW, 0, 1, X32_BIT));
        list.push(Instruction(JUMP, 0, 0, answers.len() as u32));
    }
    list.append(&mut answers);
    list
}
