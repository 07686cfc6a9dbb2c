//! Calls given up by their clients, or cut by the end of the daemon, at every stage: the retry finds what the first one
//! made, or makes it, and there is one of everything.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{Reply, container_config};
use crisp_tests::http2::{self, Connection, DATA, END_HEADERS, END_STREAM, HEADERS};
use crisp_tests::node::{Node, Pod};
use crisp_tests::place;
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

/// When a call is given up, microseconds after it was made: a call takes a few milliseconds.
const GIVEN_UP: [u64; 10] = [0, 200, 500, 1000, 2000, 4000, 7000, 12_000, 20_000, 40_000];
/// Times through [`GIVEN_UP`].
const ROUNDS: usize = 2;

/// One life of a pod, each call first given up after `limit` and then made again.
fn life(node: &Node, name: &str, limit: Duration) -> Result<()> {
    let hasty = node.cri().within(limit);
    let config = node.pod_config(name);
    let first = given_up(hasty.run_pod(&config))?;
    let pod = node.cri().run_pod(&config).context("RunPodSandbox again")?;
    ensure!(first.is_none_or(|first| first == pod), "another sandbox");
    let container =
        container_config("c", "busybox", &["sh", "-c", "trap 'exit 5' TERM; echo up; sleep 3600 & wait"]);
    let first = given_up(hasty.create(&pod, &container, &config))?;
    let id = node.cri().create(&pod, &container, &config).context("CreateContainer again")?;
    ensure!(first.is_none_or(|first| first == id), "another container");
    ensure!(of(node, &pod)? == [id.as_str()], "not one container");

    given_up(hasty.start(&id))?;
    match node.cri().start(&id) {
        Ok(()) => {}
        // The first one was done.
        Err(status) => ensure!(status.code() == Code::FailedPrecondition, "StartContainer again: {status:?}"),
    }
    ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning);
    // Process 1 of its namespace never hears a signal that it has no handler for.
    crate::logs::wait_for_lines(node, &id, 1)?;
    let _ = hasty.exec(&id, &["sleep", "0.01"]);
    ensure!(node.cri().exec(&id, &["echo", "x"]).context("ExecSync again")?.stdout == "x\n");
    given_up(hasty.stop(&id, 3600))?;
    node.cri().stop(&id, 3600).context("StopContainer again")?;
    let status = node.cri().container(&id)?;
    ensure!(status.state() == cri::ContainerState::ContainerExited, "{status:?}");
    ensure!(status.exit_code == 5, "{status:?}");
    given_up(hasty.remove(&id))?;
    node.cri().remove(&id).context("RemoveContainer again")?;
    ensure!(of(node, &pod)?.is_empty());
    given_up(hasty.stop_pod(&pod))?;
    node.cri().stop_pod(&pod).context("StopPodSandbox again")?;
    given_up(hasty.remove_pod(&pod))?;
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
    untouched::around(node, |node, _| {
        for round in 0..place::rounds(ROUNDS, ROUNDS) {
            for micros in GIVEN_UP {
                let limit = Duration::from_micros(micros);
                life(node, &format!("given-up-{round}-{micros}"), limit)
                    .with_context(|| format!("given up after {limit:?}"))?;
            }
        }
        Ok(())
    })
}

/// Says a request and is gone, without so much as a reset.
fn vanish(node: &Node, method: &str, request: &[u8], stay: Duration) -> Result<()> {
    let mut connection = Connection::open(node.endpoint().trim_start_matches("unix://").as_ref())?;
    let head = http2::call_headers(&format!("/runtime.v1.RuntimeService/{method}"), "application/grpc");
    let mut bytes = http2::frame(HEADERS, END_HEADERS, 1, &head);
    bytes.extend(http2::frame(DATA, END_STREAM, 1, &http2::message(request)));
    connection.send(&bytes)?;
    // What the daemon has got done by then is what the test varies.
    thread::sleep(stay);
    Ok(())
}

fn vanished(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        for micros in GIVEN_UP {
            let stay = Duration::from_micros(micros);
            let config = node.pod_config(&format!("vanished-{micros}"));
            let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
            vanish(node, "RunPodSandbox", &request.encode_to_vec(), stay)?;
            let pod = Pod { id: node.cri().run_pod(&config)?, config };
            let named =
                node.cri().pods()?.into_iter().filter(|one| one.metadata == pod.config.metadata).count();
            ensure!(named == 1, "{named} sandboxes of one name");
            let container = container_config("c", "busybox", &["sleep", "3600"]);
            let request = cri::CreateContainerRequest {
                pod_sandbox_id: pod.id.clone(),
                config: Some(container.clone()),
                sandbox_config: Some(pod.config.clone()),
            };
            vanish(node, "CreateContainer", &request.encode_to_vec(), stay)?;
            let id = node.cri().create(&pod.id, &container, &pod.config)?;
            ensure!(of(node, &pod.id)? == [id.as_str()], "not one container");
            node.cri().start(&id)?;
            let request = cri::StopContainerRequest { container_id: id.clone(), timeout: 0 };
            vanish(node, "StopContainer", &request.encode_to_vec(), stay)?;
            node.cri().stop(&id, 0)?;
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            vanish(node, "RemovePodSandbox", &request.encode_to_vec(), stay)?;
            node.cri().remove_pod(&pod.id)?;
        }
        Ok(())
    })
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
    let mut watch = Untouched::before(node)?;
    for micros in GIVEN_UP {
        let after = Duration::from_micros(micros);
        killed_after(node, after).with_context(|| format!("killed after {after:?}"))?;
    }
    watch.daemon_was_replaced(node)?;
    watch.after(node)
}

fn killed_after(node: &mut Node, after: Duration) -> Result<()> {
    let config = node.pod_config(&format!("killed-{}", after.as_micros()));
    let first = cut(node, after, |node| node.cri().run_pod(&config))?;
    let pod = node.cri().run_pod(&config).context("RunPodSandbox again")?;
    ensure!(first.is_none_or(|first| first == pod), "another sandbox than the one that was told");
    let container = container_config("c", "busybox", &["sleep", "3600"]);
    let first = cut(node, after, |node| node.cri().create(&pod, &container, &config))?;
    let id = node.cri().create(&pod, &container, &config).context("CreateContainer again")?;
    ensure!(first.is_none_or(|first| first == id), "another container than the one that was told");
    ensure!(of(node, &pod)? == [id.as_str()], "not one container");
    let first = cut(node, after, |node| node.cri().start(&id))?;
    match (first, node.cri().start(&id)) {
        (None, Ok(())) => {}
        (_, Err(status)) => ensure!(status.code() == Code::FailedPrecondition, "{status:?}"),
        (Some(()), Ok(())) => anyhow::bail!("started twice"),
    }
    ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning);
    cut(node, after, |node| node.cri().stop(&id, 0))?;
    node.cri().stop(&id, 0).context("StopContainer again")?;
    ensure!(node.cri().container(&id)?.state() == cri::ContainerState::ContainerExited);
    cut(node, after, |node| node.cri().remove(&id))?;
    node.cri().remove(&id).context("RemoveContainer again")?;
    ensure!(of(node, &pod)?.is_empty());
    cut(node, after, |node| node.cri().stop_pod(&pod))?;
    node.cri().stop_pod(&pod).context("StopPodSandbox again")?;
    cut(node, after, |node| node.cri().remove_pod(&pod))?;
    node.cri().remove_pod(&pod).context("RemovePodSandbox again")
}
