//! `crisp exec`: a command in a container, to its end; its output and its exit code are this program's.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use anyhow::{Result, bail};
use clap::Args;
use crisp_proto::runtime::v1::{ContainerState, ExecSyncRequest};

use crate::{
    endpoint::{Asked, Clients},
    target,
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Pod: name, namespace/name or the beginning of its id
    pod: String,
    /// Container of the pod; may be left out when there is one
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// End the command after so many seconds; 0: never
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    timeout: u32,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<ExitCode> {
    let clients = Clients::connect(endpoint).await?;
    let pod = target::pod(&clients, &arguments.pod).await?;
    let all = target::containers(&clients, &pod.id).await?;
    let container = match arguments.container.as_deref() {
        Some(name) => target::choose_container(&arguments.pod, &all, Some(name), 0)?,
        None => {
            let running: Vec<_> =
                all.into_iter().filter(|c| c.state() == ContainerState::ContainerRunning).collect();
            if running.is_empty() {
                bail!("no container of pod {} is running", arguments.pod);
            }
            target::choose_container(&arguments.pod, &running, None, 0)?
        }
    };
    let request = ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: arguments.command,
        timeout: i64::from(arguments.timeout),
    };
    let what = format!("exec in {}/{}", arguments.pod, target::container_name(&container).0);
    let answer = clients.runtime.clone().exec_sync(request).await.asked(what)?;
    stdout().write_all(&answer.stdout)?;
    stdout().flush()?;
    stderr().write_all(&answer.stderr)?;
    Ok(u8::try_from(answer.exit_code).map_or(ExitCode::FAILURE, ExitCode::from))
}
