//! The daemon: CRI over a unix socket, one actor a pod, state records, recovery, configuration.
//!
//! It must not know how namespaces, mounts and cgroups are made: it asks `netns`, `runtime`, `image` and the
//! pod's monitor. It makes no system call that those rooms have a name for, never forks, and never changes the
//! namespaces of a thread that serves requests.

pub mod cdi;
mod cgroups;
pub mod cni;
pub mod config;
pub mod container;
pub mod convert;
pub mod error;
pub mod events;
pub mod id;
pub mod link;
pub mod lsm;
pub mod node;
pub mod pod;
pub mod pod_cidr;
pub mod pool;
pub mod record;
pub mod recover;
pub mod server;
mod setup;
pub mod stream;
pub mod systemd;
pub mod time;
mod user_namespaces;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crisp_proto::{
    admin::v1::admin_server::AdminServer,
    runtime::v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

use crate::{
    config::Config,
    error::{RequestError, Stage},
    server::{admin::Administration, image::Images, runtime::Runtime},
};

/// Largest message that the daemon takes: as large as CRI clients take.
const MESSAGE_BYTES: usize = 16 << 20;

/// Serves until `shutdown` completes. Pods go on without the daemon.
///
/// The socket is bound last: a list that is served before recovery is done would make kubelet run pods twice.
///
/// # Errors
/// Something that the daemon cannot work without is missing; the text says what.
pub async fn serve(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), RequestError> {
    // What pods see of the files made here must not depend on how the daemon was started.
    crisp_sys::process::set_umask(0o022);
    let path = socket_path(&config.listen)?;
    let (node, locks) = setup::node(config).await?;
    let (streams, streaming) = stream::open(&node.config.stream, node.ending.clone())?;
    let kept = recover::all(&node).await?;
    node.cni.collect();
    pool::refill(&node);
    let listener = bind(&path)?;
    streaming.serve(node.clone(), &streams);
    tracing::info!(socket = %path.display(), "serving");
    let served = tonic::transport::Server::builder()
        .layer(server::deadline::Deadlines)
        .add_service(
            RuntimeServiceServer::new(Runtime { node: node.clone(), streams: streams.clone() })
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(
            ImageServiceServer::new(Images { node: node.clone() })
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(AdminServer::new(Administration { node: node.clone() }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            shutdown.await;
            // The server waits for every call that it has: those without an end of their own are ended first.
            node.ending.cancel();
            node.events.close();
        })
        .await
        .stage("serve");
    let _ = fs::remove_file(&path);
    streams.close().await;
    if let Err(error) = pool::close(&node).await {
        tracing::warn!(%error, "namespaces that no pod wants stay behind");
    }
    if node.pods().is_empty() && kept == 0 {
        setup::leave(&node).await;
    }
    drop(locks);
    served
}

fn socket_path(listen: &str) -> Result<PathBuf, RequestError> {
    match listen.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err(RequestError::invalid(format!("listen {listen:?} is not unix:// and an absolute path"))),
    }
}

/// Whoever can connect is root on this machine: the socket is for root alone, and not for root's group,
/// which processes of no privilege have, too (CRI has no authentication of its own).
fn bind(path: &Path) -> Result<UnixListener, RequestError> {
    let at = |what: &str| format!("{what} {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).stage(at("make the directory of"))?;
    }
    // The lock on the state directory says that nobody serves here any more.
    if path.exists() {
        fs::remove_file(path).stage(at("remove the old socket"))?;
    }
    let listener = UnixListener::bind(path).stage(at("listen on"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).stage(at("protect"))?;
    Ok(listener)
}
