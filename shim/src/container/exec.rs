//! ExecSync: one more process in a running container, its output collected, its end waited for.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use crisp_monitor::wire::{Call, Exec};
use crisp_runtime::{
    cgroup::{Cgroup, CgroupError},
    oci,
};
use crisp_sys::fd::memfd_create_sealed;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::unix::pipe,
    sync::oneshot,
    time::timeout,
};

use crate::{
    error::{Class, RequestError, Stage},
    id::Id,
    link::Link,
    node::{Node, blocking},
    record::{ContainerPhase, ContainerRecord},
};

/// What the sub-cgroup of an exec is called, before a random part.
pub const PREFIX: &str = "exec-";
/// CRI cuts each stream at 16 MiB.
const STREAM_BYTES: usize = 16 << 20;
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
/// `DeadlineExceeded` when `limit` passes (the process and its children are killed); the program is not there;
/// the container does not run.
pub async fn sync(
    node: &Arc<Node>,
    link: Option<Link>,
    record: Arc<ContainerRecord>,
    command: Vec<String>,
    limit: Option<Duration>,
) -> Result<Output, RequestError> {
    let stage = format!("exec in container {}", record.id.short(12));
    let (ContainerPhase::Running { .. }, Some(link)) = (&record.phase, link) else {
        return Err(RequestError::precondition("the container does not run").at(stage));
    };
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
    let name = match Id::random() {
        Ok(id) => format!("{PREFIX}{}", id.short(12)),
        Err(error) => {
            let _ = answer.send(Err(error));
            return;
        }
    };
    let (task_node, task_record, sub) = (node.clone(), record.clone(), name.clone());
    let cgroup = blocking(move || {
        task_node
            .cgroups
            .open_cgroup(&task_record.cgroup)
            .and_then(|cgroup| cgroup.sub(&sub))
            .stage("make its cgroup")
    });
    let cgroup = match cgroup.await {
        Ok(cgroup) => Arc::new(cgroup),
        Err(error) => {
            let _ = answer.send(Err(error));
            return;
        }
    };
    let end = link.expect_exec(&name);
    let work = supervise(link, record, command, &name, &cgroup, end);
    let result = tokio::select! {
        result = within(limit, work) => Some(result),
        () = answer.closed() => None,
    };
    link.forget_exec(&name);
    let killed = !matches!(result, Some(Ok(_)));
    if let Err(error) = blocking(move || clean_up(&cgroup, killed)).await {
        tracing::warn!(container = %record.id, %error, "the exec's cgroup stays until the container's is removed");
    }
    if let Some(result) = result {
        let _ = answer.send(result);
    }
}

/// Takes the exec's cgroup away. `killed`: its processes, too, and the caller hears of the end only after theirs.
/// Killing is tried again, because the monitor may have been about to clone the process. Children that a process
/// which ended by itself has left running stay in the cgroup, which then goes with the container's.
fn clean_up(cgroup: &Cgroup, killed: bool) -> Result<(), RequestError> {
    if !killed {
        return match cgroup.remove(Duration::ZERO) {
            Err(CgroupError::Populated { .. }) => Ok(()),
            other => other.stage("remove"),
        };
    }
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
    link: &Link,
    record: &ContainerRecord,
    command: Vec<String>,
    name: &str,
    cgroup: &Cgroup,
    end: oneshot::Receiver<i32>,
) -> Result<Output, RequestError> {
    let plan = plan(record, command)?;
    let stdin: OwnedFd = std::fs::File::open("/dev/null").stage("open /dev/null")?.into();
    let (stdout_write, stdout) = pipe::pipe().stage("pipe")?;
    let (stderr_write, stderr) = pipe::pipe().stage("pipe")?;
    let stdout_write = stdout_write.into_blocking_fd().stage("pipe")?;
    let stderr_write = stderr_write.into_blocking_fd().stage("pipe")?;
    let call = Exec { container: record.id.to_string(), exec: name.to_owned() };
    let fds = [plan.as_fd(), cgroup.as_fd(), stdin.as_fd(), stdout_write.as_fd(), stderr_write.as_fd()];
    link.call(Call::Exec(call), &fds).await?;
    // Our own write ends would keep the pipes from ever ending.
    drop((stdout_write, stderr_write, stdin));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = {
        let both = async { tokio::join!(collect(stdout, &mut out), collect(stderr, &mut err)) };
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
    let spare = ANSWER_BYTES.saturating_sub(err.len().min(ANSWER_BYTES / 2));
    out.truncate(spare);
    err.truncate(ANSWER_BYTES - out.len());
    Ok(Output { stdout: out, stderr: err, code })
}

fn plan(record: &ContainerRecord, command: Vec<String>) -> Result<OwnedFd, RequestError> {
    if command.first().is_none_or(String::is_empty) || command.iter().any(|word| word.contains('\0')) {
        return Err(RequestError::invalid("cmd: no program, or a NUL byte in it"));
    }
    let mut process = record
        .spec
        .process()
        .clone()
        .ok_or_else(|| RequestError::unknown("the container's record has no process"))?;
    // Its streams are collected one by one, whatever the container's first process has.
    process.set_args(Some(command)).set_terminal(Some(false));
    let seccomp = record.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let user = record.spec.linux().as_ref().map(oci::id_mappings).transpose().stage("plan")?.flatten();
    let plan = oci::exec_plan(&process, seccomp, user.as_ref()).stage("plan")?;
    memfd_create_sealed("plan", &prost::Message::encode_to_vec(&plan)).stage("plan")
}

/// Reads to the end; what is over the limit is read and dropped, so that the process is never blocked.
async fn collect(mut from: impl AsyncRead + Unpin, into: &mut Vec<u8>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        let room = STREAM_BYTES.saturating_sub(into.len()).min(count);
        into.extend_from_slice(&buffer[..room]);
    }
}
