//! Layers that are whole and that no image names yet. Purpose: what one pull has unpacked before it was
//! cut off is there for the next one, also after the end of the daemon. Knows no image.
//!
//! Such a layer has been written but not synced. That holds as long as the kernel lives; after a power
//! cut it may be anything. So a note lies beside it with the kernel's boot id, and after another boot
//! the layer is deleted as every other stray.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::index::State;
use super::layers::layer_name;
use super::{Inner, StoreError};
use crate::digest::Digest;

/// So long a layer waits for a pull to come back for it, whatever else is collected.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(3600);

#[derive(Serialize, Deserialize)]
struct Note {
    boot: String,
    chain_id: Digest,
    bytes: u64,
    inodes: u64,
}

/// Names the run of the kernel; none where it cannot be told, and then nothing is ever taken up again.
fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

fn path(root: &Path, chain: &Digest) -> PathBuf {
    root.join("fresh").join(format!("{}.json", layer_name(chain)))
}

impl Inner {
    /// Notes that a layer is about to be put in place.
    pub(super) fn note_fresh(&self, chain: Digest, (bytes, inodes): (u64, u64)) -> Result<(), StoreError> {
        let Some(boot) = boot_id() else { return Ok(()) };
        let path = path(&self.root, &chain);
        let text = serde_json::to_vec(&Note { boot, chain_id: chain, bytes, inodes });
        text.map_err(std::io::Error::from)
            .and_then(|text| std::fs::write(&path, text))
            .map_err(StoreError::io("write", &path))
    }

    /// An image names these layers now, or they are gone: they are not waited for any more.
    pub(super) fn settle_fresh(&self, chains: impl Iterator<Item = Digest>) {
        let mut known: Vec<Digest> = chains.collect();
        {
            let mut state = self.write();
            known.retain(|chain| state.fresh.remove(chain).is_some());
        }
        for chain in known {
            // A note that stays says of a layer that is named what is so anyway.
            let _ = std::fs::remove_file(path(&self.root, &chain));
        }
    }
}

impl Inner {
    /// No pull will come back for these layers: the image that they were fetched for cannot be used.
    pub(crate) fn discard_fresh(self: &Arc<Self>, chains: &[Digest]) {
        self.settle_fresh(chains.iter().copied());
        self.sweep();
    }
}

/// Takes up what an earlier daemon has put in place under this kernel, and forgets everything else.
pub(super) fn load(root: &Path, names: Vec<String>, state: &mut State) {
    let boot = boot_id();
    for name in names {
        let file = root.join("fresh").join(name);
        let note = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Note>(&text).ok());
        let usable = note.filter(|note| {
            boot.as_ref() == Some(&note.boot)
                && file == path(root, &note.chain_id)
                && root.join("layers").join(layer_name(&note.chain_id)).is_dir()
                && !state.layers.contains_key(&note.chain_id)
        });
        match usable {
            Some(note) => {
                state.layers.insert(note.chain_id, (note.bytes, note.inodes));
                state.fresh.insert(note.chain_id, Instant::now());
            }
            None => drop(std::fs::remove_file(&file)),
        }
    }
}
