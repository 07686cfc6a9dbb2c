//! Removing: what runs is killed, the monitor forgets it, and its cgroup, writable layer and directory go.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use crisp_monitor::wire::{Call, ContainerRef};
use tokio::{sync::watch, time::timeout};

use super::stop;
use crate::{
    error::{Class, RequestError, Stage},
    id::Id,
    link::Link,
    node::{Node, blocking},
    record::{ContainerPhase, ContainerRecord},
};

/// How long the monitor may take to let go of a container.
const MONITOR_PATIENCE: Duration = Duration::from_secs(10);

/// Removes a container. Log files are kubelet's and stay.
///
/// # Errors
/// The first thing that could not be taken away; a repeated call goes on there.
pub async fn container(
    node: &Arc<Node>,
    link: Option<&Link>,
    record: &ContainerRecord,
    mut ended: watch::Receiver<bool>,
) -> Result<(), RequestError> {
    let stage = format!("remove container {}", record.id.short(12));
    // Whatever the record says: nothing of a removed container may run on.
    stop::kill(node, record).await?;
    if matches!(record.phase, ContainerPhase::Running { .. }) {
        stop::wait_killed(node, record, &mut ended).await?;
    }
    forget_in_monitor(link, &record.id).await.map_err(|error| error.at(&stage))?;
    traces(node, &record.sandbox, &record.id, &record.cgroup).await.map_err(|error| error.at(stage))
}

/// The monitor kills what was created and never started, and lets go of the root mount.
///
/// # Errors
/// It has not let go of it after [`MONITOR_PATIENCE`], or says why it cannot.
pub(super) async fn forget_in_monitor(link: Option<&Link>, id: &Id) -> Result<(), RequestError> {
    let Some(link) = link else { return Ok(()) };
    let asked = link.call(Call::Remove(ContainerRef { container: id.to_string() }), &[]);
    match timeout(MONITOR_PATIENCE, asked).await {
        Ok(Ok(_)) => Ok(()),
        // It never knew it, or is gone itself: there is nothing to let go of.
        Ok(Err(error)) if matches!(error.class, Class::NotFound | Class::Unavailable) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(RequestError::new(
            Class::Unavailable,
            format!(
                "the pod's monitor has not answered for {MONITOR_PATIENCE:?}; stopping the sandbox ends it"
            ),
        )),
    }
}

/// Removes what a container leaves on the host.
///
/// # Errors
/// See [`container`].
pub async fn traces(node: &Arc<Node>, sandbox: &Id, id: &Id, cgroup: &str) -> Result<(), RequestError> {
    let (task_node, cgroup) = (node.clone(), cgroup.to_owned());
    blocking(move || task_node.cgroups.remove(&cgroup).stage(format_args!("remove cgroup {cgroup}"))).await?;
    node.store.release(id.as_str()).await.stage("remove its writable layer")?;
    let dir = node.state.pod(sandbox).container(id);
    blocking(move || remove_directory(&dir).stage(format_args!("remove {}", dir.display()))).await
}

/// The end of a container that was killed for its removal may be recorded while its directory is emptied: once, so that
/// another round finds nothing new.
fn remove_directory(dir: &Path) -> io::Result<()> {
    let mut rounds = 0;
    loop {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && rounds < 3 => rounds += 1,
            other => return other,
        }
    }
}
