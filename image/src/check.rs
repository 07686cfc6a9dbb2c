//! Proving what is in the store, and healing it. Purpose: every layer is compared with its diff id, and a
//! damaged one is fetched again and mended in place, under the containers that stand on it. Knows neither
//! tar nor HTTP.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::document::{Descriptor, Document};
use crate::pull::{LayerJob, Pull, PullError, PullOptions, settle};
use crate::reference::Reference;
use crate::rooted::open_dir;
use crate::store::{Image, Inner, Store, StoreError, blocking, mend};
use crate::unpack::compare;

/// How a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// As its diff id says.
    Good,
    /// It cannot be told, for this reason.
    Unknown(String),
    /// Not as it should be, for this reason.
    Damaged(String),
    /// It was not as it should be, for this reason, and is now.
    Healed(String),
}

/// A layer that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedLayer {
    /// Names the layer together with all below it.
    pub chain_id: Digest,
    /// Digest of its archive.
    pub diff_id: Digest,
    /// Images that stand on it.
    pub images: Vec<Digest>,
    /// How it is.
    pub condition: Condition,
}

impl Store {
    /// Checks the layers of one image, or of all, and sends each to `report` as it is done. With `heal`, a
    /// layer that is damaged or cannot be told about is fetched from where its image came from.
    ///
    /// Cancel safety: a layer that is being mended is mended to its end.
    ///
    /// # Errors
    /// As [`Store::get`], or [`StoreError::Missing`].
    pub async fn check(
        &self,
        image: Option<&str>,
        heal: Option<&PullOptions>,
        report: &mpsc::UnboundedSender<CheckedLayer>,
    ) -> Result<(), StoreError> {
        let images = match image {
            Some(name) => vec![self.get(name)?.ok_or_else(|| StoreError::Missing(name.to_owned()))?],
            None => self.list(),
        };
        let mut done: Vec<Digest> = Vec::new();
        for image in &images {
            for index in 0..image.layers.len() {
                let layer = &image.layers[index];
                if done.contains(&layer.chain_id) {
                    continue;
                }
                done.push(layer.chain_id);
                let condition = self.inner.condition(image, index, heal).await?;
                let stands = |other: &&Arc<Image>| other.layers.iter().any(|l| l.chain_id == layer.chain_id);
                let images = self.list().iter().filter(stands).map(|image| image.id).collect();
                let checked =
                    CheckedLayer { chain_id: layer.chain_id, diff_id: layer.diff_id, images, condition };
                if report.send(checked).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Inner {
    async fn condition(
        self: &Arc<Self>,
        image: &Arc<Image>,
        index: usize,
        heal: Option<&PullOptions>,
    ) -> Result<Condition, StoreError> {
        let chains: Vec<Digest> = image.layers.iter().map(|layer| layer.chain_id).collect();
        // It cannot be collected meanwhile, and nobody else mends it.
        let _lease = self.lease(&chains);
        let lock = self.layer_lock(chains[index]);
        let _alone = lock.lock().await;
        let before = self.look(image, index).await?;
        let (Some(options), Condition::Unknown(reason) | Condition::Damaged(reason)) = (heal, &before) else {
            return Ok(before);
        };
        if let Err(error) = self.heal(image, index, options).await {
            return Ok(Condition::Damaged(format!("{reason}; not healed: {error}")));
        }
        Ok(match self.look(image, index).await? {
            Condition::Damaged(still) => Condition::Damaged(format!("{still}, also when fetched again")),
            _ => Condition::Healed(reason.clone()),
        })
    }

    async fn look(self: &Arc<Self>, image: &Arc<Image>, index: usize) -> Result<Condition, StoreError> {
        let (inner, image) = (self.clone(), image.clone());
        blocking(move || {
            let layer = &image.layers[index];
            let split = match File::open(inner.split_path(&layer.chain_id)) {
                Ok(split) => split,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Condition::Unknown("nothing was put away to compare it with".to_owned());
                }
                Err(e) => return Condition::Unknown(format!("what was put away cannot be read: {e}")),
            };
            let lowers = image.layers[..index].iter().rev().map(|l| open_dir(&l.directory));
            let compared = lowers
                .collect::<io::Result<Vec<_>>>()
                .and_then(|lowers| compare(split, &open_dir(&layer.directory)?, lowers, layer.diff_id));
            match compared {
                Ok(None) => Condition::Good,
                Ok(Some(reason)) => Condition::Damaged(reason),
                Err(e) => Condition::Damaged(e.to_string()),
            }
        })
        .await
    }

    /// Fetches a layer again, from the first place that has it, and mends the tree.
    async fn heal(
        self: &Arc<Self>,
        image: &Arc<Image>,
        index: usize,
        options: &PullOptions,
    ) -> Result<(), String> {
        let blob =
            self.blob_of(image, index).ok_or("its image has no manifest, it did not come from a registry")?;
        let layer = &image.layers[index];
        let chains: Vec<Digest> = image.layers.iter().map(|layer| layer.chain_id).collect();
        let mut last = "its image has no name of a registry".to_owned();
        for name in &image.repo_digests {
            let Ok(reference) = Reference::parse(name) else { continue };
            let fetched = async {
                let pull = Pull::again(self, &reference, options)?;
                let job =
                    LayerJob { index, blob: &blob, diff_id: layer.diff_id, chains: &chains, below: None };
                pull.download(&job).await
            };
            let (staging, unpacked) = match fetched.await {
                Ok(fetched) => fetched,
                Err(error) => {
                    last = words(&error);
                    continue;
                }
            };
            let (inner, chains, directory) =
                (self.clone(), chains[..=index].to_vec(), layer.directory.clone());
            let chain = layer.chain_id;
            let mended = blocking(move || {
                settle(&inner, &staging, &chains, &unpacked)?;
                let (old, new) = (open_dir(&directory)?, open_dir(staging.path())?);
                mend(old.as_fd(), new.as_fd())?;
                if unpacked.recorded {
                    inner.commit_split(&staging, &chain).map_err(io::Error::other)?;
                }
                Ok::<_, io::Error>(rustix::fs::syncfs(old)?)
            });
            mended.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
            self.forget_kept(blob.digest);
            return Ok(());
        }
        Err(last)
    }

    /// The compressed layer, as one of the image's manifests names it.
    fn blob_of(&self, image: &Image, index: usize) -> Option<Descriptor> {
        image.manifests().iter().find_map(|digest| {
            let bytes = self.document(*digest).ok()?;
            match Document::parse(&bytes, None).ok()? {
                Document::Manifest { layers, .. } if layers.len() == image.layers.len() => {
                    layers.into_iter().nth(index)
                }
                _ => None,
            }
        })
    }
}

fn words(error: &PullError) -> String {
    let mut text = error.to_string();
    let mut at = std::error::Error::source(error);
    while let Some(e) = at {
        text = format!("{text}: {e}");
        at = e.source();
    }
    text
}

#[cfg(test)]
mod tests;
