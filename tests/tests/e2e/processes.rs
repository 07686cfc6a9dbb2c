//! How processes of a container end, and how further ones are run: exit codes, reasons, ExecSync.

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused, words};
use crisp_tests::node::Node;
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "exit_codes_and_reasons_are_right", needs: &[], images: &["busybox"], run: exits },
    Case { name: "exec_gives_output_and_exit_code", needs: &[], images: &["busybox"], run: exec },
    Case { name: "exec_past_its_timeout_is_killed", needs: &[], images: &["busybox"], run: exec_timeout },
];

fn exits(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("exits")?;
    let expected = [("zero", &["true"][..], 0, "Completed"), ("three", &["sh", "-c", "exit 3"], 3, "Error")];
    for (name, command, code, reason) in expected {
        let id = node.launch(&pod, name, "busybox", command)?;
        let status = node.wait_for_exit(&id)?;
        ensure!((status.exit_code, status.reason.as_str()) == (code, reason), "{name}: {status:?}");
        ensure!(
            status.created_at <= status.started_at && status.started_at <= status.finished_at,
            "{status:?}"
        );
        ensure!(status.created_at > 1_600_000_000_000_000_000, "not nanoseconds since the epoch: {status:?}");
    }
    let id = node.launch(&pod, "stopped", "busybox", &["sleep", "3600"])?;
    let running = node.cri().container(&id)?;
    ensure!(
        running.state() == cri::ContainerState::ContainerRunning && running.finished_at == 0,
        "{running:?}"
    );
    node.cri().stop(&id, 0)?;
    let status = node.cri().container(&id)?;
    ensure!((status.exit_code, status.reason.as_str()) == (137, "Error"), "{status:?}");

    let config = container_config("missing", "busybox", &["/no/such/program"]);
    let id = node.cri().create(&pod.id, &config, &pod.config)?;
    let message = node.cri().start(&id).err().context("a missing program was started")?;
    ensure!(message.message().contains("/no/such/program"), "{message:?}");
    let status = node.cri().container(&id)?;
    ensure!(status.state() == cri::ContainerState::ContainerExited, "{status:?}");
    ensure!((status.exit_code, status.reason.as_str()) == (128, "StartError"), "{status:?}");
    ensure!(status.message.contains("/no/such/program") && status.finished_at > 0, "{status:?}");
    node.end_pod(&pod)
}

fn exec(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("exec")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let said = node.cri().exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure!((said.code, said.stdout.as_str(), said.stderr.as_str()) == (7, "out\n", "err\n"), "{said:?}");
    let said = node.cri().exec(&id, &["sh", "-c", "kill -TERM $$"])?;
    ensure!(said.code == 128 + 15, "{said:?}");
    // kubelet's prober must get an error here and no exit code.
    for (program, cause) in
        [("nosuchprogram", "executable file not found"), ("/no/such/program", "no such file")]
    {
        let message = node.cri().exec(&id, &[program]).err().context("a missing program was executed")?;
        ensure!(message.message().contains(program) && message.message().contains(cause), "{message:?}");
    }

    // More than a pipe holds, from both streams at once.
    let said =
        node.cri().exec(&id, &["sh", "-c", "yes 12345678 | head -n 100000; yes x | head -n 100000 >&2"])?;
    ensure!(
        said.stdout.len() == 900_000 && said.stderr.len() == 200_000,
        "{} {}",
        said.stdout.len(),
        said.stderr.len()
    );

    // It is the container's world that it sees.
    ensure!(node.cri().shell(&id, "hostname")? == "exec\n");
    ensure!(node.cri().shell(&id, "tr '\\0' ' ' </proc/1/cmdline")?.trim() == "sleep 3600");
    node.end_pod(&pod)
}

fn exec_timeout(node: &mut Node) -> Result<()> {
    let pod = node.run_pod("timeout")?;
    let id = node.launch(&pod, "c", "busybox", &["sleep", "3600"])?;
    let request = cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: words(&["sh", "-c", "sleep 4321 & sleep 4321"]),
        timeout: 1,
    };
    refused(node.cri().exec_sync(request), Code::DeadlineExceeded)?;
    // What was executed and what that had started.
    let left = node.cri().shell(&id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?;
    ensure!(left.contains("sleep 3600") && !left.contains("sleep 4321"), "still there: {left}");
    ensure!(
        node.cri().container(&id)?.state() == cri::ContainerState::ContainerRunning,
        "the container went along"
    );
    node.end_pod(&pod)
}
