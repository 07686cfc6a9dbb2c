//! The task that owns a pod: takes commands, starts work, applies what the work brought.

mod container;
mod found;
mod overdue;
mod sandbox;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crisp_monitor::wire;
use crisp_proto::runtime::v1 as cri;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    Command, ContainerOp, Pod, Reply, SandboxOp, View,
    build::{Built, Unbuilt},
};
use crate::{
    error::RequestError,
    id::Id,
    link::{Event, Link},
    node::Node,
    record::{self, ContainerPhase, ContainerRecord, PodDir, SandboxRecord},
    time::now_nanos,
};

/// What work brought.
#[derive(Debug)]
pub enum Done {
    /// The sandbox is built, or undone.
    Built(Result<Box<Built>, Unbuilt>),
    /// The sandbox holds nothing any more, or the first thing that could not be given back.
    SandboxStopped(Result<(), RequestError>),
    /// The sandbox's directory is gone.
    SandboxRemoved(Result<(), RequestError>),
    /// The container is there, or everything is undone.
    Created(Id, Result<Box<ContainerRecord>, RequestError>),
    /// Start time in nanoseconds since the epoch.
    Started(Id, Result<i64, RequestError>),
    /// Nothing of the container runs any more.
    Stopped(Id, Result<(), RequestError>),
    /// What was tried to end the turn of this number has not ended it, and why.
    Stuck(Id, u64, RequestError),
    /// What is in force now.
    Updated(Id, Result<Box<cri::LinuxContainerResources>, RequestError>),
    /// The container has left nothing behind.
    Removed(Id, Result<(), RequestError>),
}

/// What one object is busy with, who waits for that, and what comes after.
#[derive(Debug)]
struct Slot<Op> {
    current: Option<Op>,
    joined: Vec<Reply>,
    queue: VecDeque<(Op, Reply)>,
}

impl<Op> Default for Slot<Op> {
    fn default() -> Self {
        Self { current: None, joined: Vec::new(), queue: VecDeque::new() }
    }
}

impl<Op> Slot<Op> {
    /// The operation is over: everybody who waited for it is told.
    fn finish(&mut self, result: &Result<(), RequestError>) {
        self.current = None;
        for reply in self.joined.drain(..) {
            let _ = reply.send(result.clone());
        }
    }
}

type CreateReply = oneshot::Sender<Result<Id, RequestError>>;

/// A container as its actor sees it.
#[derive(Debug)]
struct Container {
    /// Name and attempt: the key under which a repeated Create finds it.
    key: String,
    slot: Slot<ContainerOp>,
    /// Counts what it was busy with, its creation being the first: tells a later turn from an earlier one.
    turn: u64,
    /// Who waits for its creation; `None` once it is over.
    creating: Option<Vec<CreateReply>>,
    /// Creates under the same name that wait for the end of its removal.
    successors: Vec<(cri::ContainerConfig, CreateReply)>,
    /// The end of a container whose creation this actor has not been told of yet.
    early: Option<wire::Exit>,
    /// Becomes true when it has ended.
    ended: watch::Sender<bool>,
    /// When the grace period of the Stop in flight ends; a later Stop can only shorten it.
    deadline: watch::Sender<Instant>,
}

impl Container {
    fn new(key: String, ended: bool) -> Self {
        Self {
            key,
            slot: Slot::default(),
            turn: 0,
            creating: None,
            successors: Vec::new(),
            early: None,
            ended: watch::Sender::new(ended),
            deadline: watch::Sender::new(Instant::now()),
        }
    }

    /// Lets a Stop in flight end after `grace` at the latest.
    fn hurry(&self, grace: Duration) {
        let wanted = Instant::now() + grace;
        self.deadline.send_if_modified(|deadline| {
            let sooner = wanted < *deadline;
            if sooner {
                *deadline = wanted;
            }
            sooner
        });
    }
}

/// The name under which a container is found again by a repeated request.
fn container_key(config: &cri::ContainerConfig) -> String {
    let metadata = config.metadata.clone().unwrap_or_default();
    format!("{}_{}", metadata.name, metadata.attempt)
}

/// See the module.
#[derive(Debug)]
pub struct Actor {
    node: Arc<Node>,
    pod: Arc<Pod>,
    dir: PodDir,
    commands: mpsc::UnboundedReceiver<Command>,
    /// For work to report its end with.
    own: mpsc::UnboundedSender<Command>,
    events: mpsc::UnboundedReceiver<Event>,
    sandbox: Slot<SandboxOp>,
    containers: HashMap<Id, Container>,
    over: bool,
}

impl Actor {
    /// Makes a pod out of records and runs its actor: for recovery.
    pub fn restore(
        node: &Arc<Node>,
        sandbox: SandboxRecord,
        containers: Vec<ContainerRecord>,
        link: Option<(Link, mpsc::UnboundedReceiver<Event>)>,
    ) -> Arc<Pod> {
        let (link, events) = match link {
            Some((link, events)) => (Some(link), events),
            None => (None, mpsc::unbounded_channel().1),
        };
        let view = View {
            sandbox: Arc::new(sandbox),
            containers: containers.into_iter().map(|record| (record.id.clone(), Arc::new(record))).collect(),
            link,
        };
        let (pod, actor) = Self::new(node, view, events);
        tokio::spawn(actor.run());
        pod
    }

    /// Makes a pod that is to be built, and builds it.
    pub fn build(node: &Arc<Node>, sandbox: SandboxRecord, plan: super::build::BuildInput) -> Arc<Pod> {
        let view = View { sandbox: Arc::new(sandbox), containers: Default::default(), link: None };
        let (pod, mut actor) = Self::new(node, view, mpsc::unbounded_channel().1);
        actor.begin_build(plan);
        tokio::spawn(actor.run());
        pod
    }

    fn new(node: &Arc<Node>, view: View, events: mpsc::UnboundedReceiver<Event>) -> (Arc<Pod>, Self) {
        let (own, commands) = mpsc::unbounded_channel();
        let id = view.sandbox.id.clone();
        let containers = view
            .containers
            .values()
            .map(|record| {
                let ended = matches!(record.phase, ContainerPhase::Exited(_));
                (record.id.clone(), Container::new(container_key(&record.config), ended))
            })
            .collect();
        let pod = Arc::new(Pod { id: id.clone(), view: std::sync::Mutex::new(view), commands: own.clone() });
        let actor = Self {
            node: node.clone(),
            pod: pod.clone(),
            dir: node.state.pod(&id),
            commands,
            own,
            events,
            sandbox: Slot::default(),
            containers,
            over: false,
        };
        (pod, actor)
    }

    async fn run(mut self) {
        let mut listening = true;
        while !self.over {
            tokio::select! {
                // Events first: an exit that the monitor reported before a reply is applied before it.
                biased;
                event = self.events.recv(), if listening => match event {
                    Some(Event::Exited(exit)) => self.container_exited(&exit),
                    Some(Event::OomKilled(report)) => self.oom_killed(&report),
                    Some(Event::Gone) => self.monitor_gone(),
                    None => listening = false,
                },
                command = self.commands.recv() => match command {
                    Some(command) => {
                        let connected = matches!(command, Command::Done(Done::Built(Ok(_))) | Command::Found(_));
                        self.handle(command);
                        listening |= connected;
                    }
                    None => return,
                },
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Sandbox(op, reply) => self.submit_sandbox(op, reply),
            Command::Create(config, reply) => self.create(*config, reply),
            Command::Resources(wanted, reply) => {
                let _ = reply.send(self.note_resources(*wanted));
            }
            Command::Container(id, op, reply) => self.submit_container(&id, op, reply),
            Command::Overdue(id, turn) => self.overdue(&id, turn),
            Command::BuildOverdue => self.build_overdue(),
            Command::Found(Some(found)) => self.found(*found),
            Command::Found(None) => self.lost(),
            Command::Done(done) => self.done(done),
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Built(result) => self.built(result),
            Done::SandboxStopped(result) => self.sandbox_stopped(result),
            Done::SandboxRemoved(result) => self.sandbox_removed(result),
            Done::Created(id, result) => self.created(&id, result),
            Done::Started(id, result) => self.started(&id, result),
            Done::Stopped(id, result) => self.stopped(&id, &result),
            Done::Stuck(id, turn, error) => self.stuck(&id, turn, &error),
            Done::Updated(id, result) => self.updated(&id, result),
            Done::Removed(id, result) => self.removed(&id, &result),
        }
    }

    /// Runs work beside the actor and hands its end back.
    fn work(&self, work: impl Future<Output = Done> + Send + 'static) {
        let own = self.own.clone();
        tokio::spawn(async move {
            // Nobody listens any more only when the pod is gone.
            let _ = own.send(Command::Done(work.await));
        });
    }

    /// Tells who listens what has happened to a container or, by the pod's own id, to the sandbox. Called after
    /// the change: what is told with it is the pod as it is then.
    fn tell(&self, id: &Id, kind: cri::ContainerEventType) {
        self.node.events.tell(|| {
            let (sandbox, containers_statuses) = self.pod.view().statuses();
            cri::ContainerEventResponse {
                container_id: id.to_string(),
                container_event_type: kind.into(),
                created_at: now_nanos(),
                pod_sandbox_status: Some(sandbox),
                containers_statuses,
            }
        });
    }

    fn change_sandbox(&self, change: impl FnOnce(&mut SandboxRecord)) -> Result<(), RequestError> {
        let mut record = (*self.pod.sandbox()).clone();
        change(&mut record);
        let written = record::write(&self.dir.record(), &record);
        self.pod.lock().sandbox = Arc::new(record);
        written.map_err(|error| RequestError::unknown(error.to_string()))
    }

    /// Changes a container's record, on disk and for readers. What happened has happened: readers see it even
    /// when the record cannot be written.
    fn change_container(
        &self,
        id: &Id,
        change: impl FnOnce(&mut ContainerRecord),
    ) -> Result<(), RequestError> {
        let mut record = (*self.pod.container(id)?).clone();
        change(&mut record);
        let written = record::write(&self.dir.container_record(id), &record);
        self.pod.lock().containers.insert(id.clone(), Arc::new(record));
        written.map_err(|error| RequestError::unknown(error.to_string()))
    }
}
