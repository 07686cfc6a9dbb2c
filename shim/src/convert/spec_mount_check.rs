//! What a request's `mounts` may ask for, checked before anything is made. Errors name the entry by its index.

use crisp_monitor::wire;
use crisp_proto::runtime::v1 as cri;
use crisp_runtime::oci::hides_proc;

use super::{sandbox::check_absolute, spec_mounts::clean, userns};
use crate::error::{IMAGE_VOLUME, RequestError};

/// Descriptors of a create besides those of the request's mounts: plan, cgroup, exit record, root, the sandbox's files.
const OTHER_DESCRIPTORS: usize = 16;

/// Checks all mounts of a request.
///
/// # Errors
/// `Invalid` or `Unimplemented`, naming entry and field.
pub(super) fn check(mounts: &[cri::Mount], privileged: bool) -> Result<(), RequestError> {
    let most = wire::MAX_FDS - OTHER_DESCRIPTORS;
    if mounts.len() > most {
        return Err(RequestError::invalid(format!(
            "mounts: {} are more than the {most} that one container can have",
            mounts.len()
        )));
    }
    for (index, mount) in mounts.iter().enumerate() {
        one(mount, privileged).map_err(|error| error.at(format_args!("mounts[{index}]")))?;
    }
    nesting(mounts)
}

/// The image that a mount is a volume of, if it is one.
#[must_use]
pub(super) fn image_of(mount: &cri::Mount) -> Option<&cri::ImageSpec> {
    mount.image.as_ref().filter(|image| !image.image.is_empty())
}

fn one(mount: &cri::Mount, privileged: bool) -> Result<(), RequestError> {
    check_absolute("container_path", &mount.container_path)?;
    if mount.container_path.split('/').all(|part| matches!(part, "" | ".")) {
        return Err(RequestError::invalid("container_path is the root itself"));
    }
    userns::of_mount(mount)?;
    let propagation = cri::MountPropagation::try_from(mount.propagation)
        .map_err(|_| RequestError::invalid(format!("propagation {} is unknown", mount.propagation)))?;
    if mount.recursive_read_only {
        if !mount.readonly {
            return Err(RequestError::invalid("recursive_read_only needs readonly"));
        }
        if propagation != cri::MountPropagation::PropagationPrivate {
            return Err(RequestError::invalid("recursive_read_only needs propagation PRIVATE"));
        }
    }
    if image_of(mount).is_some() {
        return image_volume(mount, propagation)
            .map_err(|text| RequestError::invalid(text).keyword(IMAGE_VOLUME));
    }
    if !mount.image_sub_path.is_empty() {
        return Err(RequestError::invalid("image_sub_path without an image"));
    }
    check_absolute("host_path", &mount.host_path)?;
    if propagation == cri::MountPropagation::PropagationBidirectional && !privileged {
        return Err(RequestError::invalid("propagation: BIDIRECTIONAL needs a privileged container"));
    }
    let place = clean(&mount.container_path).display().to_string();
    if hides_proc(&place, &mount.host_path) {
        return Err(RequestError::invalid(format!("container_path {place}: a mount over /proc")));
    }
    Ok(())
}

/// The rules of volumes that are images. Nothing is ever mounted in one, so it has no events to give; that it would get
/// some from the host (HOST_TO_CONTAINER) is true of an empty set.
fn image_volume(mount: &cri::Mount, propagation: cri::MountPropagation) -> Result<(), String> {
    if !mount.host_path.is_empty() {
        return Err(format!("host_path {:?} beside an image", mount.host_path));
    }
    if !mount.readonly {
        return Err("readonly must be set: an image cannot be written to".to_owned());
    }
    if propagation == cri::MountPropagation::PropagationBidirectional {
        return Err("propagation: an image cannot be mounted BIDIRECTIONAL".to_owned());
    }
    if hides_proc(&clean(&mount.container_path).to_string_lossy(), "") {
        return Err(format!("container_path {}: a mount over /proc", mount.container_path));
    }
    let path = &mount.image_sub_path;
    let bad = path.starts_with('/')
        || path.split('/').any(|part| part == "..")
        || path.chars().any(char::is_control)
        || path.len() >= 4096;
    if bad { Err(format!("image_sub_path {path:?} is not a relative path without `..`")) } else { Ok(()) }
}

/// Below a BIDIRECTIONAL mount every other mount would appear on the host, and stay there when the container ends.
fn nesting(mounts: &[cri::Mount]) -> Result<(), RequestError> {
    for (outer, open) in mounts.iter().enumerate() {
        if open.propagation() != cri::MountPropagation::PropagationBidirectional {
            continue;
        }
        let place = clean(&open.container_path);
        let inside = |mount: &cri::Mount| clean(&mount.container_path).starts_with(&place);
        // Of two at one place the later one covers the earlier.
        let lies_on_it = |(index, mount): &(usize, &cri::Mount)| {
            inside(mount) && (*index > outer || clean(&mount.container_path) != place)
        };
        if let Some((index, mount)) =
            mounts.iter().enumerate().filter(|(index, _)| *index != outer).find(lies_on_it)
        {
            return Err(RequestError::invalid(format!(
                "mounts[{index}]: container_path {} lies in that of mounts[{outer}], which is BIDIRECTIONAL: it would \
                 appear on the host and stay there",
                mount.container_path
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn mount(container_path: &str) -> cri::Mount {
        cri::Mount { container_path: container_path.into(), host_path: "/tmp".into(), ..Default::default() }
    }

    fn volume(sub_path: &str) -> cri::Mount {
        cri::Mount {
            container_path: "/v".into(),
            image: Some(cri::ImageSpec { image: "x".into(), ..Default::default() }),
            image_sub_path: sub_path.into(),
            readonly: true,
            ..Default::default()
        }
    }

    fn refused(mount: cri::Mount) -> RequestError {
        let error = check(&[volume(""), mount], true).unwrap_err();
        assert_eq!(error.class, Class::Invalid);
        assert!(error.text.contains("mounts[1]"), "{error}");
        error
    }

    #[test]
    fn c12_mounts_are_checked_and_named_by_index() {
        for container_path in ["", "/", ".", "relative", "/a/../b", "//", "/.", "/./", "/a\nb"] {
            assert!(refused(mount(container_path)).text.contains("container_path"), "{container_path}");
        }
        for container_path in ["/proc", "/proc/self", "//proc/./self/attr", "/proc/sys/kernel"] {
            assert!(refused(mount(container_path)).text.contains("over /proc"), "{container_path}");
        }
        for host_path in ["", "relative", "/a/../b", "/a\0b"] {
            let bad = cri::Mount { host_path: host_path.into(), ..mount("/x") };
            assert!(refused(bad).text.contains("host_path"), "{host_path:?}");
        }
        assert!(refused(cri::Mount { propagation: 9, ..mount("/x") }).text.contains("propagation 9"));
        let error = check(&vec![mount("/x"); 1000], false).unwrap_err();
        assert!(error.text.contains("mounts: 1000"), "{error}");
    }

    #[test]
    fn r31_recursive_read_only_needs_readonly_and_private() {
        let rro = |readonly, propagation: cri::MountPropagation| cri::Mount {
            readonly,
            recursive_read_only: true,
            propagation: propagation.into(),
            ..mount("/x")
        };
        use cri::MountPropagation::{
            PropagationBidirectional, PropagationHostToContainer, PropagationPrivate,
        };
        assert!(refused(rro(false, PropagationPrivate)).text.contains("readonly"));
        assert!(refused(rro(true, PropagationHostToContainer)).text.contains("PRIVATE"));
        assert!(refused(rro(true, PropagationBidirectional)).text.contains("PRIVATE"));
        assert_eq!(check(&[rro(true, PropagationPrivate)], false), Ok(()));
    }

    #[test]
    fn r23_an_image_volume_is_refused_with_the_word_that_kubelet_looks_for() {
        for bad in [
            volume("../.."),
            volume("/etc"),
            volume("a/../../etc"),
            cri::Mount { readonly: false, ..volume("") },
            cri::Mount { host_path: "/tmp".into(), ..volume("") },
            cri::Mount { container_path: "/proc/x".into(), ..volume("") },
            cri::Mount { propagation: cri::MountPropagation::PropagationBidirectional.into(), ..volume("") },
        ] {
            let error = refused(bad).at("create container c");
            assert!(
                error.text.starts_with("ImageVolumeMountFailed: create container c: mounts[1]: "),
                "{error}"
            );
        }
        assert_eq!(check(&[volume("usr/share"), volume("")], false), Ok(()));
        let no_image = cri::Mount { image: None, host_path: "/tmp".into(), ..volume("x") };
        assert!(refused(no_image).text.contains("image_sub_path"));
    }

    #[test]
    fn r30_bidirectional_mounts_need_privilege_and_hold_no_others() {
        let open = |path| cri::Mount {
            propagation: cri::MountPropagation::PropagationBidirectional.into(),
            ..mount(path)
        };
        assert!(check(&[open("/m")], false).unwrap_err().text.contains("privileged"));
        assert_eq!(check(&[open("/m"), mount("/n"), mount("/mm")], true), Ok(()));
        assert_eq!(check(&[mount("/m"), open("/m/inner")], true), Ok(()));
        for mounts in
            [[open("/m"), mount("/m/inner")], [mount("/m/inner"), open("/m")], [open("/m"), mount("//m/.")]]
        {
            let error = check(&mounts, true).unwrap_err();
            assert!(error.text.contains("mounts[0]") && error.text.contains("mounts[1]"), "{error}");
        }
    }
}
