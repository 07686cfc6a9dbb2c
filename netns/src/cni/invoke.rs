//! What a plugin is told: its environment and its standard input.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::config::{NetworkList, Plugin, is_identifier};

/// Longest name of an interface, bytes (kernel: IFNAMSIZ less the NUL).
const IFNAME_MAX: usize = 15;

/// A CNI command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach a namespace.
    Add,
    /// Take it off.
    Del,
    /// Look whether it is still attached.
    Check,
    /// Remove what belongs to no attachment that is listed.
    Gc,
    /// Say whether an ADD could succeed.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Verb {
    /// As it stands in `CNI_COMMAND`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One interface of one namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// Names the namespace for plugins: letters, digits, and `_.-`.
    pub container_id: String,
    /// Where the namespace is pinned. Empty: it is gone (DEL only).
    pub netns: PathBuf,
    /// The interface's name inside.
    pub ifname: String,
    /// Keys and values of `CNI_ARGS`, in their order.
    pub args: Vec<(String, String)>,
    /// Values for plugins that declare the capability of the name.
    pub capabilities: Map<String, Value>,
}

/// An attachment that plugins cannot be told of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("CNI {field} {value:?}: {reason}")]
pub struct AttachmentProblem {
    /// Which value.
    pub field: String,
    /// What it is.
    pub value: String,
    /// Which rule it breaks.
    pub reason: &'static str,
}

impl Attachment {
    /// Checks everything that ends up in the environment.
    ///
    /// # Errors
    /// The first value that cannot be passed on.
    pub fn check(&self) -> Result<(), AttachmentProblem> {
        let wrong = |field: &str, value: &str, reason| {
            Err(AttachmentProblem { field: field.to_owned(), value: value.to_owned(), reason })
        };
        if !is_identifier(&self.container_id) {
            return wrong("container id", &self.container_id, "not of letters, digits, and _.-");
        }
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let name = &self.ifname;
        if name.is_empty()
            || name.len() > IFNAME_MAX
            || matches!(name.as_str(), "." | "..")
            || name.contains(bad)
        {
            return wrong("interface", name, "no interface name of 1 to 15 bytes");
        }
        for (key, value) in &self.args {
            // One more of these in a value, and it would set what its author may not set.
            if value.contains([';', '=']) || value.chars().any(char::is_control) {
                return wrong(
                    &format!("argument {key}"),
                    value,
                    "it must hold no ; and = and no control character",
                );
            }
        }
        Ok(())
    }

    fn args(&self) -> String {
        let pairs: Vec<_> = self.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(";")
    }
}

/// The environment of one call, beside what is inherited: names and values; `None`: not set.
pub(super) fn environment(
    verb: Verb,
    attachment: Option<&Attachment>,
    bin_dirs: &[PathBuf],
) -> Vec<(&'static str, Option<String>)> {
    let path = |path: &Path| path.display().to_string();
    let folders: Vec<_> = bin_dirs.iter().map(|folder| path(folder)).collect();
    vec![
        ("CNI_COMMAND", Some(verb.name().to_owned())),
        ("CNI_PATH", Some(folders.join(":"))),
        ("CNI_CONTAINERID", attachment.map(|attachment| attachment.container_id.clone())),
        ("CNI_NETNS", attachment.map(|attachment| path(&attachment.netns))),
        ("CNI_IFNAME", attachment.map(|attachment| attachment.ifname.clone())),
        ("CNI_ARGS", attachment.map(Attachment::args)),
        ("CNI_NETNS_OVERRIDE", None),
    ]
}

/// The standard input of one call: the plugin's own configuration, and what belongs to this call.
pub(super) fn input(
    list: &NetworkList,
    plugin: &Plugin,
    attachment: Option<&Attachment>,
    previous: Option<&Value>,
) -> Map<String, Value> {
    let mut input = plugin.config.clone();
    input.insert("name".to_owned(), json!(list.name));
    input.insert("cniVersion".to_owned(), json!(list.version.name()));
    // The configuration's author has no say in these.
    for key in ["prevResult", "runtimeConfig"] {
        input.remove(key);
    }
    if let Some(previous) = previous {
        input.insert("prevResult".to_owned(), previous.clone());
    }
    if let Some(attachment) = attachment {
        let declared = |name: &String| plugin.capabilities.contains(name);
        let wanted = attachment.capabilities.iter().filter(|(name, _)| declared(name));
        let config: Map<_, _> = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !config.is_empty() {
            input.insert("runtimeConfig".to_owned(), Value::Object(config));
        }
    }
    input
}

#[cfg(test)]
mod tests;
