//! Images as a stream of bytes. Must not know what is in them.

use std::{io, pin::Pin, sync::Arc};

use crisp_proto::admin::v1 as api;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use crate::{
    error::{RequestError, Stage},
    node::Node,
};

/// Bytes in one message.
const PIECE: usize = 256 << 10;
/// Messages that wait for a slow reader.
const WAITING: usize = 4;

pub(super) type Bytes = Pin<Box<dyn Stream<Item = Result<api::SavedBytes, Status>> + Send>>;

/// The archive of these images, as it is made.
pub(super) fn archive(node: &Arc<Node>, images: Vec<String>) -> Result<Bytes, RequestError> {
    if images.is_empty() {
        return Err(RequestError::invalid("images: none is named"));
    }
    let (sender, receiver) = mpsc::channel(WAITING);
    let (node, out) = (node.clone(), io::BufWriter::with_capacity(PIECE, Pieces(sender.clone())));
    tokio::spawn(async move {
        if let Err(error) = node.store.export(&images, out).await.stage("save") {
            // Nobody may listen any more.
            let _ = sender.send(Err(error.into())).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// The writing end; it blocks while the reader is slow, and fails when there is none.
struct Pieces(mpsc::Sender<Result<api::SavedBytes, Status>>);

impl io::Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let data = &data[..data.len().min(PIECE)];
        let sent = self.0.blocking_send(Ok(api::SavedBytes { data: data.to_vec() }));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
