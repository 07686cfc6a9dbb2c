//! `crisp port-forward`: ports of this machine that lead into a pod.

use std::{net::SocketAddr, process::ExitCode, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;
use crisp_proto::runtime::v1::PortForwardRequest;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::sleep,
};

use crate::{
    endpoint::{Asked, Clients},
    stream::{forward, trust},
    target,
};

/// Descriptors that are no connections': the program's own, and what a call of the runtime takes for a moment.
const OTHER_DESCRIPTORS: usize = 32;
/// After a connection could not be accepted; until then something may have become free.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Pod: name, namespace/name or the beginning of its id
    pod: String,
    /// Ports: LOCAL:REMOTE, or one number for both; :REMOTE takes a local port that is free
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    ports: Vec<Ports>,
    /// Addresses to listen on
    #[arg(long, default_value = "127.0.0.1", value_delimiter = ',', value_name = "IP")]
    address: Vec<std::net::IpAddr>,
    #[command(flatten)]
    tls: trust::Options,
}

/// A port here and one inside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    /// 0: one that is free.
    local: u16,
    remote: u16,
}

impl FromStr for Ports {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let ports = match text.split_once(':') {
            None => port(text).map(|both| Ports { local: both, remote: both }),
            Some(("", remote)) => port(remote).map(|remote| Ports { local: 0, remote }),
            Some((local, remote)) => {
                port(local).zip(port(remote)).map(|(local, remote)| Ports { local, remote })
            }
        };
        match ports {
            Some(ports) => Ok(ports),
            None => bail!("{text:?} is no port, LOCAL:REMOTE or :REMOTE with numbers from 1 to 65535"),
        }
    }
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<ExitCode> {
    let clients = Clients::connect(endpoint).await?;
    let pod = target::pod(&clients, &arguments.pod).await?;
    let mut listeners = Vec::new();
    for ports in arguments.ports {
        for address in &arguments.address {
            let address = SocketAddr::new(*address, ports.local);
            let listener =
                TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
            println!("Forwarding from {} -> {}", listener.local_addr()?, ports.remote);
            listeners.push((listener, ports.remote));
        }
    }
    let room = Arc::new(Semaphore::new(room(descriptors(), listeners.len())));
    let mut tasks = JoinSet::new();
    for (listener, port) in listeners {
        let to =
            Destination { clients: clients.clone(), pod: pod.id.clone(), tls: arguments.tls.clone(), port };
        tasks.spawn(serve(listener, to, room.clone()));
    }
    match tasks.join_next().await {
        Some(ended) => ended?.map(|()| ExitCode::SUCCESS),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Where connections lead.
#[derive(Clone, Debug)]
struct Destination {
    clients: Clients,
    pod: String,
    tls: trust::Options,
    port: u16,
}

/// How many descriptors this program may have: all that it is allowed to ask for.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Refused, the smaller limit goes on to hold, and is counted with.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let limit = if raised.is_ok() { limit.maximum } else { limit.current };
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// How many connections there is room for: each is a socket here and one to the runtime.
fn room(descriptors: usize, listeners: usize) -> usize {
    (descriptors.saturating_sub(OTHER_DESCRIPTORS + listeners) / 2).clamp(1, Semaphore::MAX_PERMITS)
}

/// Takes connections; each has a stream of its own, so that none waits for another. One for which there is no room is
/// taken when another has ended.
async fn serve(listener: TcpListener, to: Destination, room: Arc<Semaphore>) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let place = room.clone().acquire_owned().await?;
        let (socket, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // A client that has gone already, or a machine that has run out of something: neither ends the others.
            Err(error) => {
                eprintln!("crisp: accept a connection: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let to = to.clone();
        connections.spawn(async move {
            if let Err(error) = Box::pin(one(&to, socket)).await {
                eprintln!("crisp: connection from {from}: {error:#}");
            }
            drop(place);
        });
    }
}

async fn one(to: &Destination, socket: TcpStream) -> Result<()> {
    let Destination { clients, pod, tls, port } = to;
    let what = format!("forward port {port}");
    let request = PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![(*port).into()] };
    let url = clients.runtime.clone().port_forward(request).await.asked(what)?.url;
    socket.set_nodelay(true)?;
    let tls = trust::of(&url, clients, tls).await?;
    forward::carry(&url, tls.as_ref(), *port, socket).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_what_descriptors_allow() {
        assert_eq!(room(48, 2), 7);
        assert_eq!(room(16, 1), 1);
        assert_eq!(room(usize::MAX, 1), Semaphore::MAX_PERMITS);
    }

    #[test]
    fn ports_are_one_number_or_two() {
        let of = |text: &str| text.parse::<Ports>().ok().map(|ports| (ports.local, ports.remote));
        assert_eq!(of("80"), Some((80, 80)));
        assert_eq!(of("8080:80"), Some((8080, 80)));
        assert_eq!(of(":80"), Some((0, 80)));
        for bad in ["", ":", "0", "80:0", "0:80", "65536", "80:http", "1:2:3"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
