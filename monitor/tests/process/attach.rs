//! Attached clients.

use std::io::{Read, Write};

use crisp_monitor::wire::{AttachEnd, FailureKind};

use crate::harness::{Pod, Spec, Streams, attach_call, is, line, named, read_all, until, written};
use crisp_monitor::wire::Call;

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true };
const OUTPUTS: Streams = Streams { stdin: false, ..ALL };

#[test]
fn every_client_gets_a_copy_of_what_is_written_from_then_on() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run(
        "c1",
        &Spec::sh("echo before; read line; echo \"out $line\"; echo err >&2; exit 5").with_stdin(),
    );
    until("the container has written", || !pod.log("c1").is_empty());
    let mut one = daemon.attach("c1", "a1", ALL);
    let mut two = daemon.attach("c1", "a2", OUTPUTS);
    one.stdin.as_mut().unwrap().write_all(b"typed\n").unwrap();
    for client in [&mut one, &mut two] {
        assert_eq!(read_all(client.stdout.take().unwrap()), "out typed\n");
        assert_eq!(read_all(client.stderr.take().unwrap()), "err\n");
    }
    assert_eq!(daemon.exited("c1").code, 5);
    assert_eq!(written(&pod.log("c1"), "stdout"), b"before\nout typed\n");
    // The pipe has lost its reader, and the client its container.
    assert!(one.stdin.unwrap().write_all(b"x").is_err());
}

#[test]
fn stdin_once_ends_the_input_with_the_first_client() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("cat; echo end").with_stdin_once());
    // A client that only reads ends nothing.
    drop(daemon.attach("c1", "reader", OUTPUTS));
    assert_eq!(daemon.attach_ended("reader"), AttachEnd::Client);
    let mut client = daemon.attach("c1", "a1", ALL);
    let text = "line\n".repeat(50_000);
    std::thread::scope(|scope| {
        let mut input = client.stdin.take().unwrap();
        // Much more than the pipes on the way hold.
        scope.spawn(move || input.write_all(text.as_bytes()).unwrap());
        let mut got = String::new();
        client.stdout.as_mut().unwrap().read_to_string(&mut got).unwrap();
        assert_eq!(got, "line\n".repeat(50_000) + "end\n");
    });
    assert_eq!(daemon.exited("c1").code, 0);
    let log = pod.log("c1");
    assert_eq!((log.len(), log.last()), (50_001, Some(&line("stdout", "F", "end"))));
}

#[test]
fn without_stdin_once_clients_may_come_and_go() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("while read line; do echo \"<$line>\"; done").with_stdin());
    for number in 0..3 {
        let mut client = daemon.attach("c1", "a1", ALL);
        client.stdin.take().unwrap().write_all(format!("{number}\n").as_bytes()).unwrap();
        let (mut got, mut buffer) = (String::new(), [0; 16]);
        while got.len() < 4 {
            let count = client.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
            got.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        assert_eq!(got, format!("<{number}>\n"));
        drop(client);
        assert_eq!(daemon.attach_ended("a1"), AttachEnd::Client);
    }
    daemon.signal("c1", libc::SIGKILL);
    daemon.exited("c1");
}

#[test]
fn a_client_that_falls_a_mebibyte_behind_is_cut_off_and_holds_nobody() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    // Each line asks for 109 kB: after twelve, more has come than the client's pipe and what may wait for it.
    daemon.run("c1", &Spec::sh("while read line; do seq 1 20000; done; exit 7").with_stdin_once());
    let step: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    let stuck = daemon.attach("c1", "stuck", OUTPUTS);
    let mut reader = daemon.attach("c1", "reader", ALL);
    for _ in 0..12 {
        reader.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        let mut got = vec![0; step.len()];
        reader.stdout.as_mut().unwrap().read_exact(&mut got).unwrap();
        assert!(got == step.as_bytes());
    }
    assert_eq!(daemon.attach_ended("stuck"), AttachEnd::Slow, "while the container runs");
    drop(reader.stdin.take());
    assert_eq!(daemon.exited("c1").code, 7);
    assert!(written(&pod.log("c1"), "stdout") == step.repeat(12).as_bytes(), "the log differs");
    // It has got what went into its pipe before.
    let got = read_all(stuck.stdout.unwrap());
    assert!(!got.is_empty() && step.repeat(12).starts_with(&got));
}

#[test]
fn a_client_that_is_a_little_behind_loses_nothing_however_long_it_waits() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("read line; seq 1 100000; echo over >&2; read line").with_stdin());
    let mut late = daemon.attach("c1", "late", OUTPUTS);
    let mut other = daemon.attach("c1", "other", ALL);
    other.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    // The container writes on although one of its clients reads nothing.
    let mut said = [0; 5];
    other.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"over\n");
    drop(other.stdin.take());
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    let mut got = vec![0; expected.len()];
    late.stdout.as_mut().unwrap().read_exact(&mut got).unwrap();
    assert!(got == expected.as_bytes());
    daemon.signal("c1", libc::SIGKILL);
    daemon.exited("c1");
}

#[test]
fn a_client_that_does_not_take_the_rest_of_an_ended_container_is_cut_off() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("read line; seq 1 100000").with_stdin());
    let mut stuck = daemon.attach("c1", "stuck", ALL);
    stuck.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    daemon.exited("c1");
    assert_eq!(daemon.attach_ended("stuck"), AttachEnd::Stuck);
}

#[test]
fn what_a_client_wrote_before_it_went_is_the_containers() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    // It reads nothing before there is nobody any more who could be waited for.
    daemon.run(
        "c1",
        &Spec::sh("trap 'go=1' USR1; echo up; while [ -z $go ]; do sleep 0.05; done; wc -c")
            .with_stdin_once(),
    );
    until("the container is ready", || !pod.log("c1").is_empty());
    let mut client = daemon.attach("c1", "a1", ALL);
    // As much as fits between the two without anybody's help.
    client.stdin.as_mut().unwrap().write_all(&[b'x'; 100_000]).unwrap();
    drop(client);
    daemon.signal("c1", libc::SIGUSR1);
    assert_eq!(daemon.attach_ended("a1"), AttachEnd::Client);
    assert_eq!(daemon.exited("c1").code, 0);
    assert_eq!(written(&pod.log("c1"), "stdout"), b"up\n100000\n");
}

#[test]
fn clients_that_have_gone_keep_nobody_from_attaching() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("exec sleep 1000").with_stdin());
    let input = Streams { stdin: true, stdout: false, stderr: false };
    for number in 0..100 {
        let mut client = daemon.attach("c1", &format!("a{number}"), input);
        client.stdin.as_mut().unwrap().write_all(&[b'x'; 50_000]).unwrap();
    }
    daemon.signal("c1", libc::SIGKILL);
    daemon.exited("c1");
}

#[test]
fn a_client_that_comes_late_gets_the_end_of_an_ended_container() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("read line; seq 1 20000").with_stdin());
    let mut client = daemon.attach("c1", "a1", ALL);
    client.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    let expected: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    // What does not fit the client's pipe waits for it, also after the container is gone.
    assert_eq!(expected.len(), 108_894);
    daemon.exited("c1");
    daemon.expect_done(Call::Remove(named("c1")));
    assert!(read_all(client.stdout.take().unwrap()) == expected);
    assert_eq!(daemon.attach_ended("a1"), AttachEnd::Container);
}

#[test]
fn attaching_is_refused_where_it_makes_no_sense_and_leaves_nothing() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.create("c1", &Spec::sh("exec sleep 1000"));
    let (reader, writer) = crisp_sys::fd::pipe2(false).unwrap();
    let pipe = [std::os::fd::AsFd::as_fd(&writer)];
    let output = Streams { stdin: false, stdout: true, stderr: false };
    let none = Streams { stdout: false, ..output };
    assert!(
        is(&daemon.refused(attach_call("c1", "a1", output), &pipe), FailureKind::Precondition),
        "not started"
    );
    daemon.start("c1");
    let descriptors = std::fs::read_dir(pod.proc("fd")).unwrap().count();
    assert!(is(&daemon.refused(attach_call("c9", "a1", output), &pipe), FailureKind::NotFound));
    assert!(is(&daemon.refused(attach_call("c1", "a1", none), &[]), FailureKind::Invalid));
    assert!(is(&daemon.refused(attach_call("c1", "a1", output), &[]), FailureKind::Invalid));
    assert!(is(&daemon.refused(attach_call("c1", "a/1", output), &pipe), FailureKind::Invalid));
    let _client = daemon.attach("c1", "a1", output);
    assert!(is(&daemon.refused(attach_call("c1", "a1", output), &pipe), FailureKind::Exists));
    let mut clients: Vec<_> =
        (2..=64).map(|number| daemon.attach("c1", &format!("a{number}"), output)).collect();
    assert!(is(&daemon.refused(attach_call("c1", "a65", output), &pipe), FailureKind::Precondition));
    clients.clear();
    for number in 2..=64 {
        assert_eq!(daemon.attach_ended(&format!("a{number}")), AttachEnd::Client);
    }
    daemon.signal("c1", libc::SIGKILL);
    assert_eq!(daemon.attach_ended("a1"), AttachEnd::Container);
    daemon.exited("c1");
    assert!(is(&daemon.refused(attach_call("c1", "a1", output), &pipe), FailureKind::Precondition), "ended");
    assert!(std::fs::read_dir(pod.proc("fd")).unwrap().count() < descriptors);
    drop(reader);
}
