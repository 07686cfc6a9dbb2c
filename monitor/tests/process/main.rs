//! The monitor from outside: the built binary, driven over its socket on a real kernel. Needs root, a cgroup2
//! mount (no controllers), Debian's busybox-static and a C compiler with a static C library (libc6-dev). Must not
//! know: how the monitor is built inside.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod harness;

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use crisp_monitor::client::ClientError;
use crisp_monitor::record::ExitRecord;
use crisp_monitor::wire::{Body, Call, Create, FailureKind, PidNamespace, Shutdown, Signal};
use harness::{Line, Pod, Spec, is, line, named, parse_log, written};

/// Yields until `holds`; gives up after a number of rounds that no working monitor needs.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000_000 {
        if holds() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("never came true: {what}");
}

fn read_all(mut file: std::fs::File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

fn alive(pid: i32) -> bool {
    crisp_sys::process::stat(pid).is_ok_and(|stat| stat.state != 'Z')
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn output_is_in_the_log_and_the_exit_on_record_when_the_event_comes() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let pid = daemon.create("c1", &Spec::sh("echo out; echo err >&2; printf rest; exit 3"));
    assert!(pod.log_path("c1").exists(), "an empty log exists before the start");
    assert_eq!(crisp_sys::process::stat(pid.pid).unwrap().start_ticks, pid.start_ticks);
    assert_eq!(pod.record("c1"), None);
    let started = daemon.start("c1");
    let exit = daemon.exited("c1");
    assert_eq!((exit.code, exit.oom_killed, exit.started_nanos), (3, false, started));
    assert!(exit.nanos >= started);
    let log = pod.log("c1");
    assert_eq!(written(&log, "stdout"), b"out\nrest");
    assert_eq!(written(&log, "stderr"), b"err\n");
    assert!(log.contains(&line("stdout", "P", "rest")));
    let record = ExitRecord { code: 3, nanos: exit.nanos, started_nanos: started, oom_killed: false };
    assert_eq!(pod.record("c1"), Some(record));
    assert!(!alive(pid.pid));
    daemon.remove("c1");
    assert!(daemon.hello().containers.is_empty());
}

#[test]
fn a_silent_container_has_an_empty_log() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("true"));
    assert_eq!(daemon.exited("c1").code, 0);
    assert_eq!(pod.log("c1"), []);
}

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
fn ten_megabytes_come_through_whole() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("seq 1 1400000; exec seq 1 1000 >&2"));
    assert_eq!(daemon.exited("c1").code, 0);
    let log = pod.log("c1");
    let expected: String = (1..=1_400_000).map(|number| format!("{number}\n")).collect();
    assert!(expected.len() > 10_000_000);
    assert!(written(&log, "stdout") == expected.as_bytes(), "standard output differs");
    let expected: String = (1..=1000).map(|number| format!("{number}\n")).collect();
    assert!(written(&log, "stderr") == expected.as_bytes(), "standard error differs");
}

#[test]
fn floods_of_any_shape_take_no_memory() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    // A megabyte of empty lines, one of NULs without a newline, one of both streams at once.
    for (id, script) in [
        ("c1", "cat /dev/zero | head -c 1000000 | tr '\\0' '\\n'"),
        ("c2", "head -c 1000000 /dev/zero"),
        ("c3", "head -c 500000 /dev/zero >&2 & head -c 500000 /dev/zero; wait"),
    ] {
        daemon.run(id, &Spec::sh(script));
        assert_eq!(daemon.exited(id).code, 0);
    }
    assert_eq!(pod.log("c1").len(), 1_000_000);
    assert_eq!(written(&pod.log("c2"), "stdout"), vec![0; 1_000_000]);
    let log = pod.log("c3");
    assert_eq!((written(&log, "stdout"), written(&log, "stderr")), (vec![0; 500_000], vec![0; 500_000]));
    let text = std::fs::read_to_string(pod.proc("smaps_rollup")).unwrap();
    let dirty = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    let kilobytes: u64 = dirty.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 1024, "{kilobytes} kB of its own");
}

#[test]
fn a_long_line_is_cut_at_the_limit_asked_for() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let mut spec = Spec::sh("printf 'abcdefghij\\nkl\\n'");
    spec.line_bytes = 4;
    daemon.run("c1", &spec);
    daemon.exited("c1");
    let expected: [Line; 4] = [
        line("stdout", "P", "abcd"),
        line("stdout", "P", "efgh"),
        line("stdout", "F", "ij"),
        line("stdout", "F", "kl"),
    ];
    assert_eq!(pod.log("c1"), expected);
}

#[test]
fn a_lost_connection_changes_nothing() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let running = daemon.run("c1", &Spec::sh("exec sleep 1000"));
    let created = daemon.create("c2", &Spec::sh("echo later"));
    let request = daemon.send_create("c3", &Spec::sh("echo orphan"));
    let before = daemon.hello_after_answer(request);
    drop(daemon);
    let mut daemon = pod.daemon();
    let after = daemon.hello();
    assert_eq!(after, before);
    assert_eq!(after.containers.len(), 3);
    assert_eq!(after.containers[0].pid, Some(running));
    assert_eq!(after.containers[1].pid, Some(created));
    assert!(after.containers[0].started_nanos > 0);
    assert_eq!(after.containers[1].started_nanos, 0);
    for id in ["c2", "c3"] {
        daemon.start(id);
        assert_eq!(daemon.exited(id).code, 0);
    }
    assert_eq!(pod.log("c3"), [line("stdout", "F", "orphan")]);
}

#[test]
fn a_create_whose_daemon_dies_at_once_is_known_to_the_next_one() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.send_create("c1", &Spec::sh("exit 5"));
    drop(daemon);
    let mut daemon = pod.daemon();
    until("the container is created", || daemon.hello().containers.len() == 1);
    until("it can be started", || daemon.client.call(Call::Start(named("c1")), &[]).is_ok());
    assert_eq!(daemon.exited("c1").code, 5);
}

#[test]
fn an_exit_that_nobody_was_there_for_is_in_the_record_and_the_next_hello() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("read line; exit 21").with_stdin());
    let pid = daemon.hello().containers[0].pid.unwrap().pid;
    drop(daemon);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("the exit is on record", || pod.record("c1").is_some());
    let record = pod.record("c1").unwrap();
    assert_eq!(record.code, 137);
    let mut daemon = pod.daemon();
    let state = daemon.hello();
    let exit = state.containers[0].exit.clone().unwrap();
    assert_eq!((exit.code, exit.nanos, exit.started_nanos), (137, record.nanos, record.started_nanos));
    assert_eq!(state.containers[0].pid.unwrap().pid, pid, "the pid is told after the end, too");
}

#[test]
fn every_daemon_that_said_hello_gets_the_event() {
    let pod = Pod::start();
    let (mut one, mut two, mut silent) = (pod.daemon(), pod.daemon(), pod.connect());
    one.run("c1", &Spec::sh("exit 4"));
    assert_eq!((one.exited("c1").code, two.exited("c1").code), (4, 4));
    // Without a Hello: the first thing that comes is the answer, not the event of before.
    silent.call(Call::Remove(named("c1")), &[]).unwrap();
    assert_eq!(two.hello().containers.len(), 0);
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
fn reopening_under_load_loses_and_splits_nothing() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("exec seq 1 1500000"));
    let path = pod.log_path("c1");
    let rotated = |number: usize| path.with_extension(format!("log.{number}"));
    let mut count = 0;
    while count < 20 && daemon.hello().containers[0].exit.is_none() {
        std::fs::rename(&path, rotated(count)).unwrap();
        match daemon.client.call(Call::ReopenLog(named("c1")), &[]) {
            Ok(_) => assert!(path.exists(), "the new file exists when the answer comes"),
            // It has ended in between: nothing is made then.
            Err(_) => std::fs::rename(rotated(count), &path).unwrap(),
        }
        count += 1;
    }
    assert!(count > 1, "the container ended before anything was rotated");
    daemon.exited("c1");
    let mut all = Vec::new();
    for file in (0..count).map(rotated).chain([path.clone()]) {
        if let Ok(bytes) = std::fs::read(file) {
            all.extend(parse_log(&bytes));
        }
    }
    let expected: String = (1..=1_500_000).map(|number| format!("{number}\n")).collect();
    assert!(written(&all, "stdout") == expected.as_bytes(), "the rotated logs differ from what was written");
    std::fs::remove_file(&path).unwrap();
    let failure = daemon.refused(Call::ReopenLog(named("c1")), &[]);
    assert!(is(&failure, FailureKind::Precondition), "{failure:?}");
    assert!(!path.exists(), "a log of an ended container is not made again");
}

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
fn an_exit_does_not_wait_for_a_pipe_that_others_hold() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let pid = daemon.run("c1", &Spec::sh("echo own; read line").with_stdin());
    until("the container has written", || pod.log("c1").len() == 1);
    let mut held = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/fd/1", pid.pid)).unwrap();
    daemon.signal("c1", libc::SIGSTOP);
    std::io::Write::write_all(&mut held, b"written by another\nand a rest").unwrap();
    daemon.signal("c1", libc::SIGKILL);
    assert_eq!(daemon.exited("c1").code, 137);
    let expected = [("F", "own"), ("F", "written by another"), ("P", "and a rest")]
        .map(|(tag, text)| line("stdout", tag, text));
    assert_eq!(pod.log("c1"), expected);
    let error = std::io::Write::write_all(&mut held, b"too late").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn only_root_is_served() {
    let pod = Pod::start();
    let socket = pod.dir.path().join("socket");
    let mode = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(&socket, mode).unwrap();
    // Hello, as bytes; prints how many bytes come back.
    let script = r#"
        use Socket;
        socket(my $s, AF_UNIX, SOCK_SEQPACKET, 0) or die "socket: $!";
        connect($s, pack_sockaddr_un($ARGV[0])) or die "connect: $!";
        send($s, "\x08\x01\x12\x02\x08\x01", 0x4000);
        my $got = "";
        recv($s, $got, 1000, 0);
        print length($got) > 0 ? "served" : "refused";
    "#;
    let ask = |uid: u32| {
        let output =
            std::process::Command::new("perl").arg("-e").arg(script).arg(&socket).uid(uid).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!((ask(0).as_str(), ask(65534).as_str()), ("served", "refused"));
}

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
    limit(std::fs::read_dir(pod.proc("fd")).unwrap().count());
    for _ in 0..3 {
        let refused = pod.connect().call(Call::RootFd(named("c1")), &[]).unwrap_err();
        assert!(matches!(refused, ClientError::Closed | ClientError::Io(_)), "{refused:?}");
    }
    // The descriptors of a request are lost, all or some of them, and so is what it asked for: nothing else is.
    let open = std::fs::read_dir(pod.proc("fd")).unwrap().count();
    for (id, free) in [("c0", 0), ("c1", 2)] {
        limit(open + free);
        let failure = daemon.refused_create(id, &Spec::sh(""));
        assert!(is(&failure, FailureKind::Internal), "{failure:?}");
        assert_eq!(failure.text, "descriptors did not arrive: too many open files");
    }
    limit(1024);
    assert_eq!(std::fs::read_dir(pod.proc("fd")).unwrap().count(), open, "what had arrived is closed");
    assert!(daemon.hello().containers.is_empty());
    daemon.run("c2", &Spec::sh("exit 3"));
    assert_eq!(daemon.exited("c2").code, 3);
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
fn bad_requests_are_refused_and_leave_nothing() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.create("c1", &Spec::sh(""));
    let descriptors = std::fs::read_dir(pod.proc("fd")).unwrap().count();
    let mut kinds = Vec::new();
    let mut refuse = |daemon: &mut harness::Daemon<'_>, change: &dyn Fn(&mut Create), fds: usize| {
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

#[test]
fn a_full_disk_costs_log_lines_and_nothing_else() {
    let pod = Pod::start_after("mount -t tmpfs -o size=64k tmpfs \"$DIR/logs\"");
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("seq 1 20000; exit 8"));
    let exit = daemon.exited("c1");
    assert_eq!(exit.code, 8);
    assert_eq!(pod.record("c1").map(|record| record.code), Some(8));
    let log = pod.proc("root").join(pod.log_path("c1").strip_prefix("/").unwrap());
    let lines = parse_log(&std::fs::read(log).unwrap());
    assert!(!lines.is_empty());
    let dropped = daemon.hello().containers[0].log_dropped;
    assert_eq!(lines.len() as u64 + dropped, 20_000);
}
