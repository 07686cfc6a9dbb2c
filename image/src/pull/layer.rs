//! One layer of a pull: network on one side, a blocking unpack on the other, a bounded number of bytes between.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, mpsc, oneshot};

use super::progress::LayerState;
use super::{Pull, PullError};
use crate::digest::Digest;
use crate::document::Descriptor;
use crate::rooted::open_dir;
use crate::store::{BUDGET, Inner, Kept, Layer, Staging, StoreError, blocking};
use crate::unpack::{Expected, Limits, UnpackError, Unpacked, inherit, unpack_recording};

/// What one layer needs to know.
pub(crate) struct LayerJob<'a> {
    pub(crate) index: usize,
    pub(crate) blob: &'a Descriptor,
    pub(crate) diff_id: Digest,
    /// Chain ids of the whole image.
    pub(crate) chains: &'a [Digest],
    /// Tells when the layer below is in place.
    pub(crate) below: Option<oneshot::Receiver<()>>,
}

impl Pull {
    /// Gets one layer into place and tells `done`.
    ///
    /// No deadlock: whoever holds a chain's lock waits only for chains below it, and a permit is held only
    /// while downloading.
    pub(super) async fn layer(
        &self,
        job: LayerJob<'_>,
        done: oneshot::Sender<()>,
    ) -> Result<Layer, PullError> {
        let chain = job.chains[job.index];
        let lock = self.inner.layer_lock(chain);
        let _unpacking = lock.lock().await;
        let fetched = match self.inner.layer(&chain) {
            Some(_) => None,
            None => Some(self.download(&job).await?),
        };
        // Also for a layer that is there: what a pull left behind need not stand on anything.
        if let Some(below) = job.below
            && below.await.is_err()
        {
            // The layer below failed. Its error ends the pull; this one has nothing to add.
            std::future::pending::<()>().await;
        }
        let usage = match (fetched, self.inner.layer(&chain)) {
            (Some(fetched), _) => self.commit(job.blob.digest, job.chains, job.index, fetched).await?,
            (None, Some(usage)) => {
                // A daemon that was killed right after the commit has left it.
                self.inner.forget_kept(job.blob.digest);
                self.progress.send_modify(|p| p.set(job.index, LayerState::Present, 0));
                usage
            }
            // The lease keeps it, so only another store's process can have taken it.
            (None, None) => return Err(self.place.store(StoreError::Gone(chain))),
        };
        // Nobody above may be left; that is fine.
        let _ = done.send(());
        let directory = self.inner.layer_path(&chain);
        let (bytes, inodes) = usage;
        Ok(Layer { chain_id: chain, diff_id: job.diff_id, directory, bytes, inodes })
    }

    /// One at a time for each blob. What is kept of it is used first, and was there for nothing if the
    /// digest does not match in the end.
    pub(crate) async fn download(&self, job: &LayerJob<'_>) -> Result<(Arc<Staging>, Unpacked), PullError> {
        let digest = job.blob.digest;
        let lock = self.inner.blob_lock(digest);
        let only = Arc::new(lock.lock_owned().await);
        let _permit = self.permits.acquire().await;
        let kept = self.inner.kept(digest, job.blob.size);
        let resumed = kept.have() > 0;
        let mut tried = self.unpack(job, kept, only.clone()).await;
        if resumed && tried.as_ref().is_err_and(is_wrong_content) {
            tracing::warn!(%digest, "kept part of a layer was not its beginning, it is fetched anew");
            self.inner.remove_kept(digest);
            self.progress.send_modify(|p| p.again(job.index));
            tried = self.unpack(job, self.inner.kept(digest, job.blob.size), only).await;
        }
        if tried.as_ref().is_err_and(|e| !was_cut_off(e)) {
            self.inner.remove_kept(digest);
        }
        tried
    }

    async fn unpack(
        &self,
        job: &LayerJob<'_>,
        kept: Kept,
        only: Arc<OwnedMutexGuard<()>>,
    ) -> Result<(Arc<Staging>, Unpacked), PullError> {
        let staging = Arc::new(self.inner.stage().map_err(|e| self.place.store(e))?);
        let (feed, queue) = mpsc::unbounded_channel();
        let blob = Some((job.blob.digest, job.blob.size));
        let expected = Expected { blob, diff_id: job.diff_id };
        let limits = limits(&self.inner);
        let have = kept.have();
        // The thread holds directory and lock too: they go away after the last write, whoever gives up first.
        let target = staging.clone();
        let unpacking = blocking(move || {
            let _only = only;
            let dir = open_dir(target.path()).map_err(UnpackError::Input)?;
            let recorder = target.recorder();
            let rest = Feed { queue, current: Bytes::new(), room: None, ended: false };
            let input = kept.reader(rest).map_err(UnpackError::Input)?;
            unpack_recording(input, expected, dir.as_fd(), limits, recorder)
        });
        let fed = self.feed(job, have, feed);
        let (fed, unpacked) = futures_util::future::join(fed, unpacking).await;
        fed?;
        let unpacked = unpacked.map_err(|e| self.place.store(e))?;
        Ok((staging, unpacked.map_err(|e| self.place.layer(job.blob.digest, e))?))
    }

    /// Moves the blob from the network into the channel, from byte `have` on. An unpack that ended early
    /// is not an error here: it has its own.
    async fn feed(&self, job: &LayerJob<'_>, have: u64, feed: Sender) -> Result<(), PullError> {
        self.progress.send_modify(|p| p.set(job.index, LayerState::Downloading, have));
        let mut blob = self.registry.blob(job.blob.digest, job.blob.size, have);
        loop {
            match blob.chunk().await.map_err(|e| self.place.registry(e))? {
                Some(chunk) => {
                    let more = chunk.len() as u64;
                    let weight = u32::try_from(chunk.len().min(BUDGET)).unwrap_or(u32::MAX);
                    // Unpacking never waits for this, so what is taken comes back. The semaphore is never closed.
                    let Ok(room) = self.inner.budget.clone().acquire_many_owned(weight).await else {
                        return Ok(());
                    };
                    if feed.send(Message::Data(chunk, room)).is_err() {
                        return Ok(());
                    }
                    self.progress.send_modify(|p| p.set(job.index, LayerState::Downloading, more));
                }
                None => {
                    // A failed send means that the unpack has ended; see above.
                    let _ = feed.send(Message::End);
                    return Ok(());
                }
            }
        }
    }

    async fn commit(
        &self,
        blob: Digest,
        chains: &[Digest],
        index: usize,
        (staging, unpacked): (Arc<Staging>, Unpacked),
    ) -> Result<(u64, u64), PullError> {
        let inner = self.inner.clone();
        let chains = chains[..=index].to_vec();
        let committed = blocking(move || {
            settle(&inner, &staging, &chains, &unpacked)
                .map(|()| inner.commit_layer(&staging, chains[index], &unpacked))
        });
        let committed = committed.await.map_err(|e| self.place.store(e))?;
        let usage = committed.map_err(|e| self.place.merge(blob, e))?.map_err(|e| self.place.store(e))?;
        self.inner.forget_kept(blob);
        self.progress.send_modify(|p| p.set(index, LayerState::Done, 0));
        Ok(usage)
    }
}

pub(crate) fn limits(inner: &Inner) -> Limits {
    let options = inner.options();
    Limits { bytes: options.layer_bytes_max, entries: options.layer_entries_max }
}

/// Gives directories that the layer did not describe what the layers below say about them. The last of
/// `chains` is the layer itself, the others are in place.
pub(crate) fn settle(
    inner: &Inner,
    staging: &Staging,
    chains: &[Digest],
    unpacked: &Unpacked,
) -> io::Result<()> {
    if unpacked.implicit.is_empty() || chains.len() < 2 {
        return Ok(());
    }
    let below = &chains[..chains.len() - 1];
    let open = |path: &Path| {
        open_dir(path).map_err(|e| io::Error::new(e.kind(), format!("open {}: {e}", path.display())))
    };
    let lowers = below.iter().rev().map(|c| open(&inner.layer_path(c))).collect::<io::Result<Vec<_>>>()?;
    let lowers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
    inherit(open(staging.path())?.as_fd(), &lowers, &unpacked.implicit)
}

/// Whether the bytes were not the ones that were asked for.
fn is_wrong_content(error: &PullError) -> bool {
    let PullError::Layer { source, .. } = error else { return false };
    matches!(**source, UnpackError::Digest { .. } | UnpackError::Size { .. })
}

/// Whether what has arrived so far may be the beginning of the layer.
fn was_cut_off(error: &PullError) -> bool {
    match error {
        PullError::Registry { .. } => true,
        PullError::Layer { source, .. } => matches!(**source, UnpackError::Input(_)),
        _ => false,
    }
}

type Sender = mpsc::UnboundedSender<Message>;

enum Message {
    /// Bytes, and the room they take in the store's budget until they are unpacked.
    Data(Bytes, OwnedSemaphorePermit),
    /// The blob is complete. A channel that closes without it was given up.
    End,
}

/// The blocking end of the channel.
struct Feed {
    queue: mpsc::UnboundedReceiver<Message>,
    current: Bytes,
    /// Of `current`.
    room: Option<OwnedSemaphorePermit>,
    ended: bool,
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            self.room = None;
            match self.queue.blocking_recv() {
                Some(Message::Data(bytes, room)) => (self.current, self.room) = (bytes, Some(room)),
                Some(Message::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the pull was given up"));
                }
            }
        }
        let n = self.current.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}
