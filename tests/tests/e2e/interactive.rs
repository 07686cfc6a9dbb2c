//! At a terminal: crictl and crisp's own commands, driven through a real pseudo-terminal as a person would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::command;
use crisp_tests::cri::container_config;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::terminal::Terminal;
use crisp_tests::wait;
use sha2::{Digest, Sha256};

use crate::case::Case;
use crate::port_forward::{LOOPBACK, digests, joined, listen};
use crate::streaming::{hex, sleeper, wait_until_alone};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "crictl_exec_at_a_terminal",
        needs: &[Need::Crictl],
        images: &["busybox"],
        run: crictl_exec,
    },
    Case {
        name: "crictl_exec_over_websocket",
        needs: &[Need::Crictl],
        images: &["busybox"],
        run: crictl_websocket,
    },
    Case {
        name: "crictl_attach_at_a_terminal",
        needs: &[Need::Crictl],
        images: &["busybox"],
        run: crictl_attach,
    },
    Case { name: "crictl_port_forward", needs: &[Need::Crictl], images: &["busybox"], run: crictl_forward },
    Case { name: "crisp_exec_at_a_terminal", needs: &[], images: &["busybox"], run: crisp_exec },
    Case { name: "crisp_exec_in_a_pipeline", needs: &[], images: &["busybox"], run: crisp_pipeline },
    Case {
        name: "e05_detach_keys_leave_the_container_running",
        needs: &[],
        images: &["busybox"],
        run: detach,
    },
];

/// A shell is used as by a person: typed, resized, interrupted. How it is left is the caller's.
pub(crate) fn use_shell(node: &Node, id: &str, terminal: &mut Terminal) -> Result<()> {
    // The line is shown as it is typed: what is waited for must not stand in it.
    terminal.press(b"echo 'h'ello\n")?;
    terminal.wait_for("hello\r\n")?;
    terminal.resize(111, 42)?;
    terminal.press(b"while test \"$(stty size)\" != '42 111'; do :; done; echo 's'ize\n")?;
    terminal.wait_for("size\r\n")?;
    terminal.press(b"echo 'r'unning; sleep 1234\n")?;
    terminal.wait_for("running\r\n")?;
    wait::until("sleep to run", wait::LONG, || {
        node.cri().shell(id, "grep -ls '123[4]' /proc/[0-9]*/cmdline").map_err(|error| format!("{error:#}"))
    })?;
    terminal.press(b"\x03")?;
    terminal.press(b"echo 'c'ode $?\n")?;
    terminal.wait_for("code 130\r\n")
}

/// Leaves crictl's shell with 42, a number that nobody has typed: what names it is crictl itself.
fn leave_with_42(terminal: &mut Terminal) -> Result<()> {
    terminal.press(b"exit $((40+2))\n")?;
    terminal.wait_for("command terminated with exit code 42")?;
    let status = terminal.wait()?;
    ensure!(status.code().is_some_and(|code| code != 0), "{status}: {}", terminal.seen());
    Ok(())
}

/// Ends a shell by the end of its input.
fn leave_by_ctrl_d(terminal: &mut Terminal) -> Result<()> {
    terminal.press(b"echo 'h'ello\n")?;
    terminal.wait_for("hello\r\n")?;
    terminal.press(b"\x04")?;
    let status = terminal.wait()?;
    ensure!(status.success(), "{status}: {}", terminal.seen());
    Ok(())
}

fn crictl(node: &Node, arguments: &[&str]) -> Command {
    node.crictl_command(arguments)
}

fn crictl_exec(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "crictl-exec")?;
    let mut terminal = Terminal::start(&crictl(node, &["exec", "-i", "-t", &id, "sh"]), 90, 30)?;
    use_shell(node, &id, &mut terminal)?;
    leave_with_42(&mut terminal)?;
    // Ctrl-D ends a shell in which all went well.
    let mut terminal = Terminal::start(&crictl(node, &["exec", "-i", "-t", &id, "sh"]), 90, 30)?;
    leave_by_ctrl_d(&mut terminal)?;
    let said = command::run(&mut crictl(node, &["exec", &id, "sh", "-c", "echo out; echo err >&2"]))?;
    ensure!(said.status.success() && said.stdout == "out\n" && said.stderr.contains("err"), "{said}");
    wait_until_alone(node, &id)?;
    node.end_pod(&pod)
}

fn crictl_websocket(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "crictl-ws")?;
    let arguments = ["exec", "--transport", "websocket", "-i", "-t", &id, "sh"];
    let mut terminal = Terminal::start(&crictl(node, &arguments), 90, 30)?;
    use_shell(node, &id, &mut terminal)?;
    leave_with_42(&mut terminal)?;
    let mut terminal = Terminal::start(&crictl(node, &arguments), 90, 30)?;
    leave_by_ctrl_d(&mut terminal)?;
    let said = command::run(&mut crictl(node, &["exec", "--transport", "websocket", &id, "echo", "out"]))?;
    ensure!(said.status.success() && said.stdout == "out\n", "{said}");
    node.end_pod(&pod)
}

fn crictl_attach(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("crictl-attach")?;
    for transport in ["spdy", "websocket"] {
        let shell = |name: &str| {
            let config = container_config(&format!("{name}-{transport}"), "busybox", &["sh"]);
            node.launch_as(&pod, &cri::ContainerConfig { stdin: true, tty: true, ..config })
        };
        let attached = |id: &str| crictl(node, &["attach", "--transport", transport, "--stdin", "--tty", id]);
        let id = shell("exit")?;
        let mut terminal = Terminal::start(&attached(&id), 90, 30)?;
        use_shell(node, &id, &mut terminal)?;
        terminal.press(b"exit $((2+3))\n")?;
        let status = terminal.wait()?;
        ensure!(status.success(), "{status}: {}", terminal.seen());
        ensure!(node.wait_for_exit(&id)?.exit_code == 5);
        let id = shell("ctrl-d")?;
        let mut terminal = Terminal::start(&attached(&id), 90, 30)?;
        leave_by_ctrl_d(&mut terminal)?;
        ensure!(node.wait_for_exit(&id)?.exit_code == 0);
    }
    node.end_pod(&pod)
}

fn crictl_forward(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("crictl-forward")?;
    for transport in ["spdy", "websocket"] {
        let server = digests(listen(node, &pod, LOOPBACK[0], 8080)?, 2);
        let command = crictl(node, &["port-forward", "--transport", transport, &pod.id, ":8080"]);
        let mut terminal = Terminal::start(&command, 90, 30)?;
        let address = forwarded(&mut terminal)?;
        for text in ["hello".to_owned(), "again".repeat(1 << 20)] {
            let stage = |what| format!("{what} {} bytes, {transport}", text.len());
            let answer = digest_from(&address, text.as_bytes()).with_context(|| stage("the answer to"))?;
            ensure!(answer == hex(&Sha256::digest(&text)), "{}: {answer:?}", stage("the answer to"));
        }
        joined(server)?;
        terminal.press(b"\x03")?;
        let status = terminal.wait()?;
        ensure!(status.success(), "{transport}: {status}: {}", terminal.seen());
        ensure!(TcpStream::connect(&address).is_err(), "{transport}: somebody listens at {address} still");
    }
    node.end_pod(&pod)
}

/// Where a program that forwards one port listens, by its own words.
pub(crate) fn forwarded(terminal: &mut Terminal) -> Result<String> {
    terminal.wait_for("Forwarding from ")?;
    terminal.wait_for(" -> ")?;
    let seen = terminal.seen();
    let address = seen.split_once("Forwarding from ").and_then(|(_, rest)| rest.split(' ').next());
    Ok(address.with_context(|| seen.clone())?.to_owned())
}

/// What a server of digests at `address` answers to `bytes`.
pub(crate) fn digest_from(address: &str, bytes: &[u8]) -> Result<String> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(wait::LONG))?;
    socket.write_all(bytes)?;
    socket.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

pub(crate) fn crisp(node: &Node, arguments: &[&str]) -> Command {
    let mut command = node.crisp_command();
    command.args(arguments);
    command
}

fn crisp_exec(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "crisp-exec")?;
    let mut terminal = Terminal::start(&crisp(node, &["exec", "-it", "crisp-exec", "sh"]), 90, 30)?;
    use_shell(node, &id, &mut terminal)?;
    terminal.press(b"exit $((3+4))\n")?;
    let status = terminal.wait()?;
    ensure!(status.code() == Some(7), "{status}: {}", terminal.seen());
    // Without one, both streams are apart, and a size is nobody's.
    let said = node.crisp(&["exec", "crisp-exec", "--", "sh", "-c", "echo out; echo err >&2; exit 3"])?;
    ensure!(said.status.code() == Some(3) && said.stdout == "out\n" && said.stderr == "err\n", "{said}");
    let refused = node.crisp(&["exec", "crisp-exec", "nosuch"])?.refused()?;
    ensure!(refused.contains("executable file not found"), "{refused}");
    wait_until_alone(node, &id)?;
    node.end_pod(&pod)
}

fn crisp_pipeline(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "pipeline")?;
    let bytes: Vec<u8> = (0..8_000_000u32).map(|number| (number * 7 % 251) as u8).collect();
    let mut child = crisp(node, &["exec", "-i", "pipeline", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no stdin")?;
    let copy = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&copy));
    let mut back = Vec::new();
    child.stdout.take().context("no stdout")?.read_to_end(&mut back)?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(child.wait()?.success() && back == bytes, "{} bytes came back", back.len());
    // Interrupted from outside, it takes along what it has started.
    let mut child = crisp(node, &["exec", "pipeline", "sh", "-c", "echo ready; sleep 2000"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    command::run(Command::new("kill").args(["-INT", &child.id().to_string()]))?.ok()?;
    ensure!(child.wait()?.code() == Some(130));
    wait_until_alone(node, &id)?;
    node.end_pod(&pod)
}

fn detach(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("detach")?;
    let config = cri::ContainerConfig { stdin: true, tty: true, ..container_config("c", "busybox", &["sh"]) };
    let id = node.launch_as(&pod, &config)?;
    for (keys, list) in [(&b"\x10\x11"[..], None), (b"~.", Some("~,."))] {
        let mut arguments = vec!["attach", "detach"];
        arguments.extend(list.iter().flat_map(|list| ["--detach-keys", list]));
        let mut terminal = Terminal::start(&crisp(node, &arguments), 90, 30)?;
        terminal.press(b"echo 'h'ello\n")?;
        terminal.wait_for("hello\r\n")?;
        terminal.press(keys)?;
        let status = terminal.wait()?;
        ensure!(status.success(), "{status}: {}", terminal.seen());
        ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning);
    }
    let refused = node.crisp(&["attach", "detach", "--detach-keys", "enter"])?.refused()?;
    ensure!(refused.contains("enter"), "{refused}");
    let mut terminal = Terminal::start(&crisp(node, &["attach", "detach"]), 90, 30)?;
    use_shell(node, &id, &mut terminal)?;
    terminal.press(b"exit 0\n")?;
    ensure!(terminal.wait()?.success(), "{}", terminal.seen());
    node.wait_for_exit(&id)?;
    node.end_pod(&pod)
}
