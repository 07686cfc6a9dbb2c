//! `ContainerConfig` + image configuration + resolved user -> OCI runtime spec.
//!
//! Pure: what needs the root file system (users) or the host (device nodes) comes in as arguments. What the
//! spec says is what `runtime::oci` turns into operations.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

use crisp_image::ImageConfig;
use crisp_proto::runtime::v1 as cri;
use crisp_runtime::userns::IdMappings;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDevice, LinuxDeviceCgroup,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, ProcessBuilder, RootBuilder, Spec,
    SpecBuilder, UserBuilder,
};

pub use super::spec_check::{PidMode, check};
use super::{seccomp::Chosen, spec_arguments as arguments, spec_mounts::mounts, userns};
use crate::{
    cdi,
    error::{RequestError, Stage},
    record::UserRecord,
};

/// Everything a spec is made from.
#[derive(Clone, Debug)]
pub struct SpecInput<'a> {
    /// The request.
    pub config: &'a cri::ContainerConfig,
    /// The image's own configuration.
    pub image: &'a ImageConfig,
    /// Resolved credentials.
    pub user: &'a UserRecord,
    /// Home directory of the user, for `HOME`.
    pub home: &'a str,
    /// The sandbox's hostname, for `HOSTNAME`.
    pub hostname: &'a str,
    /// Files of the sandbox, mounted unless the request mounts something at the same place:
    /// (destination, host path).
    pub sandbox_files: &'a [(&'a str, PathBuf)],
    /// Host path of the pod's `/dev/shm`.
    pub shm: PathBuf,
    /// What stands for the image in the mounts that are volumes of one, by index in the request: a path that nobody
    /// opens, because the plan's descriptor is made by the image store.
    pub image_volumes: &'a BTreeMap<usize, PathBuf>,
    /// Volumes that the image declares: (place in the container, directory on the host).
    pub declared: &'a [(PathBuf, PathBuf)],
    /// The mapping of the pod's user namespace, if it has one.
    pub user_namespace: Option<&'a IdMappings>,
    /// The pod has the host's network.
    pub host_network: bool,
    /// The seccomp profile, if there is to be one.
    pub seccomp: Option<Chosen>,
    /// The AppArmor profile, if there is to be one.
    pub apparmor: Option<String>,
    /// Capabilities that a container has unless the request says otherwise.
    pub default_capabilities: &'a [String],
    /// Capabilities that crisp itself holds, as a bit mask: it cannot give others.
    pub held_capabilities: u64,
    /// Device nodes besides those that every container has.
    pub devices: Vec<LinuxDevice>,
    /// Which devices may be used how.
    pub device_rules: Vec<LinuxDeviceCgroup>,
    /// What CDI devices add; their nodes are among `devices`, their groups among the user's.
    pub cdi: &'a cdi::Edits,
}

/// Builds the spec.
///
/// # Errors
/// `Invalid`, naming the field.
pub fn spec(input: &SpecInput<'_>) -> Result<Spec, RequestError> {
    let security = security(input.config);
    let privileged = security.privileged;
    let resources = LinuxResourcesBuilder::default()
        .devices(input.device_rules.clone())
        .build()
        .stage("spec: linux.resources")?;
    let linux = LinuxBuilder::default()
        .namespaces(namespaces(privileged, input.user_namespace.is_some())?)
        .masked_paths(if privileged { vec![] } else { security.masked_paths.clone() })
        .readonly_paths(if privileged { vec![] } else { security.readonly_paths.clone() })
        .devices(input.devices.clone())
        .resources(resources)
        .build()
        .stage("spec: linux")?;
    let root = RootBuilder::default()
        .path("rootfs")
        .readonly(security.readonly_rootfs)
        .build()
        .stage("spec: root")?;
    let mut spec = SpecBuilder::default()
        .version("1.2.0")
        .root(root)
        .process(process(input, &security)?)
        .mounts(mounts(input, &security)?)
        .linux(linux)
        .build()
        .stage("spec")?;
    if let (Some(propagation), Some(linux)) = (root_propagation(input.config), spec.linux_mut()) {
        linux.set_rootfs_propagation(Some(propagation.to_owned()));
    }
    if let (Some(mappings), Some(linux)) = (input.user_namespace, spec.linux_mut()) {
        userns::check_user(mappings, input.user.uid, &input.user.groups)?;
        linux.set_uid_mappings(Some(userns::oci(&mappings.uids)?));
        linux.set_gid_mappings(Some(userns::oci(&mappings.gids)?));
    }
    // The builder fills in names of its own; the pod's UTS namespace has the hostname.
    spec.set_hostname(None).set_domainname(None).set_annotations(None);
    if let Some(chosen) = &input.seccomp {
        let filter = super::seccomp::resolve(chosen, &spec)?;
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(Some(filter));
        }
    }
    Ok(spec)
}

/// Mount events can only come through to a volume, or from it, where the root lets them.
fn root_propagation(config: &cri::ContainerConfig) -> Option<&'static str> {
    let any = |wanted| config.mounts.iter().any(|mount| mount.propagation() == wanted);
    if any(cri::MountPropagation::PropagationBidirectional) {
        Some("rshared")
    } else if any(cri::MountPropagation::PropagationHostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

/// The request's security context, empty if absent.
#[must_use]
pub fn security(config: &cri::ContainerConfig) -> cri::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// The namespaces that the plan makes itself. Network, IPC, UTS and PID ones are given by where the monitor
/// clones the process.
fn namespaces(privileged: bool, user: bool) -> Result<Vec<oci_spec::runtime::LinuxNamespace>, RequestError> {
    let mut kinds = vec![LinuxNamespaceType::Mount];
    // Whoever has no right to the host's cgroup namespace cannot mount its tree either.
    if !privileged || user {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    if user {
        kinds.push(LinuxNamespaceType::User);
    }
    kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build().stage("spec: namespace"))
        .collect()
}

fn process(
    input: &SpecInput<'_>,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<oci_spec::runtime::Process, RequestError> {
    let cwd = match (input.config.working_dir.as_str(), input.image.working_dir.as_str()) {
        ("", "") => "/",
        ("", image) => image,
        (requested, _) => requested,
    };
    super::sandbox::check_absolute("working_dir", cwd)?;
    let user = UserBuilder::default()
        .uid(input.user.uid)
        .gid(input.user.gid)
        .additional_gids(input.user.groups.clone())
        .umask(0o022u32)
        .build()
        .stage("spec: user")?;
    let resources = input.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let (args, env) = (arguments::args(input.config, input.image)?, arguments::env(input)?);
    arguments::check_size(&args, &env)?;
    let mut process = ProcessBuilder::default()
        .args(args)
        .env(env)
        .cwd(cwd)
        .user(user)
        .terminal(input.config.tty)
        .no_new_privileges(security.no_new_privs)
        .capabilities(capabilities(security, input)?)
        .build()
        .stage("spec: process")?;
    process.set_rlimits(None).set_apparmor_profile(input.apparmor.clone());
    process.set_oom_score_adj(Some(oom_score_adj(resources)?));
    Ok(process)
}

fn oom_score_adj(resources: Option<&cri::LinuxContainerResources>) -> Result<i32, RequestError> {
    let value = resources.map_or(0, |resources| resources.oom_score_adj);
    if (-1000..=1000).contains(&value) {
        Ok(i32::try_from(value).unwrap_or_default())
    } else {
        Err(RequestError::invalid(format!("linux.resources.oom_score_adj {value} is not in -1000..=1000")))
    }
}

/// CRI's order: everything when ALL is added, nothing when ALL is dropped, then single adds, then single drops.
/// Inheritable stays empty (CVE-2022-24769) but for ambient ones, which need it.
fn capabilities(
    security: &cri::LinuxContainerSecurityContext,
    input: &SpecInput<'_>,
) -> Result<oci_spec::runtime::LinuxCapabilities, RequestError> {
    let asked = security.capabilities.clone().unwrap_or_default();
    let has_all = |list: &[String]| list.iter().any(|name| is_all(name));
    let mut set: HashSet<Capability> = HashSet::new();
    if security.privileged || has_all(&asked.add_capabilities) {
        set = all_capabilities()
            .filter(|(bit, _)| input.held_capabilities & bit != 0)
            .map(|(_, one)| one)
            .collect();
    } else {
        for name in input.default_capabilities {
            set.insert(capability(name)?);
        }
    }
    if !security.privileged {
        if has_all(&asked.drop_capabilities) {
            set.clear();
        }
        for name in asked.add_capabilities.iter().filter(|name| !is_all(name)) {
            let one = capability(name)?;
            if all_capabilities().any(|(bit, known)| known == one && input.held_capabilities & bit == 0) {
                return Err(RequestError::precondition(format!(
                    "capabilities: {name}: crisp itself does not have it on this host"
                )));
            }
            set.insert(one);
        }
        for name in asked.drop_capabilities.iter().filter(|name| !is_all(name)) {
            set.remove(&capability(name)?);
        }
    }
    let mut ambient = HashSet::new();
    for name in &asked.add_ambient_capabilities {
        let one = capability(name)?;
        ambient.insert(one);
        set.insert(one);
    }
    LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .permitted(set.clone())
        .effective(set)
        .inheritable(ambient.clone())
        .ambient(ambient)
        .build()
        .stage("spec: capabilities")
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL")
}

fn capability(name: &str) -> Result<Capability, RequestError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    serde_json::from_value(serde_json::Value::String(format!("CAP_{bare}")))
        .map_err(|_| RequestError::invalid(format!("capabilities: {name:?} is not a capability")))
}

/// Every capability with its bit.
fn all_capabilities() -> impl Iterator<Item = (u64, Capability)> {
    CAPABILITIES.iter().enumerate().filter_map(|(number, name)| Some((1 << number, capability(name).ok()?)))
}

/// In the order of their numbers (capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn build(config: &cri::ContainerConfig, image: &ImageConfig) -> Result<Spec, RequestError> {
        let defaults: Vec<String> = ["CHOWN", "KILL", "NET_RAW"].map(String::from).into();
        spec(&SpecInput {
            config,
            image,
            user: &UserRecord { uid: 1000, gid: 100, groups: vec![100, 7] },
            home: "/home/me",
            hostname: "pod",
            sandbox_files: &[("/etc/hosts", "/state/hosts".into())],
            shm: "/state/shm".into(),
            image_volumes: &BTreeMap::new(),
            declared: &[],
            seccomp: None,
            apparmor: None,
            default_capabilities: &defaults,
            held_capabilities: u64::MAX,
            devices: vec![],
            device_rules: vec![],
            cdi: &cdi::Edits::default(),
            user_namespace: None,
            host_network: false,
        })
    }

    fn args_of(config: &cri::ContainerConfig) -> Vec<String> {
        let image =
            ImageConfig { entrypoint: words(&["/e", "x"]), cmd: words(&["c"]), ..ImageConfig::default() };
        let spec = build(config, &image).unwrap();
        spec.process().clone().unwrap().args().clone().unwrap()
    }

    #[test]
    fn command_and_args_follow_the_four_rules_of_cri() {
        let command = |command: &[&str], args: &[&str]| cri::ContainerConfig {
            command: words(command),
            args: words(args),
            ..Default::default()
        };
        assert_eq!(args_of(&command(&[], &[])), ["/e", "x", "c"]);
        assert_eq!(args_of(&command(&[], &["a"])), ["/e", "x", "a"]);
        assert_eq!(args_of(&command(&["k"], &[])), ["k"]);
        assert_eq!(args_of(&command(&["k"], &["a"])), ["k", "a"]);
        let nothing = build(&cri::ContainerConfig::default(), &ImageConfig::default()).unwrap_err();
        assert!(nothing.text.contains("no command specified"), "{nothing}");
    }

    #[test]
    fn environment_is_default_then_hostname_then_image_then_request() {
        let config = cri::ContainerConfig {
            command: vec!["x".into()],
            envs: vec![cri::KeyValue { key: "A".into(), value: "2".into() }],
            ..Default::default()
        };
        let image = ImageConfig { env: words(&["A=1", "PATH=/bin"]), ..ImageConfig::default() };
        let spec = build(&config, &image).unwrap();
        let env = spec.process().clone().unwrap().env().clone().unwrap();
        assert_eq!(env, ["PATH=/bin", "HOSTNAME=pod", "A=2", "HOME=/home/me"]);
    }

    #[test]
    fn a_terminal_has_a_type_unless_somebody_names_another() {
        let env = |image: &[&str]| {
            let config = cri::ContainerConfig { command: vec!["x".into()], tty: true, ..Default::default() };
            let spec = build(&config, &ImageConfig { env: words(image), ..ImageConfig::default() }).unwrap();
            let process = spec.process().clone().unwrap();
            assert_eq!(process.terminal(), Some(true));
            process.env().clone().unwrap()[1].clone()
        };
        assert_eq!(env(&[]), "TERM=xterm");
        assert_eq!(env(&["TERM=vt100"]), "TERM=vt100");
    }

    fn bounding(security: cri::LinuxContainerSecurityContext) -> Result<Vec<String>, RequestError> {
        let linux = cri::LinuxContainerConfig { security_context: Some(security), ..Default::default() };
        let config =
            cri::ContainerConfig { command: vec!["x".into()], linux: Some(linux), ..Default::default() };
        let spec = build(&config, &ImageConfig::default())?;
        let sets = spec.process().clone().unwrap().capabilities().clone().unwrap();
        let mut names: Vec<String> =
            sets.bounding().clone().unwrap().iter().map(ToString::to_string).collect();
        names.sort();
        Ok(names)
    }

    fn change(add: &[&str], drop: &[&str]) -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext {
            capabilities: Some(cri::Capability {
                add_capabilities: words(add),
                drop_capabilities: words(drop),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn capabilities_are_added_and_dropped_in_cris_order() {
        assert_eq!(bounding(change(&[], &["net_raw"])).unwrap().len(), 2);
        assert_eq!(bounding(change(&[], &["ALL"])).unwrap().len(), 0);
        assert_eq!(bounding(change(&["CAP_SYS_TIME"], &["ALL"])).unwrap().len(), 1);
        assert_eq!(bounding(change(&["ALL"], &["KILL"])).unwrap().len(), CAPABILITIES.len() - 1);
        let error = bounding(change(&["FLY"], &[])).unwrap_err();
        assert_eq!(error.class, Class::Invalid);
        assert!(error.text.contains("FLY"));
    }
}
