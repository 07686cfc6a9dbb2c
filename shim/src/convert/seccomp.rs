//! Which seccomp profile a request asks for, and what it means for `linux.seccomp`.

use std::{path::PathBuf, sync::Arc};

use crisp_proto::runtime::v1 as cri;
use crisp_runtime::seccomp::{self, Profile};
use oci_spec::runtime::{LinuxSeccomp, Spec};

use crate::error::RequestError;

const FIELD: &str = "linux.security_context.seccomp";

/// What CRI can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// No filter; also what nothing said means.
    Unconfined,
    /// The built-in profile.
    RuntimeDefault,
    /// A file of the host.
    Localhost(PathBuf),
}

/// A profile with the name it has in error texts.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Field, and file if it is one.
    pub label: String,
    /// The profile.
    pub profile: Arc<Profile>,
}

/// Reads the request. The message field wins over the old string; a privileged container has no filter.
///
/// # Errors
/// `Invalid`, naming the field.
#[expect(deprecated, reason = "CRI still has the old string field, and clients that fill it")]
pub fn wanted(security: &cri::LinuxContainerSecurityContext) -> Result<Wanted, RequestError> {
    use cri::security_profile::ProfileType;
    if security.privileged {
        return Ok(Wanted::Unconfined);
    }
    let Some(profile) = &security.seccomp else {
        return match security.seccomp_profile_path.as_str() {
            "" | "unconfined" => Ok(Wanted::Unconfined),
            "runtime/default" | "docker/default" => Ok(Wanted::RuntimeDefault),
            text if text.starts_with("localhost/") => localhost(&format!("{FIELD}_profile_path"), text),
            other => Err(RequestError::invalid(format!("{FIELD}_profile_path: {other:?} is no profile"))),
        };
    };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::Unconfined) => Ok(Wanted::Unconfined),
        Ok(ProfileType::RuntimeDefault) => Ok(Wanted::RuntimeDefault),
        Ok(ProfileType::Localhost) => localhost(&format!("{FIELD}.localhost_ref"), &profile.localhost_ref),
        Err(_) => {
            Err(RequestError::invalid(format!("{FIELD}.profile_type: {} is unknown", profile.profile_type)))
        }
    }
}

fn localhost(field: &str, text: &str) -> Result<Wanted, RequestError> {
    let path = PathBuf::from(text.strip_prefix("localhost/").unwrap_or(text));
    if path.is_absolute() {
        return Ok(Wanted::Localhost(path));
    }
    Err(RequestError::invalid(format!("{field}: {text:?} is not an absolute path")))
}

/// Gets the profile; reads its file, if it is one.
///
/// # Errors
/// `Invalid`, naming the field and the file.
pub fn choose(security: &cri::LinuxContainerSecurityContext) -> Result<Option<Chosen>, RequestError> {
    Ok(match wanted(security)? {
        Wanted::Unconfined => None,
        Wanted::RuntimeDefault => {
            Some(Chosen { label: FIELD.to_owned(), profile: Profile::runtime_default() })
        }
        Wanted::Localhost(path) => {
            let profile =
                Profile::read(&path).map_err(|error| RequestError::invalid(format!("{FIELD}: {error}")))?;
            Some(Chosen { label: format!("{FIELD}: {}", path.display()), profile: Arc::new(profile) })
        }
    })
}

/// `linux.seccomp` for a spec whose capabilities are settled. That it can be compiled is seen here, where the
/// profile's name is known.
pub(super) fn resolve(chosen: &Chosen, spec: &Spec) -> Result<LinuxSeccomp, RequestError> {
    let capabilities = spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
    let bounding = capabilities.and_then(|sets| sets.bounding().clone()).unwrap_or_default();
    let invalid = |error| RequestError::invalid(format!("{}: {error}", chosen.label));
    let resolved = chosen.profile.resolve(&bounding).map_err(invalid)?;
    seccomp::compile(&resolved).map_err(invalid)?;
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(profile_type: i32, localhost_ref: &str) -> cri::LinuxContainerSecurityContext {
        let profile = cri::SecurityProfile { profile_type, localhost_ref: localhost_ref.into() };
        cri::LinuxContainerSecurityContext { seccomp: Some(profile), ..Default::default() }
    }

    #[expect(deprecated, reason = "the old field is what is tested")]
    fn old(text: &str) -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext { seccomp_profile_path: text.into(), ..Default::default() }
    }

    #[test]
    fn both_fields_say_the_same() {
        let file = Wanted::Localhost("/p/x.json".into());
        for (message, text, expected) in [
            (message(1, ""), "unconfined", Wanted::Unconfined),
            (message(0, ""), "runtime/default", Wanted::RuntimeDefault),
            (message(0, ""), "docker/default", Wanted::RuntimeDefault),
            (message(2, "/p/x.json"), "localhost//p/x.json", file.clone()),
            (message(2, "localhost//p/x.json"), "localhost//p/x.json", file),
        ] {
            assert_eq!(wanted(&message).unwrap(), expected);
            assert_eq!(wanted(&old(text)).unwrap(), expected, "{text}");
        }
        assert_eq!(wanted(&old("")).unwrap(), Wanted::Unconfined);
    }

    #[test]
    #[expect(deprecated, reason = "the old field is what is tested")]
    fn the_message_wins_and_privilege_wins_over_both() {
        let mut security = message(0, "");
        security.seccomp_profile_path = "unconfined".into();
        assert_eq!(wanted(&security).unwrap(), Wanted::RuntimeDefault);
        security.privileged = true;
        assert_eq!(wanted(&security).unwrap(), Wanted::Unconfined);
    }

    #[test]
    fn r36_what_is_no_profile_is_refused_with_its_field() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("bad"), "{").unwrap();
        std::fs::write(path("unknown-field"), r#"{"defaultAction": "SCMP_ACT_ALLOW", "x": 1}"#).unwrap();
        std::fs::write(path("big"), " ".repeat((1 << 20) + 1)).unwrap();
        std::os::unix::fs::symlink(path("big"), path("link")).unwrap();
        for (security, word) in [
            (message(2, "x.json"), "localhost_ref"),
            (message(7, ""), "profile_type: 7"),
            (old("x"), "seccomp_profile_path"),
            (message(2, &path("missing")), "missing"),
            (message(2, &path("bad")), "bad: EOF"),
            (message(2, &path("unknown-field")), "unknown field `x`"),
            (message(2, &path("big")), "larger than 1 MiB"),
            (message(2, &path("link")), "link"),
            (message(2, &path(".")), "not a regular file"),
        ] {
            let error = choose(&security).unwrap_err().to_string();
            assert!(
                error.contains(word) && error.contains("linux.security_context.seccomp"),
                "{word}: {error}"
            );
        }
    }
}
