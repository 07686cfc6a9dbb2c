//! Creating and starting: from a request and an image to a cloned process that waits for its start.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use crisp_image::Image;
use crisp_monitor::{
    client::record as exits,
    wire::{self, Body, Call, ContainerRef},
};
use crisp_proto::runtime::v1 as cri;
use crisp_runtime::{
    cgroup::Resources,
    oci,
    user::{self, GroupPolicy, UserSpec, Who},
    userns::IdMappings,
};
use crisp_sys::fd::memfd_create_sealed;

use super::{
    devices, place, remove,
    sources::{self, ImageVolumes},
};
use crate::{
    cdi, cgroups,
    convert::{
        resources, seccomp, signal,
        spec::{self, PidMode, SpecInput},
        spec_arguments,
    },
    error::{Class, RequestError, Stage},
    id::{self, Id},
    link::Link,
    node::{Node, blocking},
    pod::View,
    record::{self, ContainerPhase, ContainerRecord, ProcessId, SandboxRecord, UserRecord},
    time::{Stopwatch, now_nanos},
    user_namespaces::{self, PodUser},
};

/// Everything a container is cloned from, ready to be sent to the monitor.
struct Prepared {
    record: ContainerRecord,
    call: wire::Create,
    /// Plan, cgroup (unless held), exit record, root mount, mount sources: the order that the monitor expects.
    fds: Vec<OwnedFd>,
    /// Put on the scope that is made around a held process.
    limits: Resources,
}

/// The images that a container needs.
struct Images {
    /// The one that it runs.
    image: Arc<Image>,
    volumes: ImageVolumes,
}

/// Makes a container; on failure everything is undone.
///
/// # Errors
/// Names the stage.
pub async fn container(
    node: &Arc<Node>,
    view: &View,
    id: &Id,
    mut config: cri::ContainerConfig,
) -> Result<ContainerRecord, RequestError> {
    let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let stage = format!("create container {name}");
    let link = view.link.clone().ok_or_else(|| RequestError::precondition("the sandbox is not ready"))?;
    let pid = spec::check(&config, &view.sandbox.config).map_err(|error| error.at(&stage))?;
    if pid == PidMode::Target {
        name_target(view, &mut config).map_err(|error| error.at(&stage))?;
    }
    let image = find_image(node, &config).map_err(|error| error.at(&stage))?;
    let volumes = ImageVolumes::find(node, &mut config).map_err(|error| error.at(&stage))?;
    let images = Images { image, volumes };
    let (task_node, sandbox, task_id) = (node.clone(), view.sandbox.clone(), id.clone());
    let prepared = blocking(move || prepare(&task_node, &sandbox, &task_id, config, pid, &images)).await;
    let made = match prepared {
        Ok(prepared) => clone(node, &link, prepared).await,
        Err(error) => Err(error),
    };
    if made.is_err() {
        node.lsm.forget();
        undo(node, &link, &view.sandbox, id).await;
    }
    made.map_err(|error| error.at(stage))
}

fn target_id(config: &cri::ContainerConfig) -> String {
    spec::security(config).namespace_options.map(|options| options.target_id).unwrap_or_default()
}

/// The container whose PID namespace is joined runs in the same sandbox; its id is written out where a prefix was given.
/// The monitor, which holds its pidfd, has the last word; this is for the early one.
fn name_target(view: &View, config: &mut cri::ContainerConfig) -> Result<(), RequestError> {
    const FIELD: &str = "linux.security_context.namespace_options.target_id";
    let wanted = target_id(config);
    let (id, record) =
        id::find(&view.containers, "container", &wanted).map_err(|error| match error.class {
            Class::NotFound => {
                RequestError::new(error.class, format!("{FIELD}: container {wanted:?} is not in the sandbox"))
            }
            _ => error.at(FIELD),
        })?;
    if !matches!(record.phase, ContainerPhase::Running { .. }) {
        let text = format!("{FIELD}: container {wanted:?} does not run");
        return Err(RequestError::new(Class::NotFound, text));
    }
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().target_id = id.to_string();
    Ok(())
}

async fn undo(node: &Arc<Node>, link: &Link, sandbox: &SandboxRecord, id: &Id) {
    // Bounded: a child that is stuck on dead storage cannot be reaped, and must not keep the caller from its answer.
    if let Err(error) = remove::forget_in_monitor(Some(link), id).await {
        tracing::warn!(container = %id, %error, "the monitor does not let go of a container that could not be made");
    }
    let cgroup = cgroups::leaf(&sandbox.cgroup_parent, id.as_str());
    if let Err(error) = remove::traces(node, &sandbox.id, id, &cgroup).await {
        tracing::error!(container = %id, %error, "a failed container could not be undone; it stays until it is removed");
    }
}

fn find_image(node: &Node, config: &cri::ContainerConfig) -> Result<Arc<Image>, RequestError> {
    let wanted = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let handler = config.image.as_ref().map(|image| image.runtime_handler.as_str()).unwrap_or_default();
    Node::check_handler("image.runtime_handler", handler)?;
    node.store
        .get(wanted)
        .stage(format_args!("image {wanted:?}"))?
        .ok_or_else(|| RequestError::not_found("image", wanted))
}

fn prepare(
    node: &Node,
    sandbox: &SandboxRecord,
    id: &Id,
    config: cri::ContainerConfig,
    pid: PidMode,
    images: &Images,
) -> Result<Prepared, RequestError> {
    let Images { image, volumes } = images;
    let mut watch = Stopwatch::start("container prepared");
    let dir = node.state.pod(&sandbox.id);
    let security = spec::security(&config);
    node.lsm.check_selinux(security.selinux_options.as_ref())?;
    node.lsm.check_relabelling(&config.mounts)?;
    fs::create_dir(dir.container(id)).stage("make its directory")?;
    let limits = resources::resources(config.linux.as_ref().and_then(|linux| linux.resources.as_ref()))?;
    let snapshot =
        node.store.prepare(image, &volumes.images(), id.as_str()).stage("make its writable layer")?;
    let user = PodUser::of(node, sandbox)?;
    let root = snapshot.mount(false, user.as_ref().map(PodUser::namespace)).stage("mount its root")?;
    watch.lap("layer and root");
    let identity = resolve_user(root.as_fd(), &config, image)?;
    let declared = sources::make_declared(&config, &image.config, &snapshot, root.as_fd())?;
    let image_volumes = volumes.names(node, &config);
    let user_namespace = user.as_ref().map(|user| user.mappings().clone());
    let resolved = Resolved { config, identity, image_volumes, declared, user_namespace };
    let record = new_record(node, sandbox, id, image, resolved)?;
    // From here on a killed daemon knows what to undo.
    record::write(&dir.container_record(id), &record).stage("creating")?;
    let mut planned =
        oci::plan(&record.spec, &oci::PlanInput { staging: node.state.staging() }).stage("plan")?;
    if let Some(process) = &mut planned.plan.process {
        spec_arguments::restore_binary(&record.config, &mut process.env);
    }
    watch.lap("user, spec, record, plan");
    let ready = sources::open(node, id, &record.config, volumes, user.as_ref())?;
    let hold = cgroups::is_slice(&sandbox.cgroup_parent);
    let cgroup = if hold { None } else { Some(place::make(node, &record, &limits)?) };
    watch.lap("cgroup");
    let sources = planned
        .open_sources(ready, &|mappings| user_namespaces::with(node, user.as_ref(), mappings))
        .stage("open the sources of its mounts")?;
    let plan = memfd_create_sealed("plan", &prost::Message::encode_to_vec(&planned.plan)).stage("plan")?;
    let exit = exits::create(&dir.container_exit(id)).stage("exit record")?;
    let own = [Some(plan), cgroup.map(|cgroup| cgroup.dir), Some(exit.into()), Some(root)];
    let fds = own.into_iter().flatten().chain(sources).collect();
    watch.lap("sources, exit record");
    let call = wire::Create {
        container: id.to_string(),
        pid: match pid {
            PidMode::Pod => wire::PidNamespace::Pod,
            PidMode::Container => wire::PidNamespace::Own,
            PidMode::Host => wire::PidNamespace::Host,
            PidMode::Target => wire::PidNamespace::Target,
        }
        .into(),
        log_dir: if record.log_path.is_empty() {
            String::new()
        } else {
            sandbox.config.log_directory.clone()
        },
        log_path: record.config.log_path.clone(),
        log_line_bytes: node.config.container.log_line_bytes,
        stdin: record.config.stdin,
        hold,
        stdin_once: record.config.stdin_once,
        target: match pid {
            PidMode::Target => target_id(&record.config),
            PidMode::Pod | PidMode::Container | PidMode::Host => String::new(),
        },
    };
    Ok(Prepared { record, call, fds, limits })
}

fn resolve_user(
    root: BorrowedFd<'_>,
    config: &cri::ContainerConfig,
    image: &Image,
) -> Result<user::Identity, RequestError> {
    let security = spec::security(config);
    let user = match (security.run_as_username.as_str(), &security.run_as_user) {
        ("", None) => Who::Image(image.config.user.clone()),
        ("", Some(uid)) => Who::Uid(id_number("run_as_user", uid.value)?),
        (name, _) => Who::Name(name.to_owned()),
    };
    let group = security.run_as_group.map(|gid| id_number("run_as_group", gid.value)).transpose()?;
    let supplemental = security.supplemental_groups.iter().map(|gid| id_number("supplemental_groups", *gid));
    let policy = match cri::SupplementalGroupsPolicy::try_from(security.supplemental_groups_policy) {
        Ok(cri::SupplementalGroupsPolicy::Merge) => GroupPolicy::Merge,
        Ok(cri::SupplementalGroupsPolicy::Strict) => GroupPolicy::Strict,
        // The default would be the wider one.
        Err(_) => {
            return Err(RequestError::invalid(format!(
                "linux.security_context.supplemental_groups_policy: {} is no policy that is known",
                security.supplemental_groups_policy
            )));
        }
    };
    let wanted = UserSpec { user, group, supplemental: supplemental.collect::<Result<_, _>>()?, policy };
    user::resolve(root, &wanted).map_err(|error| RequestError::invalid(crate::error::chain(&error)))
}

/// A number that does not fit is refused, never cut to one that means root (CVE-2024-40635).
fn id_number(field: &str, value: i64) -> Result<u32, RequestError> {
    u32::try_from(value).map_err(|_| {
        RequestError::invalid(format!("linux.security_context.{field}: {value} is out of range"))
    })
}

/// A request with its user looked up.
struct Resolved {
    config: cri::ContainerConfig,
    identity: user::Identity,
    /// See [`SpecInput::image_volumes`].
    image_volumes: BTreeMap<usize, PathBuf>,
    /// See [`SpecInput::declared`].
    declared: Vec<(PathBuf, PathBuf)>,
    /// See [`SpecInput::user_namespace`].
    user_namespace: Option<IdMappings>,
}

fn new_record(
    node: &Node,
    sandbox: &SandboxRecord,
    id: &Id,
    image: &Image,
    resolved: Resolved,
) -> Result<ContainerRecord, RequestError> {
    let Resolved { config, identity, image_volumes, declared, user_namespace } = resolved;
    let dir = node.state.pod(&sandbox.id);
    let mut user = UserRecord { uid: identity.uid, gid: identity.gid, groups: identity.groups };
    let cdi = cdi::edits(&node.config.container.cdi_spec_dirs, &config, &user)?;
    user.groups
        .extend(cdi.groups.iter().filter(|gid| !user.groups.contains(gid)).copied().collect::<Vec<_>>());
    let files: Vec<(&str, PathBuf)> =
        [("/etc/hostname", "hostname"), ("/etc/hosts", "hosts"), ("/etc/resolv.conf", "resolv.conf")]
            .map(|(destination, name)| (destination, dir.file(name)))
            .into();
    let host_ipc = !dir.shm().exists();
    let security = spec::security(&config);
    let devices = devices::for_container(&config, &cdi.nodes, node.device_program.is_some())?;
    let spec = spec::spec(&SpecInput {
        config: &config,
        image: &image.config,
        user: &user,
        home: &identity.home,
        hostname: &sandbox.hostname,
        sandbox_files: &files,
        shm: if host_ipc { "/dev/shm".into() } else { dir.shm() },
        image_volumes: &image_volumes,
        declared: &declared,
        user_namespace: user_namespace.as_ref(),
        host_network: sandbox.network.is_none(),
        seccomp: seccomp::choose(&security)?,
        apparmor: node.lsm.profile(&security)?,
        default_capabilities: &node.config.container.capabilities,
        held_capabilities: node.held_capabilities,
        devices: devices.nodes,
        device_rules: devices.rules,
        cdi: &cdi,
    })?;
    let asked = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
    let log_path = match (sandbox.config.log_directory.as_str(), config.log_path.as_str()) {
        ("", _) | (_, "") => String::new(),
        (directory, path) => Path::new(directory).join(path).to_string_lossy().into_owned(),
    };
    Ok(ContainerRecord {
        version: record::VERSION,
        id: id.clone(),
        sandbox: sandbox.id.clone(),
        phase: ContainerPhase::Creating,
        created_nanos: now_nanos(),
        image_id: image.id.to_string(),
        image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        image_name: image.tags.first().cloned().unwrap_or(asked),
        user,
        stop_signal: signal::stop_signal(config.stop_signal, image.config.stop_signal.as_deref())?,
        log_path,
        cgroup: cgroups::leaf(&sandbox.cgroup_parent, id.as_str()),
        process: None,
        oom: None,
        spec,
        config,
    })
}

async fn clone(node: &Arc<Node>, link: &Link, prepared: Prepared) -> Result<ContainerRecord, RequestError> {
    let Prepared { mut record, call, fds, limits } = prepared;
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    if borrowed.len() > wire::MAX_FDS {
        return Err(RequestError::invalid(format!(
            "{} mounts: more than the {} that one container can have",
            record.config.mounts.len(),
            wire::MAX_FDS - 16
        )));
    }
    let mut watch = Stopwatch::start("container cloned");
    let mut answer = link.call(Call::Create(call), &borrowed).await?.0;
    if let Body::Held(pid) = answer {
        watch.lap("held");
        answer = place::around(node, link, &record, pid.pid, limits).await?;
    }
    let Body::Created(pid) = answer else {
        return Err(RequestError::unknown("the monitor answered something else than it was asked"));
    };
    watch.lap("monitor");
    record.process = Some(ProcessId { pid: pid.pid, start_ticks: pid.start_ticks });
    record.phase = ContainerPhase::Created;
    let path = node.state.pod(&record.sandbox).container_record(&record.id);
    record::write(&path, &record).stage("created")?;
    Ok(record)
}

/// Lets a created container execute its program; gives the start time in nanoseconds since the epoch.
///
/// # Errors
/// The program is not there or cannot be executed; the monitor's words.
pub async fn start(link: Option<&Link>, record: &ContainerRecord) -> Result<i64, RequestError> {
    let stage = format!("start container {}", record.id.short(12));
    let link = link.ok_or_else(|| RequestError::precondition("the sandbox is not ready"))?;
    match link.call(Call::Start(ContainerRef { container: record.id.to_string() }), &[]).await {
        Ok((Body::Started(at), _)) => Ok(at.nanos),
        Ok(_) => Err(RequestError::unknown("the monitor answered something else than it was asked")),
        Err(error) => Err(error.at(stage)),
    }
}
