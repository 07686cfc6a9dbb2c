//! The monitor's program, run and looked at by containers: whoever is exec'd into a container is a copy of the monitor
//! until its `execve`, and an image can make that the monitor's program once more. `r01_` of the adversarial cases.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
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

/// A loader and libraries of the image's own: the monitor's program takes none of them. `/bin/dynamic` is a program of
/// this machine's that takes the loader.
fn trap() -> Result<Tar> {
    let program = fs::read("/bin/true")?;
    let loader = "lib64/ld-linux-x86-64.so.2";
    ensure!(
        program.windows(loader.len()).any(|part| part == loader.as_bytes()),
        "/bin/true is linked in another way"
    );
    let marker = marker();
    Ok(Tar::default()
        .dir("lib64")
        .entry(b'0', loader, "", &marker, 0o755)
        .dir("etc")
        .file("etc/ld.so.preload", b"/lib/libseccomp.so.2\n")
        .dir("lib")
        .entry(b'0', "lib/libseccomp.so.2", "", &marker, 0o755)
        .entry(b'0', "bin/dynamic", "", &program, 0o755))
}

/// An x86-64 program for any address, also a loader: it makes a file `/report/ran` and ends with 42.
fn marker() -> Vec<u8> {
    const CODE: &[u8] = b"\xb8\x02\0\0\0\x48\x8d\x3d\x18\0\0\0\xbe\x41\0\0\0\xba\xb6\x01\0\0\x0f\x05\
        \xb8\x3c\0\0\0\xbf\x2a\0\0\0\x0f\x05/report/ran\0";
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let (shared, x86_64, header, segment) = (3_u16, 62_u16, 64_u16, 56_u16);
    let (entry, length) = (u64::from(header + segment), u64::from(header + segment) + CODE.len() as u64);
    elf.extend(shared.to_le_bytes());
    elf.extend(x86_64.to_le_bytes());
    elf.extend(1_u32.to_le_bytes());
    for word in [entry, u64::from(header), 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [header, segment, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // One segment with all of it, to be read and executed.
    elf.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    for word in [0, 0, 0, length, length, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(CODE);
    elf
}

fn overwritten(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let monitor = node.scope().monitor.clone();
        let before = tree(&monitor)?;
        let pod = node.run_pod("own-program")?;
        for (number, interpreter) in INTERPRETERS.into_iter().enumerate() {
            let shell = |layer: Tar| layer.entry(b'0', "bin/sh", "", interpreter.as_bytes(), 0o755);
            node.build_image(NAME, Build::on("busybox").layer(shell(trap()?)))?;
            trapped(node, &pod, number).context(interpreter)?;
            node.remove_image(NAME)?;
            node.build_image(NAME, Build::on("python:3.9").layer(shell(Tar::default())))?;
            started(node, &pod, number, None).context(interpreter)?;
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

/// In an image with a loader of its own, which runs with every program that asks for it, and never with the monitor's.
fn trapped(node: &Node, pod: &Pod, number: usize) -> Result<()> {
    let report = node.folder().join(format!("trap-{number}"));
    fs::create_dir(&report)?;
    let ran = report.join("ran");
    started(node, pod, number, Some(&report))?;
    let name = format!("trapped-{number}");
    let mut config = secured(&name, NAME, &["/bin/busybox", "sleep", "3600"], unconfined);
    config.mounts = vec![bind(&report, "/report")];
    let id = node.launch_as(pod, &config)?;
    while_nothing_is_mounted(node, || {
        for _ in 0..flipper::rounds() / INTERPRETERS.len() / 4 {
            let _ = node.cri().exec(&id, &["/bin/sh"]);
        }
        Ok(())
    })?;
    ensure!(!ran.exists(), "the image's loader ran with the monitor's program");
    // It would have been seen.
    let said = node.cri().exec(&id, &["/bin/dynamic"])?;
    ensure!(said.code == 42 && ran.exists(), "the trap does not work: {said:?}");
    Ok(node.cri().remove(&id)?)
}

/// Does `work`, meanwhile looking at the mounts of the daemon's namespace, which is the host's: an exec makes none there.
fn while_nothing_is_mounted(node: &Node, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let table = format!("/proc/{}/mountinfo", node.daemon_pid()?);
    let before = fs::read_to_string(&table)?;
    let over = AtomicBool::new(false);
    let (worked, looked) = thread::scope(|scope| {
        let look = scope.spawn(|| -> Result<usize> {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) {
                let now = fs::read_to_string(&table)?;
                ensure!(now == before, "mounts during an exec, before:\n{before}\nand now:\n{now}");
                looks += 1;
                thread::yield_now();
            }
            Ok(looks)
        });
        let worked = work();
        over.store(true, Ordering::Relaxed);
        (worked, look.join().map_err(|_| anyhow!("the look-out panicked")))
    });
    worked?;
    ensure!(looked?? > 0, "nobody has looked");
    Ok(())
}

/// As the container's first process: it is not started, or it is one program of the container that ends badly.
fn started(node: &Node, pod: &Pod, number: usize, report: Option<&Path>) -> Result<()> {
    for tty in [false, true] {
        let mut config =
            secured(&format!("started-{number}-{tty}"), NAME, &["/bin/sh", "-c", ":"], unconfined);
        config.tty = tty;
        config.mounts = report.map(|report| bind(report, "/report")).into_iter().collect();
        let id = node.cri().create(&pod.id, &config, &pod.config)?;
        let waits = node.cri().start(&id).is_ok() && tty && number == INTERPRETERS.len() - 1;
        if !waits {
            let status = node.wait_for_exit(&id)?;
            ensure!(status.exit_code != 0 || number == INTERPRETERS.len() - 1, "{status:?}");
        }
        ensure!(!report.is_some_and(|report| report.join("ran").exists()), "the image's loader ran");
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
    while_nothing_is_mounted(node, || {
        for _ in 0..flipper::rounds() / INTERPRETERS.len() {
            // Whether it can be run is not the point.
            let _ = node.cri().exec(&id, &["/bin/sh"]);
        }
        Ok(())
    })?;
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
