//! Network, IPC and UTS namespaces: making them on a thread of their own (or joining those that a process of another
//! user namespace has made), holding them by file descriptors and pins, running code inside one.
//!
//! ```text
//!  caller's thread            fresh thread (never used again)
//!  create() ───────────────►  unshare → open /proc/thread-self/ns/* → host name → lo up → sysctls → pin
//!                             inside(&mut Created): what is spawned here is born in the namespaces
//!  Created + its result ◄───  exit
//!
//!  adopt() ────────────────►  setns into namespaces made before → host name → sysctls → pin, and on as above
//! ```
//!
//! unshare(2) and setns(2) change one thread. A thread that came back to a pool with somebody's namespaces would run the
//! next job there, so every such thread ends with its job. For the same reason namespaces are opened through
//! `/proc/thread-self`: `/proc/self` is the main thread, which never left the host.
//!
//! It must not know what the namespaces are for.

mod adopt;
mod pin;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crisp_sys::netlink::{Netlink, NetlinkError};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::link;
use crate::sysctl::{Owner, Sysctl, SysctlError};

pub use adopt::adopt;
use pin::Pinned;
pub use pin::{ensure_pin_dir, open_pin, unpin};

/// HOST_NAME_MAX of Linux: sethostname(2) takes no more bytes.
const HOSTNAME_MAX: usize = 64;

/// Where namespaces are bound to a file, so that they outlive every process in them. `None` pins nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// The network namespace; below `/run/netns` for `ip netns` and CNI agents to find it.
    pub net: Option<PathBuf>,
    /// The IPC namespace.
    pub ipc: Option<PathBuf>,
    /// The UTS namespace.
    pub uts: Option<PathBuf>,
    /// The user namespace that owns them.
    pub user: Option<PathBuf>,
}

impl Pins {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.net, &self.ipc, &self.uts, &self.user].into_iter().flatten().map(PathBuf::as_path)
    }
}

/// Which namespaces to make, and how they are set up.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// Make a network namespace; its loopback comes up.
    pub net: bool,
    /// Make an IPC namespace.
    pub ipc: bool,
    /// Make a UTS namespace.
    pub uts: bool,
    /// Host name of the new UTS namespace, at most 64 bytes; the caller's host name stays when `None`.
    pub hostname: Option<&'a str>,
    /// Names and values, written in this order. One that is not part of a namespace made here is an error, so is one
    /// of an interface that does not exist yet: see [`Sysctl::waits_for_link`] and [`run_in`].
    pub sysctls: &'a [(String, String)],
    /// Where to pin what is made.
    pub pins: Pins,
    /// Who has made the namespaces, if they are to be those of another user namespace: joined then, not made.
    pub origin: Option<Origin<'a>>,
}

/// A process that has made namespaces in a user namespace.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Its pidfd.
    pub process: BorrowedFd<'a>,
    /// The user namespace.
    pub user: BorrowedFd<'a>,
    /// What root of that namespace is outside: the kernel lets nobody else write the settings of its IPC namespaces.
    pub root: u32,
}

/// Namespaces held open. Dropping this closes the descriptors; pins stay until [`unpin`]. While the network
/// namespace's descriptor or its socket is open the namespace exists, so a caller that ends a pod lets go of both.
#[derive(Debug)]
pub struct Created {
    /// The network namespace.
    pub net: Option<OwnedFd>,
    /// The IPC namespace.
    pub ipc: Option<OwnedFd>,
    /// The UTS namespace.
    pub uts: Option<OwnedFd>,
    /// A route netlink socket that acts inside the network namespace from any thread.
    pub socket: Option<Netlink>,
}

/// Why namespaces were not made, opened or let go.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The request contradicts itself.
    #[error("namespace request: {reason}")]
    Request {
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A sysctl of the request would land outside the namespaces that it makes.
    #[error("sysctl {name} needs a new {owner} namespace, which was not asked for")]
    SysctlOutside {
        /// The sysctl.
        name: String,
        /// The namespace it is part of.
        owner: Owner,
    },
    /// A sysctl was malformed or refused.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The thread could not be started.
    #[error("start a thread for namespaces")]
    Thread(#[source] io::Error),
    /// A system call on a namespace.
    #[error("{call} {object}")]
    Call {
        /// The system call.
        call: &'static str,
        /// What it was about.
        object: String,
        /// What it returned.
        #[source]
        source: Errno,
    },
    /// A file operation on a namespace or a pin.
    #[error("{doing} {}", path.display())]
    File {
        /// The operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What it returned.
        #[source]
        source: io::Error,
    },
    /// A recorded pin holds no namespace any more: its mount is gone.
    #[error("pin {} holds no namespace", path.display())]
    PinGone {
        /// The pin.
        path: PathBuf,
    },
    /// The loopback link or the namespace's socket.
    #[error("{doing} in the new network namespace")]
    Netlink {
        /// The operation.
        doing: &'static str,
        /// Why it did not work.
        #[source]
        source: NetlinkError,
    },
}

/// Why [`create`] undid everything.
#[derive(Debug, thiserror::Error)]
pub enum CreateError<E> {
    /// The namespaces themselves.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The caller's own work inside them.
    #[error(transparent)]
    Inside(E),
}

/// Makes the namespaces of `request` on a fresh thread, pins them, and runs `inside` on that thread: a process that it
/// spawns is born in them, files of `/proc/sys` that it opens are theirs, while `Created::socket` and sockets opened
/// earlier act where they were opened.
///
/// # Errors
/// Whatever fails, `inside` included, pins made here are undone and nothing stays.
pub fn create<T: Send, E: Send>(
    request: &Request<'_>,
    inside: impl FnOnce(&mut Created) -> Result<T, E> + Send,
) -> Result<(Created, T), CreateError<E>> {
    let sysctls = check(request)?;
    on_fresh_thread(|| {
        let (mut created, pinned) = make(request, &sysctls)?;
        let value = inside(&mut created).map_err(CreateError::Inside)?;
        pinned.keep();
        Ok((created, value))
    })?
}

/// Opens the namespaces that `pins` name, with a new socket in the network namespace: what a restarted process does.
///
/// # Errors
/// [`NamespaceError::PinGone`] when a pin is missing or holds no namespace.
pub fn reopen(pins: &Pins) -> Result<Created, NamespaceError> {
    let open = |path: &Option<PathBuf>| path.as_deref().map(open_pin).transpose();
    let (net, ipc, uts) = (open(&pins.net)?, open(&pins.ipc)?, open(&pins.uts)?);
    let socket = net.as_ref().map(|net| open_route_in(net.as_fd())).transpose()?;
    Ok(Created { net, ipc, uts, socket })
}

/// Opens a route netlink socket inside the network namespace `net`.
///
/// # Errors
/// When `net` is no network namespace, or the socket cannot be opened.
pub fn open_route_in(net: BorrowedFd<'_>) -> Result<Netlink, NamespaceError> {
    run_in(net, Netlink::open_route)?
        .map_err(|source| NamespaceError::Netlink { doing: "open a route socket", source })
}

/// A TCP socket, not connected and non-blocking, that acts inside the network namespace `net` from any thread.
///
/// # Errors
/// When `net` is no network namespace, or the socket cannot be made (its kernel may have no IPv6).
pub fn tcp_socket_in(net: BorrowedFd<'_>, ipv6: bool) -> Result<OwnedFd, NamespaceError> {
    let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    run_in(net, || socket(family, SockType::Stream, flags, None))?.map_err(|source| NamespaceError::Call {
        call: "socket",
        object: format!("{family:?}"),
        source,
    })
}

/// Runs `work` on a fresh thread inside the network namespace `net`. Sockets that it opens stay there for good.
///
/// # Errors
/// When `net` is no network namespace, or the thread cannot be started.
pub fn run_in<T: Send>(net: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    on_fresh_thread(|| {
        setns(net, CloneFlags::CLONE_NEWNET).map_err(|source| NamespaceError::Call {
            call: "setns",
            object: "network namespace".to_owned(),
            source,
        })?;
        Ok(work())
    })?
}

/// Runs `work` on a thread that ends with it. A panic of the thread goes on in the caller.
fn on_fresh_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("crisp-netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(NamespaceError::Thread)?;
        thread.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}

/// Everything that can be refused before a namespace exists.
fn check(request: &Request<'_>) -> Result<Vec<(Sysctl, String)>, NamespaceError> {
    let refuse = |reason| Err(NamespaceError::Request { reason });
    let pins = &request.pins;
    let user = request.origin.is_some();
    if [(&pins.net, request.net), (&pins.ipc, request.ipc), (&pins.uts, request.uts), (&pins.user, user)]
        .iter()
        .any(|(pin, wanted)| pin.is_some() && !wanted)
    {
        return refuse("a pin for a namespace that is not made");
    }
    match request.hostname {
        Some(_) if !request.uts => return refuse("a host name without a uts namespace"),
        Some("") => return refuse("an empty host name"),
        Some(name) if name.len() > HOSTNAME_MAX => return refuse("a host name over 64 bytes"),
        _ => {}
    }
    let parse = |(name, value): &(String, String)| {
        let sysctl = Sysctl::parse(name)?;
        let made = match sysctl.owner() {
            Owner::Net => request.net,
            Owner::Ipc => request.ipc,
            Owner::Uts => request.uts,
        };
        match made {
            true => Ok((sysctl, value.clone())),
            false => Err(NamespaceError::SysctlOutside { name: name.clone(), owner: sysctl.owner() }),
        }
    };
    request.sysctls.iter().map(parse).collect()
}

/// The part of [`create`] that runs on the fresh thread.
fn make(request: &Request<'_>, sysctls: &[(Sysctl, String)]) -> Result<(Created, Pinned), NamespaceError> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, request.net);
    flags.set(CloneFlags::CLONE_NEWIPC, request.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, request.uts);
    let (call, entered) = match &request.origin {
        None => ("unshare", unshare(flags)),
        // No namespace at all would be taken for all of them.
        Some(_) if flags.is_empty() => ("setns", Ok(())),
        Some(origin) => ("setns", setns(origin.process, flags)),
    };
    entered.map_err(|source| NamespaceError::Call { call, object: format!("{flags:?}"), source })?;
    let open = |wanted: bool, kind| wanted.then(|| open_own(kind)).transpose();
    let mut created = Created {
        net: open(request.net, "net")?,
        ipc: open(request.ipc, "ipc")?,
        uts: open(request.uts, "uts")?,
        socket: None,
    };
    if request.net {
        created.socket = Some(socket_with_loopback_up()?);
    }
    let pinned = furnish(request, sysctls)?;
    Ok((created, pinned))
}

/// Sets up the calling thread's namespaces as `request` wants them, and pins them.
fn furnish(request: &Request<'_>, sysctls: &[(Sysctl, String)]) -> Result<Pinned, NamespaceError> {
    if let Some(name) = request.hostname {
        nix::unistd::sethostname(name).map_err(|source| NamespaceError::Call {
            call: "sethostname",
            object: name.to_owned(),
            source,
        })?;
    }
    for (sysctl, value) in sysctls {
        match &request.origin {
            None => sysctl.write(value)?,
            Some(origin) => write_as_root_of(origin, sysctl, value)?,
        }
    }
    let mut pinned = Pinned::default();
    for (pin, kind) in [(&request.pins.net, "net"), (&request.pins.ipc, "ipc"), (&request.pins.uts, "uts")] {
        if let Some(path) = pin {
            pinned.pin(&own(kind), path)?;
        }
    }
    if let (Some(path), Some(origin)) = (&request.pins.user, &request.origin) {
        pinned.pin(Path::new(&format!("/proc/self/fd/{}", origin.user.as_raw_fd())), path)?;
    }
    Ok(pinned)
}

/// Writes a setting that belongs to the root of another user namespace, or to the host's: kernels differ in that.
fn write_as_root_of(origin: &Origin<'_>, sysctl: &Sysctl, value: &str) -> Result<(), NamespaceError> {
    match sysctl.write(value) {
        Err(SysctlError::Write { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {}
        other => return Ok(other?),
    }
    let become_user = |uid| {
        crisp_sys::process::set_effective_uid_of_thread(uid).map_err(|error| NamespaceError::Call {
            call: "setresuid",
            object: uid.to_string(),
            source: error.errno,
        })
    };
    let own = nix::unistd::geteuid().as_raw();
    // This thread alone, which ends with its job.
    become_user(origin.root)?;
    let written = sysctl.write(value);
    become_user(own)?;
    Ok(written?)
}

/// The calling thread's namespace of one kind.
fn own(kind: &str) -> PathBuf {
    Path::new("/proc/thread-self/ns").join(kind)
}

fn open_own(kind: &str) -> Result<OwnedFd, NamespaceError> {
    let path = own(kind);
    match File::open(&path) {
        Ok(file) => Ok(file.into()),
        Err(source) => Err(NamespaceError::File { doing: "open", path, source }),
    }
}

fn socket_with_loopback_up() -> Result<Netlink, NamespaceError> {
    let failed = |doing| move |source| NamespaceError::Netlink { doing, source };
    let mut socket = Netlink::open_route().map_err(failed("open a route socket"))?;
    let verdicts = socket.request(&[link::up(link::LOOPBACK)]).map_err(failed("bring lo up"))?;
    for verdict in verdicts {
        verdict.map_err(|refusal| failed("bring lo up")(NetlinkError::Refused(refusal)))?;
    }
    Ok(socket)
}
