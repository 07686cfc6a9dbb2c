//! The daemon's end: connections that come and go, and what a later daemon is told.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use crisp_monitor::wire::Call;

use crate::harness::{Pod, Spec, line, named, until};

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
