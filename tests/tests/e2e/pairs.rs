//! All pairs of calls on one object at once: what comes out is what one of the two orders would have given.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{Cri, Reply, container_config};
use crisp_tests::node::{Node, Pod};
use crisp_tests::random::Random;
use crisp_tests::{place, untouched};
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] =
    &[Case { name: "c17_all_pairs_of_calls_are_linearizable", needs: &[], images: &["busybox"], run: pairs }];

/// Pairs that are raced at a time, so that the daemon is busy with others, too.
const WORKERS: usize = 4;

/// How often each pair of calls that change something is raced on a real machine.
const ROUNDS: usize = 4;

const REMOVE_POD: &str = "RemovePodSandbox";

/// One sandbox with one container.
struct Object {
    pod: Pod,
    container: String,
    config: cri::ContainerConfig,
}

type Call = (&'static str, fn(&Cri, &Object) -> Reply<()>);

const CALLS: &[Call] = &[
    ("RunPodSandbox", |cri, object| cri.run_pod(&object.pod.config).map(drop)),
    ("CreateContainer", |cri, object| {
        cri.create(&object.pod.id, &object.config, &object.pod.config).map(drop)
    }),
    ("StartContainer", |cri, object| cri.start(&object.container)),
    ("StopContainer", |cri, object| cri.stop(&object.container, 0)),
    ("RemoveContainer", |cri, object| cri.remove(&object.container)),
    ("StopPodSandbox", |cri, object| cri.stop_pod(&object.pod.id)),
    (REMOVE_POD, |cri, object| cri.remove_pod(&object.pod.id)),
    ("UpdateContainerResources", |cri, object| {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: object.container.clone(),
            linux: Some(cri::LinuxContainerResources::default()),
            ..Default::default()
        };
        cri.update_container_resources(request).map(drop)
    }),
    ("UpdatePodSandboxResources", |cri, object| {
        let pod_sandbox_id = object.pod.id.clone();
        let request = cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id, ..Default::default() };
        cri.update_pod_sandbox_resources(request).map(drop)
    }),
    ("ReopenContainerLog", |cri, object| {
        let container_id = object.container.clone();
        cri.reopen_container_log(cri::ReopenContainerLogRequest { container_id }).map(drop)
    }),
    ("ExecSync", |cri, object| cri.exec(&object.container, &["true"]).map(drop)),
    ("ContainerStatus", |cri, object| cri.container(&object.container).map(drop)),
    ("PodSandboxStatus", |cri, object| cri.pod(&object.pod.id).map(drop)),
    ("ContainerStats", |cri, object| {
        let container_id = object.container.clone();
        cri.container_stats(cri::ContainerStatsRequest { container_id }).map(drop)
    }),
    ("PodSandboxStats", |cri, object| {
        let pod_sandbox_id = object.pod.id.clone();
        cri.pod_sandbox_stats(cri::PodSandboxStatsRequest { pod_sandbox_id }).map(drop)
    }),
    ("ListContainers", |cri, _| cri.containers().map(drop)),
];

/// Calls that only look. A pair with one of them is raced once, the others as often as there are rounds.
const LOOKING: &[&str] =
    &["ContainerStatus", "PodSandboxStatus", "ContainerStats", "PodSandboxStats", "ListContainers"];
/// Codes that a refused call may have. Anything else is a fault of the daemon's.
const REFUSALS: [Code; 5] =
    [Code::NotFound, Code::FailedPrecondition, Code::AlreadyExists, Code::Unavailable, Code::Unknown];

/// What two calls came to: whether each was done, and what is left.
type Outcome = (bool, bool, Option<i32>, Option<i32>);

/// What the container of an object has behind it when the calls are made.
#[derive(Clone, Copy, Debug)]
enum Start {
    Created,
    Running,
    /// It has ended by itself.
    Exited,
    /// Its sandbox was stopped.
    Stopped,
}

const STARTS: [Start; 4] = [Start::Created, Start::Running, Start::Exited, Start::Stopped];

fn make(node: &Node, name: &str, start: Start) -> Result<Object> {
    let pod = node.run_pod(name)?;
    let command: &[&str] = if matches!(start, Start::Exited) { &["true"] } else { &["sleep", "3600"] };
    let config = container_config("c", "busybox", command);
    let container = node.cri().create(&pod.id, &config, &pod.config)?;
    match start {
        Start::Created => {}
        Start::Running => node.cri().start(&container)?,
        Start::Exited => {
            node.cri().start(&container)?;
            node.wait_for_exit(&container)?;
        }
        Start::Stopped => node.cri().stop_pod(&pod.id)?,
    }
    Ok(Object { pod, container, config })
}

/// Whether a call was done.
fn done(call: &Call, reply: Reply<()>) -> Result<bool> {
    if let Err(status) = &reply {
        ensure!(REFUSALS.contains(&status.code()), "{}: {status:?}", call.0);
    }
    Ok(reply.is_ok())
}

/// What is left, and takes that away.
fn left(node: &Node, object: &Object) -> Result<(Option<i32>, Option<i32>)> {
    let pods = node.cri().pods()?;
    let pod = pods.iter().find(|one| one.id == object.pod.id).map(|one| one.state);
    let containers = node.cri().containers()?;
    let container = containers.iter().find(|one| one.id == object.container).map(|one| one.state);
    // What a call has made anew has the same names, and other ids.
    for one in pods.iter().filter(|one| one.metadata == object.pod.config.metadata) {
        node.cri().remove_pod(&one.id).context("take away what is left")?;
    }
    let again = node.cri().containers()?;
    ensure!(again.iter().all(|one| one.pod_sandbox_id != object.pod.id), "a container without its sandbox");
    Ok((pod, container))
}

/// Two calls, and where they start.
type Race = (&'static Call, &'static Call, Start);

fn pairs(node: &mut Node) -> Result<()> {
    let mut races: Vec<Race> = Vec::new();
    for (at, first) in CALLS.iter().enumerate() {
        for second in &CALLS[at..] {
            races.extend(STARTS.map(|start| (first, second, start)));
        }
    }
    // In another order each time, so that other races run beside each.
    Random::announced("c17").shuffle(&mut races);
    let rounds = place::rounds(ROUNDS, 1);
    untouched::around(node, |node, _| {
        let (node, races, next) = (&*node, &races, &AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|worker| scope.spawn(move || work_off(node, worker, races, next, rounds)))
                .collect();
            workers.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a worker panicked"))?)
        })
    })
}

/// Takes races until there are none left.
fn work_off(node: &Node, worker: usize, races: &[Race], next: &AtomicUsize, rounds: usize) -> Result<()> {
    let name = format!("pair-{worker}");
    while let Some((first, second, start)) = races.get(next.fetch_add(1, Ordering::Relaxed)) {
        let looks = [first, second].iter().any(|call| LOOKING.contains(&call.0));
        pair(node, &name, (first, second, *start), if looks { 1 } else { rounds })
            .with_context(|| format!("{} and {}, {start:?}", first.0, second.0))?;
    }
    Ok(())
}

fn pair(node: &Node, name: &str, (first, second, start): Race, rounds: usize) -> Result<()> {
    let mut allowed: BTreeSet<Outcome> = BTreeSet::new();
    for turned in [false, true] {
        let object = make(node, name, start)?;
        let (a, b) = if turned {
            let b = done(second, second.1(node.cri(), &object))?;
            (done(first, first.1(node.cri(), &object))?, b)
        } else {
            (done(first, first.1(node.cri(), &object))?, done(second, second.1(node.cri(), &object))?)
        };
        let (pod, container) = left(node, &object)?;
        allowed.insert((a, b, pod, container));
    }
    for (removal, other) in [(first, second), (second, first)] {
        if removal.0 != REMOVE_POD {
            continue;
        }
        // It is a stop and a removal, and the other call may come between the two.
        let object = make(node, name, start)?;
        node.cri().stop_pod(&object.pod.id)?;
        let between = done(other, other.1(node.cri(), &object))?;
        let removed = done(removal, removal.1(node.cri(), &object))?;
        let (pod, container) = left(node, &object)?;
        let (a, b) = if removal.0 == first.0 { (removed, between) } else { (between, removed) };
        allowed.insert((a, b, pod, container));
    }
    for round in 0..rounds {
        let object = make(node, name, start)?;
        let (a, b) = std::thread::scope(|scope| {
            let call = |call: &'static Call| {
                let (cri, object) = (node.cri(), &object);
                scope.spawn(move || call.1(cri, object))
            };
            let (a, b) = (call(first), call(second));
            (a.join(), b.join())
        });
        let a = done(first, a.map_err(|_| anyhow!("a client panicked"))?)?;
        let b = done(second, b.map_err(|_| anyhow!("a client panicked"))?)?;
        let (pod, container) = left(node, &object)?;
        let outcome = (a, b, pod, container);
        ensure!(
            allowed.contains(&outcome),
            "round {round}: {outcome:?}, and one after the other {allowed:?}"
        );
    }
    Ok(())
}
