//! Ids, names and references that are no such thing: looked up, never made a path of.

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{Cri, Reply, container_config, image, refused};
use crisp_tests::node::Node;
use crisp_tests::untouched;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "c01_ids_are_looked_up_and_never_joined", needs: &[], images: &["busybox"], run: ids },
    Case { name: "c01_names_are_refused_or_only_names", needs: &[], images: &["busybox"], run: names },
    Case { name: "c01_image_references_are_parsed", needs: &[], images: &["busybox"], run: references },
];

/// What no object is called.
fn bad_ids() -> Vec<String> {
    let short = ["../../x", "/", "..", ".", "a/b", "\0", "a\0b", "\n", "%2e%2e", "é", "*", "sandbox.json"];
    let long =
        ["0".repeat(64), "f".repeat(65), "a".repeat(1 << 20), "\u{fc}".repeat(1 << 19), "../".repeat(1000)];
    short.iter().map(ToString::to_string).chain(long).collect()
}

type Call = (&'static str, fn(&Cri, String) -> Reply<()>);

/// Every call that takes an id and needs what it names.
const NEEDING: &[Call] = &[
    ("PodSandboxStatus", |cri, id| cri.pod(&id).map(drop)),
    ("ContainerStatus", |cri, id| cri.container(&id).map(drop)),
    ("StartContainer", |cri, id| cri.start(&id)),
    ("ExecSync", |cri, id| cri.exec(&id, &["true"]).map(drop)),
    ("CreateContainer", |cri, id| {
        let config = container_config("c", "busybox", &["true"]);
        cri.create(&id, &config, &cri::PodSandboxConfig::default()).map(drop)
    }),
    ("ReopenContainerLog", |cri, container_id| {
        cri.reopen_container_log(cri::ReopenContainerLogRequest { container_id }).map(drop)
    }),
    ("UpdateContainerResources", |cri, container_id| {
        let request = cri::UpdateContainerResourcesRequest {
            container_id,
            linux: Some(cri::LinuxContainerResources::default()),
            ..Default::default()
        };
        cri.update_container_resources(request).map(drop)
    }),
    ("UpdatePodSandboxResources", |cri, pod_sandbox_id| {
        let request = cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id, ..Default::default() };
        cri.update_pod_sandbox_resources(request).map(drop)
    }),
    ("ContainerStats", |cri, container_id| {
        cri.container_stats(cri::ContainerStatsRequest { container_id }).map(drop)
    }),
    ("PodSandboxStats", |cri, pod_sandbox_id| {
        cri.pod_sandbox_stats(cri::PodSandboxStatsRequest { pod_sandbox_id }).map(drop)
    }),
];

/// Every call that is done when what it names is not there.
const ENDING: &[Call] = &[
    ("StopContainer", |cri, id| cri.stop(&id, 0)),
    ("RemoveContainer", |cri, id| cri.remove(&id)),
    ("StopPodSandbox", |cri, id| cri.stop_pod(&id)),
    ("RemovePodSandbox", |cri, id| cri.remove_pod(&id)),
];

fn ids(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let cri = node.cri();
        for id in bad_ids().into_iter().chain([canary.text(""), canary.text("secret")]) {
            let shown: String = id.chars().take(40).collect();
            for (name, call) in NEEDING {
                let message = refused(call(cri, id.clone()), Code::NotFound)
                    .with_context(|| format!("{name} of {shown:?}"))?;
                ensure!(message.len() < 16 << 10, "{name}: a message of {} bytes", message.len());
            }
            for (name, call) in ENDING {
                call(cri, id.clone()).with_context(|| format!("{name} of {shown:?}"))?;
            }
        }
        for (name, call) in NEEDING.iter().chain(ENDING) {
            refused(call(cri, String::new()), Code::InvalidArgument)
                .with_context(|| format!("{name} of an empty id"))?;
        }
        // An id of the other kind is none of this kind.
        let pod = node.run_pod("kinds")?;
        let id = cri.create(&pod.id, &container_config("c", "busybox", &["true"]), &pod.config)?;
        refused(cri.container(&pod.id), Code::NotFound)?;
        refused(cri.pod(&id), Code::NotFound)?;
        cri.remove(&pod.id)?;
        cri.remove_pod(&id)?;
        ensure!(cri.pod(&pod.id)?.state() == cri::PodSandboxState::SandboxReady);
        node.end_pod(&pod)
    })
}

fn names(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let long = "n".repeat(5000);
        let refusable = ["", "a\nb", "a\0b", "\u{7f}", long.as_str()];
        let harmless = ["../../../etc", "/", "..", ".", "a/b", "a_b", "'; true", "ünï"];
        for field in ["name", "namespace", "uid"] {
            let with = |value: &str| {
                let mut config = node.pod_config("names");
                let metadata = config.metadata.get_or_insert_default();
                match field {
                    "name" => metadata.name = value.to_owned(),
                    "namespace" => metadata.namespace = value.to_owned(),
                    _ => metadata.uid = value.to_owned(),
                }
                config
            };
            for value in refusable {
                let message = refused(node.cri().run_pod(&with(value)), Code::InvalidArgument)?;
                ensure!(message.contains(&format!("metadata.{field}")), "{message}");
            }
            for value in harmless {
                let pod = node.run_pod_as(with(value))?;
                ensure!(node.cri().pod(&pod.id)?.metadata == pod.config.metadata);
                node.end_pod(&pod)?;
            }
        }
        let pod = node.run_pod("names")?;
        for value in refusable {
            let config = container_config(value, "busybox", &["true"]);
            let config = cri::ContainerConfig { log_path: "c.log".to_owned(), ..config };
            let reply = node.cri().create(&pod.id, &config, &pod.config);
            let message = refused(reply, Code::InvalidArgument)?;
            ensure!(message.contains("metadata.name"), "{message}");
        }
        for (at, value) in harmless.iter().enumerate() {
            let config = container_config(value, "busybox", &["true"]);
            let config = cri::ContainerConfig { log_path: format!("{at}.log"), ..config };
            let id = node.launch_as(&pod, &config)?;
            ensure!(node.wait_for_exit(&id)?.exit_code == 0);
        }
        // Two names that look alike once they are joined are two names.
        let mut one = node.pod_config("joined");
        one.metadata = Some(metadata("a_b", "c"));
        let mut other = one.clone();
        other.metadata = Some(metadata("a", "b_c"));
        let (one, other) = (node.run_pod_as(one)?, node.run_pod_as(other)?);
        ensure!(one.id != other.id, "two sandboxes are taken for one");
        node.end_pod(&one)?;
        node.end_pod(&other)?;
        node.end_pod(&pod)
    })
}

fn metadata(name: &str, namespace: &str) -> cri::PodSandboxMetadata {
    cri::PodSandboxMetadata {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        uid: "u".to_owned(),
        attempt: 0,
    }
}

fn references(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("references")?;
        let images = node.cri().list_images(cri::ListImagesRequest::default())?.images.len();
        for name in
            bad_ids().into_iter().chain([canary.text(""), "sha256:../x".to_owned(), "A/B:c d".to_owned()])
        {
            let shown: String = name.chars().take(40).collect();
            let create = node.cri().create(&pod.id, &container_config("c", &name, &["true"]), &pod.config);
            ensure!(
                create.is_err_and(|status| matches!(
                    status.code(),
                    Code::NotFound | Code::InvalidArgument | Code::Unknown
                )),
                "created from {shown:?}"
            );
            // No such image, or no reference: either is an answer.
            let request = cri::ImageStatusRequest { image: Some(image(&name)), verbose: true };
            if let Ok(reply) = node.cri().image_status(request) {
                ensure!(reply.image.is_none(), "{shown:?} is an image");
            }
            let _ = node.cri().remove_image(cri::RemoveImageRequest { image: Some(image(&name)) });
        }
        for name in ["../../x", "/", "..", "a\0b", "\n", "UPPER", "a b", "a@sha256:short", "a:b:c"] {
            refused(node.cri().pull(name), Code::InvalidArgument)?;
        }
        let now = node.cri().list_images(cri::ListImagesRequest::default())?.images.len();
        ensure!(now == images, "{images} images, then {now}");
        node.end_pod(&pod)
    })
}
