//! AppArmor on this host: whether it is on, which profiles are loaded, and loading the default one.
//!
//! Must not know: who asks for which profile.

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Stdio};

/// Name of the profile of containers that ask for no other.
pub const DEFAULT_PROFILE: &str = "crisp-default";

/// `Y` when the kernel uses AppArmor.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// One line a loaded profile: `name (mode)`.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// The label that this process lives under, as `name (mode)`.
const OWN_LABEL: &str = "/proc/self/attr/apparmor/current";
/// Where the parser is looked for: in PATH, then where distributions put it, because a service's PATH may lack /usr/sbin.
const PARSER: [&str; 3] = ["apparmor_parser", "/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// The default profile, with places for its name and for who else may send it signals.
const TEMPLATE: &str = include_str!("crisp-default");

/// A profile could not be looked up or loaded.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    /// The kernel's list cannot be read.
    #[error("read {PROFILES}: {0} (is securityfs mounted on /sys/kernel/security?)")]
    List(io::Error),
    /// There is no program that can load a profile.
    #[error(
        "AppArmor profile {DEFAULT_PROFILE} is not loaded, and there is no apparmor_parser to load it with; install the \
         package apparmor"
    )]
    NoParser,
    /// The program could not be run.
    #[error("run apparmor_parser: {0}")]
    Run(io::Error),
    /// The program did not load the profile.
    #[error("apparmor_parser did not load {DEFAULT_PROFILE}: {said}")]
    Refused {
        /// What it said.
        said: String,
    },
}

/// Whether the kernel uses AppArmor.
#[must_use]
pub fn is_enabled() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.trim_end() == "Y")
}

/// Whether a profile of this name is loaded, in any mode.
///
/// # Errors
/// [`AppArmorError::List`].
pub fn is_loaded(name: &str) -> Result<bool, AppArmorError> {
    let list = fs::read_to_string(PROFILES).map_err(AppArmorError::List)?;
    Ok(listed(&list, name))
}

fn listed(list: &str, name: &str) -> bool {
    // A name may hold blanks; the mode is the last word.
    list.lines().filter_map(|line| line.rsplit_once(" (")).any(|(known, _)| known == name)
}

/// Loads [`DEFAULT_PROFILE`] unless a profile of that name is there: an operator's own of that name is left alone.
///
/// Runs `apparmor_parser` and waits for it: tens of milliseconds.
///
/// # Errors
/// Any [`AppArmorError`].
pub fn ensure_default() -> Result<(), AppArmorError> {
    if is_loaded(DEFAULT_PROFILE)? {
        return Ok(());
    }
    let own = fs::read_to_string(OWN_LABEL).unwrap_or_default();
    load(&profile(label_name(&own)))
}

/// The name in a label as the kernel shows it.
fn label_name(label: &str) -> &str {
    let label = label.trim_end();
    label.rsplit_once(" (").map_or(label, |(name, _)| name)
}

/// The text of the default profile. The process that stops and kills containers may be confined itself.
fn profile(own: &str) -> String {
    let quotable = !own.contains(['"', '\n', '\\']);
    let supervisor = match own {
        "" | "unconfined" => String::new(),
        name if quotable => format!("  signal (receive) peer=\"{name}\",\n"),
        _ => String::new(),
    };
    TEMPLATE.replace("@NAME@", DEFAULT_PROFILE).replace("@SUPERVISOR@\n", &supervisor)
}

fn load(text: &str) -> Result<(), AppArmorError> {
    let mut child = spawn()?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(text.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output().map_err(AppArmorError::Run)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let said = if said.is_empty() { output.status.to_string() } else { said };
        return Err(AppArmorError::Refused { said });
    }
    written.map_err(AppArmorError::Run)
}

fn spawn() -> Result<std::process::Child, AppArmorError> {
    for program in PARSER {
        let spawned = Command::new(program)
            // Its cache belongs to the distribution's own profiles.
            .args(["--replace", "--skip-cache"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        match spawned {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.map_err(AppArmorError::Run),
        }
    }
    Err(AppArmorError::NoParser)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_listed_by_its_whole_name() {
        let list = "/usr/bin/man (enforce)\nmy profile (x) (complain)\ncrisp-default-2 (enforce)\n";
        assert!(listed(list, "/usr/bin/man") && listed(list, "my profile (x)"));
        assert!(!listed(list, "crisp-default") && !listed(list, "my profile") && !listed(list, ""));
    }

    #[test]
    fn the_profile_names_who_may_signal_besides_the_unconfined() {
        let plain = profile("unconfined");
        assert!(!plain.contains('@') && plain.contains("profile crisp-default "), "{plain}");
        assert_eq!(plain, profile(label_name("")));
        let more = profile(label_name("/usr/bin/crisp (enforce)\n"));
        assert!(more.contains("signal (receive) peer=\"/usr/bin/crisp\","), "{more}");
        assert!(!profile("a\" }").contains("a\" }"));
    }

    #[test]
    fn the_profile_is_understood_where_there_is_a_parser() {
        let Ok(mut child) = Command::new("/usr/sbin/apparmor_parser")
            .args(["--skip-kernel-load", "--skip-cache", "--names"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
        else {
            return;
        };
        child.stdin.take().unwrap().write_all(profile("/usr/bin/crisp").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), DEFAULT_PROFILE);
    }
}
