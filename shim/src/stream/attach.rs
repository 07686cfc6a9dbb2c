//! An attach session: a client takes part in the standard streams of a container's first process.
//!
//! The monitor copies what it reads for the log into a pipe, and cuts off a client that falls behind. Must not know:
//! which transport it is.

use std::{os::fd::AsFd, pin::pin, sync::Arc, time::Duration};

use crisp_monitor::wire::{Attach, AttachEnd, Call};
use crisp_proto::runtime::v1 as cri;
use crisp_sys::fd::pipe2;
use tokio::{sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    command::{Channel, Outcome, Sender},
    descriptor::Descriptor,
    pump::{self, Client, Input, Window},
};
use crate::{
    container::exec::launch::running,
    error::{Class, RequestError, Stage},
    id::Id,
    link::Link,
    node::Node,
};

/// Attaches; `None`: the client has gone.
pub(super) async fn run(
    node: &Arc<Node>,
    request: cri::AttachRequest,
    client: &mut Client,
) -> Option<Outcome> {
    let stage = format!("attach to container {}", request.container_id);
    match session(node, &request, client).await {
        Ok(None) => None,
        Ok(Some(AttachEnd::Slow)) => Some(Outcome::Failed(format!(
            "{stage}: cut off: the client has fallen 1 MiB behind the container's output"
        ))),
        Ok(Some(AttachEnd::Stuck)) => Some(Outcome::Failed(format!(
            "{stage}: cut off: the container has ended, and the client does not take the rest of its output"
        ))),
        Ok(Some(AttachEnd::Container | AttachEnd::Client)) => Some(Outcome::Exit(0)),
        Err(error) => Some(Outcome::Failed(error.at(&stage).text)),
    }
}

async fn session(
    node: &Arc<Node>,
    request: &cri::AttachRequest,
    client: &mut Client,
) -> Result<Option<AttachEnd>, RequestError> {
    let (pod, record) = node.container(&request.container_id)?;
    let view = pod.view();
    let link = running(&record, view.link.as_ref())?;
    let container = record.id.to_string();
    let name = format!("attach-{}", Id::random()?.short(12));
    let wanted = [request.stdin, request.stdout, request.stderr && !request.tty];
    let (mut ours, mut theirs) = ([None, None, None], Vec::new());
    for (index, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
        let (read, write) = pipe2(false).stage("pipe")?;
        let (their, our) = if index == 0 { (read, write) } else { (write, read) };
        theirs.push(their);
        ours[index] = Some(Descriptor::new(our)?);
    }
    let [stdin, stdout, stderr] = ours;
    let attached = Attached { link: link.clone(), name: name.clone() };
    let end = link.expect_attach(&name);
    let call = Attach {
        container: container.clone(),
        attach: name,
        stdin: wanted[0],
        stdout: wanted[1],
        stderr: wanted[2],
    };
    let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    link.call(Call::Attach(call), &fds).await?;
    drop(theirs);
    let window = if request.tty { Window::Container(link.clone(), container) } else { Window::Nobody };
    let input = stdin.map_or(Input::Nothing, Input::Pipe);
    let mut input = pin!(pump::input(&mut client.receiver, &client.sender, &client.peer, input, &window));
    let ended = tokio::select! {
        () = &mut input => None,
        end = to_the_end(stdout, stderr, &client.sender, end) => {
            let end = end?;
            if end.is_none() {
                // The client has gone, which its output may have told before all that it had sent was read.
                let _ = timeout(LAST_INPUT, &mut input).await;
            }
            end
        }
    };
    drop(attached);
    Ok(ended)
}

/// How long the container may take to take what a client had sent before it went.
const LAST_INPUT: Duration = Duration::from_secs(10);
/// How long a client that has been cut off may take for what was on its way to it.
const REST: Duration = Duration::from_secs(60);

/// All copies have arrived, and the monitor has said why there are no more; `None`: the client has gone.
async fn to_the_end(
    stdout: Option<Descriptor>,
    stderr: Option<Descriptor>,
    sender: &Sender,
    mut end: oneshot::Receiver<AttachEnd>,
) -> Result<Option<AttachEnd>, RequestError> {
    let never = CancellationToken::new();
    let one = async |descriptor: Option<Descriptor>, channel| match descriptor {
        Some(descriptor) => pump::output(&descriptor, sender, channel, &never).await,
        None => Ok(()),
    };
    let gone = |_| RequestError::new(Class::Unavailable, "the pod's monitor is gone");
    let mut copied =
        pin!(async { tokio::try_join!(one(stdout, Channel::Stdout), one(stderr, Channel::Stderr)) });
    let (sent, end) = tokio::select! {
        biased;
        sent = &mut copied => (sent.is_ok(), end.await.map_err(gone)?),
        end = &mut end => {
            // One that is still not done by then is told at least why nothing follows.
            let rest = timeout(REST, copied).await;
            (!rest.is_ok_and(|sent| sent.is_err()), end.map_err(gone)?)
        }
    };
    Ok(sent.then_some(end))
}

/// Nobody waits for the end of an attachment that is over here.
struct Attached {
    link: Link,
    name: String,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.link.forget_attach(&self.name);
    }
}
