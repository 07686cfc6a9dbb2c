//! `crisp netns`: the pods' network namespaces, and programs of this host run inside one of them.
//!
//! What is known of a namespace comes from the verbose status of its pod, in the words of crisp or of containerd. Must not
//! know how a runtime makes namespaces.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::{self, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use crisp_proto::runtime::v1::{self as cri, PodSandbox, PodSandboxState, PodSandboxStatusRequest};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tonic::Code;

use crate::{
    endpoint::{Asked, Clients, code},
    target, text,
};

/// Exit codes of env(1) and every shell: the program is not there, or cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTED: u8 = 126;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the pods' network namespaces
    Ls,
    /// Run a program of this host in a pod's network namespace; all else stays this host's
    Exec {
        /// Pod: name, namespace/name or the beginning of its id
        pod: String,
        /// Program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

pub(crate) async fn run(endpoint: &str, command: Command) -> Result<ExitCode> {
    let clients = Clients::connect(endpoint).await?;
    match command {
        Command::Ls => list(&clients).await.map(|()| ExitCode::SUCCESS),
        Command::Exec { pod, command } => exec(&clients, &pod, &command).await,
    }
}

async fn list(clients: &Clients) -> Result<()> {
    let heads = ["NAMESPACE", "POD", "POD ID", "ADDRESSES", "INTERFACE", "PIN"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for pod in target::pods(clients).await? {
        if pod.state() != PodSandboxState::SandboxReady {
            continue;
        }
        match status(clients, &pod.id).await {
            Ok(found) => rows.push(row(&pod, &found)),
            // Removed since it was listed.
            Err(error) if code(&error) == Some(Code::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    print!("{}", text::columns(&rows));
    Ok(())
}

/// What is known of a pod's network namespace. No pin: it has the host's.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    pin: Option<String>,
    addresses: Vec<String>,
    /// Where it comes out on the host.
    interface: Option<String>,
}

async fn status(clients: &Clients, id: &str) -> Result<Found> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let what = format!("ask for pod {}", target::short(id));
    let answer = clients.runtime.clone().pod_sandbox_status(request).await.asked(what)?;
    let info =
        answer.info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
    Ok(found(answer.status.and_then(|status| status.network), &info))
}

fn found(network: Option<cri::PodSandboxNetworkStatus>, info: &Value) -> Found {
    let network = network.unwrap_or_default();
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    let word = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    Found {
        pin: word(&info["netNamespace"]).or_else(|| of_spec(info)),
        addresses: [network.ip].into_iter().chain(more).filter(|ip| !ip.is_empty()).collect(),
        interface: word(&info["network"]["host_interface"]),
    }
}

/// The namespace in the OCI spec of a sandbox's own container, for runtimes that have such a thing.
fn of_spec(info: &Value) -> Option<String> {
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array()?;
    let own = namespaces.iter().find(|namespace| namespace["type"] == "network")?;
    own["path"].as_str().map(str::to_owned)
}

fn row(pod: &PodSandbox, found: &Found) -> Vec<String> {
    let (name, namespace) = target::pod_name(pod);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let addresses = Some(found.addresses.join(",")).filter(|text| !text.is_empty());
    let pin = found.pin.clone().unwrap_or_else(|| "(the host's)".to_owned());
    let id = target::short(&pod.id).to_owned();
    vec![namespace.to_owned(), name.to_owned(), id, or_dash(&addresses), or_dash(&found.interface), pin]
}

/// Becomes the program: its exit code, and what signals do, are the program's own. Returns only when it cannot.
async fn exec(clients: &Clients, wanted: &str, command: &[String]) -> Result<ExitCode> {
    let pod = target::pod(clients, wanted).await?;
    if pod.state() != PodSandboxState::SandboxReady {
        bail!("pod {wanted} is stopped: its network namespace is gone");
    }
    let Some(pin) = status(clients, &pod.id).await?.pin else {
        bail!("pod {wanted} has the host's network: run the command as it is");
    };
    enter(Path::new(&pin)).with_context(|| format!("enter the network namespace {pin}"))?;
    let [program, arguments @ ..] = command else { bail!("no command") };
    // Of this thread, the only one that goes on.
    let error = process::Command::new(program).args(arguments).exec();
    eprintln!("crisp: run {program}: {error}");
    Ok(ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTED }))
}

/// Moves the calling thread.
fn enter(pin: &Path) -> io::Result<()> {
    move_into_link_name_space(File::open(pin)?.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn network(ips: &[&str]) -> Option<cri::PodSandboxNetworkStatus> {
        let additional_ips = ips[1..].iter().map(|ip| cri::PodIp { ip: (*ip).to_owned() }).collect();
        Some(cri::PodSandboxNetworkStatus { ip: ips[0].to_owned(), additional_ips })
    }

    #[test]
    fn a_line_tells_where_the_namespace_is() {
        let pod = PodSandbox {
            id: "0123456789abcdef".into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                namespace: "default".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let info = json!({"netNamespace": "/run/netns/x", "network": {"host_interface": "cr0123"}});
        let line = text::columns(&[row(&pod, &found(network(&["10.89.0.2", "fd00::2"]), &info))]);
        assert_eq!(line, "default  web  0123456789abc  10.89.0.2,fd00::2  cr0123  /run/netns/x\n");
        let line = text::columns(&[row(&pod, &found(None, &json!({"netNamespace": null})))]);
        assert_eq!(line, "default  web  0123456789abc  -  -  (the host's)\n");
    }

    #[test]
    fn containerd_tells_it_in_the_spec() {
        let namespaces = json!([{"type": "ipc"}, {"type": "network", "path": "/var/run/netns/cni-1"}]);
        let info = json!({"runtimeSpec": {"linux": {"namespaces": namespaces}}});
        assert_eq!(found(None, &info).pin.as_deref(), Some("/var/run/netns/cni-1"));
    }
}
