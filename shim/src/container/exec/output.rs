//! What the processes of ExecSync say, kept until they end: so much of a stream, and so much of all of them together.
//!
//! Must not know: what a process is.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt};

/// CRI cuts each stream at 16 MiB.
const STREAM_BYTES: usize = 16 << 20;
/// What each stream may keep whatever the others hold: kubelet looks at 10 KiB of what a probe says, and no container's
/// flood may take them from another one's.
const OWN_BYTES: usize = 16 << 10;

/// What all calls together keep beyond [`OWN_BYTES`] a stream.
static SHARED: Budget = Budget::new(128 << 20);

#[derive(Debug)]
struct Budget {
    limit: usize,
    held: AtomicUsize,
}

impl Budget {
    const fn new(limit: usize) -> Self {
        Self { limit, held: AtomicUsize::new(0) }
    }

    /// Takes as much of `wanted` as is left.
    fn take(&self, wanted: usize) -> usize {
        let left = |held: usize| wanted.min(self.limit.saturating_sub(held));
        let held = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| Some(held + left(held)))
            .unwrap_or(self.limit);
        left(held)
    }

    fn give_back(&self, taken: usize) {
        self.held.fetch_sub(taken, Ordering::Relaxed);
    }
}

/// A stream's beginning.
#[derive(Debug)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    taken: usize,
    /// Nothing is kept after a gap: what is shown is a beginning.
    cut: bool,
    budget: &'static Budget,
}

impl Kept {
    pub(super) fn new() -> Self {
        Self::within(&SHARED)
    }

    fn within(budget: &'static Budget) -> Self {
        Self { bytes: Vec::new(), taken: 0, cut: false, budget }
    }

    /// How much it is.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes, no more of them than `limit`. From here on others have its room.
    pub(super) fn into_bytes(mut self, limit: usize) -> Vec<u8> {
        self.bytes.truncate(limit);
        std::mem::take(&mut self.bytes)
    }

    /// Reads to the end; what is over a limit is read and dropped, so that the process is never blocked.
    pub(super) async fn collect(&mut self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            self.push(&buffer[..count]);
        }
    }

    fn push(&mut self, said: &[u8]) {
        if self.cut {
            return;
        }
        let room = STREAM_BYTES.saturating_sub(self.bytes.len()).min(said.len());
        let own = OWN_BYTES.saturating_sub(self.bytes.len()).min(room);
        let shared = self.budget.take(room - own);
        self.taken += shared;
        self.bytes.extend_from_slice(&said[..own + shared]);
        self.cut = own + shared < said.len();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.budget.give_back(self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_is_cut_at_its_limit() {
        let mut kept = Kept::new();
        kept.collect(tokio::io::repeat(b'x').take(STREAM_BYTES as u64 + 70_000)).await;
        assert_eq!(kept.len(), STREAM_BYTES);
        assert_eq!(kept.into_bytes(5), b"xxxxx");
    }

    #[test]
    fn all_streams_share_what_there_is_and_each_has_its_own() {
        static BUDGET: Budget = Budget::new(100_000);
        let mut greedy = Kept::within(&BUDGET);
        greedy.push(&[b'g'; 200_000]);
        assert_eq!(greedy.len(), OWN_BYTES + 100_000);
        let mut late = Kept::within(&BUDGET);
        late.push(&[b'a'; OWN_BYTES + 1]);
        assert_eq!(late.len(), OWN_BYTES, "the other one has all that is shared");
        drop(greedy);
        late.push(b"after a gap");
        assert_eq!(late.len(), OWN_BYTES, "what is kept is a beginning");
        let mut next = Kept::within(&BUDGET);
        next.push(&[b'n'; 200_000]);
        assert_eq!(next.len(), OWN_BYTES + 100_000, "everything has come back");
        drop((late, next));
        assert_eq!(BUDGET.held.load(Ordering::Relaxed), 0);
    }
}
