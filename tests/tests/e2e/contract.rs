//! What every CRI client relies on: ids, names, idempotence, filters, codes.

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, image, refused, together};
use crisp_tests::node::Node;
use crisp_tests::place;
use tonic::Code;

use crate::case::Case;

const UNKNOWN: &str = "7c1bd4ce-0a5c-4a1e-8e7a-3a1a0c6f0e11";

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "version_status_and_config_answer",
        needs: &[],
        images: &[],
        run: version_status_and_config,
    },
    Case { name: "stop_and_remove_are_idempotent", needs: &[], images: &["busybox"], run: idempotence },
    Case { name: "unknown_ids_are_not_found", needs: &[], images: &[], run: unknown_ids },
    Case { name: "an_empty_id_is_refused", needs: &[], images: &[], run: empty_ids },
    Case { name: "the_same_name_gives_the_same_id", needs: &[], images: &["busybox"], run: same_name },
    Case { name: "requests_at_the_same_time_agree", needs: &[], images: &["busybox"], run: at_the_same_time },
    Case { name: "a_unique_prefix_of_an_id_is_enough", needs: &[], images: &["busybox"], run: prefixes },
    Case { name: "list_filters_are_anded", needs: &[], images: &["busybox"], run: filters },
    Case {
        name: "calls_in_the_wrong_state_are_refused",
        needs: &[],
        images: &["busybox"],
        run: wrong_states,
    },
    Case { name: "unknown_modes_are_no_defaults", needs: &[], images: &["busybox"], run: unknown_modes },
    Case { name: "what_is_not_there_yet_is_unimplemented", needs: &[], images: &[], run: unimplemented },
    Case { name: "images_are_one_object_under_all_names", needs: &[], images: &["busybox"], run: images },
    Case {
        name: "labels_and_annotations_come_back_unchanged",
        needs: &[],
        images: &["busybox"],
        run: labels,
    },
];

fn version_status_and_config(node: &mut Node) -> Result<()> {
    let version = node.cri().version(cri::VersionRequest::default())?;
    ensure!(version.runtime_name == "crisp" && version.runtime_api_version == "v1", "{version:?}");
    ensure!(!version.version.is_empty() && !version.runtime_version.is_empty(), "{version:?}");

    let reply = node.cri().status(cri::StatusRequest { verbose: true })?;
    let conditions = reply.status.context("no status")?.conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|c| c.r#type == kind).with_context(|| format!("no {kind}"))?;
        ensure!(condition.status, "{condition:?}");
    }
    ensure!(
        reply.runtime_handlers.iter().any(|h| h.name.is_empty()),
        "no default handler: {:?}",
        reply.runtime_handlers
    );
    ensure!(!reply.info.is_empty(), "a verbose status without info");

    let driver =
        node.cri().runtime_config(cri::RuntimeConfigRequest::default())?.linux.context("no linux part")?;
    let expected = match place::under_systemd() {
        true => cri::CgroupDriver::Systemd,
        false => cri::CgroupDriver::Cgroupfs,
    };
    ensure!(driver.cgroup_driver() == expected, "{driver:?}");
    node.cri().update_runtime_config(cri::UpdateRuntimeConfigRequest::default())?;
    node.cri().image_fs_info(cri::ImageFsInfoRequest::default())?;
    Ok(())
}

fn idempotence(node: &mut Node) -> Result<()> {
    let cri = node.cri();
    for id in [UNKNOWN, &"0".repeat(64)] {
        cri.stop(id, 0)?;
        cri.remove(id)?;
        cri.stop_pod(id)?;
        cri.remove_pod(id)?;
    }
    let pod = node.run_pod("twice")?;
    let container = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    for _ in 0..2 {
        cri.stop(&container, 0)?;
    }
    for _ in 0..2 {
        cri.remove(&container)?;
    }
    for _ in 0..2 {
        cri.stop_pod(&pod.id)?;
        ensure!(cri.pod(&pod.id)?.state() == cri::PodSandboxState::SandboxNotready);
    }
    for _ in 0..2 {
        cri.remove_pod(&pod.id)?;
    }
    refused(cri.pod(&pod.id), Code::NotFound)?;

    // Remove alone does it all, also for what runs.
    let pod = node.run_pod("once")?;
    node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    cri.remove_pod(&pod.id)?;
    Ok(())
}

fn unknown_ids(node: &mut Node) -> Result<()> {
    let cri = node.cri();
    let id = || UNKNOWN.to_owned();
    let messages = [
        refused(cri.container(UNKNOWN), Code::NotFound)?,
        refused(cri.pod(UNKNOWN), Code::NotFound)?,
        refused(cri.start(UNKNOWN), Code::NotFound)?,
        refused(cri.exec(UNKNOWN, &["true"]), Code::NotFound)?,
        refused(cri.container_stats(cri::ContainerStatsRequest { container_id: id() }), Code::NotFound)?,
        refused(cri.pod_sandbox_stats(cri::PodSandboxStatsRequest { pod_sandbox_id: id() }), Code::NotFound)?,
        refused(
            cri.reopen_container_log(cri::ReopenContainerLogRequest { container_id: id() }),
            Code::NotFound,
        )?,
        refused(
            cri.update_container_resources(cri::UpdateContainerResourcesRequest {
                container_id: id(),
                linux: Some(cri::LinuxContainerResources::default()),
                ..Default::default()
            }),
            Code::NotFound,
        )?,
    ];
    for message in messages {
        ensure!(message.contains(UNKNOWN), "the message does not name the id: {message}");
    }
    ensure!(cri.image_id("no-such-image")?.is_none());
    cri.remove_image(cri::RemoveImageRequest { image: Some(image("no-such-image")) })?;
    Ok(())
}

fn empty_ids(node: &mut Node) -> Result<()> {
    let cri = node.cri();
    for reply in [cri.stop("", 0), cri.remove(""), cri.stop_pod(""), cri.remove_pod(""), cri.start("")] {
        ensure!(reply.is_err(), "an empty id was accepted");
    }
    ensure!(cri.container("").is_err() && cri.pod("").is_err(), "an empty id was accepted");
    Ok(())
}

fn same_name(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("same")?;
    ensure!(node.cri().run_pod(&pod.config)? == pod.id, "a second sandbox of the same name");
    let config = container_config("c", "busybox", &["sleep", "3600"]);
    let first = node.cri().create(&pod.id, &config, &pod.config)?;
    ensure!(
        node.cri().create(&pod.id, &config, &pod.config)? == first,
        "a second container of the same name"
    );
    ensure!(node.cri().pods()?.len() == 1 && node.cri().containers()?.len() == 1);

    // The next attempt is another object.
    let mut again = pod.config.clone();
    again.metadata.as_mut().context("metadata")?.attempt = 1;
    let second = node.run_pod_as(again)?;
    ensure!(second.id != pod.id);
    node.end_pod(&second)?;
    node.end_pod(&pod)
}

fn at_the_same_time(node: &mut Node) -> Result<()> {
    for round in 0..5 {
        let config = node.pod_config(&format!("same-time-{round}"));
        let pod = together(node.cri(), |cri| cri.run_pod(&config))?;
        let command = ["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"];
        let container = container_config("c", "busybox", &command);
        let id = together(node.cri(), |cri| cri.create(&pod, &container, &config))?;
        node.cri().start(&id)?;
        together(node.cri(), |cri| cri.exec(&id, &["echo", "x"]))?;
        together(node.cri(), |cri| cri.stop(&id, 600))?;
        together(node.cri(), |cri| cri.remove(&id))?;
        together(node.cri(), |cri| cri.stop_pod(&pod))?;
        together(node.cri(), |cri| cri.remove_pod(&pod))?;
        ensure!(node.cri().pods()?.is_empty() && node.cri().containers()?.is_empty());
    }
    // All of it at once on one object: whoever comes first, nothing is left and nobody gets an error.
    let pod = node.run_pod("all-at-once")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    std::thread::scope(|scope| {
        let calls = [
            scope.spawn(|| node.cri().stop(&id, 30)),
            scope.spawn(|| node.cri().stop(&id, 0)),
            scope.spawn(|| node.cri().remove(&id)),
            scope.spawn(|| node.cri().stop_pod(&pod.id)),
            scope.spawn(|| node.cri().remove_pod(&pod.id)),
        ];
        for call in calls {
            call.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(())
    })
}

fn prefixes(node: &mut Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.run_pod("prefix")?;
    ensure!(cri.pod(&pod.id[..12])?.id == pod.id);
    // With 17 ids, two begin with the same hex digit.
    let mut ids: Vec<String> = Vec::new();
    let shared = loop {
        let name = format!("c{}", ids.len());
        let id = cri.create(&pod.id[..20], &container_config(&name, "busybox", &["true"]), &pod.config)?;
        if let Some(other) = ids.iter().find(|other| other[..1] == id[..1]) {
            break other[..1].to_owned();
        }
        ids.push(id);
    };
    ensure!(cri.container(&ids[0][..16])?.id == ids[0]);
    let message = cri.container(&shared).err().context("an ambiguous prefix was accepted")?;
    ensure!(message.code() != Code::NotFound, "an ambiguous prefix is not an unknown one: {message:?}");
    node.end_pod(&pod)
}

fn filters(node: &mut Node) -> Result<()> {
    let first = node.run_pod("first")?;
    let second = node.run_pod("second")?;
    let running = node.launch(&first, "running", "busybox", &["sleep", "3600"])?;
    let ended = node.launch(&first, "ended", "busybox", &["true"])?;
    let other = node.launch(&second, "running", "busybox", &["sleep", "3600"])?;
    node.wait_for_exit(&ended)?;
    node.cri().stop_pod(&second.id)?;

    let pods = |filter: cri::PodSandboxFilter| -> Result<Vec<String>> {
        let reply = node.cri().list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) })?;
        Ok(reply.items.into_iter().map(|pod| pod.id).collect())
    };
    let ready = Some(cri::PodSandboxStateValue { state: cri::PodSandboxState::SandboxReady.into() });
    let named = |name: &str| [("io.kubernetes.pod.name".to_owned(), name.to_owned())].into_iter().collect();
    ensure!(pods(cri::PodSandboxFilter::default())?.len() == 2);
    ensure!(pods(cri::PodSandboxFilter { state: ready, ..Default::default() })? == [first.id.as_str()]);
    ensure!(
        pods(cri::PodSandboxFilter { id: second.id[..9].to_owned(), ..Default::default() })?
            == [second.id.as_str()]
    );
    ensure!(
        pods(cri::PodSandboxFilter { label_selector: named("second"), state: ready, ..Default::default() })?
            .is_empty()
    );
    ensure!(pods(cri::PodSandboxFilter { id: UNKNOWN.to_owned(), ..Default::default() })?.is_empty());

    let containers = |filter: cri::ContainerFilter| -> Result<Vec<String>> {
        let reply = node.cri().list_containers(cri::ListContainersRequest { filter: Some(filter) })?;
        Ok(reply.containers.into_iter().map(|container| container.id).collect())
    };
    let exited = Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerExited.into() });
    let of_first = cri::ContainerFilter { pod_sandbox_id: first.id.clone(), ..Default::default() };
    ensure!(containers(of_first.clone())?.len() == 2);
    ensure!(containers(cri::ContainerFilter { state: exited, ..of_first.clone() })? == [ended]);
    ensure!(
        containers(cri::ContainerFilter { id: running[..10].to_owned(), ..Default::default() })?
            == [running.as_str()]
    );
    ensure!(containers(cri::ContainerFilter { id: other, ..of_first })?.is_empty());
    let labelled = [("io.kubernetes.container.name".to_owned(), "running".to_owned())].into_iter().collect();
    ensure!(containers(cri::ContainerFilter { label_selector: labelled, ..Default::default() })?.len() == 2);
    node.end_pod(&second)?;
    node.end_pod(&first)
}

fn wrong_states(node: &mut Node) -> Result<()> {
    let cri = node.cri();
    let pod = node.run_pod("states")?;
    let config = container_config("c", "busybox", &["sleep", "3600"]);
    let id = cri.create(&pod.id, &config, &pod.config)?;
    ensure!(cri.container(&id)?.state() == cri::ContainerState::ContainerCreated);
    ensure!(cri.exec(&id, &["true"]).is_err(), "exec in a container that was never started");
    let reopen = cri::ReopenContainerLogRequest { container_id: id.clone() };
    ensure!(cri.reopen_container_log(reopen).is_err(), "reopened the log of a container that does not run");
    cri.start(&id)?;
    ensure!(cri.start(&id).is_err(), "started twice");
    cri.stop(&id, 0)?;
    ensure!(cri.start(&id).is_err(), "started after its end");
    ensure!(cri.exec(&id, &["true"]).is_err(), "exec in a container that has ended");
    cri.stop_pod(&pod.id)?;
    let late = cri.create(&pod.id, &container_config("late", "busybox", &["true"]), &pod.config);
    ensure!(late.is_err(), "created a container in a stopped sandbox");
    node.end_pod(&pod)
}

/// A number that this CRI has no name for, and a name in the wrong place, are refused with the field; nothing is made.
fn unknown_modes(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("modes")?;
    let target = i32::from(cri::NamespaceMode::Target);
    for (field, network, ipc, pid, policy) in [
        ("namespace_options.network", target, 0, 0, 0),
        ("namespace_options.network", 9, 0, 0, 0),
        ("namespace_options.ipc", 0, target, 0, 0),
        ("namespace_options.pid", 0, 0, 9, 0),
        ("supplemental_groups_policy", 0, 0, 0, 7),
    ] {
        let mut config = container_config("c", "busybox", &["true"]);
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options = Some(cri::NamespaceOption { network, ipc, pid, ..Default::default() });
        security.supplemental_groups_policy = policy;
        let said = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        ensure!(said.contains(field), "{field}: {said}");
    }
    let mut config = container_config("c", "busybox", &["true"]);
    config.image.get_or_insert_default().runtime_handler = "kata".to_owned();
    let said = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    ensure!(said.contains("image.runtime_handler \"kata\""), "{said}");
    ensure!(node.cri().containers()?.iter().all(|one| one.pod_sandbox_id != pod.id), "left behind");
    node.end_pod(&pod)
}

fn unimplemented(node: &mut Node) -> Result<()> {
    let request = cri::CheckpointContainerRequest { container_id: UNKNOWN.to_owned(), ..Default::default() };
    refused(node.cri().checkpoint_container(request), Code::Unimplemented)?;
    Ok(())
}

fn images(node: &mut Node) -> Result<()> {
    let status = |name: &str| -> Result<cri::Image> {
        let request = cri::ImageStatusRequest { image: Some(image(name)), verbose: false };
        node.cri().image_status(request)?.image.with_context(|| format!("no image {name}"))
    };
    let by_name = status("busybox")?;
    ensure!(by_name.id.starts_with("sha256:") && by_name.id.len() == 71 && by_name.size > 0, "{by_name:?}");
    ensure!(by_name.repo_tags.iter().any(|tag| tag == "docker.io/library/busybox:latest"), "{by_name:?}");
    let hex = by_name.id.trim_start_matches("sha256:");
    for name in ["busybox:latest", "docker.io/library/busybox", &by_name.id, hex, &hex[..12]] {
        ensure!(status(name)? == by_name, "{name} is another image");
    }
    let listed = node.cri().list_images(cri::ListImagesRequest::default())?.images;
    ensure!(listed.iter().filter(|image| image.id == by_name.id).count() == 1, "{listed:?}");
    let filter = Some(cri::ImageFilter { image: Some(image("busybox")) });
    ensure!(node.cri().list_images(cri::ListImagesRequest { filter })?.images == [by_name]);
    let filter = Some(cri::ImageFilter { image: Some(image("no-such-image")) });
    ensure!(node.cri().list_images(cri::ListImagesRequest { filter })?.images.is_empty());
    Ok(())
}

fn labels(node: &mut Node) -> Result<()> {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mut config = node.pod_config("labels");
    config.labels.extend([pair("a/b.c", "v"), pair("empty", "")]);
    config.annotations.extend([pair("note", "more than\none line, ünïcode")]);
    let pod = node.run_pod_as(config)?;
    let mut config = container_config("c", "busybox", &["true"]);
    config.labels.extend([pair("x", "y")]);
    config.annotations.extend([pair("z", "  spaces  ")]);
    let id = node.cri().create(&pod.id, &config, &pod.config)?;

    let status = node.cri().pod(&pod.id)?;
    ensure!(
        (&status.labels, &status.annotations) == (&pod.config.labels, &pod.config.annotations),
        "{status:?}"
    );
    ensure!(status.metadata == pod.config.metadata, "{status:?}");
    let listed = node.cri().pods()?;
    ensure!(
        listed[0].labels == pod.config.labels && listed[0].annotations == pod.config.annotations,
        "{listed:?}"
    );
    let status = node.cri().container(&id)?;
    ensure!((&status.labels, &status.annotations) == (&config.labels, &config.annotations), "{status:?}");
    let listed = node.cri().containers()?;
    ensure!(listed[0].labels == config.labels && listed[0].annotations == config.annotations, "{listed:?}");
    ensure!(listed[0].pod_sandbox_id == pod.id && listed[0].metadata == config.metadata, "{listed:?}");
    node.end_pod(&pod)
}
