//! Images of a pod's containers: there, or pulled, as each container's policy says.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use crisp_proto::runtime::v1 as cri;

use super::report::Report;
use crate::{
    endpoint::{Asked, Clients},
    images::pull,
    manifest::{Pod, model::Container},
};

/// Reference -> image.
pub(super) type Images = BTreeMap<String, cri::Image>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    /// Nobody asked for Always; the tag does. A local image is good enough when the registry is out of reach.
    AlwaysByTag,
    IfNotPresent,
    Never,
}

/// Kubernetes' default: an image without a fixed tag may have changed.
fn policy(container: &Container) -> Policy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("IfNotPresent") => Policy::IfNotPresent,
        Some(_) => Policy::Never,
        None => {
            let last = container.image.rsplit('/').next().unwrap_or_default();
            let fixed = last.contains('@') || last.split_once(':').is_some_and(|(_, tag)| tag != "latest");
            if fixed { Policy::IfNotPresent } else { Policy::AlwaysByTag }
        }
    }
}

/// Makes sure that every image is there.
///
/// # Errors
/// One is not and cannot be had; the reason's name is kubelet's.
pub(super) async fn provide(clients: &Clients, pod: &Pod, report: &Report) -> Result<Images> {
    let title = format!("{}/{}", pod.namespace(), pod.metadata.name);
    let mut images = Images::new();
    for container in pod.all_containers() {
        if images.contains_key(&container.image) {
            continue;
        }
        let image = one(clients, container, (&title, report)).await;
        images
            .insert(container.image.clone(), image.with_context(|| format!("container {}", container.name))?);
    }
    Ok(images)
}

async fn one(
    clients: &Clients,
    container: &Container,
    (title, report): (&str, &Report),
) -> Result<cri::Image> {
    let name = &container.image;
    let local = status(clients, name).await?;
    let policy = policy(container);
    match (policy, local.clone()) {
        (Policy::Never, None) => {
            bail!("ErrImageNeverPull: image {name} is not here, and imagePullPolicy is Never")
        }
        (Policy::Never | Policy::IfNotPresent, Some(image)) => return Ok(image),
        _ => {}
    }
    report.line(title, format_args!("pulling {name}"));
    match pull::pull(clients, name, None, None, &report.bars).await {
        Ok(id) => {
            let image = status(clients, &id).await?;
            image.with_context(|| format!("image {name} is gone right after it was pulled"))
        }
        Err(error) => match (policy, local) {
            (Policy::AlwaysByTag, Some(image)) => {
                report.line(title, format_args!("{error:#}; the image that is here is used"));
                Ok(image)
            }
            _ => Err(error.context("ErrImagePull")),
        },
    }
}

async fn status(clients: &Clients, name: &str) -> Result<Option<cri::Image>> {
    let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = cri::ImageStatusRequest { image, verbose: false };
    Ok(clients.image.clone().image_status(request).await.asked(format_args!("ask for image {name}"))?.image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_decides_when_nobody_else_does() {
        let of = |image: &str, given: Option<&str>| {
            policy(&Container {
                image: image.into(),
                image_pull_policy: given.map(Into::into),
                ..Default::default()
            })
        };
        for image in ["busybox", "busybox:latest", "reg:5000/a/b"] {
            assert_eq!(of(image, None), Policy::AlwaysByTag, "{image}");
        }
        for image in ["busybox:1.36", "reg:5000/a/b:2", "a@sha256:0123", "a:latest@sha256:0123"] {
            assert_eq!(of(image, None), Policy::IfNotPresent, "{image}");
        }
        assert_eq!(of("a:1", Some("Always")), Policy::Always);
        assert_eq!(of("a", Some("IfNotPresent")), Policy::IfNotPresent);
        assert_eq!(of("a", Some("Never")), Policy::Never);
    }
}
