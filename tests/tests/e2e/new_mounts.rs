//! Attempts to see what is masked through new mounts, new namespaces, handles and rings. `r27_` of the adversarial cases.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1::{self as cri, security_profile::ProfileType};
use crisp_tests::cri::secured;
use crisp_tests::node::Node;
use crisp_tests::untouched;

use crate::case::Case;
use crate::hostile_proc::{MASKED, default_paths, unconfined};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[Case {
    name: "r27_no_new_mount_shows_what_is_masked",
    needs: &[],
    images: &["python:3.9", "busybox"],
    run: new_mounts,
}];

/// Makes system calls that could show the host or what is masked, each so that nothing but a rule can be in its way, and
/// prints what came of each. Arguments: paths that are masked, with commas between; then calls, all of them in this order
/// if there are none. At last it looks whether a masked path shows anything, here or below a copy of the root. Numbers are
/// those that x86-64 has, and all newer ones that every architecture shares.
const CALLS: &str = r#"
import ctypes, errno, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUSER, HERE = 0x20000, 0x10000000, -100
p = ctypes.c_char_p
def call(number, *rest):
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in rest]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), '')
    return result
handle, mount = ctypes.create_string_buffer(struct.pack('II', 128, 0) + b'\0' * 128), ctypes.c_int()
own = os.open('/proc/self/ns/mnt', os.O_RDONLY)
file = os.open('/etc/hosts', os.O_RDONLY)
code = ctypes.create_string_buffer(struct.pack('QQ', 0xb7, 0x95))
licence = ctypes.create_string_buffer(b'GPL')
kprobe = struct.pack('IIQQ', 2, 2, ctypes.addressof(code), ctypes.addressof(licence)).ljust(128, b'\0')
def fsmount():
    context = call(430, p(b'proc'), 0)
    call(431, context, 6, None, None, 0)
    return call(432, context, 0, 0)
calls = {
    'unshare user': lambda: call(272, NEWUSER),
    'unshare mount': lambda: call(272, NEWNS),
    'mount proc': lambda: call(165, p(b'proc'), p(b'/tmp'), p(b'proc'), 0, None),
    'mount move': lambda: call(165, p(b'/proc'), p(b'/tmp'), None, 0x2000, None),
    'mount bind proc': lambda: call(165, p(b'/proc'), p(b'/tmp'), None, 0x1000, None),
    'remount': lambda: call(165, None, p(b'/proc/sys'), None, 0x1020, None),
    'umount': lambda: call(166, p(b'/proc/sys'), 2),
    'open_tree': lambda: call(428, HERE, p(b'/proc'), 1),
    'move_mount': lambda: call(429, HERE, p(b'/proc'), HERE, p(b'/tmp'), 0),
    'fsmount': fsmount,
    'fspick': lambda: call(433, HERE, p(b'/proc'), 0),
    'mount_setattr': lambda: call(442, HERE, p(b'/proc/sys'), 0, struct.pack('QQQQ', 0, 1, 0, 0), 32),
    'setns': lambda: call(308, own, NEWNS),
    'name_to_handle_at': lambda: call(303, HERE, p(b'/etc/hosts'), handle, ctypes.byref(mount), 0),
    'open_by_handle_at': lambda: call(304, file, handle, 0),
    'bpf': lambda: call(321, 5, kprobe, 128),
    'io_uring_setup': lambda: call(425, 4, b'\0' * 120),
    'mount bind root': lambda: call(165, p(b'/'), p(b'/tmp'), None, 0x5000, None),
    'pivot_root': lambda: call(155, p(b'/dev'), p(b'/dev/pts')),
}
masked, *chosen = sys.argv[1:]
for name in chosen or [name for name in calls if name != 'pivot_root']:
    try:
        calls[name]()
        print(name, 'DONE', sep=':')
    except OSError as error:
        print(name, errno.errorcode[error.errno], sep=':')
for path in [top + path for top in ('', '/tmp') for path in masked.split(',')]:
    try:
        shown = os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1)
    except OSError:
        shown = None
    print(path, 'SHOWN' if shown else 'hidden', sep=':')
"#;

/// Calls that take a capability which a container does not have, and none that a user namespace of its own gives it.
const ALONE: [&str; 16] = [
    "unshare mount",
    "mount proc",
    "mount move",
    "mount bind proc",
    "remount",
    "umount",
    "open_tree",
    "move_mount",
    "fsmount",
    "fspick",
    "mount_setattr",
    "setns",
    "open_by_handle_at",
    "bpf",
    "mount bind root",
    "pivot_root",
];

/// What of these comes to nothing even for the root of a user namespace that a container makes: mounts are locked there,
/// and a new proc would show more than the one that is there.
const IN_USER_NAMESPACE: [&str; 11] = [
    "mount proc",
    "mount move",
    "mount bind proc",
    "remount",
    "umount",
    "open_tree",
    "move_mount",
    "fsmount",
    "mount_setattr",
    "setns",
    "open_by_handle_at",
];

/// Runs [`CALLS`] in a container; what came of each call. Nothing that is masked is shown, whatever was done.
fn attempt(node: &Node, id: &str, calls: &[&str]) -> Result<BTreeMap<String, String>> {
    let masked = MASKED.join(",");
    let mut command = vec!["python3", "-c", CALLS, &masked];
    command.extend(calls);
    let said = node.cri().exec(id, &command)?;
    ensure!(said.code == 0, "{said:?}");
    let lines = said.stdout.lines().map(|line| line.split_once(':').context("no colon"));
    let came: BTreeMap<_, _> =
        lines.map(|line| line.map(|(a, b)| (a.to_owned(), b.to_owned()))).collect::<Result<_>>()?;
    ensure!(MASKED.iter().all(|path| came.contains_key(*path)), "{came:?}");
    ensure!(!came.values().any(|what| what == "SHOWN"), "{came:?}");
    Ok(came)
}

fn new_mounts(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("new-mounts")?;
        let filtered = secured("filtered", "python:3.9", &["sleep", "3600"], |security| {
            default_paths(security);
            unconfined(security);
            let profile_type = ProfileType::RuntimeDefault.into();
            security.seccomp = Some(cri::SecurityProfile { profile_type, ..Default::default() });
        });
        let filtered = node.launch_as(&pod, &filtered)?;
        let came = attempt(node, &filtered, &[])?;
        for name in ALONE.iter().chain(&["unshare user", "io_uring_setup"]) {
            let what = came.get(*name).map_or("", String::as_str);
            let refused = *name == "pivot_root" || ["EPERM", "ENOSYS"].contains(&what);
            ensure!(refused, "with a filter, {name}: {what:?}; all: {came:?}");
        }
        // Without a filter and without a profile it is capabilities and locked mounts that hold.
        let free = secured("free", "python:3.9", &["sleep", "3600"], |security| {
            default_paths(security);
            unconfined(security);
        });
        let free = node.launch_as(&pod, &free)?;
        for name in ALONE {
            let came = attempt(node, &free, &["name_to_handle_at", name])?;
            let handle = came.get("name_to_handle_at").map_or("", String::as_str);
            ensure!(handle == "DONE", "there is no real handle: {handle:?}");
            let what = came.get(name).map_or("", String::as_str);
            ensure!(what == "EPERM", "{name}: {what:?}");
        }
        // All of them in one process: the first makes a user namespace, and the others are made with its capabilities.
        let came = attempt(node, &free, &[])?;
        for name in ["unshare user", "unshare mount", "mount bind root"] {
            ensure!(
                came.get(name).is_some_and(|what| what == "DONE"),
                "{name} is to be tried from: {came:?}"
            );
        }
        for name in IN_USER_NAMESPACE {
            let what = came.get(name).map_or("", String::as_str);
            ensure!(["EPERM", "EINVAL"].contains(&what), "in a user namespace, {name}: {what:?}");
        }
        node.end_pod(&pod)
    })
}
