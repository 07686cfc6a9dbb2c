//! crisp's own service, for what CRI has no call for: archives of images, their layers, and pulls that show progress.

mod check;
mod save;

use std::{path::PathBuf, pin::Pin, sync::Arc};

use crisp_image::{LayerState, PullOptions, PullProgress, Reference};
use crisp_proto::admin::v1::{self as api, admin_server::Admin};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status};

use super::image;
use crate::{
    error::{RequestError, Stage},
    node::Node,
};

/// See the module.
#[derive(Clone, Debug)]
pub struct Administration {
    /// What it serves.
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Admin for Administration {
    async fn import(
        &self,
        request: Request<api::ImportRequest>,
    ) -> Result<Response<api::ImportResponse>, Status> {
        let path = PathBuf::from(request.into_inner().path);
        if !path.is_absolute() {
            return Err(RequestError::invalid(format!("path {} is not absolute", path.display())).into());
        }
        let images = self
            .node
            .store
            .import(&path, image::import_options(&self.node))
            .await
            .stage(format_args!("import {}", path.display()))?;
        let images = images
            .iter()
            .map(|image| api::ImportedImage { id: image.id.to_string(), names: image.tags.clone() })
            .collect();
        Ok(Response::new(api::ImportResponse { images }))
    }

    type PullStream = Pin<Box<dyn Stream<Item = Result<api::PullProgress, Status>> + Send>>;

    async fn pull(&self, request: Request<api::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        let reference = image::reference(&request.image)?;
        let (progress, watched) = watch::channel(PullProgress::default());
        let options = PullOptions {
            auth: image::credentials(request.auth)?,
            progress: Some(progress),
            ..image::pull_options(&self.node)
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(pull(self.node.clone(), reference, options, watched, sender));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }

    type SaveStream = save::Bytes;

    async fn save(&self, request: Request<api::SaveRequest>) -> Result<Response<Self::SaveStream>, Status> {
        Ok(Response::new(save::archive(&self.node, request.into_inner().images)?))
    }

    async fn image_layers(
        &self,
        request: Request<api::ImageLayersRequest>,
    ) -> Result<Response<api::ImageLayersResponse>, Status> {
        Ok(Response::new(check::layers(&self.node, &request.into_inner().images)?))
    }

    type CheckImagesStream = check::Layers;

    async fn check_images(
        &self,
        request: Request<api::CheckImagesRequest>,
    ) -> Result<Response<Self::CheckImagesStream>, Status> {
        Ok(Response::new(check::images(&self.node, request.into_inner())?))
    }
}

type Progress = mpsc::UnboundedSender<Result<api::PullProgress, Status>>;

/// Pulls, and says how far it is, until it is done or nobody listens any more.
async fn pull(
    node: Arc<Node>,
    reference: Reference,
    options: PullOptions,
    mut watched: watch::Receiver<PullProgress>,
    sender: Progress,
) {
    let mut pulling = std::pin::pin!(node.store.pull(&reference, options));
    let pulled = loop {
        tokio::select! {
            pulled = &mut pulling => break pulled,
            Ok(()) = watched.changed() => {
                let _ = sender.send(Ok(message(&watched.borrow_and_update())));
            }
            () = sender.closed() => return,
        }
    };
    let last = match pulled {
        Ok(image) => Ok(api::PullProgress { image_id: image.id.to_string(), ..message(&watched.borrow()) }),
        Err(error) => Err(image::pull_error(&error).into()),
    };
    let _ = sender.send(last);
}

fn message(progress: &PullProgress) -> api::PullProgress {
    use api::layer_progress::State;
    let layer = |layer: &crisp_image::LayerProgress| api::LayerProgress {
        digest: layer.digest.to_string(),
        done_bytes: layer.done,
        total_bytes: layer.total,
        state: match layer.state {
            LayerState::Waiting => State::Waiting,
            LayerState::Downloading if layer.total != 0 && layer.done == layer.total => State::Unpacking,
            LayerState::Downloading => State::Downloading,
            LayerState::Present => State::Present,
            LayerState::Done => State::Done,
        }
        .into(),
    };
    api::PullProgress { layers: progress.layers.iter().map(layer).collect(), image_id: String::new() }
}
