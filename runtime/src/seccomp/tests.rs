//! Programs are run by a small interpreter of classic BPF: what is tested is the kernel's answer, not the code.

use super::compile::{Search, build};
use super::profile::{Machine, Profile};
use super::stub::{
    ARCHITECTURE, Block, IF_ABOVE, IF_EQUAL, IF_NOT_BELOW, Instruction, JUMP, LOAD, NUMBER, RETURN, stub,
};
use super::{Filter, compile};
use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{Arch, Capabilities, Capability, LinuxSeccomp};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const IF_SET: u16 = 0x45;
const AND: u16 = 0x54;
const X86_64: u32 = 0xc000_003e;

fn errno(number: i32) -> u32 {
    0x0005_0000 | number as u32
}

fn read(program: &[u8]) -> Vec<Instruction> {
    let (whole, rest) = program.as_chunks::<8>();
    assert!(rest.is_empty());
    let one = |&[a, b, yes, no, c, d, e, f]: &[u8; 8]| {
        Instruction(u16::from_ne_bytes([a, b]), yes, no, u32::from_ne_bytes([c, d, e, f]))
    };
    whole.iter().map(one).collect()
}

/// What the kernel would do with a call.
fn verdict(program: &[Instruction], arch: u32, number: u32, args: &[u64]) -> u32 {
    verdict_and_steps(program, arch, number, args).0
}

fn verdict_and_steps(program: &[Instruction], arch: u32, number: u32, args: &[u64]) -> (u32, usize) {
    let word = |offset: u32| {
        let half = |index: usize| args.get(index / 2).map_or(0, |arg| (arg >> (32 * (index % 2))) as u32);
        match offset {
            NUMBER => number,
            ARCHITECTURE => arch,
            16.. if offset.is_multiple_of(4) => half(((offset - 16) / 4) as usize),
            other => panic!("load from {other}"),
        }
    };
    let (mut at, mut value, mut steps) = (0, 0u32, 0);
    loop {
        let Instruction(code, yes, no, operand) = program[at];
        at += 1;
        steps += 1;
        let mut branch = |taken: bool| at += usize::from(if taken { yes } else { no });
        match code {
            LOAD => value = word(operand),
            AND => value &= operand,
            IF_EQUAL => branch(value == operand),
            IF_ABOVE => branch(value > operand),
            IF_NOT_BELOW => branch(value >= operand),
            IF_SET => branch(value & operand != 0),
            JUMP => at += operand as usize,
            RETURN => return (operand, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// The answer to a call of this machine's own architecture.
fn answer(filter: &Filter, name: &str, args: &[u64]) -> u32 {
    let number = ScmpSyscall::from_name(name).map(ScmpSyscall::as_raw_syscall).ok();
    let number = number.map_or_else(|| super::newer::number(name).unwrap(), |number| number as u32);
    verdict(&read(&filter.program), X86_64, number, args)
}

fn made(profile: Value) -> Arc<Filter> {
    compile(&resolved(profile)).unwrap()
}

fn resolved(profile: Value) -> LinuxSeccomp {
    serde_json::from_value::<Profile>(profile).unwrap().resolve(&Capabilities::new()).unwrap()
}

fn refused(profile: Value) -> String {
    let profile: Profile = match serde_json::from_value(profile) {
        Ok(profile) => profile,
        Err(error) => return error.to_string(),
    };
    match profile.resolve(&Capabilities::new()) {
        Ok(resolved) => compile(&resolved).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

fn default_with(capabilities: &[Capability]) -> Arc<Filter> {
    let set = capabilities.iter().copied().collect();
    compile(&Profile::runtime_default().resolve(&set).unwrap()).unwrap()
}

/// The tree is what libseccomp is not asked for by default, and what a container depends on.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_tree_answers_like_a_list_and_is_far_shallower() {
    const I386: u32 = 0x4000_0003;
    const X32_BIT: u32 = 0x4000_0000;
    let powers = [Capability::SysAdmin, Capability::SysBoot, Capability::SysPtrace, Capability::SysChroot];
    for capabilities in [Capabilities::new(), powers.into_iter().collect()] {
        let resolved = Profile::runtime_default().resolve(&capabilities).unwrap();
        let [tree, list] =
            [Search::Tree, Search::List].map(|search| read(&build(&resolved, search).unwrap().program));
        let arguments = [0, 1, 8, 16, 38, 40, 0x2_0000, 0x20_0008, 0x7e02_0000, 0xffff_ffff, u64::MAX];
        for (arch, number) in [X86_64, I386, 7]
            .into_iter()
            .flat_map(|arch| (0..1024).flat_map(move |number| [(arch, number), (arch, number | X32_BIT)]))
        {
            for first in arguments {
                for second in [0, 1, u64::MAX] {
                    let args = [first, second, first];
                    assert_eq!(
                        verdict(&tree, arch, number, &args),
                        verdict(&list, arch, number, &args),
                        "{arch:#x} {number:#x} {args:x?}"
                    );
                }
            }
        }
        let steps = |program: &[Instruction]| -> usize {
            (0..512).map(|number| verdict_and_steps(program, X86_64, number, &[]).1).sum()
        };
        assert!(steps(&tree) * 4 < steps(&list), "{} and {} steps", steps(&tree), steps(&list));
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_default_allows_work_and_refuses_power() {
    let filter = default_with(&[]);
    for name in ["read", "execve", "openat2", "capset", "prctl", "clone", "umask", "arch_prctl", "ptrace"] {
        assert_eq!(answer(&filter, name, &[]), ALLOW, "{name}");
    }
    for name in [
        "mount",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "io_uring_setup",
        "userfaultfd",
        "chroot",
        "kexec_load",
    ] {
        assert_eq!(answer(&filter, name, &[]), errno(libc::EPERM), "{name}");
    }
    assert_eq!(answer(&filter, "clone", &[libc::CLONE_NEWUSER as u64]), errno(libc::EPERM));
    assert_eq!(answer(&filter, "clone", &[libc::CLONE_VM as u64]), ALLOW);
    assert_eq!(answer(&filter, "clone3", &[]), errno(libc::ENOSYS));
    assert_eq!(answer(&filter, "personality", &[8]), ALLOW);
    assert_eq!(answer(&filter, "personality", &[0x0040_0000]), errno(libc::EPERM), "ADDR_NO_RANDOMIZE");
    for family in 0..64u64 {
        let expected = if [38, 40].contains(&family) { errno(libc::EPERM) } else { ALLOW };
        assert_eq!(answer(&filter, "socket", &[family]), expected, "{family}");
        assert_eq!(
            answer(&filter, "socket", &[family | 1 << 40]),
            expected,
            "the kernel takes the lower half"
        );
    }
    // Newer than the profile, known to be allowed, and made by a 32-bit program.
    assert_eq!(verdict(&read(&filter.program), X86_64, 600, &[]), errno(libc::ENOSYS));
    assert_eq!(answer(&filter, "fchmodat2", &[]), ALLOW);
    assert_eq!(verdict(&read(&filter.program), 0x4000_0003, 21, &[]), errno(libc::EPERM), "mount on i386");
    assert_eq!(verdict(&read(&filter.program), 0x4000_0003, 3, &[]), ALLOW, "read on i386");
    // x32 has numbers of its own.
    assert_eq!(verdict(&read(&filter.program), X86_64, 0x4000_0000, &[]), ALLOW, "read on x32");
    assert_eq!(verdict(&read(&filter.program), X86_64, 0x4000_0000 | 165, &[]), errno(libc::EPERM));
    let elsewhere = verdict(&read(&filter.program), 0xc000_00b7, 0, &[]);
    assert!(elsewhere == 0 || elsewhere == KILL_PROCESS, "{elsewhere:#x}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_default_grows_with_the_bounding_set() {
    let filter = default_with(&[Capability::SysAdmin, Capability::SysTime]);
    for name in ["mount", "clone3", "unshare", "clock_settime", "bpf", "sethostname"] {
        assert_eq!(answer(&filter, name, &[]), ALLOW, "{name}");
    }
    assert_eq!(answer(&filter, "clone", &[libc::CLONE_NEWUSER as u64]), ALLOW);
    assert_eq!(answer(&filter, "chroot", &[]), errno(libc::EPERM));
}

/// Reviewed by hand against the groups that other runtimes allow; a change of the table shows here.
#[test]
fn the_default_names_what_was_reviewed() {
    let text: Value = serde_json::from_str(include_str!("default.json")).unwrap();
    let mut always = BTreeSet::new();
    let mut conditions = Vec::new();
    for rule in text["syscalls"].as_array().unwrap() {
        let names = rule["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        if rule.get("includes").or(rule.get("excludes")).or(rule.get("args")).is_none() {
            always.extend(names);
        } else if rule.get("args").is_none() {
            let names: Vec<_> = names.collect();
            conditions.push(format!(
                "{} {}",
                rule.get("includes").unwrap_or(&json!("else")),
                names.join(" ")
            ));
        }
    }
    assert_eq!(always.len(), 363);
    for never in [
        "bpf",
        "clone",
        "clone3",
        "mount",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "keyctl",
        "add_key",
        "request_key",
        "kexec_load",
        "kexec_file_load",
        "userfaultfd",
        "swapon",
        "swapoff",
        "pivot_root",
        "nfsservctl",
        "vm86",
        "perf_event_open",
        "setns",
        "unshare",
        "open_by_handle_at",
        "init_module",
        "reboot",
        "personality",
        "socket",
        "ptrace",
    ] {
        assert!(!always.contains(never), "{never}");
    }
    insta::assert_snapshot!(conditions.join("\n"), @r#"
    {"minKernel":"4.8"} process_vm_readv process_vm_writev ptrace
    {"arches":["amd64"]} arch_prctl modify_ldt
    {"arches":["386"]} modify_ldt
    {"arches":["arm","arm64"]} arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2
    {"arches":["ppc64le"]} swapcontext sync_file_range2
    {"arches":["s390x"]} s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr
    {"arches":["riscv64"]} riscv_flush_icache riscv_hwprobe
    {"caps":["CAP_SYS_ADMIN"]} bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare
    {"caps":["CAP_DAC_READ_SEARCH"]} open_by_handle_at
    {"caps":["CAP_SYS_BOOT"]} reboot
    {"caps":["CAP_SYS_CHROOT"]} chroot
    {"caps":["CAP_SYS_PACCT"]} acct
    {"caps":["CAP_SYS_MODULE"]} delete_module finit_module init_module
    {"caps":["CAP_SYS_PTRACE"]} kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace
    {"caps":["CAP_SYS_RAWIO"]} ioperm iopl
    {"caps":["CAP_SYS_TIME"]} clock_settime clock_settime64 settimeofday stime
    {"caps":["CAP_SYS_TTY_CONFIG"]} vhangup
    {"caps":["CAP_SYS_NICE"]} get_mempolicy mbind set_mempolicy set_mempolicy_home_node
    {"caps":["CAP_SYSLOG"]} syslog
    {"caps":["CAP_BPF"]} bpf
    {"caps":["CAP_PERFMON"]} perf_event_open
    "else" clone3
    "#);
    for name in always {
        let known = ScmpSyscall::from_name(name).is_ok() || super::newer::number(name).is_some();
        // Of one architecture only, and newer than libseccomp 2.5.
        assert!(known || name == "uretprobe", "{name} is not a system call");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn every_operator_does_what_it_says() {
    for (op, yes, no) in [
        ("NE", 6, 5u64),
        ("LT", 4, 5),
        ("LE", 5, 6),
        ("EQ", 5, 1 << 32 | 5),
        ("GE", 5, 4),
        ("GT", 1 << 32, 5),
    ] {
        let args = json!([{"index": 1, "value": 5, "op": format!("SCMP_CMP_{op}")}]);
        let rule = json!({"names": ["lseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77, "args": args});
        let filter = made(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
        assert_eq!(answer(&filter, "lseek", &[0, yes]), errno(77), "{op} {yes}");
        assert_eq!(answer(&filter, "lseek", &[0, no]), ALLOW, "{op} {no}");
    }
    let args = json!([{"index": 0, "value": 0xf0, "valueTwo": 0x10, "op": "SCMP_CMP_MASKED_EQ"}]);
    let rule = json!({"name": "lseek", "action": "SCMP_ACT_KILL_PROCESS", "args": args});
    let filter = made(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
    assert_eq!(answer(&filter, "lseek", &[0x1f]), KILL_PROCESS);
    assert_eq!(answer(&filter, "lseek", &[0x2f]), ALLOW);
}

#[test]
fn an_unknown_name_is_skipped_unless_that_opened_something() {
    for (name, default, action, refused) in [
        ("no_such_call", "ALLOW", "ERRNO", true),
        ("no_such_call", "LOG", "KILL_PROCESS", true),
        ("no_such_call", "ALLOW", "LOG", false),
        ("no_such_call", "ERRNO", "ALLOW", false),
        ("no_such_call", "ERRNO", "KILL_PROCESS", false),
        ("s390_pci_mmio_read", "ALLOW", "ERRNO", false),
        ("arm_fadvise64_64", "ALLOW", "ERRNO", false),
        ("listmount", "ALLOW", "ERRNO", false),
    ] {
        let rule = json!({"names": ["chmod", name], "action": format!("SCMP_ACT_{action}")});
        let profile = json!({"defaultAction": format!("SCMP_ACT_{default}"), "syscalls": [rule]});
        let compiled = compile(&resolved(profile));
        assert_eq!(compiled.is_err(), refused, "{name}, {default}, {action}: {compiled:?}");
        if let Err(error) = compiled {
            assert!(error.to_string().contains("syscalls[0].names: \"no_such_call\""), "{error}");
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn actions_errnos_and_flags_arrive() {
    for (action, expected) in [
        ("KILL", 0),
        ("KILL_THREAD", 0),
        ("KILL_PROCESS", KILL_PROCESS),
        ("TRAP", 0x0003_0000),
        ("ERRNO", errno(libc::EPERM)),
        ("TRACE", 0x7ff0_0001),
        ("LOG", 0x7ffc_0000),
    ] {
        // The second one is not known to libseccomp before 2.6: answered in front of its program.
        let rule = json!({"names": ["chmod", "fchmodat2"], "action": format!("SCMP_ACT_{action}")});
        let filter = made(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
        assert_eq!(answer(&filter, "chmod", &[]), expected, "{action}");
        assert_eq!(answer(&filter, "fchmodat2", &[]), expected, "{action}");
        assert_eq!(answer(&filter, "fchmod", &[]), ALLOW);
        assert_eq!(
            verdict(&read(&filter.program), X86_64, 600, &[]),
            ALLOW,
            "no ENOSYS where the default allows"
        );
    }
    let flags =
        json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]);
    let rule = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
    let filter = made(
        json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5, "flags": flags, "syscalls": [rule]}),
    );
    assert_eq!(filter.flags, 2 | 4);
    assert_eq!(answer(&filter, "getpid", &[]), errno(libc::ENOSYS), "newer than read, all that is named");
    let rule = json!({"names": ["read", "mseal", "futex_waitv"], "action": "SCMP_ACT_ALLOW"});
    let filter = made(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5, "syscalls": [rule]}));
    assert_eq!(answer(&filter, "getpid", &[]), errno(5));
    assert_eq!(answer(&filter, "mseal", &[]), ALLOW);
}

#[test]
fn conditions_are_decided_by_machine_and_capabilities() {
    let machine = Machine { architecture: Arch::ScmpArchAarch64, go_name: "arm64", kernel: (5, 14) };
    let names = |caps: &[Capability]| -> Vec<String> {
        let rule = |name: &str, key: &str, value: Value| json!({"name": name, "action": "SCMP_ACT_ALLOW", key: value});
        let profile: Profile = serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
            ],
            "syscalls": [
                rule("cap", "includes", json!({"caps": ["CAP_KILL", "CAP_CHOWN"]})),
                rule("nocap", "excludes", json!({"caps": ["CAP_KILL"]})),
                rule("arm", "includes", json!({"arches": ["arm", "arm64"]})),
                rule("notarm", "excludes", json!({"arches": ["arm64"]})),
                rule("new", "includes", json!({"minKernel": "5.14"})),
                rule("newer", "includes", json!({"minKernel": "6.1"})),
                rule("old", "excludes", json!({"minKernel": "6.1"})),
            ]
        }))
        .unwrap();
        let resolved = profile.resolve_on(&caps.iter().copied().collect(), &machine).unwrap();
        assert_eq!(resolved.architectures().as_deref().unwrap(), [Arch::ScmpArchAarch64, Arch::ScmpArchArm]);
        resolved.syscalls().clone().unwrap().iter().flat_map(|rule| rule.names().clone()).collect()
    };
    assert_eq!(names(&[]), ["nocap", "arm", "new", "old"]);
    assert_eq!(names(&[Capability::Kill]), ["arm", "new", "old"]);
    assert_eq!(names(&[Capability::Kill, Capability::Chown]), ["cap", "arm", "new", "old"]);
}

#[test]
fn r36_what_cannot_be_honoured_is_refused_by_name() {
    let with = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    for (profile, word) in [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "defaultAction: SCMP_ACT_NOTIFY is not supported"),
        (json!({"defaultAction": "SCMP_ACT_FLY"}), "SCMP_ACT_FLY"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}), "listenerPath"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "extra": 1}), "extra"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
            "flags",
        ),
        (json!({"syscalls": []}), "defaultAction"),
        (with(json!({"name": "a", "names": ["b"], "action": "SCMP_ACT_ERRNO"})), "syscalls[0].name"),
        (with(json!({"name": "read", "action": "SCMP_ACT_ERRNO", "errnoRet": 5000})), "errnoRet 5000"),
        (
            with(json!({"name": "read", "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "x"}})),
            "syscalls[0].includes.minKernel",
        ),
        (
            with(
                json!({"name": "read", "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}),
            ),
            "index 6",
        ),
    ] {
        let said = refused(profile);
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}

#[test]
fn a_profile_is_compiled_once() {
    let profile = resolved(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"name": "acct", "action": "SCMP_ACT_ERRNO", "errnoRet": 99}]}));
    assert!(Arc::ptr_eq(&compile(&profile).unwrap(), &compile(&profile.clone()).unwrap()));
}

#[test]
fn a_stub_only_answers_what_is_its_own() {
    let block =
        |architecture, number| Block { architecture, answers: vec![(number, ALLOW)], last_known: Some(500) };
    let mut program = stub(&[block(7, 501), block(8, 502)]);
    program.push(Instruction(RETURN, 0, 0, 1));
    for (arch, number, expected) in [
        (7, 501, ALLOW),
        (7, 502, errno(libc::ENOSYS)),
        (7, 500, 1),
        (8, 502, ALLOW),
        (8, 501, errno(libc::ENOSYS)),
        (9, 501, 1),
    ] {
        assert_eq!(verdict(&program, arch, number, &[]), expected, "{arch} {number}");
    }
    assert!(stub(&[]).is_empty());
    assert!(ScmpArch::native() != ScmpArch::Native);
}
