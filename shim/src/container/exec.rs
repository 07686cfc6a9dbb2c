//! ExecSync: one more process in a running container, its output collected, its end waited for.

pub mod launch;
pub mod left;
mod output;

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::{net::unix::pipe, sync::oneshot, time::timeout};

use crate::{
    error::{Class, RequestError, Stage},
    link::Link,
    node::Node,
    record::ContainerRecord,
};
use launch::Slot;
use output::Kept;

/// What the sub-cgroup of an exec is called, before a random part.
pub const PREFIX: &str = "exec-";
/// What both streams may come to in one answer: clients take messages of 16 MiB.
const ANSWER_BYTES: usize = (16 << 20) - (64 << 10);
/// How long a pipe may be held open by children of a process that has ended.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// What an exec'd process said and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output, cut at the limit.
    pub stdout: Vec<u8>,
    /// Standard error, cut at the limit.
    pub stderr: Vec<u8>,
    /// Exit status, or 128 + signal.
    pub code: i32,
}

/// Runs `command` in the container and waits for its end.
///
/// Cancel safety: when the caller goes away, the process is killed.
///
/// # Errors
/// `DeadlineExceeded` when `limit` passes, `Unavailable` when the daemon ends (the process and its children are killed);
/// the program is not there;
/// the container does not run.
pub async fn sync(
    node: &Arc<Node>,
    link: Option<Link>,
    record: Arc<ContainerRecord>,
    command: Vec<String>,
    limit: Option<Duration>,
) -> Result<Output, RequestError> {
    let stage = format!("exec in container {}", record.id.short(12));
    let link = launch::running(&record, link.as_ref()).map_err(|error| error.at(&stage))?.clone();
    let (answer, end) = oneshot::channel();
    let node = node.clone();
    tokio::spawn(async move { run(&node, &link, &record, command, limit, answer).await });
    end.await.map_err(|_| RequestError::unknown("the exec was given up"))?.map_err(|error| error.at(stage))
}

async fn run(
    node: &Arc<Node>,
    link: &Link,
    record: &Arc<ContainerRecord>,
    command: Vec<String>,
    limit: Option<Duration>,
    mut answer: oneshot::Sender<Result<Output, RequestError>>,
) {
    let (slot, end) = match Slot::make(node, link, record).await {
        Ok(made) => made,
        Err(error) => {
            let _ = answer.send(Err(error));
            return;
        }
    };
    let result = tokio::select! {
        result = within(limit, supervise(&slot, command, end)) => Some(result),
        () = answer.closed() => None,
        () = node.ending.cancelled() => {
            Some(Err(RequestError::new(Class::Unavailable, "the daemon ends; the process was killed")))
        }
    };
    slot.close(!matches!(result, Some(Ok(_)))).await;
    if let Some(result) = result {
        let _ = answer.send(result);
    }
}

async fn within(
    limit: Option<Duration>,
    work: impl Future<Output = Result<Output, RequestError>>,
) -> Result<Output, RequestError> {
    let Some(limit) = limit else { return work.await };
    timeout(limit, work).await.unwrap_or_else(|_| {
        Err(RequestError::new(
            Class::DeadlineExceeded,
            format!("command timed out: timeout {limit:?} exceeded; the process was killed"),
        ))
    })
}

async fn supervise(
    slot: &Slot,
    command: Vec<String>,
    end: oneshot::Receiver<i32>,
) -> Result<Output, RequestError> {
    let stdin: OwnedFd = std::fs::File::open("/dev/null").stage("open /dev/null")?.into();
    let (stdout_write, stdout) = pipe::pipe().stage("pipe")?;
    let (stderr_write, stderr) = pipe::pipe().stage("pipe")?;
    let stdout_write = stdout_write.into_blocking_fd().stage("pipe")?;
    let stderr_write = stderr_write.into_blocking_fd().stage("pipe")?;
    // Its streams are collected one by one, whatever the container's first process has.
    slot.start(command, Some([stdin.as_fd(), stdout_write.as_fd(), stderr_write.as_fd()])).await?;
    // Our own write ends would keep the pipes from ever ending.
    drop((stdout_write, stderr_write, stdin));
    let (mut out, mut err) = (Kept::new(), Kept::new());
    let code = {
        let both = async { tokio::join!(out.collect(stdout), err.collect(stderr)) };
        let mut drained = std::pin::pin!(both);
        let mut end = std::pin::pin!(end);
        tokio::select! {
            code = &mut end => {
                let _ = timeout(DRAIN_PATIENCE, &mut drained).await;
                code
            }
            _ = &mut drained => end.await,
        }
    };
    let code = code.map_err(|_| RequestError::new(Class::Unavailable, "the pod's monitor is gone"))?;
    let stdout = out.into_bytes(ANSWER_BYTES.saturating_sub(err.len().min(ANSWER_BYTES / 2)));
    let stderr = err.into_bytes(ANSWER_BYTES - stdout.len());
    Ok(Output { stdout, stderr, code })
}
