//! Measures what a pod's network costs: RunPodSandbox with and without namespaces kept ready, beside what the kernel
//! charges for a sandbox, and what TCP carries between pods, beside the same links on a bridge made by ip(8).
//!
//! Run through `hack/bench --net`. Must not know: how the daemon works inside.
#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use crisp_tests::cri::{channel, clients};
use crisp_tests::node::{Node, Pod};
use crisp_tests::statistics::Samples;
use crisp_tests::{command, place, wait};
use serde_json::{Value, json};
use tonic::transport::Channel;

/// Times that everything is measured, one after the other.
const TURNS: usize = 4;
/// Runs of each throughput, interleaved; the median counts.
const RUNS: usize = 7;
/// Pods of one turn that are not counted: caches, and whatever is made once.
const WARM: usize = 4;
const CLIENTS: [usize; 2] = [1, 8];
/// What the floor consists of.
const PHASES: [&str; 4] =
    ["net+ipc+uts made", "pinned", "static program started", "gRPC round trip (Version)"];

#[derive(Debug)]
struct Options {
    pods: usize,
    floor: PathBuf,
    hello: PathBuf,
    json: PathBuf,
    seconds: usize,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self {
            pods: 100,
            floor: PathBuf::new(),
            hello: PathBuf::new(),
            json: PathBuf::from("bench-net.json"),
            seconds: 2,
        };
        let mut arguments = env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--pods" => options.pods = value.parse()?,
                "--seconds" => options.seconds = value.parse()?,
                "--floor" => options.floor = value.into(),
                "--hello" => options.hello = value.into(),
                "--json" => options.json = value.into(),
                _ => bail!("unknown option {name}"),
            }
        }
        ensure!(options.floor.is_file() && options.hello.is_file(), "use hack/bench --net");
        Ok(options)
    }
}

/// One way to run the daemon, and what RunPodSandbox took with each number of clients, in microseconds.
struct Variant {
    name: &'static str,
    network: String,
    /// Namespaces that are ready before the first pod.
    ready: usize,
    took: [Samples; CLIENTS.len()],
}

fn main() -> Result<()> {
    let options = Options::parse()?;
    if let Some(reason) = place::obstacle(&[]) {
        bail!("{reason}");
    }
    let mut node = Node::prepare("")?;
    let cni = cni(&node)?;
    let variants = [
        ("pool of 128", "pool = 128", 128),
        ("pool of 4", "pool = 4", 4),
        ("no pool", "pool = 0", 0),
        ("bridge through CNI", &cni, 0),
    ];
    let mut variants = variants.map(|(name, network, ready)| Variant {
        name,
        network: network.to_owned(),
        ready,
        took: Default::default(),
    });
    let mut floor = vec![Samples::default(); PHASES.len()];
    let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    for turn in 0..TURNS {
        for variant in &mut variants {
            measure_floor(&options, &mut floor[..3])?;
            node.configure_network(&variant.network)?;
            node.serve()?;
            wait_for_links(variant.ready)?;
            for (clients, took) in CLIENTS.into_iter().zip(&mut variant.took) {
                let name = format!("t{turn}c{clients}");
                let run = lives(&node, &name, clients, options.pods.div_ceil(TURNS));
                let (versions, runs) = executor.block_on(run)?;
                took.extend(runs);
                if clients == 1 {
                    floor[3].extend(versions);
                }
            }
            node.stop()?;
        }
    }
    let report = json!({"sandboxes_us": print_sandboxes(&floor, &variants), "throughput": throughput(&mut node, &options)?});
    node.finish()?;
    crisp_tests::node::remove_shared_root()?;
    fs::write(&options.json, serde_json::to_string_pretty(&report)?)?;
    println!("\nnumbers: {}", options.json.display());
    Ok(())
}

/// Lines of `[network]` with which Debian's CNI plugins make a bridge like crisp's own.
fn cni(node: &Node) -> Result<String> {
    let folder = node.folder().join("cni");
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [{
            "type": "bridge",
            "bridge": "bench-cni0",
            "isGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": folder.join("leases"),
                "ranges": [[{"subnet": "10.219.0.0/16"}], [{"subnet": "fd00:c219::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }],
    });
    fs::create_dir(&folder)?;
    fs::write(folder.join("bench.conflist"), list.to_string())?;
    Ok(format!("mode = \"cni\"\ncni_conf_dir = \"{}\"", folder.display()))
}

/// Waits until the pool, and nobody else, has its links.
fn wait_for_links(wanted: usize) -> Result<()> {
    wait::until("the pool to be full", wait::LONG, || {
        let table = fs::read_to_string("/proc/self/net/dev").map_err(|error| error.to_string())?;
        let ours =
            |line: &&str| line.trim_start().starts_with("cr") && !line.trim_start().starts_with("crisp");
        match table.lines().filter(ours).count() {
            found if found == wanted => Ok(()),
            found => Err(format!("{found} links, {wanted} wanted")),
        }
    })
}

/// Adds a turn of the bare program to `phases`, in microseconds.
fn measure_floor(options: &Options, phases: &mut [Samples]) -> Result<()> {
    let pins = tempfile::Builder::new().prefix("crisp-floor-").tempdir_in(place::volatile())?;
    let rounds = options.pods.div_ceil(TURNS);
    let mut floor = Command::new(&options.floor);
    floor.arg(rounds.to_string()).arg(pins.path()).arg(&options.hello);
    let text = command::run(&mut floor)?.ok()?;
    ensure!(text.lines().count() == rounds, "the floor ended early");
    for line in text.lines() {
        for (samples, word) in phases.iter_mut().zip(line.split(' ')) {
            samples.push(word.parse::<f64>()? / 1e3);
        }
    }
    Ok(())
}

/// Brings `pods` pods up, `clients` at a time, and then takes them down; gives what Version and what RunPodSandbox took,
/// in microseconds.
async fn lives(node: &Node, name: &str, clients_wanted: usize, pods: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let configs: Arc<Vec<_>> =
        Arc::new((0..pods + WARM).map(|n| separate(node.pod_config(&format!("{name}-{n}")))).collect());
    let next = Arc::new(AtomicUsize::new(0));
    let socket = node.endpoint().trim_start_matches("unix://").to_owned();
    let mut workers = Vec::new();
    for _ in 0..clients_wanted {
        let (client, _) = clients(channel(Path::new(&socket)));
        let (configs, next) = (Arc::clone(&configs), Arc::clone(&next));
        workers.push(tokio::spawn(worker(client, configs, next)));
    }
    let (mut versions, mut runs) = (Vec::new(), Vec::new());
    let mut ups = Vec::new();
    for worker in workers {
        ups.push(worker.await??);
    }
    for up in ups {
        versions.extend(up.versions);
        runs.extend(up.runs);
        down(up.client, up.pods).await?;
    }
    Ok((versions, runs))
}

/// A pod as kubelet asks for it: each container has a PID namespace of its own, so the pod needs no init.
fn separate(mut config: cri::PodSandboxConfig) -> cri::PodSandboxConfig {
    let linux = config.linux.get_or_insert_default();
    let namespaces = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
    namespaces.pid = cri::NamespaceMode::Container.into();
    config
}

/// What one client has made, and what its calls took, in microseconds.
struct Up {
    client: RuntimeServiceClient<Channel>,
    pods: Vec<String>,
    versions: Vec<f64>,
    runs: Vec<f64>,
}

async fn worker(
    mut client: RuntimeServiceClient<Channel>,
    configs: Arc<Vec<cri::PodSandboxConfig>>,
    next: Arc<AtomicUsize>,
) -> Result<Up> {
    let (mut versions, mut runs, mut pods) = (Vec::new(), Vec::new(), Vec::new());
    client.version(cri::VersionRequest::default()).await?;
    loop {
        let nth = next.fetch_add(1, Ordering::Relaxed);
        let Some(config) = configs.get(nth) else { return Ok(Up { client, pods, versions, runs }) };
        let start = Instant::now();
        client.version(cri::VersionRequest::default()).await?;
        let version = start.elapsed().as_secs_f64() * 1e6;
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let start = Instant::now();
        let reply = Box::pin(client.run_pod_sandbox(request)).await?;
        if nth >= WARM {
            versions.push(version);
            runs.push(start.elapsed().as_secs_f64() * 1e6);
        }
        pods.push(reply.into_inner().pod_sandbox_id);
    }
}

async fn down(mut client: RuntimeServiceClient<Channel>, pods: Vec<String>) -> Result<()> {
    for pod_sandbox_id in pods {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        client.stop_pod_sandbox(request).await?;
        client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await?;
    }
    Ok(())
}

fn print_row(name: &str, samples: &Samples, note: &str) {
    println!("  {name:<34} {:>9.0} {:>9.0}  {note}", samples.percentile(50), samples.percentile(95));
}

fn percentiles(samples: &Samples) -> Value {
    json!({"p50": samples.percentile(50).round(), "p95": samples.percentile(95).round(), "n": samples.len()})
}

fn print_sandboxes(floor: &[Samples], variants: &[Variant]) -> Value {
    let mut report = serde_json::Map::new();
    println!("\nthe floor, microseconds                    p50       p95");
    for (name, samples) in PHASES.iter().zip(floor) {
        print_row(name, samples, "");
        report.insert((*name).to_owned(), percentiles(samples));
    }
    let sum: f64 = floor.iter().map(|samples| samples.percentile(50)).sum();
    println!("  {:<34} {sum:>9.0}", "all");
    println!("\nRunPodSandbox                              p50       p95");
    for variant in variants {
        for (clients, samples) in CLIENTS.iter().zip(&variant.took) {
            let name = format!("{}, {clients} client(s)", variant.name);
            print_row(&name, samples, &format!("{:.2} x the floor", samples.percentile(50) / sum));
            report.insert(name, percentiles(samples));
        }
    }
    report.into()
}

/// Two ends between which TCP is measured.
struct Line {
    name: &'static str,
    /// Name of the network namespace of the client, below `/run/netns`.
    client: String,
    /// That of the server; `None`: the host's.
    server: Option<String>,
    /// The server's address.
    address: String,
    carried: Samples,
}

/// Namespaces on a bridge that ip(8) has made, with what crisp gives a pod.
struct Plain;

impl Plain {
    const NAMES: [&str; 2] = ["crisp-bench-1", "crisp-bench-2"];
    const BRIDGE: &str = "crisp-bench0";

    fn make(mtu: &str) -> Result<Self> {
        let made = Self;
        ip(&["link", "add", Self::BRIDGE, "mtu", mtu, "type", "bridge"])?;
        ip(&["addr", "add", "10.214.0.1/16", "dev", Self::BRIDGE])?;
        ip(&["link", "set", Self::BRIDGE, "up"])?;
        for (name, last) in Self::NAMES.into_iter().zip(["2", "3"]) {
            let host = format!("cbench{last}");
            ip(&["netns", "add", name])?;
            let peer = ["type", "veth", "peer", "name", "eth0", "mtu", mtu, "netns", name];
            ip(&[&["link", "add", host.as_str(), "mtu", mtu][..], &peer].concat())?;
            ip(&["link", "set", &host, "master", Self::BRIDGE, "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", "eth0", "up"])?;
            ip(&["-n", name, "addr", "add", &format!("10.214.0.{last}/16"), "dev", "eth0"])?;
            ip(&["-n", name, "route", "add", "default", "via", "10.214.0.1"])?;
        }
        Ok(made)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        for name in Self::NAMES {
            let _ = ip(&["netns", "del", name]);
        }
        let _ = ip(&["link", "del", Self::BRIDGE]);
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    command::run(Command::new("ip").args(arguments))?.ok()
}

/// Name below `/run/netns` and IPv4 address of a pod.
fn place_of(node: &Node, pod: &Pod) -> Result<(String, String)> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let answer = node.cri().pod_sandbox_status(request)?;
    let info: Value = serde_json::from_str(answer.info.get("info").context("no info")?)?;
    let pin = Path::new(info["netNamespace"].as_str().context("no netNamespace")?).to_owned();
    let name = pin.file_name().context("a pin without a name")?.to_string_lossy().into_owned();
    Ok((name, answer.status.and_then(|status| status.network).context("no network")?.ip))
}

/// What TCP carries on each line, and crisp's share of what the plain bridge carries.
fn throughput(node: &mut Node, options: &Options) -> Result<Value> {
    node.configure_network("pool = 4")?;
    node.serve()?;
    let pods = [node.run_pod("iperf-1")?, node.run_pod("iperf-2")?];
    let [one, two] = [place_of(node, &pods[0])?, place_of(node, &pods[1])?];
    let mtu = fs::read_to_string("/sys/class/net/crisp-test0/mtu")?;
    let plain = Plain::make(mtu.trim())?;
    let [first, second] = Plain::NAMES.map(str::to_owned);
    let line = |name, client: &String, server: Option<&String>, address: &str| Line {
        name,
        client: client.clone(),
        server: server.cloned(),
        address: address.to_owned(),
        carried: Samples::default(),
    };
    let mut lines = [
        line("pod to pod, crisp", &one.0, Some(&two.0), &two.1),
        line("pod to pod, ip(8)", &first, Some(&second), "10.214.0.3"),
        line("pod to host, crisp", &one.0, None, "10.213.0.1"),
        line("pod to host, ip(8)", &first, None, "10.214.0.1"),
    ];
    for _ in 0..RUNS {
        for line in &mut lines {
            let gigabits = iperf(line, options.seconds)?;
            line.carried.push(gigabits);
        }
    }
    println!("\nTCP, one stream, {RUNS} runs of {} s      median Gbit/s", options.seconds);
    let mut report = serde_json::Map::new();
    for pair in lines.chunks(2) {
        let [own, plain] = [0, 1].map(|at| pair[at].carried.percentile(50));
        println!("  {:<34} {own:>9.2}   {:.1} % of the plain bridge's", pair[0].name, own / plain * 100.0);
        println!("  {:<34} {plain:>9.2}", pair[1].name);
        report.insert(pair[0].name.to_owned(), json!({"gbits": own, "share": own / plain}));
        report.insert(pair[1].name.to_owned(), json!({"gbits": plain}));
    }
    drop(plain);
    for pod in &pods {
        node.end_pod(pod)?;
    }
    node.stop()?;
    Ok(report.into())
}

/// A server that is killed when it is not needed any more.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn inside(namespace: Option<&String>, program: &str) -> Command {
    let Some(namespace) = namespace else { return Command::new(program) };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
    command
}

/// One run, in Gbit/s as the receiver counts them.
fn iperf(line: &Line, seconds: usize) -> Result<f64> {
    let mut server = inside(line.server.as_ref(), "iperf3");
    server
        .args(["--server", "--one-off", "--bind", &line.address])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let _server = Server(server.spawn().context("start iperf3")?);
    wait::until("iperf3 to listen", wait::LONG, || {
        let mut client = inside(Some(&line.client), "iperf3");
        client.args(["--json", "--client", &line.address, "--time", &seconds.to_string()]);
        received(&mut client).map_err(|error| format!("{error:#}"))
    })
}

/// What the receiver counted, in Gbit/s.
fn received(client: &mut Command) -> Result<f64> {
    let text = command::run(client)?.ok()?;
    let answer: Value = serde_json::from_str(&text)?;
    let bits = answer["end"]["sum_received"]["bits_per_second"].as_f64();
    let bits = bits.with_context(|| format!("no bits_per_second, but {}", answer["error"]))?;
    ensure!(bits > 0.0, "nothing was carried");
    Ok(bits / 1e9)
}
