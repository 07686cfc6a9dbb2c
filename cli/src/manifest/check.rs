//! Values of the right type that cannot be meant, and references that lead nowhere. Each problem starts with the path.

use std::collections::BTreeSet;

use crisp_shim::config::nearest;

use super::{
    expand,
    model::{Amounts, Container, Pod, PodSecurityContext, SeccompProfile, Volume},
};

type Problems<'a> = &'a mut Vec<String>;

/// Largest port number.
const PORT_MAX: i64 = 65535;

/// Notes everything that is wrong with a pod whose fields could be read.
pub(super) fn pod(pod: &Pod, problems: Problems<'_>) {
    name("metadata.name", &pod.metadata.name, 253, true, problems);
    name("metadata.namespace", pod.namespace(), 63, false, problems);
    let spec = &pod.spec;
    one_of("spec.restartPolicy", spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"], problems);
    if pod.grace_seconds() < 0 {
        problems.push("spec.terminationGracePeriodSeconds: is negative".to_owned());
    }
    for (path, value) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if let Some(value) = value {
            name(path, value, 63, false, problems);
        }
    }
    if spec.share_process_namespace && spec.host_pid {
        problems.push("spec.shareProcessNamespace: cannot be together with hostPID".to_owned());
    }
    dns(pod, problems);
    pod_security(&spec.security_context, problems);
    for (index, entry) in spec.volumes.iter().enumerate() {
        volume(&format!("spec.volumes[{index}]"), entry, problems);
    }
    unique("spec.volumes", spec.volumes.iter().map(|v| v.name.as_str()), problems);
    unique("spec.containers", pod.all_containers().map(|c| c.name.as_str()), problems);
    if spec.containers.is_empty() {
        problems.push("spec.containers: a pod needs at least one".to_owned());
    }
    for (list, all) in [("initContainers", &spec.init_containers), ("containers", &spec.containers)] {
        for (index, entry) in all.iter().enumerate() {
            container(&format!("spec.{list}[{index}]"), entry, pod, problems);
        }
    }
}

/// A DNS label, or several with dots (RFC 1123).
fn name(path: &str, value: &str, most: usize, dots: bool, problems: Problems<'_>) {
    let label = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let good = if dots { value.split('.').all(label) } else { label(value) };
    if !good || value.len() > most {
        problems.push(format!(
            "{path}: {value:?} is not made of lower-case letters, digits and -, at most {most} in all"
        ));
    }
}

fn one_of(path: &str, value: Option<&str>, allowed: &[&str], problems: Problems<'_>) {
    let Some(value) = value else { return };
    if !allowed.contains(&value) {
        let hint = match nearest(value, allowed.iter().copied()) {
            Some(near) => format!("; did you mean {near}?"),
            None => format!("; it can be {}", allowed.join(", ")),
        };
        problems.push(format!("{path}: {value:?} is not possible{hint}"));
    }
}

fn unique<'a>(path: &str, names: impl Iterator<Item = &'a str>, problems: Problems<'_>) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            problems.push(format!("{path}: the name {name:?} is there twice"));
        }
    }
}

fn absolute(path: &str, value: &str, problems: Problems<'_>) {
    if !value.starts_with('/') || value.split('/').any(|part| part == "..") || value.contains('\0') {
        problems.push(format!("{path}: {value:?} is not an absolute path without .."));
    }
}

fn dns(pod: &Pod, problems: Problems<'_>) {
    let policy = pod.spec.dns_policy.as_deref();
    let policies = ["Default", "ClusterFirst", "ClusterFirstWithHostNet", "None"];
    one_of("spec.dnsPolicy", policy, &policies, problems);
    let servers = pod.spec.dns_config.as_ref().map_or(0, |config| config.nameservers.len());
    if policy == Some("None") && servers == 0 {
        problems.push("spec.dnsConfig.nameservers: dnsPolicy None needs at least one".to_owned());
    }
}

fn pod_security(context: &PodSecurityContext, problems: Problems<'_>) {
    let path = "spec.securityContext";
    id(&format!("{path}.runAsUser"), context.run_as_user, problems);
    id(&format!("{path}.runAsGroup"), context.run_as_group, problems);
    id(&format!("{path}.fsGroup"), context.fs_group, problems);
    for (index, group) in context.supplemental_groups.iter().enumerate() {
        id(&format!("{path}.supplementalGroups[{index}]"), Some(*group), problems);
    }
    seccomp(&format!("{path}.seccompProfile"), context.seccomp_profile.as_ref(), problems);
}

fn id(path: &str, value: Option<i64>, problems: Problems<'_>) {
    if value.is_some_and(|value| !(0..=i64::from(i32::MAX)).contains(&value)) {
        problems.push(format!("{path}: not a user or group id"));
    }
}

fn seccomp(path: &str, profile: Option<&SeccompProfile>, problems: Problems<'_>) {
    match profile.map(|profile| profile.kind.as_str()) {
        // kubelet takes these from a directory of its own.
        Some("Localhost") => problems.push(format!("{path}.type: \"Localhost\" is not supported")),
        kind => one_of(&format!("{path}.type"), kind, &["RuntimeDefault", "Unconfined"], problems),
    }
}

fn volume(path: &str, volume: &Volume, problems: Problems<'_>) {
    name(&format!("{path}.name"), &volume.name, 63, false, problems);
    match (&volume.empty_dir, &volume.host_path) {
        (Some(_), Some(_)) => problems.push(format!("{path}: is both emptyDir and hostPath")),
        (None, None) => {
            problems.push(format!("{path}: says nothing of its kind; emptyDir and hostPath are supported"))
        }
        (Some(empty), None) => {
            one_of(&format!("{path}.emptyDir.medium"), empty.medium.as_deref(), &["", "Memory"], problems);
            if empty.size_limit.is_some() && empty.medium.as_deref() != Some("Memory") {
                problems.push(format!("{path}.emptyDir.sizeLimit: only supported with medium Memory"));
            }
        }
        (None, Some(host)) => {
            absolute(&format!("{path}.hostPath.path"), &host.path, problems);
            let kinds = [
                "",
                "DirectoryOrCreate",
                "Directory",
                "FileOrCreate",
                "File",
                "Socket",
                "CharDevice",
                "BlockDevice",
            ];
            one_of(&format!("{path}.hostPath.type"), host.kind.as_deref(), &kinds, problems);
        }
    }
}

fn container(path: &str, container: &Container, pod: &Pod, problems: Problems<'_>) {
    name(&format!("{path}.name"), &container.name, 63, false, problems);
    let field = |name: &str| format!("{path}.{name}");
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(&field("imagePullPolicy"), container.image_pull_policy.as_deref(), &policies, problems);
    let policies = ["File", "FallbackToLogsOnError"];
    one_of(
        &field("terminationMessagePolicy"),
        container.termination_message_policy.as_deref(),
        &policies,
        problems,
    );
    if let Some(value) = &container.termination_message_path {
        absolute(&field("terminationMessagePath"), value, problems);
    }
    for (index, variable) in container.env.iter().enumerate() {
        let path = field(&format!("env[{index}]"));
        if variable.name.contains(['=', '\0']) {
            problems.push(format!("{path}.name: {:?} is no name of a variable", variable.name));
        }
        match (&variable.value, &variable.value_from) {
            (Some(_), Some(_)) => problems.push(format!("{path}: has both value and valueFrom")),
            (_, Some(source)) => {
                let version = source.field_ref.api_version.as_deref();
                one_of(&format!("{path}.valueFrom.fieldRef.apiVersion"), version, &["v1"], problems);
                if let Err(problem) = expand::check_field(&source.field_ref.field_path) {
                    problems.push(format!("{path}.valueFrom.fieldRef.fieldPath: {problem}"));
                }
            }
            _ => {}
        }
    }
    if container.stdin_once {
        // It is the end of an attach that closes the input.
        problems.push(format!("{}: not supported: nothing can attach", field("stdinOnce")));
    }
    ports(path, container, problems);
    mounts(path, container, pod, problems);
    amounts(&field("resources"), &container.resources.requests, &container.resources.limits, problems);
    security(&field("securityContext"), container, problems);
}

fn ports(path: &str, container: &Container, problems: Problems<'_>) {
    for (index, port) in container.ports.iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        for (field, number) in [("containerPort", Some(port.container_port)), ("hostPort", port.host_port)] {
            if number.is_some_and(|number| !(1..=PORT_MAX).contains(&number)) {
                problems.push(format!("{path}.{field}: not 1 to {PORT_MAX}"));
            }
        }
        if port.host_ip.is_some() && port.host_port.is_none() {
            problems.push(format!("{path}.hostIP: needs a hostPort"));
        }
        one_of(&format!("{path}.protocol"), port.protocol.as_deref(), &["TCP", "UDP", "SCTP"], problems);
    }
}

fn mounts(path: &str, container: &Container, pod: &Pod, problems: Problems<'_>) {
    let volumes: Vec<&str> = pod.spec.volumes.iter().map(|volume| volume.name.as_str()).collect();
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        absolute(&format!("{path}.mountPath"), &mount.mount_path, problems);
        let modes = ["None", "HostToContainer", "Bidirectional"];
        one_of(&format!("{path}.mountPropagation"), mount.mount_propagation.as_deref(), &modes, problems);
        if mount.mount_propagation.as_deref() == Some("Bidirectional")
            && !container.security_context.privileged
        {
            problems.push(format!("{path}.mountPropagation: Bidirectional needs a privileged container"));
        }
        if !volumes.contains(&mount.name.as_str()) {
            let hint = match nearest(&mount.name, volumes.iter().copied()) {
                Some(near) => format!("; did you mean {near}?"),
                None => String::new(),
            };
            problems.push(format!("{path}.name: the pod has no volume {:?}{hint}", mount.name));
        }
    }
    unique(
        &format!("{path}.volumeMounts"),
        container.volume_mounts.iter().map(|mount| mount.mount_path.trim_end_matches('/')),
        problems,
    );
}

fn amounts(path: &str, requests: &Amounts, limits: &Amounts, problems: Problems<'_>) {
    let pairs = [("cpu", requests.cpu, limits.cpu), ("memory", requests.memory, limits.memory)];
    for (name, request, limit) in pairs {
        if let (Some(request), Some(limit)) = (request, limit)
            && request > limit
        {
            problems.push(format!("{path}.requests.{name}: is more than the limit"));
        }
    }
}

fn security(path: &str, container: &Container, problems: Problems<'_>) {
    let context = &container.security_context;
    id(&format!("{path}.runAsUser"), context.run_as_user, problems);
    id(&format!("{path}.runAsGroup"), context.run_as_group, problems);
    one_of(&format!("{path}.procMount"), context.proc_mount.as_deref(), &["Default", "Unmasked"], problems);
    seccomp(&format!("{path}.seccompProfile"), context.seccomp_profile.as_ref(), problems);
    if context.privileged && context.allow_privilege_escalation == Some(false) {
        problems.push(format!("{path}.allowPrivilegeEscalation: cannot be false for a privileged container"));
    }
}
