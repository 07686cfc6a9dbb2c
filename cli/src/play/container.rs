//! A container of a manifest as the configuration of its next run, as kubelet makes it.

use std::path::Path;

use anyhow::Result;
use crisp_proto::runtime::v1 as cri;

use super::{limits, security, volumes::Sources};
use crate::{
    manifest::{
        Pod,
        expand::{self, Facts},
        model::Container,
    },
    rm::GRACE_ANNOTATION,
    target::label,
};

/// Where a container may leave its last words when the manifest does not say.
const TERMINATION_PATH: &str = "/dev/termination-log";

/// Annotations by which kubelet knows its containers.
mod annotation {
    pub(super) const HASH: &str = "io.kubernetes.container.hash";
    pub(super) const RESTARTS: &str = "io.kubernetes.container.restartCount";
    pub(super) const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub(super) const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
}

/// What a run of a container is made of, besides the manifest.
#[derive(Debug)]
pub(super) struct Input<'a> {
    pub(super) pod: &'a Pod,
    pub(super) facts: &'a Facts,
    pub(super) sources: &'a Sources,
    pub(super) image: &'a cri::Image,
    pub(super) hosts: &'a Path,
    pub(super) termination: &'a Path,
    /// How many runs there were before.
    pub(super) attempt: u32,
    /// Memory of the host, bytes.
    pub(super) memory: i64,
}

/// The configuration for CreateContainer.
///
/// # Errors
/// runAsNonRoot cannot be kept.
pub(super) fn config(container: &Container, input: &Input<'_>) -> Result<cri::ContainerConfig> {
    let env = environment(container, input);
    let lookup =
        |name: &str| env.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    let expanded = |list: &[String]| list.iter().map(|text| expand::variables(text, lookup)).collect();
    let text = |text: &str| text.to_owned();
    let labels = [
        (label::CONTAINER_NAME, container.name.as_str()),
        (label::POD_NAME, &input.pod.metadata.name),
        (label::POD_NAMESPACE, input.pod.namespace()),
        (label::POD_UID, &input.facts.uid),
    ];
    let annotations = [
        (annotation::HASH, format!("{:x}", hash(container))),
        (annotation::RESTARTS, input.attempt.to_string()),
        (annotation::TERMINATION_PATH, text(termination_path(container))),
        (
            annotation::TERMINATION_POLICY,
            text(container.termination_message_policy.as_deref().unwrap_or("File")),
        ),
        (GRACE_ANNOTATION, input.pod.grace_seconds().to_string()),
    ];
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: input.attempt }),
        image: Some(cri::ImageSpec {
            image: input.image.id.clone(),
            user_specified_image: container.image.clone(),
            ..Default::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: mounts(container, input),
        labels: labels.map(|(key, value)| (text(key), text(value))).into(),
        annotations: annotations.map(|(key, value)| (text(key), value)).into(),
        log_path: format!("{}/{}.log", container.name, input.attempt),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(limits::resources(input.pod, container, input.memory)),
            security_context: Some(security::container(input.pod, container, input.image)?),
        }),
        envs: env.into_iter().map(|(key, value)| cri::KeyValue { key, value: value.into_bytes() }).collect(),
        ..Default::default()
    })
}

/// Variables in their order; each may use those before it.
fn environment(container: &Container, input: &Input<'_>) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    for variable in &container.env {
        let value = match &variable.value_from {
            Some(source) => expand::field(&source.field_ref.field_path, input.pod, input.facts),
            None => expand::variables(variable.value.as_deref().unwrap_or_default(), |name| {
                env.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value.clone())
            }),
        };
        env.push((variable.name.clone(), value));
    }
    env
}

fn termination_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().unwrap_or(TERMINATION_PATH)
}

fn mounts(container: &Container, input: &Input<'_>) -> Vec<cri::Mount> {
    let mut mounts: Vec<cri::Mount> = container
        .volume_mounts
        .iter()
        .filter_map(|mount| {
            let propagation = match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
                Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
                _ => cri::MountPropagation::PropagationPrivate,
            };
            // The manifest's check has made sure that the volume is there.
            let source = input.sources.get(&mount.name)?;
            Some(cri::Mount {
                container_path: mount.mount_path.clone(),
                host_path: source.display().to_string(),
                readonly: mount.read_only,
                propagation: propagation.into(),
                ..Default::default()
            })
        })
        .collect();
    for (target, source) in [("/etc/hosts", input.hosts), (termination_path(container), input.termination)] {
        // A volume of the manifest at the same place wins, as for kubelet.
        if !mounts.iter().any(|mount| mount.container_path.trim_end_matches('/') == target) {
            mounts.push(cri::Mount {
                container_path: target.to_owned(),
                host_path: source.display().to_string(),
                ..Default::default()
            });
        }
    }
    mounts
}

/// FNV-1a of the container's definition: tells whether two runs are of the same one.
fn hash(container: &Container) -> u32 {
    format!("{container:?}")
        .bytes()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn converted(text: &str) -> cri::ContainerConfig {
        let pod = manifest::parse(text).unwrap().remove(0);
        let facts = Facts { uid: "u".into(), node_name: "n".into(), pod_ips: vec!["10.0.0.2".into()] };
        let sources =
            pod.spec.volumes.iter().map(|v| (v.name.clone(), format!("/vol/{}", v.name).into())).collect();
        let input = Input {
            pod: &pod,
            facts: &facts,
            sources: &sources,
            image: &cri::Image { id: "sha256:1".into(), ..Default::default() },
            hosts: Path::new("/f/etc-hosts"),
            termination: Path::new("/f/termination/c/2"),
            attempt: 2,
            memory: 1 << 30,
        };
        config(&pod.spec.containers[0], &input).unwrap()
    }

    const HEAD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: ns}\nspec:\n  terminationGracePeriodSeconds: 5\n  volumes: [{name: v, emptyDir: {}}, {name: h, hostPath: {path: /h}}]\n  containers:\n  - name: c\n    image: busybox\n";

    #[test]
    fn commands_and_values_are_expanded() {
        let config = converted(&format!(
            "{HEAD}    command: [\"echo\", \"$(B) $(LATER) $$(A) $(date)\"]\n    args: [\"$(IP)\"]\n    env:\n    - {{name: A, value: one}}\n    - {{name: B, value: \"$(A)-$(LATER)\"}}\n    - {{name: LATER, value: two}}\n    - {{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}\n    - {{name: EMPTY}}\n"
        ));
        assert_eq!(config.command, ["echo", "one-$(LATER) two $(A) $(date)"]);
        assert_eq!(config.args, ["10.0.0.2"]);
        let env: Vec<_> =
            config.envs.iter().map(|e| format!("{}={}", e.key, String::from_utf8_lossy(&e.value))).collect();
        assert_eq!(env, ["A=one", "B=one-$(LATER)", "LATER=two", "IP=10.0.0.2", "EMPTY="]);
    }

    #[test]
    fn volumes_hosts_and_last_words_are_mounted() {
        let config = converted(&format!(
            "{HEAD}    volumeMounts: [{{name: v, mountPath: /data, readOnly: true}}, {{name: h, mountPath: /etc/hosts, mountPropagation: HostToContainer}}]\n"
        ));
        let shown: Vec<_> = config
            .mounts
            .iter()
            .map(|m| format!("{} {} {} {}", m.container_path, m.host_path, m.readonly, m.propagation))
            .collect();
        assert_eq!(
            shown,
            [
                "/data /vol/v true 0",
                "/etc/hosts /vol/h false 1",
                "/dev/termination-log /f/termination/c/2 false 0",
            ]
        );
    }

    #[test]
    fn a_run_carries_kubelets_marks() {
        let config = converted(HEAD);
        assert_eq!(config.metadata, Some(cri::ContainerMetadata { name: "c".into(), attempt: 2 }));
        assert_eq!(config.log_path, "c/2.log");
        assert_eq!(config.labels["io.kubernetes.container.name"], "c");
        assert_eq!(config.labels["io.kubernetes.pod.namespace"], "ns");
        assert_eq!(config.annotations["io.kubernetes.container.restartCount"], "2");
        assert_eq!(config.annotations["io.kubernetes.pod.terminationGracePeriod"], "5");
        assert_eq!(
            config.annotations["io.kubernetes.container.terminationMessagePath"],
            "/dev/termination-log"
        );
        let image = config.image.unwrap();
        assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:1", "busybox"));
    }
}
