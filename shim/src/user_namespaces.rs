//! Making and finding user namespaces: one for a pod, and others for mounts with mappings of their own.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use crisp_image::Store;
use crisp_netns::namespaces::{self, Origin};
use crisp_runtime::{
    PlanError,
    userns::{Holder, IdMapping, IdMappings},
};
use crisp_sys::process::CloneFlags;

use crate::{
    convert::userns,
    error::{RequestError, Stage, chain},
    node::Node,
    pod::build,
    record::SandboxRecord,
};

/// Whether pods can have user namespaces on this node: one is made, and what a container's root needs is tried in it.
/// The reason if not.
pub(crate) fn probe(monitor: &Path, store: &Store) -> Result<(), String> {
    let some = vec![IdMapping { container: 0, host: 65536, length: 65536 }];
    let mappings = IdMappings { uids: some.clone(), gids: some };
    let kinds = CloneFlags::NEWNET | CloneFlags::NEWIPC | CloneFlags::NEWUTS;
    let holder = Holder::start(monitor, &mappings, kinds).map_err(|error| chain(&error))?;
    let namespace = holder.user_namespace().map_err(|error| chain(&error))?;
    store.try_mapped(namespace.as_fd()).map_err(|error| chain(&error))
}

/// Namespaces that a user namespace owns, while the process that made them lives.
#[derive(Debug)]
pub(crate) struct Made {
    holder: Holder,
    namespace: OwnedFd,
    root: u32,
}

impl Made {
    /// Makes a user namespace and `kinds` in it.
    ///
    /// # Errors
    /// The step that went wrong; nothing is left then.
    pub(crate) fn new(node: &Node, mappings: &IdMappings, kinds: CloneFlags) -> Result<Self, RequestError> {
        let holder = Holder::start(&node.monitor, mappings, kinds).stage(userns::FIELD)?;
        let namespace = holder.user_namespace().stage(userns::FIELD)?;
        Ok(Self { holder, namespace, root: mappings.host_uid(0).unwrap_or_default() })
    }

    /// For those who join or pin it.
    pub(crate) fn origin(&self) -> Origin<'_> {
        Origin { process: self.holder.pidfd(), user: self.namespace.as_fd(), root: self.root }
    }
}

/// A pod's user namespace.
#[derive(Debug)]
pub(crate) struct PodUser {
    mappings: IdMappings,
    namespace: OwnedFd,
}

impl PodUser {
    /// Opens the pin of a pod's user namespace; `None` when it has none.
    ///
    /// # Errors
    /// The pin is gone.
    pub(crate) fn of(node: &Node, sandbox: &SandboxRecord) -> Result<Option<Self>, RequestError> {
        let Some(mappings) = userns::of_sandbox(&sandbox.config) else { return Ok(None) };
        let pins = build::pins(node, sandbox);
        let pin = pins.user.ok_or_else(|| RequestError::unknown("the pod's user namespace has no pin"))?;
        let namespace = namespaces::open_pin(&pin).stage("user namespace")?;
        Ok(Some(Self { mappings, namespace }))
    }

    /// Its descriptor.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Its mapping.
    pub(crate) fn mappings(&self) -> &IdMappings {
        &self.mappings
    }
}

/// A user namespace with these mappings: the pod's own, or one that is made for the moment.
///
/// # Errors
/// This node has none, or the kernel refuses.
pub(crate) fn with(node: &Node, pod: Option<&PodUser>, mappings: &IdMappings) -> Result<OwnedFd, PlanError> {
    match pod.filter(|pod| pod.mappings == *mappings) {
        Some(pod) => Ok(crisp_sys::fd::duplicate(&pod.namespace)?),
        None => Ok(Holder::start(&node.monitor, mappings, CloneFlags::empty())?.user_namespace()?),
    }
}
