//! A pod that did nothing wrong: one container that runs, one that has ended.
//!
//! Must not know: what happens beside it.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;

use crate::node::{Node, Pod};
use crate::wait;

/// What the running container does: one line, then nothing until it is asked to end. Its processes stay the same.
const PROGRAM: &str = "trap 'exit 11' TERM; sleep 1000000 & until grep -q sleep /proc/$!/comm; do :; done; \
                       echo alive; wait";

/// The pod, and how it was.
#[derive(Debug)]
pub struct Victim {
    pod: Pod,
    running: String,
    monitor: i32,
    before: State,
}

/// Everything that must stay as it is.
#[derive(Debug, PartialEq)]
struct State {
    pid: i32,
    start: String,
    running: cri::ContainerStatus,
    ended: cri::ContainerStatus,
    sandbox: cri::PodSandboxStatus,
    log: Vec<u8>,
}

impl Victim {
    /// Makes the pod and waits until its containers are where they are to stay.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn start(node: &Node) -> Result<Self> {
        node.ensure_images(&["busybox"])?;
        let pod = node.run_pod("victim")?;
        let running = node.launch(&pod, "running", "busybox", &["sh", "-c", PROGRAM])?;
        let ended = node.launch(&pod, "ended", "busybox", &["sh", "-c", "exit 3"])?;
        node.wait_for_exit(&ended)?;
        wait::until_true("the victim's line", wait::LONG, || {
            let path = node.cri().container(&running).map(|status| status.log_path).unwrap_or_default();
            fs::read_to_string(path).is_ok_and(|text| text.ends_with("alive\n"))
        })?;
        let before = State::look(node, &pod, &running, &ended)?;
        let victim = Self { monitor: monitor(node, &pod)?, pod, running, before };
        victim.answers(node)?;
        Ok(victim)
    }

    /// The pod.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// The container that runs.
    pub fn container(&self) -> &str {
        &self.running
    }

    /// The pod's monitor.
    pub fn monitor(&self) -> i32 {
        self.monitor
    }

    /// Shows that exec and stats work.
    ///
    /// # Errors
    /// They do not.
    pub fn answers(&self, node: &Node) -> Result<()> {
        ensure!(node.cri().shell(&self.running, "echo $((6 * 7))")? == "42\n");
        let request = cri::ContainerStatsRequest { container_id: self.running.clone() };
        let stats = node.cri().container_stats(request)?.stats.context("no stats")?;
        ensure!(stats.attributes.is_some_and(|attributes| attributes.id == self.running));
        Ok(())
    }

    /// Shows that it is as it was, and answers.
    ///
    /// # Errors
    /// What has changed.
    pub fn unharmed(&self, node: &Node) -> Result<()> {
        let now = State::look(node, &self.pod, &self.running, &self.before.ended.id)?;
        ensure!(self.before == now, "was {:?}\n is {now:?}", self.before);
        self.answers(node)
    }

    /// Stops it by its signal, which it obeys, and removes it.
    ///
    /// # Errors
    /// It did not end by its signal, or the daemon's answer.
    pub fn end(self, node: &Node) -> Result<()> {
        node.cri().stop(&self.running, 600)?;
        let status = node.cri().container(&self.running)?;
        ensure!(status.exit_code == 11, "{status:?}");
        node.end_pod(&self.pod)
    }
}

impl State {
    fn look(node: &Node, pod: &Pod, running: &str, ended: &str) -> Result<Self> {
        let pid = node.cri().pid(running)?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let status = node.cri().container(running)?;
        Ok(Self {
            pid,
            start: rest.split_whitespace().nth(19).unwrap_or_default().to_owned(),
            log: fs::read(&status.log_path).with_context(|| format!("read {}", status.log_path))?,
            running: status,
            ended: node.cri().container(ended)?,
            sandbox: node.cri().pod(&pod.id)?,
        })
    }
}

/// The sandbox's `info.pid`.
fn monitor(node: &Node, pod: &Pod) -> Result<i32> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = node.cri().pod_sandbox_status(request)?.info;
    let value: serde_json::Value = serde_json::from_str(info.get("info").context("no key info")?)?;
    value["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("no pid of a monitor")
}
