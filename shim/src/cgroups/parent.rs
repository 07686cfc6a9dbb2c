//! Where pods' cgroups are: what a client may ask for under which driver, and where pods are that ask for nothing.

use crisp_runtime::cgroup::CgroupPath;

use crate::{config::CgroupConfig, error::RequestError, id::Id, systemd::unit};

/// What systemd's own cgroups end in.
const UNITS: [&str; 3] = [".slice", ".scope", ".service"];

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// crisp, with mkdir.
    Cgroupfs,
    /// systemd: a slice a pod, a scope a container.
    Systemd,
}

impl Driver {
    /// The driver of a checked configuration.
    #[must_use]
    pub(crate) fn of(config: &CgroupConfig) -> Self {
        if config.driver == "systemd" { Self::Systemd } else { Self::Cgroupfs }
    }

    /// Path of the parent of pods that come without one.
    ///
    /// # Errors
    /// The name cannot be a slice's.
    pub(crate) fn default_parent(self, config: &CgroupConfig) -> Result<String, RequestError> {
        let named = config.default_parent.trim_end_matches('/');
        match self {
            Self::Cgroupfs => Ok(named.to_owned()),
            Self::Systemd => unit::slice_for(named).map_err(|reason| {
                RequestError::invalid(format!("cgroup.default_parent {named:?}: {reason}"))
            }),
        }
    }

    /// Path of the cgroup below which the pod `id` is put: what `linux.cgroup_parent` asks for, or a place of its own.
    ///
    /// # Errors
    /// `Invalid`: nobody may make a cgroup there, or the path is of the other driver's form.
    pub(crate) fn pod_parent(
        self,
        config: &CgroupConfig,
        asked: &str,
        id: &Id,
    ) -> Result<String, RequestError> {
        let invalid =
            |reason: &str| RequestError::invalid(format!("linux.cgroup_parent {asked:?}: {reason}"));
        match (self, asked) {
            (Self::Cgroupfs, "") => Ok(format!("{}/{id}", self.default_parent(config)?)),
            (Self::Systemd, "") => Ok(unit::slice_below(&self.default_parent(config)?, id.as_str())),
            (Self::Systemd, _) => unit::slice_path(asked)
                .map_err(|reason| invalid(&format!("the cgroup driver is systemd: {reason}"))),
            (Self::Cgroupfs, _) => {
                let path = CgroupPath::new(asked).map_err(|error| invalid(&error.to_string()))?;
                if path.name().is_none() {
                    return Err(invalid("the root of all cgroups is no place for pods"));
                }
                let foreign = path.components().find(|name| UNITS.iter().any(|unit| name.ends_with(unit)));
                match foreign {
                    Some(name) => {
                        Err(invalid(&format!("{name} is systemd's, and the cgroup driver is cgroupfs")))
                    }
                    None => Ok(path.to_string()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> Id {
        serde_json::from_value(serde_json::json!("ab".repeat(32))).unwrap()
    }

    #[test]
    fn r33_a_parent_must_be_of_the_drivers_form_and_nobody_elses() {
        let config = CgroupConfig::default();
        for bad in [
            "/",
            "//",
            "pods",
            "/a/../b",
            "/..",
            "../..",
            "/system.slice/x",
            "/kubepods.slice",
            "/init.scope",
            "/a/b.service",
            "/a\nb",
            "/a\0b",
        ] {
            let error = Driver::Cgroupfs.pod_parent(&config, bad, &id()).unwrap_err();
            assert!(error.text.starts_with("linux.cgroup_parent "), "{bad:?}: {}", error.text);
        }
        for bad in
            ["/", "/kubepods/pod1", "/system.slice/x", "../..", "-.slice", "/a.slice/b.slice", "a\n.slice"]
        {
            let error = Driver::Systemd.pod_parent(&config, bad, &id()).unwrap_err();
            assert!(error.text.starts_with("linux.cgroup_parent "), "{bad:?}: {}", error.text);
        }
    }

    #[test]
    fn pods_without_a_parent_get_a_place_of_their_own() {
        let config = CgroupConfig::default();
        let id = id();
        assert_eq!(Driver::Cgroupfs.pod_parent(&config, "", &id).unwrap(), format!("/crisp/{id}"));
        let slice = Driver::Systemd.pod_parent(&config, "", &id).unwrap();
        assert_eq!(slice, format!("/crisp.slice/crisp-{id}.slice"));
        assert_eq!(Driver::Cgroupfs.pod_parent(&config, "/kubepods//pod1/", &id).unwrap(), "/kubepods/pod1");
    }
}
