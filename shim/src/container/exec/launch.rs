//! One more process in a running container, in a cgroup of its own: how it is made, and how everything of it is ended.
//!
//! Must not know: where its streams lead.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use crisp_monitor::wire::{Call, Exec};
use crisp_runtime::{
    cgroup::{Cgroup, CgroupError},
    oci,
};
use crisp_sys::fd::memfd_create_sealed;
use tokio::sync::oneshot;

use super::{PREFIX, left};
use crate::{
    convert::spec_arguments,
    error::{RequestError, Stage},
    id::Id,
    link::Link,
    node::{Node, blocking},
    record::{ContainerPhase, ContainerRecord},
};

/// The container's link, if it runs.
///
/// # Errors
/// It does not run.
pub fn running<'a>(record: &ContainerRecord, link: Option<&'a Link>) -> Result<&'a Link, RequestError> {
    match (&record.phase, link) {
        (ContainerPhase::Running { .. }, Some(link)) => Ok(link),
        _ => Err(RequestError::precondition("the container does not run")),
    }
}

/// A name and a cgroup for a process that is not there yet. To be closed in any case.
#[derive(Debug)]
pub struct Slot {
    node: Arc<Node>,
    name: String,
    cgroup: Arc<Cgroup>,
    link: Link,
    record: Arc<ContainerRecord>,
}

impl Slot {
    /// Makes them; the process's end will come through the channel.
    ///
    /// # Errors
    /// The cgroup cannot be made.
    pub async fn make(
        node: &Arc<Node>,
        link: &Link,
        record: &Arc<ContainerRecord>,
    ) -> Result<(Slot, oneshot::Receiver<i32>), RequestError> {
        let name = format!("{PREFIX}{}", Id::random()?.short(12));
        let (task_node, task_record, sub) = (node.clone(), record.clone(), name.clone());
        let cgroup = blocking(move || {
            task_node
                .cgroups
                .open_cgroup(&task_record.cgroup)
                .and_then(|cgroup| cgroup.sub(&sub))
                .stage("make its cgroup")
        });
        let cgroup = Arc::new(cgroup.await?);
        let end = link.expect_exec(&name);
        Ok((Slot { node: node.clone(), name, cgroup, link: link.clone(), record: record.clone() }, end))
    }

    /// Starts the process with these streams, or with a terminal of its own, whose first end is given then.
    ///
    /// # Errors
    /// The program is not there; the container has ended.
    pub async fn start(
        &self,
        command: Vec<String>,
        streams: Option<[BorrowedFd<'_>; 3]>,
    ) -> Result<Option<OwnedFd>, RequestError> {
        let plan = plan(&self.record, command, streams.is_none())?;
        let call = Exec { container: self.record.id.to_string(), exec: self.name.clone() };
        let mut fds = vec![plan.as_fd(), self.cgroup.as_fd()];
        fds.extend(streams.iter().flatten());
        let (_, given) = self.link.call(Call::Exec(call), &fds).await?;
        Ok(given.into_iter().next())
    }

    /// Takes the cgroup away. `kill`: with everything in it; otherwise what the process has left running stays.
    pub async fn close(self, kill: bool) {
        self.link.forget_exec(&self.name);
        let (cgroup, node, path) = (self.cgroup, self.node, self.record.cgroup.clone());
        let closed = blocking(move || match kill {
            true => end(&cgroup),
            false => left::leave(&node.cgroups, &path, &cgroup),
        });
        if let Err(error) = closed.await {
            tracing::warn!(container = %self.record.id, %error, "the exec's cgroup stays until the container's is removed");
        }
    }
}

/// Ends an exec and takes its cgroup away: the caller hears of the end only after that of its processes. Killing is tried
/// again, because the monitor may have been about to clone the process.
fn end(cgroup: &Cgroup) -> Result<(), RequestError> {
    let mut last = Ok(());
    for _ in 0..5 {
        cgroup.kill().stage("kill")?;
        last = cgroup.remove(Duration::from_secs(2));
        if !matches!(last, Err(CgroupError::Populated { .. })) {
            break;
        }
    }
    last.stage("remove")
}

/// What an exec'd process is: the container's first one, with another command and streams of its own.
fn plan(record: &ContainerRecord, command: Vec<String>, terminal: bool) -> Result<OwnedFd, RequestError> {
    check_command(&command)?;
    let mut process = record
        .spec
        .process()
        .clone()
        .ok_or_else(|| RequestError::unknown("the container's record has no process"))?;
    if terminal {
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|variable| variable.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        process.set_env(Some(env));
    }
    process.set_args(Some(command)).set_terminal(Some(terminal));
    let seccomp = record.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let user = record.spec.linux().as_ref().map(oci::id_mappings).transpose().stage("plan")?.flatten();
    let mut plan = oci::exec_plan(&process, seccomp, user.as_ref()).stage("plan")?;
    if let Some(process) = &mut plan.process {
        spec_arguments::restore_binary(&record.config, &mut process.env);
    }
    memfd_create_sealed("plan", &prost::Message::encode_to_vec(&plan)).stage("plan")
}

/// Refuses what can be no command, before anything is made for it.
///
/// # Errors
/// There is no program, or a NUL byte.
pub fn check_command(command: &[String]) -> Result<(), RequestError> {
    if command.first().is_none_or(String::is_empty) || command.iter().any(|word| word.contains('\0')) {
        return Err(RequestError::invalid("cmd: no program, or a NUL byte in it"));
    }
    Ok(())
}
