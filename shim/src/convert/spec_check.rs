//! What a container request may ask for, checked before anything is made: bad input is refused at Create.

use crisp_proto::runtime::v1 as cri;

use super::{sandbox::check_absolute, spec::security, spec_devices, spec_mount_check};
use crate::error::RequestError;

/// Longest name of a container, in bytes: as for a sandbox, far more than Kubernetes allows.
const NAME_BYTES: usize = 1024;

/// Which PID namespace the container lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidMode {
    /// Shared by the pod's containers; CRI's zero value.
    Pod,
    /// Its own.
    Container,
    /// The host's.
    Host,
    /// That of the container `target_id`.
    Target,
}

/// Checks a container request against its sandbox.
///
/// # Errors
/// `Invalid` or `Unimplemented`, naming the field.
pub fn check(
    config: &cri::ContainerConfig,
    sandbox: &cri::PodSandboxConfig,
) -> Result<PidMode, RequestError> {
    let Some(metadata) = &config.metadata else {
        return Err(RequestError::invalid("container config: metadata is missing"));
    };
    let name = &metadata.name;
    if name.is_empty() || name.len() > NAME_BYTES || name.chars().any(char::is_control) {
        return Err(RequestError::invalid(
            "container config: metadata.name is empty, too long or has control characters",
        ));
    }
    super::sandbox::check_notes(&config.labels, &config.annotations)?;
    if config.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return Err(RequestError::invalid("container config: image.image is empty"));
    }
    spec_devices::check(&config.devices)?;
    check_log_path(&config.log_path)?;
    let security = security(config);
    check_security(&security, sandbox)?;
    spec_mount_check::check(&config.mounts, security.privileged)?;
    pid_mode(&security, sandbox)
}

/// Relative, and staying below the sandbox's log directory (CVE-2026-53489's class: a log path that leaves it).
fn check_log_path(path: &str) -> Result<(), RequestError> {
    if path.len() >= 4096 {
        return Err(RequestError::invalid(format!(
            "log_path: {} bytes are more than a path has",
            path.len()
        )));
    }
    let bad = path.starts_with('/')
        || path.split('/').any(|part| part == "..")
        || path.chars().any(char::is_control);
    if bad {
        return Err(RequestError::invalid(format!("log_path {path:?} leaves the sandbox's log_directory")));
    }
    Ok(())
}

fn check_security(
    security: &cri::LinuxContainerSecurityContext,
    sandbox: &cri::PodSandboxConfig,
) -> Result<(), RequestError> {
    let field = |name: &str| format!("linux.security_context.{name}");
    let pod_security = sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if security.privileged && !pod_security.is_some_and(|pod| pod.privileged) {
        return Err(RequestError::invalid(format!(
            "{}: the sandbox was not made for privileged containers",
            field("privileged")
        )));
    }
    super::seccomp::wanted(security)?;
    super::apparmor::wanted(security)?;
    super::selinux::check(&field("selinux_options"), security.selinux_options.as_ref())?;
    if security.run_as_group.is_some()
        && security.run_as_user.is_none()
        && security.run_as_username.is_empty()
    {
        return Err(RequestError::invalid(format!(
            "{}: a group needs run_as_user or run_as_username",
            field("run_as_group")
        )));
    }
    for path in security.masked_paths.iter().chain(&security.readonly_paths) {
        check_absolute(&field("masked_paths/readonly_paths"), path)?;
    }
    Ok(())
}

fn pid_mode(
    security: &cri::LinuxContainerSecurityContext,
    sandbox: &cri::PodSandboxConfig,
) -> Result<PidMode, RequestError> {
    let field = "linux.security_context.namespace_options";
    let pod = sandbox
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone());
    let own = security.namespace_options.clone();
    let options = own.or_else(|| pod.clone()).unwrap_or_default();
    let pod = pod.unwrap_or_default();
    let known = |which: &str, mode: i32| {
        cri::NamespaceMode::try_from(mode)
            .map_err(|_| RequestError::invalid(format!("{field}.{which}: {mode} is no mode that is known")))
    };
    for (which, mine, pods) in [("network", options.network, pod.network()), ("ipc", options.ipc, pod.ipc())]
    {
        let mine = known(which, mine)?;
        if mine == cri::NamespaceMode::Target {
            return Err(RequestError::invalid(format!("{field}.{which}: TARGET is for pid only")));
        }
        let host = |mode| mode == cri::NamespaceMode::Node;
        if host(mine) != host(pods) {
            return Err(RequestError::invalid(format!(
                "{field}.{which}: {} does not fit the sandbox's {}",
                mine.as_str_name(),
                pods.as_str_name()
            )));
        }
    }
    super::userns::same(&options, &pod)?;
    match known("pid", options.pid)? {
        cri::NamespaceMode::Pod if pod.pid() == cri::NamespaceMode::Pod => Ok(PidMode::Pod),
        cri::NamespaceMode::Pod => Err(RequestError::invalid(format!(
            "{field}.pid: POD does not fit the sandbox's {}",
            pod.pid().as_str_name()
        ))),
        cri::NamespaceMode::Container => Ok(PidMode::Container),
        cri::NamespaceMode::Node if pod.pid() == cri::NamespaceMode::Node => Ok(PidMode::Host),
        cri::NamespaceMode::Node => {
            Err(RequestError::invalid(format!("{field}.pid: NODE does not fit the sandbox's")))
        }
        cri::NamespaceMode::Target if options.target_id.is_empty() => {
            Err(RequestError::invalid(format!("{field}.target_id: empty, and pid is TARGET")))
        }
        cri::NamespaceMode::Target => Ok(PidMode::Target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn config() -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn refused(config: &cri::ContainerConfig) -> RequestError {
        check(config, &cri::PodSandboxConfig::default()).unwrap_err()
    }

    #[test]
    fn the_zero_value_is_the_pods_pid_namespace() {
        assert_eq!(check(&config(), &cri::PodSandboxConfig::default()).unwrap(), PidMode::Pod);
    }

    #[test]
    fn what_is_not_there_yet_is_refused_by_name() {}

    #[test]
    fn c03_log_paths_stay_in_the_log_directory() {
        for path in ["/etc/cron.d/x", "../x", "a/../../x", "a\nb", &"a/".repeat(2048)] {
            assert_eq!(
                refused(&cri::ContainerConfig { log_path: path.into(), ..config() }).class,
                Class::Invalid
            );
        }
    }

    #[test]
    fn a_group_without_a_user_is_refused() {
        let security = cri::LinuxContainerSecurityContext {
            run_as_group: Some(cri::Int64Value { value: 5 }),
            ..Default::default()
        };
        let linux = cri::LinuxContainerConfig { security_context: Some(security), ..Default::default() };
        assert!(
            refused(&cri::ContainerConfig { linux: Some(linux), ..config() }).text.contains("run_as_group")
        );
    }
}
