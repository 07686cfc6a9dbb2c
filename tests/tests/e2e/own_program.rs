//! The monitor's program, run and looked at by containers: whoever is exec'd into a container is a copy of the monitor
//! until its `execve`, and an image can make that the monitor's program once more. `r01_` of the adversarial cases.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use crisp_tests::build::{Build, Tar};
use crisp_tests::cri::{bind, secured};
use crisp_tests::flipper;
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched::{self, tree};
use crisp_tests::wait;

use crate::case::Case;
use crate::hostile_proc::unconfined;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[Case {
    name: "r01_the_monitors_program_cannot_be_changed_from_inside",
    needs: &[],
    images: &["python:3.9", "busybox"],
    run: overwritten,
}];

const NAME: &str = "test/own-program:1";

/// First lines of a `/bin/sh` that is the runtime's own program. The last one makes it wait for its standard input.
const INTERPRETERS: [&str; 4] = [
    "#!/proc/self/exe\n",
    "#!/proc/thread-self/exe\n",
    "#!/proc/1/exe\n",
    "#!/proc/self/exe hold-namespaces\n",
];

/// Looks at the programs of other processes, for those that are no file of the container, and tries to change each.
/// Prints what it looked at, what it tried and what came of it, each once. With an argument it looks at one process and
/// ends; without, at all of them, stopped meanwhile, until there is a file `/report/stop`.
const ATTACK: &str = r#"
import errno, os, signal, sys
own = {os.stat(path).st_dev for path in ('/', sys.executable, '/bin/cat')}
said = set()
def say(text):
    if text not in said:
        said.add(text)
        print(text, flush=True)
def reopen(exe, how):
    fd = os.open(exe, how)
    try:
        os.open('/proc/self/fd/%d' % fd, os.O_WRONLY)
    finally:
        os.close(fd)
tries = {
    'write': lambda exe: os.open(exe, os.O_WRONLY),
    'append': lambda exe: os.open(exe, os.O_RDWR | os.O_APPEND),
    'cut': lambda exe: os.open(exe, os.O_WRONLY | os.O_TRUNC),
    'truncate': lambda exe: os.truncate(exe, 0),
    'reopen': lambda exe: reopen(exe, os.O_RDONLY),
    'reopen-path': lambda exe: reopen(exe, os.O_PATH),
    'mode': lambda exe: os.chmod(exe, 0o4777),
    'owner': lambda exe: os.chown(exe, 1, 1),
    'times': lambda exe: os.utime(exe, (1, 1)),
    'attribute': lambda exe: os.setxattr(exe, 'trusted.x', b'x'),
    'capability': lambda exe: os.setxattr(exe, 'security.capability', b'\x01\0\0\x02' + b'\xff' * 16),
    'link': lambda exe: os.link(exe, '/stolen', follow_symlinks=True),
}
def attack(pid):
    exe = '/proc/%d/exe' % pid
    try:
        program = os.stat(exe)
    except OSError as error:
        return say('look %s' % errno.errorcode[error.errno])
    if program.st_dev in own:
        return say('look own')
    for name, change in tries.items():
        try:
            change(exe)
            came = 'DONE'
        except FileNotFoundError:
            return
        except OSError as error:
            came = errno.errorcode[error.errno]
        say('%s of %d:%d %s' % (name, program.st_dev, program.st_ino, came))
if len(sys.argv) > 1:
    attack(int(sys.argv[1]))
    sys.exit()
say('ready')
while not os.path.exists('/report/stop'):
    for pid in [int(name) for name in os.listdir('/proc') if name.isdigit()]:
        if pid != os.getpid():
            try:
                os.kill(pid, signal.SIGSTOP)
                attack(pid)
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
"#;

fn overwritten(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let monitor = node.scope().monitor.clone();
        let before = tree(&monitor)?;
        let pod = node.run_pod("own-program")?;
        for (number, interpreter) in INTERPRETERS.into_iter().enumerate() {
            let shell = |layer: Tar| layer.entry(b'0', "bin/sh", "", interpreter.as_bytes(), 0o755);
            // A loader and libraries of the image's own: the monitor's program takes none of them.
            let trap = Tar::default()
                .dir("lib64")
                .symlink("lib64/ld-linux-x86-64.so.2", "/bin/busybox")
                .dir("etc")
                .file("etc/ld.so.preload", b"/lib/libseccomp.so.2\n")
                .dir("lib")
                .symlink("lib/libseccomp.so.2", "/bin/busybox");
            node.build_image(NAME, Build::on("busybox").layer(shell(trap)))?;
            started(node, &pod, number).context(interpreter)?;
            node.remove_image(NAME)?;
            node.build_image(NAME, Build::on("python:3.9").layer(shell(Tar::default())))?;
            started(node, &pod, number).context(interpreter)?;
            executed(node, &pod, number).context(interpreter)?;
            if interpreter.contains(' ') {
                held(node, &pod)?;
            }
            node.remove_image(NAME)?;
        }
        ensure!(tree(&monitor)? == before, "{} was changed", monitor.display());
        node.end_pod(&pod)
    })
}

/// As the container's first process: it is not started, or it is one program of the container that ends badly.
fn started(node: &Node, pod: &Pod, number: usize) -> Result<()> {
    for tty in [false, true] {
        let mut config =
            secured(&format!("started-{number}-{tty}"), NAME, &["/bin/sh", "-c", ":"], unconfined);
        config.tty = tty;
        let id = node.cri().create(&pod.id, &config, &pod.config)?;
        let waits = node.cri().start(&id).is_ok() && tty && number == INTERPRETERS.len() - 1;
        if !waits {
            let status = node.wait_for_exit(&id)?;
            ensure!(status.exit_code != 0 || number == INTERPRETERS.len() - 1, "{status:?}");
        }
        let log = crate::logs::read(node, &id)?;
        ensure!(!log.iter().any(|line| line.content.contains("BusyBox")), "the image's loader ran: {log:?}");
        node.cri().stop(&id, 0)?;
        node.cri().remove(&id)?;
    }
    Ok(())
}

/// By exec, while a process of the container stops whatever it sees and looks at its program.
fn executed(node: &Node, pod: &Pod, number: usize) -> Result<()> {
    let report = node.folder().join(format!("report-{number}"));
    fs::create_dir(&report)?;
    let name = format!("executed-{number}");
    let mut config = secured(&name, NAME, &["python3", "-c", ATTACK], unconfined);
    config.mounts = vec![bind(&report, "/report")];
    let id = node.launch_as(pod, &config)?;
    crate::logs::wait_for_lines(node, &id, 1)?;
    for _ in 0..flipper::rounds() / INTERPRETERS.len() {
        // Whether it can be run is not the point.
        let _ = node.cri().exec(&id, &["/bin/sh"]);
    }
    fs::write(report.join("stop"), "")?;
    let status = node.wait_for_exit(&id)?;
    let log = crate::logs::read(node, &id)?;
    ensure!(status.exit_code == 0, "{log:?}");
    let lines: Vec<_> = log.iter().map(|line| line.content.as_str()).collect();
    ensure!(lines.len() > 1, "nothing was seen");
    unchangeable(node, &lines)?;
    Ok(node.cri().remove(&id)?)
}

/// As the first process of a container, waiting for its terminal: this time nothing depends on luck.
fn held(node: &Node, pod: &Pod) -> Result<()> {
    let mut config = secured("held", NAME, &["/bin/sh"], unconfined);
    config.tty = true;
    let id = node.launch_as(pod, &config)?;
    let lines = wait::until("the monitor's program in the container", wait::LONG, || {
        let said =
            node.cri().exec(&id, &["python3", "-c", ATTACK, "1"]).map_err(|error| error.to_string())?;
        if said.stdout.contains(" of ") { Ok(said.stdout) } else { Err(format!("{said:?}")) }
    })?;
    let lines: Vec<_> = lines.lines().collect();
    ensure!(lines.len() == 12, "not everything was tried: {lines:?}");
    unchangeable(node, &lines)?;
    node.cri().stop(&id, 0)?;
    Ok(node.cri().remove(&id)?)
}

/// What [`ATTACK`] has tried on the monitor's program came to nothing, and not by the luck that it is being executed.
fn unchangeable(node: &Node, lines: &[&str]) -> Result<()> {
    let monitor = fs::metadata(&node.scope().monitor)?;
    let monitor = format!("{}:{}", monitor.dev(), monitor.ino());
    for line in lines.iter().filter(|line| line.contains(" of ")) {
        let words: Vec<_> = line.split(' ').collect();
        ensure!(words[2] == monitor, "a program that is neither the container's nor {monitor}: {line}");
        // Of a file that is executed the kernel says that first; the other answers show that it is not all.
        let refusals: &[&str] = match words[0] {
            "write" | "append" | "reopen" | "reopen-path" => &["EROFS", "ETXTBSY"],
            "link" => &["EXDEV", "EPERM"],
            _ => &["EROFS"],
        };
        ensure!(refusals.contains(&words[3]), "{line}; all: {lines:?}");
    }
    Ok(())
}
