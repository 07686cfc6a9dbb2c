//! How far a pull is. Data only.

use crate::digest::Digest;
use crate::document::Descriptor;
use crate::store::Image;

/// How far a pull is. Empty until the manifest is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Bottom first.
    pub layers: Vec<LayerProgress>,
}

/// How far one layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Of the compressed blob; of the uncompressed layer when the image was there already.
    pub digest: Digest,
    /// Bytes received.
    pub done: u64,
    /// Bytes of the blob.
    pub total: u64,
    /// What is happening to it.
    pub state: LayerState,
}

/// What is happening to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// For its turn, or for another pull that unpacks the same layer.
    Waiting,
    /// Being received and unpacked at the same time.
    Downloading,
    /// It was there.
    Present,
    /// Unpacked, verified, in place.
    Done,
}

impl PullProgress {
    pub(super) fn waiting(blobs: &[Descriptor]) -> Self {
        let layer = |b: &Descriptor| LayerProgress {
            digest: b.digest,
            done: 0,
            total: b.size,
            state: LayerState::Waiting,
        };
        Self { layers: blobs.iter().map(layer).collect() }
    }

    pub(super) fn present(image: &Image) -> Self {
        let layers = image.layers.iter().map(|layer| LayerProgress {
            digest: layer.diff_id,
            done: 0,
            total: 0,
            state: LayerState::Present,
        });
        Self { layers: layers.collect() }
    }

    /// A layer begins again from its first byte.
    pub(super) fn again(&mut self, index: usize) {
        if let Some(layer) = self.layers.get_mut(index) {
            layer.done = 0;
        }
    }

    pub(super) fn set(&mut self, index: usize, state: LayerState, more: u64) {
        if let Some(layer) = self.layers.get_mut(index) {
            layer.state = state;
            layer.done += more;
        }
    }
}
