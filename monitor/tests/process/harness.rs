//! One monitor under test: started as the daemon starts it, in private namespaces, with a busybox root and
//! cgroups of its own; everything is taken away again when it is dropped.

mod cgroup;
mod log;
mod plan;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crisp_monitor::client::{Client, ClientError};
use crisp_monitor::record;
use crisp_monitor::wire::{
    Attach, AttachEnd, Body, Call, ContainerRef, Create, Exec, Exit, Failure, FailureKind, Hello, Pid,
    PodState, Shutdown, Signal, StartInit,
};
use crisp_runtime::plan::{Plan, Process};
use prost::Message as _;

pub(crate) use cgroup::Cgroup;
pub(crate) use log::{Line, line, parse_log, written};
pub(crate) use plan::Spec;
use plan::{container_plan, process};

/// Longest wait for something that has to happen; reached only when it does not.
const PATIENCE: nix::sys::time::TimeVal = nix::sys::time::TimeVal::new(60, 0);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The built binary; `CRISP_MONITOR` names another one (the static build) to put to the same tests.
fn monitor_binary() -> std::ffi::OsString {
    std::env::var_os("CRISP_MONITOR").unwrap_or_else(|| env!("CARGO_BIN_EXE_crisp-monitor").into())
}

/// See the module.
pub(crate) struct Pod {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cgroup: Cgroup,
    pub(crate) monitor: Child,
}

impl Pod {
    pub(crate) fn start() -> Self {
        Self::start_after("")
    }

    /// Starts a monitor; `preparation` is shell text run in its namespaces before, with `$DIR` set.
    pub(crate) fn start_after(preparation: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let dir = tempfile::Builder::new().prefix("crisp-test-monitor-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["root/bin", "root/proc", "root/dev", "root/tmp", "staging", "logs", "records"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", dir.path().join("root/bin/busybox"))
            .expect("these tests need Debian's busybox-static");
        for applet in [
            "sh", "sleep", "cat", "echo", "seq", "kill", "true", "ls", "grep", "head", "tr", "tty", "stty",
            "cut", "stat",
        ] {
            symlink("busybox", dir.path().join("root/bin").join(applet)).unwrap();
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("crisp-test-{}-{number}", std::process::id());
        let cgroup = Cgroup::new(Cgroup::top().join(&name));
        let listener = crisp_sys::socket::listen(&dir.path().join("socket"), 0o600, 16).unwrap();
        let monitor = Command::new("unshare")
            .args(["-m", "-n", "-i", "-u", "--propagation", "private", "/bin/sh", "-ec"])
            .arg(format!("{preparation}\nexec \"$0\" pod-{name}"))
            .arg(monitor_binary())
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DIR", dir.path())
            .current_dir(dir.path())
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Pod { dir, cgroup, monitor }
    }

    pub(crate) fn connect(&self) -> Client {
        let client = Client::connect(&self.dir.path().join("socket")).unwrap();
        nix::sys::socket::setsockopt(&client.as_fd(), nix::sys::socket::sockopt::ReceiveTimeout, &PATIENCE)
            .unwrap();
        client
    }

    /// A connection that has said Hello.
    pub(crate) fn daemon(&self) -> Daemon<'_> {
        let mut daemon = Daemon { pod: self, client: self.connect() };
        assert_eq!(daemon.hello().version, crisp_monitor::wire::VERSION);
        daemon
    }

    pub(crate) fn log_path(&self, id: &str) -> PathBuf {
        self.dir.path().join("logs").join(id).join("0.log")
    }

    pub(crate) fn log(&self, id: &str) -> Vec<Line> {
        parse_log(&std::fs::read(self.log_path(id)).unwrap())
    }

    pub(crate) fn record(&self, id: &str) -> Option<record::ExitRecord> {
        record::read(&self.dir.path().join("records").join(id)).unwrap()
    }

    pub(crate) fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.monitor.id()))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
        // The containers and their cgroups go with the field `cgroup`.
    }
}

/// Yields until `holds`; gives up after a number of rounds that no working monitor needs.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000_000 {
        if holds() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("never came true: {what}");
}

/// Everything up to the end.
pub(crate) fn read_all(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Whether the process exists and has not ended.
pub(crate) fn alive(pid: i32) -> bool {
    crisp_sys::process::stat(pid).is_ok_and(|stat| stat.state != 'Z')
}

/// Pids of the direct children.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// A daemon's connection to the pod's monitor.
pub(crate) struct Daemon<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) client: Client,
}

impl Daemon<'_> {
    pub(crate) fn hello(&mut self) -> PodState {
        match self.call(Call::Hello(Hello { version: crisp_monitor::wire::VERSION }), &[]) {
            (Body::Pod(state), _) => state,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn call(&mut self, call: Call, fds: &[BorrowedFd<'_>]) -> (Body, Vec<OwnedFd>) {
        self.client.call(call, fds).unwrap()
    }

    pub(crate) fn refused(&mut self, call: Call, fds: &[BorrowedFd<'_>]) -> Failure {
        match self.client.call(call, fds) {
            Err(ClientError::Refused(failure)) => failure,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(crate) fn expect_done(&mut self, call: Call) {
        assert!(matches!(self.call(call, &[]), (Body::Done(_), _)));
    }

    /// Sends a Create; the answer is still to come.
    pub(crate) fn send_create(&mut self, id: &str, spec: &Spec) -> u64 {
        let (call, fds) = self.create_call(id, spec);
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.client.send(call, &fds).unwrap()
    }

    pub(crate) fn create_call(&mut self, id: &str, spec: &Spec) -> (Call, Vec<OwnedFd>) {
        let dir = self.pod.dir.path();
        let plan = container_plan(&dir.join("staging"), spec);
        let plan = crisp_sys::fd::memfd_create_sealed("plan", &plan.encode_to_vec()).unwrap();
        let cgroup = std::mem::ManuallyDrop::new(self.pod.cgroup.child(id)).open();
        let record = record::create(&dir.join("records").join(id)).unwrap();
        let call = Call::Create(Create {
            container: id.to_owned(),
            pid: spec.pid as i32,
            log_dir: dir.join("logs").to_str().unwrap().to_owned(),
            log_path: format!("{id}/0.log"),
            log_line_bytes: spec.line_bytes,
            stdin: spec.stdin,
            hold: false,
            stdin_once: spec.stdin_once,
            target: spec.target.clone(),
        });
        (call, vec![plan, cgroup, record.into(), open_root(&dir.join("root"))])
    }

    pub(crate) fn create(&mut self, id: &str, spec: &Spec) -> Pid {
        let request = self.send_create(id, spec);
        match self.client.answer(request).unwrap() {
            (Body::Created(pid), _) => pid,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start(&mut self, id: &str) -> i64 {
        match self.call(Call::Start(named(id)), &[]) {
            (Body::Started(at), _) => at.nanos,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until `id`, whose Create was sent and is not answered yet, is there; then says Hello.
    pub(crate) fn hello_after_answer(&mut self, request: u64) -> PodState {
        assert!(matches!(self.client.answer(request), Ok((Body::Created(_), _))));
        self.hello()
    }

    pub(crate) fn refused_create(&mut self, id: &str, spec: &Spec) -> Failure {
        let request = self.send_create(id, spec);
        match self.client.answer(request) {
            Err(ClientError::Refused(failure)) => failure,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(crate) fn refused_init(&mut self) -> Failure {
        let cgroup = self.pod.cgroup.open();
        self.refused(Call::StartInit(StartInit::default()), &[cgroup.as_fd()])
    }

    /// Creates and starts.
    pub(crate) fn run(&mut self, id: &str, spec: &Spec) -> Pid {
        let pid = self.create(id, spec);
        self.start(id);
        pid
    }

    /// Waits for the end of a container.
    pub(crate) fn exited(&mut self, id: &str) -> Exit {
        loop {
            match self.client.event().unwrap() {
                Body::Exited(exit) if exit.container == id => return exit,
                _ => {}
            }
        }
    }

    pub(crate) fn signal(&mut self, id: &str, signal: i32) {
        self.expect_done(Call::Signal(Signal { container: id.to_owned(), signal }));
    }

    pub(crate) fn remove(&mut self, id: &str) {
        self.expect_done(Call::Remove(named(id)));
    }

    pub(crate) fn start_init(&mut self) -> Pid {
        let cgroup = std::mem::ManuallyDrop::new(self.pod.cgroup.child("init")).open();
        match self.call(Call::StartInit(StartInit::default()), &[cgroup.as_fd()]) {
            (Body::Init(pid), _) => pid,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a program in a container with pipes; the ends to read from: output, errors.
    pub(crate) fn exec(
        &mut self,
        id: &str,
        name: &str,
        args: &[&str],
    ) -> Result<(Pid, File, File), Box<Failure>> {
        let cgroup_path = self.pod.cgroup.path.join(id).join(name);
        std::fs::create_dir(&cgroup_path).unwrap();
        let cgroup: OwnedFd = File::open(cgroup_path).unwrap().into();
        let args = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        let plan = Plan {
            ops: Vec::new(),
            process: Some(process(args)),
            fds: 0,
            cgroup_namespace: false,
            user: None,
        };
        let plan = crisp_sys::fd::memfd_create_sealed("plan", &plan.encode_to_vec()).unwrap();
        let null = File::open("/dev/null").unwrap();
        let (stdout, stdout_end) = crisp_sys::fd::pipe2(false).unwrap();
        let (stderr, stderr_end) = crisp_sys::fd::pipe2(false).unwrap();
        let call = Call::Exec(Exec { container: id.to_owned(), exec: name.to_owned() });
        let fds = [plan.as_fd(), cgroup.as_fd(), null.as_fd(), stdout_end.as_fd(), stderr_end.as_fd()];
        match self.client.call(call, &fds) {
            Ok((Body::ExecStarted(pid), _)) => Ok((pid, stdout.into(), stderr.into())),
            Err(ClientError::Refused(failure)) => Err(Box::new(failure)),
            other => panic!("{other:?}"),
        }
    }

    /// Runs a program with a terminal of its own in a container; the terminal's other end.
    pub(crate) fn exec_on_terminal(&mut self, id: &str, name: &str, args: &[&str]) -> (Pid, File) {
        let cgroup_path = self.pod.cgroup.path.join(id).join(name);
        std::fs::create_dir(&cgroup_path).unwrap();
        let cgroup: OwnedFd = File::open(cgroup_path).unwrap().into();
        let args = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        let process = Process { terminal: true, ..process(args) };
        let plan =
            Plan { ops: Vec::new(), process: Some(process), fds: 0, cgroup_namespace: false, user: None };
        let plan = crisp_sys::fd::memfd_create_sealed("plan", &plan.encode_to_vec()).unwrap();
        let call = Call::Exec(Exec { container: id.to_owned(), exec: name.to_owned() });
        match self.call(call, &[plan.as_fd(), cgroup.as_fd()]) {
            (Body::ExecStarted(pid), mut fds) if fds.len() == 1 => (pid, fds.remove(0).into()),
            other => panic!("{other:?}"),
        }
    }

    /// Attaches a client: input to write to, output and errors to read from.
    pub(crate) fn attach(&mut self, id: &str, name: &str, streams: Streams) -> Attached {
        let pipe = || crisp_sys::fd::pipe2(false).unwrap();
        let stdin = streams.stdin.then(pipe);
        let outputs = [streams.stdout.then(pipe), streams.stderr.then(pipe)];
        let call = attach_call(id, name, streams);
        let theirs = stdin.iter().map(|(reader, _)| reader.as_fd());
        let theirs = theirs.chain(outputs.iter().flatten().map(|(_, writer)| writer.as_fd()));
        let (body, _) = self.call(call, &theirs.collect::<Vec<_>>());
        assert!(matches!(body, Body::Done(_)), "{body:?}");
        let [stdout, stderr] = outputs.map(|pipe| pipe.map(|(reader, _)| reader.into()));
        Attached { stdin: stdin.map(|(_, writer)| writer.into()), stdout, stderr }
    }

    /// Waits for the end of an attached client.
    pub(crate) fn attach_ended(&mut self, name: &str) -> AttachEnd {
        loop {
            match self.client.event().unwrap() {
                Body::AttachEnded(ended) if ended.attach == name => return ended.end(),
                _ => {}
            }
        }
    }

    pub(crate) fn exec_exited(&mut self, name: &str) -> i32 {
        loop {
            match self.client.event().unwrap() {
                Body::ExecExited(exit) if exit.exec == name => return exit.code,
                _ => {}
            }
        }
    }

    pub(crate) fn shutdown(&mut self, kill: bool) {
        self.expect_done(Call::Shutdown(Shutdown { kill }));
    }
}

/// Which of a container's streams a client wants.
#[derive(Clone, Copy)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// A client's ends.
pub(crate) struct Attached {
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
}

pub(crate) fn attach_call(id: &str, name: &str, streams: Streams) -> Call {
    let Streams { stdin, stdout, stderr } = streams;
    Call::Attach(Attach { container: id.to_owned(), attach: name.to_owned(), stdin, stdout, stderr })
}

pub(crate) fn named(id: &str) -> ContainerRef {
    ContainerRef { container: id.to_owned() }
}

pub(crate) fn is(failure: &Failure, kind: FailureKind) -> bool {
    failure.kind == kind as i32
}

fn open_root(path: &Path) -> OwnedFd {
    crisp_sys::mount::open_tree_clone(None, path, true).unwrap()
}
