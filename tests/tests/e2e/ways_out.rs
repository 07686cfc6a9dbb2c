//! Ways out of crisp's own commands: whatever ends them, in whatever stage, the terminal is as it was before.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::container_config;
use crisp_tests::node::{Node, Pod};
use crisp_tests::terminal::Terminal;
use crisp_tests::wait;
use nix::libc::SYS_write;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkfifo};

use crate::case::Case;
use crate::interactive::crisp;
use crate::streaming::sleeper;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "crisp_exec_restores_the_terminal_on_every_way_out",
        needs: &[],
        images: &["busybox"],
        run: exec,
    },
    Case {
        name: "crisp_attach_restores_the_terminal_on_every_way_out",
        needs: &[],
        images: &["busybox"],
        run: attach,
    },
    Case { name: "crisp_ends_when_asked_though_nobody_answers", needs: &[], images: &[], run: unanswered },
];

/// What asks a program to end, and its exit code then.
const SIGNALS: [(Signal, i32); 4] =
    [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130), (Signal::SIGQUIT, 131)];

/// The settings of a terminal that nobody has touched.
fn fresh() -> Result<String> {
    Terminal::start(&Command::new("true"), 90, 30)?.settings()
}

/// A crisp command at a terminal that is raw, with a shell that answers.
fn raw(command: &Command) -> Result<Terminal> {
    let mut terminal = Terminal::start(command, 90, 30)?;
    terminal.press(b"echo 'h'ello\n")?;
    terminal.wait_for("hello\r\n")?;
    ensure!(terminal.settings()? != fresh()?, "the terminal is not raw");
    Ok(terminal)
}

fn send(terminal: &Terminal, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(terminal.pid()?.parse()?), signal).with_context(|| format!("send {signal}"))
}

/// Waits for the end; the terminal has to be as it was.
fn restored(terminal: &mut Terminal, way: &str) -> Result<ExitStatus> {
    let status = terminal.wait()?;
    ensure!(terminal.settings()? == fresh()?, "{way}: the terminal stays raw: {}", terminal.seen());
    Ok(status)
}

fn ended_by(terminal: &mut Terminal, (signal, code): (Signal, i32), way: &str) -> Result<()> {
    send(terminal, signal)?;
    let status = restored(terminal, &format!("{way} and {signal}"))?;
    ensure!(status.code() == Some(code), "{way} and {signal}: {status}: {}", terminal.seen());
    Ok(())
}

/// The same command with its standard output into a fifo; the rest stays at the terminal.
fn into_fifo(command: &Command, fifo: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" >\"$0\""]).arg(fifo).arg(command.get_program()).args(command.get_args());
    shell
}

/// Waits until a thread of the program is in a write to its standard output which does not come back.
fn wait_until_blocked(terminal: &Terminal) -> Result<()> {
    let tasks = format!("/proc/{}/task", terminal.pid()?);
    let writes = format!("{SYS_write} 0x1 ");
    let look = || -> Result<Option<String>> {
        for task in fs::read_dir(&tasks)? {
            let call = fs::read_to_string(task?.path().join("syscall"))?;
            if call.starts_with(&writes) {
                return Ok(Some(call));
            }
        }
        Ok(None)
    };
    let mut before = None;
    // The same call with the same buffer: one that moves on is seen to end.
    wait::until("output to be blocked", wait::LONG, || {
        let now = look().map_err(|error| format!("{error:#}"))?;
        let same = now.is_some() && now == before;
        before = now;
        if same { Ok(()) } else { Err(format!("{before:?}")) }
    })
}

/// Ways that `exec` and `attach` have in common: signals, a reader that has gone, and output that nobody takes.
fn common(node: &Node, command: &Command, relaunch: &dyn Fn() -> Result<()>) -> Result<()> {
    for signal in SIGNALS {
        relaunch()?;
        ended_by(&mut raw(command)?, signal, "a shell that waits")?;
    }
    relaunch()?;
    let fifo = node.folder().join("out");
    mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let reader = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&fifo)?;
    let mut terminal = Terminal::start(&into_fifo(command, &fifo), 90, 30)?;
    wait::until_true("a raw terminal", wait::LONG, || {
        terminal.settings().ok().zip(fresh().ok()).is_some_and(|(now, fresh)| now != fresh)
    })?;
    drop(reader);
    terminal.press(b"echo hello\n")?;
    let status = restored(&mut terminal, "the reader has gone")?;
    let said = terminal.seen();
    ensure!(status.code() == Some(1) && said.contains("write to standard output"), "{status}: {said}");

    relaunch()?;
    let _nobody_reads = File::options().read(true).write(true).open(&fifo)?;
    let mut terminal = Terminal::start(&into_fifo(command, &fifo), 90, 30)?;
    terminal.press(b"yes\n")?;
    wait_until_blocked(&terminal)?;
    ended_by(&mut terminal, SIGNALS[0], "a full pipe")?;
    fs::remove_file(&fifo)?;

    relaunch()?;
    let mut terminal = raw(command)?;
    terminal.stop_output()?;
    terminal.press(b"yes\n")?;
    wait_until_blocked(&terminal)?;
    ended_by(&mut terminal, SIGNALS[1], "a terminal that stands still")
}

fn exec(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "restored")?;
    let command = crisp(node, &["exec", "-it", "restored", "sh"]);
    common(node, &command, &|| Ok(()))?;
    for way in ["the command ends", "the container ends", "the daemon is killed"] {
        let mut terminal = raw(&command)?;
        match way {
            "the command ends" => terminal.press(b"\x04")?,
            "the container ends" => node.cri().stop(&id, 0)?,
            _ => node.kill()?,
        }
        let status = restored(&mut terminal, way)?;
        ensure!(status.success() == (way == "the command ends"), "{way}: {status}: {}", terminal.seen());
        if way == "the container ends" {
            node.launch_as(&pod, &container_config("again", "busybox", &["sleep", "3600"]))?;
        }
    }
    node.serve()?;
    node.end_pod(&pod)
}

/// A shell to attach to, in place of the one there was.
fn shell(node: &Node, pod: &Pod) -> Result<()> {
    for old in node.cri().containers()? {
        node.cri().stop(&old.id, 0)?;
        node.cri().remove(&old.id)?;
    }
    let config = container_config("c", "busybox", &["sh"]);
    node.launch_as(pod, &cri::ContainerConfig { stdin: true, tty: true, ..config })?;
    Ok(())
}

fn attach(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("attached")?;
    let command = crisp(node, &["attach", "attached"]);
    common(node, &command, &|| shell(node, &pod))?;
    for way in ["the container ends", "the daemon is killed"] {
        shell(node, &pod)?;
        let mut terminal = raw(&command)?;
        match way {
            "the container ends" => terminal.press(b"\x04")?,
            _ => node.kill()?,
        }
        let status = restored(&mut terminal, way)?;
        ensure!(status.success() == (way == "the container ends"), "{way}: {status}: {}", terminal.seen());
    }
    node.serve()?;
    node.end_pod(&pod)
}

/// The runtime takes the connection and says nothing: nothing has been opened by then, and the command is ended all the
/// same.
fn unanswered(node: &mut Node) -> Result<()> {
    let path = node.folder().join("silent.sock");
    let listener = UnixListener::bind(&path)?;
    let (sender, accepted) = mpsc::channel();
    let silent = thread::spawn(move || {
        let mut held = Vec::new();
        // Until the test has no ears any more.
        while let Ok((socket, _)) = listener.accept() {
            held.push(socket);
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    let endpoint = format!("unix://{}", path.display());
    let manifest = crate::play::example("01-hello.yaml")?;
    let commands = [
        &["exec", "x", "true"][..],
        &["exec", "--timeout", "1000", "x", "true"],
        &["attach", "x"],
        &["port-forward", "x", ":80"],
        &["play", &manifest],
    ];
    for arguments in commands {
        let play = arguments[0] == "play";
        for (signal, code) in SIGNALS.into_iter().filter(|(signal, _)| !play || *signal == Signal::SIGINT) {
            let mut child = Command::new(node.crisp_command().get_program())
                .args(["--endpoint", &endpoint])
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()?;
            // One connection to see whether somebody listens, one for the calls: handlers are there by then.
            for _ in 0..2 {
                accepted.recv_timeout(wait::LONG).with_context(|| format!("{arguments:?} connects"))?;
            }
            kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
            let status = wait::until(&format!("{arguments:?} to end by {signal}"), wait::LONG, || {
                child.try_wait().map_err(|error| error.to_string())?.ok_or_else(|| "it runs".to_owned())
            });
            let _ = child.kill();
            ensure!(status?.code() == Some(code), "{arguments:?}, {signal}: {:?}", child.wait());
        }
    }
    drop(accepted);
    std::os::unix::net::UnixStream::connect(&path)?;
    silent.join().map_err(|_| anyhow::anyhow!("the silent runtime panicked"))
}
