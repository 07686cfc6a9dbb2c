//! Records that cannot be read when the daemon starts: it starts, names them, and leaves alone what they stand for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::host;
use crisp_tests::node::{Node, Pod};
use crisp_tests::place;
use crisp_tests::random::Random;
use crisp_tests::untouched::Untouched;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "a_broken_sandbox_record_is_named_and_left_alone",
        needs: &[],
        images: &["busybox"],
        run: sandboxes,
    },
    Case {
        name: "a_broken_container_record_is_named_and_left_alone",
        needs: &[],
        images: &["busybox"],
        run: containers,
    },
    Case { name: "a_broken_exit_record_is_no_exit", needs: &[], images: &["busybox"], run: exits },
];

/// Random damage beside the chosen kinds.
const DAMAGE_ROUNDS: usize = 4;

/// What may have become of a record of JSON; all of it is no such record any more.
fn damaged(record: &[u8], random: &mut Random) -> Vec<(String, Vec<u8>)> {
    let text = String::from_utf8_lossy(record);
    let mut all = vec![
        ("empty".to_owned(), Vec::new()),
        ("one byte".to_owned(), record[..1].to_vec()),
        ("without its last byte".to_owned(), record[..record.len() - 1].to_vec()),
        ("zeros".to_owned(), vec![0; record.len()]),
        ("of a later version".to_owned(), text.replacen("\"version\":1", "\"version\":2", 1).into_bytes()),
        ("of another object".to_owned(), text.replacen("\"id\":\"", "\"id\":\"../../x", 1).into_bytes()),
        ("no object".to_owned(), b"[1, 2, 3]".to_vec()),
        ("deep".to_owned(), "[".repeat(100_000).into_bytes()),
    ];
    for _ in 0..place::rounds(DAMAGE_ROUNDS, DAMAGE_ROUNDS) {
        let at = 1 + random.below(record.len() - 2);
        all.push((format!("cut at byte {at}"), record[..at].to_vec()));
        let mut bytes = record.to_vec();
        // No byte of JSON.
        bytes[at] = 0xff;
        all.push((format!("spoilt at byte {at}"), bytes));
    }
    all
}

fn state_of(node: &Node, pod: &Pod) -> PathBuf {
    node.state().join("pods").join(&pod.id)
}

/// What the daemon has said since its log had `from` bytes.
fn said_since(node: &Node, from: usize) -> String {
    let log = fs::read(node.folder().join("daemon.log")).unwrap_or_default();
    String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned()
}

fn log_length(node: &Node) -> usize {
    fs::read(node.folder().join("daemon.log")).unwrap_or_default().len()
}

/// Restarts the daemon with `bytes` as the record at `path`, and checks that the record is named.
fn start_with(node: &mut Node, path: &Path, bytes: &[u8]) -> Result<()> {
    node.kill()?;
    fs::write(path, bytes)?;
    let from = log_length(node);
    node.serve()?;
    let said = said_since(node, from);
    ensure!(said.contains(&path.display().to_string()) && said.contains("left alone"), "{said}");
    Ok(())
}

fn sandboxes(node: &mut Node) -> Result<()> {
    let mut random = Random::announced("a_broken_sandbox_record_is_named_and_left_alone");
    let mut watch = Untouched::before(node)?;
    let pod = node.run_pod("broken")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let pid = node.cri().pid(&id)?;
    let path = state_of(node, &pod).join("sandbox.json");
    let record = fs::read(&path)?;
    for (what, bytes) in damaged(&record, &mut random) {
        start_with(node, &path, &bytes).with_context(|| what.clone())?;
        watch.victim().unharmed(node).with_context(|| format!("{what}: another pod"))?;
        ensure!(host::lives(pid), "{what}: its container was taken away");
        ensure!(node.cri().pods()?.iter().all(|one| one.id != pod.id), "{what}: it is listed");
        let other = node.run_pod("beside")?;
        node.end_pod(&other).with_context(|| format!("{what}: a new pod"))?;
    }
    // Put right, it is there again as if nothing had been.
    node.kill()?;
    fs::write(&path, &record)?;
    node.serve()?;
    ensure!(node.cri().pid(&id)? == pid && node.cri().exec(&id, &["true"])?.code == 0);
    node.end_pod(&pod)?;
    watch.daemon_was_replaced(node)?;
    watch.after(node)
}

fn containers(node: &mut Node) -> Result<()> {
    let mut random = Random::announced("a_broken_container_record_is_named_and_left_alone");
    let mut watch = Untouched::before(node)?;
    let pod = node.run_pod("broken")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let sibling = node.launch(&pod, "sibling", "busybox", &["sleep", "3600"])?;
    let pid = node.cri().pid(&id)?;
    let path = state_of(node, &pod).join("containers").join(&id).join("container.json");
    let record = fs::read(&path)?;
    for (what, bytes) in damaged(&record, &mut random) {
        start_with(node, &path, &bytes).with_context(|| what.clone())?;
        watch.victim().unharmed(node).with_context(|| format!("{what}: another pod"))?;
        ensure!(host::lives(pid), "{what}: its container was taken away");
        ensure!(node.cri().containers()?.iter().all(|one| one.id != id), "{what}: it is listed");
        ensure!(node.cri().exec(&sibling, &["true"])?.code == 0, "{what}: its sibling");
    }
    node.kill()?;
    fs::write(&path, &record)?;
    node.serve()?;
    ensure!(node.cri().pid(&id)? == pid && node.cri().exec(&id, &["true"])?.code == 0);
    node.end_pod(&pod)?;
    watch.daemon_was_replaced(node)?;
    watch.after(node)
}

/// The monitor dies with the daemon, so that the exit record is all there is.
fn exits(node: &mut Node) -> Result<()> {
    let mut watch = Untouched::before(node)?;
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("empty", Vec::clear),
        ("cut", |bytes| bytes.truncate(20)),
        ("another code", |bytes| bytes[12] ^= 1),
        ("a later version", |bytes| bytes[8] = 9),
        ("longer", |bytes| bytes.extend([0; 100])),
    ];
    for (what, damage) in damages {
        let pod = node.run_pod("exits")?;
        let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
        let pid = node.cri().pid(&id)?;
        let monitor = crate::restart::monitor_of(node, pid)?;
        node.kill()?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        let path = state_of(node, &pod).join("containers").join(&id).join("exit");
        crisp_tests::wait::until_true("the exit on record", crisp_tests::wait::LONG, || {
            fs::read(&path).is_ok_and(|bytes| bytes.starts_with(b"crispxit"))
        })?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::Signal::SIGKILL)?;
        crisp_tests::wait::until_true("the monitor's end", crisp_tests::wait::LONG, || {
            !host::lives(monitor)
        })?;
        let mut bytes = fs::read(&path)?;
        damage(&mut bytes);
        fs::write(&path, bytes)?;
        node.serve().with_context(|| what.to_owned())?;
        let status = node.cri().container(&id)?;
        ensure!(status.state() == cri::ContainerState::ContainerExited, "{what}: {status:?}");
        ensure!((status.exit_code, status.reason.as_str()) == (255, "Unknown"), "{what}: {status:?}");
        watch.victim().unharmed(node).with_context(|| format!("{what}: another pod"))?;
        node.end_pod(&pod).with_context(|| what.to_owned())?;
    }
    watch.daemon_was_replaced(node)?;
    watch.after(node)
}
