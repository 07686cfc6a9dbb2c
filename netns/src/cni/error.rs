//! Why plugins did not do what they were asked for. Every error names the plugin, the command and the cause.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use super::config::NoNetwork;
use super::invoke::{AttachmentProblem, Verb};
use super::ledger::LedgerError;
use super::result::ResultProblem;

/// An operation on a network that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no network list.
    #[error(transparent)]
    NoNetwork(#[from] NoNetwork),
    /// What was asked for cannot be put into words that plugins take.
    #[error(transparent)]
    Attachment(#[from] AttachmentProblem),
    /// A plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// An ADD that failed, and the DEL after it as well: what the plugins hold stays on record.
    #[error("{add}; then, giving back what it had: {delete}")]
    Undo {
        /// Why the ADD failed.
        add: Box<CniError>,
        /// Why nothing was given back.
        delete: Box<CniError>,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl CniError {
    /// The plugin's failure that is at the bottom of this, if there is one.
    #[must_use]
    pub fn plugin(&self) -> Option<&PluginError> {
        match self {
            Self::Plugin(error) => Some(error),
            Self::Undo { add, .. } => add.plugin(),
            Self::NoNetwork(_) | Self::Attachment(_) | Self::Ledger(_) => None,
        }
    }
}

/// What one plugin did not do.
#[derive(Debug, thiserror::Error)]
#[error("CNI network {network}: {verb} of plugin {plugin}: {failure}")]
pub struct PluginError {
    /// The network's name.
    pub network: String,
    /// The command.
    pub verb: Verb,
    /// The plugin's type.
    pub plugin: String,
    /// What went wrong.
    pub failure: Failure,
}

/// What went wrong with a plugin.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No such program.
    #[error("there is no program of this name in {}", list(folders))]
    Missing {
        /// Where it was looked for.
        folders: Vec<PathBuf>,
    },
    /// It could not be started.
    #[error("start {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What contains its processes could not be made.
    #[error("contain its processes: {0}")]
    Confine(io::Error),
    /// Its processes could not all be ended.
    #[error("end its processes: {0}")]
    End(io::Error),
    /// The conversation with it broke.
    #[error("talk to it: {0}")]
    Talk(io::Error),
    /// It took too long, and was ended with all its processes.
    #[error("it has not ended after {seconds} s and was killed{}", quoted(said))]
    Time {
        /// The limit.
        seconds: u64,
        /// The last of what it said on its standard error.
        said: String,
    },
    /// It printed too much, and was ended.
    #[error("it printed more than {limit} bytes and was killed")]
    Flood {
        /// Most bytes that are taken.
        limit: usize,
    },
    /// It said why it failed.
    #[error("{message} (code {code}){}", quoted(details))]
    Refused {
        /// CNI error code.
        code: u64,
        /// In its words.
        message: String,
        /// More of its words.
        details: String,
    },
    /// It failed without saying why in a form that can be understood.
    #[error("{status}{}", quoted(said))]
    Garbage {
        /// How it ended.
        status: ExitStatus,
        /// A part of what it said.
        said: String,
    },
    /// It succeeded, and its result is not one.
    #[error("its result: {0}")]
    Result(#[from] ResultProblem),
}

impl Failure {
    /// The CNI error code that the plugin gave.
    #[must_use]
    pub fn code(&self) -> Option<u64> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the plugin says that something is not there.
    pub(super) fn is_absence(&self) -> bool {
        let absent = |text: &str| {
            let text = text.to_lowercase();
            text.contains("not found") || text.contains("no such file")
        };
        match self {
            Self::Refused { message, details, .. } => absent(message) || absent(details),
            Self::Garbage { said, .. } => absent(said),
            _ => false,
        }
    }
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Behind a colon, if there is anything.
fn quoted(text: &str) -> String {
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}
