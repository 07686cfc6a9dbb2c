//! crisp-image: references, registry client, unpack, overlayfs, store.
//!
//! Turns the name of an image into a directory tree that a container can use as its root. It knows
//! distribution (registries, manifests, archives), the on-disk store and overlayfs. It must not know
//! what a pod, a CRI request, a namespace or a running container is, and it imports neither `runtime`
//! nor `netns`.
//!
//! ```text
//!   Reference ──► registry ──► pull ──► unpack ──► store ──► snapshot
//!                (endpoints,   (plan,   (inflate,  (records,  (overlay fd
//!                 auth, TLS)    layers)  tar apply) layers)    for a container)
//!   archive  ──────────────► import ──► unpack ──► store
//! ```
//!
//! Everything that comes from a registry or an archive is hostile until its digest was checked, and its
//! paths are hostile even then: see `unpack.rs` for the rules of the tar reader.

mod check;
mod config;
mod digest;
mod document;
mod export;
#[cfg(test)]
mod fixture;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod import;
mod platform;
mod policy;
mod pull;
mod reference;
mod registry;
mod rooted;
mod snapshot;
mod store;
mod unpack;

pub use check::{CheckedLayer, Condition};
pub use config::{ConfigError, ImageConfig};
pub use digest::{Digest, DigestError};
pub use document::DocumentError;
pub use export::ExportError;
pub use import::{ImportError, ImportOptions};
pub use platform::Platform;
pub use policy::PolicyError;
pub use pull::{ErrorKind, LayerProgress, LayerState, PullError, PullOptions, PullProgress, PullResult};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    Attempt, AuthFields, AuthFileError, CredentialError, Credentials, HostsError, RegistryError,
};
pub use snapshot::{Snapshot, SnapshotError};
pub use store::{FsUsage, Image, Layer, Store, StoreError, StoreOptions, Written};
pub use unpack::{ApplyError, ArchiveError, UnpackError};
