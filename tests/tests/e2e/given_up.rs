//! Calls given up by their clients, or cut by the end of the daemon, at every stage: the retry finds what the first one
//! made, or makes it, and there is one of everything.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{Reply, container_config, words};
use crisp_tests::http2::{self, Connection, DATA, END_HEADERS, END_STREAM, HEADERS};
use crisp_tests::node::{Node, Pod};
use crisp_tests::place;
use crisp_tests::random::Random;
use crisp_tests::untouched::{self, Untouched};
use prost::Message;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "c18_a_call_given_up_is_done_or_undone", needs: &[], images: &["busybox"], run: deadlines },
    Case {
        name: "c18_a_client_that_vanishes_cancels_nothing",
        needs: &[],
        images: &["busybox"],
        run: vanished,
    },
    Case {
        name: "c18_a_daemon_killed_in_a_call_loses_nothing",
        needs: &[],
        images: &["busybox"],
        run: killed,
    },
];

/// How many lives of a pod are tried on a real machine: calls given up, clients that vanish, daemons that are killed.
const GIVEN_UP: usize = 100;
const VANISHED: usize = 100;
const KILLED: usize = 20;

/// Moments after a call was made at which it is given up: 0 to 65 ms, the early ones as likely as the late ones. A call
/// takes a few milliseconds.
fn moment(dice: &mut Random) -> Duration {
    let end = 1 << dice.below(17);
    Duration::from_micros(dice.below(end) as u64)
}

/// A share of the processor, where there is a controller for it.
fn shares() -> i64 {
    if place::has_controllers() { 512 } else { 0 }
}

/// Something to change about a container.
fn changed(id: &str) -> cri::UpdateContainerResourcesRequest {
    let linux = cri::LinuxContainerResources { cpu_shares: shares(), ..Default::default() };
    cri::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    }
}

/// And about a sandbox.
fn changed_pod(id: &str) -> cri::UpdatePodSandboxResourcesRequest {
    let resources = cri::LinuxContainerResources { cpu_shares: shares(), ..Default::default() };
    cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.to_owned(),
        resources: Some(resources),
        ..Default::default()
    }
}

fn reopen(id: &str) -> cri::ReopenContainerLogRequest {
    cri::ReopenContainerLogRequest { container_id: id.to_owned() }
}

/// The change of [`changed`] has come to the container, once and for all.
fn is_changed(node: &Node, id: &str) -> Result<()> {
    let status = node.cri().container(id)?;
    let linux = status.resources.clone().and_then(|resources| resources.linux);
    ensure!(linux.is_some_and(|linux| linux.cpu_shares == shares()), "{status:?}");
    Ok(())
}

/// One life of a pod, each call first given up at a moment of its own and then made again.
fn life(node: &Node, name: &str, dice: &mut Random) -> Result<()> {
    let mut hasty = || node.cri().within(moment(dice));
    let config = node.pod_config(name);
    let first = given_up(hasty().run_pod(&config))?;
    let pod = node.cri().run_pod(&config).context("RunPodSandbox again")?;
    ensure!(first.is_none_or(|first| first == pod), "another sandbox");
    let container =
        container_config("c", "busybox", &["sh", "-c", "trap 'exit 5' TERM; echo up; sleep 3600 & wait"]);
    let first = given_up(hasty().create(&pod, &container, &config))?;
    let id = node.cri().create(&pod, &container, &config).context("CreateContainer again")?;
    ensure!(first.is_none_or(|first| first == id), "another container");
    ensure!(of(node, &pod)? == [id.as_str()], "not one container");

    given_up(hasty().start(&id))?;
    match node.cri().start(&id) {
        Ok(()) => {}
        // The first one was done.
        Err(status) => ensure!(status.code() == Code::FailedPrecondition, "StartContainer again: {status:?}"),
    }
    ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning);
    // Process 1 of its namespace never hears a signal that it has no handler for.
    crate::logs::wait_for_lines(node, &id, 1)?;
    given_up(hasty().update_container_resources(changed(&id)))?;
    node.cri().update_container_resources(changed(&id)).context("UpdateContainerResources again")?;
    is_changed(node, &id)?;
    given_up(hasty().update_pod_sandbox_resources(changed_pod(&pod)))?;
    node.cri().update_pod_sandbox_resources(changed_pod(&pod)).context("UpdatePodSandboxResources again")?;
    given_up(hasty().reopen_container_log(reopen(&id)))?;
    node.cri().reopen_container_log(reopen(&id)).context("ReopenContainerLog again")?;
    let _ = hasty().exec(&id, &["sleep", "0.01"]);
    ensure!(node.cri().exec(&id, &["echo", "x"]).context("ExecSync again")?.stdout == "x\n");
    given_up(hasty().stop(&id, 3600))?;
    node.cri().stop(&id, 3600).context("StopContainer again")?;
    let status = node.cri().container(&id)?;
    ensure!(status.state() == cri::ContainerState::ContainerExited, "{status:?}");
    ensure!(status.exit_code == 5, "{status:?}");
    given_up(hasty().remove(&id))?;
    node.cri().remove(&id).context("RemoveContainer again")?;
    ensure!(of(node, &pod)?.is_empty());
    given_up(hasty().stop_pod(&pod))?;
    node.cri().stop_pod(&pod).context("StopPodSandbox again")?;
    given_up(hasty().remove_pod(&pod))?;
    node.cri().remove_pod(&pod).context("RemovePodSandbox again")
}

/// The containers of a sandbox.
fn of(node: &Node, pod: &str) -> Result<Vec<String>> {
    let all = node.cri().containers()?;
    Ok(all.into_iter().filter(|one| one.pod_sandbox_id == pod).map(|one| one.id).collect())
}

/// An answer, or nothing when it was given up; any other failure is one.
fn given_up<T>(reply: Reply<T>) -> Result<Option<T>> {
    match reply {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) => Ok(None),
        Err(status) => Err(status).context("given up"),
    }
}

fn deadlines(node: &mut Node) -> Result<()> {
    let mut dice = Random::announced("c18_given_up");
    untouched::around(node, |node, _| {
        for round in 0..place::rounds(GIVEN_UP, 20) {
            life(node, &format!("given-up-{round}"), &mut dice)
                .with_context(|| format!("round {round} of seed {}", dice.seed))?;
        }
        Ok(())
    })
}

/// Says a request and is gone, without so much as a reset, at some moment.
fn vanish(node: &Node, method: &str, request: &impl Message, dice: &mut Random) -> Result<()> {
    let mut connection = Connection::open(node.endpoint().trim_start_matches("unix://").as_ref())?;
    let head = http2::call_headers(&format!("/runtime.v1.RuntimeService/{method}"), "application/grpc");
    let mut bytes = http2::frame(HEADERS, END_HEADERS, 1, &head);
    bytes.extend(http2::frame(DATA, END_STREAM, 1, &http2::message(&request.encode_to_vec())));
    connection.send(&bytes)?;
    // What the daemon has got done by then is what the test varies.
    thread::sleep(moment(dice));
    Ok(())
}

fn vanished(node: &mut Node) -> Result<()> {
    let mut dice = Random::announced("c18_vanished");
    untouched::around(node, |node, _| {
        for round in 0..place::rounds(VANISHED, 10) {
            vanished_life(node, &format!("vanished-{round}"), &mut dice)
                .with_context(|| format!("round {round} of seed {}", dice.seed))?;
        }
        Ok(())
    })
}

/// One life of a pod, each call first made by somebody who vanishes.
fn vanished_life(node: &Node, name: &str, dice: &mut Random) -> Result<()> {
    let config = node.pod_config(name);
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    vanish(node, "RunPodSandbox", &request, dice)?;
    let pod = Pod { id: node.cri().run_pod(&config)?, config };
    let named = node.cri().pods()?.into_iter().filter(|one| one.metadata == pod.config.metadata).count();
    ensure!(named == 1, "{named} sandboxes of one name");
    let container = container_config("c", "busybox", &["sleep", "3600"]);
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(container.clone()),
        sandbox_config: Some(pod.config.clone()),
    };
    vanish(node, "CreateContainer", &request, dice)?;
    let id = node.cri().create(&pod.id, &container, &pod.config)?;
    ensure!(of(node, &pod.id)? == [id.as_str()], "not one container");
    vanish(node, "StartContainer", &cri::StartContainerRequest { container_id: id.clone() }, dice)?;
    if let Err(status) = node.cri().start(&id) {
        ensure!(status.code() == Code::FailedPrecondition, "StartContainer again: {status:?}");
    }
    ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning);
    vanish(node, "UpdateContainerResources", &changed(&id), dice)?;
    node.cri().update_container_resources(changed(&id))?;
    is_changed(node, &id)?;
    vanish(node, "UpdatePodSandboxResources", &changed_pod(&pod.id), dice)?;
    node.cri().update_pod_sandbox_resources(changed_pod(&pod.id))?;
    vanish(node, "ReopenContainerLog", &reopen(&id), dice)?;
    node.cri().reopen_container_log(reopen(&id))?;
    let request = cri::ExecSyncRequest { container_id: id.clone(), cmd: words(&["true"]), timeout: 0 };
    vanish(node, "ExecSync", &request, dice)?;
    ensure!(node.cri().exec(&id, &["echo", "x"])?.stdout == "x\n");
    let request = cri::StopContainerRequest { container_id: id.clone(), timeout: 0 };
    vanish(node, "StopContainer", &request, dice)?;
    node.cri().stop(&id, 0)?;
    vanish(node, "RemoveContainer", &cri::RemoveContainerRequest { container_id: id.clone() }, dice)?;
    node.cri().remove(&id)?;
    ensure!(of(node, &pod.id)?.is_empty());
    let pod_sandbox_id = pod.id.clone();
    vanish(node, "StopPodSandbox", &cri::StopPodSandboxRequest { pod_sandbox_id }, dice)?;
    node.cri().stop_pod(&pod.id)?;
    let pod_sandbox_id = pod.id.clone();
    vanish(node, "RemovePodSandbox", &cri::RemovePodSandboxRequest { pod_sandbox_id }, dice)?;
    Ok(node.cri().remove_pod(&pod.id)?)
}

/// Makes a call, kills the daemon meanwhile, and starts it again.
pub(crate) fn cut<T: Send>(
    node: &mut Node,
    after: Duration,
    call: impl FnOnce(&Node) -> Reply<T> + Send,
) -> Result<Option<T>> {
    let shared = &*node;
    let reply = thread::scope(|scope| {
        let call = scope.spawn(|| call(shared));
        thread::sleep(after);
        shared.signal(nix::sys::signal::Signal::SIGKILL)?;
        call.join().map_err(|_| anyhow!("a client panicked"))
    })?;
    node.wait_for_end()?;
    node.serve()?;
    Ok(reply.ok())
}

fn killed(node: &mut Node) -> Result<()> {
    let mut dice = Random::announced("c18_killed");
    let mut watch = Untouched::before(node)?;
    for round in 0..place::rounds(KILLED, 10) {
        killed_life(node, &format!("killed-{round}"), &mut dice)
            .with_context(|| format!("round {round} of seed {}", dice.seed))?;
    }
    watch.daemon_was_replaced(node)?;
    watch.after(node)
}

/// One life of a pod, each call first cut by the end of the daemon at a moment of its own.
fn killed_life(node: &mut Node, name: &str, dice: &mut Random) -> Result<()> {
    let config = node.pod_config(name);
    let first = cut(node, moment(dice), |node| node.cri().run_pod(&config))?;
    let pod = node.cri().run_pod(&config).context("RunPodSandbox again")?;
    ensure!(first.is_none_or(|first| first == pod), "another sandbox than the one that was told");
    let container = container_config("c", "busybox", &["sleep", "3600"]);
    let first = cut(node, moment(dice), |node| node.cri().create(&pod, &container, &config))?;
    let id = node.cri().create(&pod, &container, &config).context("CreateContainer again")?;
    ensure!(first.is_none_or(|first| first == id), "another container than the one that was told");
    ensure!(of(node, &pod)? == [id.as_str()], "not one container");
    let first = cut(node, moment(dice), |node| node.cri().start(&id))?;
    match (first, node.cri().start(&id)) {
        (None, Ok(())) => {}
        (_, Err(status)) => ensure!(status.code() == Code::FailedPrecondition, "{status:?}"),
        (Some(()), Ok(())) => anyhow::bail!("started twice"),
    }
    ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning);
    cut(node, moment(dice), |node| node.cri().update_container_resources(changed(&id)))?;
    node.cri().update_container_resources(changed(&id)).context("UpdateContainerResources again")?;
    is_changed(node, &id)?;
    cut(node, moment(dice), |node| node.cri().update_pod_sandbox_resources(changed_pod(&pod)))?;
    node.cri().update_pod_sandbox_resources(changed_pod(&pod)).context("UpdatePodSandboxResources again")?;
    cut(node, moment(dice), |node| node.cri().reopen_container_log(reopen(&id)))?;
    node.cri().reopen_container_log(reopen(&id)).context("ReopenContainerLog again")?;
    cut(node, moment(dice), |node| node.cri().exec(&id, &["true"]))?;
    ensure!(node.cri().exec(&id, &["echo", "x"]).context("ExecSync again")?.stdout == "x\n");
    cut(node, moment(dice), |node| node.cri().stop(&id, 0))?;
    node.cri().stop(&id, 0).context("StopContainer again")?;
    ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerExited);
    cut(node, moment(dice), |node| node.cri().remove(&id))?;
    node.cri().remove(&id).context("RemoveContainer again")?;
    ensure!(of(node, &pod)?.is_empty());
    cut(node, moment(dice), |node| node.cri().stop_pod(&pod))?;
    node.cri().stop_pod(&pod).context("StopPodSandbox again")?;
    cut(node, moment(dice), |node| node.cri().remove_pod(&pod))?;
    node.cri().remove_pod(&pod).context("RemovePodSandbox again")
}
