//! Further processes in a container.

use crisp_monitor::wire::{FailureKind, PidNamespace};

use crate::harness::{Pod, Spec, alive, children, is, read_all, until};

#[test]
fn exec_runs_in_the_container_and_reports_its_end() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let pid = daemon.run("c1", &Spec::sh("echo in-container > /tmp/mark; echo ready; exec sleep 1000"));
    until("the container is ready", || !pod.log("c1").is_empty());
    let script = ["/bin/sh", "-c", "cat /tmp/mark; echo oops >&2; exit 9"];
    let (exec, stdout, stderr) = daemon.exec("c1", "e1", &script).unwrap();
    assert_ne!(exec.pid, pid.pid);
    assert_eq!(read_all(stdout), "in-container\n");
    assert_eq!(read_all(stderr), "oops\n");
    assert_eq!(daemon.exec_exited("e1"), 9);
    let failure = daemon.exec("c1", "e2", &["/no/such"]).unwrap_err();
    assert!(is(&failure, FailureKind::Program) && failure.text.contains("/no/such"), "{failure:?}");
    // It runs on and dies with the container.
    let (exec, ..) = daemon.exec("c1", "e3", &["/bin/sleep", "1000"]).unwrap();
    assert!(alive(exec.pid));
    daemon.signal("c1", libc::SIGKILL);
    assert_eq!(daemon.exec_exited("e3"), 137);
    assert_eq!(daemon.exited("c1").code, 137);
    let failure = daemon.exec("c1", "e4", &["/bin/true"]).unwrap_err();
    assert!(is(&failure, FailureKind::Precondition), "{failure:?}");
}

#[test]
fn children_that_an_exec_makes_for_the_monitor_do_not_keep_a_container_from_ending() {
    let pod = Pod::start();
    let program = r"
        #define _GNU_SOURCE
        #include <sched.h>
        #include <signal.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        static long child(void) { return syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0); }
        int main(void) {
            long ends = child();
            if (ends == 0) _exit(5);
            long stays = child();
            if (stays == 0) for (;;) pause();
            return ends < 0 || stays < 0;
        }
    ";
    let source = pod.dir.path().join("stray.c");
    std::fs::write(&source, program).unwrap();
    let compiled = std::process::Command::new("cc")
        .args(["-static", "-o"])
        .arg(pod.dir.path().join("root/bin/stray"))
        .arg(&source)
        .status()
        .unwrap();
    assert!(compiled.success(), "this test needs a C compiler and a static C library");
    let mut daemon = pod.daemon();
    let pid = daemon.run("c1", &Spec::sh("exec sleep 1000"));
    daemon.exec("c1", "e1", &["/bin/stray"]).unwrap();
    assert_eq!(daemon.exec_exited("e1"), 0);
    let monitor = pod.monitor.id() as i32;
    until("the one that ended is reaped", || children(monitor).len() == 2);
    assert!(children(monitor).contains(&pid.pid));
    daemon.signal("c1", libc::SIGKILL);
    assert_eq!(daemon.exited("c1").code, 137);
    assert_eq!(children(monitor), Vec::<i32>::new());
    daemon.remove("c1");
    daemon.shutdown(false);
}

#[test]
fn no_exec_is_lost_between_the_forerunner_and_its_successor() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.start_init();
    daemon.run("own", &Spec::sh("exec sleep 1000"));
    daemon.run("pod", &Spec::sh("exec sleep 1000").in_pid(PidNamespace::Pod));
    for round in 0..300 {
        for id in ["own", "pod"] {
            let name = format!("e{round}");
            let (_, stdout, _) = daemon.exec(id, &name, &["/bin/echo", "here"]).unwrap();
            assert_eq!(read_all(stdout), "here\n", "round {round}");
            assert_eq!(daemon.exec_exited(&name), 0, "round {round}");
            std::fs::remove_dir(pod.cgroup.path.join(id).join(&name)).unwrap();
        }
    }
    let monitor = pod.monitor.id() as i32;
    until("every forerunner is reaped", || children(monitor).len() == 3);
}
