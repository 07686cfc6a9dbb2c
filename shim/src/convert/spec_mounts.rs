//! The mounts of a container: the kernel's file systems, the sandbox's files, then the request's own.

use std::path::{Component, Path, PathBuf};

use crisp_image::ImageConfig;
use crisp_proto::runtime::v1 as cri;
use crisp_runtime::oci::hides_proc;
use oci_spec::runtime::{Mount, MountBuilder};

use super::{spec::SpecInput, userns};
use crate::error::{RequestError, Stage};

/// All mounts in the order in which they are made: parents before children; a request's mount replaces the
/// default one with the same destination, and one on `/dev` or `/sys` replaces the defaults below it.
pub(super) fn mounts(
    input: &SpecInput<'_>,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<Vec<Mount>, RequestError> {
    let mut requested = input
        .config
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| {
            let image = input.image_volumes.get(&index).map(PathBuf::as_path);
            Ok((clean(&mount.container_path), bind(mount, image)?))
        })
        .collect::<Result<Vec<_>, RequestError>>()?;
    for (place, directory) in input.declared {
        requested.push((place.clone(), source(place, directory, &["rbind", "rprivate", "rw"])?));
    }
    for mount in &input.cdi.mounts {
        requested.retain(|(place, _)| place != mount.destination());
        requested.push((mount.destination().clone(), mount.clone()));
    }
    // Stable: two mounts of equal depth keep the request's order.
    requested.sort_by_key(|(destination, _)| destination.components().count());
    let covered = |destination: &Path| {
        requested.iter().any(|(own, _)| {
            own == destination
                || ((own == Path::new("/dev") || own == Path::new("/sys")) && destination.starts_with(own))
        })
    };
    let mut all = Vec::new();
    for mount in defaults(input, security)? {
        if !covered(mount.destination()) {
            all.push(mount);
        }
    }
    all.extend(requested.into_iter().map(|(_, mount)| mount));
    Ok(all)
}

/// A path without `.` and repeated slashes. `..` was refused before.
#[must_use]
pub fn clean(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

fn defaults(
    input: &SpecInput<'_>,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<Vec<Mount>, RequestError> {
    let sys = if security.privileged { "rw" } else { "ro" };
    // Nobody owns the host's cgroups in there: read-only is what they are, and says so (CVE-2023-25809).
    let cgroups = if input.user_namespace.is_some() { "ro" } else { sys };
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    // The group tty; one that does not exist in the pod would be refused.
    if input.user_namespace.is_none_or(|mappings| mappings.host_gid(5).is_some()) {
        terminals.push("gid=5");
    }
    let mut all = vec![
        kernel("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        kernel("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        kernel("/dev/pts", "devpts", &terminals)?,
        kernel("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        match input.user_namespace.is_some() && input.host_network {
            // sysfs shows a network namespace, and only its owner can mount one. Without what is mounted below.
            true => source(
                Path::new("/sys"),
                Path::new("/sys"),
                &["bind", "private", "nosuid", "noexec", "nodev", "ro"],
            )?,
            false => kernel("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys])?,
        },
        kernel("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", cgroups])?,
        source(Path::new("/dev/shm"), &input.shm, &["rbind", "rprivate", "rw"])?,
    ];
    let files = if security.readonly_rootfs { "ro" } else { "rw" };
    for (destination, host_path) in input.sandbox_files {
        all.push(source(Path::new(destination), host_path, &["bind", "rprivate", files])?);
    }
    Ok(all)
}

fn kernel(destination: &str, kind: &str, options: &[&str]) -> Result<Mount, RequestError> {
    MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(kind)
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()
        .stage(format_args!("spec: mount {destination}"))
}

fn source(destination: &Path, host_path: &Path, options: &[&str]) -> Result<Mount, RequestError> {
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(host_path)
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()
        .stage(format_args!("spec: mount {}", destination.display()))
}

/// Places that an image cannot declare a volume at: what is there is the runtime's own.
const OWN: [&str; 10] = [
    "/proc",
    "/dev",
    "/dev/pts",
    "/dev/mqueue",
    "/dev/shm",
    "/sys",
    "/sys/fs/cgroup",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
];

/// Where the volumes that an image declares are to be: those that the request mounts nothing at. A path that does not
/// begin with a slash is taken from the root.
///
/// # Errors
/// `Invalid`, naming the volume.
pub fn declared(config: &cri::ContainerConfig, image: &ImageConfig) -> Result<Vec<PathBuf>, RequestError> {
    let mut places = Vec::new();
    for volume in &image.volumes {
        let invalid = |reason: &str| RequestError::invalid(format!("image: volume {volume:?} {reason}"));
        let place = clean(&format!("/{volume}"));
        super::sandbox::check_absolute("", &format!("/{volume}"))
            .map_err(|_| invalid("is no path without `..`"))?;
        if place == Path::new("/") {
            return Err(invalid("is the root itself"));
        }
        if hides_proc(&place.to_string_lossy(), "") && place != Path::new("/proc") {
            return Err(invalid("lies in /proc"));
        }
        let taken = config.mounts.iter().any(|mount| clean(&mount.container_path) == place)
            || OWN.iter().any(|own| place == Path::new(own))
            || places.contains(&place);
        if !taken {
            places.push(place);
        }
    }
    Ok(places)
}

/// A mount of the request; `image` stands for the image that it is a volume of.
fn bind(mount: &cri::Mount, image: Option<&Path>) -> Result<Mount, RequestError> {
    let propagation = match mount.propagation() {
        cri::MountPropagation::PropagationPrivate => "rprivate",
        cri::MountPropagation::PropagationHostToContainer => "rslave",
        cri::MountPropagation::PropagationBidirectional => "rshared",
    };
    if let Some(image) = image {
        // Writing is forbidden to the whole of it anyway: there are no mounts in an image.
        let options = ["rbind", "rprivate", "ro", "nosuid", "nodev"];
        return source(&clean(&mount.container_path), image, &options);
    }
    let access = match (mount.readonly, mount.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let mut bind =
        source(&clean(&mount.container_path), Path::new(&mount.host_path), &["rbind", propagation, access])?;
    if let Some(mappings) = userns::of_mount(mount)? {
        bind.set_uid_mappings(Some(userns::oci(&mappings.uids)?));
        bind.set_gid_mappings(Some(userns::oci(&mappings.gids)?));
    }
    Ok(bind)
}
