//! What a compiled profile is found to allow.

use crate::launch::{filter::allows, prepare::instructions};
use oci_spec::runtime::LinuxSeccomp;
use serde_json::json;

fn compiled(profile: serde_json::Value) -> Vec<libc::sock_filter> {
    let profile: LinuxSeccomp = serde_json::from_value(profile).unwrap();
    let program = crate::seccomp::compile(&profile).unwrap();
    instructions(&program.program).unwrap()
}

#[test]
fn compiled_profiles_answer_as_they_say() {
    let program = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["setsid"], "action": "SCMP_ACT_LOG"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0x7e02_0000u32, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}
        ]
    }));
    assert!(allows(&program, libc::SYS_read, 0) && allows(&program, libc::SYS_setsid, 0));
    assert!(!allows(&program, libc::SYS_execve, 0));
    assert!(allows(&program, libc::SYS_clone, libc::CLONE_PARENT as u64));
    assert!(!allows(&program, libc::SYS_clone, libc::CLONE_NEWUSER as u64));
    let program = compiled(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_KILL_PROCESS"}]
    }));
    assert!(allows(&program, libc::SYS_execve, 0) && !allows(&program, libc::SYS_clone, 0));
}

#[test]
fn what_is_no_program_allows_nothing() {
    assert!(!allows(&[], libc::SYS_read, 0));
    let jump = libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JA) as u16, jt: 0, jf: 0, k: u32::MAX };
    assert!(!allows(&[jump], libc::SYS_read, 0));
}
