//! An exec session: a process whose streams are the client's.
//!
//! The daemon reads and writes the process's own pipes or terminal. When the client goes before the process, everything
//! in the exec's cgroup is killed. Must not know: which transport it is.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use crisp_proto::runtime::v1 as cri;
use crisp_sys::fd::pipe2;
use tokio::{sync::oneshot, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    command::{Channel, Outcome, Sender},
    descriptor::Descriptor,
    pump::{self, Client, Input, Window},
    transport::Peer,
};
use crate::{
    container::exec::launch::{self, Slot},
    error::{Class, RequestError, Stage},
    node::Node,
};

/// How long the children of a process that has ended may go on to write where it wrote.
const CHILDREN: Duration = Duration::from_secs(1);

/// Runs the command; `None`: the client has gone, or is `given_up`.
pub(super) async fn run(
    node: &Arc<Node>,
    request: cri::ExecRequest,
    client: &mut Client,
    given_up: impl Future<Output = ()>,
) -> Option<Outcome> {
    let stage = format!("exec in container {}", request.container_id);
    let failed = |error: RequestError| Some(Outcome::Failed(error.at(&stage).text));
    let made = async {
        let (pod, record) = node.container(&request.container_id)?;
        let view = pod.view();
        Slot::make(node, launch::running(&record, view.link.as_ref())?, &record).await
    };
    let (slot, end) = match made.await {
        Ok(made) => made,
        Err(error) => return failed(error),
    };
    let result = tokio::select! {
        result = session(&slot, request, end, client) => result,
        () = given_up => Ok(None),
    };
    slot.close(!matches!(result, Ok(Some(_)))).await;
    match result {
        Ok(code) => code.map(Outcome::Exit),
        Err(error) => failed(error),
    }
}

/// A pipe of which the process's end stays blocking.
fn pipe(for_process: bool, reads: bool) -> Result<(OwnedFd, Option<Descriptor>), RequestError> {
    if !for_process {
        let null =
            std::fs::File::options().read(true).write(true).open("/dev/null").stage("open /dev/null")?;
        return Ok((null.into(), None));
    }
    let (read, write) = pipe2(false).stage("pipe")?;
    let (theirs, ours) = if reads { (read, write) } else { (write, read) };
    Ok((theirs, Some(Descriptor::new(ours)?)))
}

/// The exit code; `None`: the client has gone.
async fn session(
    slot: &Slot,
    request: cri::ExecRequest,
    end: oneshot::Receiver<i32>,
    client: &mut Client,
) -> Result<Option<i32>, RequestError> {
    let (input, window, outputs) = if request.tty {
        let Some(terminal) = start(slot, request.cmd, None, &client.peer).await? else { return Ok(None) };
        let terminal = terminal.ok_or_else(|| RequestError::unknown("the monitor has sent no terminal"))?;
        let terminal = Arc::new(Descriptor::new(terminal)?);
        let input = if request.stdin { Input::Terminal(terminal.clone()) } else { Input::Nothing };
        (input, Window::Terminal(terminal.clone()), Outputs { stdout: Some(terminal), stderr: None })
    } else {
        let (stdin, input) = pipe(request.stdin, true)?;
        let (stdout, output) = pipe(request.stdout, false)?;
        let (stderr, errors) = pipe(request.stderr, false)?;
        // Our copies of the process's ends would keep its pipes from ever ending; they go with this block.
        let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        if start(slot, request.cmd, Some(streams), &client.peer).await?.is_none() {
            return Ok(None);
        }
        let input = input.map_or(Input::Nothing, Input::Pipe);
        (input, Window::Nobody, Outputs { stdout: output.map(Arc::new), stderr: errors })
    };
    tokio::select! {
        () = pump::input(&mut client.receiver, &client.sender, &client.peer, input, &window) => Ok(None),
        ended = to_the_end(outputs, &client.sender, end) => ended,
    }
}

/// What [`Slot::start`] gives; `None`: the client has gone. In a frozen container no start comes to its end, and nobody
/// else looks at the client before that.
async fn start(
    slot: &Slot,
    command: Vec<String>,
    streams: Option<[BorrowedFd<'_>; 3]>,
    peer: &Peer,
) -> Result<Option<Option<OwnedFd>>, RequestError> {
    tokio::select! {
        started = slot.start(command, streams) => started.map(Some),
        () = peer.gone() => Ok(None),
    }
}

struct Outputs {
    stdout: Option<Arc<Descriptor>>,
    stderr: Option<Descriptor>,
}

/// Waits for the process and for all that it has written to be on its way.
async fn to_the_end(
    outputs: Outputs,
    sender: &Sender,
    mut end: oneshot::Receiver<i32>,
) -> Result<Option<i32>, RequestError> {
    let over = CancellationToken::new();
    let one = async |descriptor: Option<&Descriptor>, channel| match descriptor {
        Some(descriptor) => pump::output(descriptor, sender, channel, &over).await,
        None => Ok(()),
    };
    let mut written = std::pin::pin!(async {
        tokio::try_join!(
            one(outputs.stdout.as_deref(), Channel::Stdout),
            one(outputs.stderr.as_ref(), Channel::Stderr)
        )
    });
    let gone = |_| RequestError::new(Class::Unavailable, "the pod's monitor is gone");
    let code = tokio::select! {
        biased;
        sent = &mut written => {
            if sent.is_err() {
                return Ok(None);
            }
            return end.await.map(Some).map_err(gone);
        }
        code = &mut end => code.map_err(gone)?,
    };
    let patience = async {
        sleep(CHILDREN).await;
        over.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        sent = &mut written => Ok(sent.is_ok().then_some(code)),
        () = patience => Ok(Some(code)),
    }
}
