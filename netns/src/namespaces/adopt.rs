//! Namespaces that were made before anybody wanted them, given to the one who does.
//!
//! It must not know how many there are, or what else was done to them.

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns};

use super::{CreateError, Created, NamespaceError, Request, check, furnish, on_fresh_thread};

/// [`super::create`], but for the making: enters the namespaces of `created` on a fresh thread, which are used for
/// nothing yet, gives them host name and sysctls, pins them, and runs `inside` there. The loopback is up already.
///
/// # Errors
/// Whatever fails, `inside` included, pins made here are undone, and the namespaces end with their descriptors.
/// [`NamespaceError::Request`] when `created` is not what the request says.
pub fn adopt<T: Send, E: Send>(
    created: Created,
    request: &Request<'_>,
    inside: impl FnOnce(&mut Created) -> Result<T, E> + Send,
) -> Result<(Created, T), CreateError<E>> {
    let sysctls = check(request)?;
    let has = (created.net.is_some(), created.ipc.is_some(), created.uts.is_some());
    if request.origin.is_some() || has != (request.net, request.ipc, request.uts) {
        let reason = "the namespaces that were made before are others";
        return Err(NamespaceError::Request { reason }.into());
    }
    on_fresh_thread(move || {
        let mut created = created;
        enter(&created.net, CloneFlags::CLONE_NEWNET)?;
        enter(&created.ipc, CloneFlags::CLONE_NEWIPC)?;
        enter(&created.uts, CloneFlags::CLONE_NEWUTS)?;
        let pinned = furnish(request, &sysctls)?;
        let value = inside(&mut created).map_err(CreateError::Inside)?;
        pinned.keep();
        Ok((created, value))
    })?
}

/// Moves the calling thread into a namespace, if there is one.
fn enter(namespace: &Option<OwnedFd>, kind: CloneFlags) -> Result<(), NamespaceError> {
    let Some(namespace) = namespace else { return Ok(()) };
    setns(namespace.as_fd(), kind).map_err(|source| NamespaceError::Call {
        call: "setns",
        object: format!("{kind:?}"),
        source,
    })
}
