//! Who a process runs as: names and numbers, looked up in the root file system's own passwd and group files.
//!
//! No NSS: that would load libraries of whoever made the image. The files are found inside the root only, must be
//! regular and of bounded size, and a line that makes no sense is skipped. What is not understood is never uid 0.
//!
//! Must not know: CRI messages, image configuration files.

mod database;

use crisp_sys::path::Root;
use crisp_sys::{Errno, SysError};
use database::{Group, Passwd};
use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Largest passwd or group file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Largest id: CRI's own bound, and one that survives every signed 32-bit variable (CVE-2024-40635).
const MAX_ID: u32 = i32::MAX as u32;

/// Who is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// A number: never looked up as a name (CVE-2016-3697).
    Uid(u32),
    /// A user's name, or a number in digits.
    Name(String),
    /// An image's `USER`: `user`, `user:group`, each a name or a number. Empty: uid 0.
    Image(String),
}

/// How supplementary groups are put together (CRI `SupplementalGroupsPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupPolicy {
    /// The groups that the group file lists the user in, and the ones given.
    #[default]
    Merge,
    /// Only the ones given.
    Strict,
}

/// Everything that decides about a process's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpec {
    /// The user.
    pub user: Who,
    /// Overrides the primary group.
    pub group: Option<u32>,
    /// Supplementary groups given.
    pub supplemental: Vec<u32>,
    /// What else becomes a supplementary group.
    pub policy: GroupPolicy,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, the primary one included, sorted, each once.
    pub groups: Vec<u32>,
    /// Home directory: that of the passwd file if absolute and free of control characters, else `/`.
    pub home: String,
}

/// A user that cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Neither a name nor a number in range.
    #[error("user {text:?}: {reason}")]
    Invalid {
        /// As given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The passwd file has no such name.
    #[error("user {name:?} is not in /etc/passwd of the root file system")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// The group file has no such name.
    #[error("group {name:?} is not in /etc/group of the root file system")]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// A file is there and cannot be read: not regular, too large, a link that leads nowhere good.
    #[error("look up user: {0}")]
    File(#[from] SysError),
}

/// Resolves a user inside `root`, a directory or mount.
///
/// Names must be in the files; numbers need not be, and a missing file is an empty one.
///
/// # Errors
/// See [`UserError`]; there is no fallback.
pub fn resolve(root: BorrowedFd<'_>, spec: &UserSpec) -> Result<Identity, UserError> {
    let root = Root::duplicate(root)?;
    let (user, group) = split(&spec.user)?;
    let passwd = read(&root, "etc/passwd")?;
    let entry = match &user {
        Id::Number(uid) => database::find(&passwd, |entry: &Passwd| entry.uid == *uid),
        Id::Name(name) => {
            let found = database::find(&passwd, |entry: &Passwd| entry.name == *name);
            Some(found.ok_or_else(|| UserError::UnknownUser { name: name.clone() })?)
        }
    };
    let uid = match (&user, &entry) {
        (Id::Number(uid), _) => *uid,
        (Id::Name(_), Some(entry)) => entry.uid,
        (Id::Name(name), None) => return Err(UserError::UnknownUser { name: name.clone() }),
    };
    // Read only when somebody needs it.
    let by_membership = spec.policy == GroupPolicy::Merge && entry.is_some();
    let groups = match &group {
        Some(Id::Name(_)) => read(&root, "etc/group")?,
        _ if by_membership => read(&root, "etc/group")?,
        _ => Vec::new(),
    };
    let primary = entry.as_ref().map_or(0, |entry| entry.gid);
    let gid = match (spec.group, group) {
        (Some(gid), _) => number_in_range(gid)?,
        (None, None) => primary,
        (None, Some(Id::Number(gid))) => gid,
        (None, Some(Id::Name(name))) => {
            let found = database::find(&groups, |group: &Group| group.name == name);
            found.ok_or(UserError::UnknownGroup { name })?.gid
        }
    };
    let mut all = BTreeSet::from([gid]);
    for &given in &spec.supplemental {
        all.insert(number_in_range(given)?);
    }
    if let Some(entry) = entry.as_ref().filter(|_| by_membership) {
        all.extend(database::memberships(&groups, &entry.name));
    }
    let home = entry.map(|entry| entry.home).filter(|home| is_plain_path(home));
    Ok(Identity { uid, gid, groups: all.into_iter().collect(), home: home.unwrap_or_else(|| "/".to_owned()) })
}

/// A user or group as it was spelled.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Id {
    Number(u32),
    Name(String),
}

fn split(who: &Who) -> Result<(Id, Option<Id>), UserError> {
    match who {
        Who::Uid(uid) => Ok((Id::Number(number_in_range(*uid)?), None)),
        Who::Name(name) => Ok((id(name, name)?, None)),
        Who::Image(text) if text.is_empty() => Ok((Id::Number(0), None)),
        Who::Image(text) => match text.split_once(':') {
            None => Ok((id(text, text)?, None)),
            Some((user, group)) => Ok((id(user, text)?, Some(id(group, text)?))),
        },
    }
}

/// A number in ASCII digits, or a name; `whole` is what the error shows (CVE-2026-30892).
fn id(text: &str, whole: &str) -> Result<Id, UserError> {
    let refuse = |reason| Err(UserError::Invalid { text: whole.to_owned(), reason });
    if text.is_empty() {
        return refuse("an empty user or group");
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse() {
            Ok(number) if number <= MAX_ID => Ok(Id::Number(number)),
            _ => refuse("a number above 2147483647"),
        };
    }
    // The names that useradd makes, and capitals. Nothing that starts like a number or sign can be meant as a name.
    let starts = |c: char| c.is_ascii_alphabetic() || c == '_';
    let goes_on = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '$');
    if text.len() > 256 || !text.starts_with(starts) || !text.chars().all(goes_on) {
        return refuse("neither a name nor a number");
    }
    Ok(Id::Name(text.to_owned()))
}

fn number_in_range(number: u32) -> Result<u32, UserError> {
    if number <= MAX_ID {
        return Ok(number);
    }
    Err(UserError::Invalid { text: number.to_string(), reason: "a number above 2147483647" })
}

/// A file of the root; missing is empty.
fn read(root: &Root, path: &str) -> Result<Vec<u8>, UserError> {
    match root.read_file(Path::new(path), MAX_FILE) {
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR) => Ok(Vec::new()),
        answer => Ok(answer?),
    }
}

/// It becomes an environment variable, and perhaps a line of somebody's file (CVE-2022-4318).
fn is_plain_path(home: &str) -> bool {
    home.starts_with('/') && !home.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;
