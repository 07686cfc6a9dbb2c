//! Pulling an image. Purpose: a reference becomes an image in the store, all layers in parallel, each in
//! one pass; identical pulls are joined; a pull that is given up leaves nothing visible. Knows the order
//! of events and leaves HTTP, tar and files to its neighbours.

mod error;
mod flight;
mod layer;
mod progress;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot, watch};

pub use error::{ErrorKind, PullError};
pub(crate) use flight::Flights;
pub(crate) use layer::{LayerJob, limits, settle};
pub use progress::{LayerProgress, LayerState, PullProgress};

use crate::config::{ParsedConfig, chain_ids};
use crate::digest::Digest;
use crate::document::{Descriptor, Document};
use crate::platform::Platform;
use crate::policy::Policy;
use crate::reference::Reference;
use crate::registry::{Access, Credentials, Fetched, Registry};
use crate::store::{Image, Inner, Layer, Lease, NewImage, Store, blocking};
use error::Place;

/// An index may point to an index, but not without end.
const NESTING_MAX: usize = 4;

/// What a pull gives; the error is shared by all that joined it.
pub type PullResult = Result<Arc<Image>, Arc<PullError>>;

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// What to show registries; anonymous without.
    pub auth: Option<Credentials>,
    /// containerd's `certs.d` directory; it need not exist.
    pub hosts_dir: PathBuf,
    /// Credentials for pulls that bring none, in the form of docker's config.json; it need not exist.
    pub auth_file: PathBuf,
    /// What images may be used, as containers-policy.json; it need not exist.
    pub policy: PathBuf,
    /// What the image has to run on.
    pub platform: Platform,
    /// Layers downloaded and unpacked at a time.
    pub max_parallel: usize,
    /// A request on which no byte arrives for so long is given up; zero waits for ever.
    pub progress_timeout: Duration,
    /// Gets the state of each layer as it changes.
    pub progress: Option<watch::Sender<PullProgress>>,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            auth: None,
            hosts_dir: PathBuf::from("/etc/containerd/certs.d"),
            auth_file: PathBuf::new(),
            policy: PathBuf::new(),
            platform: Platform::host(),
            max_parallel: 4,
            progress_timeout: Duration::from_secs(300),
            progress: None,
        }
    }
}

impl Store {
    /// Pulls `reference`. The registry is asked even if the image is there, so that these credentials are
    /// really entitled to it; layers that are there are not downloaded again.
    ///
    /// A pull of the same reference with the same credentials that is under way is joined.
    ///
    /// Cancel safety: when all that wait for it are dropped, the pull ends; nothing of it is visible, and
    /// its unfinished layers are deleted in the background. What was received of them stays for a day, and
    /// layers that were complete for an hour at least, so that another try is shorter, also after a restart.
    ///
    /// # Errors
    /// [`PullError`], whose [`PullError::kind`] tells what a client needs to tell apart.
    pub async fn pull(&self, reference: &Reference, mut options: PullOptions) -> PullResult {
        let report = options.progress.take();
        let (mut pull, mut progress) = self.inner.flights.join(&self.inner, reference, options);
        let Some(report) = report else { return pull.await };
        loop {
            tokio::select! {
                biased;
                result = &mut pull => {
                    report.send_replace(progress.borrow().clone());
                    return result;
                }
                changed = progress.changed() => {
                    if changed.is_err() {
                        return pull.await;
                    }
                    report.send_replace(progress.borrow_and_update().clone());
                }
            }
        }
    }
}

type PullOutcome = Result<Arc<Image>, PullError>;

/// One pull, shared by all its layers.
pub(crate) struct Pull {
    inner: Arc<Inner>,
    registry: Registry,
    place: Place,
    platform: Platform,
    permits: Semaphore,
    progress: watch::Sender<PullProgress>,
}

/// A manifest that fits this machine.
struct Chosen {
    manifest: Vec<u8>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

async fn run(
    inner: Arc<Inner>,
    reference: Reference,
    options: PullOptions,
    progress: watch::Sender<PullProgress>,
) -> Result<Arc<Image>, PullError> {
    let place = Place(reference.to_string());
    // What is refused whatever it is, is refused before anybody is asked.
    let policy = Policy::for_reference(&options.policy, &reference).map_err(|e| place.policy(e))?;
    let access = Access { hosts_dir: &options.hosts_dir, auth_file: &options.auth_file };
    let registry = Registry::open(&reference, access, options.auth, options.progress_timeout)
        .map_err(|e| place.registry(e))?;
    let (top, document) = match reference.digest() {
        Some(digest) => (digest, None),
        None => {
            let tag = reference.tag().unwrap_or("latest");
            let resolved = registry.resolve(tag).await.map_err(|e| place.registry(e))?;
            (resolved.digest, resolved.document)
        }
    };
    let permits = Semaphore::new(options.max_parallel.max(1));
    let pull = Pull { inner, registry, place, platform: options.platform, permits, progress };
    if let Some((image, lease)) = pull.present(&reference, top).await? {
        let digests: Vec<Digest> = image.manifests().iter().copied().chain([top]).collect();
        pull.allowed(policy.as_ref(), &reference, digests).await?;
        return pull.name(&reference, top, image, lease).await;
    }
    let chosen = pull.choose(top, document).await?;
    pull.allowed(policy.as_ref(), &reference, vec![top, Digest::of(&chosen.manifest)]).await?;
    pull.fetch(&reference, top, chosen).await
}

impl Pull {
    /// For one layer of an image that is here: `reference` says where it came from.
    pub(crate) fn again(
        inner: &Arc<Inner>,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Self, PullError> {
        let place = Place(reference.to_string());
        let access = Access { hosts_dir: &options.hosts_dir, auth_file: &options.auth_file };
        let registry = Registry::open(reference, access, options.auth.clone(), options.progress_timeout);
        Ok(Self {
            inner: inner.clone(),
            registry: registry.map_err(|e| place.registry(e))?,
            place,
            platform: options.platform.clone(),
            permits: Semaphore::new(1),
            progress: watch::Sender::default(),
        })
    }

    /// The image, if what the registry names is here already.
    async fn present(
        &self,
        reference: &Reference,
        top: Digest,
    ) -> Result<Option<(Arc<Image>, Lease)>, PullError> {
        let repo_digest = reference.pinned_to(top);
        let Some(image) = self.inner.named(&repo_digest).filter(|i| self.platform.runs(&i.platform)) else {
            return Ok(None);
        };
        let chains: Vec<Digest> = image.layers.iter().map(|layer| layer.chain_id).collect();
        let lease = self.inner.lease(&chains);
        if self.inner.named(&repo_digest).is_none() {
            // Removed before the lease was taken.
            return Ok(None);
        }
        if reference.digest().is_some() {
            // A tag was resolved a moment ago with these credentials; a digest was not.
            self.registry.check(top).await.map_err(|e| self.place.registry(e))?;
        }
        Ok(Some((image, lease)))
    }

    /// Gives an image that is here the name by which it was asked for.
    async fn name(&self, reference: &Reference, top: Digest, image: Arc<Image>, lease: Lease) -> PullOutcome {
        let repo_digest = reference.pinned_to(top);
        self.progress.send_replace(PullProgress::present(&image));
        let (inner, tag) = (self.inner.clone(), reference.tagged());
        let named = blocking(move || {
            let named = inner.add_names(&image, tag, Some(repo_digest));
            drop(lease);
            named
        });
        named.await.and_then(|named| named).map_err(|e| self.place.store(e))
    }

    /// Whether the policy lets an image be used that a signature may name by any of these digests.
    async fn allowed(
        &self,
        policy: Option<&Policy>,
        reference: &Reference,
        mut digests: Vec<Digest>,
    ) -> Result<(), PullError> {
        digests.sort_unstable();
        digests.dedup();
        let Some(policy) = policy else { return Ok(()) };
        policy.check(&self.registry, reference, &digests).await.map_err(|e| self.place.policy(e))
    }

    /// Follows indexes down to the manifest for this platform.
    async fn choose(&self, top: Digest, document: Option<Fetched>) -> Result<Chosen, PullError> {
        let (mut digest, mut size, mut announced) = (top, None, None);
        let mut document = document;
        for _ in 0..NESTING_MAX {
            let fetched = match document.take() {
                Some(fetched) => fetched,
                None => self.registry.manifest(digest, size).await.map_err(|e| self.place.registry(e))?,
            };
            let stated = announced.take().or(fetched.content_type);
            let parsed = Document::parse(&fetched.bytes, stated.as_deref());
            match parsed.map_err(|source| self.place.document(digest, source))? {
                Document::Manifest { config, layers } => {
                    return Ok(Chosen { manifest: fetched.bytes, config, layers });
                }
                Document::Index(list) => {
                    let next = self
                        .platform
                        .choose(&list)
                        .ok_or_else(|| self.place.no_platform(&self.platform, &list))?;
                    (digest, size) = (next.digest, Some(next.size));
                    announced = Some(next.media_type.clone()).filter(|t| !t.is_empty());
                }
            }
        }
        Err(self.place.nested(top))
    }

    async fn fetch(
        &self,
        reference: &Reference,
        top: Digest,
        chosen: Chosen,
    ) -> Result<Arc<Image>, PullError> {
        let Chosen { manifest, config: descriptor, layers: blobs } = chosen;
        let config = self.registry.config(descriptor.digest, descriptor.size).await;
        let config = config.map_err(|e| self.place.registry(e))?;
        let parsed = ParsedConfig::parse(&config).map_err(|e| self.place.config(descriptor.digest, e))?;
        self.place.check(&parsed, blobs.len(), &self.platform)?;
        let chains = chain_ids(&parsed.diff_ids);
        let lease = self.inner.lease(&chains);
        self.progress.send_replace(PullProgress::waiting(&blobs));
        let layers = match self.layers(&blobs, &parsed.diff_ids, &chains).await {
            Ok(layers) => layers,
            Err(error) => {
                drop(lease);
                if !error.may_pass() {
                    self.inner.discard_fresh(&chains);
                }
                return Err(error);
            }
        };
        let size = blobs.iter().fold(descriptor.size, |sum, blob| sum.saturating_add(blob.size));
        let new = NewImage {
            config,
            parsed,
            manifest: Some(manifest),
            tag: reference.tagged(),
            repo_digest: Some(reference.pinned_to(top)),
            layers,
            size,
        };
        let inner = self.inner.clone();
        // The lease goes along: if nobody waits any more, the layers are still there for the record.
        let published = blocking(move || {
            let published = inner.publish(new);
            drop(lease);
            published
        });
        published.await.and_then(|image| image).map_err(|e| self.place.store(e))
    }

    /// All layers at once; each is committed after the one below it.
    async fn layers(
        &self,
        blobs: &[Descriptor],
        diff_ids: &[Digest],
        chains: &[Digest],
    ) -> Result<Vec<Layer>, PullError> {
        let mut below = None;
        let mut jobs = Vec::new();
        for (index, (blob, diff_id)) in blobs.iter().zip(diff_ids).enumerate() {
            let (done, next) = oneshot::channel();
            let job = LayerJob { index, blob, diff_id: *diff_id, chains, below: below.replace(next) };
            jobs.push(self.layer(job, done));
        }
        futures_util::future::try_join_all(jobs).await
    }
}

#[cfg(test)]
mod tests;
