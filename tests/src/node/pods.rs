//! Sandboxes and containers of a [`Node`], made and ended with as few words as a test can do with.
//!
//! Must not know: how the daemon is run.

use anyhow::{Context, Result};
use crisp_proto::runtime::v1 as cri;

use super::Node;
use crate::wait;

/// A sandbox a test has made.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// As it was asked for.
    pub config: cri::PodSandboxConfig,
}

impl Node {
    /// A sandbox configuration for this node, in a cgroup of its own below the node's.
    pub fn pod_config(&self, name: &str) -> cri::PodSandboxConfig {
        let parent = self.cgroup_below(&format!("pod-{name}"));
        crate::cri::pod_config(name, &parent, &self.logs())
    }

    /// Runs a sandbox with nothing special.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn run_pod(&self, name: &str) -> Result<Pod> {
        self.run_pod_as(self.pod_config(name))
    }

    /// Runs a sandbox.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn run_pod_as(&self, config: cri::PodSandboxConfig) -> Result<Pod> {
        let id = self.cri().run_pod(&config).context("RunPodSandbox")?;
        Ok(Pod { id, config })
    }

    /// Creates and starts a container of `pod` with its own PID namespace; returns its id.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn launch(&self, pod: &Pod, name: &str, image: &str, command: &[&str]) -> Result<String> {
        self.launch_as(pod, &crate::cri::container_config(name, image, command))
    }

    /// Creates and starts a container of `pod`; returns its id.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn launch_as(&self, pod: &Pod, config: &cri::ContainerConfig) -> Result<String> {
        let id = self.cri().create(&pod.id, config, &pod.config).context("CreateContainer")?;
        self.cri().start(&id).context("StartContainer")?;
        Ok(id)
    }

    /// Waits until a container has ended and returns its status.
    ///
    /// # Errors
    /// The daemon's answer, or the container does not end within [`wait::LONG`].
    pub fn wait_for_exit(&self, id: &str) -> Result<cri::ContainerStatus> {
        wait::until("the container to end", wait::LONG, || {
            let status = self.cri().container(id).map_err(|status| status.to_string())?;
            if status.state() == cri::ContainerState::ContainerExited {
                Ok(status)
            } else {
                Err(format!("{status:?}"))
            }
        })
    }

    /// Stops and removes a sandbox.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn end_pod(&self, pod: &Pod) -> Result<()> {
        self.cri().stop_pod(&pod.id).context("StopPodSandbox")?;
        self.cri().remove_pod(&pod.id).context("RemovePodSandbox")
    }
}
