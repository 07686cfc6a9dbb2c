//! Pulls under way. Purpose: whoever asks for the same thing with the same right waits for the same pull,
//! and the pull ends when nobody waits.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use tokio::sync::watch;

use super::{PullOptions, PullProgress, PullResult, run};
use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::Inner;

type Running = Pin<Box<dyn Future<Output = PullResult> + Send>>;

/// A pull that lives as long as somebody waits for it, and what it reports.
type Flight = (WeakShared<Running>, watch::Receiver<PullProgress>);

/// What makes two pulls the same. The registry decides what a credential may see, so it is part of it.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    reference: Reference,
    platform: Platform,
    credentials: Option<Digest>,
    hosts_dir: std::path::PathBuf,
}

/// The pulls of a store that are under way.
#[derive(Default)]
pub(crate) struct Flights {
    running: Mutex<HashMap<Key, Flight>>,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.running.lock().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("Flights").field("known", &count).finish()
    }
}

impl Flights {
    /// Joins the pull under way, or prepares one. Whoever polls it drives it.
    pub(super) fn join(
        &self,
        inner: &Arc<Inner>,
        reference: &Reference,
        options: PullOptions,
    ) -> (Shared<Running>, watch::Receiver<PullProgress>) {
        let key = Key {
            reference: reference.clone(),
            platform: options.platform.clone(),
            credentials: options.auth.as_ref().map(crate::registry::Credentials::fingerprint),
            hosts_dir: options.hosts_dir.clone(),
        };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // A pull that has ended is not joined: it may have ended before the caller's image was removed.
        running.retain(|_, (pull, _)| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        if let Some((pull, progress)) = running.get(&key)
            && let Some(pull) = pull.upgrade()
        {
            return (pull, progress.clone());
        }
        let (sender, receiver) = watch::channel(PullProgress::default());
        let (inner, reference) = (inner.clone(), reference.clone());
        let pull: Running =
            Box::pin(async move { run(inner, reference, options, sender).await.map_err(Arc::new) });
        let pull = pull.shared();
        if let Some(weak) = pull.downgrade() {
            running.insert(key, (weak, receiver.clone()));
        }
        (pull, receiver)
    }
}
