//! securityContext of pods and containers as CRI has it. Pure.

use anyhow::{Result, bail};
use crisp_proto::runtime::v1 as cri;

use crate::manifest::{
    Pod,
    model::{Container, SeccompProfile},
};

/// Paths that show nothing in a container, unless procMount is Unmasked (Kubernetes' default list).
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that cannot be written in a container, unless procMount is Unmasked (Kubernetes' default list).
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Whose namespaces the pod uses.
pub(super) fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    use cri::NamespaceMode::{Container, Node, Pod};
    let spec = &pod.spec;
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (true, _) => Node,
        (_, true) => Pod,
        _ => Container,
    };
    cri::NamespaceOption {
        network: if spec.host_network { Node } else { Pod }.into(),
        pid: pid.into(),
        ipc: if spec.host_ipc { Node } else { Pod }.into(),
        ..Default::default()
    }
}

/// Security settings of the sandbox.
pub(super) fn sandbox(pod: &Pod) -> cri::LinuxSandboxSecurityContext {
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        privileged: pod.all_containers().any(|container| container.security_context.privileged),
        ..Default::default()
    }
}

/// Security settings of a container that runs `image`.
///
/// # Errors
/// runAsNonRoot cannot be kept; the words are kubelet's.
pub(super) fn container(
    pod: &Pod,
    container: &Container,
    image: &cri::Image,
) -> Result<cri::LinuxContainerSecurityContext> {
    let (own, general) = (&container.security_context, &pod.spec.security_context);
    let wanted = own.run_as_user.or(general.run_as_user);
    // As kubelet: the image's user is told by name only if it is no number; an image without one runs as root.
    let (user, username) = match (wanted, image.uid, image.username.as_str()) {
        (Some(user), _, _) => (Some(user), ""),
        (None, Some(uid), _) => (Some(uid.value), ""),
        (None, None, "") => (Some(0), ""),
        (None, None, name) => (None, name),
    };
    if own.run_as_non_root.or(general.run_as_non_root) == Some(true) {
        non_root(wanted, user, username)?;
    }
    let value = |value| cri::Int64Value { value };
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let paths =
        |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() };
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: own.capabilities.add.clone(),
            drop_capabilities: own.capabilities.drop.clone(),
            ..Default::default()
        }),
        privileged: own.privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: user.map(value),
        run_as_group: own.run_as_group.or(general.run_as_group).map(value),
        run_as_username: username.to_owned(),
        readonly_rootfs: own.read_only_root_filesystem,
        supplemental_groups: general.supplemental_groups.iter().copied().chain(general.fs_group).collect(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(own.seccomp_profile.as_ref().or(general.seccomp_profile.as_ref()))),
        ..Default::default()
    })
}

fn non_root(wanted: Option<i64>, user: Option<i64>, username: &str) -> Result<()> {
    match (wanted, user) {
        (Some(0), _) => bail!("CreateContainerConfigError: runAsUser 0 breaks runAsNonRoot"),
        (None, Some(0)) => {
            bail!("CreateContainerConfigError: runAsNonRoot is set and the image will run as root")
        }
        (_, None) => bail!(
            "CreateContainerConfigError: runAsNonRoot is set and the image's user {username:?} is no number, so it \
             cannot be told whether that is root"
        ),
        _ => Ok(()),
    }
}

/// Nothing said is Unconfined, as for a kubelet without a default profile.
fn seccomp(profile: Option<&SeccompProfile>) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType::{RuntimeDefault, Unconfined};
    let wanted = match profile.map(|profile| profile.kind.as_str()) {
        Some("RuntimeDefault") => RuntimeDefault,
        _ => Unconfined,
    };
    cri::SecurityProfile { profile_type: wanted.into(), localhost_ref: String::new() }
}

#[cfg(test)]
mod tests {
    use cri::NamespaceMode;

    use super::*;
    use crate::manifest;

    fn pod(spec: &str, context: &str) -> Pod {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n{spec}  containers:\n  - name: c\n    image: i\n    securityContext: {context}\n"
        );
        manifest::parse(&text).unwrap().remove(0)
    }

    fn converted(
        spec: &str,
        context: &str,
        image: &cri::Image,
    ) -> Result<cri::LinuxContainerSecurityContext> {
        let pod = pod(spec, context);
        container(&pod, &pod.spec.containers[0], image)
    }

    fn image(uid: Option<i64>, name: &str) -> cri::Image {
        cri::Image {
            uid: uid.map(|value| cri::Int64Value { value }),
            username: name.into(),
            ..Default::default()
        }
    }

    #[test]
    fn process_namespaces_are_the_containers_own_unless_shared() {
        let pid = |spec| namespaces(&pod(spec, "{}")).pid();
        assert_eq!(pid(""), NamespaceMode::Container);
        assert_eq!(pid("  shareProcessNamespace: true\n"), NamespaceMode::Pod);
        assert_eq!(pid("  hostPID: true\n"), NamespaceMode::Node);
        let host = namespaces(&pod("  hostNetwork: true\n  hostIPC: true\n", "{}"));
        assert_eq!((host.network(), host.ipc()), (NamespaceMode::Node, NamespaceMode::Node));
    }

    #[test]
    fn the_container_wins_over_the_pod_and_the_pod_over_the_image() {
        let user = |spec: &str, context: &str, image: &cri::Image| {
            let found = converted(spec, context, image).unwrap();
            (found.run_as_user.map(|u| u.value), found.run_as_username)
        };
        let spec = "  securityContext: {runAsUser: 5, runAsGroup: 6, fsGroup: 7, supplementalGroups: [8]}\n";
        assert_eq!(user(spec, "{runAsUser: 9}", &image(Some(1), "")), (Some(9), String::new()));
        assert_eq!(user(spec, "{}", &image(Some(1), "")), (Some(5), String::new()));
        assert_eq!(user("", "{}", &image(Some(1), "")), (Some(1), String::new()));
        assert_eq!(user("", "{}", &image(None, "www")), (None, "www".into()));
        assert_eq!(user("", "{}", &image(None, "")), (Some(0), String::new()));
        let found = converted(spec, "{}", &image(None, "")).unwrap();
        assert_eq!(found.run_as_group.map(|g| g.value), Some(6));
        assert_eq!(found.supplemental_groups, [8, 7]);
    }

    #[test]
    fn non_root_is_kept_or_refused() {
        let refused =
            |context: &str, image: &cri::Image| converted("", context, image).unwrap_err().to_string();
        assert!(refused("{runAsNonRoot: true}", &image(None, "")).contains("will run as root"));
        assert!(refused("{runAsNonRoot: true}", &image(Some(0), "")).contains("will run as root"));
        assert!(refused("{runAsNonRoot: true, runAsUser: 0}", &image(Some(5), "")).contains("runAsUser 0"));
        assert!(refused("{runAsNonRoot: true}", &image(None, "www")).contains("\"www\""));
        assert!(converted("", "{runAsNonRoot: true}", &image(Some(5), "")).is_ok());
    }

    #[test]
    fn the_rest_is_passed_on() {
        let found = converted(
            "",
            "{capabilities: {add: [NET_ADMIN], drop: [ALL]}, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, procMount: Unmasked, seccompProfile: {type: RuntimeDefault}}",
            &image(None, ""),
        )
        .unwrap();
        let capabilities = found.capabilities.unwrap();
        assert_eq!(
            (&capabilities.add_capabilities[0][..], &capabilities.drop_capabilities[0][..]),
            ("NET_ADMIN", "ALL")
        );
        assert!(found.readonly_rootfs && found.no_new_privs && found.masked_paths.is_empty());
        assert_eq!(found.seccomp.unwrap().profile_type(), cri::security_profile::ProfileType::RuntimeDefault);
        let plain = converted("", "{}", &image(None, "")).unwrap();
        assert!(!plain.no_new_privs && plain.masked_paths.len() == MASKED.len());
        assert!(sandbox(&pod("", "{privileged: true}")).privileged && !sandbox(&pod("", "{}")).privileged);
    }
}
