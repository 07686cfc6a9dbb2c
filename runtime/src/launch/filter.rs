//! What a seccomp program answers to a system call, found by running it.
//!
//! Must not know: which calls are asked about, and why.

/// `offsetof(struct seccomp_data, args)`; before it are the call's number, the architecture and an address.
const ARGS: usize = 16;
const SIZE: usize = 64;
/// More steps than a valid program, which has no loops, can take.
const MAX_STEPS: usize = 4097;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Whether a program lets the call through; `first` is its first argument, the others are 0. Programs with
/// instructions that seccomp compilers do not use count as ones that do not.
pub(super) fn allows(program: &[libc::sock_filter], call: libc::c_long, first: u64) -> bool {
    let mut data = [0; SIZE];
    data[..4].copy_from_slice(&(call as u32).to_ne_bytes());
    data[4..8].copy_from_slice(&ARCH.to_ne_bytes());
    data[ARGS..ARGS + 8].copy_from_slice(&first.to_ne_bytes());
    matches!(run(program, &data), Some(libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG))
}

/// The action; `None`: not understood.
fn run(program: &[libc::sock_filter], data: &[u8; SIZE]) -> Option<u32> {
    let (mut accumulator, mut at) = (0u32, 0usize);
    for _ in 0..MAX_STEPS {
        let libc::sock_filter { code, jt, jf, k } = *program.get(at)?;
        let code = u32::from(code);
        at += 1;
        let jump = |taken: bool| usize::from(if taken { jt } else { jf });
        match (code & 7, code & !7) {
            (libc::BPF_LD, mode) if mode == libc::BPF_W | libc::BPF_ABS => {
                let bytes = data.get(k as usize..)?.first_chunk()?;
                accumulator = u32::from_ne_bytes(*bytes);
            }
            (libc::BPF_ALU, mode) if mode == libc::BPF_AND | libc::BPF_K => accumulator &= k,
            (libc::BPF_JMP, mode) if mode == libc::BPF_JA => at += k as usize,
            (libc::BPF_JMP, mode) if mode == libc::BPF_JEQ | libc::BPF_K => at += jump(accumulator == k),
            (libc::BPF_JMP, mode) if mode == libc::BPF_JGT | libc::BPF_K => at += jump(accumulator > k),
            (libc::BPF_JMP, mode) if mode == libc::BPF_JGE | libc::BPF_K => at += jump(accumulator >= k),
            (libc::BPF_JMP, mode) if mode == libc::BPF_JSET | libc::BPF_K => at += jump(accumulator & k != 0),
            (libc::BPF_RET, mode) if mode == libc::BPF_K => return Some(k & libc::SECCOMP_RET_ACTION_FULL),
            _ => return None,
        }
    }
    None
}
