//! The monitor's own process, and requests that it refuses.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crisp_monitor::client::ClientError;
use crisp_monitor::wire::{Call, Create, FailureKind, PidNamespace};

use crate::harness::{Daemon, Pod, Spec, is, named, read_all, until, written};

#[test]
fn the_limit_of_open_files_is_raised_for_the_monitor_alone() {
    let pod = Pod::start_after("ulimit -S -n 300; ulimit -H -n 700");
    let mut daemon = pod.daemon();
    let limits = std::fs::read_to_string(pod.proc("limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_ascii_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["700", "700"]);
    daemon.run("c1", &Spec::sh("ulimit -S -n; ulimit -H -n; exec sleep 1000"));
    let (_, stdout, _) = daemon.exec("c1", "e1", &["/bin/sh", "-c", "ulimit -S -n; ulimit -H -n"]).unwrap();
    assert_eq!(read_all(stdout), "300\n700\n");
    until("the container has said its limits", || pod.log("c1").len() == 2);
    assert_eq!(written(&pod.log("c1"), "stdout"), b"300\n700\n");
}

#[test]
fn a_monitor_without_descriptors_turns_connections_away_and_recovers() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let limit = |number: usize| {
        let pid = pod.monitor.id().to_string();
        let status = std::process::Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={number}:4096")])
            .status()
            .unwrap();
        assert!(status.success());
    };
    let count = || std::fs::read_dir(pod.proc("fd")).unwrap().count();
    let open = count();
    limit(open);
    for _ in 0..3 {
        let refused = pod.connect().call(Call::RootFd(named("c1")), &[]).unwrap_err();
        assert!(matches!(refused, ClientError::Closed | ClientError::Io(_)), "{refused:?}");
    }
    // The client sees the end of its connection before the monitor has opened its spare again.
    until("the spare descriptor is back", || count() == open);
    // The descriptors of a request are lost, all or some of them, and so is what it asked for: nothing else is.
    for (id, free) in [("c0", 0), ("c1", 2)] {
        limit(open + free);
        let failure = daemon.refused_create(id, &Spec::sh(""));
        assert!(is(&failure, FailureKind::Internal), "{failure:?}");
        assert_eq!(failure.text, "descriptors did not arrive: too many open files");
    }
    limit(1024);
    assert_eq!(count(), open, "what had arrived is closed");
    assert!(daemon.hello().containers.is_empty());
    daemon.run("c2", &Spec::sh("exit 3"));
    assert_eq!(daemon.exited("c2").code, 3);
}

#[test]
fn bad_requests_are_refused_and_leave_nothing() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.create("c1", &Spec::sh(""));
    let descriptors = std::fs::read_dir(pod.proc("fd")).unwrap().count();
    let mut kinds = Vec::new();
    let mut refuse = |daemon: &mut Daemon<'_>, change: &dyn Fn(&mut Create), fds: usize| {
        let record = pod.dir.path().join("records/x");
        let (call, all) = daemon.create_call("x", &Spec::sh(""));
        let Call::Create(mut create) = call else { panic!() };
        change(&mut create);
        let all: Vec<BorrowedFd<'_>> = all.iter().map(AsFd::as_fd).take(fds).collect();
        let failure = daemon.refused(Call::Create(create), &all);
        kinds.push((FailureKind::try_from(failure.kind).unwrap(), failure.text));
        std::fs::remove_file(record).unwrap();
        std::fs::remove_dir(pod.cgroup.path.join("x")).unwrap();
    };
    refuse(&mut daemon, &|create| create.container = "c1".into(), 4);
    refuse(&mut daemon, &|create| create.container = "../x".into(), 4);
    refuse(&mut daemon, &|create| create.container = String::new(), 4);
    refuse(&mut daemon, &|create| create.pid = 9, 4);
    refuse(&mut daemon, &|create| create.log_line_bytes = u32::MAX, 4);
    refuse(&mut daemon, &|create| create.log_path = "../../escape.log".into(), 4);
    refuse(&mut daemon, &|create| create.log_dir = "/no/such".into(), 4);
    refuse(&mut daemon, &|_| (), 3);
    refuse(&mut daemon, &|_| (), 0);
    use FailureKind::{Exists, Invalid, Precondition};
    let expected = [Exists, Invalid, Invalid, Invalid, Invalid, Precondition, Precondition, Invalid, Invalid];
    assert_eq!(kinds.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), expected, "{kinds:?}");
    assert!(kinds[6].1.contains("/no/such"), "{kinds:?}");
    assert_eq!(daemon.hello().containers.len(), 1);
    assert_eq!(std::fs::read_dir(pod.proc("fd")).unwrap().count(), descriptors);
}

#[test]
fn the_process_is_settled() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    assert_eq!(std::fs::read_link(pod.proc("cwd")).unwrap(), Path::new("/"));
    for fd in 0..3 {
        assert_eq!(std::fs::read_link(pod.proc(&format!("fd/{fd}"))).unwrap(), Path::new("/dev/null"));
    }
    // Standard three, the socket, a spare, the loop, SIGCHLD, this connection.
    assert_eq!(std::fs::read_dir(pod.proc("fd")).unwrap().count(), 8);
    let pid = nix::unistd::Pid::from_raw(pod.monitor.id() as i32);
    assert_eq!(nix::unistd::getsid(Some(pid)), Ok(pid));
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE, libc::SIGQUIT] {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::try_from(signal).unwrap()).unwrap();
    }
    daemon.run("c1", &Spec::sh("kill -TERM $$; exit 1").in_pid(PidNamespace::Host));
    assert_eq!(daemon.exited("c1").code, 143, "a container does not inherit the blocked signals");
}
