//! What containers have written. Purpose: a figure for statistics that costs no call anything: it is measured in the
//! background and kept, for a walk over millions of files takes as long as it takes. Knows not who asks.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::{Inner, Store, StoreError, blocking};
use crate::rooted;

/// An older figure is measured anew when somebody asks for it.
const FRESH: Duration = Duration::from_secs(10);
/// Measuring takes at most one part in so many of the time.
const REST: u32 = 20;

/// What a container had written at some time: its writable layer, and the volumes that its image declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Allocated bytes.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
    /// When that was.
    pub at: SystemTime,
}

/// The last figure of each container that was made here, or that somebody has asked about.
#[derive(Debug, Default)]
pub(super) struct Figures {
    known: Mutex<HashMap<String, Figure>>,
    /// One container is measured at a time, so that the disk is left to those who work.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Figure {
    last: Option<Written>,
    /// When it is old; `None`: it is being measured.
    due: Option<Instant>,
}

impl Figures {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Figure>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container that has just been made has written nothing; what its directories take up is known at once.
    pub(super) fn begin(&self, container: &str, (bytes, inodes): (u64, u64)) {
        let last = Some(Written { bytes, inodes, at: SystemTime::now() });
        self.known().insert(container.to_owned(), Figure { last, due: Some(Instant::now()) });
    }

    pub(super) fn forget(&self, container: &str) {
        self.known().remove(container);
    }
}

impl Store {
    /// What a container has written, as it was measured last; `None` where it has not been measured yet. Never waits:
    /// a figure that is old, or missing, is measured in the background.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn written(&self, container: &str) -> Option<Written> {
        let inner = &self.inner;
        // Held, so that a release comes before this or forgets what is noted here.
        let state = inner.read();
        if !state.containers.contains_key(container) {
            return None;
        }
        let mut known = inner.written.known();
        let figure = known
            .entry(container.to_owned())
            .or_insert_with(|| Figure { last: None, due: Some(Instant::now()) });
        if figure.due.is_some_and(|due| due <= Instant::now()) {
            figure.due = None;
            tokio::spawn(inner.clone().renew(container.to_owned()));
        }
        figure.last
    }
}

impl Inner {
    async fn renew(self: Arc<Self>, container: String) {
        let _turn = self.written.turn.lock().await;
        let (inner, id) = (self.clone(), container.clone());
        let begin = Instant::now();
        let measured = blocking(move || inner.measure(&id)).await.and_then(|measured| measured);
        // A container that was released meanwhile is not known any more, and stays so.
        let mut known = self.written.known();
        let Some(figure) = known.get_mut(&container) else { return };
        figure.due = Some(Instant::now() + FRESH.max(begin.elapsed() * REST));
        match measured {
            Ok((bytes, inodes)) => figure.last = Some(Written { bytes, inodes, at: SystemTime::now() }),
            Err(error) => tracing::debug!(container, %error, "writable layer"),
        }
    }

    /// Allocated bytes and inodes of what a container has written. Walks the directories.
    pub(crate) fn measure(&self, container: &str) -> Result<(u64, u64), StoreError> {
        let dir = self.container_dir(container);
        let (mut bytes, mut inodes) = (0, 0);
        for part in [dir.join("upper"), dir.join("volumes")] {
            match rooted::usage(&part) {
                Ok((more_bytes, more_inodes)) => {
                    bytes += more_bytes;
                    inodes += more_inodes;
                }
                // Most containers have no volumes here.
                Err(e) if e.kind() == io::ErrorKind::NotFound && part.ends_with("volumes") => {}
                Err(source) => return Err(StoreError::Io { stage: "measure", path: part, source }),
            }
        }
        Ok((bytes, inodes))
    }
}
