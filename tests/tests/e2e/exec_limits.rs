//! What execs may hold, what they may leave, and what ends them.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{refused, words};
use crisp_tests::node::Node;
use crisp_tests::place::rounds;
use crisp_tests::wait;
use tonic::Code;

use crate::case::Case;
use crate::streaming::{sleeper, wait_until_alone};

/// The tests of this file.
pub(crate) const CASES: &[Case] =
    &[Case { name: "x01_all_of_exec_sync_has_one_bound", needs: &[], images: &["busybox"], run: bounded }];

fn bounded(node: &mut Node) -> Result<()> {
    // What all calls may keep, what each may besides (its own share, buffers, a task), and what the daemon does anyway.
    const SHARED: u64 = 128 << 10;
    const EACH: u64 = 512;
    const MARGIN: u64 = 32 << 10;
    let (pod, id) = sleeper(node, "bounded")?;
    let daemon = i64::from(node.daemon_pid()?);
    // Not answered, so that nothing but what is kept counts. Each floods both streams until it is killed.
    let calls = rounds(100, 20) as u64;
    let before = peak(daemon)?;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..calls)
            .map(|_| {
                let request = cri::ExecSyncRequest {
                    container_id: id.clone(),
                    cmd: words(&["sh", "-c", "cat /dev/zero & exec cat /dev/zero >&2"]),
                    timeout: rounds(8, 60) as i64,
                };
                let cri = node.cri();
                scope.spawn(move || cri.exec_sync(request))
            })
            .collect();
        wait::until("the floods to fill what all may keep", wait::LONG, || match peak(daemon) {
            Ok(now) if now >= before + SHARED => Ok(()),
            now => Err(format!("{before} {now:?}")),
        })?;
        // Who says little is heard all the same.
        let little = node.cri().shell(&id, "head -c 10000 /dev/zero | tr '\\0' x")?;
        ensure!(little.len() == 10_000, "{} of 10000 bytes", little.len());
        for one in all {
            let reply = one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
            refused(reply, Code::DeadlineExceeded)?;
        }
        anyhow::Ok(())
    })?;
    let after = peak(daemon)?;
    ensure!(after <= before + SHARED + calls * EACH + MARGIN, "kB at most: {before} before, {after} after");
    wait_until_alone(node, &id)?;
    // All of it has come back: one call may have as much as ever.
    let line = "head -c 17000000 /dev/zero";
    let said = node.cri().exec_sync(cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: words(&["sh", "-c", line]),
        timeout: 0,
    })?;
    ensure!(said.stdout.len() > 15 << 20, "{}", said.stdout.len());
    node.end_pod(&pod)
}

/// The most kilobytes that a process has ever had resident.
fn peak(pid: i64) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}
