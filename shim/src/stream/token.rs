//! One-time tokens: what a CRI call has asked for, until somebody opens the URL that it got.
//!
//! A token is 128 random bits, good once, for a minute. Must not know: what is asked for.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::{Class, RequestError},
    id::hex,
};

/// How long a token is good.
const LIFE: Duration = Duration::from_secs(60);
/// Most tokens that are good at a time.
const TOKENS_MAX: usize = 1000;

#[derive(Debug)]
struct Entries<T> {
    by_token: HashMap<String, (Instant, T)>,
    /// The order in which they expire; used ones stay in it until then.
    queue: VecDeque<(Instant, String)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tokens<T> {
    entries: Mutex<Entries<T>>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { entries: Mutex::new(Entries { by_token: HashMap::new(), queue: VecDeque::new() }) }
    }
}

impl<T> Tokens<T> {
    /// A new token for `value`.
    ///
    /// # Errors
    /// `Exhausted`: too many wait to be used.
    pub(super) fn give(&self, value: T) -> Result<String, RequestError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|error| RequestError::unknown(format!("make a token: random source: {error}")))?;
        let token = hex(&bytes);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.expire(Instant::now());
        if entries.by_token.len() >= TOKENS_MAX {
            return Err(RequestError::new(
                Class::Exhausted,
                format!("{TOKENS_MAX} streaming URLs wait to be used; each is given up after {LIFE:?}"),
            ));
        }
        let end = Instant::now() + LIFE;
        entries.by_token.insert(token.clone(), (end, value));
        entries.queue.push_back((end, token.clone()));
        Ok(token)
    }

    /// What a token stands for; it is good for nothing after that.
    pub(super) fn take(&self, token: &str) -> Option<T> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.expire(Instant::now());
        entries.by_token.remove(token).map(|(_, value)| value)
    }
}

impl<T> Entries<T> {
    fn expire(&mut self, now: Instant) {
        while let Some((end, _)) = self.queue.front()
            && *end <= now
        {
            if let Some((_, token)) = self.queue.pop_front() {
                self.by_token.remove(&token);
            }
        }
        // Used ones are dropped, too, before they are more than the others.
        if self.queue.len() > 2 * TOKENS_MAX {
            self.queue.retain(|(_, token)| self.by_token.contains_key(token));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_good_once() {
        let tokens = Tokens::default();
        let (first, second) = (tokens.give(1).unwrap(), tokens.give(2).unwrap());
        assert!(first != second && first.len() == 32);
        assert_eq!((tokens.take(&second), tokens.take(&second)), (Some(2), None));
        assert_eq!((tokens.take("guess"), tokens.take(&first)), (None, Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_for_a_minute() {
        let tokens = Tokens::default();
        let token = tokens.give(()).unwrap();
        tokio::time::advance(LIFE - Duration::from_millis(1)).await;
        let later = tokens.give(()).unwrap();
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!((tokens.take(&token), tokens.take(&later)), (None, Some(())));
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_never_more_than_the_limit_and_used_ones_cost_nothing() {
        let tokens = Tokens::default();
        for _ in 0..TOKENS_MAX {
            tokens.give(()).unwrap();
        }
        assert_eq!(tokens.give(()).unwrap_err().class, Class::Exhausted);
        tokio::time::advance(LIFE).await;
        for _ in 0..10 * TOKENS_MAX {
            let token = tokens.give(()).unwrap();
            assert_eq!(tokens.take(&token), Some(()));
        }
        let entries = tokens.entries.lock().unwrap();
        assert!(entries.by_token.is_empty() && entries.queue.len() <= 2 * TOKENS_MAX + 1);
    }
}
