//! Starting, signalling and ending a container.

use std::collections::BTreeSet;

use crisp_monitor::wire::{Body, Call, FailureKind, PidNamespace, Shutdown, Signal};

use crate::harness::{Pod, Spec, alive, children, is, line, named, read_all, until};

#[test]
fn a_signal_ends_a_container_with_128_and_its_number() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("trap 'exit 7' TERM; echo ready; while :; do sleep 1; done"));
    until("the trap is set", || !pod.log("c1").is_empty());
    daemon.signal("c1", libc::SIGTERM);
    assert_eq!(daemon.exited("c1").code, 7);
    daemon.run("c2", &Spec::sh("sleep 1000"));
    daemon.signal("c2", libc::SIGKILL);
    assert_eq!(daemon.exited("c2").code, 137);
    daemon.signal("c2", libc::SIGKILL);
    let nothing = Call::Signal(Signal { container: "c3".into(), signal: 9 });
    assert!(is(&daemon.refused(nothing, &[]), FailureKind::NotFound));
    for signal in [0, 65, -1] {
        let call = Call::Signal(Signal { container: "c2".into(), signal });
        assert!(is(&daemon.refused(call, &[]), FailureKind::Invalid));
    }
}

#[test]
fn a_program_that_is_not_there_is_a_start_error_with_code_128() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    for (id, program) in [("c1", "/no/such"), ("c2", "no-such"), ("c3", "/tmp")] {
        let mut spec = Spec::sh("");
        spec.args = vec![program.to_owned()];
        let pid = daemon.create(id, &spec);
        let failure = daemon.refused(Call::Start(named(id)), &[]);
        assert!(is(&failure, FailureKind::Program), "{failure:?}");
        assert!(failure.text.contains(program), "{failure:?}");
        let exit = daemon.exited(id);
        assert_eq!((exit.code, exit.started_nanos), (128, 0));
        assert_eq!(pod.record(id).map(|record| record.code), Some(128));
        assert!(!alive(pid.pid));
        assert!(is(&daemon.refused(Call::Start(named(id)), &[]), FailureKind::Precondition));
        daemon.remove(id);
    }
}

#[test]
fn standard_input_is_empty_unless_asked_for() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("cat; echo end"));
    assert_eq!(daemon.exited("c1").code, 0);
    assert_eq!(pod.log("c1"), [line("stdout", "F", "end")]);
    let pid = daemon.run("c2", &Spec::sh("echo ready; cat; echo end").with_stdin());
    until("the container waits for input", || {
        pod.log("c2").len() == 1 && crisp_sys::process::stat(pid.pid).is_ok_and(|stat| stat.state == 'S')
    });
    assert!(daemon.hello().containers[1].exit.is_none());
    daemon.signal("c2", libc::SIGKILL);
    daemon.exited("c2");
    assert_eq!(pod.log("c2"), [line("stdout", "F", "ready")]);
}

#[test]
fn removing_kills_only_what_never_started() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let pid = daemon.create("c1", &Spec::sh("echo never"));
    daemon.remove("c1");
    assert!(!alive(pid.pid));
    assert_eq!(pod.log("c1"), []);
    assert!(is(&daemon.refused(Call::Remove(named("c1")), &[]), FailureKind::NotFound));
    let pid = daemon.run("c2", &Spec::sh("exec sleep 1000"));
    assert!(is(&daemon.refused(Call::Remove(named("c2")), &[]), FailureKind::Precondition));
    assert!(alive(pid.pid));
}

#[test]
fn the_root_mount_is_handed_out_until_the_container_is_removed() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("echo written > /tmp/file"));
    daemon.exited("c1");
    let (_, fds) = daemon.call(Call::RootFd(named("c1")), &[]);
    assert_eq!(fds.len(), 1);
    let path = format!("/proc/self/fd/{}/tmp/file", std::os::fd::AsRawFd::as_raw_fd(&fds[0]));
    assert_eq!(std::fs::read_to_string(path).unwrap(), "written\n");
    daemon.remove("c1");
    assert!(is(&daemon.refused(Call::RootFd(named("c1")), &[]), FailureKind::NotFound));
}

#[test]
fn shutdown_is_refused_while_something_runs_unless_it_may_kill() {
    let mut pod = Pod::start();
    let pids = {
        let mut daemon = pod.daemon();
        let init = daemon.start_init();
        let one = daemon.run("c1", &Spec::sh("exec sleep 1000"));
        let two = daemon.run("c2", &Spec::sh("exec sleep 1000").in_pid(PidNamespace::Pod));
        let failure = daemon.refused(Call::Shutdown(Shutdown { kill: false }), &[]);
        assert!(is(&failure, FailureKind::Precondition), "{failure:?}");
        daemon.shutdown(true);
        // Both were announced before the answer.
        let exits = BTreeSet::from([(); 2].map(|()| match daemon.client.event().unwrap() {
            Body::Exited(exit) => (exit.container, exit.code),
            other => panic!("{other:?}"),
        }));
        assert_eq!(exits, BTreeSet::from([("c1".into(), 137), ("c2".into(), 137)]));
        [init.pid, one.pid, two.pid]
    };
    assert!(pod.monitor.wait().unwrap().success());
    assert!(pids.into_iter().all(|pid| !alive(pid)));
    assert_eq!(pod.record("c1").map(|record| record.code), Some(137));
}

#[test]
fn shutdown_of_an_ended_pod_ends_its_init() {
    let mut pod = Pod::start();
    let init = {
        let mut daemon = pod.daemon();
        let init = daemon.start_init();
        daemon.run("c1", &Spec::sh("true"));
        daemon.exited("c1");
        daemon.shutdown(false);
        init
    };
    assert!(pod.monitor.wait().unwrap().success());
    assert!(!alive(init.pid));
}

#[test]
fn nothing_is_kept_of_containers_that_are_gone() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let descriptors = std::fs::read_dir(pod.proc("fd")).unwrap().count();
    for number in 0..20 {
        let id = format!("c{number}");
        daemon.run(&id, &Spec::sh("echo hello; exec sleep 1000").with_stdin());
        let (_, stdout, _) = daemon.exec(&id, "e", &["/bin/echo", "from exec"]).unwrap();
        assert_eq!(read_all(stdout), "from exec\n");
        assert_eq!(daemon.exec_exited("e"), 0);
        daemon.signal(&id, libc::SIGKILL);
        daemon.exited(&id);
        daemon.remove(&id);
    }
    assert_eq!(std::fs::read_dir(pod.proc("fd")).unwrap().count(), descriptors);
    assert_eq!(children(pod.monitor.id() as i32), Vec::<i32>::new());
}
