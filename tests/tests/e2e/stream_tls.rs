//! Streams over TLS: crictl and crisp's own commands use them, and crisp's believe the right certificate only.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::command;
use crisp_tests::cri::container_config;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::terminal::Terminal;
use sha2::{Digest, Sha256};

use crate::case::Case;
use crate::interactive::{crisp, digest_from, forwarded, use_shell};
use crate::port_forward::{LOOPBACK, digests, joined, listen};
use crate::streaming::{exec_url, hex, sleeper};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "streaming_over_tls", needs: &[Need::Crictl], images: &["busybox"], run: used },
    Case {
        name: "crisp_believes_the_right_certificate_only",
        needs: &[],
        images: &["busybox"],
        run: believed,
    },
];

/// A certificate and its key, as files.
struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
}

impl Certificate {
    /// One for the loopback address, signed by `by` or by itself.
    fn new(folder: &Path, name: &str, by: Option<&Certificate>) -> Result<Self> {
        let made =
            Self { certificate: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) };
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        openssl.args(["-days", "1", "-subj", &format!("/CN={name}")]);
        openssl.arg("-keyout").arg(&made.key).arg("-out").arg(&made.certificate);
        if let Some(by) = by {
            openssl.args(["-addext", "subjectAltName=IP:127.0.0.1"]);
            openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
            openssl.arg("-CA").arg(&by.certificate).arg("-CAkey").arg(&by.key);
        }
        command::run(&mut openssl)?.ok()?;
        Ok(made)
    }
}

/// Starts the daemon again with this certificate file.
fn serve_with(node: &mut Node, certificate: &Path, key: &Path) -> Result<()> {
    configure(node, certificate, key)?;
    node.serve()
}

fn configure(node: &mut Node, certificate: &Path, key: &Path) -> Result<()> {
    let whole = fs::read_to_string(node.config())?;
    let plain = whole.split("\n[stream]\n").next().unwrap_or_default();
    let (certificate, key) = (certificate.display(), key.display());
    let section = format!("tls_certificate = \"{certificate}\"\ntls_key = \"{key}\"\n");
    Ok(fs::write(node.config(), format!("{plain}\n[stream]\n{section}"))?)
}

fn used(node: &mut Node) -> Result<()> {
    // Signed by itself and for no address: it is believed because the runtime says that it is its own.
    let own = Certificate::new(node.folder(), "stream", None)?;
    node.stop()?;
    // What is no certificate keeps the daemon from starting, and is named.
    configure(node, &own.key, &own.key)?;
    let refused = command::run(&mut node.serve_command())?.refused()?;
    ensure!(refused.contains("stream.tls_certificate") && refused.contains("stream.key"), "{refused}");
    serve_with(node, &own.certificate, &own.key)?;
    let (pod, id) = sleeper(node, "tls")?;
    for transport in ["spdy", "websocket"] {
        let said = node.crictl(&["exec", "--transport", transport, &id, "echo", "over TLS"])?;
        ensure!(said.status.success() && said.stdout == "over TLS\n", "{transport}: {said}");
    }
    commands(node, &id)?;
    // Who speaks no TLS gets nothing.
    let url = exec_url(node, &id, &["true"], false, false)?;
    let host = url.strip_prefix("https://").and_then(|rest| rest.split('/').next()).context("no https")?;
    let reply = crisp_tests::streaming::request(host, "GET /", &[])?;
    ensure!(reply.status == 0, "{}", reply.head);
    let server = digests(listen(node, &pod, LOOPBACK[0], 8080)?, 2);
    let mut terminal = Terminal::start(&crisp(node, &["port-forward", "tls", ":8080"]), 90, 30)?;
    let address = forwarded(&mut terminal)?;
    for text in ["hello".to_owned(), "again".repeat(1 << 20)] {
        let answer = digest_from(&address, text.as_bytes())?;
        ensure!(answer == hex(&Sha256::digest(&text)), "{} bytes: {answer:?}", text.len());
    }
    joined(server)?;
    terminal.press(b"\x03")?;
    let status = terminal.wait()?;
    ensure!(status.code() == Some(130), "{status}: {}", terminal.seen());
    ensure!(!terminal.seen().contains("crisp:"), "{}", terminal.seen());
    node.end_pod(&pod)?;
    // attach, to a container of its own.
    let pod = node.run_pod("attached")?;
    let config = cri::ContainerConfig { stdin: true, tty: true, ..container_config("c", "busybox", &["sh"]) };
    let id = node.launch_as(&pod, &config)?;
    let mut terminal = Terminal::start(&crisp(node, &["attach", "attached"]), 90, 30)?;
    use_shell(node, &id, &mut terminal)?;
    terminal.press(b"exit 0\n")?;
    ensure!(terminal.wait()?.success(), "{}", terminal.seen());
    node.end_pod(&pod)
}

/// `crisp exec`: at a terminal, with an exit code, and as a part of a pipeline.
fn commands(node: &Node, id: &str) -> Result<()> {
    let mut terminal = Terminal::start(&crisp(node, &["exec", "-it", "tls", "sh"]), 90, 30)?;
    use_shell(node, id, &mut terminal)?;
    terminal.press(b"exit $((3+4))\n")?;
    let status = terminal.wait()?;
    ensure!(status.code() == Some(7), "{status}: {}", terminal.seen());
    let mut child =
        crisp(node, &["exec", "-i", "tls", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let bytes: Vec<u8> = (0..4_000_000u32).map(|number| (number * 7 % 251) as u8).collect();
    let (mut input, copy) = (child.stdin.take().context("no stdin")?, bytes.clone());
    let writer = std::thread::spawn(move || input.write_all(&copy));
    let mut back = Vec::new();
    child.stdout.take().context("no stdout")?.read_to_end(&mut back)?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(child.wait()?.success() && back == bytes, "{} bytes came back", back.len());
    Ok(())
}

fn believed(node: &mut Node) -> Result<()> {
    let folder = node.folder().to_owned();
    let authority = Certificate::new(&folder, "authority", None)?;
    let stranger = Certificate::new(&folder, "stranger", None)?;
    let own = Certificate::new(&folder, "stream", Some(&authority))?;
    node.stop()?;
    serve_with(node, &own.certificate, &own.key)?;
    let (pod, id) = sleeper(node, "tls")?;
    let exec = |ca: Option<&Path>| {
        let ca = ca.map(|path| path.display().to_string());
        let mut arguments = vec!["exec"];
        arguments.extend(ca.iter().flat_map(|ca| ["--tls-ca", ca]));
        node.crisp(&[&arguments[..], &["tls", "touch", "/been-here"]].concat())
    };
    exec(None)?.ok()?;
    exec(Some(&authority.certificate))?.ok()?;
    node.cri().shell(&id, "rm /been-here")?;
    let refused = exec(Some(&stranger.certificate))?.refused()?;
    ensure!(refused.contains("invalid peer certificate"), "{refused}");
    // The user's word is the last one: the runtime's own is not asked for.
    let refused = exec(Some(&folder.join("no-such.pem")))?.refused()?;
    ensure!(refused.contains("no-such.pem"), "{refused}");
    let refused = exec(Some(&own.key))?.refused()?;
    ensure!(refused.contains("stream.key has no certificate"), "{refused}");
    // Another certificate in the file than the one that is shown is not believed.
    fs::copy(&stranger.certificate, &own.certificate)?;
    let refused = exec(None)?.refused()?;
    ensure!(refused.contains("invalid peer certificate"), "{refused}");
    ensure!(node.cri().exec(&id, &["ls", "/been-here"])?.code != 0, "it ran all the same");
    node.end_pod(&pod)
}
