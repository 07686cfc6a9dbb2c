//! Processes that wait until somebody else has put them into their cgroup.

use std::os::fd::{AsFd, BorrowedFd};

use crisp_monitor::wire::{Body, Call, ContainerRef, FailureKind, Pid, PidNamespace, Placed, StartInit};

use crate::harness::{Daemon, Pod, Spec, alive, is, until};

/// Sends a Create that holds; the process that waits.
fn held(daemon: &mut Daemon<'_>, id: &str, spec: &Spec) -> Pid {
    let (call, mut fds) = daemon.create_call(id, spec);
    let Call::Create(mut create) = call else { panic!("{call:?}") };
    create.hold = true;
    // The cgroup comes later.
    fds.remove(1);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    match daemon.call(Call::Create(create), &fds) {
        (Body::Held(pid), _) => pid,
        other => panic!("{other:?}"),
    }
}

fn placed(container: &str) -> Call {
    Call::Placed(Placed { container: container.to_owned() })
}

fn cgroup_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

#[test]
fn a_held_container_does_nothing_until_it_is_in_its_cgroup() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let pid = held(&mut daemon, "c1", &Spec::sh("cat /proc/self/cgroup; exit 5"));
    assert_eq!(cgroup_of(pid.pid), cgroup_of(pod.monitor.id() as i32));
    // It has not even been given its own mounts.
    assert_eq!(
        std::fs::read_link(format!("/proc/{}/root", pid.pid)).unwrap(),
        std::path::Path::new("/"),
        "it has left the host's root"
    );
    let refused = daemon.refused(Call::Start(ContainerRef { container: "c1".to_owned() }), &[]);
    assert!(is(&refused, FailureKind::Precondition), "{refused:?}");
    let cgroup = pod.cgroup.path.join("c1");
    std::fs::write(cgroup.join("cgroup.procs"), pid.pid.to_string()).unwrap();
    let dir = std::fs::File::open(&cgroup).unwrap();
    match daemon.call(placed("c1"), &[dir.as_fd()]) {
        (Body::Created(created), _) => assert_eq!(created, pid),
        other => panic!("{other:?}"),
    }
    let again = daemon.refused(placed("c1"), &[dir.as_fd()]);
    assert!(is(&again, FailureKind::Precondition), "{again:?}");
    daemon.start("c1");
    assert_eq!(daemon.exited("c1").code, 5);
    // The cgroup namespace begins at the cgroup that it was put into.
    let content = String::from_utf8(pod.log("c1").last().unwrap().content.clone()).unwrap();
    assert!(content.ends_with("::/"), "{content}");
}

#[test]
fn a_held_container_is_forgotten_when_it_is_removed_killed_or_left_alone() {
    let mut pod = Pod::start();
    {
        let mut daemon = pod.daemon();
        let removed = held(&mut daemon, "c1", &Spec::sh("exit 0"));
        daemon.remove("c1");
        assert!(!alive(removed.pid));
        let killed = held(&mut daemon, "c2", &Spec::sh("exit 0"));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(killed.pid), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        until("the killed one is reaped", || !alive(killed.pid) && daemon.hello().containers.is_empty());
        let dir = pod.cgroup.open();
        let gone = daemon.refused(placed("c2"), &[dir.as_fd()]);
        assert!(is(&gone, FailureKind::NotFound), "{gone:?}");
        let left = held(&mut daemon, "c3", &Spec::sh("exit 0"));
        // Nobody is told anything of it: only the end of its parent is left.
        pod.monitor.kill().unwrap();
        until("it follows its monitor", || !alive(left.pid));
    }
    pod.monitor.wait().unwrap();
}

#[test]
fn a_held_init_is_no_init_until_it_is_in_its_cgroup() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let hold = Call::StartInit(StartInit { oom_score_adj: 0, hold: true, user_namespace: false });
    let (Body::Held(pid), _) = daemon.call(hold, &[]) else { panic!("not held") };
    assert_eq!(daemon.hello().init, None);
    let early = daemon.refused_create("c0", &Spec::sh("").in_pid(PidNamespace::Pod));
    assert!(is(&early, FailureKind::Precondition), "{early:?}");
    let cgroup = pod.cgroup.child("init");
    std::fs::write(cgroup.path.join("cgroup.procs"), pid.pid.to_string()).unwrap();
    let dir = cgroup.open();
    assert!(matches!(daemon.call(placed(""), &[dir.as_fd()]), (Body::Init(init), _) if init == pid));
    let again = daemon.refused(placed(""), &[dir.as_fd()]);
    assert!(is(&again, FailureKind::Precondition), "{again:?}");
    daemon.run("c1", &Spec::sh("exit 4").in_pid(PidNamespace::Pod));
    assert_eq!(daemon.exited("c1").code, 4);
}
