//! What a container's mounts are made of: trees of the host and of images as detached mounts, and the directories of
//! volumes that its image declares.
//!
//! A host path is looked up once: what is checked is what is mounted, whatever happens to the path meanwhile
//! (CVE-2021-30465's class).

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use crisp_image::{Image, ImageConfig, Snapshot};
use crisp_proto::runtime::v1 as cri;
use crisp_runtime::mounts::Ready;
use crisp_sys::{Errno, mount, path};

use crate::{
    convert::{
        spec_mounts::{clean, declared},
        userns,
    },
    error::{IMAGE_VOLUME, RequestError, Stage},
    id::Id,
    node::Node,
    user_namespaces::{self, PodUser},
};

/// The images of a request's image volumes, by index in its mounts.
#[derive(Debug, Default)]
pub(super) struct ImageVolumes(BTreeMap<usize, Arc<Image>>);

impl ImageVolumes {
    /// Finds the images, and notes in the request which ones they are (CRI's `image_ref`: what PullImage returned).
    ///
    /// # Errors
    /// `NotFound`, naming entry and image.
    pub(super) fn find(node: &Node, config: &mut cri::ContainerConfig) -> Result<Self, RequestError> {
        let mut found = BTreeMap::new();
        for (index, mount) in config.mounts.iter_mut().enumerate() {
            let Some(spec) = mount.image.as_mut().filter(|spec| !spec.image.is_empty()) else { continue };
            let name = &spec.image;
            let image = match node.store.get(name).stage(format_args!("image {name:?}")) {
                Ok(Some(image)) => Ok(image),
                Ok(None) => Err(RequestError::not_found("image", name)),
                Err(error) => Err(error),
            };
            let image = image.map_err(|error| at(index, error))?;
            spec.image_ref = image.id.to_string();
            found.insert(index, image);
        }
        Ok(Self(found))
    }

    /// The images, for the store to keep.
    pub(super) fn images(&self) -> Vec<Arc<Image>> {
        self.0.values().cloned().collect()
    }

    /// What stands for each of them in the spec.
    pub(super) fn names(&self, node: &Node, config: &cri::ContainerConfig) -> BTreeMap<usize, PathBuf> {
        let name = |(index, image): (&usize, &Arc<Image>)| {
            let sub_path = config.mounts.get(*index).map(|mount| mount.image_sub_path.as_str());
            let whole = node.store.root().join("images").join(image.id.to_string());
            (*index, whole.join(sub_path.unwrap_or_default()))
        };
        self.0.iter().map(name).collect()
    }
}

/// The entry in front, the keyword in front of that.
fn at(index: usize, error: RequestError) -> RequestError {
    error.at(format_args!("mounts[{index}]")).keyword(IMAGE_VOLUME)
}

/// Makes the volumes that the image declares: (place in the container, directory).
///
/// # Errors
/// Names the volume.
pub(super) fn make_declared(
    config: &cri::ContainerConfig,
    image: &ImageConfig,
    snapshot: &Snapshot,
    root: BorrowedFd<'_>,
) -> Result<Vec<(PathBuf, PathBuf)>, RequestError> {
    let make = |(number, place): (usize, PathBuf)| {
        let directory = snapshot.declared_volume(root, number, &place).stage("image")?;
        Ok((place, directory))
    };
    declared(config, image)?.into_iter().enumerate().map(make).collect()
}

/// Opens everything that the request mounts.
///
/// # Errors
/// Names the entry and what is wrong with it.
pub(super) fn open(
    node: &Node,
    id: &Id,
    config: &cri::ContainerConfig,
    images: &ImageVolumes,
    user: Option<&PodUser>,
) -> Result<Vec<Ready>, RequestError> {
    let names = images.names(node, config);
    let own = OwnFiles::of(node);
    let mut ready = Vec::with_capacity(config.mounts.len());
    for (index, mount) in config.mounts.iter().enumerate() {
        let (path, fd) = match (images.0.get(&index), names.get(&index)) {
            (Some(image), Some(name)) => {
                let sub_path = Path::new(&mount.image_sub_path);
                // An overlay cannot be id-mapped when it is made: the store does it.
                let mappings = userns::of_mount(mount)?;
                let namespace = mappings.map(|mappings| user_namespaces::with(node, user, &mappings));
                let namespace = namespace.transpose().stage("id mappings");
                let opened = namespace.and_then(|namespace| {
                    let namespace = namespace.as_ref().map(AsFd::as_fd);
                    node.store.image_volume(id.as_str(), image, sub_path, namespace).stage("image")
                });
                (name.clone(), opened.map_err(|error| at(index, error))?)
            }
            _ => {
                let host_path = PathBuf::from(&mount.host_path);
                let opened = open_host(&host_path, mount, &own);
                let named = |error: RequestError| error.at(format_args!("mounts[{index}].host_path"));
                (host_path, opened.map_err(named)?)
            }
        };
        let target = clean(&mount.container_path).display().to_string();
        ready.push(Ready { path, target, fd });
    }
    Ok(ready)
}

fn open_host(host_path: &Path, mount: &cri::Mount, own: &OwnFiles) -> Result<OwnedFd, RequestError> {
    let place = match path::open_host(host_path) {
        // A missing host path becomes a directory, as every CRI runtime does it.
        Err(error) if error.errno == Errno::ENOENT => {
            // Nothing is made where nothing is mounted from.
            let above = host_path.ancestors().skip(1).find_map(|above| path::open_host(above).ok());
            if let Some(above) = above {
                own.refuse(above.as_fd(), host_path)?;
            }
            fs::create_dir_all(host_path).stage(host_path.display())?;
            path::open_host(host_path)
        }
        other => other,
    }
    .stage(host_path.display())?;
    own.refuse(place.as_fd(), host_path)?;
    check_peers(place.as_fd(), host_path, mount.propagation())?;
    mount::open_tree_clone(Some(place.as_fd()), Path::new(""), true).stage(host_path.display())
}

/// Events can only be had from a mount that shares them.
fn check_peers(
    place: BorrowedFd<'_>,
    host_path: &Path,
    wanted: cri::MountPropagation,
) -> Result<(), RequestError> {
    use cri::MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    let missing = match wanted {
        PropagationPrivate => return Ok(()),
        PropagationHostToContainer => {
            let peers = mount::peers(place).stage(host_path.display())?;
            (!peers.shared && !peers.slave).then_some(("HOST_TO_CONTAINER", "neither shared nor a slave"))
        }
        PropagationBidirectional => {
            let peers = mount::peers(place).stage(host_path.display())?;
            (!peers.shared).then_some(("BIDIRECTIONAL", "not shared"))
        }
    };
    match missing {
        Some((mode, lack)) => Err(RequestError::precondition(format!(
            "{}: propagation {mode}: the mount it is on is {lack}",
            host_path.display()
        ))),
        None => Ok(()),
    }
}

/// Files that give their reader or writer the runtime itself: a container that may use its socket is root on the host.
struct OwnFiles {
    allowed: bool,
    paths: Vec<PathBuf>,
}

impl OwnFiles {
    fn of(node: &Node) -> Self {
        let config = &node.config;
        let socket = config.listen.trim_start_matches("unix://");
        let resolve = |path: &str| path::open_host(Path::new(path)).and_then(path::of_descriptor).ok();
        Self {
            allowed: config.container.mount_own_files,
            paths: [config.state.as_str(), config.root.as_str(), socket]
                .into_iter()
                .filter_map(resolve)
                .collect(),
        }
    }

    fn refuse(&self, place: BorrowedFd<'_>, host_path: &Path) -> Result<(), RequestError> {
        if self.allowed {
            return Ok(());
        }
        let resolved = path::of_descriptor(place).stage(host_path.display())?;
        match self.paths.iter().find(|own| resolved.starts_with(own)) {
            Some(own) => Err(RequestError::invalid(format!(
                "{}: {} is crisp's own; container.mount_own_files allows that",
                host_path.display(),
                own.display()
            ))),
            None => Ok(()),
        }
    }
}
