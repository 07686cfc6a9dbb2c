//! The protocol between the daemon and a pod's monitor.
//!
//! One `SOCK_SEQPACKET` unix socket per pod; one packet is one message; file descriptors travel beside the
//! bytes (`SCM_RIGHTS`). Messages are protobuf, so an older monitor and a newer daemon skip the fields that
//! they do not know. A request carries an id of the daemon's choice, and exactly one reply carries it back;
//! id 0 marks an event, which nobody asked for.
//!
//! Must not know: CRI, tokio, where files live.

mod packet;

pub use packet::WireError;

/// Version of this protocol, exchanged in [`Hello`].
pub const VERSION: u32 = 1;
/// Largest packet, in bytes. The kernel refuses packets of about 213 kB; plans travel as sealed memfds instead.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most descriptors in one packet (the kernel's own limit, `SCM_MAX_FD`, is 253).
pub const MAX_FDS: usize = 200;

/// What either end says of a message whose descriptors were cut off, because the receiver has too many open files.
pub const FDS_LOST: &str = "descriptors did not arrive: too many open files";

/// Daemon to monitor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Chosen by the daemon, never 0; echoed in the reply.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What to do.
    #[prost(oneof = "Call", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 20")]
    pub call: Option<Call>,
}

/// What the daemon can ask for.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Call {
    /// Says who calls, and subscribes this connection to events. Answer: [`Answer::Pod`].
    #[prost(message, tag = "2")]
    Hello(Hello),
    /// Starts the init of the pod's shared PID namespace. Fds: `[cgroup dir]`, none when held, then
    /// the user namespace if it gets one. Answer: [`Body::Init`], or [`Body::Held`]. When it dies after that,
    /// everything else in the pod is killed and the monitor ends once all exits are announced.
    #[prost(message, tag = "3")]
    StartInit(StartInit),
    /// Clones a container up to the point where only `execve` is missing.
    /// Fds: `[plan memfd, cgroup dir, exit record, root mount, mount sources...]`, without the cgroup when held.
    /// Answer: [`Body::Created`], or [`Body::Held`].
    #[prost(message, tag = "4")]
    Create(Create),
    /// Lets a created container execute its program. Answer: [`Answer::Started`].
    #[prost(message, tag = "5")]
    Start(ContainerRef),
    /// Sends a signal to the container's first process. Answer: [`Answer::Done`], also when it has ended.
    #[prost(message, tag = "6")]
    Signal(Signal),
    /// Runs a further process in a container. Fds: `[plan memfd, cgroup dir, stdin, stdout, stderr]`, the last three
    /// not when the plan asks for a terminal. Answer: [`Body::ExecStarted`], with fds `[terminal]` if it has one; its
    /// end comes as [`Body::ExecExited`].
    #[prost(message, tag = "7")]
    Exec(Exec),
    /// Opens the log file anew (after rotation). Answer: [`Answer::Done`] once the new file exists and
    /// nothing more goes to the old one.
    #[prost(message, tag = "8")]
    ReopenLog(ContainerRef),
    /// Forgets an ended (or kills and forgets a created) container. Answer: [`Answer::Done`].
    #[prost(message, tag = "9")]
    Remove(ContainerRef),
    /// Ends the monitor: refused while a container runs. Answer: [`Answer::Done`], then the socket closes.
    #[prost(message, tag = "10")]
    Shutdown(Shutdown),
    /// Asks for the container's root mount. Answer: [`Answer::Done`] with fds `[root mount]`.
    #[prost(message, tag = "11")]
    RootFd(ContainerRef),
    /// Says that a held process is in its cgroup now: it goes on. Fds: `[cgroup dir]`. Answer: [`Body::Created`], for
    /// the pod's init [`Body::Init`].
    #[prost(message, tag = "20")]
    Placed(Placed),
    /// Lets a client take part in a running container's standard streams. Fds: one for each that is asked for, in the
    /// order input (to read from), output, errors (to write to). Answer: [`Body::Done`]; the end of it is told by
    /// [`Body::AttachEnded`]. The descriptors are switched to non-blocking.
    #[prost(message, tag = "12")]
    Attach(Attach),
    /// Sets the size of a container's terminal. Answer: [`Body::Done`].
    #[prost(message, tag = "13")]
    Resize(Resize),
}

/// First message of a connection.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// The daemon's [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
}

/// See [`Call::StartInit`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct StartInit {
    /// `oom_score_adj` of the init.
    #[prost(sint32, tag = "1")]
    pub oom_score_adj: i32,
    /// A user namespace comes along, the last of the descriptors: the init and its PID namespace are made in it.
    #[prost(bool, tag = "30")]
    pub user_namespace: bool,
    /// See [`Create::hold`].
    #[prost(bool, tag = "20")]
    pub hold: bool,
}

/// See [`Call::Placed`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Placed {
    /// The container's id; empty: the pod's init.
    #[prost(string, tag = "1")]
    pub container: String,
}

/// Names a container of this pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRef {
    /// The container's id, 64 hex digits.
    #[prost(string, tag = "1")]
    pub container: String,
}

/// Which PID namespace a container is born into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PidNamespace {
    /// One of its own: the container's process is PID 1.
    Own = 0,
    /// The pod's, whose init [`Call::StartInit`] has started.
    Pod = 1,
    /// The host's.
    Host = 2,
    /// That of the running container [`Create::target`].
    Target = 3,
}

/// See [`Call::Create`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Create {
    /// The container's id.
    #[prost(string, tag = "1")]
    pub container: String,
    /// Which PID namespace it joins.
    #[prost(enumeration = "PidNamespace", tag = "2")]
    pub pid: i32,
    /// The pod's log directory, absolute. Empty: output is read and dropped.
    #[prost(string, tag = "3")]
    pub log_dir: String,
    /// The log file, relative to `log_dir`; resolved beneath it, symlinks refused (CVE-2026-53489's class).
    #[prost(string, tag = "4")]
    pub log_path: String,
    /// Longest content of one log line, in bytes; longer ones are cut into `P` pieces. 0: the default, 16 KiB.
    #[prost(uint32, tag = "5")]
    pub log_line_bytes: u32,
    /// CRI `stdin`: keep a pipe open as the container's standard input instead of `/dev/null`.
    #[prost(bool, tag = "6")]
    pub stdin: bool,
    /// Clone the process into the monitor's own cgroup, answer with [`Body::Held`], and let it do nothing until
    /// [`Call::Placed`]: somebody else (systemd) makes the cgroup around it.
    #[prost(bool, tag = "20")]
    pub hold: bool,
    /// CRI `stdin_once`: when the first attached client that writes to the container's standard input ends, so does
    /// the input. Without effect on a terminal.
    #[prost(bool, tag = "7")]
    pub stdin_once: bool,
    /// The container of this pod whose PID namespace is joined, for [`PidNamespace::Target`]. It must run, also when this
    /// one is started.
    #[prost(string, tag = "8")]
    pub target: String,
}

/// See [`Call::Signal`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Signal {
    /// The container.
    #[prost(string, tag = "1")]
    pub container: String,
    /// Signal number of this architecture, 1..=64.
    #[prost(int32, tag = "2")]
    pub signal: i32,
}

/// See [`Call::Exec`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exec {
    /// The container to join.
    #[prost(string, tag = "1")]
    pub container: String,
    /// The caller's name for this process; unique in the pod.
    #[prost(string, tag = "2")]
    pub exec: String,
}

/// See [`Call::Attach`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attach {
    /// The container.
    #[prost(string, tag = "1")]
    pub container: String,
    /// The caller's name for this client; unique in the pod.
    #[prost(string, tag = "2")]
    pub attach: String,
    /// It writes to the container's standard input.
    #[prost(bool, tag = "3")]
    pub stdin: bool,
    /// It gets a copy of what the container writes to standard output from now on.
    #[prost(bool, tag = "4")]
    pub stdout: bool,
    /// As `stdout`, of standard error. Not with a terminal, which has one stream.
    #[prost(bool, tag = "5")]
    pub stderr: bool,
}

/// See [`Call::Resize`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resize {
    /// The container.
    #[prost(string, tag = "1")]
    pub container: String,
    /// Width in characters, 1 to 65535.
    #[prost(uint32, tag = "2")]
    pub columns: u32,
    /// Height in characters, 1 to 65535.
    #[prost(uint32, tag = "3")]
    pub rows: u32,
}

/// Why an attached client has no part in its container any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AttachEnd {
    /// It got everything there was: the container has ended.
    Container = 0,
    /// It has closed all of its descriptors.
    Client = 1,
    /// It was cut off because it fell too far behind: the container does not wait for it.
    Slow = 2,
    /// It was cut off because it did not take the rest of an ended container.
    Stuck = 3,
}

/// The end of a [`Call::Attach`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttachEnded {
    /// The caller's name for it.
    #[prost(string, tag = "1")]
    pub attach: String,
    /// Why.
    #[prost(enumeration = "AttachEnd", tag = "2")]
    pub end: i32,
}

/// See [`Call::Shutdown`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Shutdown {
    /// Kill and reap what still runs (through each container's `cgroup.kill`) before ending.
    #[prost(bool, tag = "1")]
    pub kill: bool,
}

/// Monitor to daemon.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    /// The request's id; 0 for an event.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What is said.
    #[prost(oneof = "Body", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20, 21")]
    pub body: Option<Body>,
}

/// A reply or an event.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// The request was refused or went wrong.
    #[prost(message, tag = "2")]
    Failed(Failure),
    /// Done; nothing else to say.
    #[prost(message, tag = "3")]
    Done(Done),
    /// Answer to [`Call::Hello`].
    #[prost(message, tag = "4")]
    Pod(PodState),
    /// Answer to [`Call::StartInit`]: the init's pid as the host sees it.
    #[prost(message, tag = "5")]
    Init(Pid),
    /// Answer to [`Call::Create`].
    #[prost(message, tag = "6")]
    Created(Pid),
    /// Answer to [`Call::Start`].
    #[prost(message, tag = "7")]
    Started(StartedAt),
    /// Answer to [`Call::Exec`].
    #[prost(message, tag = "8")]
    ExecStarted(Pid),
    /// Event: a container's first process has ended, its log is written out, and its exit record is on file.
    #[prost(message, tag = "9")]
    Exited(Exit),
    /// Event: an exec'd process has ended.
    #[prost(message, tag = "10")]
    ExecExited(ExecExit),
    /// Answer to a [`Call::Create`] or [`Call::StartInit`] that holds: the process that waits for its cgroup.
    #[prost(message, tag = "20")]
    Held(Pid),
    /// Event: an attached client is no longer served; its descriptors are closed.
    #[prost(message, tag = "11")]
    AttachEnded(AttachEnded),
    /// Event: the OOM killer has killed processes of a container, which may run on.
    #[prost(message, tag = "21")]
    OomKilled(OomReport),
}

/// Whose limit made the OOM killer kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum OomLevel {
    /// It cannot be told: the cgroup was gone.
    Unknown = 0,
    /// The container's own.
    Container = 1,
    /// That of the cgroup above it: its pod's.
    Pod = 2,
    /// That of a cgroup further up.
    Ancestor = 3,
    /// Nobody's: the machine was out of memory.
    Host = 4,
}

/// What the OOM killer has done in a container's cgroup.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct OomKills {
    /// Processes killed since the container was created.
    #[prost(uint64, tag = "1")]
    pub kills: u64,
    /// The cause of the last kill.
    #[prost(enumeration = "OomLevel", tag = "2")]
    pub level: i32,
}

/// See [`Body::OomKilled`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct OomReport {
    /// The container.
    #[prost(string, tag = "1")]
    pub container: String,
    /// All that happened to it so far.
    #[prost(message, optional, tag = "2")]
    pub oom: Option<OomKills>,
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Done {}

/// Why a request did not succeed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    /// What kind of failure, for the daemon's error classes.
    #[prost(enumeration = "FailureKind", tag = "1")]
    pub kind: i32,
    /// Lower-case text that names stage, object and cause.
    #[prost(string, tag = "2")]
    pub text: String,
    /// The kernel's errno, 0 when there is none.
    #[prost(int32, tag = "3")]
    pub errno: i32,
}

/// Classes of [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FailureKind {
    /// A bug or an answer of the kernel nobody expected.
    Internal = 0,
    /// No container or exec of that name.
    NotFound = 1,
    /// It exists already.
    Exists = 2,
    /// Not in a state in which this can be done.
    Precondition = 3,
    /// The message itself makes no sense.
    Invalid = 4,
    /// The program to execute is not there or cannot be executed (ENOENT, EACCES, ENOEXEC...).
    Program = 5,
    /// A limit of memory is too small for what is to be made.
    Memory = 6,
}

/// A process id in the monitor's PID namespace (the host's).
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Pid {
    /// The pid.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Its start time in clock ticks since boot (`/proc/pid/stat` field 22): tells a reused pid apart.
    #[prost(uint64, tag = "2")]
    pub start_ticks: u64,
}

/// Answer to [`Call::Start`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct StartedAt {
    /// Nanoseconds since the epoch at which `execve` had succeeded.
    #[prost(int64, tag = "1")]
    pub nanos: i64,
}

/// How a process ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exit {
    /// The container.
    #[prost(string, tag = "1")]
    pub container: String,
    /// Exit status, or 128 + signal.
    #[prost(int32, tag = "2")]
    pub code: i32,
    /// Nanoseconds since the epoch at which it was reaped.
    #[prost(int64, tag = "3")]
    pub nanos: i64,
    /// `memory.events` of its cgroup counted OOM kills during its life.
    #[prost(bool, tag = "4")]
    pub oom_killed: bool,
    /// Nanoseconds since the epoch at which it had started; 0: it never did.
    #[prost(int64, tag = "5")]
    pub started_nanos: i64,
    /// More of `oom_killed`.
    #[prost(message, optional, tag = "6")]
    pub oom: Option<OomKills>,
}

/// How an exec'd process ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecExit {
    /// The caller's name for it.
    #[prost(string, tag = "1")]
    pub exec: String,
    /// Exit status, or 128 + signal.
    #[prost(int32, tag = "2")]
    pub code: i32,
}

/// Everything the monitor knows: what a restarted daemon needs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodState {
    /// The monitor's [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The monitor's own pid.
    #[prost(int32, tag = "2")]
    pub pid: i32,
    /// The pod's init, if one was started and lives.
    #[prost(message, optional, tag = "3")]
    pub init: Option<Pid>,
    /// Every container that was created and not removed.
    #[prost(message, repeated, tag = "4")]
    pub containers: Vec<ContainerState>,
}

/// A container as its monitor sees it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerState {
    /// The container's id.
    #[prost(string, tag = "1")]
    pub container: String,
    /// Its first process; also after it has ended.
    #[prost(message, optional, tag = "2")]
    pub pid: Option<Pid>,
    /// Nanoseconds since the epoch at which it started; 0: not yet.
    #[prost(int64, tag = "3")]
    pub started_nanos: i64,
    /// How it ended, if it has.
    #[prost(message, optional, tag = "4")]
    pub exit: Option<Exit>,
    /// Log lines that could not be written (a full disk, a failing one).
    #[prost(uint64, tag = "5")]
    pub log_dropped: u64,
    /// What the OOM killer has done to it.
    #[prost(message, optional, tag = "20")]
    pub oom: Option<OomKills>,
}
