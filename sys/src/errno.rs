//! The error that every wrapper of this crate gives: which call, on what, and the kernel's answer.
//!
//! Must not know: what the caller was about to do with the object.

pub use nix::errno::Errno;

/// A system call that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysError {
    /// Name of the system call (or of the `prctl`/`fcntl` operation).
    pub call: &'static str,
    /// What it was applied to: a path, a file system type with its option, a pid. May be empty.
    pub object: String,
    /// The kernel's answer.
    pub errno: Errno,
}

impl SysError {
    /// Puts the three together.
    pub fn new(call: &'static str, object: impl Into<String>, errno: Errno) -> Self {
        Self { call, object: object.into(), errno }
    }

    /// Turns an error of `std::io` into one of this crate; an error without an errno becomes `EIO`.
    pub fn io(call: &'static str, object: impl Into<String>, error: &std::io::Error) -> Self {
        Self::new(call, object, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

impl std::error::Error for SysError {}

impl std::fmt::Display for SysError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.object.is_empty() {
            write!(f, "{}: {}", self.call, text(self.errno))
        } else {
            write!(f, "{} {}: {}", self.call, self.object, text(self.errno))
        }
    }
}

/// The usual words for an errno, lower-case, so that they fit at the end of a chain.
pub fn text(errno: Errno) -> String {
    let words = errno.desc();
    let mut letters = words.chars();
    match letters.next() {
        // "I/O error" and the like keep their capitals.
        Some(first) if !letters.clone().next().is_some_and(|c| c.is_uppercase() || c == '/') => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => words.to_owned(),
    }
}

/// Adds the object to an answer of the kernel.
pub(crate) trait Context<T> {
    /// Names call and object; `object` is only built when there is an error.
    fn on<O: Into<String>>(self, call: &'static str, object: impl FnOnce() -> O) -> Result<T, SysError>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn on<O: Into<String>>(self, call: &'static str, object: impl FnOnce() -> O) -> Result<T, SysError> {
        self.map_err(|errno| SysError::new(call, object(), errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_lower_case_fragments() {
        let error = SysError::new("openat2", "etc/passwd", Errno::ENOENT);
        assert_eq!(error.to_string(), "openat2 etc/passwd: no such file or directory");
        assert_eq!(SysError::new("setsid", "", Errno::EPERM).to_string(), "setsid: operation not permitted");
        assert_eq!(text(Errno::EIO), "I/O error");
    }
}
