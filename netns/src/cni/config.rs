//! Network lists: found in a folder, checked, and written down again for the ledger.
//!
//! A list is kept as the JSON that it came in: plugins have fields of their own, and each gets all of its.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::files;
use super::version::Version;

/// Endings of files that hold a network: a list, or one plugin alone.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];
/// Most plugins of a list: each is a process at each start and end of a pod.
const PLUGINS_MAX: usize = 64;

/// What is wrong with a file of the configuration folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct ConfigProblem {
    /// The file's name.
    pub name: String,
    /// Which rule it breaks.
    pub reason: String,
}

/// There is no valid network list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoNetwork {
    /// The folder.
    pub folder: PathBuf,
    /// What is wrong with its files; empty: it has none.
    pub problems: Vec<ConfigProblem>,
}

impl fmt::Display for NoNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no CNI network list in {}", self.folder.display())?;
        let problems: Vec<_> = self.problems.iter().map(ToString::to_string).collect();
        match problems.is_empty() {
            true => f.write_str(": it has no file *.conflist, *.conf or *.json"),
            false => write!(f, ": {}", problems.join("; ")),
        }
    }
}

impl std::error::Error for NoNetwork {}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// Name of its program, a plain file name.
    pub kind: String,
    /// The capabilities that it declares.
    pub capabilities: Vec<String>,
    /// Its configuration as it stands in the list.
    pub config: Map<String, Value>,
}

/// A checked network list.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The version that its plugins are spoken to in.
    pub version: Version,
    /// CHECK is not wanted.
    pub disable_check: bool,
    /// GC is not wanted: other runtimes of this host use the network, too.
    pub disable_gc: bool,
    /// At least one, in the order of ADD.
    pub plugins: Vec<Plugin>,
}

/// The first valid network of a folder.
pub(super) fn first(folder: &Path) -> Result<NetworkList, NoNetwork> {
    let mut problems = Vec::new();
    match files::names(folder, &ENDINGS) {
        Ok(names) => {
            for name in names {
                match load(folder, &name) {
                    Ok(list) => {
                        if !problems.is_empty() {
                            tracing::debug!(
                                ?problems,
                                network = list.name,
                                "files before the network's are not used"
                            );
                        }
                        return Ok(list);
                    }
                    Err(reason) => problems.push(ConfigProblem { name, reason }),
                }
            }
        }
        Err(error) => problems.push(ConfigProblem { name: ".".to_owned(), reason: error.to_string() }),
    }
    Err(NoNetwork { folder: folder.to_owned(), problems })
}

fn load(folder: &Path, name: &str) -> Result<NetworkList, String> {
    let mut list = object(&files::read(folder, name)?)?;
    if !list.contains_key("plugins") && !name.ends_with(".conflist") {
        list = wrapped(list);
    }
    if list.get("loadOnlyInlinedPlugins").and_then(Value::as_bool) != Some(true) {
        add_folder(folder, &mut list)?;
    }
    NetworkList::of_json(&Value::Object(list))
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is no JSON object".to_owned()),
        Err(error) => Err(format!("it is no JSON: {error}")),
    }
}

/// A list of one plugin.
fn wrapped(plugin: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    for key in ["cniVersion", "cniVersions", "name"] {
        if let Some(value) = plugin.get(key) {
            list.insert(key.to_owned(), value.clone());
        }
    }
    list.insert("loadOnlyInlinedPlugins".to_owned(), Value::Bool(true));
    list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(plugin)]));
    list
}

/// Adds the plugins of the folder that is named after the network (specification 1.1, `loadOnlyInlinedPlugins`).
fn add_folder(folder: &Path, list: &mut Map<String, Value>) -> Result<(), String> {
    let Some(name) = list.get("name").and_then(Value::as_str).filter(|name| is_identifier(name)) else {
        return Ok(());
    };
    let below = folder.join(name);
    let names = files::names(&below, &["conf"]).map_err(|error| format!("folder {name}: {error}"))?;
    let at = |file: &str, reason: String| format!("{name}/{file}: {reason}");
    let mut found = Vec::new();
    for file in names {
        let read = files::read(folder, &format!("{name}/{file}")).map_err(|reason| at(&file, reason))?;
        found.push(Value::Object(object(&read).map_err(|reason| at(&file, reason))?));
    }
    if let Value::Array(plugins) = list.entry("plugins").or_insert_with(|| Value::Array(Vec::new())) {
        plugins.extend(found);
    }
    Ok(())
}

/// What the specification allows as a network's name and a container id.
pub(super) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

impl NetworkList {
    /// Checks a list.
    ///
    /// # Errors
    /// Which field is wrong, and why.
    pub fn of_json(value: &Value) -> Result<Self, String> {
        let Value::Object(list) = value else { return Err("it is no JSON object".to_owned()) };
        let version = Version::of_list(list)?;
        let name = match list.get("name").and_then(Value::as_str) {
            Some(name) if is_identifier(name) => name.to_owned(),
            Some(name) => return Err(format!("name {name:?} is not of letters, digits, and _.-")),
            None => return Err("name is missing".to_owned()),
        };
        let plugins = match list.get("plugins") {
            Some(Value::Array(plugins)) => plugins,
            _ => return Err("plugins is no list".to_owned()),
        };
        if plugins.is_empty() {
            return Err("plugins is empty".to_owned());
        }
        if plugins.len() > PLUGINS_MAX {
            return Err(format!("plugins: more than {PLUGINS_MAX}"));
        }
        let checked = plugins.iter().enumerate().map(|(at, plugin)| Plugin::of_json(at, plugin));
        Ok(Self {
            name,
            version,
            disable_check: flag(list, "disableCheck")?,
            disable_gc: flag(list, "disableGC")?,
            plugins: checked.collect::<Result<_, _>>()?,
        })
    }

    /// The list as [`Self::of_json`] takes it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let plugins: Vec<_> = self.plugins.iter().map(|plugin| &plugin.config).collect();
        json!({
            "cniVersion": self.version.name(),
            "name": self.name,
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "plugins": plugins,
        })
    }
}

/// A truth value; the specification lets it be text, too.
fn flag(list: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match list.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if text == "false" => Ok(false),
        Some(other) => Err(format!("{key} {other} is neither true nor false")),
    }
}

impl Plugin {
    fn of_json(at: usize, value: &Value) -> Result<Self, String> {
        let Value::Object(config) = value else { return Err(format!("plugins[{at}] is no object")) };
        let kind = match config.get("type").and_then(Value::as_str) {
            Some(kind) if is_file_name(kind) => kind.to_owned(),
            Some(kind) => return Err(format!("plugins[{at}].type {kind:?} is no plain file name")),
            None => return Err(format!("plugins[{at}].type is missing")),
        };
        let declared: BTreeMap<String, bool> = match config.get("capabilities") {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|error| format!("plugins[{at}].capabilities: {error}"))?,
        };
        let capabilities = declared.into_iter().filter_map(|(name, on)| on.then_some(name)).collect();
        Ok(Self { kind, capabilities, config: config.clone() })
    }
}

fn is_file_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 255 && !matches!(text, "." | "..") && !text.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests;
