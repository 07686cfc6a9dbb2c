//! Locks by digest. Purpose: what is named by a digest is made once, however many want it at the same time.
//! Knows not what is made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::digest::Digest;

/// One lock a digest, for as long as somebody has it.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl Locks {
    pub(super) fn of(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(&digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(digest, Arc::downgrade(&lock));
        lock
    }
}
