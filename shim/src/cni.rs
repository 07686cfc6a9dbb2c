//! Networks of others for pods: when CNI is used, whether it is ready, how its plugins are contained, and what is done
//! about what a plugin does not give back.
//!
//! Must not know: how plugins are spoken to.

pub(crate) mod arguments;
mod cells;
pub(crate) mod debts;
pub(crate) mod ready;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crisp_netns::cni::{Cni, NetworkList, NoNetwork, Settings};

use self::{cells::Cells, debts::Debts, ready::Verdict};
use crate::{
    config::Config,
    error::{RequestError, Stage},
};

/// The interface that a pod's addresses are on.
pub(crate) const INTERFACE: &str = "eth0";

/// Which network new pods get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// CNI's when there is a network list at that moment, else the bridge.
    Auto,
    /// The bridge.
    Bridge,
    /// CNI's.
    Cni,
}

impl Mode {
    /// The mode of a checked configuration.
    pub(crate) fn of(config: &Config) -> Self {
        match config.network.mode.as_str() {
            "bridge" => Self::Bridge,
            "cni" => Self::Cni,
            _ => Self::Auto,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Networks {
    mode: Mode,
    /// In every mode: a pod made in another one has to be given back all the same.
    cni: Cni,
    verdict: Verdict,
    debts: Debts,
    /// What was said last of files that are not used.
    warned: Mutex<Option<NoNetwork>>,
}

impl Networks {
    /// Opens the ledger below the root directory, and ends what plugins of a daemon before this one are doing still:
    /// what they hold is given back by what comes after, which they must not come between.
    ///
    /// # Errors
    /// The ledger or the cgroup tree cannot be used.
    pub(crate) fn open(config: &Config, instance: &str, monitor: &Path) -> Result<Arc<Self>, RequestError> {
        let cells = Cells::open(&config.cgroup, instance, monitor)?;
        if let Err(error) = cells.sweep() {
            tracing::error!(%error, "a CNI plugin of the daemon before this one cannot be ended");
        }
        let network = &config.network;
        let settings = Settings {
            conf_dir: PathBuf::from(&network.cni_conf_dir),
            bin_dirs: network.cni_bin_dirs.iter().map(PathBuf::from).collect(),
            limit: Duration::from_secs(network.cni_timeout_seconds),
            ledger: Path::new(&config.root).join("cni"),
        };
        Ok(Arc::new(Self {
            mode: Mode::of(config),
            cni: Cni::open(settings, Arc::new(cells)).stage("network")?,
            verdict: Verdict::default(),
            debts: Debts::default(),
            warned: Mutex::default(),
        }))
    }

    /// Which network a pod that is made now gets; `None`: the bridge. Reads the folder of network lists.
    ///
    /// # Errors
    /// It has to be CNI's, and there is none.
    pub(crate) fn choose(&self) -> Result<Option<NetworkList>, RequestError> {
        match (self.mode, self.cni.network()) {
            (Mode::Bridge, _) => Ok(None),
            (Mode::Auto | Mode::Cni, Ok(list)) => Ok(Some(list)),
            (Mode::Cni, Err(none)) => Err(RequestError::unknown(format!("network.mode is cni, and {none}"))),
            (Mode::Auto, Err(none)) => {
                self.warn_once(none);
                Ok(None)
            }
        }
    }

    /// Says that files are not used, once and not whenever somebody asks.
    fn warn_once(&self, none: NoNetwork) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.as_ref() != Some(&none) {
            if !none.problems.is_empty() {
                tracing::warn!(%none, "the embedded network is used instead");
            }
            *warned = Some(none);
        }
    }

    /// CNI itself.
    pub(crate) fn cni(&self) -> &Cni {
        &self.cni
    }

    /// What plugins have answered for the pod `id`, as they are given it; nothing, if they hold nothing for it.
    pub(crate) fn result(&self, id: &str) -> Option<serde_json::Value> {
        self.cni.ledger().read(id, INTERFACE).ok().flatten()?.result
    }

    /// What the folder of network lists gives now, for people: the list, or why there is none.
    pub(crate) fn describe(&self) -> serde_json::Value {
        match self.cni.network() {
            Ok(list) => serde_json::json!({"network": list.name, "list": list.to_json()}),
            Err(none) => serde_json::json!({"problem": none.to_string()}),
        }
    }

    /// Has plugins forget what no pod has, in the background. To be called when the pods of the daemon before this one
    /// are known, in a tokio runtime.
    pub(crate) fn collect(self: &Arc<Self>) {
        let networks = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Ok(Some(list)) = networks.choose()
                && let Err(error) = networks.cni.collect(&list)
            {
                tracing::warn!(
                    error = crate::error::chain(&error),
                    "CNI plugins could not collect their garbage"
                );
            }
        });
    }
}
