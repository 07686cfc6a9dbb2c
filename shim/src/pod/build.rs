//! A sandbox from nothing to ready: record, files, shared memory, namespaces with the monitor born in them, the
//! network, and the first word with the monitor.
//!
//! The record is written before anything exists that would have to be taken away, and says what that will be:
//! whatever happens, `teardown` can undo from the record alone.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use crisp_monitor::wire::{Body, Call, Placed, StartInit};
use crisp_netns::{
    namespaces::{self, Created, Pins},
    sysctl::Sysctl,
};
use crisp_runtime::cgroup::Resources;
use crisp_sys::{
    mount::{self, MountAttr},
    process::CloneFlags,
    program::Program,
};
use tokio::{sync::mpsc, time::timeout};

use super::{cni, teardown};
use crate::{
    cgroups::{self, parent::Driver},
    convert::{
        sandbox::{SandboxPlan, resolv_conf},
        userns,
    },
    error::{RequestError, Stage},
    link::{self, Event, Link},
    node::{Node, blocking},
    pool::{self, Ready},
    record::{self, NetworkRecord, PodDir, ProcessId, SandboxPhase, SandboxRecord},
    time::Stopwatch,
    user_namespaces::{self, PodUser},
};

/// The pod's init is the last to be killed for memory: its end ends every container of the pod.
const INIT_OOM_SCORE_ADJ: i32 = -998;
/// How long a monitor may take for any of its first answers, which come within a millisecond on a machine that works.
const MONITOR_PATIENCE: Duration = Duration::from_secs(60);

/// What building needs beside the record.
#[derive(Debug)]
pub struct BuildInput {
    /// The checked configuration.
    pub plan: SandboxPlan,
    /// Namespaces from the pool, if it had some.
    pub ready: Option<Ready>,
}

/// A ready sandbox.
#[derive(Debug)]
pub struct Built {
    /// Its record, as on file.
    pub record: SandboxRecord,
    /// The monitor.
    pub link: Link,
    /// What the monitor says.
    pub events: mpsc::UnboundedReceiver<Event>,
}

/// A sandbox that could not be built.
#[derive(Debug)]
pub struct Unbuilt {
    /// Names the stage.
    pub error: RequestError,
    /// Its record, where something of it could not be taken away again.
    pub left: Option<Box<SandboxRecord>>,
}

/// Builds a sandbox; on failure everything is undone, as far as that is possible.
///
/// # Errors
/// See [`Unbuilt`].
pub async fn sandbox(node: &Arc<Node>, record: &SandboxRecord, input: BuildInput) -> Result<Built, Unbuilt> {
    let stage = format!("run sandbox {}", record.id.short(12));
    let BuildInput { plan, ready } = input;
    let (task_node, mut building, task_plan) = (node.clone(), record.clone(), plan.clone());
    let (record, made) = blocking(move || {
        let made = make(&task_node, &mut building, &task_plan, ready);
        Ok((building, made))
    })
    .await
    // The work has panicked; how far it came is not known.
    .map_err(|error| {
        let left = SandboxRecord { phase: SandboxPhase::Undoing, ..record.clone() };
        Unbuilt { error, left: Some(Box::new(left)) }
    })?;
    let built = match made {
        Ok(made) => finish(node, record.clone(), plan, made).await,
        Err(error) => Err(error),
    };
    pool::refill(node);
    match built {
        Ok(built) => Ok(built),
        Err(error) => {
            let left = undo(node, &record).await.is_err();
            let left = left.then(|| Box::new(SandboxRecord { phase: SandboxPhase::Undoing, ..record }));
            Err(Unbuilt { error: error.at(stage), left })
        }
    }
}

/// The network and the first word with the monitor, side by side. Both are waited for even when one fails: what
/// is undone must not be in the middle of being made.
async fn finish(
    node: &Arc<Node>,
    mut record: SandboxRecord,
    plan: SandboxPlan,
    made: Made,
) -> Result<Built, RequestError> {
    let (task_node, task_record) = (node.clone(), record.clone());
    let shared_pid = plan.shared_pid;
    let attached = blocking(move || attach(&task_node, &task_record, &plan, made));
    let (attached, connected) = tokio::join!(attached, connect(node, &record, shared_pid));
    record.network = attached?;
    let (link, events, init) = connected?;
    record.init = init;
    record.phase = SandboxPhase::Ready;
    record::write(&node.state.pod(&record.id).record(), &record).stage("ready")?;
    Ok(Built { record, link, events })
}

async fn undo(node: &Arc<Node>, record: &SandboxRecord) -> Result<(), RequestError> {
    let undone = match teardown::sandbox(node, record, None).await {
        Ok(()) => teardown::forget(node, record).await,
        Err(error) => Err(error),
    };
    undone.inspect_err(|error| {
        tracing::error!(pod = %record.id, %error, "a failed sandbox could not be undone; it is tried again");
    })
}

type Connected = (Link, mpsc::UnboundedReceiver<Event>, Option<ProcessId>);

async fn connect(
    node: &Arc<Node>,
    record: &SandboxRecord,
    shared_pid: bool,
) -> Result<Connected, RequestError> {
    let mut watch = Stopwatch::start("sandbox connected");
    let socket = node.state.pod(&record.id).socket();
    let connected = timeout(MONITOR_PATIENCE, Link::connect(&socket)).await;
    let (link, events, _) = connected.unwrap_or_else(|_| Err(link::no_answer(MONITOR_PATIENCE)))?;
    watch.lap("hello");
    let init = match shared_pid {
        true => Some(start_init(node, record, &link).await?),
        false => None,
    };
    watch.lap("pod init");
    Ok((link, events, init))
}

/// The init of a shared PID namespace, in a leaf cgroup that carries the sandbox's id: a pod's own cgroup may
/// hold no process (cgroup-v2.rst, "no internal processes").
async fn start_init(
    node: &Arc<Node>,
    record: &SandboxRecord,
    link: &Link,
) -> Result<ProcessId, RequestError> {
    let stage = "make the cgroup of the pod's init";
    let hold = cgroups::is_slice(&record.cgroup_parent);
    let user = PodUser::of(node, record)?;
    let call = Call::StartInit(StartInit {
        oom_score_adj: INIT_OOM_SCORE_ADJ,
        hold,
        user_namespace: user.is_some(),
    });
    let namespace = user.as_ref().map(PodUser::namespace);
    let answer = if hold {
        let (Body::Held(pid), _) = link.call_within(MONITOR_PATIENCE, call, namespace.as_slice()).await?
        else {
            return Err(RequestError::unknown("the monitor does not hold the pod's init"));
        };
        let (task_node, path) = (node.clone(), cgroups::leaf(&record.cgroup_parent, record.id.as_str()));
        let scope = blocking(move || task_node.cgroups.start_scope(&path, pid.pid, &Resources::default()));
        let scope = scope.await.map_err(|error| error.at(stage))?;
        let placed = Call::Placed(Placed { container: String::new() });
        link.call_within(MONITOR_PATIENCE, placed, &[scope.as_fd()]).await?.0
    } else {
        let cgroup = node.cgroups.create_in(&record.cgroup_parent, record.id.as_str()).stage(stage)?;
        let fds: Vec<_> = [cgroup.as_fd()].into_iter().chain(namespace).collect();
        link.call_within(MONITOR_PATIENCE, call, &fds).await?.0
    };
    match answer {
        Body::Init(pid) => Ok(ProcessId { pid: pid.pid, start_ticks: pid.start_ticks }),
        _ => Err(RequestError::unknown("the monitor answered something else than it was asked")),
    }
}

/// A sandbox's namespaces.
struct Made {
    created: Created,
    /// They are from the pool: on the network, and with no setting that waits for it.
    attached: bool,
    /// What the monitor executes. The kernel waits for its readers when this is closed, which nobody has to wait for.
    program: Program,
}

fn make(
    node: &Node,
    record: &mut SandboxRecord,
    plan: &SandboxPlan,
    ready: Option<Ready>,
) -> Result<Made, RequestError> {
    let mut watch = Stopwatch::start("sandbox made");
    let dir = node.state.pod(&record.id);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir.path())
        .stage(format_args!("make {}", dir.path().display()))?;
    fs::create_dir(dir.containers()).stage("make the directory of its containers")?;
    if record.network.is_none() {
        record.network = cni::place(node, record, plan)?;
    }
    // The default parent is crisp's own: whoever is the last to leave removes it.
    let default = Driver::of(&node.config.cgroup).default_parent(&node.config.cgroup)?;
    record.cgroup_made =
        match record.cgroup_parent.strip_prefix(&default).is_some_and(|rest| rest.starts_with('/')) {
            true => Some(default),
            false => node.cgroups.claim(&record.cgroup_parent).stage("cgroup_parent")?,
        };
    record::write(&dir.record(), record).stage("building")?;
    watch.lap("record");
    let built = record.clone();
    // Nothing of the one needs anything of the other.
    let (local, made) = std::thread::scope(|scope| {
        let local = scope.spawn(|| make_local(node, &dir, &built, plan));
        let made = make_namespaces(node, record, plan, ready);
        (local.join(), made)
    });
    let made = made?;
    local.unwrap_or_else(|_| Err(RequestError::unknown("internal error")))?;
    watch.lap("files, shm, cgroup; namespaces and monitor");
    // Kubelet's, which makes and removes it; other clients leave the making to the runtime. After everything
    // that can go wrong, because it is never taken away again.
    let logs = &record.config.log_directory;
    if !logs.is_empty() {
        check_log_directory(logs)?;
        fs::create_dir_all(logs).stage(format_args!("log_directory {logs}"))?;
    }
    Ok(made)
}

/// What a sandbox has outside of its namespaces.
fn make_local(
    node: &Node,
    dir: &PodDir,
    record: &SandboxRecord,
    plan: &SandboxPlan,
) -> Result<(), RequestError> {
    let mut watch = Stopwatch::start("sandbox's files");
    node.cgroups.ensure(&record.cgroup_parent).stage("cgroup_parent")?;
    watch.lap("cgroup");
    write_files(dir, record, plan)?;
    watch.lap("files");
    if !plan.host_ipc {
        mount_shm(&dir.shm(), plan)?;
    }
    watch.lap("shm");
    Ok(())
}

/// A place at the bridge.
pub(super) fn lease(node: &Node, record: &SandboxRecord) -> Result<NetworkRecord, RequestError> {
    let lease = node.ipam.allocate().stage("lease addresses")?;
    Ok(NetworkRecord::new(&record.id, &lease))
}

/// The directory itself is no symbolic link: a workload that can write where the pods' logs are must not choose where
/// they go. What lies above it is the operator's.
fn check_log_directory(path: &str) -> Result<(), RequestError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(RequestError::invalid(format!("log_directory {path} is there and is no directory"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).stage(format_args!("log_directory {path}")),
    }
}

fn write_files(dir: &PodDir, record: &SandboxRecord, plan: &SandboxPlan) -> Result<(), RequestError> {
    let host_resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let hosts = match plan.host_network {
        true => fs::read_to_string("/etc/hosts").unwrap_or_default(),
        false => hosts(record),
    };
    let files = [
        ("hostname", format!("{}\n", record.hostname)),
        ("hosts", hosts),
        ("resolv.conf", resolv_conf(record.config.dns_config.as_ref(), &host_resolv)),
    ];
    for (name, text) in files {
        let path = dir.file(name);
        fs::write(&path, text).stage(format_args!("write {name}"))?;
        if let Some((uid, gid)) = root_outside(plan) {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).stage(format_args!("chown {name}"))?;
        }
    }
    Ok(())
}

/// What root of the pod's user namespace is on the host; `None`: root.
fn root_outside(plan: &SandboxPlan) -> Option<(u32, u32)> {
    let mappings = plan.user.as_ref()?;
    mappings.host_uid(0).zip(mappings.host_gid(0))
}

/// `/etc/hosts` of a pod for which kubelet mounts none: the loopback names and the pod's own.
pub(super) fn hosts(record: &SandboxRecord) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for address in record.network.iter().flat_map(NetworkRecord::addresses) {
        text.push_str(&format!("{address}\t{}\n", record.hostname));
    }
    text
}

/// The pod's `/dev/shm`, world-writable. Attached on the host because kernels before 6.15 cannot clone a
/// detached tree, and each container gets a clone.
fn mount_shm(path: &Path, plan: &SandboxPlan) -> Result<(), RequestError> {
    fs::create_dir(path).stage("make the mount point of /dev/shm")?;
    let attributes = MountAttr::NOSUID | MountAttr::NODEV | MountAttr::NOEXEC;
    let (uid, gid) = root_outside(plan).unwrap_or_default();
    let [size, uid, gid] = [plan.shm_bytes, uid.into(), gid.into()].map(|number: u64| number.to_string());
    // `df` in a container shows the source.
    let options =
        [("source", "shm"), ("size", size.as_str()), ("mode", "1777"), ("uid", &uid), ("gid", &gid)];
    // The host's root is the owner anyway: nothing is said that need not be.
    let said = if plan.user.is_some() { options.as_slice() } else { &options[..3] };
    let tmpfs = mount::tmpfs(said, attributes).stage("make /dev/shm")?;
    mount::move_mount_to(tmpfs, path).stage("mount /dev/shm")
}

/// The pins of a sandbox's namespaces: what its record implies.
#[must_use]
pub fn pins(node: &Node, record: &SandboxRecord) -> Pins {
    let own = |which: &str| Some(node.state.pins().join(format!("{}-{which}", record.id.short(16))));
    let options = record.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = options.and_then(|security| security.namespace_options.clone()).unwrap_or_default();
    let host = crisp_proto::runtime::v1::NamespaceMode::Node;
    let net = options.network() != host;
    Pins {
        net: net.then(|| Path::new(&node.config.network.pin_dir).join(node.pin_name(record.id.as_str()))),
        ipc: (options.ipc() != host).then(|| own("ipc")).flatten(),
        uts: net.then(|| own("uts")).flatten(),
        user: userns::of_sandbox(&record.config).and_then(|_| own("user")),
    }
}

fn make_namespaces(
    node: &Node,
    record: &mut SandboxRecord,
    plan: &SandboxPlan,
    ready: Option<Ready>,
) -> Result<Made, RequestError> {
    let mut watch = Stopwatch::start("sandbox's namespaces");
    let dir = node.state.pod(&record.id);
    let ready = current(node, ready)?;
    watch.lap("taken");
    let now = plan.sysctls.iter().filter(|(name, _)| !waits_for_link(name)).cloned();
    let sysctls: Vec<_> = match plan.host_network || ready.is_some() {
        true => now.collect(),
        false => embedded_sysctls(node, record)?.into_iter().chain(now).collect(),
    };
    let mut kinds = CloneFlags::empty();
    kinds.set(CloneFlags::NEWNET | CloneFlags::NEWUTS, !plan.host_network);
    kinds.set(CloneFlags::NEWIPC, !plan.host_ipc);
    let user =
        plan.user.as_ref().map(|mappings| user_namespaces::Made::new(node, mappings, kinds)).transpose()?;
    let request = namespaces::Request {
        net: !plan.host_network,
        uts: !plan.host_network,
        ipc: !plan.host_ipc,
        hostname: (!plan.host_network).then_some(record.hostname.as_str()),
        sysctls: &sysctls,
        pins: pins(node, record),
        origin: user.as_ref().map(user_namespaces::Made::origin),
    };
    // The daemon binds the socket, so that it can be connected to before the monitor has drawn a breath.
    let socket = crisp_sys::socket::listen(&dir.socket(), 0o600, 8).stage("monitor socket")?;
    let runtime = tokio::runtime::Handle::current();
    watch.lap("socket");
    let attached = ready.is_some();
    let watched = &mut watch;
    let inside = |_: &mut Created| {
        watched.lap("made and pinned");
        let pid = spawn_monitor(&runtime, &node.monitor, record, socket);
        watched.lap("spawned");
        pid
    };
    let made = match ready {
        Some(ready) => namespaces::adopt(ready.created, &request, inside),
        None => namespaces::create(&request, inside),
    };
    let (created, (pid, program)) = made.stage("namespaces")?;
    record.monitor_pid = pid;
    Ok(Made { created, attached, program })
}

/// The entry of the pool, unless a setting of the host that it has copied was changed since: then its link goes, and name
/// and addresses stay for the one that comes in its place.
fn current(node: &Node, ready: Option<Ready>) -> Result<Option<Ready>, RequestError> {
    let Some(ready) = ready else { return Ok(None) };
    if node.pool.is_current(&ready) {
        return Ok(Some(ready));
    }
    node.bridge()?.detach(&ready.network.host_interface).stage("network")?;
    Ok(None)
}

/// What the bridge needs; CNI plugins see to what their networks need.
fn embedded_sysctls(node: &Node, record: &SandboxRecord) -> Result<Vec<(String, String)>, RequestError> {
    match &record.network {
        Some(network) if network.cni.is_none() => Ok(node.bridge()?.sysctls()),
        _ => Ok(Vec::new()),
    }
}

/// A setting of an interface of its own can be written when the interface is there.
fn waits_for_link(name: &str) -> bool {
    Sysctl::parse(name).is_ok_and(|sysctl| sysctl.waits_for_link())
}

fn attach(
    node: &Node,
    record: &SandboxRecord,
    plan: &SandboxPlan,
    made: Made,
) -> Result<Option<NetworkRecord>, RequestError> {
    // Whose monitor it is can be learnt from the socket alone, but not if it is stuck.
    record::write(&node.state.pod(&record.id).record(), record).stage("building")?;
    let Made { mut created, attached, program } = made;
    // Before there can be a container that looks at it.
    drop(program);
    let mut watch = Stopwatch::start("network attached");
    let Some(network) = &record.network else { return Ok(None) };
    let network = match network.cni {
        Some(_) => cni::attach(node, record)?,
        None => {
            join_bridge(node, record, plan, network, (!attached).then_some(&mut created))?;
            network.clone()
        }
    };
    watch.lap("network");
    let later: Vec<_> = plan.sysctls.iter().filter(|(name, _)| waits_for_link(name)).cloned().collect();
    if let (Some(netns), false) = (&created.net, later.is_empty()) {
        namespaces::run_in(netns.as_fd(), || write_sysctls(&later)).stage("sysctls")??;
    }
    Ok(Some(network))
}

/// A link to the bridge, unless it is there already, limits on it, and host ports.
fn join_bridge(
    node: &Node,
    record: &SandboxRecord,
    plan: &SandboxPlan,
    network: &NetworkRecord,
    created: Option<&mut Created>,
) -> Result<(), RequestError> {
    if let Some(created) = created {
        pool::attach(node, &record.id, network, created)?;
    }
    let bridge = node.bridge()?;
    let alias = pool::alias(node, &record.id);
    bridge.limit(&network.host_interface, &alias, plan.bandwidth).stage("bandwidth")?;
    bridge.publish(record.id.as_str(), &plan.host_ports, &network.lease()).stage("port_mappings")
}

fn write_sysctls(sysctls: &[(String, String)]) -> Result<(), RequestError> {
    for (name, value) in sysctls {
        Sysctl::parse(name).and_then(|sysctl| sysctl.write(value)).stage("linux.sysctls")?;
    }
    Ok(())
}

/// Starts the monitor from the thread that it is called on, whose namespaces it is born in. `posix_spawn`, not
/// fork: nothing of the daemon's memory is copied. What it executes, and with it every process of a container until its
/// own `execve`, cannot be written to from there. tokio reaps it when it has ended.
fn spawn_monitor(
    runtime: &tokio::runtime::Handle,
    program: &PathBuf,
    record: &SandboxRecord,
    socket: OwnedFd,
) -> Result<(i32, Program), RequestError> {
    let _context = runtime.enter();
    let executed = Program::open(program).stage(format_args!("open {}", program.display()))?;
    let child = tokio::process::Command::new(executed.path())
        .arg0(program)
        .arg(format!("pod-{}", record.id))
        .env_clear()
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(false)
        .spawn()
        .stage(format_args!("start {}", program.display()))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid =
        pid.ok_or_else(|| RequestError::unknown(format!("start {}: it ended at once", program.display())))?;
    Ok((pid, executed))
}
