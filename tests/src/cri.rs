//! CRI clients for tests: blocking calls over the daemon's socket, and builders of the messages tests send most.
//!
//! Must not know: which runtime answers.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_proto::runtime::v1::image_service_client::ImageServiceClient;
use crisp_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tower::service_fn;

/// Longest message a CRI client accepts, as Kubernetes' own client has it.
const MESSAGE_BYTES: usize = 16 << 20;
/// Deadline of a call: there to end a broken run.
const CALL_LIMIT: Duration = Duration::from_secs(300);

/// What a call gives.
pub type Reply<T> = std::result::Result<T, Status>;

/// Opens a channel to the unix socket at `socket`; connecting happens with the first call, and again after a failure.
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static("http://localhost").timeout(CALL_LIMIT).connect_with_connector_lazy(service_fn(
        move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        },
    ))
}

/// The asynchronous clients for one channel.
pub fn clients(channel: Channel) -> (RuntimeServiceClient<Channel>, ImageServiceClient<Channel>) {
    (
        RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES),
        ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES),
    )
}

/// A blocking client of both services.
#[derive(Clone, Debug)]
pub struct Cri {
    executor: Arc<Runtime>,
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
    /// See [`Cri::within`].
    limit: Option<Duration>,
}

macro_rules! calls {
    ($($service:ident . $name:ident ( $request:ident ) -> $response:ident;)*) => {
        impl Cri {
            $(
                /// The CRI method of this name.
                ///
                /// # Errors
                /// The daemon's answer, or the transport's failure.
                pub fn $name(&self, request: cri::$request) -> Reply<cri::$response> {
                    let mut client = self.$service.clone();
                    let mut request = Request::new(request);
                    if let Some(limit) = self.limit {
                        request.set_timeout(limit);
                    }
                    let reply = self.executor.block_on(client.$name(request))?;
                    Ok(reply.into_inner())
                }
            )*
        }
    };
}

calls! {
    runtime.version(VersionRequest) -> VersionResponse;
    runtime.status(StatusRequest) -> StatusResponse;
    runtime.runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    runtime.update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
    runtime.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    runtime.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    runtime.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    runtime.create_container(CreateContainerRequest) -> CreateContainerResponse;
    runtime.start_container(StartContainerRequest) -> StartContainerResponse;
    runtime.stop_container(StopContainerRequest) -> StopContainerResponse;
    runtime.remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    runtime.list_containers(ListContainersRequest) -> ListContainersResponse;
    runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    runtime.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    runtime.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    runtime.exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    runtime.attach(AttachRequest) -> AttachResponse;
    runtime.port_forward(PortForwardRequest) -> PortForwardResponse;
    runtime.checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
    runtime.container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    runtime.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    runtime.pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    runtime.update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    runtime.list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
    runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
    image.list_images(ListImagesRequest) -> ListImagesResponse;
    image.image_status(ImageStatusRequest) -> ImageStatusResponse;
    image.pull_image(PullImageRequest) -> PullImageResponse;
    image.remove_image(RemoveImageRequest) -> RemoveImageResponse;
    image.image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
}

macro_rules! streams {
    ($($service:ident . $name:ident ( $request:ident ) -> $response:ident;)*) => {
        impl Cri {
            $(
                /// All messages of the CRI method of this name, which ends by itself.
                ///
                /// # Errors
                /// The daemon's answer, or the transport's failure.
                pub fn $name(&self, request: cri::$request) -> Reply<Vec<cri::$response>> {
                    let mut client = self.$service.clone();
                    self.executor.block_on(async {
                        let mut stream = client.$name(Request::new(request)).await?.into_inner();
                        let mut messages = Vec::new();
                        while let Some(message) = stream.message().await? {
                            messages.push(message);
                        }
                        Ok(messages)
                    })
                }
            )*
        }
    };
}

streams! {
    runtime.stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse;
    runtime.stream_containers(StreamContainersRequest) -> StreamContainersResponse;
    runtime.stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse;
    runtime.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse;
    runtime.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse;
    image.stream_images(StreamImagesRequest) -> StreamImagesResponse;
}

/// The events of a daemon from when this was made.
#[derive(Debug)]
pub struct Events {
    executor: Arc<Runtime>,
    stream: tonic::Streaming<cri::ContainerEventResponse>,
}

impl Events {
    /// The next event; `None` when the daemon has ended the stream.
    ///
    /// # Errors
    /// The stream broke, or there is no event within [`CALL_LIMIT`].
    pub fn receive(&mut self) -> Result<Option<cri::ContainerEventResponse>> {
        let next =
            self.executor.block_on(async { tokio::time::timeout(CALL_LIMIT, self.stream.message()).await });
        Ok(next.context("no event")??)
    }
}

/// What a process run by ExecSync said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Exit code, 128 + signal when it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cri {
    /// A client of the daemon behind `socket`.
    ///
    /// # Errors
    /// No executor can be made.
    pub fn new(socket: &Path) -> Result<Self> {
        let executor = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("make an executor for the client")?;
        let entered = executor.enter();
        let (runtime, image) = clients(channel(socket));
        drop(entered);
        Ok(Self { executor: Arc::new(executor), runtime, image, limit: None })
    }

    /// The same client, which gives each call up after `limit`, with `Cancelled` or `DeadlineExceeded`.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self.clone() }
    }

    /// Begins to listen to events.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn events(&self) -> Reply<Events> {
        let mut client = self.runtime.clone();
        let reply = self.executor.block_on(client.get_container_events(cri::GetEventsRequest {}))?;
        Ok(Events { executor: self.executor.clone(), stream: reply.into_inner() })
    }

    /// Runs a sandbox and returns its id.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn run_pod(&self, config: &cri::PodSandboxConfig) -> Reply<String> {
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        Ok(self.run_pod_sandbox(request)?.pod_sandbox_id)
    }

    /// Creates a container in sandbox `pod` and returns its id.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn create(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        pod_config: &cri::PodSandboxConfig,
    ) -> Reply<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.create_container(request)?.container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn start(&self, id: &str) -> Reply<()> {
        self.start_container(cri::StartContainerRequest { container_id: id.to_owned() }).map(|_| ())
    }

    /// Creates and starts a container and returns its id.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn launch(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        pod_config: &cri::PodSandboxConfig,
    ) -> Reply<String> {
        let id = self.create(pod, config, pod_config)?;
        self.start(&id)?;
        Ok(id)
    }

    /// Stops a container with `grace` seconds of grace.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn stop(&self, id: &str, grace: i64) -> Reply<()> {
        self.stop_container(cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace })
            .map(|_| ())
    }

    /// Removes a container.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn remove(&self, id: &str) -> Reply<()> {
        self.remove_container(cri::RemoveContainerRequest { container_id: id.to_owned() }).map(|_| ())
    }

    /// Stops a sandbox.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn stop_pod(&self, id: &str) -> Reply<()> {
        self.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).map(|_| ())
    }

    /// Removes a sandbox with all that is in it.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn remove_pod(&self, id: &str) -> Reply<()> {
        self.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).map(|_| ())
    }

    /// The status of a container.
    ///
    /// # Errors
    /// The daemon's answer; a reply without a status counts as one.
    pub fn container(&self, id: &str) -> Reply<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.container_status(request)?.status.ok_or_else(|| Status::internal("no status in the reply"))
    }

    /// The status of a sandbox.
    ///
    /// # Errors
    /// The daemon's answer; a reply without a status counts as one.
    pub fn pod(&self, id: &str) -> Reply<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        self.pod_sandbox_status(request)?.status.ok_or_else(|| Status::internal("no status in the reply"))
    }

    /// All sandboxes.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn pods(&self) -> Reply<Vec<cri::PodSandbox>> {
        Ok(self.list_pod_sandbox(cri::ListPodSandboxRequest::default())?.items)
    }

    /// All containers.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn containers(&self) -> Reply<Vec<cri::Container>> {
        Ok(self.list_containers(cri::ListContainersRequest::default())?.containers)
    }

    /// Runs a command in a container without a time limit of its own.
    ///
    /// # Errors
    /// The daemon's answer. A command that ends with another code than 0 is no error.
    pub fn exec(&self, id: &str, command: &[&str]) -> Reply<Said> {
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: words(command), timeout: 0 };
        let reply = self.exec_sync(request)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said { code: reply.exit_code, stdout: text(&reply.stdout), stderr: text(&reply.stderr) })
    }

    /// The CRI method Exec: where the command will run.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn exec_url(&self, request: cri::ExecRequest) -> Reply<cri::ExecResponse> {
        let mut client = self.runtime.clone();
        Ok(self.executor.block_on(client.exec(request))?.into_inner())
    }

    /// [`Cri::exec`] of a shell line that must succeed; returns its output.
    ///
    /// # Errors
    /// The daemon's answer, or another exit code than 0.
    pub fn shell(&self, id: &str, line: &str) -> Result<String> {
        let said = self.exec(id, &["sh", "-c", line])?;
        ensure!(said.code == 0, "`{line}` ended with {}: {}{}", said.code, said.stdout, said.stderr);
        Ok(said.stdout)
    }

    /// The pid, on the host, of a container's first process, from the verbose status.
    ///
    /// # Errors
    /// The daemon's answer, or an `info` map without a pid.
    pub fn pid(&self, id: &str) -> Result<i32> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let info = self.container_status(request)?.info;
        let text = info.get("info").context("the verbose status has no key info")?;
        let value: serde_json::Value = serde_json::from_str(text).context("info is not JSON")?;
        let pid = value["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.filter(|pid| *pid > 0).with_context(|| format!("no pid in {text}"))
    }

    /// Whether image `reference` is there; its id.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn image_id(&self, reference: &str) -> Reply<Option<String>> {
        let request = cri::ImageStatusRequest { image: Some(image(reference)), verbose: false };
        Ok(self.image_status(request)?.image.map(|image| image.id))
    }

    /// Pulls `reference` without credentials and returns the image's id.
    ///
    /// # Errors
    /// The daemon's answer.
    pub fn pull(&self, reference: &str) -> Reply<String> {
        let request = cri::PullImageRequest { image: Some(image(reference)), ..Default::default() };
        Ok(self.pull_image(request)?.image_ref)
    }
}

/// Checks the code of an expected refusal and returns its message.
///
/// # Errors
/// The call succeeded, or was refused with another code.
pub fn refused<T: Debug>(reply: Reply<T>, code: Code) -> Result<String> {
    match reply {
        Ok(value) => bail!("expected {code:?}, got an answer: {value:?}"),
        Err(status) => {
            ensure!(status.code() == code, "expected {code:?}, got {status:?}");
            Ok(status.message().to_owned())
        }
    }
}

/// Makes the same call from six threads at once and returns its answer.
///
/// # Errors
/// One of the calls was refused, or two have given different answers.
pub fn together<T: PartialEq + Debug + Send>(
    client: &Cri,
    call: impl Fn(&Cri) -> Reply<T> + Sync,
) -> Result<T> {
    let mut answers = thread::scope(|scope| {
        let calls: Vec<_> = (0..6).map(|_| scope.spawn(|| call(client))).collect();
        calls.into_iter().map(join).collect::<Result<Vec<T>>>()
    })?;
    let first = answers.pop().context("no answer")?;
    ensure!(answers.iter().all(|answer| *answer == first), "{first:?} and {answers:?}");
    Ok(first)
}

fn join<T>(call: thread::ScopedJoinHandle<'_, Reply<T>>) -> Result<T> {
    Ok(call.join().map_err(|_| anyhow!("a client panicked"))??)
}

/// Owned copies of `list`.
pub fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// An image by its name.
pub fn image(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: reference.to_owned(), ..Default::default() }
}

/// A sandbox's configuration as kubelet would send it, with nothing special. `logs` is the folder for all pods' logs.
pub fn pod_config(name: &str, cgroup_parent: &str, logs: &Path) -> cri::PodSandboxConfig {
    let uid = format!("uid-{name}");
    let log_directory: PathBuf = logs.join(format!("default_{name}_{uid}"));
    let labels = [
        ("io.kubernetes.pod.name".to_owned(), name.to_owned()),
        ("io.kubernetes.pod.namespace".to_owned(), "default".to_owned()),
        ("io.kubernetes.pod.uid".to_owned(), uid.clone()),
    ];
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid,
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: log_directory.display().to_string(),
        dns_config: Some(cri::DnsConfig::default()),
        labels: labels.into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.to_owned(),
            security_context: Some(cri::LinuxSandboxSecurityContext::default()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container's configuration with its own PID namespace, a log file and `command`.
pub fn container_config(name: &str, image_name: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(image(image_name)),
        command: words(command),
        log_path: format!("{name}/0.log"),
        labels: [("io.kubernetes.container.name".to_owned(), name.to_owned())].into_iter().collect(),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources::default()),
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// [`container_config`] with a security context that `change` has had its way with.
pub fn secured(
    name: &str,
    image_name: &str,
    command: &[&str],
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> cri::ContainerConfig {
    let mut config = container_config(name, image_name, command);
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    change(security.expect("container_config makes one"));
    config
}

/// A bind mount that can be written.
pub fn bind(host_path: &Path, container_path: &str) -> cri::Mount {
    cri::Mount {
        host_path: host_path.display().to_string(),
        container_path: container_path.to_owned(),
        ..Default::default()
    }
}
