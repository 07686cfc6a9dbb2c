//! PID namespaces that a container does not have for itself.

use std::collections::BTreeSet;
use std::path::Path;

use crisp_monitor::client::ClientError;
use crisp_monitor::wire::{Body, Call, FailureKind, PidNamespace};

use crate::harness::{Pod, Spec, alive, children, is, line, named, read_all, until, written};

#[test]
fn the_init_of_a_shared_pid_namespace_reaps_orphans() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let init = daemon.start_init();
    assert_eq!(daemon.hello().init, Some(init));
    let spec = Spec::sh("sh -c 'sleep 1000 & :'; echo ready; exec sleep 1000").in_pid(PidNamespace::Pod);
    let pid = daemon.run("c1", &spec);
    until("the orphan is adopted", || pod.log("c1").len() == 1 && children(init.pid).len() == 1);
    let orphan = children(init.pid)[0];
    assert_ne!(orphan, pid.pid);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(orphan), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("the orphan is reaped", || !Path::new(&format!("/proc/{orphan}")).exists());
    // A second container sees the first one, and leaves with an orphan that holds its output.
    let spec = Spec::sh("ls /proc | grep -c '^[0-9]'; sleep 1000 & exit 6").in_pid(PidNamespace::Pod);
    daemon.run("c2", &spec);
    assert_eq!(daemon.exited("c2").code, 6);
    let seen: usize = String::from_utf8(pod.log("c2")[0].content.clone()).unwrap().parse().unwrap();
    assert!(seen >= 3, "init, the first container and the second: {seen}");
    until("what the container left is reaped", || children(init.pid).is_empty());
    assert!(alive(pid.pid), "the first container runs on");
    let failure = daemon.refused_init();
    assert!(is(&failure, FailureKind::Exists), "{failure:?}");
}

#[test]
fn the_pod_dies_with_its_init_after_all_exits_are_reported() {
    let mut pod = Pod::start();
    {
        let mut daemon = pod.daemon();
        let failure = daemon.refused_create("c0", &Spec::sh("").in_pid(PidNamespace::Pod));
        assert!(is(&failure, FailureKind::Precondition), "{failure:?}");
        let init = daemon.start_init();
        let spec = Spec::sh("exec sleep 1000");
        daemon.run("own", &spec);
        let spec = spec.in_pid(PidNamespace::Pod);
        daemon.run("c1", &spec);
        daemon.create("c2", &spec);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(init.pid), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        let exits = BTreeSet::from([(); 3].map(|()| match daemon.client.event().unwrap() {
            Body::Exited(exit) => (exit.container, exit.code, exit.started_nanos > 0),
            other => panic!("{other:?}"),
        }));
        let expected = [("own".into(), 137, true), ("c1".into(), 137, true), ("c2".into(), 137, false)];
        assert_eq!(exits, BTreeSet::from(expected));
        assert!(matches!(daemon.client.event(), Err(ClientError::Closed)));
    }
    assert!(pod.monitor.wait().unwrap().success());
    for id in ["own", "c1", "c2"] {
        assert_eq!(pod.record(id).map(|record| record.code), Some(137), "{id}");
    }
}

#[test]
fn a_host_pid_container_takes_along_what_it_started() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let script = "sleep 1000 & echo $$ $!; read line; exit 2";
    let pid = daemon.run("c1", &Spec::sh(script).in_pid(PidNamespace::Host).with_stdin());
    until("the container has said its pids", || pod.log("c1").len() == 1);
    let (exec, ..) = daemon.exec("c1", "e1", &["/bin/sleep", "1000"]).unwrap();
    daemon.signal("c1", libc::SIGKILL);
    let (mut code, mut exec_code) = (None, None);
    while code.is_none() || exec_code.is_none() {
        match daemon.client.event().unwrap() {
            Body::Exited(exit) => code = Some(exit.code),
            Body::ExecExited(exit) => exec_code = Some(exit.code),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((code, exec_code), (Some(137), Some(137)));
    assert!(!alive(exec.pid), "what was executed in the container still runs");
    let text = String::from_utf8(pod.log("c1")[0].content.clone()).unwrap();
    let pids: Vec<i32> = text.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids[0], pid.pid);
    assert!(!alive(pids[1]), "what the container left behind still runs");
}

#[test]
fn a_container_can_live_in_the_pid_namespace_of_another() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("app", &Spec::sh("sleep 1001 & exec sleep 1000"));
    // Twice, and once through another one: what is borrowed is not used up.
    for (id, target) in [("debug", "app"), ("second", "app"), ("third", "debug")] {
        let script = "cat /proc/1/cmdline | tr '\\0' ' '; echo; echo $$ $(readlink /proc/self) > /tmp/pids
            read own self < /tmp/pids; test $own -ge $self || test $own != 1 && echo joined; ls -d /proc/[0-9]* | grep -c .
            exec sleep 1000";
        daemon.run(id, &Spec::sh(script).in_pid_of(target));
        until("the container has looked around", || pod.log(id).len() == 3);
        let said = String::from_utf8(written(&pod.log(id), "stdout")).unwrap();
        assert!(said.starts_with("sleep 1000 \njoined\n"), "{said}");
        let (_, stdout, _) =
            daemon.exec(id, &format!("exec-{id}"), &["/bin/cat", "/proc/1/cmdline"]).unwrap();
        assert_eq!(read_all(stdout), "sleep\u{0}1000\u{0}");
    }
    daemon.signal("second", libc::SIGKILL);
    assert_eq!(daemon.exited("second").code, 137);
    // With the namespace's first process everybody in it dies.
    daemon.signal("app", libc::SIGKILL);
    let exits = BTreeSet::from([(); 3].map(|()| {
        loop {
            if let Body::Exited(exit) = daemon.client.event().unwrap() {
                break (exit.container, exit.code);
            }
        }
    }));
    assert_eq!(exits, BTreeSet::from(["app", "debug", "third"].map(|id| (id.to_owned(), 137))));
}

#[test]
fn r29_a_target_that_does_not_run_is_not_joined() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.start_init();
    daemon.create("created", &Spec::sh("exec sleep 1000"));
    daemon.run("ended", &Spec::sh("true"));
    daemon.exited("ended");
    for target in ["created", "ended", "unknown", ""] {
        let failure = daemon.refused_create("debug", &Spec::sh("true").in_pid_of(target));
        assert!(is(&failure, FailureKind::NotFound) && failure.text.contains(target), "{failure:?}");
        forget(&pod, "debug");
    }
    // One that ends between Create and Start: with a namespace of its own, and in the pod's.
    for (number, spec) in [Spec::sh("exec sleep 1000"), Spec::sh("exec sleep 1000").in_pid(PidNamespace::Pod)]
        .into_iter()
        .enumerate()
    {
        let (app, debug) = (format!("app{number}"), format!("debug{number}"));
        daemon.run(&app, &spec);
        daemon.create(&debug, &Spec::sh("echo never").in_pid_of(&app));
        daemon.signal(&app, libc::SIGKILL);
        daemon.exited(&app);
        // In a namespace of the target's own it may have died with it before it is asked to start.
        let failure = daemon.refused(Call::Start(named(&debug)), &[]);
        assert!(is(&failure, FailureKind::NotFound) || number == 0, "{failure:?}");
        until("it has ended, too", || pod.record(&debug).is_some_and(|record| record.code == 137));
        assert_eq!(pod.log(&debug), []);
    }
    // A target in the host's PID namespace is in no other one.
    daemon.run("host", &Spec::sh("exec sleep 1000").in_pid(PidNamespace::Host));
    let pid = daemon.run("debug-host", &Spec::sh("echo $$; exec sleep 1000").in_pid_of("host"));
    until("the container has said its pid", || pod.log("debug-host").len() == 1);
    assert_eq!(pod.log("debug-host"), [line("stdout", "F", &pid.pid.to_string())]);
}

/// Takes away what a refused Create was given.
fn forget(pod: &Pod, id: &str) {
    std::fs::remove_file(pod.dir.path().join("records").join(id)).unwrap();
    std::fs::remove_dir(pod.cgroup.path.join(id)).unwrap();
}
