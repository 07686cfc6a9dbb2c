//! The runtime's own processes as containers see them: the ones that become an exec'd program or a container, and the
//! init of a shared PID namespace. `r02_` and `r41_` of the adversarial cases.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail, ensure};
use crisp_proto::runtime::v1::{self as cri, NamespaceMode};
use crisp_tests::cri::{bind, secured, words};
use crisp_tests::flipper;
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched;

use crate::case::Case;
use crate::hostile_proc::unconfined;
use crate::userns;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "r02_what_joins_a_container_has_nothing_of_the_hosts",
        needs: &[],
        images: &["python:3.9", "busybox"],
        run: joining,
    },
    Case {
        name: "r41_the_init_of_a_shared_namespace_has_nothing_to_show",
        needs: &[],
        images: &["python:3.9", "busybox"],
        run: shared_init,
    },
];

/// Who attacks, and where.
struct Attacker {
    name: &'static str,
    pid: NamespaceMode,
    /// With CAP_SYS_PTRACE, and all others.
    capable: bool,
    /// The pod has a user namespace.
    user: bool,
}

const ATTACKERS: [Attacker; 7] = [
    Attacker { name: "own", pid: NamespaceMode::Container, capable: false, user: false },
    Attacker { name: "own-capable", pid: NamespaceMode::Container, capable: true, user: false },
    Attacker { name: "pod", pid: NamespaceMode::Pod, capable: false, user: false },
    Attacker { name: "pod-capable", pid: NamespaceMode::Pod, capable: true, user: false },
    Attacker { name: "target", pid: NamespaceMode::Target, capable: false, user: false },
    Attacker { name: "target-capable", pid: NamespaceMode::Target, capable: true, user: false },
    Attacker { name: "user-capable", pid: NamespaceMode::Pod, capable: true, user: true },
];

impl Attacker {
    /// Options of the pod, and of its containers but one that joins another.
    fn options(&self) -> cri::NamespaceOption {
        let pid = match self.pid {
            NamespaceMode::Target => NamespaceMode::Container,
            other => other,
        };
        if self.user {
            return userns::options(userns::HOST, pid);
        }
        cri::NamespaceOption { pid: pid.into(), ..Default::default() }
    }

    fn pod(&self, node: &Node) -> Result<Pod> {
        node.run_pod_as(userns::sandbox(node, self.name, self.options())?)
    }

    /// A container that joins the PID namespace of container `id`.
    fn joining(&self, name: &str, id: &str) -> Result<cri::ContainerConfig> {
        let mut config = self.container(name, &["true"]);
        if self.pid == NamespaceMode::Target {
            let target_id = id.to_owned();
            userns::security(&mut config)?.namespace_options =
                Some(cri::NamespaceOption { pid: self.pid.into(), target_id, ..Default::default() });
        }
        Ok(config)
    }

    /// A container of this pod with the attacker's capabilities.
    fn container(&self, name: &str, command: &[&str]) -> cri::ContainerConfig {
        secured(name, "python:3.9", command, |security| {
            security.namespace_options = Some(self.options());
            unconfined(security);
            let add_capabilities = if self.capable { words(&["ALL"]) } else { Vec::new() };
            security.capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
        })
    }
}

/// Stops every process that appears, looks at it and lets it go on, until there is a file `/report/stop`. Prints what it
/// has seen, each sight once: whose program it is, whose root, whether it is in that, the kinds of its descriptors, and
/// whether it can be traced. Arguments: the monitor's program as device:inode, and the path of something on the host.
const LOOK: &str = r#"
import ctypes, errno, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
ATTACH, DETACH, WALL = 16, 17, 0x40000000
def answer(look):
    try:
        return look()
    except OSError as error:
        return errno.errorcode[error.errno]
def identity(path):
    file = os.stat(path)
    return '%d:%d' % (file.st_dev, file.st_ino)
pids = lambda: {int(name) for name in os.listdir('/proc') if name.isdigit()}
known = pids()
def kind(descriptor):
    text = os.readlink(descriptor)
    return text if text.startswith('/') else text.split(':')[0]
def descriptors(folder):
    return ','.join(sorted({kind(folder + name) for name in os.listdir(folder)})) or 'none'
def trace(pid):
    if libc.ptrace(ATTACH, pid, None, None) != 0:
        return errno.errorcode[ctypes.get_errno()]
    os.waitpid(pid, WALL)
    libc.ptrace(DETACH, pid, None, None)
    return 'traced'
def stopped(folder):
    for _ in range(1000):
        with open(folder + 'stat') as file:
            state = file.read().rsplit(')', 1)[1].split()[0]
        if state in 'TtZX':
            return state in 'Tt'
    return False
said = set()
def look(pid):
    folder = '/proc/%d/' % pid
    os.kill(pid, signal.SIGSTOP)
    try:
        if not stopped(folder):
            return
        root = folder + 'root'
        sight = ' '.join([
            answer(lambda: 'monitor' if identity(folder + 'exe') == sys.argv[1] else 'program'),
            answer(lambda: os.stat(root) and ('host' if os.path.exists(root + sys.argv[2]) else 'container')),
            answer(lambda: 'in' if identity(folder + 'cwd') == identity(root) else os.readlink(folder + 'cwd')),
            answer(lambda: descriptors(folder + 'fd/')),
            trace(pid),
        ])
        if sight not in said:
            said.add(sight)
            print(sight, flush=True)
    finally:
        os.kill(pid, signal.SIGCONT)
print('ready', flush=True)
while not os.path.exists('/report/stop'):
    there = pids()
    for pid in there - known:
        try:
            look(pid)
        except (ProcessLookupError, FileNotFoundError):
            pass
    known = there
"#;

/// What a process shows before its `execve` to somebody without a privilege over it.
const NOTHING: &str = "EACCES EACCES EACCES EACCES EPERM";

fn joining(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        for attacker in &ATTACKERS {
            let sights = sights(node, attacker, &canary.text("")).context(attacker.name)?;
            harmless(attacker, &sights).with_context(|| format!("{}: {sights:?}", attacker.name))?;
        }
        Ok(())
    })
}

/// Runs programs and containers beside an attacker; what that one has seen.
fn sights(node: &Node, attacker: &Attacker, canary: &str) -> Result<BTreeSet<String>> {
    let report = node.folder().join(format!("report-{}", attacker.name));
    fs::create_dir(&report)?;
    let monitor = fs::metadata(&node.scope().monitor)?;
    let monitor = format!("{}:{}", monitor.dev(), monitor.ino());
    let pod = attacker.pod(node)?;
    let victim = node.launch_as(&pod, &attacker.container("victim", &["sleep", "3600"]))?;
    let mut config = attacker.container("attacker", &["python3", "-c", LOOK, &monitor, canary]);
    config.mounts = vec![bind(&report, "/report")];
    let id = node.launch_as(&pod, &config)?;
    crate::logs::wait_for_lines(node, &id, 1)?;
    for round in 0..flipper::rounds().div_ceil(ATTACKERS.len()) {
        let shared = attacker.pid != NamespaceMode::Container;
        match round % 3 {
            1 if shared => {
                let joins = node.launch_as(&pod, &attacker.joining("joins", &id)?)?;
                node.wait_for_exit(&joins)?;
                node.cri().remove(&joins)?;
            }
            2 if attacker.pid == NamespaceMode::Pod => drop(node.cri().exec(&victim, &["true"])?),
            _ => drop(node.cri().exec(&id, &["true"])?),
        }
    }
    fs::write(report.join("stop"), "")?;
    let status = node.wait_for_exit(&id)?;
    let log = crate::logs::read(node, &id)?;
    ensure!(status.exit_code == 0, "{log:?}");
    node.end_pod(&pod)?;
    Ok(log.into_iter().map(|line| line.content).filter(|line| line != "ready").collect())
}

/// Whoever may not look sees nothing before an `execve`. Whoever may look into everything sees a process that has no more
/// than its program will have, but for the socket that tells it to go on; the program that it executes is the monitor's.
fn harmless(attacker: &Attacker, sights: &BTreeSet<String>) -> Result<()> {
    let looks = attacker.capable && !attacker.user;
    for sight in sights.iter().filter(|sight| looks || *sight != NOTHING) {
        let words: Vec<_> = sight.split(' ').collect();
        let [program, root, cwd, descriptors, _] = words[..] else { bail!("{sight}") };
        ensure!(program == "program" || (looks && program == "monitor"), "{sight}");
        ensure!(root == "container" && cwd == "in", "{sight}");
        let harmless =
            |kind| matches!(kind, "/dev/null" | "pipe") || (kind == "socket" && program == "monitor");
        ensure!(descriptors.split(',').all(harmless), "{sight}");
    }
    let before = |sight: &String| if looks { sight.starts_with("monitor ") } else { sight == NOTHING };
    ensure!(sights.iter().any(before), "nothing was seen before its execve: nothing was tried");
    Ok(())
}

/// Tries everything on process 1 and prints what came of it. Argument: the path of something on the host. With a second
/// argument it traces process 1 and never lets go.
const TRY: &str = r#"
import ctypes, errno, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    if number < 0:
        raise OSError(ctypes.get_errno(), 'refused')
    return 'done'
def ptrace(request):
    return call(libc.ptrace(request, 1, None, None))
def attach():
    ptrace(16)
    os.waitpid(1, 0x40000000)
    return 'done'
def enter():
    call(libc.setns(os.open('/proc/1/ns/mnt', os.O_RDONLY), 0x20000))
    return 'host' if os.path.exists(sys.argv[1]) else 'elsewhere'
def signals():
    for number in range(1, 65):
        if number not in (32, 33):
            os.kill(1, number)
    return 'sent'
def write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    return 'done'
def read(path):
    with open(path, 'rb') as file:
        return len(file.read())
if len(sys.argv) > 2:
    print('held', attach(), flush=True)
    time.sleep(3600)
tries = {
    'root': lambda: os.listdir('/proc/1/root/'),
    'root-up': lambda: os.path.exists('/proc/1/root/..' + sys.argv[1]),
    'root-write': lambda: write('/proc/1/root/x'),
    'cwd': lambda: os.listdir('/proc/1/cwd/'),
    'cwd-write': lambda: write('/proc/1/cwd/x'),
    'fd': lambda: os.listdir('/proc/1/fd'),
    'fd-open': lambda: [n for n in range(100) if os.path.exists('/proc/1/fd/%d' % n)],
    'exe-write': lambda: write('/proc/1/exe'),
    'exe-mode': lambda: os.chmod('/proc/1/exe', 0o4777),
    'environ': lambda: read('/proc/1/environ'),
    'memory': lambda: os.close(os.open('/proc/1/mem', os.O_RDWR)),
    'attach': attach,
    'detach': lambda: ptrace(17),
    'enter': enter,
    'signals': signals,
}
for name, attempt in tries.items():
    try:
        came = attempt()
    except OSError as error:
        came = errno.errorcode[error.errno]
    print(name, came)
"#;

/// What must come of [`TRY`] for somebody who may not look, and for somebody who may look into everything.
const TRIES: [(&str, &[&str], &[&str]); 15] = [
    ("root", &["EACCES"], &["[]"]),
    ("root-up", &["False"], &["False"]),
    ("root-write", &["EACCES"], &["EROFS"]),
    ("cwd", &["EACCES"], &["[]"]),
    ("cwd-write", &["EACCES"], &["EROFS"]),
    ("fd", &["EACCES", "[]"], &["[]"]),
    ("fd-open", &["[]"], &["[]"]),
    ("exe-write", &["EACCES"], &["EROFS", "ETXTBSY"]),
    ("exe-mode", &["EACCES"], &["EROFS"]),
    ("environ", &["EACCES"], &["0"]),
    ("memory", &["EACCES"], &["None", "EACCES"]),
    ("attach", &["EPERM"], &["done", "EPERM"]),
    ("detach", &["ESRCH"], &["done", "ESRCH"]),
    ("enter", &["EACCES", "EPERM"], &["elsewhere"]),
    // They may be sent; process 1 takes none from its own namespace.
    ("signals", &["sent"], &["sent"]),
];

fn shared_init(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        for attacker in ATTACKERS.iter().filter(|attacker| attacker.pid == NamespaceMode::Pod) {
            let pod = attacker.pod(node)?;
            let id = node.launch_as(&pod, &attacker.container("attacker", &["sleep", "3600"]))?;
            let sibling = node.launch_as(&pod, &attacker.container("sibling", &["sleep", "3600"]))?;
            let said = node.cri().exec(&id, &["python3", "-c", TRY, &canary.text("")])?;
            let lines: Vec<_> = said.stdout.lines().filter_map(|line| line.split_once(' ')).collect();
            ensure!(said.code == 0 && lines.len() == TRIES.len(), "{}: {said:?}", attacker.name);
            for ((name, came), (expected, refused, seen)) in lines.iter().zip(TRIES) {
                let right = if attacker.capable && !attacker.user { seen } else { refused };
                ensure!(*name == expected && right.contains(came), "{}: {name} {came}", attacker.name);
            }
            for id in [&id, &sibling] {
                ensure!(node.cri().shell(id, "cat /proc/1/comm")? == "crisp-init\n", "{}", attacker.name);
            }
            ensure!(node.cri().pod(&pod.id)?.state() == cri::PodSandboxState::SandboxReady);
            if attacker.capable && !attacker.user {
                let hold = attacker.container("holds", &["python3", "-c", TRY, "/", "hold"]);
                let hold = node.launch_as(&pod, &hold)?;
                crate::logs::wait_for_lines(node, &hold, 1)?;
            }
            node.end_pod(&pod)?;
        }
        Ok(())
    })
}
