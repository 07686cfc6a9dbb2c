//! Things of the host that a container must not get at by asking or by knowing a name: keyrings, sockets of the runtime,
//! labels of the system's files. `r28_`, `r37_` and `r38_` of the adversarial cases.

use std::collections::BTreeSet;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1::{self as cri, security_profile::ProfileType};
use crisp_tests::command;
use crisp_tests::cri::{bind, secured, words};
use crisp_tests::node::Node;
use crisp_tests::untouched::{self, tree};

use crate::case::Case;
use crate::hostile_proc::unconfined;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "r28_a_session_keyring_is_the_containers",
        needs: &[],
        images: &["python:3.9", "busybox"],
        run: keyrings,
    },
    Case {
        name: "r37_the_systems_files_are_never_relabelled",
        needs: &[],
        images: &["busybox"],
        run: relabelled,
    },
    Case {
        name: "r38_no_socket_of_the_runtime_can_be_reached",
        needs: &[],
        images: &["python:3.9", "busybox"],
        run: sockets,
    },
];

/// Keyring calls by their x86-64 numbers: prints the session keyring's number, and adds or looks for a key in it.
const KEYS: &str = r#"
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
call = lambda *rest: libc.syscall(*[ctypes.c_long(x) if isinstance(x, int) else x for x in rest])
print(call(250, 0, -3, 0))
if sys.argv[1] == 'add':
    print(call(248, b'user', b'crisp-canary', b'secret', 6, -3))
elif sys.argv[1] == 'find':
    print(call(249, b'user', b'crisp-canary', None, 0), call(250, 10, -3, b'user', b'crisp-canary', 0))
    print(call(250, 11, int(sys.argv[2]), None, 0))
"#;

fn keyrings(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("keyrings")?;
        let mut adder = secured("adder", "python:3.9", &[], |_| {});
        adder.command =
            words(&["sh", "-c", "exec python3 -u -c \"$KEYS\nimport time; time.sleep(3600)\" add"]);
        adder.envs = vec![cri::KeyValue { key: "KEYS".to_owned(), value: KEYS.into() }];
        let adder = node.launch_as(&pod, &adder)?;
        let log = crate::logs::wait_for_lines(node, &adder, 2)?;
        let (session, key): (i64, i64) = (log[0].content.parse()?, log[1].content.parse()?);
        ensure!(session > 0 && key > 0, "{log:?}");
        let other = secured("other", "python:3.9", &["sleep", "3600"], |security| {
            security.masked_paths = words(&["/proc/keys"]);
        });
        let other = node.launch_as(&pod, &other)?;
        let said = node.cri().exec(&other, &["python3", "-c", KEYS, "find", &key.to_string()])?;
        let lines: Vec<_> = said.stdout.lines().collect();
        ensure!(lines.len() == 3 && lines[0].parse::<i64>()? != session, "{said:?}, session {session}");
        ensure!(lines[1] == "-1 -1" && lines[2] == "-1", "the key was found or read: {said:?}");
        ensure!(node.cri().shell(&other, "cat /proc/keys")?.is_empty());
        // Nor does the host find it, with the same user id.
        let found =
            command::run(Command::new("python3").args(["-c", KEYS, "find", &key.to_string()]))?.ok()?;
        let lines: Vec<_> = found.lines().collect();
        ensure!(lines.len() == 3 && lines[0] != session.to_string(), "{found}");
        ensure!(lines[1] == "-1 -1" && lines[2] == "-1", "the host found or read the key: {found}");
        let strict = secured("strict", "python:3.9", &["sleep", "3600"], |security| {
            let profile_type = ProfileType::RuntimeDefault.into();
            security.seccomp = Some(cri::SecurityProfile { profile_type, ..Default::default() });
        });
        let strict = node.launch_as(&pod, &strict)?;
        let said = node.cri().exec(&strict, &["python3", "-c", KEYS, "add"])?;
        ensure!(said.stdout == "-1\n-1\n", "{said:?}");
        node.end_pod(&pod)
    })
}

fn relabelled(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let folder = node.folder().join("relabel");
        fs::create_dir_all(folder.join("volume/below"))?;
        fs::write(folder.join("volume/below/file"), "x")?;
        symlink("/etc", folder.join("etc"))?;
        symlink("/", folder.join("root"))?;
        symlink(canary.path(), folder.join("volume/out"))?;
        let _socket = UnixListener::bind(folder.join("socket"))?;
        let before = tree(&folder)?;
        let pod = node.run_pod("relabelled")?;
        let paths = [
            "/",
            "/etc",
            "/etc/passwd",
            "/usr",
            "/usr/",
            "/var",
            "/var/lib",
            "/root",
            "/proc",
            "/sys",
            "/tmp",
        ];
        let own = ["etc", "root", "etc/passwd", "root/usr", "socket"].map(|name| folder.join(name));
        for path in paths.iter().map(Path::new).chain(own.iter().map(PathBuf::as_path)) {
            let mut config = secured("c", "busybox", &["true"], |_| {});
            config.mounts = vec![cri::Mount { selinux_relabel: true, readonly: true, ..bind(path, "/mnt") }];
            let error = node.cri().create(&pod.id, &config, &pod.config).err();
            let error = error.with_context(|| format!("{}: a container was made", path.display()))?;
            ensure!(error.message().contains("mounts[0].selinux_relabel"), "{}: {error:?}", path.display());
        }
        // A volume may be; without SELinux there are no labels, and nothing in it is touched.
        let mut config = secured("volume", "busybox", &["sleep", "3600"], |_| {});
        config.mounts = vec![cri::Mount { selinux_relabel: true, ..bind(&folder.join("volume"), "/mnt") }];
        let id = node.launch_as(&pod, &config)?;
        ensure!(node.cri().shell(&id, "cat /mnt/below/file")? == "x");
        ensure!(tree(&folder)? == before, "something was changed");
        node.end_pod(&pod)
    })
}

/// Lines of the table of unix sockets in the calling process's network namespace: inode, and name if there is one; names
/// without a file begin with `@`.
fn socket_table() -> Result<Vec<(String, Option<String>)>> {
    let table = fs::read_to_string("/proc/self/net/unix")?;
    let entry = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        Some(((*words.get(6)?).to_owned(), words.get(7).map(|name| (*name).to_owned())))
    };
    Ok(table.lines().skip(1).filter_map(entry).collect())
}

/// Names of the sockets that the daemon or a monitor holds, whatever they look like.
fn held_by_crisp(node: &Node) -> Result<Vec<String>> {
    let mut processes = vec![node.daemon_pid()?];
    let monitor = fs::metadata(&node.scope().monitor)?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let executes = fs::metadata(entry.path().join("exe"));
        if executes.is_ok_and(|exe| (exe.dev(), exe.ino()) == (monitor.dev(), monitor.ino())) {
            processes.extend(entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        }
    }
    ensure!(processes.len() >= 3, "no daemon and two monitors: {processes:?}");
    let mut inodes = BTreeSet::new();
    for pid in processes {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            inodes.extend(inode.map(str::to_owned));
        }
    }
    let table = socket_table()?.into_iter().filter(|(inode, _)| inodes.contains(inode));
    Ok(table.filter_map(|(_, name)| name).collect())
}

/// Connects to each name, as a file and as a name without one, with each type of socket; prints where that worked.
const CONNECT: &str = r#"
import socket, sys
for name in sys.argv[1:]:
    for form in (name, '\0' + name, '\0' + name.lstrip('@')):
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            client = socket.socket(socket.AF_UNIX, kind)
            try:
                client.connect(form)
                print(name)
            except OSError:
                pass
            client.close()
"#;

fn sockets(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let mut config = node.pod_config("sockets");
        let linux = config.linux.as_mut().context("linux")?;
        linux.security_context.as_mut().context("security context")?.namespace_options =
            Some(cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..Default::default() });
        let pod = node.run_pod_as(config)?;
        let config = secured("c", "python:3.9", &["sleep", "3600"], |security| {
            let (network, pid) = (cri::NamespaceMode::Node.into(), cri::NamespaceMode::Container.into());
            security.namespace_options = Some(cri::NamespaceOption { network, pid, ..Default::default() });
            unconfined(security);
        });
        let id = node.launch_as(&pod, &config)?;
        let mut names = held_by_crisp(node)?;
        // A name without a file is everybody's in the network namespace (CVE-2020-15257).
        ensure!(!names.iter().any(|name| name.starts_with('@')), "{names:?}");
        let socket = node.endpoint().trim_start_matches("unix://").to_owned();
        ensure!(names.contains(&socket), "{names:?}");
        ensure!(names.len() > 1, "no monitor's socket is in the table: {names:?}");
        // The monitors' are bound through a descriptor, so the table does not say where they are.
        let mut files = vec![PathBuf::from(&socket)];
        for entry in fs::read_dir(node.state().join("pods"))? {
            files.push(entry?.path().join("monitor.sock"));
        }
        ensure!(files.len() == 3, "there are two pods: {files:?}");
        for path in &files {
            let meta = fs::metadata(path).with_context(|| path.display().to_string())?;
            let mode = meta.mode() & 0o777;
            ensure!(meta.uid() == 0 && mode == 0o600, "{}: mode {mode:o}", path.display());
            names.push(path.display().to_string());
        }
        let mode = fs::metadata(node.state())?.mode() & 0o777;
        ensure!(mode == 0o700, "the state directory has mode {mode:o}");
        // One that can be reached shows that the others could be.
        let control = format!("control-of-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&control)?;
        let _listener = UnixListener::bind_addr(&address)?;
        names.push(control.clone());
        let mut command = vec!["python3", "-c", CONNECT];
        command.extend(names.iter().map(String::as_str));
        let said = node.cri().exec(&id, &command)?;
        let reached: BTreeSet<_> = said.stdout.lines().collect();
        ensure!(said.code == 0 && reached == BTreeSet::from([control.as_str()]), "{said:?} of {names:?}");
        node.end_pod(&pod)
    })
}
