//! `crisp inspect`: how a pod is isolated. What is shown is the kernel's word (/proc), not the runtime's; only the
//! processes to look at come from CRI, so it works against any runtime on this host.

mod cgroup;
mod mounts;
mod namespaces;
mod table;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use crisp_proto::runtime::v1::ContainerState;
use serde::Serialize;
use serde_json::Value;

use crate::{endpoint::Clients, target};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Pod: name, namespace/name or the beginning of its id
    pod: String,
    /// How to print it
    #[arg(short, long, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// A pod as the kernel has it.
#[derive(Debug, Serialize)]
struct Pod {
    namespace: String,
    name: String,
    id: String,
    /// Namespaces of the host's first process.
    host: namespaces::Namespaces,
    containers: Vec<Container>,
}

/// A running container.
#[derive(Debug, Serialize)]
struct Container {
    name: String,
    id: String,
    pid: u32,
    namespaces: namespaces::Namespaces,
    cgroup: cgroup::Cgroup,
    mounts: Vec<mounts::Mount>,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<()> {
    let clients = Clients::connect(endpoint).await?;
    let sandbox = target::pod(&clients, &arguments.pod).await?;
    let (name, namespace) = target::pod_name(&sandbox);
    let mut containers = Vec::new();
    for container in target::newest(&target::containers(&clients, &sandbox.id).await?) {
        if container.state() == ContainerState::ContainerRunning {
            let (name, _) = target::container_name(&container);
            let seen = look(&clients, name, &container.id).await;
            containers.push(seen.with_context(|| format!("container {name}"))?);
        }
    }
    if containers.is_empty() {
        bail!("no container of pod {} is running: there is nothing to look at", arguments.pod);
    }
    let pod = Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        id: sandbox.id.clone(),
        host: namespaces::of(1).context("the host's namespaces")?,
        containers,
    };
    match arguments.output {
        Output::Table => print!("{}", table::render(&pod)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&pod)?),
    }
    Ok(())
}

async fn look(clients: &Clients, name: &str, id: &str) -> Result<Container> {
    let (status, info) = target::status(clients, id, true).await?;
    let info: Value = match info.get("info") {
        Some(text) => serde_json::from_str(text).context("the runtime's info is no JSON")?,
        None => bail!("the runtime gives no verbose info, so its process is not known"),
    };
    let pid = info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    let pid = pid.context("the runtime's info has no pid")?;
    Ok(Container {
        name: name.to_owned(),
        id: id.to_owned(),
        pid,
        namespaces: namespaces::of(pid)?,
        cgroup: cgroup::of(pid, info["cgroupRoot"].as_str())?,
        mounts: mounts::of(pid, &status.mounts)?,
    })
}
