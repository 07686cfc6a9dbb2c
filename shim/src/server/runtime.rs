//! RuntimeService.

use std::{sync::Arc, time::Duration};

use crisp_proto::runtime::v1::{self as cri, runtime_service_server::RuntimeService};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status};

use super::{
    about, info, list, metrics, stats,
    status::absent_is_fine,
    stream::{Items, pieces},
};
use crate::{
    container::exec,
    convert::status as convert,
    error::RequestError,
    id::Id,
    node::{Node, blocking},
    pod::{ContainerOp, SandboxOp},
    pool,
    record::ContainerPhase,
    stream::Streams,
    time::now_nanos,
};

/// See the module.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// What it serves.
    pub node: Arc<Node>,
    /// Where streams are opened.
    pub streams: Arc<Streams>,
}

type Answer<T> = Result<Response<T>, Status>;

fn ok<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

fn not_yet<T>(method: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("{method} is not implemented by crisp yet")))
}

/// A field of a request that must be there.
fn required<T>(value: Option<T>, field: &str) -> Result<T, RequestError> {
    value.ok_or_else(|| RequestError::invalid(format!("{field} is missing")))
}

/// A field `timeout`, cut at a year.
fn seconds(timeout: i64) -> Result<Duration, RequestError> {
    let seconds = u64::try_from(timeout)
        .map_err(|_| RequestError::invalid(format!("timeout {timeout} is negative; it counts seconds")))?;
    Ok(Duration::from_secs(seconds.min(YEAR_SECONDS)))
}

/// Runs to the end, even when the client that asked goes away in the middle.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, RequestError>> + Send + 'static,
) -> Result<T, RequestError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(RequestError::unknown(format!("internal error: {error}"))),
    }
}

impl Runtime {
    async fn container_op(&self, wanted: &str, op: ContainerOp) -> Result<(), RequestError> {
        let (pod, record) = self.node.container(wanted)?;
        pod.container_op(&record.id, op).await
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        ok(about::version())
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        ok(about::status(&self.node, request.into_inner().verbose).await)
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Answer<cri::RuntimeConfigResponse> {
        ok(about::config(&self.node))
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        let (node, cidrs) = (self.node.clone(), network.map(|network| network.pod_cidr).unwrap_or_default());
        blocking(move || {
            if node.pod_cidr.change(node.network.as_ref(), &node.ipam, &cidrs)? {
                node.pool.discard();
                pool::refill(&node);
            }
            Ok(())
        })
        .await?;
        ok(cri::UpdateRuntimeConfigResponse {})
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = required(request.config, "config")?;
        let id = self.node.run_sandbox(config, &request.runtime_handler).await?;
        tracing::info!(pod = %id, "sandbox ready");
        ok(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let wanted = request.into_inner().pod_sandbox_id;
        let stopped = match self.node.pod(&wanted) {
            Ok(pod) => pod.sandbox_op(SandboxOp::Stop).await,
            Err(error) => Err(error),
        };
        absent_is_fine(stopped)?;
        ok(cri::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let wanted = request.into_inner().pod_sandbox_id;
        let removed = match self.node.pod(&wanted) {
            Ok(pod) => {
                to_the_end(async move {
                    pod.sandbox_op(SandboxOp::Stop).await?;
                    pod.sandbox_op(SandboxOp::Remove).await
                })
                .await
            }
            Err(error) => Err(error),
        };
        absent_is_fine(removed)?;
        ok(cri::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let pod = self.node.pod(&request.pod_sandbox_id)?;
        let view = pod.view();
        let (status, containers_statuses) = view.statuses();
        ok(cri::PodSandboxStatusResponse {
            status: Some(status),
            info: if request.verbose { info::sandbox(&self.node, &view) } else { Default::default() },
            containers_statuses,
            timestamp: now_nanos(),
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        ok(cri::ListPodSandboxResponse { items: list::sandboxes(&self.node, request.into_inner().filter) })
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = required(request.config, "config")?;
        let id: Id = self.node.pod(&request.pod_sandbox_id)?.create(config).await?;
        tracing::info!(container = %id, pod = request.pod_sandbox_id, "container created");
        ok(cri::CreateContainerResponse { container_id: id.to_string() })
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let wanted = request.into_inner().container_id;
        self.container_op(&wanted, ContainerOp::Start).await?;
        tracing::info!(container = wanted, "container started");
        ok(cri::StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        let grace = seconds(request.timeout)?;
        absent_is_fine(self.container_op(&request.container_id, ContainerOp::Stop(grace)).await)?;
        ok(cri::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let wanted = request.into_inner().container_id;
        absent_is_fine(self.container_op(&wanted, ContainerOp::Remove).await)?;
        ok(cri::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let containers = list::containers(&self.node, request.into_inner().filter);
        ok(cri::ListContainersResponse { containers })
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let request = request.into_inner();
        let (_, record) = self.node.container(&request.container_id)?;
        ok(cri::ContainerStatusResponse {
            status: Some(convert::container_status(&record)),
            info: if request.verbose { info::container(&self.node, &record) } else { Default::default() },
        })
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let (pod, record) = self.node.container(&request.container_id)?;
        if let Some(linux) = request.linux {
            pod.container_op(&record.id, ContainerOp::Update(Box::new(linux))).await?;
        }
        ok(cri::UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        use crisp_monitor::wire::{Call, ContainerRef};
        let (pod, record) = self.node.container(&request.into_inner().container_id)?;
        let link = pod.view().link;
        let (ContainerPhase::Running { .. }, Some(link)) = (&record.phase, link) else {
            return Err(RequestError::precondition("the container does not run").into());
        };
        link.call(Call::ReopenLog(ContainerRef { container: record.id.to_string() }), &[]).await?;
        ok(cri::ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        let request = request.into_inner();
        let (pod, record) = self.node.container(&request.container_id)?;
        let limit = Some(seconds(request.timeout)?).filter(|limit| !limit.is_zero());
        let link = pod.view().link;
        let output = exec::sync(&self.node, link, record, request.cmd, limit).await?;
        ok(cri::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.code })
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        let (_, record) = self.node.container(&request.into_inner().container_id)?;
        ok(cri::ContainerStatsResponse { stats: Some(stats::one_container(&self.node, record).await?) })
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        ok(cri::ListContainerStatsResponse { stats: stats::containers(&self.node, filter).await? })
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        let pod = self.node.pod(&request.into_inner().pod_sandbox_id)?;
        ok(cri::PodSandboxStatsResponse { stats: Some(stats::one_pod(&self.node, pod).await?) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        ok(cri::ListPodSandboxStatsResponse { stats: stats::pods(&self.node, filter).await? })
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        self.node.pod(&request.pod_sandbox_id)?.update_resources(request).await?;
        ok(cri::UpdatePodSandboxResourcesResponse {})
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        ok(cri::ExecResponse { url: self.streams.exec(&self.node, request.into_inner())? })
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        ok(cri::AttachResponse { url: self.streams.attach(&self.node, request.into_inner())? })
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Answer<cri::PortForwardResponse> {
        ok(cri::PortForwardResponse { url: self.streams.port_forward(&self.node, request.into_inner())? })
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        not_yet("CheckpointContainer")
    }

    type GetContainerEventsStream = Items<cri::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        ok(Box::pin(self.node.events.listen().map(Ok)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        ok(cri::ListMetricDescriptorsResponse { descriptors: metrics::descriptors(&self.node) })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        ok(cri::ListPodSandboxMetricsResponse { pod_metrics: metrics::list(&self.node).await? })
    }

    type StreamPodSandboxesStream = Items<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let sandboxes = list::sandboxes(&self.node, request.into_inner().filter);
        ok(pieces(sandboxes, |pod_sandboxes| cri::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    type StreamContainersStream = Items<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let containers = list::containers(&self.node, request.into_inner().filter);
        ok(pieces(containers, |containers| cri::StreamContainersResponse { containers }))
    }

    type StreamContainerStatsStream = Items<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let all = stats::containers(&self.node, filter).await?;
        ok(pieces(all, |container_stats| cri::StreamContainerStatsResponse { container_stats }))
    }

    type StreamPodSandboxStatsStream = Items<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let all = stats::pods(&self.node, filter).await?;
        ok(pieces(all, |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    type StreamPodSandboxMetricsStream = Items<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let all = metrics::list(&self.node).await?;
        ok(pieces(all, |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }
}

/// No time limit is longer than a year: an `Instant` must be able to hold its end.
const YEAR_SECONDS: u64 = 366 * 24 * 3600;
