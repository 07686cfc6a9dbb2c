//! Writing limits: all of them, or none.
//!
//! Must not know: how they were asked for.

use super::limits::{Resources, Setting};
use super::{CgroupError, files};
use crisp_sys::Errno;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Limits that were written; knows what was there before.
#[derive(Debug)]
pub struct Applied {
    dir: OwnedFd,
    /// File and value, in the order of writing.
    before: Vec<(String, String)>,
}

impl Applied {
    /// Puts back what was there before. As good as it gets: the kernel accepted these values once.
    pub fn put_back(self) {
        restore(self.dir.as_fd(), &self.before);
    }
}

fn restore(dir: BorrowedFd<'_>, before: &[(String, String)]) {
    for (file, value) in before.iter().rev() {
        let _restored = files::write(dir, file, value);
    }
}

/// Applies everything or nothing.
pub(super) fn apply(
    dir: BorrowedFd<'_>,
    location: &Path,
    resources: &Resources,
) -> Result<Applied, CgroupError> {
    let sys = |call, errno| CgroupError::sys(call, location, errno);
    let mut settings = resources.settings()?;
    let own = dir.try_clone_to_owned().map_err(|_| sys("dup", Errno::EMFILE))?;
    let mut applied = Applied { dir: own, before: Vec::new() };
    if settings.is_empty() {
        return Ok(applied);
    }
    let available = files::words(dir, "cgroup.controllers")
        .map_err(|errno| CgroupError::sys("read", &location.join("cgroup.controllers"), errno))?;
    drop_unused_hugepages(&mut settings, &available);
    if let Some(setting) = settings.iter().find(|setting| !available.contains(setting.controller())) {
        let Setting { field, file, .. } = setting.clone();
        return Err(CgroupError::MissingController {
            controller: setting.controller().to_owned(),
            field,
            file,
        });
    }
    for setting in &settings {
        if let Err((value, errno)) = change(dir, setting, &mut applied.before) {
            restore(dir, &applied.before);
            let (field, file) = (setting.field.clone(), location.join(&setting.file));
            return Err(CgroupError::Limit { field, file, value, errno });
        }
    }
    Ok(applied)
}

/// kubelet names every page size, with 0 for those that a container does not use. Without the controller none can be
/// used by anybody, which is what was asked for.
pub(super) fn drop_unused_hugepages(settings: &mut Vec<Setting>, available: &BTreeSet<String>) {
    let huge = |setting: &Setting| setting.controller() == "hugetlb";
    if !available.contains("hugetlb") && settings.iter().all(|setting| !huge(setting) || setting.value == "0")
    {
        settings.retain(|setting| !huge(setting));
    }
}

/// Writes one setting and notes in `before` how to undo it; an error carries the value that was refused.
fn change(
    dir: BorrowedFd<'_>,
    setting: &Setting,
    before: &mut Vec<(String, String)>,
) -> Result<(), (String, Errno)> {
    let Setting { file, value, optional, .. } = setting;
    let refused = |errno| (value.clone(), errno);
    let present = match files::read(dir, file) {
        Err(Errno::ENOENT) if *optional => return Ok(()),
        answer => answer.map_err(refused)?,
    };
    // A "nested keyed" file (io.max) has a line for each device; the others have a single one.
    let key = value.split_ascii_whitespace().next().filter(|_| file.starts_with("io."));
    let old = match key {
        Some(key) => present
            .lines()
            .find(|old| old.split_ascii_whitespace().next() == Some(key))
            .map_or_else(|| default_of(file, key), str::to_owned),
        None => present.trim_end().to_owned(),
    };
    files::write(dir, file, value).map_err(refused)?;
    before.push((file.clone(), old));
    Ok(())
}

/// The line that takes a device out of a file of the io controller.
fn default_of(file: &str, key: &str) -> String {
    match file {
        "io.max" => format!("{key} rbps=max wbps=max riops=max wiops=max"),
        "io.latency" => format!("{key} target=0"),
        _ => format!("{key} default"),
    }
}
