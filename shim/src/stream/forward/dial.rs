//! Connections to ports inside a pod, made with sockets of its own network namespace.
//!
//! Must not know: who wants them.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
};

use crisp_netns::namespaces::{self, NamespaceError};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
};

use super::port::Port;
use crate::{
    error::{RequestError, Stage},
    link::Link,
    node::blocking,
    pod::Pod,
    record::SandboxPhase,
};

/// Why there are no more connections.
pub(super) const STOPPED: &str = "the pod has been stopped";

/// Each socket in a pod's namespace takes a thread for a moment; so many at a time.
static THREADS: Semaphore = Semaphore::const_new(16);

/// Where a pod's ports are.
#[derive(Debug)]
pub(in crate::stream) enum Place {
    /// In the host's network, which is the daemon's own and outlives the pod; the link goes with the pod.
    Host(Arc<Pod>, Link),
    /// In the namespace pinned here. It is opened for each connection, so that a session without any keeps no
    /// namespace from ending with its pod.
    Pod(PathBuf),
}

impl Place {
    /// Connects to a port on the pod's loopback, IPv4 first.
    ///
    /// # Errors
    /// Nobody listens; the pod is gone. As text for the client.
    pub(super) async fn dial(&self, port: u16) -> Result<Port, String> {
        let mut refused = Vec::new();
        for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let address = SocketAddr::new(address, port);
            match self.connect(address).await {
                Ok(socket) => {
                    return Port::new(socket).map_err(|error| format!("port {port}: {}", plain(&error)));
                }
                Err(error) => refused.push(format!("{address}: {}", error.text)),
            }
        }
        Err(format!("connect to port {port} inside the pod: {}", refused.join("; ")))
    }

    /// Completes when nothing more may be reached through the pod. In a network of its own everything ends with it.
    pub(super) async fn ended(&self) {
        match self {
            Place::Host(_, link) => link.ended().await,
            Place::Pod(_) => std::future::pending().await,
        }
    }

    async fn connect(&self, address: SocketAddr) -> Result<TcpStream, RequestError> {
        let socket = match self {
            Place::Host(pod, _) if pod.sandbox().phase != SandboxPhase::Ready => {
                return Err(RequestError::precondition(STOPPED));
            }
            Place::Host(..) if address.is_ipv6() => TcpSocket::new_v6().stage("socket")?,
            Place::Host(..) => TcpSocket::new_v4().stage("socket")?,
            Place::Pod(pin) => {
                let _one = THREADS.acquire().await.stage("wait for a thread")?;
                let (pin, ipv6) = (pin.clone(), address.is_ipv6());
                let socket = blocking(move || {
                    let net = namespaces::open_pin(&pin).map_err(|error| match error {
                        NamespaceError::PinGone { .. } => RequestError::precondition(STOPPED),
                        other => RequestError::unknown(crate::error::chain(&other)),
                    })?;
                    namespaces::tcp_socket_in(net.as_fd(), ipv6).stage("socket")
                });
                TcpSocket::from_std_stream(socket.await?.into())
            }
        };
        socket.connect(address).await.map_err(|error| RequestError::unknown(plain(&error)))
    }
}

/// The system's words without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or_default();
    words.to_lowercase()
}
