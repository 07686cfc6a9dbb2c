//! `crisp inspect`: how a pod is isolated. What is shown of that is the kernel's word (/proc), not the runtime's; only the
//! names, and which processes to look at, come from CRI, so it works against any runtime on this host.
//!
//! The facts are gathered once ([`facts`]) and shown in one of three ways. Must not know how a runtime keeps its pods.

mod addresses;
mod cgroup;
mod facts;
mod hostname;
mod identity;
mod mounts;
mod namespaces;
mod picture;
#[cfg(test)]
mod samples;
mod sharing;
mod table;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

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
    /// A row for each namespace, limit and mount, a column for each container
    Table,
    /// A picture that explains itself, for a browser: crisp inspect POD -o svg >pod.svg
    Svg,
    /// Every fact, for programs
    Json,
}

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<()> {
    let clients = Clients::connect(endpoint).await?;
    let sandbox = target::pod(&clients, &arguments.pod).await?;
    let pod = facts::gather(&clients, &sandbox).await?;
    match arguments.output {
        Output::Table if pod.containers.is_empty() => {
            bail!("no container of pod {} is running: there is nothing to look at", arguments.pod)
        }
        Output::Table => print!("{}", table::render(&pod)),
        Output::Svg => print!("{}", picture::render(&pod)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&pod)?),
    }
    Ok(())
}
