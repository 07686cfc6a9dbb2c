//! Layers of images: what they are, and whether they are as they should be.

use std::{pin::Pin, sync::Arc};

use crisp_image::{CheckedLayer, Condition, Image, PullOptions};
use crisp_proto::admin::v1 as api;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tonic::Status;

use crate::{
    error::{RequestError, Stage},
    node::Node,
    server::image,
};

pub(super) type Layers = Pin<Box<dyn Stream<Item = Result<api::CheckedLayer, Status>> + Send>>;

/// The layers of these images, or of all.
pub(super) fn layers(node: &Node, names: &[String]) -> Result<api::ImageLayersResponse, RequestError> {
    let find = |name: &String| match node.store.get(name).stage("find")? {
        Some(image) => Ok(image),
        None => Err(RequestError::not_found("image", name)),
    };
    let images: Vec<Arc<Image>> = match names {
        [] => node.store.list(),
        names => names.iter().map(find).collect::<Result<_, _>>()?,
    };
    Ok(api::ImageLayersResponse { images: images.iter().map(|image| layered(image)).collect() })
}

fn layered(image: &Image) -> api::LayeredImage {
    let layer = |layer: &crisp_image::Layer| api::Layer {
        chain_id: layer.chain_id.to_string(),
        diff_id: layer.diff_id.to_string(),
        bytes: layer.bytes,
        inodes: layer.inodes,
    };
    let names = if image.tags.is_empty() { &image.repo_digests } else { &image.tags };
    api::LayeredImage {
        id: image.id.to_string(),
        names: names.clone(),
        layers: image.layers.iter().map(layer).collect(),
    }
}

/// Checks, and says so layer by layer, until it is done or nobody listens any more.
pub(super) fn images(node: &Arc<Node>, request: api::CheckImagesRequest) -> Result<Layers, RequestError> {
    let options = PullOptions { auth: image::credentials(request.auth)?, ..image::pull_options(node) };
    let (sender, receiver) = mpsc::unbounded_channel();
    let node = node.clone();
    tokio::spawn(async move {
        let (report, mut checked) = mpsc::unbounded_channel();
        let name = Some(request.image.as_str()).filter(|name| !name.is_empty());
        let check = async {
            let result = node.store.check(name, request.heal.then_some(&options), &report).await;
            drop(report);
            result
        };
        let forward = async {
            while let Some(layer) = checked.recv().await {
                if sender.send(Ok(message(&layer))).is_err() {
                    break;
                }
            }
            // The check sees at its next layer that nobody takes it.
            checked.close();
        };
        let (result, ()) = tokio::join!(check, forward);
        if let Err(error) = result.stage("check images") {
            let _ = sender.send(Err(error.into()));
        }
    });
    Ok(Box::pin(UnboundedReceiverStream::new(receiver)))
}

fn message(layer: &CheckedLayer) -> api::CheckedLayer {
    use api::checked_layer::Condition as Word;
    let (condition, reason) = match &layer.condition {
        Condition::Good => (Word::Good, ""),
        Condition::Unknown(reason) => (Word::Unknown, reason.as_str()),
        Condition::Damaged(reason) => (Word::Damaged, reason.as_str()),
        Condition::Healed(reason) => (Word::Healed, reason.as_str()),
    };
    api::CheckedLayer {
        chain_id: layer.chain_id.to_string(),
        diff_id: layer.diff_id.to_string(),
        images: layer.images.iter().map(ToString::to_string).collect(),
        condition: condition.into(),
        reason: reason.to_owned(),
    }
}
