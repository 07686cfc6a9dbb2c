//! Containers' cgroups that systemd makes: scopes.
//!
//! A scope is made around a process that exists, with `Delegate=yes`: what is below it is crisp's, as are its files.
//! systemd takes it away some time after its last process, without being asked.

use std::time::{Duration, Instant};

use crisp_runtime::cgroup::{Cgroup, CgroupError, CgroupPath, Resources};

use super::{Cgroups, PATIENCE, is_slice, property::properties};
use crate::{
    error::{RequestError, Stage},
    systemd::{Property, SystemdError, Value, unit},
};

/// How long systemd may take to notice that a scope is empty, before it is told.
const VANISH: Duration = Duration::from_secs(2);

/// Whether the cgroup at `path` is a scope of crisp's.
pub(super) fn is_scope(path: &str) -> bool {
    let name = unit::name_of(path);
    name.starts_with("crisp-") && name.ends_with(".scope")
}

impl Cgroups {
    /// Has systemd make the scope for `path` around process `pid`, and puts the limits on it. Blocks.
    ///
    /// # Errors
    /// systemd refuses or does not answer; a limit cannot hold.
    pub fn start_scope(&self, path: &str, pid: i32, resources: &Resources) -> Result<Cgroup, RequestError> {
        let name = unit::name_of(path);
        let mut list = scope_properties(path, pid)?;
        for (key, value) in properties(resources)? {
            // A later one of the same name would do as well; so it is clear which one holds.
            list.retain(|(present, _)| *present != key);
            list.push((key, value));
        }
        match self.wait(self.systemd.start_scope(name, &list)) {
            // An earlier attempt whose answer was lost.
            Err(error) if error.is("UnitExists") => {}
            started => started.stage("make its scope")?,
        }
        // systemd has been seen to report success without it.
        self.check_place(pid, path)?;
        let cgroup = self.open_cgroup(path).stage("open its scope")?;
        self.limit(&cgroup, resources).map_err(super::limit_error)?;
        Ok(cgroup)
    }

    fn check_place(&self, pid: i32, path: &str) -> Result<(), RequestError> {
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).stage("look at its cgroup")?;
        let place = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        if place == path {
            return Ok(());
        }
        Err(RequestError::unknown(format!("make its scope: it is in {place:?}, and not in {path}")))
    }

    /// Tells systemd of limits.
    pub(super) fn tell(&self, path: &str, resources: &Resources) -> Result<(), RequestError> {
        let list = properties(resources)?;
        if list.is_empty() {
            return Ok(());
        }
        self.wait(self.systemd.set_properties(unit::name_of(path), &list)).stage("tell systemd")
    }

    /// Waits until a scope is gone. Its processes must have been killed.
    pub(super) fn remove_scope(&self, path: &str) -> Result<(), CgroupError> {
        let cgroup = match self.open_cgroup(path) {
            Err(error) if error.is_not_found() => return Ok(()),
            opened => opened?,
        };
        cgroup.wait_empty(PATIENCE)?;
        if cgroup.wait_until_gone(VANISH)? {
            return Ok(());
        }
        match self.wait(self.systemd.stop(unit::name_of(path))) {
            Ok(()) => cgroup.wait_until_gone(VANISH).map(drop)?,
            // No systemd: what is left is a plain cgroup.
            Err(error) => tracing::warn!(path, %error, "scope"),
        }
        cgroup.remove(Duration::ZERO)
    }

    /// Stops the slices from `path` up to `top`, both included, as far as there is nothing in them.
    pub(super) fn stop_slices(&self, path: &CgroupPath, top: &CgroupPath) -> Result<(), RequestError> {
        let depth = top.components().count();
        let mut path = path.clone();
        while path.components().count() >= depth {
            let text = path.to_string();
            let below = self.children(&text).stage(format_args!("look into {text}"))?;
            if !below.is_empty() {
                return Ok(());
            }
            let Some(name) = path.name() else { return Ok(()) };
            self.wait(self.systemd.stop(name)).stage("stop its slice")?;
            if let Ok(cgroup) = self.open_cgroup(&text) {
                cgroup.wait_until_gone(VANISH).stage("wait for its slice")?;
            }
            let Some(parent) = path.parent() else { return Ok(()) };
            path = parent;
        }
        Ok(())
    }

    /// Runs what speaks with systemd to its end. Only on threads that may block.
    fn wait<T>(&self, work: impl Future<Output = Result<T, SystemdError>>) -> Result<T, SystemdError> {
        let begin = Instant::now();
        let result = self.runtime.block_on(work);
        let millis = begin.elapsed().as_millis();
        if millis >= 2000 {
            tracing::warn!(millis, "systemd is slow");
        } else {
            tracing::debug!(millis, "systemd");
        }
        result
    }
}

/// What every scope has.
fn scope_properties(path: &str, pid: i32) -> Result<Vec<Property>, RequestError> {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    if !is_slice(parent) {
        return Err(RequestError::unknown(format!("{path} is no place for a scope")));
    }
    let pid = u32::try_from(pid).stage("pid")?;
    Ok(vec![
        ("Description", Value::Text(format!("crisp {}", unit::name_of(path)))),
        ("Slice", Value::Text(unit::name_of(parent).to_owned())),
        ("PIDs", Value::Pids(vec![pid])),
        ("Delegate", Value::Bool(true)),
        // Also one that ended badly, or its name would stay taken.
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
        // Containers end when kubelet or crisp says so, not with the first stage of a shutdown.
        ("DefaultDependencies", Value::Bool(false)),
        // systemd's own limit for units without one is for services.
        ("TasksMax", Value::Number(u64::MAX)),
    ])
}
