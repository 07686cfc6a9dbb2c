//! One layer of a pull: network on one side, a blocking unpack on the other, a bounded channel between.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::progress::LayerState;
use super::{Pull, PullError};
use crate::digest::Digest;
use crate::document::Descriptor;
use crate::rooted::open_dir;
use crate::store::{Inner, Layer, Staging, blocking};
use crate::unpack::{Expected, Limits, UnpackError, Unpacked, inherit, unpack};

/// Chunks between network and unpack: about a megabyte.
const QUEUE: usize = 64;

/// What one layer needs to know.
pub(super) struct LayerJob<'a> {
    pub(super) index: usize,
    pub(super) blob: &'a Descriptor,
    pub(super) diff_id: Digest,
    /// Chain ids of the whole image.
    pub(super) chains: &'a [Digest],
    /// Tells when the layer below is in place.
    pub(super) below: Option<oneshot::Receiver<()>>,
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
        let usage = match self.inner.layer(&chain) {
            Some(usage) => {
                self.progress.send_modify(|p| p.set(job.index, LayerState::Present, 0));
                usage
            }
            None => {
                let (staging, unpacked) = self.download(&job).await?;
                if let Some(below) = job.below
                    && below.await.is_err()
                {
                    // The layer below failed. Its error ends the pull; this one has nothing to add.
                    std::future::pending::<()>().await;
                }
                self.commit(job.blob.digest, job.chains, job.index, (staging, unpacked)).await?
            }
        };
        // Nobody above may be left; that is fine.
        let _ = done.send(());
        let directory = self.inner.layer_path(&chain);
        let (bytes, inodes) = usage;
        Ok(Layer { chain_id: chain, diff_id: job.diff_id, directory, bytes, inodes })
    }

    async fn download(&self, job: &LayerJob<'_>) -> Result<(Arc<Staging>, Unpacked), PullError> {
        let _permit = self.permits.acquire().await;
        let staging = Arc::new(self.inner.stage().map_err(|e| self.place.store(e))?);
        let (feed, queue) = mpsc::channel(QUEUE);
        let blob = Some((job.blob.digest, job.blob.size));
        let expected = Expected { blob, diff_id: job.diff_id };
        let limits = limits(&self.inner);
        // The thread holds the directory too: it goes away after the last write, whoever gives up first.
        let target = staging.clone();
        let unpacking = blocking(move || {
            let dir = open_dir(target.path()).map_err(UnpackError::Input)?;
            unpack(Feed { queue, current: Bytes::new(), ended: false }, expected, dir.as_fd(), limits)
        });
        let fed = self.feed(job, feed);
        let (fed, unpacked) = futures_util::future::join(fed, unpacking).await;
        fed?;
        let unpacked = unpacked.map_err(|e| self.place.store(e))?;
        Ok((staging, unpacked.map_err(|e| self.place.layer(job.blob.digest, e))?))
    }

    /// Moves the blob from the network into the channel. An unpack that ended early is not an error here:
    /// it has its own.
    async fn feed(&self, job: &LayerJob<'_>, feed: mpsc::Sender<Message>) -> Result<(), PullError> {
        let mut blob = self.registry.blob(job.blob.digest, job.blob.size);
        loop {
            match blob.chunk().await.map_err(|e| self.place.registry(e))? {
                Some(chunk) => {
                    let more = chunk.len() as u64;
                    if feed.send(Message::Data(chunk)).await.is_err() {
                        return Ok(());
                    }
                    self.progress.send_modify(|p| p.set(job.index, LayerState::Downloading, more));
                }
                None => {
                    // A failed send means that the unpack has ended; see above.
                    let _ = feed.send(Message::End).await;
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
        let usage = (unpacked.bytes, unpacked.inodes);
        let committed = blocking(move || {
            settle(&inner, &staging, &chains, &unpacked)
                .map(|()| inner.commit_layer(&staging, chains[index], usage))
        });
        let committed = committed.await.map_err(|e| self.place.store(e))?;
        committed.map_err(|e| self.place.merge(blob, e))?.map_err(|e| self.place.store(e))?;
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
    let lowers =
        below.iter().rev().map(|c| open_dir(&inner.layer_path(c))).collect::<io::Result<Vec<_>>>()?;
    let lowers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
    inherit(open_dir(staging.path())?.as_fd(), &lowers, &unpacked.implicit)
}

enum Message {
    Data(Bytes),
    /// The blob is complete. A channel that closes without it was given up.
    End,
}

/// The blocking end of the channel.
struct Feed {
    queue: mpsc::Receiver<Message>,
    current: Bytes,
    ended: bool,
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.queue.blocking_recv() {
                Some(Message::Data(bytes)) => self.current = bytes,
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
