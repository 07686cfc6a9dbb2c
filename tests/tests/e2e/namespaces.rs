//! Namespaces that a container must not get into: those of somebody who took over the number of an ended process, and the
//! host's unless its pod was made for them. `r29_` of the adversarial cases.

use std::fs;
use std::process::{Child, Command};

use anyhow::{Context, Result, bail, ensure};
use crisp_proto::runtime::v1::{self as cri, NamespaceMode};
use crisp_tests::cri::{container_config, refused};
use crisp_tests::host;
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched::{self, Untouched};
use crisp_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

use crate::case::Case;
use crate::userns;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "r29_a_number_that_was_used_again_is_not_joined",
        needs: &[],
        images: &["busybox"],
        run: recycled,
    },
    Case {
        name: "r29_a_container_is_in_the_namespaces_of_its_pod",
        needs: &[],
        images: &["busybox"],
        run: mixtures,
    },
];

/// A process of the host's that was given a certain pid; killed when dropped.
struct Stranger(Child);

impl Stranger {
    fn with_pid(pid: i32) -> Result<Self> {
        ensure!(!host::lives(pid), "{pid} still lives");
        for _ in 0..10_000 {
            // Somebody else may be given the number first, and end.
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).context("ns_last_pid")?;
            let stranger = Self(Command::new("sleep").arg("3600").spawn()?);
            if i32::try_from(stranger.0.id())? == pid {
                return Ok(stranger);
            }
        }
        bail!("the number {pid} could not be had again")
    }

    fn lives(&self) -> bool {
        i32::try_from(self.0.id()).is_ok_and(host::lives)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A container that joins the PID namespace of another one.
fn joining(name: &str, target: &str) -> Result<cri::ContainerConfig> {
    let mut config = container_config(name, "busybox", &["sleep", "3600"]);
    userns::security(&mut config)?.namespace_options = Some(cri::NamespaceOption {
        pid: NamespaceMode::Target.into(),
        target_id: target.to_owned(),
        ..Default::default()
    });
    Ok(config)
}

/// Shows that a container is not made, and that the error names its target.
fn no_join(node: &Node, pod: &Pod, target: &str, code: Code) -> Result<()> {
    let message = refused(node.cri().create(&pod.id, &joining("late", target)?, &pod.config), code)?;
    ensure!(message.contains("target_id") && message.contains(target), "{message}");
    Ok(())
}

fn recycled(node: &mut Node) -> Result<()> {
    let mut watch = Untouched::before(node)?;
    let pod = node.run_pod("recycled")?;
    let other = node.run_pod("other")?;
    let foreign = node.launch(&other, "c", "busybox", &["sleep", "3600"])?;
    let first = node.launch(&pod, "first", "busybox", &["sleep", "3600"])?;
    for target in ["0".repeat(64).as_str(), &foreign, &pod.id, "g", "/proc/1"] {
        no_join(node, &pod, target, Code::NotFound)?;
    }
    no_join(node, &pod, "", Code::InvalidArgument)?;
    // A prefix is as good as the id, as everywhere; what is shown is the id.
    let short = node.launch_as(&pod, &joining("short", &first[..12])?)?;
    ensure!(node.cri().shell(&short, "cat /proc/1/comm")? == "sleep\n");
    let request = cri::ContainerStatusRequest { container_id: short, verbose: true };
    let info = node.cri().container_status(request)?.info.remove("info").context("no info")?;
    ensure!(info.contains(&format!("\"target_id\":\"{first}\"")), "{info}");
    // It waits for its start, and meanwhile its target ends.
    let waits = node.cri().create(&pod.id, &joining("waits", &first)?, &pod.config)?;
    let pid = node.cri().pid(&first)?;
    node.cri().stop(&first, 0)?;
    let stranger = Stranger::with_pid(pid)?;
    no_join(node, &pod, &first, Code::NotFound)?;
    ensure!(node.cri().start(&waits).is_err(), "started in the namespace of an ended container");
    ensure!(node.cri().container(&waits)?.state() == cri::ContainerState::ContainerExited);
    ensure!(node.cri().exec(&first, &["true"]).is_err(), "executed in an ended container");
    ensure!(stranger.lives(), "the stranger was taken for the container");
    drop(stranger);

    // It ends while nobody looks; the daemon that comes after finds a number that means somebody else.
    let second = node.launch(&pod, "second", "busybox", &["sleep", "3600"])?;
    let pid = node.cri().pid(&second)?;
    node.kill()?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    wait::until_true("the container to end", wait::LONG, || !host::lives(pid))?;
    let stranger = wait::until("the number to be free", wait::LONG, || {
        Stranger::with_pid(pid).map_err(|error| format!("{error:#}"))
    })?;
    node.serve()?;
    watch.daemon_was_replaced(node)?;
    no_join(node, &pod, &second, Code::NotFound)?;
    ensure!(node.cri().exec(&second, &["true"]).is_err(), "executed in an ended container");
    node.cri().stop(&second, 0)?;
    ensure!(node.cri().container(&second)?.exit_code == 137);
    node.end_pod(&pod)?;
    ensure!(stranger.lives(), "the stranger was taken for the container");
    drop(stranger);
    node.end_pod(&other)?;
    watch.after(node)
}

/// A namespace of a process, as the kernel names it.
fn namespace(pid: &str, kind: &str) -> Result<String> {
    let link = format!("/proc/{pid}/ns/{kind}");
    Ok(fs::read_link(&link).with_context(|| link.clone())?.display().to_string())
}

fn mixtures(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        for network in [NamespaceMode::Pod, NamespaceMode::Node] {
            for ipc in [NamespaceMode::Pod, NamespaceMode::Node] {
                for pid in [NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Node] {
                    mixture(node, [network, ipc, pid])
                        .with_context(|| format!("network {network:?}, ipc {ipc:?}, pid {pid:?}"))?;
                }
            }
        }
        Ok(())
    })
}

fn options([network, ipc, pid]: [NamespaceMode; 3]) -> cri::NamespaceOption {
    cri::NamespaceOption { network: network.into(), ipc: ipc.into(), pid: pid.into(), ..Default::default() }
}

/// A pod with these modes: its containers are where it says, and one that says otherwise is not made.
fn mixture(node: &Node, modes: [NamespaceMode; 3]) -> Result<()> {
    let pod = node.run_pod_as(userns::sandbox(node, "mixture", options(modes))?)?;
    let launch =
        |name: &str| node.launch_as(&pod, &userns::container(name, &["sleep", "3600"], &options(modes))?);
    let (one, two) = (launch("one")?, launch("two")?);
    let [one, two] = [&one, &two].map(|id| node.cri().pid(id).map(|pid| pid.to_string()));
    let (one, two) = (one?, two?);
    for (kind, mode) in ["net", "ipc", "pid"].into_iter().zip(modes).chain([
        ("uts", modes[0]),
        ("mnt", NamespaceMode::Container),
        ("cgroup", NamespaceMode::Container),
    ]) {
        let (host, own, neighbours) =
            (namespace("self", kind)?, namespace(&one, kind)?, namespace(&two, kind)?);
        let right = match mode {
            NamespaceMode::Node => own == host && neighbours == host,
            NamespaceMode::Pod => own != host && own == neighbours,
            _ => own != host && neighbours != host && own != neighbours,
        };
        ensure!(right, "{kind}: the host's is {host}, the containers' {own} and {neighbours}");
    }
    for (at, field) in ["network", "ipc", "pid"].into_iter().enumerate() {
        let turned = match modes[at] {
            NamespaceMode::Node => NamespaceMode::Pod,
            _ => NamespaceMode::Node,
        };
        let mut wrong = modes;
        wrong[at] = turned;
        let config = userns::container("wrong", &["true"], &options(wrong))?;
        let message = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        ensure!(message.contains(&format!("namespace_options.{field}")), "{message}");
    }
    node.end_pod(&pod)
}
