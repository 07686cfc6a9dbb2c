//! Whether the network is ready: a question that never waits for a plugin.
//!
//! Plugins of version 1.1 say themselves whether they are (STATUS). What they said last is the answer, and asking is
//! what has them asked again, in the background: nothing is polled while nobody wants to know.

use std::sync::{Arc, Mutex, PoisonError};

use crisp_netns::cni::NetworkList;

use super::{Mode, Networks};
use crate::{error::chain, node::blocking};

/// What plugins said last.
#[derive(Debug, Default)]
pub(super) struct Verdict(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    /// Of which list, and what.
    last: Option<(NetworkList, Result<(), String>)>,
    /// They are being asked.
    asking: bool,
}

impl Networks {
    /// Whether a pod could be attached now; if not, why not, for a person to act on.
    ///
    /// Cancel safety: nothing is lost.
    pub(crate) async fn ready(self: &Arc<Self>) -> Result<(), String> {
        if self.mode == Mode::Bridge {
            return Ok(());
        }
        let networks = self.clone();
        match blocking(move || networks.choose()).await {
            Ok(Some(list)) => self.verdict(list),
            Ok(None) => Ok(()),
            Err(error) => Err(error.text),
        }
    }

    fn verdict(self: &Arc<Self>, list: NetworkList) -> Result<(), String> {
        if list.version < crisp_netns::cni::Version::V1_1_0 {
            return Ok(());
        }
        let mut said = self.verdict.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match &said.last {
            Some((asked, answer)) if *asked == list => answer.clone(),
            _ => Err(format!(
                "CNI network {}: its plugins have not said yet whether they are ready",
                list.name
            )),
        };
        if !said.asking {
            said.asking = true;
            let networks = self.clone();
            tokio::task::spawn_blocking(move || networks.ask(list));
        }
        answer
    }

    /// Asks the plugins of `list`, and keeps what they say. Blocks.
    fn ask(&self, list: NetworkList) {
        let answer = self.cni.status(&list).map_err(|error| chain(&error));
        let mut said = self.verdict.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = said.last.as_ref().is_none_or(|(_, last)| *last != answer);
        match &answer {
            Err(reason) if changed => tracing::warn!(reason, "the network is not ready"),
            Ok(()) if changed => tracing::info!(network = list.name, "the network is ready"),
            _ => {}
        }
        *said = Said { last: Some((list, answer)), asking: false };
    }
}
