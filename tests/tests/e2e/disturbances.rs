//! Signals, clocks and calls for what crisp does not do: none of it leaves a trace.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused};
use crisp_tests::node::Node;
use crisp_tests::place::Need;
use crisp_tests::untouched;
use crisp_tests::{command, host, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "x13_checkpoints_are_refused_and_leave_nothing",
        needs: &[],
        images: &["busybox"],
        run: checkpoints,
    },
    Case { name: "x16_signals_to_the_daemon_do_no_harm", needs: &[], images: &["busybox"], run: daemon },
    Case { name: "x16_signals_to_a_monitor_do_no_harm", needs: &[], images: &["busybox"], run: monitor },
    Case {
        name: "x16_a_clock_that_is_set_moves_no_time_limit",
        needs: &[Need::OwnKernel],
        images: &["busybox"],
        run: clock,
    },
];

fn checkpoints(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, canary| {
        let pod = node.run_pod("checkpoints")?;
        let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
        let pid = node.cri().pid(&id)?;
        let place = node.folder().join("checkpoint.tar");
        for round in 0..200 {
            let location = if round % 2 == 0 { place.display().to_string() } else { canary.text("secret") };
            let container_id = if round % 3 == 0 { "no-such".to_owned() } else { id.clone() };
            let request = cri::CheckpointContainerRequest { container_id, location, timeout: 1 };
            refused(node.cri().checkpoint_container(request), Code::Unimplemented)?;
        }
        ensure!(!place.exists(), "a checkpoint was written");
        ensure!(node.cri().pid(&id)? == pid && host::lives(pid));
        node.end_pod(&pod)
    })
}

const COUNTING: &str = "n=0; while :; do echo $n; n=$((n+1)); sleep 0.01; done";

/// Every line is there once.
fn whole(node: &Node, id: &str) -> Result<()> {
    let log = crate::logs::read(node, id)?;
    let lost = log.iter().enumerate().find(|(at, line)| line.content != at.to_string());
    ensure!(lost.is_none(), "a line is lost: {lost:?}");
    Ok(())
}

fn daemon(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("daemon-signals")?;
        let id = node.launch(&pod, "c", "busybox", &["sh", "-c", COUNTING])?;
        for signal in [
            Signal::SIGHUP,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGPIPE,
            Signal::SIGCHLD,
            Signal::SIGWINCH,
        ] {
            node.signal(signal)?;
            ensure!(node.cri().exec(&id, &["true"])?.code == 0, "after {signal}");
        }
        for _ in 0..3 {
            let lines = crate::logs::read(node, &id)?.len();
            let path = node.cri().container(&id)?.log_path;
            node.signal(Signal::SIGSTOP)?;
            let silent =
                node.cri().within(Duration::from_millis(200)).version(cri::VersionRequest::default());
            // Pods need no daemon.
            let goes_on = wait::until_true("the log to grow", wait::LONG, || {
                std::fs::read_to_string(&path).is_ok_and(|text| text.lines().count() > lines + 3)
            });
            node.signal(Signal::SIGCONT)?;
            ensure!(silent.is_err(), "a stopped daemon has answered");
            goes_on?;
            ensure!(node.cri().exec(&id, &["true"])?.code == 0, "after SIGCONT");
        }
        node.cri().stop(&id, 0)?;
        whole(node, &id)?;
        node.end_pod(&pod)
    })
}

fn monitor(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let pod = node.run_pod("monitor-signals")?;
        let id = node.launch(&pod, "c", "busybox", &["sh", "-c", COUNTING])?;
        let pid = node.cri().pid(&id)?;
        let monitor = Pid::from_raw(crate::restart::monitor_of(node, pid)?);
        for signal in [
            Signal::SIGHUP,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGPIPE,
            Signal::SIGCHLD,
        ] {
            kill(monitor, signal)?;
            ensure!(node.cri().exec(&id, &["true"])?.code == 0, "after {signal}");
        }
        for _ in 0..3 {
            kill(monitor, Signal::SIGSTOP)?;
            // Nothing that only looks needs the monitor.
            let looked = node.cri().container(&id).and_then(|_| node.cri().pod(&pod.id)).map(drop);
            let exec = node.cri().within(Duration::from_millis(200)).exec(&id, &["true"]);
            kill(monitor, Signal::SIGCONT)?;
            looked?;
            ensure!(exec.is_err(), "a stopped monitor has executed something");
            ensure!(node.cri().exec(&id, &["true"])?.code == 0, "after SIGCONT");
        }
        ensure!(node.cri().pid(&id)? == pid, "another process");
        let lines = crate::logs::read(node, &id)?.len();
        crate::logs::wait_for_lines(node, &id, lines + 3)?;
        node.cri().stop(&id, 0)?;
        whole(node, &id)?;
        node.end_pod(&pod)
    })
}

fn set_clock(seconds: u64) -> Result<()> {
    command::run(Command::new("date").args(["--set", &format!("@{seconds}")]))?.ok().map(drop)
}

fn clock(node: &mut Node) -> Result<()> {
    const TEN_YEARS: u64 = 10 * 366 * 24 * 3600;
    let real = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let result = untouched::around(node, |node, _| {
        for (name, to) in [("ahead", real + TEN_YEARS), ("back", real - TEN_YEARS)] {
            let pod = node.run_pod(name)?;
            // It takes a while to end; a time limit that followed the clock would be over at once.
            let line = "trap 'echo term; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; exit 7' TERM; echo up; \
                        while :; do sleep 0.05; done";
            let id = node.launch(&pod, "c", "busybox", &["sh", "-c", line])?;
            crate::logs::wait_for_lines(node, &id, 1)?;
            std::thread::scope(|scope| -> Result<()> {
                let stop = scope.spawn(|| node.cri().stop(&id, 600));
                crate::logs::wait_for_lines(node, &id, 2)?;
                set_clock(to)?;
                Ok(stop.join().map_err(|_| anyhow!("a client panicked"))??)
            })?;
            let status = node.cri().container(&id)?;
            ensure!(status.exit_code == 7, "killed before its time: {status:?}");
            let next = node.launch(&pod, "next", "busybox", &["sh", "-c", "sleep 0.2; exit 3"])?;
            let status = node.wait_for_exit(&next)?;
            ensure!(status.exit_code == 3, "{status:?}");
            ensure!(
                status.created_at <= status.started_at && status.started_at < status.finished_at,
                "times out of order: {status:?}"
            );
            let config = container_config("exec", "busybox", &["sleep", "3600"]);
            let id = node.launch_as(&pod, &config)?;
            let request = cri::ExecSyncRequest {
                container_id: id,
                cmd: ["sh", "-c", "sleep 1; echo in time"].map(str::to_owned).into(),
                timeout: 600,
            };
            let said = std::thread::scope(|scope| -> Result<_> {
                let exec = scope.spawn(|| node.cri().exec_sync(request));
                set_clock(real)?;
                Ok(exec.join().map_err(|_| anyhow!("a client panicked"))??)
            })?;
            ensure!(said.stdout == b"in time\n", "{said:?}");
            node.end_pod(&pod)?;
        }
        Ok(())
    });
    set_clock(real).context("set the clock back")?;
    result
}
