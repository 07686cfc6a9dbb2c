//! A container start as data: the list of operations that the child of `clone3` executes, in order.
//!
//! The daemon builds a plan and checks it before any privilege is used; it travels as a sealed memfd to the
//! monitor; the child walks it and allocates nothing. Paths are paths inside the new root and are resolved
//! with `RESOLVE_IN_ROOT`; mounts from outside arrive as descriptors.
//!
//! Must not know: CRI, OCI types, the monitor's protocol.

mod print;

use crate::error::PlanError;
use std::os::fd::OwnedFd;

impl Plan {
    /// The plan as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(self)
    }

    /// The reverse of [`Self::to_bytes`]. Fields that a newer daemon knows are skipped.
    ///
    /// # Errors
    /// [`PlanError::Decode`] when the bytes are no plan.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PlanError> {
        prost::Message::decode(bytes).map_err(|error| PlanError::Decode { reason: error.to_string() })
    }

    /// The plan in a sealed memory file, as it travels to the monitor.
    ///
    /// # Errors
    /// [`PlanError::Sys`] when the kernel has no memory or descriptor for it.
    pub fn to_memfd(&self) -> Result<OwnedFd, PlanError> {
        Ok(crisp_sys::fd::memfd_create_sealed("crisp-plan", &self.to_bytes())?)
    }
}

/// One container start (or exec), complete.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Plan {
    /// Executed in order, before the process is set up.
    #[prost(message, repeated, tag = "1")]
    pub ops: Vec<Op>,
    /// What is executed at the end, and as whom.
    #[prost(message, optional, tag = "2")]
    pub process: Option<Process>,
    /// How many descriptors the plan refers to (its `fd` indices are below this).
    #[prost(uint32, tag = "3")]
    pub fds: u32,
    /// The container gets a cgroup namespace of its own.
    #[prost(bool, tag = "4")]
    pub cgroup_namespace: bool,
    /// The process lives in a user namespace that is not the launching process's.
    #[prost(message, optional, tag = "30")]
    pub user: Option<User>,
}

/// The user namespace of a process. All ids of the plan but those here are ids inside of it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct User {
    /// Index of the namespace among the plan's descriptors; 0, for an exec: that of the container.
    #[prost(uint32, tag = "1")]
    pub fd: u32,
    /// What the process's user id is outside: pipes that become its standard streams are given to it there.
    #[prost(uint32, tag = "2")]
    pub host_uid: u32,
}

/// One operation of a [`Plan`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Op {
    /// Which.
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub kind: Option<Kind>,
}

/// The operations there are.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    /// Attach the root mount (fd index 0) and make it the place all later paths are resolved in.
    #[prost(message, tag = "1")]
    Root(RootMount),
    /// Mount a new file system instance.
    #[prost(message, tag = "2")]
    Mount(NewMount),
    /// Attach a mount that came as a descriptor.
    #[prost(message, tag = "3")]
    Attach(Attach),
    /// Make a device node.
    #[prost(message, tag = "4")]
    Device(Device),
    /// Make a symbolic link, unless something is there.
    #[prost(message, tag = "5")]
    Symlink(Symlink),
    /// Hide a path: a file behind `/dev/null`, a directory behind an empty read-only tmpfs. Missing: ignored.
    #[prost(message, tag = "6")]
    Mask(PathOnly),
    /// Make a path read-only by a bind mount of itself. Missing: ignored.
    #[prost(message, tag = "7")]
    Readonly(PathOnly),
    /// Make a directory (and its parents) unless it is there.
    #[prost(message, tag = "8")]
    Directory(Directory),
    /// Change into the root and drop the old one; make it read-only if asked.
    #[prost(message, tag = "9")]
    Pivot(Pivot),
    /// Open a pseudo-terminal of the devpts at `/dev/pts` and mount it on a path, made as a file if missing. It becomes
    /// standard input, output and error of the process and its controlling terminal.
    #[prost(message, tag = "10")]
    Console(PathOnly),
}

/// See [`Kind::Root`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct RootMount {
    /// An existing directory of the host on which the root is attached before the pivot.
    #[prost(string, tag = "1")]
    pub staging: String,
    /// Propagation of the container's root: `MS_PRIVATE` (or 0), `MS_SLAVE` or `MS_SHARED`. The copy of the host's
    /// mounts that the child sees until the pivot becomes private, or a slave for the other two: never shared.
    #[prost(uint64, tag = "2")]
    pub propagation: u64,
    /// Index of a tmpfs with what masks hide paths behind and the device nodes that [`Device::node`] names, for a
    /// child that may make no device nodes (`crate::nodes`); 0: the child makes it, when there is something to hide.
    #[prost(uint32, tag = "30")]
    pub kit: u32,
}

/// See [`Kind::Mount`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct NewMount {
    /// Where; made as a directory if missing.
    #[prost(string, tag = "1")]
    pub target: String,
    /// File system type: proc, sysfs, tmpfs, devpts, mqueue, cgroup2.
    #[prost(string, tag = "2")]
    pub fstype: String,
    /// `fsconfig` strings (`size=65536k`) and flags (`newinstance`), one each.
    #[prost(string, repeated, tag = "3")]
    pub options: Vec<String>,
    /// `MOUNT_ATTR_*` bits.
    #[prost(uint64, tag = "4")]
    pub attributes: u64,
}

/// See [`Kind::Attach`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attach {
    /// Index of the detached mount among the plan's descriptors.
    #[prost(uint32, tag = "1")]
    pub fd: u32,
    /// Where; made as a file or directory, like the source, if missing.
    #[prost(string, tag = "2")]
    pub target: String,
    /// The source is a directory.
    #[prost(bool, tag = "3")]
    pub directory: bool,
    /// `MOUNT_ATTR_*` bits to set.
    #[prost(uint64, tag = "4")]
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    #[prost(uint64, tag = "5")]
    pub clear: u64,
    /// Apply `set` and `clear` to the mounts below, too (`AT_RECURSIVE`).
    #[prost(bool, tag = "6")]
    pub recursive: bool,
    /// `MS_PRIVATE`, `MS_SLAVE` or `MS_SHARED`; 0 leaves it.
    #[prost(uint64, tag = "7")]
    pub propagation: u64,
    /// Apply `propagation` to the mounts below, too.
    #[prost(bool, tag = "8")]
    pub propagation_recursive: bool,
    /// `MOUNT_ATTR_*` bits to set on the mounts below, too, whatever `recursive` says (`rro`).
    #[prost(uint64, tag = "9")]
    pub set_recursive: u64,
}

/// See [`Kind::Device`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Device {
    /// Path of the node.
    #[prost(string, tag = "1")]
    pub path: String,
    /// `S_IFCHR` or `S_IFBLK`, with permission bits.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Major number.
    #[prost(uint32, tag = "3")]
    pub major: u32,
    /// Minor number.
    #[prost(uint32, tag = "4")]
    pub minor: u32,
    /// Owner.
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "6")]
    pub gid: u32,
    /// Number of the node in [`RootMount::kit`], which is bound to the path instead; 0: the node is made there.
    #[prost(uint32, tag = "30")]
    pub node: u32,
}

/// See [`Kind::Symlink`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Symlink {
    /// Path of the link.
    #[prost(string, tag = "1")]
    pub path: String,
    /// What it says.
    #[prost(string, tag = "2")]
    pub target: String,
}

/// A path.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PathOnly {
    /// The path.
    #[prost(string, tag = "1")]
    pub path: String,
}

/// See [`Kind::Directory`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Directory {
    /// The path.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Permission bits of what is made.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
}

/// See [`Kind::Pivot`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Pivot {
    /// Make the root mount itself read-only (CRI `readonly_rootfs`).
    #[prost(bool, tag = "1")]
    pub readonly: bool,
}

/// The process at the end of a plan. Everything a child would inherit from the monitor is set here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    /// Program and arguments; a first word without `/` is searched in `PATH` of `env`. Bytes without NUL.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub args: Vec<Vec<u8>>,
    /// `KEY=value`. Bytes without NUL.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
    /// Working directory, absolute, made (0755) if missing.
    #[prost(string, tag = "3")]
    pub cwd: String,
    /// User id.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// Primary group id.
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// Supplementary groups.
    #[prost(uint32, repeated, tag = "6")]
    pub groups: Vec<u32>,
    /// Capability sets as bit masks (bit = capability number).
    #[prost(message, optional, tag = "7")]
    pub capabilities: Option<Capabilities>,
    /// `prctl(PR_SET_NO_NEW_PRIVS)`.
    #[prost(bool, tag = "8")]
    pub no_new_privs: bool,
    /// `/proc/self/oom_score_adj`, written by the child before it gives up its privileges. A value that the
    /// kernel refuses because it asks for more protection than there is (EACCES) is not an error when the
    /// present value is already at least as high.
    #[prost(sint32, optional, tag = "9")]
    pub oom_score_adj: Option<i32>,
    /// Resource limits.
    #[prost(message, repeated, tag = "10")]
    pub rlimits: Vec<Rlimit>,
    /// `umask`.
    #[prost(uint32, tag = "11")]
    pub umask: u32,
    /// Seccomp filter: an array of `struct sock_filter`, native byte order; empty: none (seccomp(2)).
    #[prost(bytes = "vec", tag = "12")]
    pub seccomp: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*` for it.
    #[prost(uint32, tag = "13")]
    pub seccomp_flags: u32,
    /// AppArmor profile that the program runs under (`attr/apparmor/exec` of procfs); empty: the kernel's choice, which
    /// is the monitor's own.
    #[prost(string, tag = "20")]
    pub apparmor: String,
    /// A terminal instead of pipes. For a container its [`Kind::Console`] opens it; a further process gets one of its
    /// own from the devpts at `/dev/pts` of the container.
    #[prost(bool, tag = "14")]
    pub terminal: bool,
}

/// Capability bit masks.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Capabilities {
    /// Bounding set.
    #[prost(uint64, tag = "1")]
    pub bounding: u64,
    /// Effective set.
    #[prost(uint64, tag = "2")]
    pub effective: u64,
    /// Permitted set.
    #[prost(uint64, tag = "3")]
    pub permitted: u64,
    /// Inheritable set (CVE-2022-24769: empty unless asked for).
    #[prost(uint64, tag = "4")]
    pub inheritable: u64,
    /// Ambient set.
    #[prost(uint64, tag = "5")]
    pub ambient: u64,
}

/// One `setrlimit`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Rlimit {
    /// `RLIMIT_*` number.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    /// Soft limit.
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    /// Hard limit.
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}
