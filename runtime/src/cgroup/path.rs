//! Places in the hierarchy.
//!
//! Must not know: where it is mounted.

use super::CgroupError;
use std::path::{Path, PathBuf};

/// A path in the cgroup hierarchy: absolute, clean, and safe to put below the mount point.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupPath {
    /// Without the leading slash; empty for the root.
    inner: String,
}

impl CgroupPath {
    /// Checks a path. Repeated and trailing slashes are dropped.
    ///
    /// # Errors
    /// [`CgroupError::Path`] when it is not absolute, has a `.` or `..` component, or holds NUL or control characters
    /// (a newline would be a second line in /proc/PID/cgroup and in every record made from it).
    pub fn new(path: &str) -> Result<Self, CgroupError> {
        let refuse = |reason| Err(CgroupError::Path { path: path.to_owned(), reason });
        if !path.starts_with('/') {
            return refuse("not absolute");
        }
        if path.chars().any(char::is_control) {
            return refuse("holds control characters");
        }
        let components: Vec<&str> = path.split('/').filter(|component| !component.is_empty()).collect();
        if components.iter().any(|component| matches!(*component, "." | "..")) {
            return refuse("holds . or ..");
        }
        if components.iter().any(|component| component.len() > 255) {
            return refuse("a name of more than 255 bytes");
        }
        Ok(Self { inner: components.join("/") })
    }

    /// The cgroup `name` below this one.
    ///
    /// # Errors
    /// [`CgroupError::Path`] when that is no single name.
    pub fn join(&self, name: &str) -> Result<Self, CgroupError> {
        if name.is_empty() || name.contains('/') {
            return Err(CgroupError::Path { path: name.to_owned(), reason: "not a single name" });
        }
        Self::new(&format!("/{}/{name}", self.inner))
    }

    /// Its names, from the root down.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.inner.split('/').filter(|component| !component.is_empty())
    }

    /// The cgroup above it; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.inner.is_empty() {
            return None;
        }
        let parent = self.inner.rsplit_once('/').map_or("", |(parent, _)| parent);
        Some(Self { inner: parent.to_owned() })
    }

    /// Its last name; `None` for the root.
    pub fn name(&self) -> Option<&str> {
        self.components().last()
    }

    /// Its directory in a hierarchy mounted at `root`.
    pub fn below(&self, root: &Path) -> PathBuf {
        if self.inner.is_empty() { root.to_owned() } else { root.join(&self.inner) }
    }
}

impl std::fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", self.inner)
    }
}

impl std::str::FromStr for CgroupPath {
    type Err = CgroupError;

    fn from_str(text: &str) -> Result<Self, CgroupError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_stay_below_the_root() {
        let path = CgroupPath::new("//kubepods/burstable/pod1/").unwrap();
        assert_eq!(path.to_string(), "/kubepods/burstable/pod1");
        assert_eq!(
            path.below(Path::new("/sys/fs/cgroup")),
            Path::new("/sys/fs/cgroup/kubepods/burstable/pod1")
        );
        assert_eq!(path.parent().unwrap().to_string(), "/kubepods/burstable");
        assert_eq!(path.name(), Some("pod1"));
        assert_eq!(CgroupPath::new("/").unwrap().parent(), None);
        assert_eq!(CgroupPath::new("/").unwrap().join("a").unwrap().to_string(), "/a");
    }

    #[test]
    fn paths_that_could_lead_elsewhere_are_refused() {
        for bad in ["", "kubepods", "/a/../b", "/.", "/a\nb", "/a\0b"] {
            assert!(CgroupPath::new(bad).is_err(), "{bad:?}");
        }
        let root = CgroupPath::new("/").unwrap();
        for bad in ["", "..", "a/b", "a\nb"] {
            assert!(root.join(bad).is_err(), "{bad:?}");
        }
    }
}
