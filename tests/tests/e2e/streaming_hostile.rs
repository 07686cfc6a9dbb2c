//! Streaming under attack: floods, storms, clients that vanish or never read, stolen and guessed URLs.

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::command;
use crisp_tests::cri::{container_config, refused, words};
use crisp_tests::node::Node;
use crisp_tests::place::rounds;
use crisp_tests::streaming::{self, Spdy, WebSocket};
use crisp_tests::wait;
use tonic::Code;

use crate::case::Case;
use crate::execs::usage;
use crate::streaming::{attach_url, exec_request, exec_url, sleeper, wait_until_alone};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "x01_endless_output_of_exec_sync_is_cut", needs: &[], images: &["busybox"], run: endless },
    Case { name: "x02_a_storm_of_sizes_costs_nothing", needs: &[], images: &["busybox"], run: sizes },
    Case {
        name: "x03_clients_that_never_read_hold_nobody",
        needs: &[],
        images: &["busybox"],
        run: never_read,
    },
    Case {
        name: "x03_attaching_again_and_again_leaves_nothing",
        needs: &[],
        images: &["busybox"],
        run: again,
    },
    Case {
        name: "x04_a_session_left_at_any_point_leaves_nothing",
        needs: &[],
        images: &["busybox"],
        run: abandoned,
    },
    Case {
        name: "c19_a_streaming_url_is_good_once_and_for_its_purpose",
        needs: &[],
        images: &["busybox"],
        run: urls,
    },
    Case { name: "c19_strangers_get_nothing", needs: &[], images: &["busybox"], run: strangers },
];

const V5: &str = "v5.channel.k8s.io";

fn endless(node: &mut Node) -> Result<()> {
    const CAP: usize = 16 << 20;
    let (pod, id) = sleeper(node, "endless")?;
    // To the end, both streams over their caps: an answer, cut, and the process never blocked.
    let line = "head -c 40000000 /dev/zero; head -c 40000000 /dev/zero >&2; exit 3";
    let said = node.cri().exec_sync(cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: words(&["sh", "-c", line]),
        timeout: 0,
    })?;
    ensure!(said.exit_code == 3, "{}", said.exit_code);
    ensure!(
        said.stdout.len() + said.stderr.len() <= CAP && said.stdout.len() > 4 << 20,
        "{} {}",
        said.stdout.len(),
        said.stderr.len()
    );
    // Without an end, many at once: each ends with its time, and none is left.
    let before = usage(node.daemon_pid()?.into())?;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|_| {
                let request = cri::ExecSyncRequest {
                    container_id: id.clone(),
                    cmd: words(&["cat", "/dev/zero"]),
                    timeout: 1,
                };
                let cri = node.cri();
                scope.spawn(move || cri.exec_sync(request))
            })
            .collect();
        for one in all {
            let reply = one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
            refused(reply, Code::DeadlineExceeded)?;
        }
        anyhow::Ok(())
    })?;
    wait_until_alone(node, &id)?;
    let after = usage(node.daemon_pid()?.into())?;
    ensure!(after.0 < before.0 + 9 * (CAP as u64 >> 10), "{before:?} {after:?}");
    node.end_pod(&pod)
}

fn sizes(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "sizes")?;
    let before = usage(node.daemon_pid()?.into())?;
    let mut socket = WebSocket::open(&exec_url(node, &id, &["sh"], true, true)?, V5)?;
    let storm: Vec<u8> = (0..1000u32)
        .flat_map(|number| {
            format!("{{\"Width\":{},\"Height\":{}}}", number % 60_000 + 1, number % 60_000 + 1).into_bytes()
        })
        .collect();
    for _ in 0..rounds(100, 25) {
        socket.send(4, &storm)?;
    }
    socket.send(4, b"nonsense")?;
    socket.send(4, br#"{"Width":123,"Height":45}"#)?;
    socket.send(0, b"while test \"$(stty size)\" != '45 123'; do :; done; exit 4\n")?;
    ensure!(socket.told()?.code()? == 4);
    // A command that fails, with a terminal, again and again.
    for _ in 0..rounds(50, 12) {
        let told = WebSocket::open(&exec_url(node, &id, &["nosuch"], true, true)?, V5)?.told()?;
        ensure!(told.failure()?.contains("nosuch"), "{told:?}");
    }
    settled(node, before, 4096)?;
    node.end_pod(&pod)
}

/// Waits until the daemon has as many descriptors as before, and checks that it has not grown by more than `kilobytes`.
fn settled(node: &Node, before: (u64, usize), kilobytes: u64) -> Result<()> {
    let pid = i64::from(node.daemon_pid()?);
    wait::until("the daemon to close what it had opened", wait::LONG, || {
        let after = usage(pid).map_err(|error| error.to_string())?;
        if after.1 <= before.1 { Ok(()) } else { Err(format!("{before:?} {after:?}")) }
    })?;
    let after = usage(pid)?;
    ensure!(after.0 <= before.0 + kilobytes, "memory: {before:?}, then {after:?}");
    Ok(())
}

fn never_read(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("never")?;
    let config = cri::ContainerConfig {
        stdin: true,
        ..container_config(
            "c",
            "busybox",
            &["sh", "-c", "while read count; do seq 1 $count; echo done $count; done"],
        )
    };
    let id = node.launch_as(&pod, &config)?;
    let mut reader = WebSocket::open(&attach_url(node, &id, true, false)?, V5)?;
    let stuck: Vec<_> =
        (0..4).map(|_| WebSocket::open(&attach_url(node, &id, false, false)?, V5)).collect::<Result<_>>()?;
    // More and more, in pieces of which each is read by the one client that does, until all the buffers on the way of the
    // others are full, and the monitor has dropped them: what is left is the container's own and the reader's.
    let monitor = crate::streaming::monitor(node, &pod)?;
    let mut sent = 0;
    while sent == 0 || pipes(monitor)? > 6 {
        reader.send(0, b"20000\n")?;
        reader.wait_for("done 20000\n")?;
        sent += 1;
        ensure!(sent < 1000, "{sent} times 100 kB, and clients that read nothing are still served");
    }
    for mut one in stuck {
        // What it had been sent is still there, and then the reason.
        let told = one.told()?;
        ensure!(
            told.out().starts_with("1\n2\n3\n") && told.out().len() < sent * 108_906,
            "{}",
            told.out().len()
        );
        ensure!(told.failure()?.contains("1 MiB behind"), "{}", String::from_utf8_lossy(&told.error));
    }
    // An exec whose client does not read waits for it, and for nobody else.
    let held = WebSocket::open(&exec_url(node, &id, &["cat", "/dev/zero"], false, false)?, V5)?;
    ensure!(node.cri().shell(&id, "echo alive")? == "alive\n");
    drop(held);
    drop(reader);
    node.cri().stop(&id, 0)?;
    node.end_pod(&pod)
}

fn again(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("again")?;
    let config = cri::ContainerConfig { stdin: true, ..container_config("c", "busybox", &["cat"]) };
    let id = node.launch_as(&pod, &config)?;
    let monitor = crate::streaming::monitor(node, &pod)?;
    let once = |node: &Node, number: usize| -> Result<()> {
        let mut socket = WebSocket::open(&attach_url(node, &id, true, false)?, V5)?;
        let word = format!("round-{number}\n");
        socket.send(0, word.as_bytes())?;
        socket.wait_for(&word).map(drop)
    };
    for number in 0..20 {
        once(node, number)?;
    }
    wait::until("the first clients to be forgotten", wait::LONG, || match usage(monitor) {
        Ok((_, count)) if pipes(monitor).is_ok_and(|pipes| pipes <= 3) => Ok(count),
        other => Err(format!("{other:?}")),
    })?;
    let (before, before_monitor) = (usage(node.daemon_pid()?.into())?, usage(monitor)?);
    for number in 0..rounds(200, 50) {
        once(node, number)?;
    }
    settled(node, before, 4096)?;
    wait::until("the monitor to close what it had", wait::LONG, || match usage(monitor) {
        Ok(after) if after.1 <= before_monitor.1 && after.0 <= before_monitor.0 + 256 => Ok(()),
        other => Err(format!("{before_monitor:?} {other:?}")),
    })?;
    node.cri().stop(&id, 0)?;
    node.end_pod(&pod)
}

fn pipes(pid: i64) -> Result<usize> {
    let all = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let to = all.filter_map(|entry| fs::read_link(entry.path()).ok());
    Ok(to.filter(|to| to.display().to_string().starts_with("pipe:")).count())
}

fn abandoned(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "abandoned")?;
    let before = usage(node.daemon_pid()?.into())?;
    for _ in 0..rounds(10, 10) {
        // Never opened; connected and no request; half a request; refused; upgraded and gone; gone in the middle of a
        // frame, of an exec, of the last words.
        let url = exec_url(node, &id, &["sleep", "2000"], true, false)?;
        let (host, path) = streaming::parts(&url)?;
        drop(TcpStream::connect(host)?);
        let mut half = TcpStream::connect(host)?;
        half.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nUpgr").as_bytes())?;
        drop(half);
        let lines = streaming::web_socket_headers("v99.channel.k8s.io");
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        ensure!(streaming::request(host, &format!("GET {path}"), &lines)?.status == 403);
        drop(WebSocket::open(&exec_url(node, &id, &["sleep", "2000"], true, false)?, V5)?);
        let mut socket = WebSocket::open(&exec_url(node, &id, &["sleep", "2000"], true, false)?, V5)?;
        socket.socket.write_all(&[0x82, 0xff, 0, 0, 0])?;
        drop(socket);
        let mut socket = WebSocket::open(&exec_url(node, &id, &["sleep", "2000"], true, false)?, V5)?;
        socket.frame(0x83, b"an opcode that is none")?;
        while socket.receive()?.is_some() {}
        let spdy = |node: &Node| {
            let url = exec_url(node, &id, &["sleep", "2000"], true, false)?;
            Spdy::open(&url, &["v4.channel.k8s.io"], "v4.channel.k8s.io")
        };
        drop(spdy(node)?);
        let mut some = spdy(node)?;
        some.streams(&["error", "stdin"])?;
        drop(some);
        let mut bad = spdy(node)?;
        bad.socket.write_all(&[0x80, 2, 0, 1, 0, 0, 0, 0])?;
        ensure!(bad.receive()?.is_none());
        let mut bad = spdy(node)?;
        bad.control(1, &[0; 40])?;
        while bad.receive()?.is_some() {}
        let mut unread = WebSocket::open(&exec_url(node, &id, &["true"], false, false)?, V5)?;
        unread.message()?;
        drop(unread);
        wait_until_alone(node, &id)?;
    }
    settled(node, before, 4096)?;
    node.end_pod(&pod)
}

fn urls(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "urls")?;
    let url = exec_url(node, &id, &["echo", "hello"], false, false)?;
    let (host, path) = streaming::parts(&url)?;
    ensure!(host.starts_with("127.0.0.1:"), "{url}");
    let token = path.strip_prefix("/exec/").with_context(|| path.to_owned())?;
    ensure!(token.len() * 4 >= 128 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
    let lines = streaming::web_socket_headers(V5);
    let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    lines.extend(["Origin: http://127.0.0.1", "X-Forwarded-For: 127.0.0.1", "Authorization: Bearer x"]);
    // What is not exactly a URL that was given out is nothing.
    let mut wrong = token.to_owned();
    wrong.replace_range(..1, if token.starts_with('0') { "1" } else { "0" });
    for line in [
        format!("GET /exec/{wrong}"),
        format!("GET /exec/{}", &token[1..]),
        format!("GET /exec/{token}/"),
        format!("GET /exec//{token}"),
        format!("GET //exec/{token}"),
        format!("GET /x/../exec/{token}"),
        format!("GET /EXEC/{}", "0".repeat(32)),
        format!("PUT /exec/{}", "0".repeat(32)),
        format!("GET /exec/%{:02x}{}", token.as_bytes()[0], &token[1..]),
        "GET /".to_owned(),
        "GET /exec/".to_owned(),
    ] {
        let reply = streaming::request(host, &line, &lines)?;
        ensure!(reply.status == 404, "{line}: {}", reply.head);
    }
    let told = WebSocket::open(&url, V5)?.told()?;
    ensure!(told.out() == "hello\n" && told.code()? == 0, "{told:?}");
    // A second time, also right away and with another protocol.
    ensure!(streaming::request(host, &format!("GET {path}"), &lines)?.status == 404);
    // For another purpose: it is gone then.
    let url = exec_url(node, &id, &["echo", "hello"], false, false)?;
    let (_, path) = streaming::parts(&url)?;
    for path in [path.replace("/exec/", "/attach/"), path.to_owned()] {
        ensure!(streaming::request(host, &format!("GET {path}"), &lines)?.status == 404);
    }
    // A request that is no upgrade uses it up, too.
    let url = exec_url(node, &id, &["echo", "hello"], false, false)?;
    let (_, path) = streaming::parts(&url)?;
    ensure!(streaming::request(host, &format!("GET {path}"), &[])?.status == 400);
    ensure!(streaming::request(host, &format!("GET {path}"), &lines)?.status == 404);
    // Many that nobody opens are too many, and those that were given are good.
    let first = exec_url(node, &id, &["true"], false, false)?;
    let too_many =
        (0..1100).find_map(|_| node.cri().exec_url(exec_request(&id, &["true"], false, false)).err());
    ensure!(too_many.is_some_and(|status| status.code() == Code::ResourceExhausted));
    ensure!(WebSocket::open(&first, V5)?.told()?.code()? == 0);
    node.end_pod(&pod)
}

fn strangers(node: &mut Node) -> Result<()> {
    let (pod, id) = sleeper(node, "strangers")?;
    // An unprivileged user cannot ask for a URL, and finds nothing to guess at.
    let socket = node.endpoint().trim_start_matches("unix://").to_owned();
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&socket)?);
    ensure!(mode & 0o007 == 0, "{mode:o}");
    let url = exec_url(node, &id, &["sleep", "2000"], true, false)?;
    let (host, _) = streaming::parts(&url)?;
    let port: u16 = host.rsplit(':').next().context("no port")?.parse()?;
    // Nowhere but on the loopback.
    let bound =
        command::run(Command::new("ss").args(["-H", "-l", "-t", "-n", "sport", "=", &format!(":{port}")]))?
            .ok()?;
    ensure!(bound.lines().count() == 1 && bound.contains(&format!("127.0.0.1:{port}")), "{bound}");
    // Not from a pod: neither on its own loopback nor through the bridge.
    let gateway = node.cri().shell(&id, "ip route | awk '/default/{print $3}'")?;
    let gateway: Ipv4Addr = gateway.trim().parse().with_context(|| gateway.clone())?;
    for address in ["127.0.0.1".to_owned(), gateway.to_string()] {
        let line = format!("nc -w 2 {address} {port} </dev/null && echo reached || echo refused");
        ensure!(node.cri().shell(&id, &line)?.trim() == "refused", "{address} is reached from a pod");
    }
    // Connections without a request keep nobody out, and cost no memory that stays: neither those that wait, however
    // many, nor those that come back as soon as they are gone. The first of them has to go for the last.
    let before = usage(node.daemon_pid()?.into())?;
    let mut idle: Vec<_> = (0..300).map(|_| TcpStream::connect(host)).collect::<std::io::Result<_>>()?;
    idle[0].set_read_timeout(Some(wait::LONG))?;
    ensure!(idle[0].read_to_end(&mut Vec::new()).unwrap_or(0) == 0);
    let told = WebSocket::open(&exec_url(node, &id, &["echo", "served"], false, false)?, V5)?.told()?;
    ensure!(told.out() == "served\n", "{told:?}");
    // Nobody had to wait until their time was over: most are there still.
    idle[100].set_nonblocking(true)?;
    let open = idle[100].peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    ensure!(open, "a stranger of the middle is gone");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each holds as many as it may have open, and opens another one for each that is closed.
        let again = || -> std::io::Result<()> {
            let mut held = VecDeque::new();
            while !over.load(Ordering::Relaxed) {
                held.push_back(TcpStream::connect(host)?);
                if held.len() > 100 {
                    held.pop_front();
                }
            }
            Ok(())
        };
        let all: Vec<_> = (0..3).map(|_| scope.spawn(again)).collect();
        let served = (0..20).try_for_each(|_| {
            let told =
                WebSocket::open(&exec_url(node, &id, &["echo", "served"], false, false)?, V5)?.told()?;
            ensure!(told.out() == "served\n", "{told:?}");
            anyhow::Ok(())
        });
        over.store(true, Ordering::Relaxed);
        for one in all {
            one.join().map_err(|_| anyhow::anyhow!("a stranger panicked"))??;
        }
        served
    })?;
    drop(idle);
    settled(node, before, 8192)?;
    node.end_pod(&pod)
}
