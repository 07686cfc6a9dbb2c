//! What is told without a question, in pieces, and for graphs: events, Stream* lists, metrics, the pod's resources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_proto::runtime::v1::ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
    ContainerStoppedEvent as Stopped,
};
use crisp_tests::cri::{Events, container_config, refused};
use crisp_tests::node::{Node, Pod};
use crisp_tests::place::Need;
use tonic::Code;

use crate::case::Case;
use crate::limits::cgroup;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "events_tell_a_pods_life_in_order", needs: &[], images: &["busybox"], run: life },
    Case {
        name: "an_event_carries_the_pod_as_it_is_then",
        needs: &[],
        images: &["busybox"],
        run: event_statuses,
    },
    Case {
        name: "a_short_lived_container_is_started_before_it_is_stopped",
        needs: &[],
        images: &["busybox"],
        run: short_lives,
    },
    Case { name: "event_streams_end_with_the_daemon", needs: &[], images: &[], run: end_of_events },
    Case { name: "streamed_lists_are_the_lists", needs: &[], images: &["busybox"], run: streams },
    Case { name: "of_nothing_no_message_is_streamed", needs: &[], images: &[], run: empty_streams },
    Case { name: "metrics_are_as_advertised", needs: &[], images: &["busybox"], run: metrics },
    Case {
        name: "metrics_follow_the_cgroup",
        needs: &[Need::Controllers],
        images: &["busybox"],
        run: metrics_of_limits,
    },
    Case { name: "resources_of_a_pod_are_kept_and_shown", needs: &[], images: &[], run: pod_resources },
];

type Told = (String, cri::ContainerEventType);

fn next(events: &mut Events) -> Result<cri::ContainerEventResponse> {
    events.receive()?.context("the stream has ended")
}

fn told(event: &cri::ContainerEventResponse) -> Told {
    (event.container_id.clone(), event.container_event_type())
}

/// Reads as many events as `expected` has, which must be these.
fn expect(events: &mut Events, expected: &[Told]) -> Result<Vec<cri::ContainerEventResponse>> {
    let read = expected.iter().map(|_| next(events)).collect::<Result<Vec<_>>>()?;
    let seen: Vec<Told> = read.iter().map(told).collect();
    ensure!(seen == expected, "expected {expected:#?}\ngot {seen:#?}");
    Ok(read)
}

fn life(node: &mut Node) -> Result<()> {
    let cri = node.cri();
    let (mut first, mut second) = (cri.events()?, cri.events()?);
    let pod = node.run_pod("life")?;
    let short = node.launch(&pod, "short", "busybox", &["sh", "-c", "exit 3"])?;
    node.wait_for_exit(&short)?;
    let long = node.launch(&pod, "long", "busybox", &["sleep", "3600"])?;
    let bad = cri.create(&pod.id, &container_config("bad", "busybox", &["/no/such/program"]), &pod.config)?;
    ensure!(cri.start(&bad).is_err(), "a program that is not there was started");
    let unstarted = cri.create(&pod.id, &container_config("unstarted", "busybox", &["true"]), &pod.config)?;
    for _ in 0..2 {
        cri.stop(&long, 0)?;
        cri.remove(&short)?;
    }
    for _ in 0..2 {
        cri.stop_pod(&pod.id)?;
    }
    cri.remove(&long)?;
    cri.remove(&bad)?;
    cri.remove(&unstarted)?;
    cri.remove_pod(&pod.id)?;

    let of = |id: &str, kind| (id.to_owned(), kind);
    let expected = [
        of(&pod.id, Created),
        of(&pod.id, Started),
        of(&short, Created),
        of(&short, Started),
        of(&short, Stopped),
        of(&long, Created),
        of(&long, Started),
        of(&bad, Created),
        of(&bad, Stopped),
        of(&unstarted, Created),
        of(&long, Stopped),
        of(&short, Deleted),
        of(&unstarted, Stopped),
        of(&pod.id, Stopped),
        of(&long, Deleted),
        of(&bad, Deleted),
        of(&unstarted, Deleted),
        of(&pod.id, Deleted),
    ];
    let events = expect(&mut first, &expected)?;
    ensure!(events.is_sorted_by_key(|event| event.created_at), "{events:#?}");
    ensure!(expect(&mut second, &expected)? == events, "two listeners were told different things");
    Ok(())
}

fn event_statuses(node: &mut Node) -> Result<()> {
    let cri = node.cri();
    let mut events = cri.events()?;
    let pod = node.run_pod("statuses")?;
    let bystander = node.launch(&pod, "bystander", "busybox", &["sleep", "3600"])?;
    let id = node.launch(&pod, "c", "busybox", &["sh", "-c", "read _ || exit 3"])?;
    let status = node.wait_for_exit(&id)?;
    cri.remove(&id)?;
    node.end_pod(&pod)?;

    let mut seen = BTreeMap::new();
    loop {
        let event = next(&mut events)?;
        let sandbox = event.pod_sandbox_status.as_ref().context("an event without its pod")?;
        ensure!(sandbox.id == pod.id && sandbox.metadata == pod.config.metadata, "{sandbox:?}");
        let last = told(&event) == (pod.id.clone(), Deleted);
        seen.insert((event.container_id.clone(), event.container_event_type), event);
        if last {
            break;
        }
    }
    let at = |id: &str, kind: cri::ContainerEventType| -> Result<&cri::ContainerEventResponse> {
        seen.get(&(id.to_owned(), kind.into())).with_context(|| format!("no {kind:?} of {id}: {seen:#?}"))
    };
    let of = |event: &cri::ContainerEventResponse, id: &str| {
        event.containers_statuses.iter().find(|status| status.id == id).cloned()
    };
    let stopped = at(&id, Stopped)?;
    // Exactly what ContainerStatus said afterwards: the end is complete when it is told.
    ensure!(of(stopped, &id) == Some(status.clone()), "{stopped:#?}\n{status:#?}");
    ensure!((status.exit_code, status.reason.as_str()) == (3, "Error"), "{status:?}");
    let other = of(stopped, &bystander).context("the bystander is missing")?;
    ensure!(other.state() == cri::ContainerState::ContainerRunning, "{other:?}");
    ensure!(of(at(&id, Deleted)?, &id).is_none(), "removed, and still there");
    let sandbox_state = |kind| -> Result<cri::PodSandboxState> {
        Ok(at(&pod.id, kind)?.pod_sandbox_status.as_ref().context("no pod")?.state())
    };
    ensure!(sandbox_state(Started)? == cri::PodSandboxState::SandboxReady);
    ensure!(sandbox_state(Stopped)? == cri::PodSandboxState::SandboxNotready);
    Ok(())
}

/// The monitor's report of the end races its answer to the start.
fn short_lives(node: &mut Node) -> Result<()> {
    const LIVES: usize = 30;
    let mut events = node.cri().events()?;
    let pod = node.run_pod("short")?;
    expect(&mut events, &[(pod.id.clone(), Created), (pod.id.clone(), Started)])?;
    for number in 0..LIVES {
        let id = node.launch(&pod, &format!("c{number}"), "busybox", &["true"])?;
        expect(&mut events, &[(id.clone(), Created), (id.clone(), Started), (id, Stopped)])?;
    }
    node.end_pod(&pod)
}

/// A daemon that is told to end waits for its calls; this one would never end.
fn end_of_events(node: &mut Node) -> Result<()> {
    let mut events = node.cri().events()?;
    node.stop()?;
    ensure!(events.receive()?.is_none(), "an event after the end");
    node.serve()
}

fn two_pods(node: &Node) -> Result<[Pod; 2]> {
    let pods = [node.run_pod("one")?, node.run_pod("two")?];
    for pod in &pods {
        node.launch(pod, "c", "busybox", &["sleep", "3600"])?;
        node.launch(pod, "d", "busybox", &["sleep", "3600"])?;
    }
    Ok(pods)
}

fn streams(node: &mut Node) -> Result<()> {
    let pods = two_pods(node)?;
    let cri = node.cri();
    let label = [("io.kubernetes.pod.uid".to_owned(), "uid-one".to_owned())]
        .into_iter()
        .collect::<std::collections::HashMap<_, _>>();
    for (id, selector, count) in
        [("", Default::default(), 2), ("", label, 1), (pods[1].id.as_str(), Default::default(), 1)]
    {
        let filter =
            cri::PodSandboxFilter { id: id.to_owned(), label_selector: selector, ..Default::default() };
        let filter = Some(filter);
        let list = cri.list_pod_sandbox(cri::ListPodSandboxRequest { filter: filter.clone() })?.items;
        let stream = cri.stream_pod_sandboxes(cri::StreamPodSandboxesRequest { filter })?;
        ensure!(list.len() == count, "{list:?}");
        ensure!(stream.into_iter().flat_map(|message| message.pod_sandboxes).eq(list));
    }
    for (pod, count) in [("", 4), (pods[0].id.as_str(), 2)] {
        let filter = Some(cri::ContainerFilter { pod_sandbox_id: pod.to_owned(), ..Default::default() });
        let list = cri.list_containers(cri::ListContainersRequest { filter: filter.clone() })?.containers;
        let stream = cri.stream_containers(cri::StreamContainersRequest { filter })?;
        ensure!(list.len() == count, "{list:?}");
        ensure!(stream.into_iter().flat_map(|message| message.containers).eq(list));

        let filter = Some(cri::ContainerStatsFilter { pod_sandbox_id: pod.to_owned(), ..Default::default() });
        let list = cri.list_container_stats(cri::ListContainerStatsRequest { filter: filter.clone() })?.stats;
        let stream = cri.stream_container_stats(cri::StreamContainerStatsRequest { filter })?;
        let stream = stream.into_iter().flat_map(|message| message.container_stats);
        // The numbers move between the two calls; what they are of does not.
        ensure!(list.len() == count, "{list:?}");
        ensure!(stream.map(|one| one.attributes).eq(list.into_iter().map(|one| one.attributes)));
    }
    let list = cri.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default())?.stats;
    let stream = cri.stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest::default())?;
    let stream = stream.into_iter().flat_map(|message| message.pod_sandbox_stats);
    ensure!(list.len() == 2, "{list:?}");
    ensure!(stream.map(|one| one.attributes).eq(list.into_iter().map(|one| one.attributes)));
    let list = cri.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {})?.pod_metrics;
    let stream = cri.stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {})?;
    let stream = stream.into_iter().flat_map(|message| message.pod_sandbox_metrics);
    ensure!(list.len() == 2, "{list:?}");
    ensure!(stream.map(|one| one.pod_sandbox_id).eq(list.into_iter().map(|one| one.pod_sandbox_id)));
    let list = cri.list_images(cri::ListImagesRequest::default())?.images;
    let stream = cri.stream_images(cri::StreamImagesRequest::default())?;
    ensure!(!list.is_empty());
    ensure!(stream.into_iter().flat_map(|message| message.images).eq(list));
    for pod in &pods {
        node.end_pod(pod)?;
    }
    Ok(())
}

fn empty_streams(node: &mut Node) -> Result<()> {
    let cri = node.cri();
    ensure!(cri.stream_pod_sandboxes(Default::default())?.is_empty());
    ensure!(cri.stream_containers(Default::default())?.is_empty());
    ensure!(cri.stream_container_stats(Default::default())?.is_empty());
    ensure!(cri.stream_pod_sandbox_stats(Default::default())?.is_empty());
    ensure!(cri.stream_pod_sandbox_metrics(Default::default())?.is_empty());
    let image = Some(crisp_tests::cri::image("example.com/not/here:1"));
    let filter = Some(cri::ImageFilter { image });
    ensure!(cri.stream_images(cri::StreamImagesRequest { filter })?.is_empty());
    Ok(())
}

/// Label keys by metric.
fn descriptors(node: &Node) -> Result<BTreeMap<String, Vec<String>>> {
    let descriptors = node.cri().list_metric_descriptors(Default::default())?.descriptors;
    for descriptor in &descriptors {
        ensure!(!descriptor.help.is_empty() && !descriptor.label_keys.is_empty(), "{descriptor:?}");
    }
    let count = descriptors.len();
    let by_name: BTreeMap<_, _> = descriptors.into_iter().map(|one| (one.name, one.label_keys)).collect();
    ensure!(count > 0 && count == by_name.len(), "{count} descriptors, of other names {}", by_name.len());
    Ok(by_name)
}

fn metrics_of(node: &Node, pod: &Pod) -> Result<cri::PodSandboxMetrics> {
    let all = node.cri().list_pod_sandbox_metrics(Default::default())?.pod_metrics;
    all.into_iter().find(|one| one.pod_sandbox_id == pod.id).context("no metrics of the pod")
}

fn value(metrics: &[cri::Metric], name: &str) -> Result<u64> {
    let metric = metrics.iter().find(|metric| metric.name == name).with_context(|| format!("no {name}"))?;
    Ok(metric.value.as_ref().with_context(|| format!("{name} has no value"))?.value)
}

fn metrics(node: &mut Node) -> Result<()> {
    // A container that has never read or written a block has no device to count for.
    const BY_DEVICE: [&str; 5] = [
        "container_blkio_device_usage_total",
        "container_fs_reads_bytes_total",
        "container_fs_reads_total",
        "container_fs_writes_bytes_total",
        "container_fs_writes_total",
    ];
    let keys = descriptors(node)?;
    let pod = node.run_pod("graphed")?;
    let cri = node.cri();
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let created = cri.create(&pod.id, &container_config("created", "busybox", &["true"]), &pod.config)?;
    let ended = node.launch(&pod, "ended", "busybox", &["true"])?;
    node.wait_for_exit(&ended)?;

    let given = metrics_of(node, &pod)?;
    let containers: Vec<_> = given.container_metrics.iter().map(|one| one.container_id.as_str()).collect();
    ensure!(containers == [id.as_str()], "only {id} runs, not {created} and {ended}: {containers:?}");
    let own = &given.container_metrics[0].metrics;
    let status = cri.container(&id)?;
    let image = status.image.as_ref().context("no image")?.image.as_str();
    for (metrics, id, container, image) in [(own, id.as_str(), "c", image), (&given.metrics, &pod.id, "", "")]
    {
        for metric in metrics {
            let keys = keys.get(&metric.name).with_context(|| format!("not advertised: {metric:?}"))?;
            ensure!(keys.len() == metric.label_values.len() && metric.value.is_some(), "{metric:?}");
            let labels: BTreeMap<_, _> =
                keys.iter().map(String::as_str).zip(metric.label_values.iter().map(String::as_str)).collect();
            let common = ["id", "image", "namespace", "pod", "container"].map(|key| labels[key]);
            ensure!(common == [id, image, "default", "graphed", container], "{labels:?}");
        }
    }
    let names: BTreeSet<_> = own.iter().chain(&given.metrics).map(|metric| metric.name.as_str()).collect();
    let missing: Vec<_> = keys
        .keys()
        .filter(|name| !names.contains(name.as_str()) && !BY_DEVICE.contains(&name.as_str()))
        .collect();
    ensure!(missing.is_empty(), "advertised and not given: {missing:?}");

    ensure!(i64::try_from(value(own, "container_start_time_seconds")?)? == status.started_at / 1_000_000_000);
    ensure!(value(own, "container_last_seen")? >= value(own, "container_start_time_seconds")?);
    ensure!(value(own, "container_processes")? == 1, "{own:?}");
    let open = fs::read_dir(format!("/proc/{}/fd", cri.pid(&id)?))?.count();
    ensure!(usize::try_from(value(own, "container_file_descriptors")?)? == open, "{open} are open");
    ensure!(value(own, "container_fs_limit_bytes")? > 0 && value(own, "container_fs_inodes_total")? > 0);
    node.end_pod(&pod)?;
    ensure!(cri.list_pod_sandbox_metrics(Default::default())?.pod_metrics.is_empty());
    Ok(())
}

fn metrics_of_limits(node: &mut Node) -> Result<()> {
    let keys = descriptors(node)?;
    for name in ["container_memory_usage_bytes", "container_cpu_cfs_periods_total", "container_threads"] {
        ensure!(keys.contains_key(name), "{name} is not advertised: {keys:?}");
    }
    let pod = node.run_pod("limited")?;
    let mut config = container_config("c", "busybox", &["sh", "-c", "sleep 3600 & sleep 3600"]);
    config.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 20_000,
        cpu_period: 50_000,
        cpu_shares: 512,
        ..Default::default()
    });
    let id = node.launch_as(&pod, &config)?;
    // Its child may not be there yet when it has just been started.
    crisp_tests::wait::until("the second process", crisp_tests::wait::LONG, || -> Result<(), String> {
        let count = fs::read_to_string(cgroup(node, &id).map_err(|e| e.to_string())?.join("pids.current"))
            .map_err(|e| e.to_string())?;
        if count.trim() == "2" { Ok(()) } else { Err(count) }
    })?;
    let given = metrics_of(node, &pod)?;
    let own = &given.container_metrics.first().context("no container")?.metrics;
    for (name, expected) in [
        ("container_spec_memory_limit_bytes", 64 << 20),
        ("container_spec_cpu_quota", 20_000),
        ("container_spec_cpu_period", 50_000),
        ("container_spec_cpu_shares", 512),
        ("container_processes", 2),
        ("container_threads", 2),
        ("container_oom_events_total", 0),
    ] {
        ensure!(value(own, name)? == expected, "{name} is {}, not {expected}", value(own, name)?);
    }
    let limit = fs::read_to_string(cgroup(node, &id)?.join("pids.max"))?;
    let limit = limit.trim().parse().unwrap_or(0);
    ensure!(value(own, "container_threads_max")? == limit, "pids.max is {limit}");
    let used = value(own, "container_memory_usage_bytes")?;
    ensure!(used > 0 && value(own, "container_memory_max_usage_bytes")? >= used, "{own:?}");
    ensure!(value(own, "container_memory_working_set_bytes")? <= used, "{own:?}");
    node.end_pod(&pod)
}

fn pod_resources(node: &mut Node) -> Result<()> {
    let request = |id: &str, overhead: Option<i64>, resources: Option<i64>| {
        let memory =
            |bytes| cri::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
        cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_owned(),
            overhead: overhead.map(memory),
            resources: resources.map(memory),
        }
    };
    let shown = |node: &Node, id: &str| -> Result<[Option<i64>; 2]> {
        let asked = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let info = node.cri().pod_sandbox_status(asked)?.info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
        Ok(["overhead", "resources"].map(|key| info[key]["memory_limit_in_bytes"].as_i64()))
    };
    refused(
        node.cri().update_pod_sandbox_resources(request(&"0".repeat(64), Some(1), Some(1))),
        Code::NotFound,
    )?;
    let pod = node.run_pod("resized")?;
    // Where scripts look for the network namespace.
    let asked = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = node.cri().pod_sandbox_status(asked)?.info.remove("info").context("no info")?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().context("no namespaces")?;
    let network = namespaces.iter().find(|one| one["type"] == "network").context("no network namespace")?;
    ensure!(network["path"] == info["netNamespace"] && network["path"].is_string(), "{network}");
    ensure!(shown(node, &pod.id)? == [None, None]);
    node.cri().update_pod_sandbox_resources(request(&pod.id, Some(1000), Some(2000)))?;
    ensure!(shown(node, &pod.id)? == [Some(1000), Some(2000)]);
    node.cri().update_pod_sandbox_resources(request(&pod.id, None, Some(3000)))?;
    node.kill_and_restart()?;
    ensure!(shown(node, &pod.id)? == [Some(1000), Some(3000)]);
    node.end_pod(&pod)
}
