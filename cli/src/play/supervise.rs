//! Runs the containers of a pod whose sandbox is ready: init containers one after another, then the others together;
//! those that end are started again as the restart policy says. Learns of changes by asking at an interval, which every
//! CRI runtime understands.
//!
//! ```text
//!   Waiting(until) ── start ──► Running(id) ── exited ──► again? ── yes ──► Waiting(after the back-off)
//!                                                            └──── no ───► Ended
//! ```
//!
//! A runtime that does not answer (it is being replaced) is waited for: containers go on without it.

mod end;
mod tail;

use std::{
    collections::HashMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use tokio::task::JoinSet;
use tonic::Code;

use super::{
    backoff::Backoff, container, folder::Folder, images::Images, limits, report::Report, volumes::Sources,
};
use crate::{
    endpoint::{self, Asked, Clients},
    manifest::{
        Pod,
        expand::Facts,
        model::{Container, RestartPolicy},
    },
    target,
};
use end::End;

/// Between two questions to the runtime.
const INTERVAL: Duration = Duration::from_millis(250);
/// Between two attempts to start something in a runtime that does not answer.
pub(super) const AWAY_PAUSE: Duration = Duration::from_secs(1);

/// How a pod ended (Kubernetes' names).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Succeeded,
    Failed,
}

/// Why there is nothing more to do.
#[derive(Debug)]
pub(super) enum Outcome {
    /// All containers have ended and none is started again.
    Ended {
        phase: Phase,
        /// One for each container that ran.
        lines: Vec<String>,
    },
    /// The containers run, and nobody wants to wait.
    Detached,
    /// Somebody else has stopped or removed the pod.
    Gone,
}

/// A pod with a sandbox.
#[derive(Debug)]
pub(super) struct Player<'a> {
    pub(super) clients: Clients,
    pub(super) pod: &'a Pod,
    pub(super) facts: Facts,
    pub(super) sandbox: cri::PodSandbox,
    pub(super) config: cri::PodSandboxConfig,
    pub(super) folder: Folder,
    pub(super) volumes: Sources,
    pub(super) images: Images,
    pub(super) report: Report,
    pub(super) base: Duration,
    pub(super) logs: bool,
    pub(super) detach: bool,
}

#[derive(Debug)]
enum State {
    Waiting(Instant),
    Running(String),
    Ended(End),
}

/// One container of the manifest with its runs.
#[derive(Debug)]
struct Slot<'a> {
    container: &'a Container,
    init: bool,
    attempt: u32,
    /// A run of it was started.
    ran: bool,
    /// The runtime was away during an attempt to start: the run may have been started nevertheless.
    unsure: bool,
    state: State,
    backoff: Backoff,
    /// Runs that have ended and are still there: the last one is kept for its log.
    dead: Vec<(u32, String)>,
}

/// What the runtime says of the pod's containers.
enum Sight {
    Containers(HashMap<String, cri::ContainerState>),
    Away,
    Gone,
}

impl Player<'_> {
    /// Runs everything to its end.
    ///
    /// # Errors
    /// A container cannot be made, or the runtime refuses to answer. None could be started, and none will be tried again:
    /// there is nothing to inspect in such a pod.
    pub(super) async fn run(&mut self) -> Result<Outcome> {
        let meminfo = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
        let memory = limits::memory_total(&meminfo).context("/proc/meminfo has no MemTotal")?;
        let mut followers = JoinSet::new();
        let (mut lines, mut ran) = (Vec::new(), false);
        let spec = &self.pod.spec;
        let groups =
            spec.init_containers.chunks(1).map(|one| (one, true)).chain([(&spec.containers[..], false)]);
        for (containers, init) in groups {
            let mut slots: Vec<_> = containers.iter().map(|container| self.slot(container, init)).collect();
            if let Some(outcome) = self.group(&mut slots, memory, &mut followers).await? {
                return Ok(outcome);
            }
            let ends: Vec<_> = slots
                .iter()
                .filter_map(|slot| if let State::Ended(end) = &slot.state { Some((slot, end)) } else { None })
                .collect();
            lines.extend(ends.iter().map(|(slot, end)| format!("{}: {end}", slot.container.name)));
            ran |= slots.iter().any(|slot| slot.ran);
            let good = ends.iter().all(|(_, end)| end.code == 0);
            if !init || !good {
                // What the containers wrote comes before the last word.
                followers.join_all().await;
                ensure!(ran, "container {}", lines.join("; container "));
                let phase = if good { Phase::Succeeded } else { Phase::Failed };
                return Ok(Outcome::Ended { phase, lines });
            }
        }
        Ok(Outcome::Gone)
    }

    fn slot<'c>(&self, container: &'c Container, init: bool) -> Slot<'c> {
        Slot {
            container,
            init,
            attempt: 0,
            ran: false,
            unsure: false,
            state: State::Waiting(Instant::now()),
            backoff: Backoff::new(self.base),
            dead: Vec::new(),
        }
    }

    /// Runs containers until all have ended; an outcome only if that is the end of the pod.
    async fn group(
        &self,
        slots: &mut [Slot<'_>],
        memory: i64,
        followers: &mut JoinSet<()>,
    ) -> Result<Option<Outcome>> {
        let mut away = false;
        loop {
            let ending = self.folder.ending();
            for slot in slots.iter_mut() {
                let due = matches!(slot.state, State::Waiting(at) if at <= Instant::now());
                if due && !ending && self.start(slot, memory, followers).await?.is_none() {
                    return Ok(Some(Outcome::Gone));
                }
            }
            if slots.iter().all(|slot| matches!(slot.state, State::Ended(_))) && !ending {
                return Ok(None);
            }
            let started = |slot: &Slot<'_>| slot.attempt > 0 || !matches!(slot.state, State::Waiting(_));
            if self.detach && slots.iter().all(|slot| !slot.init && started(slot)) {
                return Ok(Some(Outcome::Detached));
            }
            match self.look(slots).await? {
                Sight::Gone => return Ok(Some(Outcome::Gone)),
                Sight::Away if !away => {
                    self.say("the runtime does not answer; waiting for it");
                    away = true;
                }
                Sight::Away => {}
                Sight::Containers(seen) => {
                    if std::mem::take(&mut away) {
                        self.say("the runtime answers again");
                    }
                    for slot in slots.iter_mut() {
                        self.update(slot, &seen).await?;
                    }
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn say(&self, text: impl std::fmt::Display) {
        self.report.line(&format!("{}/{}", self.pod.namespace(), self.pod.metadata.name), text);
    }

    /// Starts the next run of a container. `None`: the pod is gone.
    async fn start(
        &self,
        slot: &mut Slot<'_>,
        memory: i64,
        followers: &mut JoinSet<()>,
    ) -> Result<Option<()>> {
        let name = slot.container.name.clone();
        let id = match self.create(slot, memory).await {
            Ok(id) => id,
            Err(error) => return self.not_started(slot, error.context(format!("container {name}"))).await,
        };
        let status = if slot.unsure { target::status(&self.clients, &id, false).await.ok() } else { None };
        if status.is_none_or(|(status, _)| status.state() == cri::ContainerState::ContainerCreated) {
            let request = cri::StartContainerRequest { container_id: id.clone() };
            let mut runtime = self.clients.runtime.clone();
            match runtime.start_container(request).await.asked(format_args!("start container {name}")) {
                Ok(_) => {}
                Err(error) if endpoint::is_away(&error) => return self.not_started(slot, error).await,
                Err(error) => {
                    if !self.is_ready().await? {
                        return Ok(None);
                    }
                    slot.dead.push((slot.attempt, id));
                    self.ended(slot, End::not_started(&error), Duration::ZERO);
                    return Ok(Some(()));
                }
            }
        }
        let kind = if slot.init { "init container" } else { "container" };
        match slot.attempt {
            0 => self.say(format_args!("{kind} {name} started")),
            count => self.say(format_args!("{kind} {name} started again (restart {count})")),
        }
        if self.logs {
            let path = self.folder.logs().join(&name).join(format!("{}.log", slot.attempt));
            followers.spawn(tail::follow(self.clients.clone(), id.clone(), path, name));
        }
        self.bury(slot).await?;
        slot.unsure = false;
        slot.ran = true;
        slot.state = State::Running(id);
        Ok(Some(()))
    }

    async fn create(&self, slot: &Slot<'_>, memory: i64) -> Result<String> {
        let name = &slot.container.name;
        let logs = self.folder.logs().join(name);
        fs::create_dir_all(&logs).with_context(|| format!("make the folder {}", logs.display()))?;
        let image = self.images.get(&slot.container.image).context("its image was not provided")?;
        let config = container::config(
            slot.container,
            &container::Input {
                pod: self.pod,
                facts: &self.facts,
                sources: &self.volumes,
                image,
                hosts: &self.folder.hosts(),
                termination: &self.folder.termination_message(name, slot.attempt)?,
                attempt: slot.attempt,
                memory,
            },
        )?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        Ok(self.clients.runtime.clone().create_container(request).await.asked("create it")?.container_id)
    }

    /// A run that could not be made: tried again later if the runtime is away. Otherwise it counts as one that has ended,
    /// or, if it is the first one, is the end of it all: what never worked is the manifest's fault.
    async fn not_started(&self, slot: &mut Slot<'_>, error: anyhow::Error) -> Result<Option<()>> {
        if endpoint::is_away(&error) {
            slot.unsure = true;
            slot.state = State::Waiting(Instant::now() + AWAY_PAUSE);
            return Ok(Some(()));
        }
        if !self.is_ready().await? {
            return Ok(None);
        }
        if slot.attempt == 0 {
            return Err(error);
        }
        self.ended(slot, End::not_made(&error), Duration::ZERO);
        Ok(Some(()))
    }

    /// Whether the sandbox is still there to make containers in.
    async fn is_ready(&self) -> Result<bool> {
        let request =
            cri::PodSandboxStatusRequest { pod_sandbox_id: self.sandbox.id.clone(), verbose: false };
        match self.clients.runtime.clone().pod_sandbox_status(request).await.asked("ask for the sandbox") {
            Ok(answer) => Ok(answer.status.unwrap_or_default().state() == cri::PodSandboxState::SandboxReady),
            Err(error) if endpoint::code(&error) == Some(Code::NotFound) => Ok(false),
            // Not known now; the next look will tell.
            Err(error) if endpoint::is_away(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn look(&self, slots: &[Slot<'_>]) -> Result<Sight> {
        let all = match target::containers(&self.clients, &self.sandbox.id).await {
            Ok(all) => all,
            Err(error) if endpoint::is_away(&error) => return Ok(Sight::Away),
            Err(error) => return Err(error),
        };
        let seen: HashMap<_, _> =
            all.iter().map(|container| (container.id.clone(), container.state())).collect();
        let running = |slot: &Slot<'_>| match &slot.state {
            State::Running(id) => seen.get(id) == Some(&cri::ContainerState::ContainerRunning),
            _ => false,
        };
        // As long as something runs the sandbox is there; only otherwise is the question worth a call.
        if slots.iter().any(running) || self.is_ready().await? {
            Ok(Sight::Containers(seen))
        } else {
            Ok(Sight::Gone)
        }
    }

    async fn update(&self, slot: &mut Slot<'_>, seen: &HashMap<String, cri::ContainerState>) -> Result<()> {
        let State::Running(id) = &slot.state else { return Ok(()) };
        let id = id.clone();
        let end = match seen.get(&id) {
            Some(cri::ContainerState::ContainerExited) => {
                match target::status(&self.clients, &id, false).await {
                    Ok((status, _)) => Some((End::of(&status, slot.container), end::lasted(&status))),
                    Err(error) if endpoint::code(&error) == Some(Code::NotFound) => {
                        Some((End::lost(), Duration::ZERO))
                    }
                    Err(error) if endpoint::is_away(&error) => None,
                    Err(error) => return Err(error),
                }
            }
            Some(_) => None,
            None => Some((End::lost(), Duration::ZERO)),
        };
        if let Some((end, lasted)) = end {
            slot.dead.push((slot.attempt, id));
            self.ended(slot, end, lasted);
        }
        Ok(())
    }

    /// A run has ended: another one, or none.
    fn ended(&self, slot: &mut Slot<'_>, end: End, lasted: Duration) {
        let name = &slot.container.name;
        if !again(self.pod.restart_policy(), slot.init, end.code) {
            self.say(format_args!("container {name} ended: {end}"));
            slot.state = State::Ended(end);
            return;
        }
        let pause = slot.backoff.pause(lasted);
        let then =
            if pause.is_zero() { String::new() } else { format!("; next start in {} s", pause.as_secs()) };
        self.say(format_args!("container {name} ended: {end}{then}"));
        slot.attempt += 1;
        slot.state = State::Waiting(Instant::now() + pause);
    }

    /// Removes runs that ended before the last one, as kubelet does.
    async fn bury(&self, slot: &mut Slot<'_>) -> Result<()> {
        while slot.dead.len() > 1 {
            let (attempt, container_id) = slot.dead.remove(0);
            let request = cri::RemoveContainerRequest { container_id };
            match self
                .clients
                .runtime
                .clone()
                .remove_container(request)
                .await
                .asked("remove an ended container")
            {
                Ok(_) => self.folder.forget(&slot.container.name, attempt),
                Err(error) if endpoint::is_away(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether a container that ended with `code` is started again.
fn again(policy: RestartPolicy, init: bool, code: i32) -> bool {
    match policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => code != 0,
        // An init container is there to end.
        RestartPolicy::Always => !init || code != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_decides_over_another_run() {
        use RestartPolicy::{Always, Never, OnFailure};
        for (policy, init, code, expected) in [
            (Always, false, 0, true),
            (Always, false, 1, true),
            (Always, true, 0, false),
            (Always, true, 1, true),
            (OnFailure, false, 0, false),
            (OnFailure, false, 1, true),
            (OnFailure, true, 1, true),
            (Never, false, 1, false),
            (Never, true, 1, false),
        ] {
            assert_eq!(again(policy, init, code), expected, "{policy:?} {init} {code}");
        }
    }
}
