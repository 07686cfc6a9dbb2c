//! A host for one test: a thread in fresh network and mount namespaces, with a folder for pins. Threads and processes
//! that the code under test starts inherit both; the kernel takes everything away when the last of them ends.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crisp_netns::ipam::Lease;
use crisp_netns::namespaces::{Created, NamespaceError, Pins, Request, create, run_in};
use crisp_netns::network::{AttachRequest, Attachment, Network, NetworkError};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Long enough for any connection that will come about, so that a broken path fails rather than hangs.
const CONNECT: Duration = Duration::from_secs(20);

pub(crate) struct Host {
    folder: tempfile::TempDir,
    net: OwnedFd,
}

/// Runs `test` on a host of its own.
pub(crate) fn on_own_host(test: impl FnOnce(&Host) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .expect("this test needs root: it makes network and mount namespaces");
            mount(None::<&Path>, "/", None::<&Path>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&Path>)
                .unwrap();
            let net = fs::File::open("/proc/thread-self/ns/net").unwrap().into();
            let host = Host { folder: tempfile::tempdir().unwrap(), net };
            run("ip", &["link", "set", "lo", "up"]);
            test(&host);
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

impl Host {
    pub(crate) fn net(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All three kinds of pins below the host's folder.
    pub(crate) fn pins(&self, name: &str) -> Pins {
        let pin = |kind: &str| Some(self.path(&format!("{name}-{kind}")));
        Pins { net: pin("net"), ipc: pin("ipc"), uts: pin("uts"), user: None }
    }

    /// Mount points below the host's folder, as the kernel lists them.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let folder = self.folder.path().to_str().unwrap().to_owned();
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        table
            .lines()
            .filter(|line| line.split(' ').nth(4).unwrap().starts_with(&folder))
            .map(str::to_owned)
            .collect()
    }

    /// Files in the host's folder.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A network namespace with what `network` needs, attached as `name` with a new lease.
    pub(crate) fn attached(&self, network: &Network, name: &str, lease: &Lease) -> (Created, Attachment) {
        let mut created = self.unattached(network);
        let attachment = attach(network, name, &mut created, lease).unwrap();
        (created, attachment)
    }

    pub(crate) fn unattached(&self, network: &Network) -> Created {
        let sysctls = network.sysctls();
        let request = Request { net: true, sysctls: &sysctls, ..Request::default() };
        let (created, ()) = create(&request, |_| Ok::<_, NamespaceError>(())).unwrap();
        created
    }
}

pub(crate) fn attach(
    network: &Network,
    name: &str,
    created: &mut Created,
    lease: &Lease,
) -> Result<Attachment, NetworkError> {
    network.attach(AttachRequest {
        name,
        alias: &format!("test/{name}"),
        ifname: "eth0",
        netns: created.net.as_ref().unwrap().as_fd(),
        inside: created.socket.as_mut().unwrap(),
        lease,
    })
}

pub(crate) fn net_of(created: &Created) -> BorrowedFd<'_> {
    created.net.as_ref().unwrap().as_fd()
}

/// Makes a TCP connection from one namespace to an address of the other; returns the client's address as the server
/// sees it.
pub(crate) fn connect(from: BorrowedFd<'_>, to: BorrowedFd<'_>, address: IpAddr) -> IpAddr {
    let listener = run_in(to, || TcpListener::bind(SocketAddr::new(address, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    let client = run_in(from, || TcpStream::connect_timeout(&target, CONNECT)).unwrap();
    let client = client.unwrap_or_else(|error| panic!("connect to {target}: {error}"));
    let (_, peer) = listener.accept().unwrap();
    drop(client);
    peer.ip()
}

/// Runs a program on the test's host and returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program inside a network namespace.
pub(crate) fn run_inside(net: BorrowedFd<'_>, program: &str, arguments: &[&str]) -> String {
    run_in(net, || run(program, arguments)).unwrap()
}
