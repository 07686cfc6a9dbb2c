//! Volumes of a pod on the host: empty folders, tmpfs, and paths of the host that are checked for their type.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount};

use super::folder::{self, Folder};
use crate::manifest::{
    Pod,
    model::{EmptyDir, HostPath},
};

/// Name of a volume -> path on the host.
pub(super) type Sources = BTreeMap<String, PathBuf>;

/// Makes the volumes of a pod.
///
/// # Errors
/// A volume cannot be made, or a path of the host is not what the manifest says; the volume is named.
pub(super) fn prepare(pod: &Pod, folder: &Folder) -> Result<Sources> {
    let mut sources = Sources::new();
    for volume in &pod.spec.volumes {
        let made = match (&volume.empty_dir, &volume.host_path) {
            (Some(empty), _) => empty_dir(empty, &volume.name, pod, folder),
            (None, Some(host)) => host_path(host),
            (None, None) => continue,
        };
        sources.insert(volume.name.clone(), made.with_context(|| format!("volume {}", volume.name))?);
    }
    Ok(sources)
}

fn empty_dir(empty: &EmptyDir, name: &str, pod: &Pod, folder: &Folder) -> Result<PathBuf> {
    let path = folder.volume(name)?;
    if empty.medium.as_deref() == Some("Memory") {
        // Without a limit the kernel allows half of the host's memory.
        let size = empty.size_limit.map(|limit| format!(",size={}", limit.units())).unwrap_or_default();
        let data = CString::new(format!("mode=0777{size}"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", &path, "tmpfs", flags, data.as_c_str())
            .with_context(|| format!("mount a tmpfs on {}", path.display()))?;
    }
    if let Some(group) = pod.spec.security_context.fs_group {
        chown(&path, None, Some(u32::try_from(group)?))
            .with_context(|| format!("give {} to the group {group}", path.display()))?;
        // New files belong to the group, too.
        folder::set_mode(&path, 0o2777)?;
    }
    Ok(path)
}

fn host_path(host: &HostPath) -> Result<PathBuf> {
    let path = Path::new(&host.path);
    let shown = path.display();
    match host.kind.as_deref().unwrap_or_default() {
        "DirectoryOrCreate" if missing(path) => {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
            made.with_context(|| format!("make the folder {shown}"))?;
        }
        "FileOrCreate" if missing(path) => {
            let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
            made.with_context(|| format!("make the file {shown}"))?;
        }
        _ => {}
    }
    let Some((wanted, fits)) = expectation(host.kind.as_deref().unwrap_or_default()) else {
        return Ok(path.into());
    };
    let kind = fs::metadata(path).with_context(|| format!("hostPath {shown}"))?.file_type();
    if !fits(&kind) {
        bail!("hostPath {shown} is not {wanted}");
    }
    Ok(path.into())
}

fn missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// What a path must be: words, and whether a file is that.
type Expectation = (&'static str, fn(&fs::FileType) -> bool);

/// What a path must be, in words and as a test; nothing for the type that is not checked.
fn expectation(kind: &str) -> Option<Expectation> {
    match kind {
        "Directory" | "DirectoryOrCreate" => Some(("a directory", fs::FileType::is_dir)),
        "File" | "FileOrCreate" => Some(("a file", fs::FileType::is_file)),
        "Socket" => Some(("a socket", fs::FileType::is_socket)),
        "CharDevice" => Some(("a character device", fs::FileType::is_char_device)),
        "BlockDevice" => Some(("a block device", fs::FileType::is_block_device)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &Path, kind: &str) -> Result<PathBuf> {
        host_path(&HostPath { path: path.display().to_string(), kind: Some(kind.into()) })
    }

    #[test]
    fn host_paths_are_what_the_manifest_says() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(check(base.path(), "Directory").is_ok() && check(&file, "File").is_ok());
        assert!(check(Path::new("/dev/null"), "CharDevice").is_ok());
        for (path, kind, words) in [
            (&file, "Directory", "is not a directory"),
            (&file, "Socket", "is not a socket"),
            (&file, "BlockDevice", "is not a block device"),
            (&file, "DirectoryOrCreate", "is not a directory"),
            (&base.path().to_path_buf(), "File", "is not a file"),
        ] {
            assert!(check(path, kind).unwrap_err().to_string().ends_with(words), "{kind}");
        }
        assert!(
            format!("{:#}", check(&base.path().join("no"), "File").unwrap_err()).contains("No such file")
        );
        assert!(check(&base.path().join("no"), "").is_ok(), "not checked");
    }

    #[test]
    fn what_may_be_made_is_made() {
        let base = tempfile::tempdir().unwrap();
        assert!(check(&base.path().join("a/b"), "DirectoryOrCreate").unwrap().is_dir());
        assert!(check(&base.path().join("f"), "FileOrCreate").unwrap().is_file());
    }

    #[test]
    fn empty_volumes_lie_in_the_pods_folder() {
        let base = tempfile::tempdir().unwrap();
        let mut pod = Pod::default();
        pod.metadata.name = "p".into();
        let folder = Folder::create(base.path(), &pod, "u", None).unwrap();
        let volume = crate::manifest::model::Volume {
            name: "data".into(),
            empty_dir: Some(EmptyDir::default()),
            host_path: None,
        };
        pod.spec.volumes.push(volume);
        let sources = prepare(&pod, &folder).unwrap();
        assert_eq!(sources["data"], folder.path().join("volumes/data"));
    }
}
