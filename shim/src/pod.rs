//! One pod: a sandbox and its containers.
//!
//! ```text
//!  sandbox:    Building --built--> Ready --StopPodSandbox--> Stopping --all given back--> Stopped --Remove--> gone
//!                 |--failed: undone, gone
//!                 `--failed, and not all could be undone: Undoing --all given back--> gone
//!  container:  Creating --cloned--> Created --StartContainer--> Running --process ends--> Exited --Remove--> gone
//!                 |--failed: undone, gone   `--failed: Exited (128, StartError)
//!                 `--failed, and not all could be undone: stays, as UNKNOWN, until it is removed
//! ```
//!
//! One task a pod, the actor, owns every change. Work (mounts, the monitor, the network) runs beside it and
//! comes back as a command, so an actor never waits for I/O and one container's dead storage never delays a
//! sibling. Each object does one thing at a time: a request like the one in flight joins it, another one waits
//! for its turn. A Stop or Remove that waits in vain behind something stuck ends it, or says what is stuck
//! (`actor/overdue.rs`). Reading needs no actor: the view is behind a lock that is held for a copy of a pointer only.
//!
//! A caller that goes away cancels nothing: its request was handed over, and reaches its end.

pub mod actor;
pub mod build;
mod cni;
pub mod policy;
pub mod teardown;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crisp_monitor::wire::PodState;
use crisp_proto::runtime::v1 as cri;
use tokio::sync::{mpsc, oneshot};

use crate::{
    convert::status,
    error::{Class, RequestError},
    id::Id,
    link::{Event, Link},
    record::{ContainerRecord, SandboxRecord},
};

/// Where an operation's end is told.
pub type Reply = oneshot::Sender<Result<(), RequestError>>;

/// What can be asked of a container.
#[derive(Clone, Debug)]
pub enum ContainerOp {
    /// Execute its program.
    Start,
    /// Signal it, and kill it after the grace period; none: kill at once.
    Stop(Duration),
    /// Change its limits.
    Update(Box<cri::LinuxContainerResources>),
    /// Take it away, killing it if it runs.
    Remove,
}

/// What can be asked of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxOp {
    /// Wait until it is built (the building itself is asked for by its creation).
    Run,
    /// End its containers and give back all it holds.
    Stop,
    /// Forget it. It is stopped.
    Remove,
}

/// What is sent to a pod's actor.
#[derive(Debug)]
pub enum Command {
    /// See [`SandboxOp`].
    Sandbox(SandboxOp, Reply),
    /// Make a container; the id comes back.
    Create(Box<cri::ContainerConfig>, oneshot::Sender<Result<Id, RequestError>>),
    /// Take note of the pod's own resources.
    Resources(Box<cri::UpdatePodSandboxResourcesRequest>, Reply),
    /// See [`ContainerOp`].
    Container(Id, ContainerOp, Reply),
    /// A container has been busy for too long with what somebody waits behind: the turn of this number.
    Overdue(Id, u64),
    /// Somebody waits behind a sandbox that has been in the making for too long.
    BuildOverdue,
    /// A monitor that was silent when the daemon started answers now; `None`: it is gone.
    Found(Option<Box<Found>>),
    /// Work has ended.
    Done(actor::Done),
}

/// A monitor that has been found again.
#[derive(Debug)]
pub struct Found {
    /// The connection.
    pub link: Link,
    /// What it says.
    pub events: mpsc::UnboundedReceiver<Event>,
    /// What it knows.
    pub state: PodState,
}

/// What everybody may read of a pod.
#[derive(Clone, Debug)]
pub struct View {
    /// The sandbox.
    pub sandbox: Arc<SandboxRecord>,
    /// Its containers, those being made not among them.
    pub containers: BTreeMap<Id, Arc<ContainerRecord>>,
    /// The connection to its monitor, while there is one.
    pub link: Option<Link>,
}

impl View {
    /// The pod in CRI's words: the sandbox, and all its containers.
    #[must_use]
    pub fn statuses(&self) -> (cri::PodSandboxStatus, Vec<cri::ContainerStatus>) {
        let containers = self.containers.values().map(|record| status::container_status(record));
        (status::sandbox_status(&self.sandbox), containers.collect())
    }
}

/// Handle of a pod.
#[derive(Debug)]
pub struct Pod {
    /// The sandbox's id.
    pub id: Id,
    view: Mutex<View>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Pod {
    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod as it is now.
    pub fn view(&self) -> View {
        self.lock().clone()
    }

    /// The sandbox as it is now.
    pub fn sandbox(&self) -> Arc<SandboxRecord> {
        self.lock().sandbox.clone()
    }

    /// A container as it is now.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn container(&self, id: &Id) -> Result<Arc<ContainerRecord>, RequestError> {
        self.lock()
            .containers
            .get(id)
            .cloned()
            .ok_or_else(|| RequestError::not_found("container", id.as_str()))
    }

    /// Asks something of the sandbox and waits for its end.
    ///
    /// Cancel safety: the operation goes on.
    ///
    /// # Errors
    /// The operation's own; `NotFound` when the pod has gone meanwhile.
    pub async fn sandbox_op(&self, op: SandboxOp) -> Result<(), RequestError> {
        self.ask(op).await.unwrap_or_else(|| Err(self.gone()))
    }

    /// [`Pod::sandbox_op`]; `None`: the pod has gone, and nothing was done.
    ///
    /// Cancel safety: the operation goes on.
    pub async fn ask(&self, op: SandboxOp) -> Option<Result<(), RequestError>> {
        let (reply, end) = oneshot::channel();
        self.send(Command::Sandbox(op, reply)).ok()?;
        end.await.ok()
    }

    /// Takes note of what the client made of the pod's cgroup; a field that it leaves out stays as it was.
    ///
    /// # Errors
    /// The sandbox is being made, or its record cannot be written; `NotFound` when the pod has gone meanwhile.
    pub async fn update_resources(
        &self,
        wanted: cri::UpdatePodSandboxResourcesRequest,
    ) -> Result<(), RequestError> {
        let (reply, end) = oneshot::channel();
        self.send(Command::Resources(Box::new(wanted), reply))?;
        end.await.map_err(|_| self.gone())?
    }

    /// Makes a container and gives its id.
    ///
    /// Cancel safety: the container is made all the same, and a repeated request finds it.
    ///
    /// # Errors
    /// As [`Pod::sandbox_op`].
    pub async fn create(&self, config: cri::ContainerConfig) -> Result<Id, RequestError> {
        let (reply, end) = oneshot::channel();
        self.send(Command::Create(Box::new(config), reply))?;
        end.await.map_err(|_| self.gone())?
    }

    /// Asks something of a container and waits for its end.
    ///
    /// Cancel safety: the operation goes on.
    ///
    /// # Errors
    /// As [`Pod::sandbox_op`].
    pub async fn container_op(&self, id: &Id, op: ContainerOp) -> Result<(), RequestError> {
        let (reply, end) = oneshot::channel();
        self.send(Command::Container(id.clone(), op, reply))?;
        end.await.map_err(|_| RequestError::not_found("container", id.as_str()))?
    }

    /// Tells the pod that its monitor, silent before, answers or (`None`) is gone.
    pub fn found(&self, found: Option<Found>) {
        // Nobody listens any more only when the pod is gone.
        let _ = self.send(Command::Found(found.map(Box::new)));
    }

    fn send(&self, command: Command) -> Result<(), RequestError> {
        self.commands.send(command).map_err(|_| self.gone())
    }

    fn gone(&self) -> RequestError {
        RequestError::new(Class::NotFound, format!("sandbox {:?} not found", self.id.as_str()))
    }
}
