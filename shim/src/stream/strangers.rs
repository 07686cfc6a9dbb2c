//! Connections that have not shown a token yet: never more than so many, and a newcomer is never one too many.
//!
//! Whoever has a token shows it at once; who comes first and says nothing makes room for the others. Must not know: how a
//! token is shown.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// Strangers at a time.
const STRANGERS_MAX: usize = 256;

#[derive(Debug, Default)]
struct Present {
    /// In the order in which they came.
    tokens: BTreeMap<u64, CancellationToken>,
    next: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Present>);

impl Strangers {
    /// A stranger more. The token tells when it has to go; dropping the first of both, that it is none any more.
    pub(super) fn welcome(self: &Arc<Self>) -> (Stranger, CancellationToken) {
        let unwanted = CancellationToken::new();
        let mut present = self.lock();
        if present.tokens.len() >= STRANGERS_MAX
            && let Some((_, oldest)) = present.tokens.pop_first()
        {
            oldest.cancel();
        }
        let number = present.next;
        present.next += 1;
        present.tokens.insert(number, unwanted.clone());
        (Stranger { of: self.clone(), number }, unwanted)
    }

    fn lock(&self) -> MutexGuard<'_, Present> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them.
#[derive(Debug)]
pub(super) struct Stranger {
    of: Arc<Strangers>,
    number: u64,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.of.lock().tokens.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_who_is_none_any_more_stays() {
        let strangers = Arc::new(Strangers::default());
        let (known, stays) = strangers.welcome();
        let mut all: Vec<_> = (0..STRANGERS_MAX - 1).map(|_| strangers.welcome()).collect();
        drop(known);
        all.push(strangers.welcome());
        assert!(!all.iter().any(|(_, unwanted)| unwanted.is_cancelled()), "there was room");
        all.push(strangers.welcome());
        assert!(all[0].1.is_cancelled() && !all[1].1.is_cancelled() && !stays.is_cancelled());
        assert_eq!(strangers.lock().tokens.len(), STRANGERS_MAX);
        drop(all);
        assert!(strangers.lock().tokens.is_empty());
    }
}
