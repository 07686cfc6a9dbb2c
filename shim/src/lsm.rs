//! What requests for AppArmor and SELinux mean on this host.
//!
//! AppArmor: the profile that a container's processes get. SELinux: crisp sets no labels, so on a kernel without it the
//! options have no object, and on a kernel with it asking for one is an error. Must not know: how profiles are loaded
//! and taken on.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crisp_proto::runtime::v1 as cri;
use crisp_runtime::lsm::{
    apparmor::{self, DEFAULT_PROFILE},
    selinux,
};
use serde_json::{Value, json};

use crate::{
    convert::apparmor::{Wanted, wanted},
    error::{RequestError, Stage},
};

/// The kernel's security modules, as far as they concern containers.
#[derive(Debug)]
pub struct Lsm {
    apparmor: bool,
    selinux: bool,
    /// Whether the default profile was seen or loaded by this daemon.
    default_loaded: Mutex<bool>,
}

impl Lsm {
    /// Asks the kernel what it has.
    #[must_use]
    pub fn detect() -> Self {
        let lsm = Self {
            apparmor: apparmor::is_enabled(),
            selinux: selinux::is_enabled(),
            default_loaded: Mutex::default(),
        };
        if lsm.selinux {
            tracing::warn!("SELinux is on and crisp sets no labels: containers run under its own");
        }
        lsm
    }

    /// For the verbose status.
    #[must_use]
    pub fn describe(&self) -> Value {
        let default = self.apparmor.then_some(DEFAULT_PROFILE);
        json!({ "apparmor": self.apparmor, "apparmorDefaultProfile": default, "selinux": self.selinux })
    }

    /// The AppArmor profile of a container. Loads the default one at its first use, which takes a while; all later
    /// questions for it are answered from memory.
    ///
    /// # Errors
    /// `Invalid` or `Precondition`, naming field and profile.
    pub fn profile(
        &self,
        security: &cri::LinuxContainerSecurityContext,
    ) -> Result<Option<String>, RequestError> {
        const FIELD: &str = "linux.security_context.apparmor";
        match wanted(security)? {
            Wanted::Unconfined => Ok(None),
            Wanted::RuntimeDefault if !self.apparmor => Ok(None),
            Wanted::RuntimeDefault => {
                let mut loaded = self.default_loaded.lock().unwrap_or_else(PoisonError::into_inner);
                if !*loaded {
                    apparmor::ensure_default()
                        .map_err(|error| RequestError::precondition(format!("{FIELD}: {error}")))?;
                    *loaded = true;
                }
                Ok(Some(DEFAULT_PROFILE.to_owned()))
            }
            Wanted::Localhost(name) if !self.apparmor => Err(RequestError::precondition(format!(
                "{FIELD}: profile {name:?} is asked for, and this kernel does not use AppArmor"
            ))),
            Wanted::Localhost(name) => match apparmor::is_loaded(&name) {
                Ok(true) => Ok(Some(name)),
                Ok(false) => {
                    Err(RequestError::precondition(format!("{FIELD}: profile {name:?} is not loaded")))
                }
                Err(error) => Err(RequestError::precondition(format!("{FIELD}: profile {name:?}: {error}"))),
            },
        }
    }

    /// A process could not be started: if somebody has unloaded the default profile, the next one shall find that out.
    pub fn forget(&self) {
        *self.default_loaded.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Checks SELinux options whose grammar is right.
    ///
    /// # Errors
    /// `Unimplemented` where the kernel has SELinux.
    pub fn check_selinux(&self, options: Option<&cri::SeLinuxOption>) -> Result<(), RequestError> {
        if self.selinux && options.is_some_and(|options| *options != cri::SeLinuxOption::default()) {
            return Err(RequestError::unsupported(
                "linux.security_context.selinux_options (on an SELinux host)",
            ));
        }
        Ok(())
    }

    /// Checks which of a container's host paths are to be relabelled; where the kernel has no labels there is nothing else
    /// to do.
    ///
    /// # Errors
    /// `Invalid` for a path that must not be relabelled (CVE-2021-43816), `Unimplemented` where the kernel has SELinux;
    /// both name the mount.
    pub fn check_relabelling(&self, mounts: &[cri::Mount]) -> Result<(), RequestError> {
        let asks = |mount: &cri::Mount| mount.selinux_relabel && !mount.host_path.is_empty();
        for (index, mount) in mounts.iter().enumerate().filter(|(_, mount)| asks(mount)) {
            let field = format!("mounts[{index}].selinux_relabel");
            let path = Path::new(&mount.host_path);
            let real = resolve(path).stage(format_args!("{field}: {}", path.display()))?;
            if !selinux::may_relabel(path) || !selinux::may_relabel(&real) {
                return Err(RequestError::invalid(format!(
                    "{field}: {} belongs to the system and is never relabelled",
                    real.display()
                )));
            }
            let special = fs::metadata(&real).is_ok_and(|meta| !meta.is_dir() && !meta.is_file());
            if special {
                return Err(RequestError::invalid(format!(
                    "{field}: {} is neither a directory nor a file",
                    real.display()
                )));
            }
            if self.selinux {
                return Err(RequestError::unsupported(&format!("{field} (on an SELinux host)")));
            }
        }
        Ok(())
    }
}

/// A path without links. What is not there yet is below the nearest directory that is.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Err(error), Some(parent), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            Ok(resolve(parent)?.join(name))
        }
        (answer, _, _) => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn host(apparmor: bool, selinux: bool) -> Lsm {
        Lsm { apparmor, selinux, default_loaded: Mutex::new(true) }
    }

    fn asking(kind: i32, name: &str) -> cri::LinuxContainerSecurityContext {
        let profile = cri::SecurityProfile { profile_type: kind, localhost_ref: name.into() };
        cri::LinuxContainerSecurityContext { apparmor: Some(profile), ..Default::default() }
    }

    #[test]
    fn without_apparmor_the_default_is_nothing_and_a_name_is_an_error() {
        let nothing = cri::LinuxContainerSecurityContext::default();
        assert_eq!(host(false, false).profile(&nothing).unwrap(), None);
        assert_eq!(host(false, false).profile(&asking(0, "")).unwrap(), None);
        let error = host(false, false).profile(&asking(2, "localhost/web")).unwrap_err();
        assert_eq!(error.class, Class::Precondition);
        assert!(error.text.contains("\"web\""), "{error}");
    }

    #[test]
    fn with_apparmor_nothing_said_is_the_default() {
        let nothing = cri::LinuxContainerSecurityContext::default();
        assert_eq!(host(true, false).profile(&nothing).unwrap().as_deref(), Some(DEFAULT_PROFILE));
        assert_eq!(host(true, false).profile(&asking(1, "")).unwrap(), None);
    }

    fn relabel(path: &str) -> Vec<cri::Mount> {
        vec![cri::Mount { host_path: path.into(), selinux_relabel: true, ..Default::default() }]
    }

    #[test]
    fn r37_only_volumes_are_relabelled_and_links_do_not_help() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::os::unix::fs::symlink("/etc", path("link")).unwrap();
        std::os::unix::fs::symlink("/", path("root")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(path("socket")).unwrap());
        for bad in
            ["/", "/etc", "/usr", "/proc", &path("link"), &path("link/new"), &path("root"), &path("socket")]
        {
            let error = host(false, false).check_relabelling(&relabel(bad)).unwrap_err();
            assert!(
                error.class == Class::Invalid && error.text.contains("mounts[0].selinux_relabel"),
                "{error}"
            );
        }
        host(false, false).check_relabelling(&relabel(&path("new/volume"))).unwrap();
        let error = host(false, true).check_relabelling(&relabel(&path("new"))).unwrap_err();
        assert_eq!(error.class, Class::Unimplemented);
    }
}
