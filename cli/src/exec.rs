//! `crisp exec`: a command in a container, to its end; its streams and its exit code are this program's.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use anyhow::{Result, bail};
use clap::Args;
use crisp_proto::runtime::v1::{Container, ContainerState, ExecRequest, ExecSyncRequest};

use crate::{
    endpoint::{Asked, Clients},
    stream::{
        session::{self, End, Options},
        trust,
    },
    target,
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Pod: name, namespace/name or the beginning of its id
    pod: String,
    /// Container of the pod; may be left out when there is one
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// End the command after so many seconds; 0: never. Its output is then printed at its end
    #[arg(long, default_value_t = 0, value_name = "SECONDS", conflicts_with_all = ["stdin", "tty"])]
    timeout: u32,
    #[command(flatten)]
    tls: trust::Options,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<ExitCode> {
    let clients = Clients::connect(endpoint).await?;
    let container = running(&clients, &arguments.pod, arguments.container.as_deref()).await?;
    let what = format!("exec in {}/{}", arguments.pod, target::container_name(&container).0);
    if arguments.timeout > 0 {
        return within(&clients, what, container.id, arguments).await;
    }
    let (stdin, tty) = (arguments.stdin, arguments.tty);
    let request = ExecRequest {
        container_id: container.id,
        cmd: arguments.command,
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    let url = clients.runtime.clone().exec(request).await.asked(what)?.url;
    let tls = trust::of(&url, &clients, &arguments.tls).await?;
    session::run(&url, tls.as_ref(), Options { stdin, tty, detach: None }).await.map(exit_code)
}

/// The running container that is meant.
///
/// # Errors
/// None runs, or it is not clear which is meant.
pub(crate) async fn running(clients: &Clients, pod: &str, wanted: Option<&str>) -> Result<Container> {
    let sandbox = target::pod(clients, pod).await?;
    let all = target::containers(clients, &sandbox.id).await?;
    if wanted.is_some() {
        return target::choose_container(pod, &all, wanted, 0);
    }
    let running: Vec<_> = all.into_iter().filter(|c| c.state() == ContainerState::ContainerRunning).collect();
    if running.is_empty() {
        bail!("no container of pod {pod} is running");
    }
    target::choose_container(pod, &running, None, 0)
}

/// This program's exit code after a session.
pub(crate) fn exit_code(end: End) -> ExitCode {
    match end {
        End::Exit(code) => u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
        End::Detached => ExitCode::SUCCESS,
    }
}

async fn within(
    clients: &Clients,
    what: String,
    container_id: String,
    arguments: Arguments,
) -> Result<ExitCode> {
    let request =
        ExecSyncRequest { container_id, cmd: arguments.command, timeout: i64::from(arguments.timeout) };
    let answer = clients.runtime.clone().exec_sync(request).await.asked(what)?;
    stdout().write_all(&answer.stdout)?;
    stdout().flush()?;
    stderr().write_all(&answer.stderr)?;
    Ok(u8::try_from(answer.exit_code).map_or(ExitCode::FAILURE, ExitCode::from))
}
