//! Measures streams: how much an exec and a port-forward carry, beside what socat carries over a unix socket, what that
//! costs the daemon, and what an ExecSync costs beside the least that an exec can.
//!
//! Run through `hack/bench --streams`. Must not know: how the daemon works inside.
#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

use std::cell::RefCell;
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::command;
use crisp_tests::cri::words;
use crisp_tests::inside;
use crisp_tests::node::{Node, Pod};
use crisp_tests::place;
use crisp_tests::statistics::Samples;
use crisp_tests::streaming::{Frame, Spdy, WebSocket};
use sha2::{Digest, Sha256};

const IMAGE: &str = "busybox";
const CHUNK: usize = 64 << 10;
/// What every stream has to carry at least, of what socat carries.
const SPEED_LEAST: f64 = 0.25;
/// What the daemon may grow by while it carries one, KiB: less than this.
const GROWTH_MOST_KIB: u64 = 8 << 10;
/// How often the time of a bare exec an ExecSync may take.
const EXEC_MOST: f64 = 3.0;

fn main() -> Result<()> {
    let mut megabytes = 1024u64;
    let mut floor = PathBuf::new();
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--megabytes" => megabytes = value.parse()?,
            "--exec-floor" => floor = value.into(),
            _ => bail!("unknown option {name}"),
        }
    }
    ensure!(floor.is_file(), "--exec-floor names a built program: use hack/bench --streams");
    if let Some(reason) = place::obstacle(&[]) {
        bail!("{reason}");
    }
    let bytes = megabytes << 20;
    let mut node = Node::start()?;
    node.ensure_images(&[IMAGE])?;
    let pod = node.run_pod("bench")?;
    let id = node.launch(&pod, "c", IMAGE, &["sleep", "36000"])?;
    node.cri().shell(&id, &format!("head -c {bytes} /dev/urandom >/data"))?;
    let digest = node.cri().shell(&id, "sha256sum </data | cut -d ' ' -f 1")?.trim().to_owned();
    let file = PathBuf::from(format!("/proc/{}/root/data", node.cri().pid(&id)?));

    let base = socat(&node, &file, bytes)?;
    println!("{megabytes} MiB each way; MiB/s, and what the daemon has grown by at most\n");
    println!("socat, unix socket           {base:8.0}");
    let missed = RefCell::default();
    let bench =
        Bench { node: &node, pod: &pod, id: &id, bytes, digest: &digest, file: &file, base, missed: &missed };
    bench.run("exec stdout, WebSocket", Taken::Here, Bench::stdout_websocket)?;
    bench.run("exec stdout, SPDY", Taken::Here, Bench::stdout_spdy)?;
    bench.run("exec stdin, WebSocket", Taken::Inside, Bench::stdin_websocket)?;
    bench.run("exec stdin, SPDY", Taken::Inside, Bench::stdin_spdy)?;
    bench.run("port-forward from the pod", Taken::Here, Bench::forward_out)?;
    bench.run("port-forward to the pod", Taken::Here, Bench::forward_in)?;
    println!();
    let times = execs(&node, &pod, &id, &floor)?;
    if times > EXEC_MOST {
        missed.borrow_mut().push(format!("ExecSync takes {times:.2} times the least, more than {EXEC_MOST}"));
    }
    node.end_pod(&pod)?;
    node.stop()?;
    node.finish()?;
    crisp_tests::node::remove_shared_root()?;
    let missed = missed.take();
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}

/// What socat carries from a file into a unix socket.
fn socat(node: &Node, file: &std::path::Path, bytes: u64) -> Result<f64> {
    let path = node.folder().join("socat.sock");
    let listener = UnixListener::bind(&path)?;
    let from = format!("OPEN:{},rdonly", file.display());
    let mut child = Command::new("socat")
        .args(["-u", "-b", "65536", &from, &format!("UNIX-CONNECT:{}", path.display())])
        .stdin(Stdio::null())
        .spawn()
        .context("start socat")?;
    let (mut socket, _) = listener.accept()?;
    let (begin, mut buffer, mut got) = (Instant::now(), vec![0; CHUNK], 0);
    loop {
        match socket.read(&mut buffer)? {
            0 => break,
            count => got += count as u64,
        }
    }
    let speed = speed(bytes, begin.elapsed());
    ensure!(child.wait()?.success() && got == bytes, "socat has carried {got} bytes");
    Ok(speed)
}

fn speed(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

struct Bench<'a> {
    node: &'a Node,
    pod: &'a Pod,
    id: &'a str,
    bytes: u64,
    digest: &'a str,
    file: &'a std::path::Path,
    base: f64,
    /// What this run should have reached and has not.
    missed: &'a RefCell<Vec<String>>,
}

/// Where the bytes of a case arrive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// With the taker.
    Here,
    /// With a command in the container, which makes the digest itself; the taker gets nothing.
    Inside,
}

/// Takes what arrives: counts it, or makes the digest of it, which takes longer than carrying it.
enum Taker {
    Count(u64),
    Digest(Box<Sha256>),
}

impl Taker {
    fn take(&mut self, bytes: &[u8]) {
        match self {
            Taker::Count(count) => *count += bytes.len() as u64,
            Taker::Digest(hash) => hash.update(bytes),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Bench<'_> {
    /// Once for the time, once for the digest.
    fn run(&self, name: &str, taken: Taken, carry: fn(&Self, &mut Taker) -> Result<Duration>) -> Result<()> {
        let before = self.resident()?;
        let mut counted = Taker::Count(0);
        let time = carry(self, &mut counted)?;
        let grown = self.peak()?.saturating_sub(before);
        if let Taker::Count(count) = counted {
            let expected = if taken == Taken::Here { self.bytes } else { 0 };
            ensure!(count == expected, "{name}: {count} bytes arrived");
        }
        let mut taker = Taker::Digest(Box::default());
        carry(self, &mut taker)?;
        if let Taker::Digest(hash) = taker {
            let digest = hex(&hash.finalize());
            let nothing = hex(&Sha256::digest(b""));
            let expected = if taken == Taken::Here { self.digest } else { nothing.as_str() };
            ensure!(digest == expected, "{name}: the bytes that arrived are others");
        }
        let speed = speed(self.bytes, time);
        let part = speed / self.base;
        println!("{name:28} {speed:8.0} {part:6.2} of socat's   {grown:6} KiB");
        if part < SPEED_LEAST {
            self.missed.borrow_mut().push(format!("{name}: {part:.2} of socat's, less than {SPEED_LEAST}"));
        }
        if grown >= GROWTH_MOST_KIB {
            self.missed.borrow_mut().push(format!("{name}: the daemon grows by {grown} KiB"));
        }
        Ok(())
    }

    /// Resident kilobytes of the daemon now; its peak counts from now on.
    fn resident(&self) -> Result<u64> {
        let pid = self.node.daemon_pid()?;
        fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the daemon's peak")?;
        status(pid, "VmRSS:")
    }

    fn peak(&self) -> Result<u64> {
        status(self.node.daemon_pid()?, "VmHWM:")
    }

    fn url(&self, line: &str, stdin: bool) -> Result<String> {
        let request = cri::ExecRequest {
            container_id: self.id.to_owned(),
            cmd: words(&["sh", "-c", line]),
            tty: false,
            stdin,
            stdout: true,
            stderr: false,
        };
        Ok(self.node.cri().exec_url(request)?.url)
    }

    fn stdout_websocket(&self, taker: &mut Taker) -> Result<Duration> {
        let url = self.url("cat /data", false)?;
        let begin = Instant::now();
        let mut socket = WebSocket::open(&url, "v5.channel.k8s.io")?;
        while let Some((channel, bytes)) = socket.message()? {
            if channel == 1 {
                taker.take(&bytes);
            }
        }
        Ok(begin.elapsed())
    }

    fn stdout_spdy(&self, taker: &mut Taker) -> Result<Duration> {
        let url = self.url("cat /data", false)?;
        let begin = Instant::now();
        let mut spdy = Spdy::open(&url, &["v4.channel.k8s.io"], "v4.channel.k8s.io")?;
        spdy.streams(&["error", "stdout"])?;
        while let Some(frame) = spdy.receive()? {
            match frame {
                Frame::Data(3, bytes, _) => taker.take(&bytes),
                Frame::Data(1, _, true) => break,
                _ => {}
            }
        }
        Ok(begin.elapsed())
    }

    /// What the container makes of its input: drops it when it is counted, and otherwise makes the digest.
    fn sink(taker: &Taker) -> &'static str {
        match taker {
            Taker::Count(_) => "cat >/dev/null",
            Taker::Digest(_) => "sha256sum | cut -d ' ' -f 1",
        }
    }

    fn source(&self) -> Result<fs::File> {
        fs::File::open(self.file).context("the container's file")
    }

    fn check(&self, taker: &Taker, said: &[u8]) -> Result<()> {
        let said = String::from_utf8_lossy(said);
        ensure!(matches!(taker, Taker::Count(_)) || said.trim() == self.digest, "the container got {said}");
        Ok(())
    }

    fn stdin_websocket(&self, taker: &mut Taker) -> Result<Duration> {
        let url = self.url(Self::sink(taker), true)?;
        let (mut from, mut buffer, begin) = (self.source()?, vec![0; 32 << 10], Instant::now());
        let mut socket = WebSocket::open(&url, "v5.channel.k8s.io")?;
        loop {
            match from.read(&mut buffer)? {
                0 => break,
                count => socket.send(0, &buffer[..count])?,
            }
        }
        socket.end_input()?;
        let told = socket.told()?;
        let time = begin.elapsed();
        ensure!(told.code()? == 0, "{told:?}");
        self.check(taker, &told.stdout)?;
        Ok(time)
    }

    fn stdin_spdy(&self, taker: &mut Taker) -> Result<Duration> {
        let url = self.url(Self::sink(taker), true)?;
        let (mut from, mut buffer, begin) = (self.source()?, vec![0; 32 << 10], Instant::now());
        let mut spdy = Spdy::open(&url, &["v4.channel.k8s.io"], "v4.channel.k8s.io")?;
        let kinds = ["error", "stdin", "stdout"];
        spdy.streams(&kinds)?;
        loop {
            match from.read(&mut buffer)? {
                0 => break,
                count => spdy.data(3, &buffer[..count], false)?,
            }
        }
        spdy.data(3, b"", true)?;
        let told = spdy.told(&kinds)?;
        let time = begin.elapsed();
        ensure!(told.code()? == 0, "{told:?}");
        self.check(taker, &told.stdout)?;
        Ok(time)
    }

    /// A listener inside the pod, and a session with streams to it.
    fn forward(&self) -> Result<(TcpListener, Spdy)> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: self.pod.id.clone(), verbose: true };
        let info = self.node.cri().pod_sandbox_status(request)?.info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
        let pin = info["netNamespace"].as_str().context("no netNamespace")?;
        let listener = inside::listen(pin.as_ref(), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8080))?;
        let request = cri::PortForwardRequest { pod_sandbox_id: self.pod.id.clone(), port: Vec::new() };
        let url = self.node.cri().port_forward(request)?.url;
        let mut spdy = Spdy::open(&url, &["portforward.k8s.io"], "portforward.k8s.io")?;
        spdy.stream(1, &[("streamtype", "error"), ("port", "8080"), ("requestid", "0")])?;
        spdy.stream(3, &[("streamtype", "data"), ("port", "8080"), ("requestid", "0")])?;
        Ok((listener, spdy))
    }

    fn forward_out(&self, taker: &mut Taker) -> Result<Duration> {
        let (listener, mut spdy) = self.forward()?;
        let (mut from, mut buffer, begin) = (self.source()?, vec![0; CHUNK], Instant::now());
        let server = thread::spawn(move || -> std::io::Result<()> {
            let (mut socket, _) = listener.accept()?;
            loop {
                match from.read(&mut buffer)? {
                    0 => return Ok(()),
                    count => socket.write_all(&buffer[..count])?,
                }
            }
        });
        while let Some(frame) = spdy.receive()? {
            match frame {
                Frame::Data(3, _, true) => break,
                Frame::Data(3, bytes, false) => taker.take(&bytes),
                Frame::Data(_, bytes, _) => ensure!(bytes.is_empty(), "{}", String::from_utf8_lossy(&bytes)),
                Frame::Control(..) => {}
            }
        }
        let time = begin.elapsed();
        server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        Ok(time)
    }

    fn forward_in(&self, taker: &mut Taker) -> Result<Duration> {
        let (listener, mut spdy) = self.forward()?;
        let (mut from, begin) = (self.source()?, Instant::now());
        // A client that has gone is one whose bytes nobody waits for: the session lasts until all have arrived.
        let talker = thread::spawn(move || -> std::io::Result<Spdy> {
            let mut buffer = vec![0; 32 << 10];
            loop {
                match from.read(&mut buffer)? {
                    0 => return spdy.data(3, b"", true).map(|()| spdy),
                    count => spdy.data(3, &buffer[..count], false)?,
                }
            }
        });
        let (mut socket, _) = listener.accept()?;
        let mut buffer = vec![0; CHUNK];
        loop {
            match socket.read(&mut buffer)? {
                0 => break,
                count => taker.take(&buffer[..count]),
            }
        }
        let time = begin.elapsed();
        talker.join().map_err(|_| anyhow::anyhow!("the talker panicked"))??;
        Ok(time)
    }
}

fn status(pid: i32, key: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
    Ok(line.split_whitespace().next().context("no number")?.parse()?)
}

/// CPU time that a process and the children that it has reaped have used, milliseconds.
fn cpu(pid: i64) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().context("no fields")?.split(' ').collect();
    // utime, stime, cutime, cstime: fields 14 to 17, of which two stand before these; a hundredth of a second each.
    let ticks: u64 = fields[11..15].iter().map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Ok(ticks as f64 * 10.0)
}

fn execs(node: &Node, pod: &Pod, id: &str, floor: &std::path::Path) -> Result<f64> {
    const ROUNDS: usize = 1000;
    let pid = node.cri().pid(id)?;
    let mut command = Command::new(floor);
    command.arg(pid.to_string()).arg(ROUNDS.to_string()).arg("/bin/true");
    let text = command::run_within(&mut command, Duration::from_secs(600))?.ok()?;
    let mut least = Samples::default();
    for line in text.lines() {
        least.push(line.parse::<f64>()? / 1e3);
    }
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = node.cri().pod_sandbox_status(request)?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    let processes = [node.daemon_pid()?.into(), info["pid"].as_i64().context("no pid")?];
    let all = || processes.iter().try_fold(0.0, |sum, pid| Ok::<_, anyhow::Error>(sum + cpu(*pid)?));
    let call = |command: &[&str], timeout| {
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: words(command), timeout };
        let begin = Instant::now();
        let reply = node.cri().exec_sync(request);
        (reply, begin.elapsed())
    };
    let (before, mut samples) = (all()?, Samples::default());
    for _ in 0..ROUNDS {
        let (reply, time) = call(&["true"], 0);
        ensure!(reply?.exit_code == 0);
        samples.push(time.as_secs_f64() * 1e6);
    }
    let cost = (all()? - before) / ROUNDS as f64;
    println!("ExecSync `true`, microseconds           p50      p95");
    println!("the least: setns, clone, exec      {:8.0} {:8.0}", least.percentile(50), least.percentile(95));
    let times = samples.percentile(50) / least.percentile(50);
    println!(
        "ExecSync                           {:8.0} {:8.0}   {times:.2} times the least",
        samples.percentile(50),
        samples.percentile(95),
    );
    println!("CPU time of an ExecSync, daemon, monitor and command: {cost:.2} ms");
    let mut over = Samples::default();
    for _ in 0..20 {
        let (reply, time) = call(&["sh", "-c", "setsid sleep 60 & sleep 60"], 1);
        ensure!(reply.is_err(), "it ended before its limit");
        over.push((time.as_secs_f64() - 1.0) * 1e3);
    }
    println!(
        "a limit of 1 s is passed by, ms: p50 {:.1}, p95 {:.1}",
        over.percentile(50),
        over.percentile(95)
    );
    Ok(times)
}
