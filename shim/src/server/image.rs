//! ImageService.

use std::{sync::Arc, time::Duration};

use crisp_image::{
    AuthFields, Credentials, ErrorKind, Image, ImportOptions, PullError, PullOptions, Reference,
};
use crisp_proto::runtime::v1::{self as cri, image_service_server::ImageService};
use tonic::{Request, Response, Status};

use super::stream::{Items, pieces};
use crate::{
    error::{Class, RequestError, Stage, chain},
    node::Node,
    time::now_nanos,
};

/// See the module.
#[derive(Clone, Debug)]
pub struct Images {
    /// What it serves.
    pub node: Arc<Node>,
}

type Answer<T> = Result<Response<T>, Status>;

/// An image as CRI shows it.
#[must_use]
pub fn to_cri(image: &Image) -> cri::Image {
    let name = image.config.user.split(':').next().unwrap_or_default();
    let (uid, username) = match name.parse::<i64>() {
        Ok(value) => (Some(cri::Int64Value { value }), String::new()),
        Err(_) => (None, name.to_owned()),
    };
    let first = image.tags.first().or(image.repo_digests.first()).cloned().unwrap_or_default();
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(cri::ImageSpec { image: first, ..Default::default() }),
        pinned: image.pinned,
    }
}

/// All images, or the one that the filter names, if it is here.
fn list(node: &Node, filter: Option<cri::ImageFilter>) -> Vec<cri::Image> {
    let spec = filter.and_then(|filter| filter.image).filter(|spec| !spec.image.is_empty());
    let images = match spec {
        Some(spec) => node.store.get(&spec.image).ok().flatten().into_iter().collect(),
        None => node.store.list(),
    };
    images.iter().map(|image| to_cri(image)).collect()
}

fn wanted(spec: Option<cri::ImageSpec>) -> Result<String, RequestError> {
    let spec = spec.unwrap_or_default();
    Node::check_handler("image.runtime_handler", &spec.runtime_handler)?;
    if spec.image.is_empty() {
        return Err(RequestError::invalid("image.image is empty"));
    }
    Ok(spec.image)
}

/// How a pull is to be done, from the daemon's configuration.
#[must_use]
pub fn pull_options(node: &Node) -> PullOptions {
    PullOptions {
        hosts_dir: node.config.image.hosts_dir.clone().into(),
        auth_file: node.config.image.auth_file.clone().into(),
        policy: node.config.image.policy.clone().into(),
        max_parallel: node.config.image.max_parallel_downloads,
        progress_timeout: Duration::from_secs(node.config.image.progress_timeout_seconds),
        ..PullOptions::default()
    }
}

/// How an archive is to be taken in, from the daemon's configuration.
#[must_use]
pub fn import_options(node: &Node) -> ImportOptions {
    ImportOptions { policy: node.config.image.policy.clone().into(), ..ImportOptions::default() }
}

/// Credentials of a request, if it has any that crisp can use.
///
/// # Errors
/// A field that is set and cannot be used.
pub fn credentials(auth: Option<cri::AuthConfig>) -> Result<Option<Credentials>, RequestError> {
    let Some(auth) = auth else { return Ok(None) };
    let fields = AuthFields {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    };
    Credentials::from_fields(&fields).map_err(|error| RequestError::invalid(chain(&error)))
}

/// A name to pull.
///
/// # Errors
/// It is none.
pub fn reference(name: &str) -> Result<Reference, RequestError> {
    Reference::parse(name)
        .map_err(|error| RequestError::invalid(format!("image {name:?}: {}", chain(&error))))
}

/// A failed pull in CRI's words: kubelet matches the front of the text.
#[must_use]
pub fn pull_error(error: &PullError) -> RequestError {
    let text = chain(error);
    match error.kind() {
        ErrorKind::RegistryUnavailable => RequestError::unknown(format!("RegistryUnavailable: {text}")),
        ErrorKind::NotFound => RequestError::new(Class::NotFound, text),
        ErrorKind::Policy => RequestError::unknown(format!("SignatureValidationFailed: {text}")),
        _ => RequestError::unknown(text),
    }
}

/// What `crictl inspecti` shows beyond CRI's own fields: the image's configuration under the names that OCI gives
/// its parts.
fn verbose(image: &Image) -> serde_json::Value {
    let config = &image.config;
    serde_json::json!({
        "chainID": image.layers.last().map(|layer| layer.chain_id.to_string()),
        "imageSpec": {
            "created": config.created,
            "architecture": image.platform.architecture,
            "os": image.platform.os,
            "config": {
                "User": config.user,
                "Env": config.env,
                "Entrypoint": config.entrypoint,
                "Cmd": config.cmd,
                "WorkingDir": config.working_dir,
                "Volumes": config.volumes,
                "ExposedPorts": config.exposed_ports,
                "StopSignal": config.stop_signal,
                "Labels": config.labels,
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": image.layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>(),
            },
        },
        "layers": image.layers.iter().map(|layer| layer.directory.clone()).collect::<Vec<_>>(),
    })
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<cri::ListImagesRequest>) -> Answer<cri::ListImagesResponse> {
        let images = list(&self.node, request.into_inner().filter);
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Answer<cri::ImageStatusResponse> {
        let request = request.into_inner();
        let name = wanted(request.image)?;
        // A name that cannot be one names no image that is here.
        let image = self.node.store.get(&name).ok().flatten();
        let mut info = std::collections::HashMap::new();
        if let (true, Some(image)) = (request.verbose, &image) {
            info.insert("info".to_owned(), verbose(image).to_string());
        }
        Ok(Response::new(cri::ImageStatusResponse { image: image.map(|image| to_cri(&image)), info }))
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Answer<cri::PullImageResponse> {
        let request = request.into_inner();
        let name = wanted(request.image)?;
        let options = PullOptions { auth: credentials(request.auth)?, ..pull_options(&self.node) };
        let image =
            self.node.store.pull(&reference(&name)?, options).await.map_err(|error| pull_error(&error))?;
        tracing::info!(image = name, id = %image.id, "image pulled");
        Ok(Response::new(cri::PullImageResponse { image_ref: image.id.to_string() }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Answer<cri::RemoveImageResponse> {
        let name = wanted(request.into_inner().image)?;
        self.node.store.remove(&name).await.stage(format_args!("remove image {name:?}"))?;
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<cri::ImageFsInfoRequest>) -> Answer<cri::ImageFsInfoResponse> {
        let usage = self.node.store.usage();
        let filesystem = cri::FilesystemUsage {
            timestamp: now_nanos(),
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: usage.mountpoint.to_string_lossy().into_owned(),
            }),
            used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
            inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
        };
        Ok(Response::new(cri::ImageFsInfoResponse {
            image_filesystems: vec![filesystem.clone()],
            container_filesystems: vec![filesystem],
        }))
    }

    type StreamImagesStream = Items<cri::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let images = list(&self.node, request.into_inner().filter);
        Ok(Response::new(pieces(images, |images| cri::StreamImagesResponse { images })))
    }
}
