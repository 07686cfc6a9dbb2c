//! Port-forward: into the pod and nowhere else, any number of connections, each with ends and errors of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::command;
use crisp_tests::inside;
use crisp_tests::node::{Node, Pod};
use crisp_tests::streaming::{Frame, Spdy};
use crisp_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

use crate::case::Case;
use crate::execs::usage;
use crate::forward_ends::tunnelled;
use crate::streaming::hex;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "port_forward_carries_both_directions_and_their_ends", needs: &[], images: &[], run: ends },
    Case { name: "port_forward_of_500_connections_at_once", needs: &[], images: &[], run: many },
    Case { name: "port_forward_through_a_websocket_tunnel", needs: &[], images: &[], run: tunnel },
    Case { name: "e04_a_port_is_dialled_inside_the_pod", needs: &[], images: &[], run: inside_only },
    Case { name: "e04_a_peer_that_resets_ends_one_connection", needs: &[], images: &[], run: resets },
    Case { name: "crisp_port_forward_carries_connections", needs: &[], images: &[], run: command_line },
    Case {
        name: "crisp_port_forward_outlives_a_want_of_descriptors",
        needs: &[],
        images: &[],
        run: few_descriptors,
    },
];

pub(crate) const LOOPBACK: [std::net::IpAddr; 2] =
    [std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), std::net::IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Where a pod's network namespace is pinned.
pub(crate) fn pin(node: &Node, pod: &Pod) -> Result<PathBuf> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = node.cri().pod_sandbox_status(request)?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    Ok(info["netNamespace"].as_str().context("no netNamespace")?.into())
}

pub(crate) fn listen(node: &Node, pod: &Pod, address: std::net::IpAddr, port: u16) -> Result<TcpListener> {
    inside::listen(&pin(node, pod)?, SocketAddr::new(address, port))
}

pub(crate) fn open(node: &Node, pod: &Pod) -> Result<Spdy> {
    Spdy::open(&url(node, pod)?, &["portforward.k8s.io"], "portforward.k8s.io")
}

pub(crate) fn url(node: &Node, pod: &Pod) -> Result<String> {
    let request = cri::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: Vec::new() };
    Ok(node.cri().port_forward(request)?.url)
}

/// Begins a connection whose streams have the ids `first` and `first + 2`.
pub(crate) fn connect(spdy: &mut Spdy, first: u32, port: &str) -> Result<()> {
    let name = first.to_string();
    spdy.stream(first, &[("streamtype", "error"), ("port", port), ("requestid", &name)])?;
    spdy.stream(first + 2, &[("streamtype", "data"), ("port", port), ("requestid", &name)])?;
    Ok(())
}

/// What the pod says on a connection, its error, and whether its data stream was reset.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) data: Vec<u8>,
    pub(crate) error: String,
    pub(crate) reset: bool,
}

/// Everything of the connection that begins with `first`, until its error stream ends.
pub(crate) fn said(spdy: &mut Spdy, first: u32) -> Result<Said> {
    let mut all = Said::default();
    loop {
        match spdy.receive()? {
            Some(Frame::Data(id, bytes, _)) if id == first + 2 => all.data.extend(bytes),
            Some(Frame::Data(id, bytes, last)) if id == first => {
                all.error.push_str(&String::from_utf8_lossy(&bytes));
                // A failure's reset of the data stream comes right behind its error.
                if last && (all.error.is_empty() || all.reset) {
                    return Ok(all);
                }
            }
            Some(Frame::Control(3, body)) if body.starts_with(&(first + 2).to_be_bytes()) => {
                all.reset = true;
                if !all.error.is_empty() {
                    return Ok(all);
                }
            }
            Some(_) => {}
            None => bail!("the connection ended: {all:?}"),
        }
    }
}

/// A server of `count` connections: reads to the end, answers with the digest of it, and ends.
pub(crate) fn digests(listener: TcpListener, count: usize) -> thread::JoinHandle<Result<()>> {
    thread::spawn(move || {
        let mut servers = Vec::new();
        for _ in 0..count {
            let (mut socket, _) = listener.accept()?;
            servers.push(thread::spawn(move || {
                let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
                loop {
                    match socket.read(&mut buffer)? {
                        0 => break,
                        length => hash.update(&buffer[..length]),
                    }
                }
                socket.write_all(hex(&hash.finalize()).as_bytes())
            }));
        }
        for server in servers {
            server.join().map_err(|_| anyhow::anyhow!("a server panicked"))??;
        }
        Ok(())
    })
}

pub(crate) fn joined(server: thread::JoinHandle<Result<()>>) -> Result<()> {
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
}

/// 32 MiB that look random.
fn bytes() -> Vec<u8> {
    let mut state = 1u64;
    (0..4 << 20)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()
        })
        .collect()
}

fn ends(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("forward")?;
    carries(node, &pod)?;
    node.end_pod(&pod)
}

/// Shows that 32 MiB go into `pod` and come out of it, whoever ends first.
pub(crate) fn carries(node: &Node, pod: &Pod) -> Result<()> {
    let sent = bytes();
    let digest = hex(&Sha256::digest(&sent));
    for address in LOOPBACK {
        // The client ends first, and hears the answer all the same.
        let server = digests(listen(node, pod, address, 8080)?, 1);
        let mut spdy = open(node, pod)?;
        connect(&mut spdy, 1, "8080")?;
        let mut sender = spdy.twin()?;
        let answer = thread::scope(|scope| {
            scope.spawn(|| {
                sent.chunks(50_000).try_for_each(|chunk| sender.data(3, chunk, false))?;
                sender.data(3, b"", true)
            });
            said(&mut spdy, 1)
        })?;
        ensure!(answer.data == digest.as_bytes() && answer.error.is_empty(), "{answer:?}");
        joined(server)?;
        // The pod ends first, and hears the client all the same; on the same connection of the client.
        let listener = listen(node, pod, address, 8081)?;
        let copy = sent.clone();
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept()?;
            socket.write_all(&copy)?;
            socket.shutdown(Shutdown::Write)?;
            let mut heard = Vec::new();
            socket.read_to_end(&mut heard)?;
            ensure!(heard == b"late", "{heard:?}");
            Ok(())
        });
        connect(&mut spdy, 5, "8081")?;
        let (mut got, mut ended) = (Vec::new(), false);
        while !ended {
            if let Frame::Data(7, bytes, last) = spdy.receive()?.context("the connection ended")? {
                got.extend(bytes);
                ended = last;
            }
        }
        ensure!(hex(&Sha256::digest(&got)) == digest, "{} bytes", got.len());
        spdy.data(7, b"late", true)?;
        ensure!(said(&mut spdy, 5)?.error.is_empty());
        joined(server)?;
    }
    Ok(())
}

fn many(node: &mut Node) -> Result<()> {
    const COUNT: u32 = 500;
    let pod = node.run_pod("many")?;
    let listener = listen(node, &pod, LOOPBACK[0], 8080)?;
    let before = usage(node.daemon_pid()?.into())?;
    // Nobody is heard or answered before all are there.
    let server = thread::spawn(move || {
        let all: Vec<_> = (0..COUNT).map(|_| listener.accept()).collect::<std::io::Result<_>>()?;
        for (mut socket, _) in all {
            let mut said = Vec::new();
            socket.read_to_end(&mut said)?;
            socket.write_all(hex(&Sha256::digest(&said)).as_bytes())?;
        }
        Ok(())
    });
    let mut spdy = open(node, &pod)?;
    let mut sender = spdy.twin()?;
    // What is sent is read only once all is sent: each connection holds its own.
    for number in 0..COUNT {
        connect(&mut spdy, 4 * number + 1, "8080")?;
    }
    let talker = thread::spawn(move || {
        for number in 0..COUNT {
            sender.data(4 * number + 3, format!("connection {number}").as_bytes(), false)?;
        }
        (0..COUNT).try_for_each(|number| sender.data(4 * number + 3, b"", true))
    });
    let mut answers = vec![Vec::new(); COUNT as usize];
    let mut ended = 0;
    while ended < COUNT {
        match spdy.receive()?.context("the connection ended")? {
            Frame::Data(id, bytes, last) if id % 4 == 3 => {
                answers[(id / 4) as usize].extend(bytes);
                ended += u32::from(last);
            }
            Frame::Data(_, bytes, _) => {
                ensure!(bytes.is_empty(), "an error: {}", String::from_utf8_lossy(&bytes));
            }
            Frame::Control(kind, body) => ensure!(kind == 2, "control {kind}: {body:?}"),
        }
    }
    for (number, answer) in answers.iter().enumerate() {
        ensure!(
            *answer == hex(&Sha256::digest(format!("connection {number}"))).as_bytes(),
            "{number}: {answer:?}"
        );
    }
    talker.join().map_err(|_| anyhow::anyhow!("the talker panicked"))??;
    joined(server)?;
    // Each has a buffer of 32 KiB for as long as it lasts.
    let after = usage(node.daemon_pid()?.into())?;
    ensure!(after.0 < before.0 + 2 * 32 * u64::from(COUNT), "{before:?}, then {after:?}");
    drop(spdy);
    node.end_pod(&pod)
}

fn tunnel(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("tunnel")?;
    let server = digests(listen(node, &pod, LOOPBACK[0], 8080)?, 1);
    let mut spdy = tunnelled(&url(node, &pod)?)?;
    connect(&mut spdy, 1, "8080")?;
    let sent = &bytes()[..5 << 20];
    let mut sender = spdy.twin()?;
    let answer = thread::scope(|scope| {
        scope.spawn(|| {
            sent.chunks(50_000).try_for_each(|chunk| sender.data(3, chunk, false))?;
            sender.data(3, b"", true)
        });
        said(&mut spdy, 1)
    })?;
    ensure!(answer.data == hex(&Sha256::digest(sent)).as_bytes() && answer.error.is_empty(), "{answer:?}");
    connect(&mut spdy, 5, "8081")?;
    let refused = said(&mut spdy, 5)?;
    ensure!(refused.error.contains("8081") && refused.error.contains("connection refused"), "{refused:?}");
    joined(server)?;
    drop((spdy, sender));
    node.end_pod(&pod)
}

fn inside_only(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("inside")?;
    let mut host_config = node.pod_config("host");
    let security = host_config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    security.context("no security context")?.namespace_options =
        Some(cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..Default::default() });
    let host = node.run_pod_as(host_config)?;
    // A service of the host's loopback: a pod of its own network does not reach it, one of the host's does.
    let service = TcpListener::bind("127.0.0.1:0")?;
    let port = service.local_addr()?.port().to_string();
    let mut spdy = open(node, &pod)?;
    connect(&mut spdy, 1, &port)?;
    let refused = said(&mut spdy, 1)?;
    ensure!(
        refused.error.contains("connection refused") && refused.reset && refused.data.is_empty(),
        "{refused:?}"
    );
    service.set_nonblocking(true)?;
    ensure!(service.accept().is_err(), "the port was dialled on the host");
    service.set_nonblocking(false)?;
    let mut there = open(node, &host)?;
    connect(&mut there, 1, &port)?;
    let (mut socket, _) = service.accept()?;
    there.data(3, b"hello", true)?;
    let mut heard = Vec::new();
    socket.read_to_end(&mut heard)?;
    ensure!(heard == b"hello");
    drop(socket);
    ensure!(said(&mut there, 1)?.error.is_empty());
    // What is no port, and what is no pair.
    for (first, port) in [(5, "0"), (9, "65536"), (13, "http")] {
        connect(&mut spdy, first, port)?;
        let mut resets = 0;
        while resets < 2 {
            if let Frame::Control(3, body) = spdy.receive()?.context("the connection ended")? {
                ensure!([first.to_be_bytes(), (first + 2).to_be_bytes()].contains(&body[..4].try_into()?));
                resets += 1;
            }
        }
    }
    // An IPv6-only server is reached; and the connection has outlived everything above.
    let server = digests(listen(node, &pod, LOOPBACK[1], 8080)?, 1);
    connect(&mut spdy, 17, "8080")?;
    spdy.data(19, b"", true)?;
    ensure!(said(&mut spdy, 17)?.data == hex(&Sha256::digest(b"")).as_bytes());
    joined(server)?;
    // A pod that is stopped has no ports any more, and no session keeps its namespace.
    let stale = url(node, &pod)?;
    node.cri().stop_pod(&pod.id)?;
    connect(&mut spdy, 21, "8080")?;
    let gone = said(&mut spdy, 21)?;
    ensure!(gone.error.contains("stopped"), "{gone:?}");
    let mut late = Spdy::open(&stale, &["portforward.k8s.io"], "portforward.k8s.io")?;
    ensure!(matches!(late.receive()?, Some(Frame::Control(7, _))) && late.receive()?.is_none());
    node.cri().remove_pod(&pod.id)?;
    drop((spdy, there));
    node.end_pod(&host)
}

fn resets(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("resets")?;
    let listener = listen(node, &pod, LOOPBACK[0], 8080)?;
    let mut spdy = open(node, &pod)?;
    // The pod's end resets: what lies unread in a socket makes its end one.
    connect(&mut spdy, 1, "8080")?;
    let (mut socket, _) = listener.accept()?;
    spdy.data(3, &[7; 1000], false)?;
    let mut one = [0];
    socket.read_exact(&mut one)?;
    drop(socket);
    let broken = said(&mut spdy, 1)?;
    ensure!(broken.error.contains("reset"), "{broken:?}");
    // The client resets: the pod's end is told.
    connect(&mut spdy, 5, "8080")?;
    let (mut socket, _) = listener.accept()?;
    spdy.control(3, &[7u32.to_be_bytes(), 5u32.to_be_bytes()].concat())?;
    ensure!(said(&mut spdy, 5)?.error.is_empty());
    let mut rest = Vec::new();
    let ended = |result: std::io::Result<usize>| result.map_err(|error| error.kind());
    ensure!(ended(socket.read_to_end(&mut rest)) == Err(ErrorKind::ConnectionReset) && rest.is_empty());
    // The client vanishes: so do its connections.
    connect(&mut spdy, 9, "8080")?;
    let (mut socket, _) = listener.accept()?;
    drop(spdy);
    ensure!(ended(socket.read_to_end(&mut rest)) == Err(ErrorKind::ConnectionReset) && rest.is_empty());
    // Its streams are worth nothing without each other.
    let mut spdy = open(node, &pod)?;
    spdy.stream(1, &[("streamtype", "data"), ("port", "8080"), ("requestid", "1")])?;
    spdy.data(1, b"too early", false)?;
    loop {
        match spdy.receive()?.context("the connection ended")? {
            Frame::Control(3, body) if body.starts_with(&1u32.to_be_bytes()) => break,
            Frame::Control(2, _) => {}
            other => bail!("{other:?}"),
        }
    }
    drop(spdy);
    node.end_pod(&pod)
}

fn command_line(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("cli")?;
    let server = digests(listen(node, &pod, LOOPBACK[0], 8080)?, 3);
    let mut child = node
        .crisp_command()
        .args(["port-forward", "cli", ":8080", ":8081"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut said = std::io::BufReader::new(child.stdout.take().context("no stdout")?);
    let mut ports = Vec::new();
    for remote in ["8080", "8081"] {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line)?;
        let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next());
        ensure!(line.trim_end().ends_with(remote), "{line}");
        ports.push(address.with_context(|| line.clone())?.to_owned());
    }
    for text in ["one", "two", "three"] {
        let mut socket = TcpStream::connect(&ports[0])?;
        socket.write_all(text.as_bytes())?;
        socket.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer == hex(&Sha256::digest(text)), "{answer}");
    }
    joined(server)?;
    // Nobody listens there: the connection ends, and the command says why and goes on.
    let mut socket = TcpStream::connect(&ports[1])?;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    ensure!(answer.is_empty());
    command::run(Command::new("kill").args(["-TERM", &child.id().to_string()]))?.ok()?;
    let status = child.wait()?;
    ensure!(status.code() == Some(143), "{status}");
    let mut errors = String::new();
    child.stderr.take().context("no stderr")?.read_to_string(&mut errors)?;
    ensure!(errors.contains("8081") && errors.contains("connection refused"), "{errors}");
    node.end_pod(&pod)
}

/// More connections at once than there are descriptors: those without one wait, and all are served; and the limit that
/// holds is the hard one.
fn few_descriptors(node: &mut Node) -> Result<()> {
    const COUNT: usize = 40;
    let pod = node.run_pod("few")?;
    for limit in ["44:44", "44:1024"] {
        let server = digests(listen(node, &pod, LOOPBACK[0], 8080)?, COUNT + 1);
        let crisp = node.crisp_command();
        let mut child = Command::new("prlimit")
            .arg(format!("--nofile={limit}"))
            .arg(crisp.get_program())
            .args(crisp.get_args())
            .args(["port-forward", "few", ":8080"])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let mut said = std::io::BufReader::new(child.stdout.take().context("no stdout")?);
        std::io::BufRead::read_line(&mut said, &mut line)?;
        let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next());
        let address = address.with_context(|| line.clone())?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        // They all are there before the first one is taken.
        kill(pid, Signal::SIGSTOP)?;
        let mut sockets = Vec::new();
        for number in 0..COUNT {
            let mut socket = TcpStream::connect(address)?;
            socket.set_read_timeout(Some(wait::LONG))?;
            write!(socket, "connection {number}")?;
            sockets.push(socket);
        }
        kill(pid, Signal::SIGCONT)?;
        // With the hard limit there is room for all of them at once; with the low one for a few.
        let order: Vec<_> = match limit {
            "44:1024" => (0..COUNT).rev().collect(),
            _ => (0..COUNT).collect(),
        };
        for number in order {
            let socket = &mut sockets[number];
            socket.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).with_context(|| format!("{number} of {limit}"))?;
            ensure!(answer == hex(&Sha256::digest(format!("connection {number}"))), "{number}: {answer:?}");
        }
        let mut late = TcpStream::connect(address)?;
        late.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        late.read_to_string(&mut answer)?;
        ensure!(answer == hex(&Sha256::digest("")), "{answer:?}");
        joined(server)?;
        kill(pid, Signal::SIGTERM)?;
        let status = child.wait()?;
        ensure!(status.code() == Some(143), "{status}");
    }
    node.end_pod(&pod)
}
