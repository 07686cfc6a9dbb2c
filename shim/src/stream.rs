//! Streaming: exec, attach and port-forward, over URLs that the CRI calls of these names give out.
//!
//! ```text
//!  Exec, Attach, PortForward      checked ─ one-time token ─ URL
//!  the client opens the URL       token ─ version ─ 101 ─ SPDY/3.1 or WebSocket
//!    exec          socket ◄──► the process's own pipes or terminal
//!    attach        socket ◄──► pipes ◄──► the monitor, which copies what it reads for the log
//!    port-forward  socket ◄──► sockets made inside the pod's network namespace
//! ```
//!
//! Must not know: how a process is made, how a namespace is entered.

mod attach;
mod command;
mod descriptor;
mod exec;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod inbox;
mod negotiate;
mod pump;
mod server;
mod session;
pub mod spdy;
mod strangers;
mod tls;
mod token;
mod transport;
pub mod websocket;

use std::{sync::Arc, time::Duration};

use crisp_proto::runtime::v1 as cri;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{config::StreamConfig, container::exec::launch, error::RequestError, node::Node};
use negotiate::Kind;
use server::Door;
use token::Tokens;

/// How long sessions may take to end with the daemon: what was exec'd is killed first.
const FAREWELL: Duration = Duration::from_secs(10);

/// What a URL was given out for.
#[derive(Debug)]
enum Asked {
    Exec(cri::ExecRequest),
    Attach(cri::AttachRequest),
    PortForward(cri::PortForwardRequest),
}

impl Asked {
    fn kind(&self) -> Kind {
        match self {
            Asked::Exec(_) => Kind::Exec,
            Asked::Attach(_) => Kind::Attach,
            Asked::PortForward(_) => Kind::PortForward,
        }
    }
}

/// The streams of a daemon.
#[derive(Debug)]
pub struct Streams {
    tokens: Tokens<Asked>,
    /// What URLs begin with.
    base: String,
    ending: CancellationToken,
    tasks: TaskTracker,
}

/// The streaming server before it serves.
#[derive(Debug)]
pub struct Server(Door);

/// Binds the streaming server's socket. `ending`: every session ends, and what was exec'd in it.
///
/// # Errors
/// The address cannot be had, or its certificate cannot be used.
pub fn open(
    config: &StreamConfig,
    ending: CancellationToken,
) -> Result<(Arc<Streams>, Server), RequestError> {
    let (door, base) = Door::open(config)?;
    let streams = Streams { tokens: Tokens::default(), base, ending, tasks: TaskTracker::new() };
    Ok((Arc::new(streams), Server(door)))
}

impl Server {
    /// Serves in the background until [`Streams::close`].
    pub fn serve(self, node: Arc<Node>, streams: &Arc<Streams>) {
        let (streams, tasks) = (streams.clone(), streams.tasks.clone());
        tasks.spawn(async move {
            if let Err(error) = self.0.serve(node, streams).await {
                tracing::error!(%error, "the streaming server has ended");
            }
        });
    }
}

impl Streams {
    /// A URL at which the command will run.
    ///
    /// # Errors
    /// The request makes no sense; the container is not there or does not run; too many URLs wait.
    pub fn exec(&self, node: &Node, request: cri::ExecRequest) -> Result<String, RequestError> {
        check_channels(&request.container_id, request.tty, [request.stdin, request.stdout, request.stderr])?;
        launch::check_command(&request.cmd)?;
        let (pod, record) = node.container(&request.container_id)?;
        launch::running(&record, pod.view().link.as_ref())?;
        let container_id = record.id.to_string();
        self.url(Asked::Exec(cri::ExecRequest { container_id, ..request }))
    }

    /// A URL that leads to the container's standard streams.
    ///
    /// # Errors
    /// As [`Streams::exec`]; the container has no such stream.
    pub fn attach(&self, node: &Node, request: cri::AttachRequest) -> Result<String, RequestError> {
        check_channels(&request.container_id, request.tty, [request.stdin, request.stdout, request.stderr])?;
        let (pod, record) = node.container(&request.container_id)?;
        launch::running(&record, pod.view().link.as_ref())?;
        if request.tty != record.config.tty {
            let has = if record.config.tty { "has a terminal" } else { "has no terminal" };
            return Err(RequestError::invalid(format!("tty: {}: the container {has}", request.tty)));
        }
        if request.stdin && !record.config.stdin {
            return Err(RequestError::precondition("stdin: the container was made without standard input"));
        }
        let container_id = record.id.to_string();
        self.url(Asked::Attach(cri::AttachRequest { container_id, ..request }))
    }

    /// A URL that leads to ports inside the pod.
    ///
    /// # Errors
    /// The sandbox is not there or not ready; a port is none; too many URLs wait.
    pub fn port_forward(
        &self,
        node: &Node,
        request: cri::PortForwardRequest,
    ) -> Result<String, RequestError> {
        if let Some(port) = request.port.iter().find(|port| !(1..=65535).contains(*port)) {
            return Err(RequestError::invalid(format!("port {port} is not 1 to 65535")));
        }
        let pod = node.pod(&request.pod_sandbox_id)?;
        session::place(node, &pod)?;
        let pod_sandbox_id = pod.id.to_string();
        self.url(Asked::PortForward(cri::PortForwardRequest { pod_sandbox_id, ..request }))
    }

    fn url(&self, asked: Asked) -> Result<String, RequestError> {
        let path = asked.kind().path();
        Ok(format!("{}/{path}/{}", self.base, self.tokens.give(asked)?))
    }

    /// Ends every session, and what was exec'd in them.
    pub async fn close(&self) {
        self.ending.cancel();
        self.tasks.close();
        if tokio::time::timeout(FAREWELL, self.tasks.wait()).await.is_err() {
            tracing::warn!(sessions = self.tasks.len(), "streaming: sessions do not end");
        }
    }
}

fn check_channels(container: &str, tty: bool, streams: [bool; 3]) -> Result<(), RequestError> {
    let [stdin, stdout, stderr] = streams;
    if container.is_empty() {
        return Err(RequestError::invalid("container_id is empty"));
    }
    if tty && stderr {
        return Err(RequestError::invalid("tty and stderr: a terminal has one output"));
    }
    if !(stdin || stdout || stderr) {
        return Err(RequestError::invalid("one of stdin, stdout and stderr must be asked for"));
    }
    Ok(())
}
