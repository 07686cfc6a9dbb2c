//! A session: an upgraded connection, and what its URL was given out for.
//!
//! Must not know: HTTP.

use std::{io, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Asked, attach,
    command::{self, Outcome, Receiver, Sender, Upgraded, Wanted},
    exec,
    forward::{self, Place},
    negotiate::Agreed,
    pump::Client,
    spdy::connection::{Connection, Source},
    transport::{Activity, Intake, Outbox, Peer},
    websocket::connection::WebSocket,
};
use crate::{error::RequestError, node::Node, pod::Pod, record::SandboxPhase};

/// How long the end of a port-forward's connection may take to be sent.
const FAREWELL: Duration = Duration::from_secs(1);

/// What limits a session from outside.
pub(super) struct Limits {
    /// Without a byte for so long, the client counts as gone; zero: never.
    pub(super) idle: Duration,
    /// The daemon ends.
    pub(super) ending: CancellationToken,
}

/// Serves the session to its end, with everything that belongs to it.
pub(super) async fn run(
    node: &Arc<Node>,
    asked: Asked,
    agreed: &Agreed,
    socket: impl AsyncRead + AsyncWrite + Send + 'static,
    peer: Peer,
    limits: Limits,
) {
    let (read, write) = tokio::io::split(socket);
    let activity = Activity::new();
    let (protocol, tunnel) = match agreed {
        Agreed::Spdy(version) => (*version, false),
        Agreed::WebSocket { protocol, .. } => {
            (protocol.unwrap_or("channel.k8s.io"), matches!(asked, Asked::PortForward(_)))
        }
    };
    let out = Outbox::new(Box::new(write), tunnel, activity.clone());
    let intake = Intake::new(Box::new(read), activity.clone());
    let upgraded = match agreed {
        Agreed::Spdy(_) => Upgraded::Spdy(Box::new(Connection::new(Source::Plain(intake), out.clone()))),
        Agreed::WebSocket { .. } => Upgraded::WebSocket(WebSocket::new(intake, out.clone())),
    };
    let given_up = async {
        tokio::select! {
            () = activity.idle(limits.idle) => {}
            () = limits.ending.cancelled() => {}
        }
    };
    match asked {
        Asked::PortForward(request) => {
            let mut connection = match upgraded {
                Upgraded::Spdy(connection) => *connection,
                Upgraded::WebSocket(socket) => Connection::new(Source::Tunnel(socket), out.clone()),
            };
            let served = port_forward(node, &request.pod_sandbox_id, &mut connection, &out, &peer);
            tokio::select! {
                () = served => {}
                () = given_up => {}
            }
            // Whoever does not take this has gone in all but name.
            let farewell = async {
                connection.go_away().await;
                out.shut_down().await;
            };
            let _ = timeout(FAREWELL, farewell).await;
        }
        Asked::Exec(request) => {
            let wanted = Wanted {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                tty: request.tty,
            };
            let mut given_up = std::pin::pin!(given_up);
            let opened = command::open(upgraded, out, protocol, wanted);
            let Some(mut client) = begun(opened, peer, given_up.as_mut()).await else { return };
            let outcome = exec::run(node, request, &mut client, given_up).await;
            finish(client, outcome).await;
        }
        Asked::Attach(request) => {
            let wanted = Wanted {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                tty: request.tty,
            };
            let mut given_up = std::pin::pin!(given_up);
            let opened = command::open(upgraded, out, protocol, wanted);
            let Some(mut client) = begun(opened, peer, given_up.as_mut()).await else { return };
            let outcome = tokio::select! {
                outcome = attach::run(node, request, &mut client) => outcome,
                () = given_up => None,
            };
            finish(client, outcome).await;
        }
    }
}

/// The client, once its channels are open.
async fn begun(
    opened: impl Future<Output = io::Result<(Receiver, Sender)>>,
    peer: Peer,
    given_up: impl Future<Output = ()>,
) -> Option<Client> {
    let opened = tokio::select! {
        opened = opened => opened,
        () = given_up => return None,
    };
    match opened {
        Ok((receiver, sender)) => Some(Client { receiver, sender, peer }),
        Err(error) => {
            tracing::debug!(%error, "streaming: a session did not begin");
            None
        }
    }
}

/// Tells a client that is still there how its session ended.
async fn finish(client: Client, outcome: Option<Outcome>) {
    if let Some(outcome) = outcome {
        client.sender.finish(client.receiver, &outcome).await;
    }
}

async fn port_forward(
    node: &Arc<Node>,
    sandbox: &str,
    connection: &mut Connection,
    out: &Outbox,
    peer: &Peer,
) {
    let served = match node.pod(sandbox).and_then(|pod| place(node, &pod)) {
        Ok(place) => forward::run(connection, out.clone(), peer, Arc::new(place)).await,
        // There is no stream yet on which it could be told: the connection just ends.
        Err(error) => return tracing::debug!(%error, "port-forward"),
    };
    if let Err(error) = served {
        tracing::debug!(%error, "port-forward");
    }
}

/// Where the ports of a pod are.
///
/// # Errors
/// It is not ready.
pub(super) fn place(node: &Node, pod: &Arc<Pod>) -> Result<Place, RequestError> {
    let view = pod.view();
    let id = &view.sandbox.id;
    match (view.sandbox.phase, &view.sandbox.network, view.link) {
        (SandboxPhase::Ready, Some(_), _) => {
            Ok(Place::Pod(Path::new(&node.config.network.pin_dir).join(node.pin_name(id.as_str()))))
        }
        (SandboxPhase::Ready, None, Some(link)) => Ok(Place::Host(pod.clone(), link)),
        _ => Err(RequestError::precondition(format!("sandbox {} is not ready", id.short(12)))),
    }
}
