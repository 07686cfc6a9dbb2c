//! Names of devices: `vendor/class=name`.

use std::fmt;

/// A checked name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// `vendor/class`.
    pub(super) kind: String,
    /// The device among those of its kind.
    pub(super) device: String,
}

impl Name {
    /// Takes a name apart.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (kind, device) =
            text.split_once('=').ok_or("expected vendor/class=name, there is no `=`".to_owned())?;
        check_kind(kind)?;
        check_device(device)?;
        Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// A kind: vendor and class, each a letter, then letters, digits, `_`, `-` and `.`, the last one a letter or digit.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) = kind.split_once('/').ok_or_else(|| format!("kind {kind:?} is not vendor/class"))?;
    for (what, text) in [("vendor", vendor), ("class", class)] {
        if !text.starts_with(|c: char| c.is_ascii_alphabetic()) || !word(text, "_-.") {
            return Err(format!("{what} {text:?} is malformed"));
        }
    }
    Ok(())
}

/// A device's own name: letters, digits, `_`, `-`, `.` and `:`, the first and the last one a letter or digit.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_device(name: &str) -> Result<(), String> {
    if word(name, "_-.:") { Ok(()) } else { Err(format!("device name {name:?} is malformed")) }
}

fn word(text: &str, inner: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(edge) && text.ends_with(edge) && text.chars().all(|c| edge(c) || inner.contains(c))
}
