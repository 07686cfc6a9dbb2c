//! Containers and further processes with a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;

use crisp_monitor::wire::{AttachEnd, Call, FailureKind, Resize};

use crate::harness::{Pod, Spec, Streams, attach_call, is, line, until, written};

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: false };

fn resize(id: &str, columns: u32, rows: u32) -> Call {
    Call::Resize(Resize { container: id.to_owned(), columns, rows })
}

/// Reads until `wanted` has come.
fn read_until(file: &mut File, wanted: &str) -> String {
    let (mut got, mut buffer) = (Vec::new(), [0; 512]);
    loop {
        let text = String::from_utf8_lossy(&got).into_owned();
        if text.contains(wanted) {
            return text;
        }
        let count = file.read(&mut buffer).unwrap_or(0);
        assert_ne!(count, 0, "{wanted:?} never came, but {text:?}");
        got.extend_from_slice(&buffer[..count]);
    }
}

#[test]
fn a_terminal_is_all_three_streams_the_console_and_the_controlling_one() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let script = "tty; for fd in 0 1 2; do test /proc/$$/fd/$fd -ef /dev/pts/0 && echo $fd; done
        test /dev/console -ef /proc/self/fd/0 && echo same; echo err >&2
        stat -c '%a %u %g' /dev/pts/0; ls -1 /dev/pts; grep -c /dev/console /proc/self/mountinfo; exit 4";
    daemon.run("c1", &Spec::sh(script).with_terminal());
    assert_eq!(daemon.exited("c1").code, 4);
    let log = pod.log("c1");
    let out = String::from_utf8(written(&log, "stdout")).unwrap();
    // A terminal ends its lines with a carriage return, too.
    let lines: Vec<&str> = out.lines().map(|line| line.trim_end_matches('\r')).collect();
    let pts = "/dev/pts/0";
    assert_eq!(lines, [pts, "0", "1", "2", "same", "err", "620 0 5", "0", "ptmx", "1"], "{out}");
    assert!(written(&log, "stderr").is_empty());
}

#[test]
fn a_terminal_takes_input_and_signals_and_tells_its_size() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let script = "trap 'echo caught' INT; trap 'stty size' WINCH; echo ready; while [ \"$line\" != quit ]; do read line && echo \"<$line>\"; done";
    daemon.run("c1", &Spec::sh(script).with_terminal().with_stdin());
    until("the shell is ready", || !pod.log("c1").is_empty());
    let mut client = daemon.attach("c1", "a1", ALL);
    let (mut input, mut output) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    input.write_all(b"hello\n").unwrap();
    read_until(&mut output, "<hello>");
    // A terminal sends the signal, which takes a controlling terminal and a foreground process group.
    input.write_all(b"\x03").unwrap();
    read_until(&mut output, "caught");
    daemon.expect_done(resize("c1", 132, 43));
    input.write_all(b"\n").unwrap();
    read_until(&mut output, "43 132");
    drop(input);
    // The end of one client's input is not that of the terminal.
    let mut second = daemon.attach("c1", "a2", ALL);
    second.stdin.as_mut().unwrap().write_all(b"still here\nquit\n").unwrap();
    read_until(&mut output, "<still here>");
    assert_eq!(daemon.exited("c1").code, 0);
    assert!(is(&daemon.refused(resize("c1", 1, 1), &[]), FailureKind::Precondition));
}

#[test]
fn what_makes_no_sense_with_a_terminal_or_without_one_is_refused() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("exec sleep 1000").with_terminal());
    daemon.run("c2", &Spec::sh("exec sleep 1000"));
    assert!(is(&daemon.refused(resize("c2", 80, 24), &[]), FailureKind::Precondition));
    for (columns, rows) in [(0, 24), (80, 0), (65_536, 24), (80, u32::MAX)] {
        assert!(is(&daemon.refused(resize("c1", columns, rows), &[]), FailureKind::Invalid));
    }
    let errors = Streams { stdin: false, stdout: false, stderr: true };
    assert!(is(&daemon.refused(attach_call("c1", "a1", errors), &[]), FailureKind::Invalid));
    let input = Streams { stdin: true, ..errors };
    assert!(is(&daemon.refused(attach_call("c2", "a1", input), &[]), FailureKind::Precondition));
}

#[test]
fn a_program_may_close_its_terminal_and_open_it_again() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let script = "exec </dev/null >/dev/null 2>&1; echo closed > /tmp/mark; sleep 0.1; echo again > /dev/console; exit 3";
    daemon.run("c1", &Spec::sh(script).with_terminal());
    assert_eq!(daemon.exited("c1").code, 3);
    assert_eq!(pod.log("c1"), [line("stdout", "F", "again\r")]);
}

#[test]
fn everything_written_to_a_terminal_before_the_end_is_in_the_log() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    daemon.run("c1", &Spec::sh("seq 1 100000").with_terminal());
    let mut client = daemon.attach("c1", "a1", Streams { stdin: false, ..ALL });
    // The client reads slowly at first: the container waits for it, and nothing is lost.
    let mut text = String::new();
    client.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(daemon.attach_ended("a1"), AttachEnd::Container);
    assert_eq!(daemon.exited("c1").code, 0);
    let expected: String = (1..=100_000).map(|number| format!("{number}\r\n")).collect();
    assert!(written(&pod.log("c1"), "stdout") == expected.as_bytes(), "the log differs");
    assert!(expected.ends_with(&text) && !text.is_empty(), "the client got something else");
}

#[test]
fn an_exec_with_a_terminal_hands_it_up() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let first = daemon.run("c1", &Spec::sh("exec sleep 1000"));
    let script = "tty; echo err >&2; read line; echo \"<$line>\"; stty size; exit 6";
    let (pid, mut terminal) = daemon.exec_on_terminal("c1", "e1", &["/bin/sh", "-c", script]);
    read_until(&mut terminal, "err");
    let tty = std::fs::metadata(format!("/proc/{}/fd/0", pid.pid)).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.pid)).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    assert_eq!(fields[4].parse::<u64>().unwrap(), tty.rdev(), "the controlling terminal is another one");
    assert_eq!(fields[3], pid.pid.to_string(), "it does not lead its session");
    crisp_sys::terminal::resize(&terminal, 100, 30).unwrap();
    terminal.write_all(b"typed\n").unwrap();
    read_until(&mut terminal, "30 100");
    assert_eq!(daemon.exec_exited("e1"), 6);
    // Whoever holds the terminal lets go of it: the program is told.
    let (pid, terminal) = daemon.exec_on_terminal("c1", "e2", &["/bin/sleep", "1000"]);
    drop(terminal);
    assert_eq!(daemon.exec_exited("e2"), 128 + libc::SIGHUP);
    assert_ne!(pid.pid, first.pid);
}

#[test]
fn r08_what_lies_at_the_console_or_in_the_way_to_the_terminals_is_not_followed() {
    let pod = Pod::start();
    let mut daemon = pod.daemon();
    let victim = pod.dir.path().join("root/tmp/victim");
    std::fs::write(&victim, "untouched").unwrap();
    // The plan of these containers has no /dev of its own: the image decides what is there.
    for (number, plant) in ["console", "pts"].into_iter().enumerate() {
        let dev = pod.dir.path().join("root/dev");
        std::fs::remove_dir_all(&dev).unwrap();
        std::fs::create_dir_all(dev.join("pts")).unwrap();
        match plant {
            "console" => std::os::unix::fs::symlink("/tmp/victim", dev.join("console")).unwrap(),
            _ => {
                std::fs::remove_dir(dev.join("pts")).unwrap();
                std::os::unix::fs::symlink("/tmp", dev.join("pts")).unwrap();
            }
        }
        let mut spec = Spec::sh("echo never").with_terminal();
        spec.image_dev = Some(plant == "console");
        let failure = daemon.refused_create(&format!("c{number}"), &spec);
        assert!(failure.text.contains("/dev/console"), "{failure:?}");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    }
    assert!(daemon.hello().containers.is_empty());
}
