//! Exec and attach over both transports and every version of their protocol: each byte, each end, each exit code.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused, words};
use crisp_tests::node::{Node, Pod};
use crisp_tests::streaming::{Spdy, Told, WebSocket};
use crisp_tests::wait;
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "exec_speaks_every_version_over_spdy",
        needs: &[],
        images: &["busybox"],
        run: spdy_versions,
    },
    Case {
        name: "exec_speaks_every_version_over_websocket",
        needs: &[],
        images: &["busybox"],
        run: websocket_versions,
    },
    Case { name: "exec_with_a_terminal", needs: &[], images: &["busybox"], run: terminal },
    Case { name: "exec_carries_every_byte", needs: &[], images: &["busybox"], run: bulk },
    Case { name: "exec_says_what_went_wrong", needs: &[], images: &["busybox"], run: failures },
    Case { name: "exec_ends_with_its_client", needs: &[], images: &["busybox"], run: client_gone },
    Case { name: "exec_ends_with_the_daemon", needs: &[], images: &["busybox"], run: daemon_gone },
    Case { name: "streaming_requests_are_checked", needs: &[], images: &["busybox"], run: checks },
    Case { name: "attach_shares_one_container", needs: &[], images: &["busybox"], run: attach },
    Case { name: "attach_to_a_terminal", needs: &[], images: &["busybox"], run: attach_terminal },
];

/// A call of Exec with all streams that go together.
pub(crate) fn exec_request(id: &str, command: &[&str], stdin: bool, tty: bool) -> cri::ExecRequest {
    cri::ExecRequest {
        container_id: id.to_owned(),
        cmd: words(command),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    }
}

/// The URL of an exec.
pub(crate) fn exec_url(node: &Node, id: &str, command: &[&str], stdin: bool, tty: bool) -> Result<String> {
    Ok(node.cri().exec_url(exec_request(id, command, stdin, tty))?.url)
}

/// The URL of an attach with all streams that go together.
pub(crate) fn attach_url(node: &Node, id: &str, stdin: bool, tty: bool) -> Result<String> {
    let request = cri::AttachRequest { container_id: id.to_owned(), stdin, tty, stdout: true, stderr: !tty };
    Ok(node.cri().attach(request)?.url)
}

const V5: &str = "v5.channel.k8s.io";

/// A pod with a container that sleeps.
pub(crate) fn sleeper(node: &Node, name: &str) -> Result<(Pod, String)> {
    let pod = node.run_pod(name)?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    Ok((pod, id))
}

/// Waits until nothing but the container's own process runs in it.
pub(crate) fn wait_until_alone(node: &Node, id: &str) -> Result<()> {
    wait::until("the exec'd processes to be gone", wait::LONG, || {
        let line = "for p in /proc/[0-9]*; do test $p = /proc/$$ || tr '\\0' ' ' <$p/cmdline; done";
        let left = node.cri().shell(id, line).map_err(|error| format!("{error:#}"))?;
        let others: Vec<_> = left.split("sleep 3600 ").filter(|text| !text.trim().is_empty()).collect();
        if others.is_empty() { Ok(()) } else { Err(left) }
    })
}

fn spdy_versions(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "spdy")?;
    let line = "cat; echo err >&2; exit 7";
    for version in ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        let url = exec_url(node, &id, &["sh", "-c", line], true, false)?;
        let mut spdy = Spdy::open(&url, &["v9.channel.k8s.io", version], version)?;
        let kinds = ["error", "stdin", "stdout", "stderr"];
        spdy.streams(&kinds)?;
        spdy.data(3, b"typed\n", false)?;
        spdy.control(6, &77u32.to_be_bytes())?;
        spdy.data(3, b"and more", true)?;
        let told = spdy.told(&kinds)?;
        ensure!(told.out() == "typed\nand more" && told.stderr == b"err\n", "{version}: {told:?}");
        match version {
            "v4.channel.k8s.io" => ensure!(told.code()? == 7, "{told:?}"),
            _ => ensure!(told.error == b"command terminated with non-zero exit code: 7", "{told:?}"),
        }
        let url = exec_url(node, &id, &["true"], false, false)?;
        let mut spdy = Spdy::open(&url, &[version], version)?;
        let kinds = ["error", "stdout", "stderr"];
        spdy.streams(&kinds)?;
        let told = spdy.told(&kinds)?;
        match version {
            "v4.channel.k8s.io" => ensure!(told.code()? == 0, "{told:?}"),
            _ => ensure!(told.error.is_empty(), "{told:?}"),
        }
    }
    node.end_pod(&pod)
}

fn websocket_versions(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "websocket")?;
    let line = "read line; echo \"<$line>\"; echo err >&2; exit 7";
    for version in
        [V5, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io", ""]
    {
        let url = exec_url(node, &id, &["sh", "-c", line], true, false)?;
        let mut socket = WebSocket::open(&url, version)?;
        ensure!(socket.message()? == Some((1, Vec::new())), "{version}: no first message");
        socket.frame(0x89, b"are you there")?;
        ensure!(socket.receive()? == Some((0x8a, b"are you there".to_vec())), "{version}: no pong");
        socket.send(0, b"ty")?;
        socket.send(0, b"ped\n")?;
        let told = socket.told()?;
        ensure!(told.out() == "<typed>\n" && told.stderr == b"err\n", "{version}: {told:?}");
        match version.starts_with('v') {
            true => ensure!(told.code()? == 7, "{version}: {told:?}"),
            false => {
                ensure!(
                    told.error == b"command terminated with non-zero exit code: 7",
                    "{version}: {told:?}"
                );
            }
        }
    }
    // Only v5 can end the input and go on listening.
    let url = exec_url(node, &id, &["sha256sum"], true, false)?;
    let mut socket = WebSocket::open(&url, V5)?;
    // A message in frames, with a ping between them.
    socket.frame(0x02, b"\0he")?;
    socket.frame(0x89, b"")?;
    socket.frame(0x80, b"llo")?;
    socket.end_input()?;
    let told = socket.told()?;
    let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824  -\n";
    ensure!(told.out() == hello && told.code()? == 0, "{told:?}");
    node.end_pod(&pod)
}

fn terminal(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "tty")?;
    let url = exec_url(node, &id, &["sh"], true, true)?;
    let mut socket = WebSocket::open(&url, V5)?;
    socket.send(4, br#"{"Width":101,"Height":31}"#)?;
    // The size may come after the shell has begun: asked until it is there.
    socket
        .send(0, b"tty; echo T=$TERM; while test \"$(stty size)\" != '31 101'; do :; done; echo 's'ize\n")?;
    let said = socket.wait_for("size\r\n")?;
    ensure!(said.contains("/dev/pts/") && said.contains("T=xterm"), "{said:?}");
    // Ctrl-C reaches what runs, and not the shell.
    socket.send(0, b"echo 'r'unning; sleep 1000\n")?;
    socket.wait_for("running\r\n")?;
    wait::until("sleep to run", wait::LONG, || {
        let all =
            node.cri().shell(&id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").map_err(|e| format!("{e:#}"))?;
        if all.contains("sleep 1000") { Ok(()) } else { Err(all) }
    })?;
    socket.send(0, &[3])?;
    socket.send(0, b"echo 'c'ode $?\n")?;
    socket.wait_for("code 130\r\n")?;
    // Ctrl-D ends the shell, in which all went well at last.
    socket.send(0, b"\x04")?;
    let told = socket.told()?;
    ensure!(told.code()? == 0, "{told:?}");
    wait_until_alone(node, &id)?;

    // Over SPDY, with an exit code of its own.
    let url = exec_url(node, &id, &["sh"], true, true)?;
    let mut spdy = Spdy::open(&url, &["v4.channel.k8s.io"], "v4.channel.k8s.io")?;
    let kinds = ["error", "stdin", "stdout", "resize"];
    spdy.streams(&kinds)?;
    spdy.data(7, br#"{"Width":90,"Height":20}{"Width":91,"Height":21}"#, false)?;
    spdy.data(3, b"while test \"$(stty size)\" != '21 91'; do :; done; exit 9\n", false)?;
    let told = spdy.told(&kinds)?;
    ensure!(told.code()? == 9, "{told:?}");
    node.end_pod(&pod)
}

/// How many lines of `seq` the bulk tests carry: 55 MB.
const LINES: u64 = 7_000_000;

/// The digest of what `seq 1 LINES` prints, and its length.
fn expected() -> (String, usize) {
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut text = String::new();
    for number in 1..=LINES {
        use std::fmt::Write;
        let _ = writeln!(text, "{number}");
        if text.len() > 1 << 20 || number == LINES {
            length += text.len();
            hash.update(&text);
            text.clear();
        }
    }
    (hex(&hash.finalize()), length)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bulk(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "bulk")?;
    let (digest, length) = expected();
    let last = LINES.to_string();
    let url = exec_url(node, &id, &["seq", "1", &last], false, false)?;
    let mut socket = WebSocket::open(&url, V5)?;
    let told = socket.told()?;
    ensure!(
        told.stdout.len() == length && hex(&Sha256::digest(&told.stdout)) == digest,
        "{}",
        told.stdout.len()
    );
    ensure!(told.code()? == 0);

    // There and back again over SPDY, both directions at once.
    let url = exec_url(node, &id, &["cat"], true, false)?;
    let mut spdy = Spdy::open(&url, &["v4.channel.k8s.io"], "v4.channel.k8s.io")?;
    let kinds = ["error", "stdin", "stdout", "stderr"];
    spdy.streams(&kinds)?;
    let (mut sender, text) = (spdy.twin()?, told.stdout);
    let back = std::thread::scope(|scope| {
        scope.spawn(move || {
            for chunk in text.chunks(100_000) {
                sender.data(3, chunk, false)?;
            }
            sender.data(3, b"", true)
        });
        spdy.told(&kinds)
    })?;
    ensure!(
        back.stdout.len() == length && hex(&Sha256::digest(&back.stdout)) == digest,
        "{}",
        back.stdout.len()
    );
    ensure!(back.code()? == 0);
    node.end_pod(&pod)
}

fn failures(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "failures")?;
    for (command, words) in [
        (&["nosuchprogram"][..], "executable file not found"),
        (&["/no/such/program"], "no such file"),
        (&["/etc"], "/etc"),
    ] {
        for tty in [false, true] {
            let mut socket = WebSocket::open(&exec_url(node, &id, command, true, tty)?, V5)?;
            let told = socket.told()?;
            let message = told.failure()?;
            ensure!(message.contains(words) && told.stdout.is_empty(), "{told:?}");
            // Over SPDY each stream has an end of its own, before which a client does not look at the error.
            let told = told_over_spdy(&exec_url(node, &id, command, true, tty)?, true, tty)?;
            ensure!(told.failure()? == message && told.stdout.is_empty(), "{told:?}");
        }
    }
    // A container that ends between the call and the session.
    let exec = [exec_url(node, &id, &["true"], false, false)?, exec_url(node, &id, &["true"], false, false)?];
    let attach = [attach_url(node, &id, false, false)?, attach_url(node, &id, false, false)?];
    node.cri().stop(&id, 0)?;
    for [first, second] in [exec, attach] {
        let told = WebSocket::open(&first, V5)?.told()?;
        ensure!(told.failure()?.contains("does not run"), "{told:?}");
        let told = told_over_spdy(&second, false, false)?;
        ensure!(told.failure()?.contains("does not run"), "{told:?}");
    }
    node.end_pod(&pod)
}

/// All that a session over SPDY says, with every stream that it can have.
fn told_over_spdy(url: &str, stdin: bool, tty: bool) -> Result<Told> {
    let mut spdy = Spdy::open(url, &["v4.channel.k8s.io"], "v4.channel.k8s.io")?;
    let kinds = [
        Some("error"),
        stdin.then_some("stdin"),
        Some("stdout"),
        (!tty).then_some("stderr"),
        tty.then_some("resize"),
    ];
    let kinds: Vec<_> = kinds.into_iter().flatten().collect();
    spdy.streams(&kinds)?;
    spdy.told(&kinds)
}

fn client_gone(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "gone")?;
    // Whoever holds the pipes, whoever has left the session: everything of the exec goes with its client.
    let line =
        "setsid sleep 2000 & (setsid sleep 2001 >/dev/null 2>&1 </dev/null &) ; echo ready; sleep 2002";
    for tty in [false, true] {
        let mut socket = WebSocket::open(&exec_url(node, &id, &["sh", "-c", line], true, tty)?, V5)?;
        socket.wait_for("ready")?;
        drop(socket);
        wait_until_alone(node, &id)?;
        let url = exec_url(node, &id, &["sh", "-c", line], true, tty)?;
        let mut spdy = Spdy::open(&url, &["v4.channel.k8s.io"], "v4.channel.k8s.io")?;
        spdy.streams(if tty {
            &["error", "stdin", "stdout", "resize"]
        } else {
            &["error", "stdin", "stdout", "stderr"]
        })?;
        spdy.receive()?.context("nothing came")?;
        drop(spdy);
        wait_until_alone(node, &id)?;
    }
    // A client that has typed more than the process takes, and then goes.
    let mut socket = WebSocket::open(&exec_url(node, &id, &["sleep", "2003"], true, false)?, V5)?;
    socket.socket.set_nonblocking(true)?;
    let mut frame = vec![0x82, 0x80 | 126, 0x40, 1, 0, 0, 0, 0, 0];
    frame.resize(frame.len() + 0x4000, b'x');
    // Until the pipe and all buffers on the way are full.
    let full = (0..10_000).find_map(|_| socket.socket.write_all(&frame).err());
    ensure!(full.is_some_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "everything is taken");
    drop(socket);
    wait_until_alone(node, &id)?;
    // One that does not read what it has asked for, and then goes.
    let socket = WebSocket::open(&exec_url(node, &id, &["yes"], false, false)?, V5)?;
    drop(socket);
    wait_until_alone(node, &id)?;
    node.end_pod(&pod)
}

fn daemon_gone(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "farewell")?;
    let line = "(setsid sleep 2000 &); echo ready; sleep 2001";
    let mut asked = WebSocket::open(&exec_url(node, &id, &["sh", "-c", line], true, false)?, V5)?;
    asked.wait_for("ready")?;
    node.stop()?;
    ensure!(asked.message()?.is_none(), "the session outlives the daemon");
    node.serve()?;
    wait_until_alone(node, &id)?;
    let mut killed = WebSocket::open(&exec_url(node, &id, &["sh", "-c", line], true, false)?, V5)?;
    killed.wait_for("ready")?;
    node.kill_and_restart()?;
    wait_until_alone(node, &id)?;
    node.end_pod(&pod)
}

fn checks(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "checks")?;
    let cri = node.cri();
    let good = exec_request(&id, &["true"], false, false);
    refused(cri.exec_url(cri::ExecRequest { tty: true, ..good.clone() }), Code::InvalidArgument)?;
    refused(
        cri.exec_url(cri::ExecRequest { stdout: false, stderr: false, ..good.clone() }),
        Code::InvalidArgument,
    )?;
    refused(cri.exec_url(cri::ExecRequest { cmd: Vec::new(), ..good.clone() }), Code::InvalidArgument)?;
    refused(
        cri.exec_url(cri::ExecRequest { container_id: String::new(), ..good.clone() }),
        Code::InvalidArgument,
    )?;
    refused(
        cri.exec_url(cri::ExecRequest { container_id: "nobody".into(), ..good.clone() }),
        Code::NotFound,
    )?;
    let attach =
        |stdin, tty| cri::AttachRequest { container_id: id.clone(), stdin, tty, stdout: true, stderr: false };
    let message = refused(cri.attach(attach(true, false)), Code::FailedPrecondition)?;
    ensure!(message.contains("standard input"), "{message}");
    let message = refused(cri.attach(attach(false, true)), Code::InvalidArgument)?;
    ensure!(message.contains("has no terminal"), "{message}");
    for port in [0, 65536, -1] {
        let request = cri::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![port] };
        let message = refused(cri.port_forward(request), Code::InvalidArgument)?;
        ensure!(message.contains(&port.to_string()), "{message}");
    }
    cri.stop(&id, 0)?;
    refused(cri.exec_url(good), Code::FailedPrecondition)?;
    refused(cri.attach(attach(false, false)), Code::FailedPrecondition)?;
    cri.stop_pod(&pod.id)?;
    let request = cri::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![80] };
    refused(cri.port_forward(request), Code::FailedPrecondition)?;
    cri.remove_pod(&pod.id)?;
    let request = cri::PortForwardRequest { pod_sandbox_id: pod.id, port: vec![80] };
    refused(cri.port_forward(request), Code::NotFound)?;
    Ok(())
}

fn attach(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("attach")?;
    let script = "echo before; while read line; do echo \"<$line>\"; echo err >&2; done; echo end";
    let config = cri::ContainerConfig {
        stdin: true,
        stdin_once: true,
        ..container_config("c", "busybox", &["sh", "-c", script])
    };
    let id = node.launch_as(&pod, &config)?;
    crate::logs::wait_for_lines(node, &id, 1)?;
    let mut one = WebSocket::open(&attach_url(node, &id, true, false)?, V5)?;
    let mut two = WebSocket::open(&attach_url(node, &id, false, false)?, "v4.base64.channel.k8s.io")?;
    // The first message says that the channels are there, the second that what is written is copied from now on.
    ensure!(one.message()?.is_some() && two.message()?.is_some());
    let url = attach_url(node, &id, false, false)?;
    let mut three = Spdy::open(&url, &["v4.channel.k8s.io"], "v4.channel.k8s.io")?;
    let kinds = ["error", "stdout", "stderr"];
    three.streams(&kinds)?;
    // All take part once each has heard a line of its own.
    wait::until("all clients to be attached", wait::LONG, || {
        one.send(0, b"ping\n").map_err(|error| error.to_string())?;
        one.wait_for("<ping>\n").map_err(|error| format!("{error:#}"))?;
        let state =
            std::fs::read_dir(format!("/proc/{}/fd", monitor(node, &pod).map_err(|e| format!("{e:#}"))?));
        // Three clients: one input and six outputs.
        let pipes = state.map_err(|error| error.to_string())?.flatten().filter(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|to| to.display().to_string().starts_with("pipe:"))
        });
        match pipes.count() {
            // The container's own three, and what the clients have.
            10.. => Ok(()),
            count => Err(format!("{count} pipes")),
        }
    })?;
    one.send(0, b"last\n")?;
    one.wait_for("<last>\n")?;
    one.end_input()?;
    let (first, second, third) = (one.told()?, two.told()?, three.told(&kinds)?);
    ensure!(first.out() == "end\n" && first.code()? == 0, "{first:?}");
    for told in [&second, &third] {
        ensure!(told.out().ends_with("<last>\nend\n") && !told.out().contains("before"), "{told:?}");
        ensure!(told.stderr.ends_with(b"err\n") && told.code()? == 0, "{told:?}");
    }
    ensure!(node.wait_for_exit(&id)?.exit_code == 0);
    node.end_pod(&pod)
}

/// The pid of a pod's monitor.
pub(crate) fn monitor(node: &Node, pod: &Pod) -> Result<i64> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = node.cri().pod_sandbox_status(request)?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    info["pid"].as_i64().context("no pid")
}

fn attach_terminal(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("attach-tty")?;
    let config = cri::ContainerConfig { stdin: true, tty: true, ..container_config("c", "busybox", &["sh"]) };
    let id = node.launch_as(&pod, &config)?;
    for round in 0..2 {
        let mut socket = WebSocket::open(&attach_url(node, &id, true, true)?, V5)?;
        let (columns, rows) = (100 + round, 30 + round);
        socket.send(4, format!("{{\"Width\":{columns},\"Height\":{rows}}}").as_bytes())?;
        let line = format!("while test \"$(stty size)\" != '{rows} {columns}'; do :; done; echo 's'ize\n");
        socket.send(0, line.as_bytes())?;
        socket.wait_for("size\r\n")?;
        // Going away ends nothing.
        drop(socket);
    }
    let mut socket = WebSocket::open(&attach_url(node, &id, true, true)?, V5)?;
    socket.send(0, b"exit 5\n")?;
    let told = socket.told()?;
    ensure!(told.code()? == 0, "{told:?}");
    ensure!(node.wait_for_exit(&id)?.exit_code == 5);
    node.end_pod(&pod)
}
