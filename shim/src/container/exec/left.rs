//! Cgroups of execs that have ended before their children.
//!
//! The children run on, and nobody is told when the last of them ends: their cgroups are looked at again whenever another
//! exec of that container ends, and after a start of the daemon. What tells such a cgroup from that of an exec that somebody
//! waits for is the mode of its directory, which lives as long as it does.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use crisp_runtime::cgroup::{Cgroup, CgroupError};

use super::PREFIX;
use crate::{
    cgroups::Cgroups,
    error::{RequestError, Stage},
};

/// Mode of the cgroup of an exec that has ended by itself; the kernel gives others to new ones.
const ENDED: u32 = 0o700;

/// Takes away the cgroup of an exec that has ended by itself, or marks it if it is not empty, and takes away those below
/// `container` that are empty by now. Blocks.
///
/// # Errors
/// The kernel's answer.
pub(super) fn leave(cgroups: &Cgroups, container: &str, cgroup: &Cgroup) -> Result<(), RequestError> {
    if !removed(cgroup)? {
        let mode = fs::Permissions::from_mode(ENDED);
        match fs::set_permissions(cgroup.location(), mode) {
            // The container's end has taken it away meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            marked => marked.stage("mark as ended")?,
        }
    }
    for other in execs(cgroups, container)? {
        if is_ended(&other) {
            removed(&other)?;
        }
    }
    Ok(())
}

/// Ends the execs below `container` that have not ended by themselves: nobody waits for what the daemon before this one
/// was running. One that makes trouble does not keep the others alive. Blocks.
///
/// # Errors
/// The first trouble, after everything else was done.
pub fn end_all(cgroups: &Cgroups, container: &str) -> Result<(), RequestError> {
    let (ended, running): (Vec<_>, Vec<_>) = execs(cgroups, container)?.into_iter().partition(is_ended);
    let mut result = Ok(());
    for cgroup in &running {
        result = result.and(cgroup.kill().stage("kill an exec"));
    }
    for cgroup in ended {
        result = result.and(removed(&cgroup).map(drop));
    }
    for cgroup in running {
        let path = cgroup.path.to_string();
        result = result.and(cgroups.remove(&path).stage("remove an exec's cgroup"));
    }
    result
}

/// The cgroups of execs below `container`. One that goes away meanwhile is none.
fn execs(cgroups: &Cgroups, container: &str) -> Result<Vec<Cgroup>, RequestError> {
    let names = cgroups.children(container).stage("list execs")?;
    let mut found = Vec::new();
    for name in names.iter().filter(|name| name.starts_with(PREFIX)) {
        match cgroups.open_cgroup(&format!("{container}/{name}")) {
            Err(error) if error.is_not_found() => {}
            opened => found.push(opened.stage("open an exec's cgroup")?),
        }
    }
    Ok(found)
}

fn is_ended(cgroup: &Cgroup) -> bool {
    fs::metadata(cgroup.location()).is_ok_and(|found| found.permissions().mode() & 0o777 == ENDED)
}

/// Takes the cgroup away; `false`: something runs in it.
fn removed(cgroup: &Cgroup) -> Result<bool, RequestError> {
    match cgroup.remove(Duration::ZERO) {
        Ok(()) => Ok(true),
        Err(CgroupError::Populated { .. }) => Ok(false),
        Err(error) => Err(error).stage("remove"),
    }
}
