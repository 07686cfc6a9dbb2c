//! Which AppArmor profile a request asks for.

use crisp_proto::runtime::v1 as cri;

use crate::error::RequestError;

const FIELD: &str = "linux.security_context.apparmor";
/// Longest name, bytes; the kernel's own limit is a page with all that stands around it.
const NAME_BYTES: usize = 1024;

/// What CRI can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// No profile.
    Unconfined,
    /// crisp's own, where the kernel has AppArmor; also what nothing said means.
    RuntimeDefault,
    /// One that somebody has loaded.
    Localhost(String),
}

/// Reads the request. The message field wins over the old string; a privileged container has no profile.
///
/// # Errors
/// `Invalid`, naming the field.
#[expect(deprecated, reason = "CRI still has the old string field, and clients that fill it")]
pub fn wanted(security: &cri::LinuxContainerSecurityContext) -> Result<Wanted, RequestError> {
    use cri::security_profile::ProfileType;
    if security.privileged {
        return Ok(Wanted::Unconfined);
    }
    let Some(profile) = &security.apparmor else {
        return match security.apparmor_profile.as_str() {
            "" | "runtime/default" => Ok(Wanted::RuntimeDefault),
            "unconfined" => Ok(Wanted::Unconfined),
            text if text.starts_with("localhost/") => localhost(&format!("{FIELD}_profile"), text),
            other => Err(RequestError::invalid(format!("{FIELD}_profile: {other:?} is no profile"))),
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

/// The name of a profile, with or without `localhost/`. What the kernel reads as more than one name is none.
fn localhost(field: &str, text: &str) -> Result<Wanted, RequestError> {
    let name = text.strip_prefix("localhost/").unwrap_or(text);
    let reason = match name {
        "" => "names no profile",
        long if long.len() > NAME_BYTES => "is longer than 1024 bytes",
        odd if odd.chars().any(char::is_control) => "has control characters",
        // `a//&b` is two profiles at once, `:ns:a` one of another policy namespace.
        several if several.contains("//&") || several.starts_with(':') => "is not one profile's name",
        name => return Ok(Wanted::Localhost(name.to_owned())),
    };
    Err(RequestError::invalid(format!("{field}: {text:?} {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(profile_type: i32, localhost_ref: &str) -> cri::LinuxContainerSecurityContext {
        let profile = cri::SecurityProfile { profile_type, localhost_ref: localhost_ref.into() };
        cri::LinuxContainerSecurityContext { apparmor: Some(profile), ..Default::default() }
    }

    #[expect(deprecated, reason = "the old field is what is tested")]
    fn old(text: &str) -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext { apparmor_profile: text.into(), ..Default::default() }
    }

    #[test]
    fn both_fields_say_the_same() {
        for (message, text, expected) in [
            (message(0, ""), "runtime/default", Wanted::RuntimeDefault),
            (message(1, ""), "unconfined", Wanted::Unconfined),
            (message(2, "web"), "localhost/web", Wanted::Localhost("web".into())),
            (message(2, "localhost/web"), "localhost/web", Wanted::Localhost("web".into())),
        ] {
            assert_eq!(wanted(&message).unwrap(), expected);
            assert_eq!(wanted(&old(text)).unwrap(), expected, "{text}");
        }
        assert_eq!(wanted(&old("")).unwrap(), Wanted::RuntimeDefault);
    }

    #[test]
    #[expect(deprecated, reason = "the old field is what is tested")]
    fn the_message_wins_and_privilege_wins_over_both() {
        let mut security = message(2, "web");
        security.apparmor_profile = "unconfined".into();
        assert_eq!(wanted(&security).unwrap(), Wanted::Localhost("web".into()));
        security.privileged = true;
        assert_eq!(wanted(&security).unwrap(), Wanted::Unconfined);
    }

    #[test]
    fn r36_what_is_no_profile_is_refused_with_its_field() {
        for (security, word) in [
            (message(7, ""), "apparmor.profile_type: 7"),
            (message(2, ""), "apparmor.localhost_ref"),
            (message(2, "localhost/"), "apparmor.localhost_ref"),
            (message(2, "a\nexec unconfined"), "control characters"),
            (message(2, "a//&unconfined"), "not one profile"),
            (message(2, ":ns:a"), "not one profile"),
            (message(2, &"x".repeat(1025)), "longer"),
            (old("docker/default"), "apparmor_profile"),
            (old("localhost/"), "apparmor_profile"),
        ] {
            let error = wanted(&security).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
