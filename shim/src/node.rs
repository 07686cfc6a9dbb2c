//! What the daemon has once: configuration, directories, the image store, the network, the cgroup tree, and the
//! index of pods and containers.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crisp_runtime::cgroup::DeviceProgram;
use tokio_util::sync::CancellationToken;

use crate::{
    cgroups::{Cgroups, parent::Driver},
    cni::Networks,
    config::Config,
    convert::{
        self,
        sandbox::{self, SandboxPlan},
    },
    error::{Class, RequestError, Stage},
    events::Events,
    id::{self, Id},
    lsm::Lsm,
    pod::{Pod, SandboxOp, actor::Actor, build::BuildInput},
    pod_cidr::PodCidr,
    pool::{Pool, Ready},
    record::{self, ContainerRecord, SandboxPhase, SandboxRecord, StateDir},
    time::now_nanos,
};
use crisp_image::Store;
use crisp_netns::{ipam::Ipam, network::Network};
use crisp_proto::runtime::v1 as cri;

/// Who is there.
#[derive(Debug, Default)]
struct Index {
    pods: BTreeMap<Id, Arc<Pod>>,
    /// Which pod a container belongs to.
    containers: BTreeMap<Id, Arc<Pod>>,
    /// Sandbox ids by reserved name.
    names: HashMap<String, Id>,
}

/// See the module.
#[derive(Debug)]
pub struct Node {
    /// As loaded.
    pub config: Config,
    /// The daemon's directories.
    pub state: StateDir,
    /// Random mark of this root directory: names on the host carry it, so that recovery takes only its own.
    pub instance: String,
    /// Which run of the kernel this is.
    pub boot_id: String,
    /// Images and writable layers.
    pub store: Arc<Store>,
    /// The bridge; `None`: every pod gets a CNI network.
    pub network: Option<Network>,
    /// CNI.
    pub cni: Arc<Networks>,
    /// Addresses in use.
    pub ipam: Ipam,
    /// The ranges that kubelet wants the addresses to be of.
    pub pod_cidr: PodCidr,
    /// Namespaces for the next pods.
    pub pool: Pool,
    /// The cgroup tree.
    pub cgroups: Cgroups,
    /// For containers with nothing special, loaded once; `None` where the host does not allow device control and the
    /// configuration does not insist on it.
    pub device_program: Option<DeviceProgram>,
    /// The program that is started for each pod.
    pub monitor: PathBuf,
    /// Capabilities that this process, and so a monitor and its containers, can have at most.
    pub held_capabilities: u64,
    /// What the kernel's security modules mean for containers.
    pub lsm: Lsm,
    /// Whether pods can have user namespaces; the reason if not.
    pub user_namespaces: Result<(), String>,
    /// Who is told what happens.
    pub events: Events,
    /// Cancelled when the daemon ends: what would keep it from that is to give up.
    pub ending: CancellationToken,
    index: RwLock<Index>,
}

/// What a [`Node`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// See [`Node::config`].
    pub config: Config,
    /// See [`Node::instance`].
    pub instance: String,
    /// See [`Node::boot_id`].
    pub boot_id: String,
    /// See [`Node::store`].
    pub store: Store,
    /// See [`Node::network`].
    pub network: Option<Network>,
    /// See [`Node::cni`].
    pub cni: Arc<Networks>,
    /// See [`Node::ipam`].
    pub ipam: Ipam,
    /// See [`Node::pod_cidr`].
    pub pod_cidr: PodCidr,
    /// See [`Node::cgroups`].
    pub cgroups: Cgroups,
    /// See [`Node::device_program`].
    pub device_program: Option<DeviceProgram>,
    /// See [`Node::monitor`].
    pub monitor: PathBuf,
    /// See [`Node::held_capabilities`].
    pub held_capabilities: u64,
    /// See [`Node::user_namespaces`].
    pub user_namespaces: Result<(), String>,
}

impl Node {
    /// Puts the parts together; nobody is there yet.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Node> {
        Arc::new(Node {
            state: StateDir::new(parts.config.state.clone().into()),
            pool: Pool::new(parts.config.network.pool),
            config: parts.config,
            instance: parts.instance,
            boot_id: parts.boot_id,
            store: Arc::new(parts.store),
            network: parts.network,
            cni: parts.cni,
            ipam: parts.ipam,
            pod_cidr: parts.pod_cidr,
            cgroups: parts.cgroups,
            device_program: parts.device_program,
            monitor: parts.monitor,
            held_capabilities: parts.held_capabilities,
            lsm: Lsm::detect(),
            user_namespaces: parts.user_namespaces,
            events: Events::default(),
            ending: CancellationToken::new(),
            index: RwLock::default(),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a sandbox, or finds the one that an earlier, identical request made or is making.
    ///
    /// Cancel safety: the sandbox is built all the same, and the retry finds it.
    ///
    /// # Errors
    /// The request is wrong, the name is taken by a stopped sandbox, or the building failed (and left nothing).
    pub async fn run_sandbox(
        self: &Arc<Self>,
        config: cri::PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<Id, RequestError> {
        Self::check_handler("runtime_handler", runtime_handler)?;
        let plan = sandbox::plan(&config, &self.config.network)?;
        let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        self.lsm.check_selinux(security.and_then(|security| security.selinux_options.as_ref()))?;
        if let (Some(_), Err(reason)) = (&plan.user, &self.user_namespaces) {
            let field = convert::userns::FIELD;
            return Err(RequestError::precondition(format!("{field}: not possible on this node: {reason}")));
        }
        // What is in the pool is on the bridge. Reads a small directory.
        let embedded = matches!(self.cni.choose(), Ok(None));
        loop {
            let pod = self.find_or_build(config.clone(), plan.clone(), embedded)?;
            // A pod that was found on its way out has freed its name: the request is then as good as the first one.
            if let Some(result) = pod.ask(SandboxOp::Run).await {
                return result.map(|()| pod.id.clone());
            }
        }
    }

    /// There is one handler, and `""` is its name.
    ///
    /// # Errors
    /// `handler`, of the request's `field`, is another one.
    pub fn check_handler(field: &str, handler: &str) -> Result<(), RequestError> {
        if handler.is_empty() {
            return Ok(());
        }
        Err(RequestError::invalid(format!(
            "{field} {handler:?} is unknown; the only one is the default, \"\""
        )))
    }

    /// One look at the index decides: of two requests with one name exactly one builds.
    fn find_or_build(
        self: &Arc<Self>,
        config: cri::PodSandboxConfig,
        plan: SandboxPlan,
        embedded: bool,
    ) -> Result<Arc<Pod>, RequestError> {
        let mut index = self.write();
        if let Some(pod) = index.names.get(&plan.key).and_then(|id| index.pods.get(id)) {
            if matches!(
                pod.sandbox().phase,
                SandboxPhase::Undoing | SandboxPhase::Stopping | SandboxPhase::Stopped
            ) {
                let (key, id) = (plan.shown_key(), &pod.id);
                return Err(RequestError::new(
                    Class::Exists,
                    format!("failed to reserve sandbox name {key:?}: name {key:?} is reserved for \"{id}\""),
                ));
            }
            return Ok(pod.clone());
        }
        let ready = embedded.then(|| self.pool.take(&plan)).flatten();
        let record = match self.new_sandbox(config, &plan, ready.as_ref()) {
            Ok(record) => record,
            Err(error) => {
                ready.into_iter().for_each(|ready| self.pool.give_back(ready));
                return Err(error);
            }
        };
        let (id, key) = (record.id.clone(), plan.key.clone());
        let pod = Actor::build(self, record, BuildInput { plan, ready });
        index.names.insert(key, id.clone());
        index.pods.insert(id, pod.clone());
        Ok(pod)
    }

    fn new_sandbox(
        &self,
        config: cri::PodSandboxConfig,
        plan: &SandboxPlan,
        ready: Option<&Ready>,
    ) -> Result<SandboxRecord, RequestError> {
        let id = match ready {
            Some(ready) => ready.id.clone(),
            None => Id::random()?,
        };
        let asked = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        let cgroup_parent = Driver::of(&self.config.cgroup).pod_parent(&self.config.cgroup, asked, &id)?;
        let hostname = match (config.hostname.as_str(), plan.host_network) {
            ("", _) | (_, true) => host_name()?,
            (hostname, false) => hostname.to_owned(),
        };
        Ok(SandboxRecord {
            version: record::VERSION,
            id,
            boot_id: self.boot_id.clone(),
            phase: SandboxPhase::Building,
            created_nanos: now_nanos(),
            config,
            runtime_handler: String::new(),
            hostname,
            cgroup_parent,
            cgroup_made: None,
            network: ready.map(|ready| ready.network.clone()),
            init: None,
            monitor_pid: 0,
        })
    }

    /// Takes a restored pod into the index.
    pub fn adopt(&self, pod: Arc<Pod>) {
        let view = pod.view();
        let mut index = self.write();
        if let Ok(plan) = sandbox::plan(&view.sandbox.config, &self.config.network) {
            index.names.insert(plan.key, pod.id.clone());
        }
        for id in view.containers.keys() {
            index.containers.insert(id.clone(), pod.clone());
        }
        index.pods.insert(pod.id.clone(), pod);
    }

    /// Takes a new container into the index.
    pub fn adopt_container(&self, id: &Id, pod: &Arc<Pod>) {
        self.write().containers.insert(id.clone(), pod.clone());
    }

    /// The container is gone.
    pub fn forget_container(&self, id: &Id) {
        self.write().containers.remove(id);
    }

    /// The pod is gone: its name is free again.
    pub fn forget(&self, pod: &Pod) {
        let mut index = self.write();
        index.pods.remove(&pod.id);
        index.names.retain(|_, id| *id != pod.id);
        index.containers.retain(|_, owner| owner.id != pod.id);
    }

    /// Every pod.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.read().pods.values().cloned().collect()
    }

    /// The pod whose id is, or uniquely starts with, `wanted`.
    ///
    /// # Errors
    /// See [`id::find`].
    pub fn pod(&self, wanted: &str) -> Result<Arc<Pod>, RequestError> {
        id::find(&self.read().pods, "sandbox", wanted).map(|(_, pod)| pod.clone())
    }

    /// The container whose id is, or uniquely starts with, `wanted`, and its pod.
    ///
    /// # Errors
    /// See [`id::find`].
    pub fn container(&self, wanted: &str) -> Result<(Arc<Pod>, Arc<ContainerRecord>), RequestError> {
        let (id, pod) = {
            let index = self.read();
            let (id, pod) = id::find(&index.containers, "container", wanted)?;
            (id.clone(), pod.clone())
        };
        let record = pod.container(&id)?;
        Ok((pod, record))
    }

    /// The bridge, for what cannot be done without.
    ///
    /// # Errors
    /// `network.mode` is cni.
    pub fn bridge(&self) -> Result<&Network, RequestError> {
        let missing = || RequestError::precondition("network.mode is cni: the embedded network is not there");
        self.network.as_ref().ok_or_else(missing)
    }

    /// Prefix of every mark on the host that belongs to this instance.
    #[must_use]
    pub fn mark(&self) -> String {
        format!("crisp:{}:", self.instance)
    }

    /// File name of a sandbox's network namespace pin.
    #[must_use]
    pub fn pin_name(&self, id: &str) -> String {
        format!("crisp-{}-{}", self.instance, &id[..id.len().min(16)])
    }
}

/// The host's own name.
///
/// # Errors
/// The kernel does not tell.
pub fn host_name() -> Result<String, RequestError> {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim_end().to_owned())
        .stage("read the host's name")
}

/// Runs blocking work on a thread that may block.
///
/// Cancel safety: the work goes on.
///
/// # Errors
/// The work's own, or that it panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
) -> Result<T, RequestError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RequestError::unknown(format!("internal error: {error}"))),
    }
}
