//! The daemon as a program: terminal, signals, a second one, its lock and its default configuration.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::node::Node;
use crisp_tests::{command, host};
use nix::pty::openpty;
use nix::sys::signal::Signal;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "ctrl_c_at_the_daemon_takes_no_pod_along", needs: &[], images: &["busybox"], run: terminal },
    Case { name: "every_ending_signal_leaves_pods_running", needs: &[], images: &["busybox"], run: signals },
    Case { name: "a_second_daemon_on_one_state_is_refused", needs: &[], images: &[], run: second },
    Case { name: "the_socket_is_roots_alone", needs: &[], images: &[], run: socket },
];

/// Starts the daemon as the foreground process group of a terminal of its own; returns the terminal's other end.
fn serve_at_terminal(node: &mut Node) -> Result<fs::File> {
    let terminal = openpty(None, None).context("open a terminal")?;
    let serve = node.serve_command();
    // setsid makes a session of its own and takes its standard input as controlling terminal.
    let child = Command::new("setsid")
        .arg("--ctty")
        .arg(serve.get_program())
        .args(serve.get_args())
        .stdin(Stdio::from(terminal.slave.try_clone()?))
        .stdout(Stdio::from(terminal.slave.try_clone()?))
        .stderr(Stdio::from(terminal.slave))
        .spawn()
        .context("start the daemon at a terminal")?;
    node.adopt(child)?;
    Ok(fs::File::from(terminal.master))
}

fn terminal(node: &mut Node) -> Result<()> {
    node.stop()?;
    let mut keyboard = serve_at_terminal(node)?;
    let pod = node.run_pod("terminal")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let pid = node.cri().pid(&id)?;
    keyboard.write_all(b"\x03")?;
    let status = node.wait_for_end().context("after Ctrl-C")?;
    ensure!(host::lives(pid), "the container went along with the daemon ({status})");
    // Hanging up must not matter either: the terminal's window is closed.
    drop(keyboard);
    ensure!(host::lives(pid), "the container went along with the terminal");
    node.serve()?;
    ensure!(
        node.cri().pid(&id)? == pid && node.cri().pod(&pod.id)?.state() == cri::PodSandboxState::SandboxReady
    );
    node.end_pod(&pod)
}

fn signals(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("signals")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let pid = node.cri().pid(&id)?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL, Signal::SIGABRT] {
        node.signal(signal)?;
        node.wait_for_end()?;
        ensure!(host::lives(pid), "{signal} took the container along");
        node.serve()?;
        ensure!(node.cri().exec(&id, &["true"])?.code == 0, "after {signal}");
    }
    node.end_pod(&pod)
}

fn second(node: &mut Node) -> Result<()> {
    let said = command::run(&mut node.serve_command())?.refused()?;
    ensure!(said.contains(&node.state().display().to_string()), "{said}");
    // The first one did not lose its socket over it.
    node.cri().version(cri::VersionRequest::default())?;
    ensure!(node.crisp(&["ps"])?.status.success());
    Ok(())
}

fn socket(node: &mut Node) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let path = node.endpoint();
    let mode = fs::metadata(path.trim_start_matches("unix://"))?.permissions().mode();
    ensure!(mode & 0o007 == 0, "everybody may talk to the daemon: mode {mode:o}");
    Ok(())
}
