//! `crisp play`: runs the pods of a manifest through CRI, doing what a kubelet would do, without a cluster.
//!
//! ```text
//!   manifest ─ check ─► images ─► folder, volumes ─► sandbox ─► init containers ─► containers ─► restarts … ─► phase
//!                         │ Ctrl-C: nothing to undo      │ Ctrl-C from here on: stop within the grace period, remove
//! ```
//!
//! An error before the containers run removes what was made. A pod that has ended stays for inspection until
//! `crisp play --down`, as it does in a cluster until it is deleted.

mod backoff;
mod container;
pub(crate) mod folder;
mod images;
mod limits;
mod network;
mod report;
mod sandbox;
mod security;
mod supervise;
mod volumes;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;
use crisp_proto::runtime::v1::{PodSandbox, RunPodSandboxRequest};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    endpoint::{Asked, Clients},
    manifest::{self, Pod},
    rm, target,
};
use folder::Folder;
use report::Report;
use supervise::{Outcome, Phase, Player};

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Manifest with one or more pods; - is standard input
    file: PathBuf,
    /// Stop the pods of the manifest and remove them
    #[arg(long, conflicts_with_all = ["detach", "logs", "rm"])]
    down: bool,
    /// Return once the containers run; nobody restarts them then
    #[arg(short, long, conflicts_with_all = ["logs", "rm"])]
    detach: bool,
    /// Print what the containers write, each line with the container's name
    #[arg(short, long)]
    logs: bool,
    /// Remove the pods when they have ended
    #[arg(long)]
    rm: bool,
    /// Folder for logs [default: in the pod's own folder]
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Where pods' folders are: volumes, logs, termination messages
    #[arg(long, value_name = "DIR", env = "CRISP_PLAY_DIR", default_value = "/var/lib/crisp-play")]
    data_dir: PathBuf,
    /// Seconds before the second restart of a container; doubles with each one after that, up to 300
    #[arg(long, value_name = "SECONDS", env = "CRISP_PLAY_BACKOFF", default_value_t = 10)]
    backoff_base: u64,
}

/// How often the user asked for the end.
pub(crate) type Interrupts = watch::Receiver<u32>;

pub(crate) async fn run(endpoint: &str, arguments: Arguments) -> Result<ExitCode> {
    let pods = manifest::load(&arguments.file)?;
    let clients = Clients::connect(endpoint).await?;
    if arguments.down {
        for pod in &pods {
            down(&clients, pod, &arguments).await?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let interrupts = interrupts()?;
    let report = Report::new();
    let plays = pods.iter().map(|pod| Box::pin(play(&clients, pod, &arguments, interrupts.clone(), &report)));
    let mut worst = 0;
    for result in futures_util::future::join_all(plays).await {
        match result {
            Ok(code) => worst = worst.max(code),
            Err(error) if pods.len() == 1 => return Err(error),
            Err(error) => {
                eprintln!("crisp: {error:#}");
                worst = worst.max(1);
            }
        }
    }
    Ok(ExitCode::from(worst))
}

/// Counts SIGINT and SIGTERM from now on.
fn interrupts() -> Result<Interrupts> {
    let (sender, receiver) = watch::channel(0);
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            sender.send_modify(|count| *count += 1);
        }
    });
    Ok(receiver)
}

/// Completes when the user has asked for the end more than `times` times.
async fn interrupted(interrupts: &mut Interrupts, times: u32) {
    if interrupts.wait_for(|count| *count > times).await.is_err() {
        // Nobody counts any more: then nobody asks.
        std::future::pending::<()>().await;
    }
}

async fn play(
    clients: &Clients,
    pod: &Pod,
    arguments: &Arguments,
    mut interrupts: Interrupts,
    report: &Report,
) -> Result<u8> {
    let title = format!("{}/{}", pod.namespace(), pod.metadata.name);
    if let Some(there) = sandboxes(clients, pod).await?.first() {
        let file = arguments.file.display();
        bail!(
            "pod {title} is there already ({}); crisp play --down {file} removes it",
            target::short(&there.id)
        );
    }
    let images = tokio::select! {
        images = images::provide(clients, pod, report) => images.with_context(|| format!("pod {title}"))?,
        () = interrupted(&mut interrupts, 0) => return Ok(INTERRUPTED),
    };
    let uid = folder::new_uid()?;
    let folder = Folder::create(&arguments.data_dir, pod, &uid, arguments.log_dir.as_deref())?;
    let made = make(clients, pod, &uid, &folder, report).await;
    let (sandbox, mut player) = match made {
        Ok((sandbox, facts, config, volumes)) => {
            let player = Player {
                clients: clients.clone(),
                pod,
                facts,
                sandbox: sandbox.clone(),
                config,
                folder: folder.clone(),
                volumes,
                images,
                report: report.clone(),
                base: Duration::from_secs(arguments.backoff_base),
                logs: arguments.logs,
                detach: arguments.detach,
            };
            (sandbox, player)
        }
        Err(error) => {
            folder.remove()?;
            return Err(error.context(format!("pod {title}")));
        }
    };
    let outcome = tokio::select! {
        outcome = player.run() => outcome,
        () = interrupted(&mut interrupts, 0) => {
            report.line(&title, "stopping; once more kills it");
            stop(clients, &sandbox, &mut interrupts).await.with_context(|| format!("pod {title}"))?;
            report.line(&title, "removed");
            return Ok(INTERRUPTED);
        }
    };
    finish(clients, &sandbox, &folder, arguments, (&title, outcome)).await
}

type Made =
    (PodSandbox, manifest::expand::Facts, crisp_proto::runtime::v1::PodSandboxConfig, volumes::Sources);

/// Volumes, sandbox, and what is only known once the sandbox is there. Not to be given up half-way.
async fn make(clients: &Clients, pod: &Pod, uid: &str, folder: &Folder, report: &Report) -> Result<Made> {
    let title = format!("{}/{}", pod.namespace(), pod.metadata.name);
    let volumes = volumes::prepare(pod, folder)?;
    let config = sandbox::config(pod, uid, folder)?;
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let answer = clients.runtime.clone().run_pod_sandbox(request).await.asked("run the sandbox")?;
    let sandbox = PodSandbox {
        id: answer.pod_sandbox_id,
        metadata: config.metadata.clone(),
        annotations: config.annotations.clone(),
        ..Default::default()
    };
    let prepared = async {
        let facts = network::facts(clients, &sandbox.id, uid).await?;
        network::write_hosts(pod, &facts, folder)?;
        Ok(facts)
    };
    match prepared.await {
        Ok(facts) => {
            let ips = if facts.pod_ips.is_empty() {
                "the host's network".to_owned()
            } else {
                facts.pod_ips.join(", ")
            };
            report.line(&title, format_args!("sandbox {} is ready: {ips}", target::short(&sandbox.id)));
            Ok((sandbox, facts, config, volumes))
        }
        Err(error) => {
            rm::remove_now(clients, &sandbox).await?;
            Err(error)
        }
    }
}

/// Stops within the grace period; at once when asked a second time.
async fn stop(clients: &Clients, sandbox: &PodSandbox, interrupts: &mut Interrupts) -> Result<()> {
    tokio::select! {
        stopped = rm::remove(clients, sandbox, None) => stopped,
        () = interrupted(interrupts, 1) => rm::remove_now(clients, sandbox).await,
    }
}

async fn finish(
    clients: &Clients,
    sandbox: &PodSandbox,
    folder: &Folder,
    arguments: &Arguments,
    (title, outcome): (&str, Result<Outcome>),
) -> Result<u8> {
    match outcome {
        Ok(Outcome::Detached) => {
            println!("{}", sandbox.id);
            Ok(0)
        }
        Ok(Outcome::Gone) => {
            folder.remove()?;
            bail!("pod {title} was stopped or removed by somebody else");
        }
        Ok(Outcome::Ended { phase, lines }) => {
            println!("pod {title}: {phase:?}");
            for line in lines {
                println!("  {line}");
            }
            if arguments.rm {
                rm::remove_now(clients, sandbox).await?;
            } else {
                println!("crisp play --down {} removes it", arguments.file.display());
            }
            Ok(u8::from(phase == Phase::Failed))
        }
        Err(error) => {
            // The error is what matters; that the pod could not be removed either is said with it.
            match rm::remove_now(clients, sandbox).await {
                Ok(()) => Err(error.context(format!("pod {title}"))),
                Err(also) => {
                    Err(error.context(format!("pod {title} (which could not be removed: {also:#})")))
                }
            }
        }
    }
}

/// All sandboxes of a pod of this name.
async fn sandboxes(clients: &Clients, pod: &Pod) -> Result<Vec<PodSandbox>> {
    let mut all = target::pods(clients).await?;
    all.retain(|one| target::pod_name(one) == (pod.metadata.name.as_str(), pod.namespace()));
    Ok(all)
}

async fn down(clients: &Clients, pod: &Pod, arguments: &Arguments) -> Result<()> {
    let title = format!("{}/{}", pod.namespace(), pod.metadata.name);
    let all = sandboxes(clients, pod).await?;
    for sandbox in &all {
        rm::remove(clients, sandbox, None).await.with_context(|| format!("pod {title}"))?;
    }
    // Of plays that died before they had a sandbox.
    let left = folder::remove_all_of(&arguments.data_dir, pod)?;
    println!("pod {title}: {}", if all.is_empty() && left == 0 { "was not there" } else { "removed" });
    Ok(())
}
