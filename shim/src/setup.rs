//! What the daemon needs before it can serve: directories, the lock, the cgroup tree, the network, the images.
//! Everything that is missing on this host is said here, before the first request.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crisp_image::{Reference, Store, StoreOptions};
use crisp_netns::{
    ipam::Ipam,
    namespaces::ensure_pin_dir,
    network::{Network, NetworkConfig},
};
use crisp_runtime::cgroup::DeviceProgram;
use crisp_sys::mount::{MntFlags, umount2};

use crate::{
    cgroups::{Cgroups, parent::Driver},
    cni::{Mode, Networks},
    config::Config,
    convert::spec_devices::default_rules,
    error::{RequestError, Stage},
    id::hex,
    node::{Node, Parts, blocking},
    pod_cidr::PodCidr,
    record::StateDir,
    systemd, user_namespaces,
};

/// Controllers that CRI's limits need.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// Held as long as the daemon serves.
pub(crate) type Locks = [File; 2];

/// Makes the node and holds the locks on its state and root directories.
///
/// # Errors
/// What is missing, and what to do about it.
pub(crate) async fn node(config: Config) -> Result<(Arc<Node>, Locks), RequestError> {
    blocking(move || make(config)).await
}

fn make(config: Config) -> Result<(Arc<Node>, Locks), RequestError> {
    let (root, state) = (PathBuf::from(&config.root), StateDir::new(config.state.clone().into()));
    private_dir(Path::new(&config.root))?;
    private_dir(Path::new(&config.state))?;
    let locks = [lock(&state.lock(), "state")?, lock(&root.join("lock"), "root")?];
    for directory in [state.pods(), state.staging()] {
        private_dir(&directory)?;
    }
    ensure_pin_dir(Path::new(&config.network.pin_dir), true).stage("network.pin_dir")?;
    ensure_pin_dir(&state.pins(), false).stage("pins")?;
    let cgroups = cgroups(&config)?;
    let (network, ipam, pod_cidr) = network(&config)?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").stage("read the boot id")?;
    let options = StoreOptions { pinned: pinned(&config)?, ..StoreOptions::default() };
    let store =
        Store::open_with(&root, options).stage(format_args!("open the images in {}", root.display()))?;
    let monitor = monitor(&config)?;
    let instance = instance(&root)?;
    let cni = Networks::open(&config, &instance, &monitor)?;
    let user_namespaces = user_namespaces::probe(&monitor, &store);
    if let Err(reason) = &user_namespaces {
        tracing::info!(reason, "no user namespaces for pods");
    }
    let node = Node::new(Parts {
        instance,
        boot_id: boot_id.trim().to_owned(),
        store,
        network,
        cni,
        ipam,
        pod_cidr,
        cgroups,
        device_program: device_program(&config)?,
        monitor,
        user_namespaces,
        held_capabilities: held_capabilities()?,
        config,
    });
    Ok((node, locks))
}

/// Takes away what the daemon keeps on the host for its pods, when it ends and there are none: bridge, nftables
/// table and the mount of the pins. The next start makes them again.
pub(crate) async fn leave(node: &Arc<Node>) {
    let task_node = node.clone();
    let left = blocking(move || {
        if let Some(network) = &task_node.network {
            network.teardown_host().stage("network")?;
        }
        let pins = task_node.state.pins();
        umount2(&pins, MntFlags::empty()).stage(format_args!("unmount {}", pins.display()))
    });
    if let Err(error) = left.await {
        tracing::warn!(%error, "something stays on the host");
    }
}

fn pinned(config: &Config) -> Result<Vec<Reference>, RequestError> {
    let parse = |name: &String| Reference::parse(name).stage(format_args!("image.pinned {name:?}"));
    config.image.pinned.iter().map(parse).collect()
}

fn private_dir(path: &Path) -> Result<(), RequestError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .stage(format_args!("make the directory {}", path.display()))
}

/// Two daemons on one state directory would fight over its pods, two on one root directory over its images and
/// over what carries its instance's mark.
fn lock(path: &Path, which: &str) -> Result<File, RequestError> {
    let file = File::create(path).stage(format_args!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(RequestError::precondition(format!(
            "another crisp serves with this {which} directory: {} is locked",
            path.display()
        ))),
        Err(fs::TryLockError::Error(error)) => Err(error).stage(format_args!("lock {}", path.display())),
    }
}

fn cgroups(config: &Config) -> Result<Cgroups, RequestError> {
    let root = Path::new(&config.cgroup.root);
    let cgroups = Cgroups::open(root).stage(format_args!("cgroup.root {}", root.display()))?;
    if Driver::of(&config.cgroup) == Driver::Systemd && !Path::new(systemd::SOCKET).exists() {
        return Err(RequestError::precondition(format!(
            "cgroup.driver: systemd does not run here: there is no {}; set cgroup.driver = \"cgroupfs\"",
            systemd::SOCKET
        )));
    }
    let missing = cgroups.missing(&CONTROLLERS);
    if missing.is_empty() {
        return Ok(cgroups);
    }
    let missing = missing.join(", ");
    if config.cgroup.require_controllers {
        return Err(RequestError::precondition(format!(
            "cgroup.root {}: cgroup v2 is without the controllers {missing}; boot the host with \
             systemd.unified_cgroup_hierarchy=1 (and without cgroup v1 mounts), or set \
             cgroup.require_controllers = false to run pods without limits",
            root.display()
        )));
    }
    tracing::warn!(missing, "cgroup v2 controllers are missing; a limit that needs one is refused");
    Ok(cgroups)
}

/// Loads the program that says which devices containers may use; so a host that does not allow it is found here.
fn device_program(config: &Config) -> Result<Option<DeviceProgram>, RequestError> {
    let rules = crisp_runtime::oci::device_rules(&default_rules()?).stage("device rules")?;
    match DeviceProgram::load(&rules) {
        Ok(program) => Ok(Some(program)),
        Err(error) if config.cgroup.require_controllers => Err(RequestError::precondition(format!(
            "device control: {error}; it needs CAP_BPF or CAP_SYS_ADMIN and a kernel with CONFIG_CGROUP_BPF. With \
             cgroup.require_controllers = false pods run without, and a container that can make device nodes can use \
             every device of the host"
        ))),
        Err(error) => {
            tracing::warn!(%error, "no device control: a container that can make device nodes can use every device");
            Ok(None)
        }
    }
}

fn network(config: &Config) -> Result<(Option<Network>, Ipam, PodCidr), RequestError> {
    let settings = NetworkConfig {
        bridge: config.network.bridge.clone(),
        ipv4: subnet("ipv4", &config.network.ipv4)?,
        ipv6: subnet("ipv6", &config.network.ipv6)?,
        mtu: (config.network.mtu != 0).then_some(config.network.mtu),
        masquerade: config.network.masquerade,
        native: config.network.native_ranges.iter().filter_map(|range| range.parse().ok()).collect(),
        nft_table: nft_table(&config.network.bridge),
    };
    let ipam = Ipam::new(settings.ipv4, settings.ipv6).stage("network")?;
    let network = match Mode::of(config) {
        Mode::Cni => None,
        Mode::Auto | Mode::Bridge => Some(Network::open(settings).stage("network")?),
    };
    let pod_cidr = PodCidr::restore(Path::new(&config.root), network.as_ref(), &ipam)?;
    Ok((network, ipam, pod_cidr))
}

/// A table a bridge; nftables' names have no dashes and dots.
fn nft_table(bridge: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("crisp_{}", bridge.chars().map(word).collect::<String>())
}

fn subnet<T: std::str::FromStr>(key: &str, text: &str) -> Result<Option<T>, RequestError>
where
    T::Err: std::error::Error,
{
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).stage(format_args!("network.{key} {text:?}")),
    }
}

/// The random mark of a root directory; made once.
fn instance(root: &Path) -> Result<String, RequestError> {
    let path = root.join("instance");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let text = text.trim();
            if text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(text.to_owned());
            }
            Err(RequestError::unknown(format!("{} does not hold an instance id", path.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes).map_err(|error| {
                RequestError::unknown(format!("make an instance id: random source: {error}"))
            })?;
            let text = hex(&bytes);
            write_synced(&path, &text).stage(format_args!("write {}", path.display()))?;
            Ok(text)
        }
        Err(error) => Err(error).stage(format_args!("read {}", path.display())),
    }
}

/// Whole or not at all, also after a power cut.
///
/// # Errors
/// The file system's.
pub(crate) fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// The bounding set of this process (proc_pid_status(5)): a host or an outer container may have cut it.
fn held_capabilities() -> Result<u64, RequestError> {
    let status = fs::read_to_string("/proc/self/status").stage("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .ok_or_else(|| RequestError::unknown("/proc/self/status has no CapBnd line"))
}

/// The configured monitor, or the one beside this program, or the installed one.
fn monitor(config: &Config) -> Result<PathBuf, RequestError> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("crisp-monitor")));
    let candidates: Vec<PathBuf> = match config.monitor.as_str() {
        "" => beside.into_iter().chain([PathBuf::from("/usr/libexec/crisp/crisp-monitor")]).collect(),
        path => vec![path.into()],
    };
    let found = candidates.iter().find(|path| path.is_file()).cloned();
    found.ok_or_else(|| {
        let tried: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        RequestError::precondition(format!("monitor: no program crisp-monitor; tried {}", tried.join(", ")))
    })
}
