//! What a container writes, on its way into the log.

use crisp_monitor::record::ExitRecord;
use crisp_monitor::wire::{Call, FailureKind};

use crate::harness::{Line, Pod, Spec, alive, is, line, named, parse_log, until, written};

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
    let record =
        ExitRecord { code: 3, nanos: exit.nanos, started_nanos: started, oom_killed: false, oom_level: 0 };
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
