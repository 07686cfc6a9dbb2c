//! `crisp play` in the background of a test.
//!
//! Must not know: which manifest it is.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::node::Node;
use crisp_tests::{place, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A manifest being played.
#[derive(Debug)]
pub(crate) struct Play<'a> {
    node: &'a Node,
    child: Child,
    manifest: String,
    output: PathBuf,
}

/// The path of one of the repository's example manifests.
pub(crate) fn example(name: &str) -> Result<String> {
    let path = place::top().join("examples").join(name);
    ensure!(path.is_file(), "no {}", path.display());
    Ok(path.display().to_string())
}

impl<'a> Play<'a> {
    /// Plays an example manifest.
    pub(crate) fn example(node: &'a Node, name: &str) -> Result<Self> {
        Self::start(node, example(name)?)
    }

    /// Plays the manifest at path `manifest`.
    pub(crate) fn start(node: &'a Node, manifest: String) -> Result<Self> {
        let output = node.folder().join("play.out");
        let log = File::create(&output)?;
        let child = node
            .crisp_command()
            .args(["play", &manifest])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start crisp play")?;
        Ok(Self { node, child, manifest, output })
    }

    /// What it has printed so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Waits until container `name` is in `state`, with at least `attempt` restarts, and returns its status. The newest
    /// attempt counts.
    pub(crate) fn wait_for(
        &mut self,
        name: &str,
        state: cri::ContainerState,
        attempt: u32,
    ) -> Result<cri::ContainerStatus> {
        let (node, output) = (self.node, self.output.clone());
        let found = wait::until(&format!("container {name} to be {state:?}"), wait::LONG, || {
            let all = node.cri().containers().map_err(|status| status.to_string())?;
            let attempt_of = |c: &cri::Container| c.metadata.as_ref().map_or(0, |m| m.attempt);
            let of_name = all.iter().filter(|c| c.metadata.as_ref().is_some_and(|m| m.name == name));
            let newest = of_name.max_by_key(|c| attempt_of(c)).ok_or("not there")?;
            if newest.state() == state && attempt_of(newest) >= attempt {
                node.cri().container(&newest.id).map_err(|status| status.to_string())
            } else {
                Err(format!("{newest:?}"))
            }
        });
        found.with_context(|| format!("crisp play said: {}", fs::read_to_string(output).unwrap_or_default()))
    }

    /// Waits until container `name` runs; its id.
    pub(crate) fn running(&mut self, name: &str) -> Result<String> {
        Ok(self.wait_for(name, cri::ContainerState::ContainerRunning, 0)?.id)
    }

    /// Waits until container `name` has ended; its status.
    pub(crate) fn ended(&mut self, name: &str) -> Result<cri::ContainerStatus> {
        self.wait_for(name, cri::ContainerState::ContainerExited, 0)
    }

    /// The log of a container, as `crisp logs` prints it: first what it said on stdout, then what on stderr.
    pub(crate) fn logs(&self, pod: &str, container: &str) -> Result<String> {
        let printed = self.node.crisp(&["logs", pod, "-c", container])?;
        ensure!(printed.status.success(), "{printed}");
        Ok(printed.stdout + &printed.stderr)
    }

    /// The id of the one sandbox there is.
    pub(crate) fn sandbox(&self) -> Result<String> {
        let pods = self.node.cri().pods()?;
        ensure!(pods.len() == 1, "{pods:?}");
        Ok(pods[0].id.clone())
    }

    /// Waits until `crisp play` has ended by itself.
    pub(crate) fn wait_for_end(&mut self) -> Result<ExitStatus> {
        let output = self.output.clone();
        let child = &mut self.child;
        let ended = wait::until("crisp play to end", wait::LONG, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        ended.with_context(|| format!("crisp play said: {}", fs::read_to_string(output).unwrap_or_default()))
    }

    /// Presses Ctrl-C and waits for the end: the pod has to be gone then.
    pub(crate) fn interrupt(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT).context("send SIGINT")?;
        self.wait_for_end()?;
        let pods = self.node.cri().pods()?;
        ensure!(pods.is_empty(), "Ctrl-C left {pods:?}; crisp play said: {}", self.said());
        Ok(())
    }

    /// `crisp rm --force` of the one pod there is, for tests that are not about its stopping: the pod has to be gone then,
    /// and the player in the foreground ends.
    pub(crate) fn end(mut self) -> Result<()> {
        self.node.crisp(&["rm", "--force", &self.sandbox()?])?.ok()?;
        let pods = self.node.cri().pods()?;
        ensure!(pods.is_empty(), "rm left {pods:?}");
        self.wait_for_end()?;
        // The pod's folder is the player's: it goes away with the manifest.
        self.node.crisp(&["play", "--down", &self.manifest])?.ok()?;
        Ok(())
    }

    /// `crisp play --down` of the same manifest: the pod has to be gone then, and the player in the foreground ends.
    pub(crate) fn down(mut self) -> Result<()> {
        self.node.crisp(&["play", "--down", &self.manifest])?.ok()?;
        let pods = self.node.cri().pods()?;
        ensure!(pods.is_empty(), "--down left {pods:?}");
        self.wait_for_end()?;
        Ok(())
    }
}

impl Drop for Play<'_> {
    /// After a failed test only: both calls do nothing for a process that has ended.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
