//! The manifests under examples/, as they stand, through `crisp play`: each does what its line in examples/README.md says.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1::ContainerState;
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::wait;

use crate::case::Case;
use crate::inspection::inspected;
use crate::network;
use crate::play::{Play, example};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "pod_01_hello_succeeds", needs: &[], images: &["busybox"], run: hello },
    Case { name: "pod_02_web_answers_on_its_ip", needs: &[], images: &["nginx", "busybox"], run: web },
    Case {
        name: "pod_03_containers_share_localhost_and_a_volume",
        needs: &[],
        images: &["python:3.9", "busybox"],
        run: two,
    },
    Case { name: "pod_05_init_containers_run_in_order", needs: &[], images: &["busybox:1.36"], run: init },
    Case { name: "pod_06_limits_hold", needs: &[Need::Controllers], images: &["busybox"], run: limits },
    Case { name: "pod_07_a_volume_outlives_a_crash", needs: &[], images: &["redis"], run: redis },
    Case { name: "pod_08_pull_policy_never_is_obeyed", needs: &[], images: &[], run: node_app },
    Case {
        name: "pod_09_a_port_conflict_hurts_the_second",
        needs: &[],
        images: &["busybox"],
        run: port_conflict,
    },
    Case { name: "pod_10_ipc_is_shared_files_are_not", needs: &[], images: &["python:3.9"], run: shared_ipc },
    Case { name: "pod_11_a_crash_loop_backs_off", needs: &[], images: &["busybox"], run: crash_loop },
    Case { name: "pod_12_grace_is_given_and_ends", needs: &[], images: &["busybox"], run: grace },
    Case { name: "pod_13_one_pid_namespace", needs: &[], images: &["busybox"], run: share_pid },
    Case {
        name: "ps_logs_exec_inspect_and_rm_work_by_name",
        needs: &[],
        images: &["busybox"],
        run: commands,
    },
];

fn hello(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "01-hello.yaml")?;
    let status = play.ended("busybox")?;
    ensure!((status.exit_code, status.reason.as_str()) == (0, "Completed"), "{status:?}");
    ensure!(play.logs("busybox", "busybox")? == "Hello World\n");
    let table = node.crisp(&["ps"])?.ok()?;
    ensure!(table.contains("busybox"), "{table}");
    let ended = play.wait_for_end()?;
    ensure!(ended.success() && play.said().contains("Succeeded"), "{ended}: {}", play.said());
    play.down()
}

fn web(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "02-web.yaml")?;
    let id = play.running("nginx")?;
    let sandbox = play.sandbox()?;
    let ips = network::ips(node, &sandbox)?;
    let page = network::http(ips[0], 80)?;
    ensure!(page.starts_with("HTTP/1.1 200"), "{page}");
    let (_, body) = page.split_once("\r\n\r\n").context("no body")?;
    let other = node.run_pod("other")?;
    let client = node.launch(&other, "c", "busybox", &["sleep", "3600"])?;
    let seen = node.cri().shell(&client, &format!("wget -q -O - http://{}/", ips[0]))?;
    ensure!(!body.is_empty() && seen == body, "from another pod: {seen}");
    ensure!(network::ips(node, &other.id)?.iter().all(|ip| !ips.contains(ip)), "two pods with one address");
    node.end_pod(&other)?;
    // Killed and restarted: the same address.
    node.cri().stop(&id, 0)?;
    play.wait_for("nginx", ContainerState::ContainerRunning, 1)?;
    ensure!(network::ips(node, &sandbox)? == ips, "another address after the restart");
    ensure!(network::http(ips[0], 80)?.starts_with("HTTP/1.1 200"));
    play.end()?;
    // Free again: a new pod may have it, and nobody answers there.
    ensure!(std::net::TcpStream::connect((ips[0], 80)).is_err(), "somebody still answers");
    Ok(())
}

fn two(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "03-two-containers.yaml")?;
    let (main, helper) = (play.running("main-app")?, play.running("helper")?);
    wait::until("localhost:8000 from the helper", wait::LONG, || {
        node.cri().shell(&helper, "wget -q -O - http://localhost:8000/").map_err(|error| format!("{error:#}"))
    })?;
    let size = || -> Result<u64> { Ok(node.cri().shell(&main, "wc -c </data/log.txt")?.trim().parse()?) };
    let first = wait::until("/data/log.txt", wait::LONG, || size().map_err(|error| format!("{error:#}")))?;
    wait::until_true("/data/log.txt to grow", wait::LONG, || size().is_ok_and(|now| now > first))?;
    play.interrupt()?;
    ensure!(node.cri().containers()?.is_empty(), "both stop together");
    Ok(())
}

fn init(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "05-init.yaml")?;
    let app = play.running("app")?;
    let app = node.cri().container(&app)?;
    let (first, second) = (play.ended("first")?, play.ended("second")?);
    ensure!(first.exit_code == 0 && second.exit_code == 0, "{first:?} {second:?}");
    ensure!(
        first.finished_at <= second.started_at && second.finished_at <= app.started_at,
        "not one after the other"
    );
    wait::until("the order in the log", wait::LONG, || match play.logs("app-with-init", "app") {
        Ok(text) if text == "first\nsecond\n" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    play.end()?;

    // One that fails is tried again, and main never starts.
    let text = fs::read_to_string(example("05-init.yaml")?)?;
    let failing = text.replace("echo second >> /scratch/order", "echo again; exit 1");
    ensure!(failing != text, "the example has changed");
    let manifest = node.folder().join("failing.yaml");
    fs::write(&manifest, failing)?;
    let mut play = Play::start(node, manifest.display().to_string())?;
    play.wait_for("second", ContainerState::ContainerExited, 1)?;
    let names: Vec<_> =
        node.cri().containers()?.into_iter().filter_map(|c| c.metadata).map(|m| m.name).collect();
    ensure!(!names.iter().any(|name| name == "app"), "main was made: {names:?}");
    play.end()
}

fn limits(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "06-limits.yaml")?;
    let spinner = play.running("spinner")?;
    ensure!(crate::limits::read(node, &spinner, "cpu.max")? == "20000 100000");
    ensure!(crate::limits::read(node, &spinner, "memory.max")? == (256 << 20).to_string());
    // Each of its runs has its own; one that is killed while it is looked at is followed by another.
    wait::until("the hog's limits", wait::LONG, || {
        let hog = play.running("hog").map_err(|error| format!("{error:#}"))?;
        let read = |file| crate::limits::read(node, &hog, file).map_err(|error| format!("{error:#}"));
        Ok::<_, String>((read("cpu.max")?, read("memory.max")?))
    })
    .and_then(|limits| {
        ensure!(limits == ("20000 100000".to_owned(), (64 << 20).to_string()), "{limits:?}");
        Ok(())
    })?;
    // The restart policy starts the hog again; the first run is the one that was killed.
    let status = play.wait_for("hog", ContainerState::ContainerExited, 0)?;
    ensure!((status.exit_code, status.reason.as_str()) == (137, "OOMKilled"), "{status:?}");
    ensure!(
        node.cri().container(&spinner)?.state() == ContainerState::ContainerRunning,
        "the sibling died too"
    );
    let usage = || -> Result<(u64, u64, u64)> {
        let stat = crate::limits::read(node, &spinner, "cpu.stat")?;
        let value =
            |key: &str| stat.lines().find_map(|l| l.strip_prefix(key)).and_then(|v| v.trim().parse().ok());
        let all = (value("nr_periods "), value("nr_throttled "), value("usage_usec "));
        Ok((all.0.context("periods")?, all.1.context("throttled")?, all.2.context("usage")?))
    };
    let before = usage()?;
    // A fifth of a core: 20 ms in each period of 100 ms, give or take a tenth. All of it in those in which it was
    // throttled, which a busy machine makes fewer than all; and no more in the long run: where the kernel's clock ticks
    // late it overdraws a period, and takes that from the next ones.
    wait::until("a fifth of a core", wait::LONG, || match usage() {
        Ok(now) if now.1 >= before.1 + 20 => {
            let (periods, throttled, used) = (now.0 - before.0, now.1 - before.1, now.2 - before.2);
            let held = used <= periods * 22_000 && used >= throttled * 18_000;
            if held { Ok(()) } else { Err(format!("{used} us in {periods} periods, {throttled} throttled")) }
        }
        other => Err(format!("{other:?}")),
    })?;
    play.end()
}

fn redis(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "07-volume-redis.yaml")?;
    let id = play.running("redis")?;
    let redis = |id: &str, line: &str| {
        wait::until("redis to answer", wait::LONG, || {
            match node.cri().shell(id, &format!("redis-cli {line}")) {
                Ok(text) if !text.contains("LOADING") => Ok(text),
                other => Err(format!("{other:?}")),
            }
        })
    };
    ensure!(redis(&id, "set key kept")?.contains("OK"));
    redis(&id, "save")?;
    node.cri().stop(&id, 0)?;
    let again = play.wait_for("redis", ContainerState::ContainerRunning, 1)?.id;
    ensure!(redis(&again, "get key")?.contains("kept"), "the data did not survive the crash");
    play.end()?;
    let mut play = Play::example(node, "07-volume-redis.yaml")?;
    let id = play.running("redis")?;
    ensure!(!redis(&id, "get key")?.contains("kept"), "the data survived the pod");
    play.end()
}

fn node_app(node: &mut Node) -> Result<()> {
    let name = "progressivecoder/nodejs-demo";
    ensure!(node.cri().image_id(name)?.is_none(), "the image is there already");
    let before = node.snapshot()?;
    let said = node.crisp(&["play", &example("08-node-app.yaml")?])?.refused()?;
    ensure!(said.contains(name) && said.contains("Never"), "{said}");
    ensure!(node.cri().pods()?.is_empty(), "{:?}", node.cri().pods()?);
    node.wait_for_return(&before)?;

    node.ensure_images(&[name])?;
    let mut play = Play::example(node, "08-node-app.yaml")?;
    play.running("hello-service")?;
    let ips = network::ips(node, &play.sandbox()?)?;
    let answer = network::http(ips[0], 3000)?;
    ensure!(answer.contains("Hello World from our Kubernetes Pod Demo"), "{answer}");
    play.end()?;
    let image = crisp_tests::cri::image(name);
    node.cri().remove_image(crisp_proto::runtime::v1::RemoveImageRequest { image: Some(image) })?;
    Ok(())
}

fn port_conflict(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "09-port-conflict.yaml")?;
    let first = play.running("app1")?;
    let status = play.ended("app2")?;
    ensure!(status.exit_code != 0 && status.reason == "Error", "{status:?}");
    let log = play.logs("port-conflict", "app2")?;
    ensure!(log.contains("bind") && log.contains("in use"), "{log}");
    ensure!(node.cri().container(&first)?.state() == ContainerState::ContainerRunning, "the first died too");
    play.end()
}

fn shared_ipc(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "10-shared-ipc.yaml")?;
    let (writer, reader) = (play.running("writer")?, play.running("reader")?);
    wait::until("the reader's words", wait::LONG, || match play.logs("shared-ipc", "reader") {
        Ok(text) if text == "hello from the writer one-pod\n" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(play.logs("shared-ipc", "writer")? == "ready one-pod\n");
    node.cri().shell(&writer, "touch /mine")?;
    ensure!(node.cri().exec(&reader, &["ls", "/mine"])?.code != 0, "files are shared");
    let processes = node.cri().shell(&reader, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?;
    ensure!(processes.matches("import ctypes").count() == 1, "processes are shared: {processes}");
    inspected(node, "shared-ipc", [&writer, &reader])?;
    play.end()
}

fn crash_loop(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "11-crash-loop.yaml")?;
    let exits = (0..3)
        .map(|attempt| play.wait_for("app", ContainerState::ContainerExited, attempt))
        .collect::<Result<Vec<_>>>()?;
    ensure!(exits.iter().all(|status| status.exit_code == 3 && status.reason == "Error"), "{exits:?}");
    let attempts: Vec<_> = exits.iter().filter_map(|s| s.metadata.as_ref()).map(|m| m.attempt).collect();
    ensure!(attempts.is_sorted() && attempts[2] >= 2, "{attempts:?}");
    let pauses: Vec<_> = exits.windows(2).map(|pair| pair[1].started_at - pair[0].finished_at).collect();
    ensure!(pauses.is_sorted(), "no back-off: {pauses:?} ns");
    let current = play.logs("crash-loop", "app")?;
    let previous = node.crisp(&["logs", "--previous", "crash-loop"])?.ok()?;
    ensure!(
        previous.starts_with("run at ") && previous != current,
        "previous {previous:?}, current {current:?}"
    );
    play.end()
}

fn grace(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "12-grace.yaml")?;
    let (polite, stubborn) = (play.running("polite")?, play.running("stubborn")?);
    let logs = node.cri().container(&polite)?.log_path;
    let mut events = node.cri().events()?;
    let pids = (node.cri().pid(&polite)?, node.cri().pid(&stubborn)?);
    // Both traps must be set before the signal comes.
    for pid in [pids.0, pids.1] {
        wait::until_true("the trap", wait::LONG, || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let mask = |name: &str| {
                let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("0").trim().to_owned();
                u64::from_str_radix(&line, 16).unwrap_or(0)
            };
            (mask("SigCgt:") | mask("SigIgn:")) & (1 << 14) != 0
        })?;
    }
    let watcher = std::thread::spawn(move || {
        let mut seen = String::new();
        let end = wait::until_true("the end of the polite one", wait::LONG, || {
            seen = fs::read_to_string(&logs).unwrap_or(std::mem::take(&mut seen));
            !crisp_tests::host::lives(pids.0)
        });
        (end, seen, crisp_tests::host::lives(pids.1))
    });
    play.interrupt()?;
    let (end, seen, stubborn_lived) = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
    end?;
    ensure!(seen.contains("finishing"), "the polite one was not asked: {seen:?}");
    ensure!(stubborn_lived, "the stubborn one was killed before its grace period was over");
    ensure!(!crisp_tests::host::lives(pids.1), "the stubborn one lives on");
    // Told before they were removed.
    let (mut codes, wanted) = (BTreeMap::new(), BTreeMap::from([(polite, 0), (stubborn, 137)]));
    while codes.len() < wanted.len() {
        let event = events.receive()?.context("the events have ended")?;
        let ended = event.containers_statuses.into_iter();
        codes.extend(
            ended.filter(|c| c.state() == ContainerState::ContainerExited).map(|c| (c.id, c.exit_code)),
        );
    }
    ensure!(codes == wanted, "{codes:?} is not {wanted:?}");
    Ok(())
}

fn share_pid(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "13-share-pid.yaml")?;
    let (one, two) = (play.running("one")?, play.running("two")?);
    // What runs under a container's number inside of the pod, by the words of the other one.
    for (seer, seen, argv) in
        [(&one, &two, &["sh", "-c", "sleep 3; ps; sleep 3600"][..]), (&two, &one, &["sleep", "3600"])]
    {
        let status = fs::read_to_string(format!("/proc/{}/status", node.cri().pid(seen)?))?;
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("no NSpid")?;
        let inside = inside.split_whitespace().last().context("no number inside")?;
        wait::until("the other's first process", wait::LONG, || {
            let line = format!("tr '\\0' '|' </proc/{inside}/cmdline");
            match node.cri().shell(seer, &line) {
                Ok(text) if text == format!("{}|", argv.join("|")) => Ok(()),
                other => Err(format!("{other:?}, not {argv:?}")),
            }
        })?;
    }
    let seen = wait::until("the list of processes", wait::LONG, || match play.logs("share-pid", "two") {
        Ok(text) if text.contains("sleep 3600") => Ok(text),
        other => Err(format!("{other:?}")),
    })?;
    // The orphan of `one` has been reaped when `two` looks after three seconds.
    ensure!(!seen.contains("sleep 1\n") && !seen.contains("[sleep]"), "{seen}");
    let first = node.cri().shell(&one, "tr '\\0' ' ' </proc/1/cmdline")?;
    ensure!(!first.contains("sleep") && !first.contains("sh -c"), "PID 1 is the application: {first}");
    play.down()
}

fn commands(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "12-grace.yaml")?;
    play.running("polite")?;
    play.running("stubborn")?;
    let table = node.crisp(&["ps"])?.ok()?;
    ensure!(["grace", "polite", "stubborn"].iter().all(|name| table.contains(name)), "{table}");
    ensure!(node.crisp(&["exec", "-c", "polite", "grace", "echo", "from exec"])?.ok()? == "from exec\n");
    let refused = node.crisp(&["exec", "-c", "polite", "grace", "--", "sh", "-c", "exit 9"])?;
    ensure!(refused.status.code() == Some(9), "{refused}");
    let table = node.crisp(&["inspect", "grace"])?.ok()?;
    ensure!(["default/grace", "polite", "stubborn"].iter().all(|name| table.contains(name)), "{table}");
    let said = node.crisp(&["logs", "grace", "-c", "nobody"])?.refused()?;
    ensure!(said.contains("nobody"), "{said}");
    node.crisp(&["rm", "--force", "grace"])?.ok()?;
    ensure!(node.cri().pods()?.is_empty());
    // Its pod was taken away: the player has nothing to do any more.
    play.wait_for_end()?;
    Ok(())
}
