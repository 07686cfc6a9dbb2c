//! Records: what the daemon must know again after it was killed, one small JSON file an object.
//!
//! A record is replaced atomically (write beside, rename) and never synced: the state directory lives on tmpfs
//! and dies with the kernel, like the pods that it describes. A record carries a version; fields that a reader
//! does not know are kept out of its way by serde's defaults on both sides.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use crisp_monitor::wire;
use crisp_proto::runtime::v1 as cri;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::id::Id;

/// Version written into records.
pub const VERSION: u32 = 1;

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("record {}: {what}", path.display())]
pub struct RecordError {
    path: PathBuf,
    what: String,
}

impl RecordError {
    fn new(path: &Path, what: impl ToString) -> Self {
        Self { path: path.to_owned(), what: what.to_string() }
    }
}

/// Replaces the record at `path`.
///
/// # Errors
/// The file system refuses.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    let beside = path.with_extension("new");
    let bytes = serde_json::to_vec(value).map_err(|error| RecordError::new(path, error))?;
    fs::write(&beside, bytes)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| RecordError::new(path, error))
}

/// Something that is kept in a record, in the directory of its id.
pub trait Recorded: DeserializeOwned {
    /// [`VERSION`] of the writer.
    fn version(&self) -> u32;
    /// The id.
    fn id(&self) -> &Id;
}

impl Recorded for SandboxRecord {
    fn version(&self) -> u32 {
        self.version
    }

    fn id(&self) -> &Id {
        &self.id
    }
}

impl Recorded for ContainerRecord {
    fn version(&self) -> u32 {
        self.version
    }

    fn id(&self) -> &Id {
        &self.id
    }
}

/// Reads the record at `path`; `None` when there is none.
///
/// # Errors
/// It cannot be read, it is not a record of this kind and version, or not the one of the object whose directory it
/// lies in: paths are made of its id.
pub fn read<T: Recorded>(path: &Path) -> Result<Option<T>, RecordError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RecordError::new(path, error)),
    };
    let record: T = serde_json::from_slice(&bytes).map_err(|error| RecordError::new(path, error))?;
    if record.version() != VERSION {
        let text = format!("format version {}; this daemon knows {VERSION}", record.version());
        return Err(RecordError::new(path, text));
    }
    let directory = path.parent().and_then(Path::file_name);
    if directory.is_none_or(|name| name != record.id().as_str()) {
        return Err(RecordError::new(path, format!("it is the record of {:?}", record.id().as_str())));
    }
    Ok(Some(record))
}

/// Where a sandbox is in its life. See `pod` for the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxPhase {
    /// Being made. Found at start: undone.
    Building,
    /// Its making has failed, and something of it could not be taken away again: that is tried until it can be, and then
    /// it is forgotten.
    Undoing,
    /// Usable.
    Ready,
    /// Over: its containers are ended and what it holds is given back, at once or when that becomes possible. Found at
    /// start: gone on with.
    Stopping,
    /// Everything it held has been taken away; it is listed until it is removed.
    Stopped,
}

/// A process, told apart from a later one with the same pid by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Pid in the host's PID namespace.
    pub pid: i32,
    /// Field 22 of `/proc/pid/stat`.
    pub start_ticks: u64,
}

/// Everything there is to know of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Its id.
    pub id: Id,
    /// The kernel that it lives on (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Where it is in its life.
    pub phase: SandboxPhase,
    /// Nanoseconds since the epoch.
    pub created_nanos: i64,
    /// As the client sent it; `linux.overhead` and `linux.resources` are what it said last.
    pub config: cri::PodSandboxConfig,
    /// As the client sent it.
    pub runtime_handler: String,
    /// Its hostname (the host's for a host-network pod).
    pub hostname: String,
    /// Cgroup under which the containers' are made, as a path below the cgroup root.
    pub cgroup_parent: String,
    /// The topmost cgroup that crisp made for this sandbox and has to take away again.
    pub cgroup_made: Option<String>,
    /// What the network gave it; `None` for the host's network.
    pub network: Option<NetworkRecord>,
    /// The init of the shared PID namespace.
    pub init: Option<ProcessId>,
    /// The monitor.
    pub monitor_pid: i32,
}

impl SandboxRecord {
    /// Whether CNI plugins hold something for it, or may.
    #[must_use]
    pub fn is_in_cni_network(&self) -> bool {
        self.network.as_ref().is_some_and(|network| network.cni.is_some())
    }
}

/// A sandbox's place in the network: the bridge's, or a CNI network's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The veth's host end; empty for a CNI network.
    pub host_interface: String,
    /// Leased address.
    pub ipv4: Option<std::net::Ipv4Addr>,
    /// Leased address.
    pub ipv6: Option<std::net::Ipv6Addr>,
    /// The CNI network, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<CniRecord>,
}

/// A sandbox's place in a CNI network. What its plugins were told and have answered is in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniRecord {
    /// The network's name.
    pub network: String,
    /// The addresses of the pod's interface, the primary one first; none before it is attached.
    pub addresses: Vec<std::net::IpAddr>,
}

impl NetworkRecord {
    /// What the sandbox `id` gets with these addresses.
    #[must_use]
    pub fn new(id: &Id, lease: &crisp_netns::ipam::Lease) -> Self {
        Self { host_interface: format!("cr{}", id.short(12)), ipv4: lease.v4, ipv6: lease.v6, cni: None }
    }

    /// The addresses as they were leased.
    #[must_use]
    pub fn lease(&self) -> crisp_netns::ipam::Lease {
        crisp_netns::ipam::Lease { v4: self.ipv4, v6: self.ipv6 }
    }

    /// The addresses as CRI reports them: the primary one first.
    pub fn addresses(&self) -> impl Iterator<Item = String> + '_ {
        let bridge =
            self.ipv4.iter().map(ToString::to_string).chain(self.ipv6.iter().map(ToString::to_string));
        let cni = self.cni.iter().flat_map(|cni| &cni.addresses).map(ToString::to_string);
        bridge.chain(cni)
    }
}

/// Where a container is in its life. See `container` for the picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerPhase {
    /// Being made. Found at start: undone.
    Creating,
    /// Cloned, waiting for Start.
    Created,
    /// Executing.
    Running {
        /// Nanoseconds since the epoch.
        started_nanos: i64,
    },
    /// Over.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Nanoseconds since the epoch; 0: it never started.
    pub started_nanos: i64,
    /// Nanoseconds since the epoch.
    pub finished_nanos: i64,
    /// Exit status, 128 + signal, 128 for a failed start, 255 when nobody saw it end.
    pub code: i32,
    /// CRI `reason`: Completed, Error, OOMKilled, StartError, Unknown.
    pub reason: String,
    /// CRI `message`.
    pub message: String,
}

/// Everything there is to know of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Its id.
    pub id: Id,
    /// Its sandbox.
    pub sandbox: Id,
    /// Where it is in its life.
    pub phase: ContainerPhase,
    /// Nanoseconds since the epoch.
    pub created_nanos: i64,
    /// As the client sent it; `linux.resources` is what was last applied.
    pub config: cri::ContainerConfig,
    /// Image id, `sha256:...`: the config digest.
    pub image_id: String,
    /// First repo digest of the image at create time, else its id.
    pub image_ref: String,
    /// First tag of the image at create time, else what the client asked for.
    pub image_name: String,
    /// Resolved credentials, as CRI reports them.
    pub user: UserRecord,
    /// Number of the signal that Stop sends.
    pub stop_signal: i32,
    /// Absolute path of the log file; empty: none.
    pub log_path: String,
    /// Its cgroup, as a path below the cgroup root.
    pub cgroup: String,
    /// What the OOM killer has done to it.
    #[serde(default)]
    pub oom: Option<OomRecord>,
    /// Its first process.
    pub process: Option<ProcessId>,
    /// The OCI runtime spec that it was made from (also what exec'd processes are derived from).
    pub spec: oci_spec::runtime::Spec,
}

/// OOM kills in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomRecord {
    /// Processes killed.
    pub kills: u64,
    /// Whose limit was the cause of the last one.
    pub level: OomLevel,
}

/// Whose limit made the OOM killer kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OomLevel {
    /// It could not be told.
    Unknown,
    /// The container's own.
    Container,
    /// The pod's cgroup's.
    Pod,
    /// That of a cgroup above the pod's.
    Ancestor,
    /// The machine's memory.
    Host,
}

impl OomLevel {
    /// Of a number of the protocol or of an exit record.
    #[must_use]
    pub fn of(number: i32) -> Self {
        match wire::OomLevel::try_from(number) {
            Ok(wire::OomLevel::Container) => Self::Container,
            Ok(wire::OomLevel::Pod) => Self::Pod,
            Ok(wire::OomLevel::Ancestor) => Self::Ancestor,
            Ok(wire::OomLevel::Host) => Self::Host,
            Ok(wire::OomLevel::Unknown) | Err(_) => Self::Unknown,
        }
    }
}

impl fmt::Display for OomLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "a memory limit",
            Self::Container => "the container's memory limit",
            Self::Pod => "the pod's memory limit",
            Self::Ancestor => "the memory limit of a cgroup above the pod's",
            Self::Host => "the machine's memory",
        })
    }
}

impl From<&wire::OomKills> for OomRecord {
    fn from(kills: &wire::OomKills) -> Self {
        Self { kills: kills.kills, level: OomLevel::of(kills.level) }
    }
}

/// Credentials of a container's first process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups, the primary one among them, without duplicates.
    pub groups: Vec<u32>,
}

/// The daemon's directories below the state directory.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Names the directories below `path`; makes none.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Lock file that refuses a second daemon.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Empty directory on which a container's root is attached, inside its own mount namespace only.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.0.join("staging")
    }

    /// Pins of IPC and UTS namespaces: a mount of its own, private.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.0.join("ns")
    }

    /// All sandboxes.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.0.join("pods")
    }

    /// One sandbox.
    #[must_use]
    pub fn pod(&self, id: &Id) -> PodDir {
        PodDir(self.pods().join(id.as_str()))
    }
}

/// A sandbox's directory.
#[derive(Clone, Debug)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The sandbox's record.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }

    /// The monitor's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("monitor.sock")
    }

    /// Mount point of the pod's `/dev/shm`.
    #[must_use]
    pub fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// One of the files `hostname`, `hosts`, `resolv.conf`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// All containers.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    /// One container.
    #[must_use]
    pub fn container(&self, id: &Id) -> PathBuf {
        self.containers().join(id.as_str())
    }

    /// A container's record.
    #[must_use]
    pub fn container_record(&self, id: &Id) -> PathBuf {
        self.container(id).join("container.json")
    }

    /// A container's exit record, written by the monitor.
    #[must_use]
    pub fn container_exit(&self, id: &Id) -> PathBuf {
        self.container(id).join("exit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_before_there_was_cni_is_the_bridges() {
        let text = r#"{"host_interface":"cr1","ipv4":"10.0.0.2","ipv6":"fd00::2"}"#;
        let old: NetworkRecord = serde_json::from_str(text).unwrap();
        assert_eq!(old.addresses().collect::<Vec<_>>(), ["10.0.0.2", "fd00::2"]);
        assert_eq!((serde_json::to_string(&old).unwrap().as_str(), old.cni), (text, None));
    }

    #[test]
    fn a_cni_network_keeps_its_addresses_in_their_order() {
        let addresses = vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let cni = CniRecord { network: "n".to_owned(), addresses };
        let network = NetworkRecord { cni: Some(cni), ..NetworkRecord::default() };
        let text = serde_json::to_string(&network).unwrap();
        let read: NetworkRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(read, network);
        assert_eq!(read.addresses().collect::<Vec<_>>(), ["10.0.0.2", "fd00::2"]);
    }
}
