//! The programs, run by an interpreter of the few instructions they use, and by the kernel's verifier.

use super::*;

const READ: DeviceAccess = DeviceAccess::READ;
const WRITE: DeviceAccess = DeviceAccess::WRITE;
const MKNOD: DeviceAccess = DeviceAccess::MKNOD;
const BLOCK: DeviceKind = DeviceKind::Block;
const CHARACTER: DeviceKind = DeviceKind::Character;

/// What the kernel's interpreter would return for one use of a device.
fn run(program: &[Instruction], kind: DeviceKind, major: u32, minor: u32, access: DeviceAccess) -> u32 {
    let context = [(u32::from(access.bits()) << 16) | kind as u32, major, minor];
    let mut registers = [0u32; 11];
    let mut at = 0usize;
    loop {
        let one = program[at];
        at += 1;
        let (to, from) = (usize::from(one.destination()), usize::from(one.source()));
        let immediate = one.immediate.cast_unsigned();
        let taken = match one.code {
            LOAD => {
                assert_eq!(one.source(), CONTEXT);
                registers[to] = context[usize::try_from(one.offset).unwrap() / 4];
                false
            }
            COPY => {
                registers[to] = registers[from];
                false
            }
            SET => {
                registers[to] = immediate;
                false
            }
            AND => {
                registers[to] &= immediate;
                false
            }
            SHIFT_RIGHT => {
                registers[to] >>= immediate;
                false
            }
            JUMP_IF_EQUAL => registers[to] == immediate,
            JUMP_UNLESS_EQUAL => registers[to] != immediate,
            JUMP_IF_ANY_BIT => registers[to] & immediate != 0,
            JUMP => true,
            EXIT => return registers[usize::from(RESULT)],
            other => panic!("instruction {other:#x}"),
        };
        if taken {
            at = at.checked_add_signed(one.offset.into()).unwrap();
        }
    }
}

fn rule(
    allow: bool,
    kind: Option<DeviceKind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: DeviceAccess,
) -> DeviceRule {
    DeviceRule { allow, kind, major, minor, access }
}

fn allowed(rules: &[DeviceRule], kind: DeviceKind, major: u32, minor: u32, access: DeviceAccess) -> bool {
    run(&program(rules), kind, major, minor, access) == 1
}

#[test]
fn nothing_is_allowed_by_no_rule() {
    assert!(!allowed(&[], CHARACTER, 1, 3, READ));
    assert!(!allowed(&[], BLOCK, 8, 0, MKNOD));
}

#[test]
fn a_rule_speaks_of_its_kind_numbers_and_access_only() {
    let rules = [rule(true, Some(CHARACTER), Some(1), Some(3), READ | MKNOD)];
    assert!(allowed(&rules, CHARACTER, 1, 3, READ));
    assert!(allowed(&rules, CHARACTER, 1, 3, MKNOD));
    assert!(!allowed(&rules, CHARACTER, 1, 3, WRITE));
    assert!(!allowed(&rules, CHARACTER, 1, 3, READ | WRITE));
    assert!(!allowed(&rules, CHARACTER, 1, 4, READ));
    assert!(!allowed(&rules, CHARACTER, 2, 3, READ));
    assert!(!allowed(&rules, BLOCK, 1, 3, READ));
}

#[test]
fn what_a_rule_leaves_open_is_a_wildcard() {
    let terminals = [rule(true, Some(CHARACTER), Some(136), None, DeviceAccess::all())];
    assert!(allowed(&terminals, CHARACTER, 136, 0, READ | WRITE));
    assert!(allowed(&terminals, CHARACTER, 136, u32::MAX, READ));
    assert!(!allowed(&terminals, CHARACTER, 137, 0, READ));
    let all = [DeviceRule::ALLOW_ALL];
    assert!(allowed(&all, BLOCK, 8, 0, DeviceAccess::all()));
    assert!(allowed(&all, CHARACTER, 0, 0, WRITE));
    let large = [rule(true, None, None, Some(u32::MAX), READ)];
    assert!(allowed(&large, BLOCK, 8, u32::MAX, READ));
    assert!(!allowed(&large, BLOCK, 8, u32::MAX - 1, READ));
}

#[test]
fn the_last_matching_rule_wins() {
    let deny = rule(false, Some(BLOCK), Some(8), None, DeviceAccess::all());
    assert!(!allowed(&[DeviceRule::ALLOW_ALL, deny], BLOCK, 8, 1, READ));
    assert!(allowed(&[DeviceRule::ALLOW_ALL, deny], BLOCK, 9, 1, READ));
    assert!(allowed(&[deny, DeviceRule::ALLOW_ALL], BLOCK, 8, 1, READ));
    let again = rule(true, Some(BLOCK), Some(8), Some(1), READ);
    assert!(allowed(&[DeviceRule::ALLOW_ALL, deny, again], BLOCK, 8, 1, READ));
    assert!(!allowed(&[DeviceRule::ALLOW_ALL, deny, again], BLOCK, 8, 1, READ | WRITE));
    assert!(!allowed(&[DeviceRule::ALLOW_ALL, deny, again], BLOCK, 8, 2, READ));
}

#[test]
fn each_access_is_decided_for_itself() {
    let give = |access| rule(true, Some(CHARACTER), Some(1), Some(3), access);
    assert!(allowed(&[give(READ), give(WRITE)], CHARACTER, 1, 3, READ | WRITE));
    let take = rule(false, None, None, None, WRITE);
    assert!(allowed(&[give(READ | WRITE), take], CHARACTER, 1, 3, READ));
    assert!(!allowed(&[give(READ | WRITE), take], CHARACTER, 1, 3, READ | WRITE));
    assert!(allowed(&[take, give(READ | WRITE)], CHARACTER, 1, 3, READ | WRITE));
}

#[test]
fn the_kernel_accepts_what_is_made_and_a_cgroup_takes_it() {
    let deny = rule(false, Some(BLOCK), Some(8), None, WRITE);
    let many: Vec<_> =
        (0..2000).map(|minor| rule(true, Some(CHARACTER), Some(195), Some(minor), READ)).collect();
    for rules in [&[][..], &[DeviceRule::ALLOW_ALL], &[DeviceRule::ALLOW_ALL, deny, deny], &many] {
        let program = DeviceProgram::load(rules).unwrap();
        assert_eq!(program.rules(), rules);
    }
    let Some(hierarchy) = crate::cgroup::tests::hierarchy() else { return };
    let name = format!("crisp-test-devices-{}", std::process::id());
    let cgroup = hierarchy.create(&crate::cgroup::CgroupPath::new("/").unwrap(), &name).unwrap();
    let (one, two) =
        (DeviceProgram::load(&[deny]).unwrap(), DeviceProgram::load(&[DeviceRule::ALLOW_ALL]).unwrap());
    // Beside the one that is there, and below it.
    let below = cgroup.sub("below").unwrap();
    let results = [cgroup.control_devices(&one), cgroup.control_devices(&two), below.control_devices(&two)];
    cgroup.remove(std::time::Duration::ZERO).unwrap();
    for result in results {
        result.unwrap();
    }
    assert!(cgroup.control_devices(&one).is_err(), "it is gone");
}
