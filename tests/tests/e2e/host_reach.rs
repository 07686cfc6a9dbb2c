//! Things of the host that a container must not get at by asking or by knowing a name: keyrings, sockets of the runtime,
//! labels of the system's files. `r28_`, `r37_` and `r38_` of the adversarial cases.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1::{self as cri, security_profile::ProfileType};
use crisp_tests::command;
use crisp_tests::cri::{bind, secured, words};
use crisp_tests::node::Node;
use crisp_tests::untouched::{self, tree};

use crate::case::Case;

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
        images: &["busybox"],
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
        for path in paths.iter().map(Path::new).chain(own.iter().map(std::path::PathBuf::as_path)) {
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

/// Names of all unix sockets in the calling process's network namespace; those of a name without a file begin with `@`.
fn socket_names() -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/net/unix")?;
    Ok(table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(7)).map(str::to_owned).collect())
}

fn sockets(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let mut config = node.pod_config("sockets");
        let linux = config.linux.as_mut().context("linux")?;
        linux.security_context.as_mut().context("security context")?.namespace_options =
            Some(cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..Default::default() });
        let pod = node.run_pod_as(config)?;
        let config = secured("c", "busybox", &["sleep", "3600"], |security| {
            let (network, pid) = (cri::NamespaceMode::Node.into(), cri::NamespaceMode::Container.into());
            security.namespace_options = Some(cri::NamespaceOption { network, pid, ..Default::default() });
        });
        let id = node.launch_as(&pod, &config)?;
        let names = socket_names()?;
        let folder = node.folder().display().to_string();
        // A name without a file is everybody's in the network namespace (CVE-2020-15257).
        ensure!(!names.iter().any(|name| name.starts_with('@') && name.contains("crisp")), "{names:?}");
        let own: Vec<_> = names.iter().filter(|name| name.starts_with(&folder)).collect();
        ensure!(own.iter().any(|name| name.ends_with("crisp.sock")), "{names:?}");
        for name in &own {
            let meta = fs::metadata(name)?;
            ensure!(meta.uid() == 0 && meta.mode() & 0o007 == 0, "{name}: mode {:o}", meta.mode());
            // The container sees the name in its own /proc, and finds no such file.
            ensure!(node.cri().exec(&id, &["ls", name])?.code != 0, "{name} is in the container");
        }
        let mode = fs::metadata(node.state())?.mode();
        ensure!(mode & 0o077 == 0, "the state directory has mode {mode:o}");
        // The monitors' are bound through a descriptor, so the table does not say where they are.
        let mut monitors = 0;
        for entry in fs::read_dir(node.state().join("pods"))? {
            let path = entry?.path().join("monitor.sock");
            let mode = fs::metadata(&path).with_context(|| path.display().to_string())?.mode();
            ensure!(mode & 0o077 == 0, "{}: mode {mode:o}", path.display());
            monitors += 1;
        }
        ensure!(monitors == 2, "{monitors} monitors have a socket, and there are two pods");
        node.end_pod(&pod)
    })
}
