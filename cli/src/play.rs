//! `crisp play`: runs the pods of a manifest through CRI, doing what a kubelet would do, without a cluster.
//!
//! ```text
//!   manifest ─ check ─► images ─► folder, volumes ─► sandbox ─► init containers ─► containers ─► restarts … ─► phase
//!                         │ Ctrl-C: nothing to undo      │ Ctrl-C from here on: stop within the grace period, remove
//! ```
//!
//! An error before the containers run removes what was made, and so does a command that cannot be executed, when no
//! container of the pod ever ran and the restart policy lets none be tried again. A pod that has ended stays for inspection until
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

use std::{fmt::Display, fs, io::Write, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use crisp_proto::runtime::v1::{PodSandbox, RunPodSandboxRequest};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    endpoint::{self, Asked, Clients},
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

/// Counts SIGINT, SIGTERM and SIGHUP from now on. A SIGHUP that is ignored (nohup) stays so.
fn interrupts() -> Result<Interrupts> {
    let (sender, receiver) = watch::channel(0);
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let mut kinds = vec![("SIGINT", SignalKind::interrupt()), ("SIGTERM", SignalKind::terminate())];
    if !ignored(&status, SignalKind::hangup()) {
        kinds.push(("SIGHUP", SignalKind::hangup()));
    }
    for (name, kind) in kinds {
        let mut signals = signal(kind).with_context(|| format!("handle {name}"))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                sender.send_modify(|count| *count += 1);
            }
        });
    }
    Ok(receiver)
}

/// Whether a process ignores a signal, by its status file (proc_pid_status(5), SigIgn).
fn ignored(status: &str, signal: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal.as_raw_value() - 1) & 1 == 1
}

/// Completes when the user has asked for the end more than `times` times.
async fn interrupted(interrupts: &mut Interrupts, times: u32) {
    if interrupts.wait_for(|count| *count > times).await.is_err() {
        // Nobody counts any more: then nobody asks.
        std::future::pending::<()>().await;
    }
}

/// One pod being played: whom to ask, whom to tell, and who may ask for the end.
struct Stage<'a> {
    clients: &'a Clients,
    pod: &'a Pod,
    title: String,
    arguments: &'a Arguments,
    report: &'a Report,
    interrupts: Interrupts,
}

async fn play(
    clients: &Clients,
    pod: &Pod,
    arguments: &Arguments,
    interrupts: Interrupts,
    report: &Report,
) -> Result<u8> {
    let title = format!("{}/{}", pod.namespace(), pod.metadata.name);
    let mut asked = interrupts.clone();
    let there = tokio::select! {
        there = sandboxes(clients, pod) => there?,
        () = interrupted(&mut asked, 0) => return Ok(INTERRUPTED),
    };
    if let Some(there) = there.first() {
        let file = arguments.file.display();
        bail!(
            "pod {title} is there already ({}); crisp play --down {file} removes it",
            target::short(&there.id)
        );
    }
    let mut stage = Stage { clients, pod, title, arguments, report, interrupts };
    let images = tokio::select! {
        images = images::provide(clients, pod, report) => images.with_context(|| format!("pod {}", stage.title))?,
        () = interrupted(&mut stage.interrupts, 0) => return Ok(INTERRUPTED),
    };
    let uid = folder::new_uid()?;
    let folder = Folder::create(&arguments.data_dir, pod, &uid, arguments.log_dir.as_deref())?;
    let (sandbox, facts, config, volumes) = match stage.make(&uid, &folder).await {
        Ok(made) => made,
        Err(error) => {
            let undone = stage.undo(&uid, &folder).await;
            return Err(stage.after(error, undone));
        }
    };
    let mut player = Player {
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
    let outcome = tokio::select! {
        outcome = player.run() => outcome,
        () = interrupted(&mut stage.interrupts, 0) => {
            report.line(&stage.title, "stopping; once more kills it");
            stage.stop(&sandbox, 1).await.with_context(|| format!("pod {}", stage.title))?;
            report.line(&stage.title, "removed");
            return Ok(INTERRUPTED);
        }
    };
    stage.finish(&sandbox, &folder, outcome).await
}

type Made =
    (PodSandbox, manifest::expand::Facts, crisp_proto::runtime::v1::PodSandboxConfig, volumes::Sources);

impl Stage<'_> {
    /// Volumes, sandbox, and what is only known once the sandbox is there. Not to be given up half-way; an error leaves
    /// what there is to [`Self::undo`].
    async fn make(&mut self, uid: &str, folder: &Folder) -> Result<Made> {
        let clients = self.clients;
        let volumes = volumes::prepare(self.pod, folder)?;
        let config = sandbox::config(self.pod, uid, folder)?;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        // Asked again, crisp answers with the sandbox it may have made before it went away.
        let run = || async {
            clients.runtime.clone().run_pod_sandbox(request.clone()).await.asked("run the sandbox")
        };
        let sandbox = PodSandbox {
            id: self.patiently(run).await?.pod_sandbox_id,
            metadata: config.metadata.clone(),
            annotations: config.annotations.clone(),
            ..Default::default()
        };
        let facts = self.patiently(|| network::facts(clients, &sandbox.id, uid)).await?;
        network::write_hosts(self.pod, &facts, folder)?;
        let ips =
            if facts.pod_ips.is_empty() { "the host's network".to_owned() } else { facts.pod_ips.join(", ") };
        let id = target::short(&sandbox.id);
        self.report.line(&self.title, format_args!("sandbox {id} is ready: {ips}"));
        Ok((sandbox, facts, config, volumes))
    }

    /// Asks again as long as the runtime is away, unless the user asks for the end in between.
    async fn patiently<T, F: Future<Output = Result<T>>>(&mut self, ask: impl Fn() -> F) -> Result<T> {
        let mut told = false;
        loop {
            let error = match ask().await {
                Err(error) if endpoint::is_away(&error) => error,
                answer => return answer,
            };
            if !std::mem::replace(&mut told, true) {
                self.report.line(&self.title, format_args!("{error:#}; waiting for the runtime"));
            }
            tokio::select! {
                () = tokio::time::sleep(supervise::AWAY_PAUSE) => {}
                () = interrupted(&mut self.interrupts, 0) => return Err(error),
            }
        }
    }

    /// Removes what there is of a pod that could not be made. The folder stays as long as a sandbox may use it: an
    /// attempt that brought no answer may have made one, too.
    async fn undo(&self, uid: &str, folder: &Folder) -> Result<()> {
        for sandbox in sandboxes(self.clients, self.pod).await? {
            if sandbox.metadata.as_ref().is_some_and(|metadata| metadata.uid == uid) {
                rm::remove_now(self.clients, &sandbox).await?;
            }
        }
        folder.remove()
    }

    /// The error that matters; that not everything could be removed after it is said with it.
    fn after(&self, error: anyhow::Error, removed: Result<()>) -> anyhow::Error {
        let (title, file) = (&self.title, self.arguments.file.display());
        match removed {
            Ok(()) => error.context(format!("pod {title}")),
            Err(also) => error.context(format!(
                "pod {title} (not all of it could be removed, crisp play --down {file} does it: {also:#})"
            )),
        }
    }

    /// Stops within the grace period; at once when asked for the end more than `times` times.
    async fn stop(&mut self, sandbox: &PodSandbox, times: u32) -> Result<()> {
        tokio::select! {
            stopped = rm::remove_own(self.clients, sandbox, None) => stopped,
            () = interrupted(&mut self.interrupts, times) => rm::remove_now(self.clients, sandbox).await,
        }
    }

    async fn finish(
        &mut self,
        sandbox: &PodSandbox,
        folder: &Folder,
        outcome: Result<Outcome>,
    ) -> Result<u8> {
        let asked = *self.interrupts.borrow();
        match outcome {
            Ok(Outcome::Detached) => {
                print(&sandbox.id);
                Ok(0)
            }
            Ok(Outcome::Gone) => {
                // A sandbox that was only stopped is still there.
                let removed = self.stop(sandbox, asked).await.and_then(|()| folder.remove());
                Err(self.after(anyhow!("stopped or removed by somebody else"), removed))
            }
            Ok(Outcome::Ended { phase, lines }) => {
                // First of all: a reader that has gone away must not keep the pod.
                let removed =
                    if self.arguments.rm { rm::remove_now(self.clients, sandbox).await } else { Ok(()) };
                print(format_args!("pod {}: {phase:?}", self.title));
                for line in lines {
                    print(format_args!("  {line}"));
                }
                if !self.arguments.rm {
                    print(format_args!("crisp play --down {} removes it", self.arguments.file.display()));
                }
                removed.with_context(|| format!("pod {}", self.title))?;
                Ok(u8::from(phase == Phase::Failed))
            }
            Err(error) => {
                // Other containers of the pod may be well: they get their grace period.
                self.report.line(&self.title, format_args!("{error:#}; stopping, Ctrl-C kills it"));
                let removed = self.stop(sandbox, asked).await;
                Err(self.after(error, removed))
            }
        }
    }
}

/// Prints a line. That nobody reads it is no reason to end: pods are left to do.
fn print(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
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
    print(format_args!(
        "pod {title}: {}",
        if all.is_empty() && left == 0 { "was not there" } else { "removed" }
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nohup_ignores_stays_ignored() {
        let status = |mask: &str| format!("Name:\tcrisp\nSigBlk:\tffffffffffffffff\nSigIgn:\t{mask}\n");
        assert!(ignored(&status("0000000000001001"), SignalKind::hangup()));
        assert!(!ignored(&status("0000000000001000"), SignalKind::hangup()));
        assert!(ignored(&status("0000000000004000"), SignalKind::terminate()));
    }
}
