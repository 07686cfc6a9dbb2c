//! The folder of a played pod: volumes, logs, /etc/hosts, termination messages. It goes with the pod.
//!
//! Who removes a pod finds the folder by an annotation of its sandbox. That is text anybody with access to the runtime
//! could have written, so nothing is removed unless the folder says itself that it belongs to this very pod.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use crisp_proto::runtime::v1::PodSandbox;
use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use crate::manifest::Pod;

/// Annotation of the sandbox with the folder's path.
pub(super) const ANNOTATION: &str = "crisp.play/folder";

/// File in the folder with the pod's uid: what makes it a pod's folder.
const MARK: &str = "pod-uid";

/// File that appears when the pod is being taken down: no restarts any more.
const ENDING: &str = "ending";

/// A pod's folder.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    logs: PathBuf,
    /// The logs are elsewhere, by the user's wish; they stay.
    foreign_logs: bool,
}

/// A new pod's uid.
pub(super) fn new_uid() -> Result<String> {
    let file = "/proc/sys/kernel/random/uuid";
    Ok(fs::read_to_string(file).with_context(|| format!("read {file}"))?.trim().to_owned())
}

fn make(path: &Path, mode: u32) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.with_context(|| format!("make the folder {}", path.display()))
}

impl Folder {
    /// Makes the folder of a new pod; all of it or nothing.
    pub(super) fn create(base: &Path, pod: &Pod, uid: &str, logs: Option<&Path>) -> Result<Self> {
        let base = std::path::absolute(base).with_context(|| format!("resolve {}", base.display()))?;
        let name = format!("{}{uid}", prefix(pod));
        let path = base.join(&name);
        let own = path.join("logs");
        let foreign =
            logs.map(|logs| std::path::absolute(logs).with_context(|| format!("resolve {}", logs.display())));
        let folder = match foreign.transpose()? {
            Some(logs) => Self { path, logs: logs.join(name), foreign_logs: true },
            None => Self { path, logs: own, foreign_logs: false },
        };
        match folder.fill(uid) {
            Ok(()) => Ok(folder),
            Err(error) => match folder.remove() {
                Ok(()) => Err(error),
                Err(also) => Err(error.context(format!("{} stays ({also:#})", folder.path.display()))),
            },
        }
    }

    fn fill(&self, uid: &str) -> Result<()> {
        make(&self.path, 0o750)?;
        let mark = self.path.join(MARK);
        fs::write(&mark, uid).with_context(|| format!("write {}", mark.display()))?;
        make(&self.logs, 0o755)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the pod's log files are.
    pub(super) fn logs(&self) -> &Path {
        &self.logs
    }

    /// The file that containers see as /etc/hosts.
    pub(super) fn hosts(&self) -> PathBuf {
        self.path.join("etc-hosts")
    }

    /// Makes the place of a volume.
    pub(super) fn volume(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join("volumes").join(name);
        make(&path, 0o755)?;
        // Any user of a container may write, whatever the umask is here.
        set_mode(&path, 0o777)?;
        Ok(path)
    }

    /// The file that a run of a container may leave its last words in. Anybody in the container may write.
    pub(super) fn termination_message(&self, container: &str, attempt: u32) -> Result<PathBuf> {
        let path = self.path.join("termination").join(container);
        make(&path, 0o755)?;
        let file = path.join(attempt.to_string());
        fs::write(&file, "").with_context(|| format!("write {}", file.display()))?;
        set_mode(&file, 0o666)?;
        Ok(file)
    }

    /// Forgets a run of a container: its log and its last words.
    pub(super) fn forget(&self, container: &str, attempt: u32) {
        // What is left behind by an error here goes with the folder.
        let _ = fs::remove_file(self.logs.join(container).join(format!("{attempt}.log")));
        let _ = fs::remove_file(self.path.join("termination").join(container).join(attempt.to_string()));
    }

    /// Whether somebody takes the pod down.
    pub(super) fn ending(&self) -> bool {
        self.path.join(ENDING).exists()
    }

    /// Removes the folder, and the tmpfs volumes mounted in it. It may be gone already.
    pub(super) fn remove(&self) -> Result<()> {
        remove(&self.path)?;
        if !self.foreign_logs {
            return Ok(());
        }
        // Empty ones only: the logs themselves stay.
        let _ = fs::remove_dir(&self.logs);
        Ok(())
    }
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))
}

fn prefix(pod: &Pod) -> String {
    format!("{}_{}_", pod.namespace(), pod.metadata.name)
}

/// The folder that belongs to a sandbox, if it was made by `crisp play` and is still there.
fn of(sandbox: &PodSandbox) -> Option<PathBuf> {
    let path = PathBuf::from(sandbox.annotations.get(ANNOTATION)?);
    let uid = &sandbox.metadata.as_ref()?.uid;
    (path.is_absolute() && marked(&path, uid)).then_some(path)
}

fn marked(path: &Path, uid: &str) -> bool {
    !uid.is_empty() && fs::read_to_string(path.join(MARK)).is_ok_and(|mark| mark == uid)
}

/// Lets whoever plays the pod know that ended containers are not to be started again.
pub(crate) fn mark_ending(sandbox: &PodSandbox) -> Result<()> {
    let Some(path) = of(sandbox) else { return Ok(()) };
    match fs::write(path.join(ENDING), "") {
        // Removed between the look and the write: nobody plays it any more.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("write in {}", path.display())),
    }
}

/// Removes the folder of a sandbox that is gone.
pub(crate) fn remove_of(sandbox: &PodSandbox) -> Result<()> {
    match of(sandbox) {
        Some(path) => remove(&path),
        None => Ok(()),
    }
}

/// Removes every folder of a pod; how many there were.
pub(super) fn remove_all_of(base: &Path, pod: &Pod) -> Result<usize> {
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).with_context(|| format!("read the folder {}", base.display())),
    };
    let mut count = 0;
    for entry in entries {
        let entry = entry.with_context(|| format!("read the folder {}", base.display()))?;
        let name = entry.file_name();
        let uid = name.to_str().and_then(|name| name.strip_prefix(&prefix(pod)));
        if uid.is_some_and(|uid| marked(&entry.path(), uid)) {
            remove(&entry.path())?;
            count += 1;
        }
    }
    Ok(count)
}

fn remove(path: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    for target in mounts_below(&mounts, path) {
        match unmount(&target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            // Who plays a pod and who takes it down may both be here; the look below tells whether it is done.
            Err(Errno::INVAL | Errno::NOENT) => {}
            other => other.with_context(|| format!("unmount {}", target.display()))?,
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    if let Some(target) = mounts_below(&mounts, path).first() {
        bail!("{} is still mounted, so {} stays", target.display(), path.display());
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => {
            // The parent goes with its last pod; others may be using it, then it is not empty.
            let _ = path.parent().map(fs::remove_dir);
            Ok(())
        }
    }
}

/// Mount points below a folder, the innermost first. The paths are ours and hold no blank.
fn mounts_below(mountinfo: &str, folder: &Path) -> Vec<PathBuf> {
    let targets = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<_> = targets.filter(|target| target.starts_with(folder) && target != folder).collect();
    below.reverse();
    below
}

#[cfg(test)]
mod tests {
    use crisp_proto::runtime::v1::PodSandboxMetadata;

    use super::*;

    fn pod() -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = "web".into();
        pod
    }

    fn sandbox(path: &Path, uid: &str) -> PodSandbox {
        PodSandbox {
            metadata: Some(PodSandboxMetadata { uid: uid.into(), ..Default::default() }),
            annotations: [(ANNOTATION.to_owned(), path.display().to_string())].into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_folder_goes_with_its_pod_and_its_parent_with_the_last_one() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("data");
        let folder = Folder::create(&data, &pod(), "u-1", None).unwrap();
        assert!(folder.path().ends_with("default_web_u-1"));
        assert_eq!(fs::metadata(folder.volume("v").unwrap()).unwrap().permissions().mode() & 0o777, 0o777);
        let words = folder.termination_message("c", 0).unwrap();
        assert_eq!(fs::metadata(words).unwrap().permissions().mode() & 0o777, 0o666);
        remove_of(&sandbox(folder.path(), "u-1")).unwrap();
        assert!(!data.exists());
        folder.remove().unwrap();
    }

    #[test]
    fn a_folder_of_somebody_else_is_never_removed() {
        let base = tempfile::tempdir().unwrap();
        let folder = Folder::create(base.path(), &pod(), "u-1", None).unwrap();
        remove_of(&sandbox(folder.path(), "u-2")).unwrap();
        remove_of(&sandbox(base.path(), "u-1")).unwrap();
        remove_of(&sandbox(base.path(), "")).unwrap();
        mark_ending(&sandbox(folder.path(), "u-2")).unwrap();
        assert!(folder.path().exists() && !folder.ending());
        mark_ending(&sandbox(folder.path(), "u-1")).unwrap();
        assert!(folder.ending());
    }

    #[test]
    fn folders_without_a_sandbox_are_found_by_name() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("data");
        assert_eq!(remove_all_of(&data, &pod()).unwrap(), 0);
        Folder::create(&data, &pod(), "u-1", None).unwrap();
        Folder::create(&data, &pod(), "u-2", None).unwrap();
        fs::create_dir(data.join("default_web_other")).unwrap();
        assert_eq!(remove_all_of(&data, &pod()).unwrap(), 2);
        assert!(data.join("default_web_other").exists());
    }

    #[test]
    fn the_users_log_folder_keeps_its_logs() {
        let base = tempfile::tempdir().unwrap();
        let logs = base.path().join("logs");
        let folder = Folder::create(&base.path().join("data"), &pod(), "u", Some(&logs)).unwrap();
        fs::write(folder.logs().join("x.log"), "x").unwrap();
        folder.remove().unwrap();
        assert!(logs.join("default_web_u/x.log").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_made_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let (data, file) = (base.path().join("data"), base.path().join("file"));
        fs::write(&file, "").unwrap();
        let error = Folder::create(&data, &pod(), "u", Some(&file.join("x"))).unwrap_err();
        assert!(format!("{error:#}").contains("file/x"), "{error:#}");
        assert!(!data.exists());
    }

    #[test]
    fn mounts_below_a_folder_come_innermost_first() {
        let text = "1 0 0:1 / /a rw - x x rw\n2 1 0:2 / /a/b rw - x x rw\n3 2 0:3 / /a/b/c rw - x x rw\n4 0 0:4 / /ab rw - x x rw\n";
        assert_eq!(mounts_below(text, Path::new("/a")), [PathBuf::from("/a/b/c"), PathBuf::from("/a/b")]);
    }
}
