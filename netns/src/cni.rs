//! Networks of others: the Container Network Interface (CNI), versions 0.3.1 to 1.1.0.
//!
//! ```text
//!  folder of network lists ──► NetworkList ──► for each plugin of the list: one process
//!    (read at each use)                          environment: CNI_*     standard input: JSON
//!                                                standard output: result or error, JSON
//!  ADD   intent ─► ledger, synced ─► plugin, plugin, … ─► result ─► ledger
//!  DEL   ledger ─► …, plugin, plugin ─► the entry goes when all have succeeded
//! ```
//!
//! What was asked of plugins is on file before the first is started, and stays there until a DEL of all of them has
//! succeeded: with the list as it was then, whatever has become of its file. So nothing that a plugin holds, an address
//! above all, is ever forgotten, and whoever finds an entry can have it given back.
//!
//! Nothing a plugin does is trusted: what it prints is bounded, its time is limited, and all its processes end with it,
//! by means that the caller supplies ([`Confine`]).
//!
//! It must not know what a pod, a container or CRI is, or what a cgroup is. See
//! <https://github.com/containernetworking/cni/blob/main/SPEC.md>.

mod config;
mod error;
mod exec;
mod files;
mod invoke;
mod ledger;
mod output;
mod result;
mod verbs;
mod version;

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

pub use config::{ConfigProblem, NetworkList, NoNetwork, Plugin};
pub use error::{CniError, Failure, PluginError};
pub use exec::{Confine, Confined};
pub use invoke::{Attachment, AttachmentProblem, Verb};
pub use ledger::{Entry, Ledger, LedgerError};
pub use result::{AttachResult, ResultProblem};
pub use version::Version;

/// Where networks are configured and how their plugins are run.
#[derive(Debug)]
pub struct Settings {
    /// Folder of network lists, usually `/etc/cni/net.d`. It need not exist.
    pub conf_dir: PathBuf,
    /// Folders in which plugins are looked for, in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// How long one plugin may take before it and all its processes are ended.
    pub limit: Duration,
    /// Folder of the ledger, on a disk that outlives the kernel. Made when it is not there.
    pub ledger: PathBuf,
}

/// CNI on this host. Shared by reference between threads; every method blocks while plugins run.
#[derive(Debug)]
pub struct Cni {
    conf_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
    limit: Duration,
    ledger: Ledger,
    confine: Arc<dyn Confine>,
    /// GC takes away what its caller does not know of, so nothing may be added while it runs.
    adding: RwLock<()>,
}

impl Cni {
    /// Opens the ledger. Neither configuration nor plugins need to be there yet.
    ///
    /// # Errors
    /// The folder of the ledger cannot be made or opened.
    pub fn open(settings: Settings, confine: Arc<dyn Confine>) -> Result<Self, LedgerError> {
        Ok(Self {
            conf_dir: settings.conf_dir,
            bin_dirs: settings.bin_dirs,
            limit: settings.limit,
            ledger: Ledger::open(settings.ledger)?,
            confine,
            adding: RwLock::new(()),
        })
    }

    /// The network that is configured now: the first valid list of the folder, in the order of file names. The folder is
    /// read anew each time, so no change of it can be missed.
    ///
    /// # Errors
    /// There is none; the error says what is wrong with each file.
    pub fn network(&self) -> Result<NetworkList, NoNetwork> {
        config::first(&self.conf_dir)
    }

    /// What was asked of plugins and has not been given back.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

#[cfg(test)]
mod tests;
