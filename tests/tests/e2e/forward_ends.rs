//! Port-forward: how connections end. What a client had sent arrives whatever becomes of it, an end is passed on as an
//! end, and everything else as a reset.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::node::Node;
use crisp_tests::streaming::{Frame, Spdy, WebSocket};

use crate::case::Case;
use crate::port_forward::{LOOPBACK, connect, listen, open, said, url};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "port_forward_keeps_what_a_client_that_went_had_sent", needs: &[], images: &[], run: kept },
    Case { name: "port_forward_ends_a_client_that_says_nothing_more", needs: &[], images: &[], run: late },
    Case { name: "port_forward_takes_an_end_wherever_it_comes", needs: &[], images: &[], run: early },
    Case { name: "e04_a_port_hears_of_a_broken_client", needs: &[], images: &[], run: broken },
    Case { name: "e04_nothing_of_the_host_outlives_a_pod", needs: &[], images: &[], run: stopped },
];

/// A SPDY client whose bytes go through a WebSocket; closing it closes that.
pub(crate) fn tunnelled(url: &str) -> Result<Spdy> {
    let mut socket = WebSocket::open(url, "SPDY/3.1+portforward.k8s.io")?;
    let pair = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(pair.local_addr()?)?;
    let (mut far, _) = pair.accept()?;
    let (mut twin, mut reader) = (socket.twin()?, far.try_clone()?);
    thread::spawn(move || -> Result<()> {
        let mut buffer = [0; 5000];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(twin.socket.shutdown(Shutdown::Write)?),
                length => twin.frame(0x82, &buffer[..length])?,
            }
        }
    });
    thread::spawn(move || -> Result<()> {
        while let Some((first, content)) = socket.receive()? {
            match first {
                0x82 => far.write_all(&content)?,
                0x88 => break,
                0x8a => {}
                other => bail!("a frame that begins with {other:#x}"),
            }
        }
        Ok(far.shutdown(Shutdown::Write)?)
    });
    Ok(Spdy::over(near))
}

/// Takes the answers to the two streams that `connect` has begun with `first`: what lies unread in a socket would make
/// its end a reset, which takes away what is on its way.
fn accepted(spdy: &mut Spdy, first: u32) -> Result<()> {
    for id in [first, first + 2] {
        match spdy.receive()? {
            Some(Frame::Control(2, body)) => ensure!(body.starts_with(&id.to_be_bytes())),
            other => bail!("stream {id}: {other:?}"),
        }
    }
    Ok(())
}

/// Everything until the socket's end, and whether that was a reset.
fn heard(mut socket: TcpStream) -> Result<(Vec<u8>, bool)> {
    let mut all = Vec::new();
    match socket.read_to_end(&mut all) {
        Ok(_) => Ok((all, false)),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok((all, true)),
        Err(error) => Err(error.into()),
    }
}

fn goodbye(spdy: &mut Spdy) -> std::io::Result<()> {
    spdy.control(7, &[0; 8])
}

/// How a client goes.
#[derive(Clone, Copy, Debug)]
enum Leave {
    /// It ends its stream, says so, and closes.
    Well,
    /// It ends its stream and closes.
    Silently,
    /// It says that it goes, and closes.
    Unfinished,
    /// It closes.
    Broken,
    /// It resets its stream and stays.
    Reset,
}

fn kept(node: &mut Node) -> Result<()> {
    // More than the port's buffers hold, so that much of it waits in the daemon and before it when the client goes; and
    // not more than all hold together.
    let sent: Vec<u8> = (0..5u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let pod = node.run_pod("kept")?;
    let listener = listen(node, &pod, LOOPBACK[0], 8080)?;
    for tunnel in [false, true] {
        for leave in [Leave::Well, Leave::Silently, Leave::Unfinished, Leave::Broken, Leave::Reset] {
            let mut spdy = if tunnel { tunnelled(&url(node, &pod)?)? } else { open(node, &pod)? };
            connect(&mut spdy, 1, "8080")?;
            accepted(&mut spdy, 1)?;
            let (socket, _) = listener.accept()?;
            sent.chunks(32 << 10).try_for_each(|chunk| spdy.data(3, chunk, false))?;
            match leave {
                Leave::Well | Leave::Silently => spdy.data(3, b"", true)?,
                Leave::Reset => spdy.control(3, &[3u32.to_be_bytes(), 5u32.to_be_bytes()].concat())?,
                Leave::Unfinished | Leave::Broken => {}
            }
            if matches!(leave, Leave::Well | Leave::Unfinished) {
                goodbye(&mut spdy)?;
            }
            let spdy = matches!(leave, Leave::Reset).then_some(spdy);
            // Only now is anything read.
            let (got, reset) = heard(socket)?;
            ensure!(got == sent, "tunnel {tunnel}, {leave:?}: {} of {} bytes arrived", got.len(), sent.len());
            let whole = matches!(leave, Leave::Well | Leave::Silently);
            ensure!(reset != whole, "tunnel {tunnel}, {leave:?}: reset: {reset}");
            drop(spdy);
        }
    }
    // A client that says that it goes has not gone while it has streams, and is answered on them.
    let mut spdy = open(node, &pod)?;
    connect(&mut spdy, 1, "8080")?;
    let (mut socket, _) = listener.accept()?;
    goodbye(&mut spdy)?;
    spdy.stream(5, &[("streamtype", "error"), ("port", "8080"), ("requestid", "5")])?;
    loop {
        match spdy.receive()?.context("the connection ended")? {
            Frame::Control(3, body) if body.starts_with(&5u32.to_be_bytes()) => break,
            Frame::Control(2, body) => {
                ensure!(!body.starts_with(&5u32.to_be_bytes()), "a stream is accepted")
            }
            other => bail!("{other:?}"),
        }
    }
    spdy.data(3, b"question", true)?;
    let mut question = String::new();
    socket.read_to_string(&mut question)?;
    socket.write_all(format!("{question}, answer").as_bytes())?;
    drop(socket);
    ensure!(said(&mut spdy, 1)?.data == b"question, answer");
    // Then the session ends in SPDY's words.
    ensure!(matches!(spdy.receive()?, Some(Frame::Control(7, _))) && spdy.receive()?.is_none());
    drop(spdy);
    node.end_pod(&pod)
}

fn late(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("late")?;
    let listener = listen(node, &pod, LOOPBACK[0], 8080)?;
    let mut spdy = open(node, &pod)?;
    let mut begin = |first: u32| -> Result<TcpStream> {
        connect(&mut spdy, first, "8080")?;
        accepted(&mut spdy, first)?;
        Ok(listener.accept()?.0)
    };
    let (mut patient, mut slow, silent) = (begin(1)?, begin(5)?, begin(9)?);
    // One client has ended, and its port takes its time; one port has ended, and its client goes on to send; one port
    // has ended, and its client says nothing: only that one ends by itself, and its port is told that it is not whole.
    spdy.data(3, b"question", true)?;
    let mut question = String::new();
    patient.read_to_string(&mut question)?;
    slow.shutdown(Shutdown::Write)?;
    silent.shutdown(Shutdown::Write)?;
    let (mut sender, mut count) = (spdy.twin()?, 0u32);
    let mut ended = Vec::new();
    spdy.socket.set_nonblocking(true)?;
    while ended.is_empty() {
        // A byte at a time, each taken before the next.
        sender.socket.set_nonblocking(false)?;
        sender.data(7, &[count as u8], false)?;
        let mut one = [0];
        slow.read_exact(&mut one)?;
        ensure!(one == [count as u8]);
        count += 1;
        let mut some = [0; 64];
        sender.socket.set_nonblocking(true)?;
        match spdy.socket.peek(&mut some) {
            Ok(0) => bail!("the connection ended"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        }
        spdy.socket.set_nonblocking(false)?;
        match spdy.receive()?.context("the connection ended")? {
            Frame::Data(7 | 11, bytes, true) => ensure!(bytes.is_empty()),
            Frame::Data(9, bytes, true) => ended = [bytes, vec![1]].concat(),
            other => bail!("{other:?}"),
        }
    }
    ensure!(ended == [1], "an error: {}", String::from_utf8_lossy(&ended));
    let (rest, reset) = heard(silent)?;
    ensure!(rest.is_empty() && reset, "a client that has not ended has, for its port");
    spdy.socket.set_nonblocking(false)?;
    sender.data(7, b"", true)?;
    ensure!(matches!(heard(slow)?, (rest, false) if rest.is_empty()));
    ensure!(said(&mut spdy, 5)?.error.is_empty());
    patient.write_all(format!("{question}, answer").as_bytes())?;
    drop(patient);
    ensure!(said(&mut spdy, 1)?.data == b"question, answer");
    drop((spdy, sender));
    node.end_pod(&pod)
}

fn early(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("early")?;
    let listener = listen(node, &pod, LOOPBACK[0], 8080)?;
    let mut spdy = open(node, &pod)?;
    for (round, order) in [["error", "data"], ["data", "error"], ["data", "error"]].into_iter().enumerate() {
        let first = 4 * u32::try_from(round)? + 1;
        let mut data = 0;
        for (id, kind) in [(first, order[0]), (first + 2, order[1])] {
            let headers = [("streamtype", kind), ("port", "8080"), ("requestid", &first.to_string())];
            // With the stream's own beginning, or, the last time, before its pair is whole.
            match kind == "data" && round < 2 {
                true => spdy.stream_without_data(id, &headers)?,
                false => spdy.stream(id, &headers)?,
            }
            if kind == "data" {
                data = id;
                if round == 2 {
                    spdy.data(id, b"", true)?;
                }
            }
        }
        let (mut socket, _) = listener.accept()?;
        let mut rest = Vec::new();
        ensure!(socket.read_to_end(&mut rest)? == 0, "round {round}");
        socket.write_all(b"answer")?;
        drop(socket);
        let mut answer = Vec::new();
        loop {
            match spdy.receive()?.context("the connection ended")? {
                Frame::Data(id, bytes, _) if id == data => answer.extend(bytes),
                Frame::Data(_, bytes, true) => break ensure!(bytes.is_empty()),
                _ => {}
            }
        }
        ensure!(answer == b"answer", "round {round}: {answer:?}");
    }
    drop(spdy);
    node.end_pod(&pod)
}

fn broken(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("broken")?;
    let listener = listen(node, &pod, LOOPBACK[0], 8080)?;
    // Nonsense; half a frame; the daemon's end.
    for round in 0..3 {
        let mut spdy = open(node, &pod)?;
        connect(&mut spdy, 1, "8080")?;
        accepted(&mut spdy, 1)?;
        let (socket, _) = listener.accept()?;
        spdy.data(3, b"begun", false)?;
        match round {
            0 => spdy.socket.write_all(&[0x80, 2, 0, 1, 0, 0, 0, 0])?,
            1 => {
                spdy.socket.write_all(&[0, 0, 0, 3, 1, 0, 0, 9, b'x'])?;
                spdy.socket.shutdown(Shutdown::Write)?;
            }
            _ => {
                let mut five = [0; 5];
                (&socket).read_exact(&mut five)?;
                node.stop()?;
                node.serve()?;
            }
        }
        let (got, reset) = heard(socket)?;
        let expected: &[u8] = [&b"begun"[..], b"begunx", b""][round];
        ensure!(reset && got == expected, "round {round}: {got:?}, reset: {reset}");
    }
    node.end_pod(&pod)
}

fn stopped(node: &mut Node) -> Result<()> {
    let mut config = node.pod_config("host");
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    security.context("no security context")?.namespace_options =
        Some(cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..Default::default() });
    let host = node.run_pod_as(config)?;
    let service = TcpListener::bind("127.0.0.1:0")?;
    let port = service.local_addr()?.port().to_string();
    let mut spdy = open(node, &host)?;
    connect(&mut spdy, 1, &port)?;
    let (mut socket, _) = service.accept()?;
    spdy.data(3, b"begun", false)?;
    let mut five = [0; 5];
    socket.read_exact(&mut five)?;
    node.cri().stop_pod(&host.id)?;
    // The service is there as before, and the pod is not: neither the old connection nor a new one leads to it.
    let gone = said(&mut spdy, 1)?;
    ensure!(gone.error.contains("stopped") && gone.reset, "{gone:?}");
    ensure!(heard(socket)?.1, "an end that the client has not sent");
    connect(&mut spdy, 5, &port)?;
    let gone = said(&mut spdy, 5)?;
    ensure!(gone.error.contains("stopped") && gone.reset, "{gone:?}");
    service.set_nonblocking(true)?;
    ensure!(service.accept().is_err(), "a stopped pod reaches the host");
    node.cri().remove_pod(&host.id)?;
    Ok(())
}
