//! SELinux on this host: whether it is on, and which paths nobody may relabel.
//!
//! Must not know: who asks.

use std::path::Path;

/// There when the kernel uses SELinux and has a policy.
const ENFORCE: &str = "/sys/fs/selinux/enforce";

/// Directories of the system, and everything below the last group: relabelling one of them for a container would take
/// it from the host (CVE-2021-43816).
const WHOLE: [&str; 9] = ["/", "/home", "/media", "/mnt", "/opt", "/run", "/srv", "/tmp", "/var"];
const TREES: [&str; 14] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/root",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/crisp",
];
/// Directories in which every host keeps what others need; what lies deeper may be a volume.
const PARENTS: [&str; 6] = ["/run/user", "/var/cache", "/var/lib", "/var/log", "/var/run", "/var/tmp"];

/// Whether the kernel uses SELinux.
#[must_use]
pub fn is_enabled() -> bool {
    Path::new(ENFORCE).exists()
}

/// Whether a path, absolute and without links, may be given to containers by relabelling it.
#[must_use]
pub fn may_relabel(path: &Path) -> bool {
    let exact = WHOLE.iter().chain(&PARENTS).any(|kept| path == Path::new(kept));
    !exact && !TREES.iter().any(|kept| path.starts_with(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r37_paths_of_the_system_are_never_relabelled() {
        for path in
            ["/", "/etc", "/etc/passwd", "/usr/share/x", "/var", "/var/lib", "/proc/1", "/root", "/tmp"]
        {
            assert!(!may_relabel(Path::new(path)), "{path}");
        }
        for path in ["/var/lib/kubelet/pods/x/volumes/y", "/data", "/home/me/volume", "/tmp/x", "/etcetera"] {
            assert!(may_relabel(Path::new(path)), "{path}");
        }
    }
}
