//! Measures crisp against what the kernel charges for the same work: prints a table and writes the numbers as JSON.
//!
//! Run through hack/bench. Must not know: how the daemon works inside.
#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use crisp_tests::cri::{channel, clients, container_config, secured, words};
use crisp_tests::node::Node;
use crisp_tests::statistics::Samples;
use crisp_tests::{command, host, place};
use serde_json::{Value, json};
use tonic::transport::Channel;

const IMAGE: &str = "busybox";
/// Phases of the floor, in the order of the columns that it prints.
const PHASES: [&str; 6] =
    ["net+ipc+uts made", "pinned", "veth, addresses, routes", "overlay root", "clone to first byte", "all"];
/// Parts in which pods are brought up, with a part of the floor before each.
const TURNS: usize = 4;
/// Idle pods whose memory is looked at.
const IDLE_PODS: usize = 50;

#[derive(Debug)]
struct Options {
    pods: usize,
    rounds: usize,
    floor: PathBuf,
    hello: PathBuf,
    json: PathBuf,
    stages: bool,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self {
            pods: 100,
            rounds: 200,
            floor: PathBuf::new(),
            hello: PathBuf::new(),
            json: PathBuf::from("bench.json"),
            stages: false,
        };
        let mut arguments = env::args().skip(1);
        while let Some(name) = arguments.next() {
            if name == "--stages" {
                options.stages = true;
                continue;
            }
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--pods" => options.pods = value.parse()?,
                "--rounds" => options.rounds = value.parse()?,
                "--floor" => options.floor = value.into(),
                "--hello" => options.hello = value.into(),
                "--json" => options.json = value.into(),
                _ => bail!("unknown option {name}"),
            }
        }
        ensure!(
            options.floor.is_file() && options.hello.is_file(),
            "--floor and --hello name built programs: use hack/bench"
        );
        Ok(options)
    }
}

fn main() -> Result<()> {
    let options = Options::parse()?;
    if let Some(reason) = place::obstacle(&[]) {
        bail!("{reason}");
    }
    let mut report = BTreeMap::from([("host", host_facts())]);
    let mut node = Node::prepare("")?;
    if options.stages {
        node.serve_logging("crisp_shim=debug")?;
    } else {
        node.serve()?;
    }
    node.ensure_images(&[IMAGE])?;
    // The first pod pays for what is made once: the bridge, caches, the first page of everything.
    let warm = node.run_pod("warm-up")?;
    node.launch(&warm, "c", IMAGE, &["sleep", "3600"])?;
    node.end_pod(&warm)?;

    let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for (clients, name, floor_name) in
        [(1, "clients_1", "floor_us"), (8, "clients_8", "floor_beside_clients_8_us")]
    {
        let said = fs::metadata(node.daemon_log())?.len();
        let run = executor.block_on(lifecycle(&node, &options, clients))?;
        report.insert(floor_name, print_floor(&run.floor));
        report.insert(name, print_run(&run, clients, options.pods));
        if options.stages {
            print_stages(&fs::read_to_string(node.daemon_log())?[said as usize..]);
        }
    }
    report.insert("memory", memory(&node)?);
    node.stop()?;
    node.finish()?;
    crisp_tests::node::remove_shared_root()?;
    fs::write(&options.json, serde_json::to_string_pretty(&report)?)?;
    println!("\nnumbers: {}", options.json.display());
    Ok(())
}

/// Prints the stages that the daemon's log tells of, `laps="one 70 us, two 130 us"` after what they are stages of.
fn print_stages(log: &str) {
    let mut stages: BTreeMap<(String, usize), (String, Samples)> = BTreeMap::new();
    for line in log.lines() {
        let Some((before, laps)) = line.split_once(" laps=\"") else { continue };
        let what = before.rsplit(": ").next().unwrap_or(before);
        for (nth, lap) in laps.trim_end_matches('"').split(", ").enumerate() {
            let Some((stage, took)) = lap.trim_end_matches(" us").rsplit_once(' ') else { continue };
            let Ok(took) = took.parse::<f64>() else { continue };
            let known = stages.entry((what.to_owned(), nth));
            known.or_insert_with(|| (stage.to_owned(), Samples::default())).1.push(took);
        }
    }
    for ((what, _), (stage, samples)) in &stages {
        print_row(&format!("  {what}: {stage}"), samples, "");
    }
}

fn host_facts() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let apparmor = place::has_apparmor();
    let facts = json!({
        "kernel": read("/proc/sys/kernel/osrelease"), "cores": cores, "cgroup_limits": place::has_controllers(),
        "apparmor": apparmor,
    });
    println!(
        "kernel {}, {cores} cores; containers under seccomp, device control{}; all times in microseconds",
        facts["kernel"].as_str().unwrap_or("?"),
        if apparmor { " and AppArmor" } else { ", no AppArmor on this kernel" },
    );
    facts
}

/// Runs the bare program for `rounds` rounds and adds what it took to `phases`, in microseconds.
fn measure_floor(options: &Options, rounds: usize, phases: &mut [Samples]) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("crisp-floor-").tempdir_in(place::disk())?;
    let pins = tempfile::Builder::new().prefix("crisp-floor-").tempdir_in(place::volatile())?;
    let (lower, work) = (folder.path().join("lower"), folder.path().join("work"));
    for name in ["proc", "sys", "dev", "bin"] {
        fs::create_dir_all(lower.join(name))?;
    }
    fs::create_dir(&work)?;
    fs::copy(&options.hello, lower.join("bin/hello"))?;
    let mut floor = Command::new(&options.floor);
    floor
        .arg(rounds.to_string())
        .arg("crisp-floor0")
        .args([&lower, &work])
        .arg(pins.path())
        .arg("/bin/hello");
    let text = command::run_within(&mut floor, Duration::from_secs(600))?.ok()?;
    ensure!(text.lines().count() == rounds, "the floor ended early");
    for line in text.lines() {
        let values: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        ensure!(values.len() == phases.len(), "the floor printed {line}");
        for (samples, nanoseconds) in phases.iter_mut().zip(values) {
            samples.push(nanoseconds / 1e3);
        }
    }
    Ok(())
}

fn percentiles(samples: &Samples) -> Value {
    json!({"p50": samples.percentile(50).round(), "p95": samples.percentile(95).round(), "n": samples.len()})
}

fn print_row(name: &str, samples: &Samples, note: &str) {
    println!("  {name:<26} {:>9.0} {:>9.0}  {note}", samples.percentile(50), samples.percentile(95));
}

fn print_floor(floor: &[Samples]) -> Value {
    println!("\nthe floor: a bare program      p50       p95");
    for (name, samples) in PHASES.iter().zip(floor) {
        print_row(name, samples, "");
    }
    PHASES.iter().zip(floor).map(|(name, samples)| ((*name).to_owned(), percentiles(samples))).collect()
}

/// What one run of all pods through their life took.
#[derive(Debug)]
struct Run {
    /// What the bare program took in between, by phase, in microseconds.
    floor: Vec<Samples>,
    /// Microseconds by call.
    calls: BTreeMap<&'static str, Samples>,
    /// From the first RunPodSandbox to the last StartContainer.
    up: Duration,
}

impl Run {
    fn absorb(&mut self, other: BTreeMap<&'static str, Vec<f64>>) {
        for (name, samples) in other {
            self.calls.entry(name).or_default().extend(samples);
        }
    }
}

/// The calls in the order in which they are printed.
const CALLS: [&str; 8] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "Run+Create+Start",
    "ExecSync",
    "StopContainer(0)",
    "StopPodSandbox",
    "RemovePodSandbox",
];

fn print_run(run: &Run, clients: usize, pods: usize) -> Value {
    let base = run.floor[PHASES.len() - 1].percentile(50);
    println!("\n{pods} pods, {clients} client(s)            p50       p95");
    for name in CALLS {
        let samples = &run.calls[name];
        let ratio = samples.percentile(50) / base;
        let note = if name == "Run+Create+Start" { format!("{ratio:.2} x the floor") } else { String::new() };
        print_row(name, samples, &note);
    }
    let rate = pods as f64 / run.up.as_secs_f64();
    println!("  {:<26} {rate:>9.1}", "pods started per second");
    let calls: serde_json::Map<_, _> =
        CALLS.iter().map(|name| ((*name).to_owned(), percentiles(&run.calls[name]))).collect();
    let ratio = run.calls["Run+Create+Start"].percentile(50) / base;
    json!({"calls_us": calls, "pods_per_second": rate, "start_to_floor": ratio})
}

/// One pod as its client knows it.
#[derive(Clone, Debug)]
struct Running {
    pod: String,
    container: String,
}

type Timed = BTreeMap<&'static str, Vec<f64>>;

/// Times one call.
async fn timed<T>(
    times: &mut Timed,
    name: &'static str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<(T, f64)> {
    let start = Instant::now();
    let reply = call.await.with_context(|| name)?;
    let microseconds = start.elapsed().as_secs_f64() * 1e6;
    times.entry(name).or_default().push(microseconds);
    Ok((reply.into_inner(), microseconds))
}

/// A container as kubelet asks for it: under the default profiles, and with control of devices as every one has.
fn confined() -> cri::ContainerConfig {
    let default = || {
        let profile_type = cri::security_profile::ProfileType::RuntimeDefault.into();
        Some(cri::SecurityProfile { profile_type, ..Default::default() })
    };
    secured("c", IMAGE, &["sleep", "3600"], |security| {
        security.seccomp = default();
        security.apparmor = place::has_apparmor().then(default).flatten();
    })
}

/// A pod as kubelet asks for it, and as the floor makes it: each container has a PID namespace of its own.
fn separate(mut config: cri::PodSandboxConfig) -> cri::PodSandboxConfig {
    let linux = config.linux.get_or_insert_default();
    let namespaces = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
    namespaces.pid = cri::NamespaceMode::Container.into();
    config
}

async fn up(
    client: &mut RuntimeServiceClient<Channel>,
    config: cri::PodSandboxConfig,
    times: &mut Timed,
) -> Result<Running> {
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let (reply, run) = timed(times, "RunPodSandbox", Box::pin(client.run_pod_sandbox(request))).await?;
    let pod = reply.pod_sandbox_id;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(confined()),
        sandbox_config: Some(config),
    };
    let (reply, create) = timed(times, "CreateContainer", Box::pin(client.create_container(request))).await?;
    let container = reply.container_id;
    let request = cri::StartContainerRequest { container_id: container.clone() };
    let (_, start) = timed(times, "StartContainer", client.start_container(request)).await?;
    times.entry("Run+Create+Start").or_default().push(run + create + start);
    Ok(Running { pod, container })
}

async fn exec(client: &mut RuntimeServiceClient<Channel>, one: &Running, times: &mut Timed) -> Result<()> {
    let request =
        cri::ExecSyncRequest { container_id: one.container.clone(), cmd: words(&["true"]), timeout: 0 };
    let (reply, _) = timed(times, "ExecSync", client.exec_sync(request)).await?;
    ensure!(reply.exit_code == 0, "exec ended with {}", reply.exit_code);
    Ok(())
}

async fn down(client: &mut RuntimeServiceClient<Channel>, one: &Running, times: &mut Timed) -> Result<()> {
    let request = cri::StopContainerRequest { container_id: one.container.clone(), timeout: 0 };
    timed(times, "StopContainer(0)", client.stop_container(request)).await?;
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: one.pod.clone() };
    timed(times, "StopPodSandbox", client.stop_pod_sandbox(request)).await?;
    let request = cri::RemovePodSandboxRequest { pod_sandbox_id: one.pod.clone() };
    timed(times, "RemovePodSandbox", client.remove_pod_sandbox(request)).await?;
    Ok(())
}

/// Connected clients, each with its own connection.
async fn connect(node: &Node, clients_wanted: usize) -> Result<Vec<RuntimeServiceClient<Channel>>> {
    let mut connected = Vec::new();
    let socket = node.endpoint().trim_start_matches("unix://").to_owned();
    for _ in 0..clients_wanted {
        let (mut runtime, _) = clients(channel(Path::new(&socket)));
        // The connection is made by the first call; that is not what is measured.
        runtime.version(cri::VersionRequest::default()).await?;
        connected.push(runtime);
    }
    Ok(connected)
}

/// Brings all pods up, executes a command in each, and takes all of them down, with `clients` calls at a time.
///
/// The floor is measured in [`TURNS`] parts between the pods: a file system charges whoever comes later for what was
/// deleted before (ext4 does not use an inode again for minutes, and looks at it for every new one).
async fn lifecycle(node: &Node, options: &Options, clients: usize) -> Result<Run> {
    let configs: Vec<_> =
        (0..options.pods).map(|n| separate(node.pod_config(&format!("bench-{clients}-{n}")))).collect();
    let connected = connect(node, clients).await?;
    let mut run =
        Run { floor: vec![Samples::default(); PHASES.len()], calls: BTreeMap::new(), up: Duration::ZERO };
    let mut shares: Vec<Vec<Running>> = vec![Vec::new(); clients];
    for part in configs.chunks(options.pods.div_ceil(TURNS)) {
        measure_floor(options, options.rounds.div_ceil(TURNS), &mut run.floor)?;
        let start = Instant::now();
        let (part, next) = (Arc::new(part.to_vec()), Arc::new(AtomicUsize::new(0)));
        let workers: Vec<_> = connected
            .iter()
            .cloned()
            .map(|mut client| {
                let (part, next) = (Arc::clone(&part), Arc::clone(&next));
                tokio::spawn(async move {
                    let (mut times, mut made) = (Timed::new(), Vec::new());
                    while let Some(config) = part.get(next.fetch_add(1, Ordering::Relaxed)) {
                        made.push(Box::pin(up(&mut client, config.clone(), &mut times)).await?);
                    }
                    anyhow::Ok((times, made))
                })
            })
            .collect();
        for (worker, share) in workers.into_iter().zip(&mut shares) {
            let (times, made) = worker.await??;
            run.absorb(times);
            share.extend(made);
        }
        run.up += start.elapsed();
    }

    for phase in [Phase::Exec, Phase::Down] {
        let workers: Vec<_> = connected
            .iter()
            .cloned()
            .zip(shares.clone())
            .map(|(client, share)| tokio::spawn(work_off(client, share, phase)))
            .collect();
        for worker in workers {
            run.absorb(worker.await??);
        }
    }
    Ok(run)
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Exec,
    Down,
}

async fn work_off(
    mut client: RuntimeServiceClient<Channel>,
    share: Vec<Running>,
    phase: Phase,
) -> Result<Timed> {
    let mut times = Timed::new();
    for one in &share {
        match phase {
            Phase::Exec => exec(&mut client, one, &mut times).await?,
            Phase::Down => down(&mut client, one, &mut times).await?,
        }
    }
    Ok(times)
}

/// Proportional set size of a process in KiB.
fn pss(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .with_context(|| format!("no Pss in {path}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Memory with [`IDLE_PODS`] idle pods, each with one container that sleeps in the pod's PID namespace (CRI's default),
/// so that the pod's init counts too.
fn memory(node: &Node) -> Result<Value> {
    let daemon_before = pss(node.daemon_pid()?)?;
    let mut pods = Vec::new();
    for n in 0..IDLE_PODS {
        let pod = node.run_pod(&format!("idle-{n}"))?;
        let mut config = container_config("c", IMAGE, &["sleep", "3600"]);
        config.linux = None;
        node.launch_as(&pod, &config)?;
        pods.push(pod);
    }
    let daemon = pss(node.daemon_pid()?)?;
    let monitor = &node.scope().monitor;
    let ours: Vec<i32> = host::all_pids().into_iter().filter(|pid| host::executes(*pid, monitor)).collect();
    let processes: u64 = ours.iter().map(|pid| pss(*pid)).sum::<Result<u64>>()?;
    for pod in &pods {
        node.end_pod(pod)?;
    }
    let growth = daemon.saturating_sub(daemon_before);
    let a_pod = (processes + growth) as f64 / IDLE_PODS as f64;
    println!("\nmemory (PSS), {IDLE_PODS} idle pods");
    println!("  daemon, no pod {daemon_before} KiB; with the pods {daemon} KiB");
    println!("  {} processes of crisp-monitor (monitors and pod inits): {processes} KiB", ours.len());
    println!("  per pod, the daemon's growth included: {a_pod:.0} KiB");
    Ok(json!({
        "daemon_kib": daemon_before, "daemon_with_pods_kib": daemon, "pods": IDLE_PODS,
        "monitor_processes": ours.len(), "monitor_processes_kib": processes, "per_pod_kib": a_pod,
    }))
}
