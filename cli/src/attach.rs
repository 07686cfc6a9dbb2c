//! `crisp attach`: takes part in what a container reads and writes.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use crisp_proto::runtime::v1::AttachRequest;
use serde_json::Value;

use crate::{
    endpoint::{Asked, Clients},
    exec,
    stream::{
        detach::DetachKeys,
        session::{self, Options},
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
    /// Only look: nothing is typed into the container
    #[arg(long)]
    no_stdin: bool,
    /// Keys that end the session at a terminal, and not the container
    #[arg(long, default_value = "ctrl-p,ctrl-q", value_name = "KEYS")]
    detach_keys: String,
    #[command(flatten)]
    tls: trust::Options,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<ExitCode> {
    let keys = DetachKeys::parse(&arguments.detach_keys)?;
    let clients = Clients::connect(endpoint).await?;
    let container = exec::running(&clients, &arguments.pod, arguments.container.as_deref()).await?;
    let (_, info) = target::status(&clients, &container.id, true).await?;
    let info: Value = serde_json::from_str(info.get("info").map_or("", String::as_str))
        .context("the runtime does not say how the container was made")?;
    let tty = info["config"]["tty"].as_bool().unwrap_or(false);
    let stdin = info["config"]["stdin"].as_bool().unwrap_or(false) && !arguments.no_stdin;
    let request =
        AttachRequest { container_id: container.id.clone(), stdin, tty, stdout: true, stderr: !tty };
    let what = format!("attach to {}/{}", arguments.pod, target::container_name(&container).0);
    let url = clients.runtime.clone().attach(request).await.asked(what)?.url;
    let detach = (stdin && tty).then_some(keys);
    let tls = trust::of(&url, &clients, &arguments.tls).await?;
    session::run(&url, tls.as_ref(), Options { stdin, tty, detach }).await.map(exec::exit_code)
}
