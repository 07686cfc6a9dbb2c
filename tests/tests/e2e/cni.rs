//! CNI networks: real plugins, when a network list counts, what is told of it, and what becomes of it under a pod.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::refused;
use crisp_tests::node::{Node, Pod};
use crisp_tests::place::{CNI_PLUGINS, Need};
use crisp_tests::plugin::Plugins;
use crisp_tests::{command, wait};
use serde_json::{Value, json};
use tonic::Code;

use crate::case::Case;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "cni_a_chain_of_real_plugins_gives_pods_a_network",
        needs: &[Need::CniPlugins],
        images: &["busybox"],
        run: chain,
    },
    Case { name: "cni_a_list_that_appears_later_makes_the_node_ready", needs: &[], images: &[], run: later },
    Case { name: "cni_what_plugins_say_of_themselves_is_told", needs: &[], images: &[], run: status },
    Case { name: "cni_a_list_wins_over_the_bridge_where_there_is_one", needs: &[], images: &[], run: auto },
    Case { name: "cni_c21_hostile_lists_are_refused_by_name", needs: &[], images: &[], run: hostile },
    Case { name: "cni_plugins_are_told_what_they_declare", needs: &[], images: &[], run: told },
];

/// The bridge of the tests' network list.
pub(crate) const BRIDGE: &str = "crisp-cni0";

/// A daemon with a folder of network lists and of plugins of its own. Taken apart by [`World::end`].
pub(crate) struct World {
    pub(crate) plugins: Plugins,
    folder: PathBuf,
    /// The daemon's configuration as it was.
    before: String,
}

impl World {
    /// Restarts the daemon with `keys` in its section `[network]`, and installs plugins of these names.
    pub(crate) fn begin(node: &mut Node, keys: &str, names: &[&str]) -> Result<Self> {
        let folder = node.folder().join("cni");
        fs::create_dir_all(folder.join("net.d"))?;
        let plugins = Plugins::install(&folder, names)?;
        let before = fs::read_to_string(node.config())?;
        let world = Self { plugins, folder, before };
        world.configure(node, keys)?;
        Ok(world)
    }

    /// Restarts the daemon with other keys.
    pub(crate) fn configure(&self, node: &mut Node, keys: &str) -> Result<()> {
        let section = format!(
            "[network]\ncni_conf_dir = {:?}\ncni_bin_dirs = [{:?}, {CNI_PLUGINS:?}]\n{keys}\n",
            self.lists(),
            self.plugins.bin(),
        );
        fs::write(node.config(), self.before.replace("[network]\n", &section))?;
        node.stop()?;
        node.serve()
    }

    pub(crate) fn lists(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    pub(crate) fn write(&self, list: &Value) -> Result<()> {
        Ok(fs::write(self.lists().join("10-test.conflist"), list.to_string())?)
    }

    pub(crate) fn unwrite(&self) -> Result<()> {
        Ok(fs::remove_file(self.lists().join("10-test.conflist"))?)
    }

    /// A list of Debian's plugins, with `first` and `last` around them.
    pub(crate) fn chain(&self, first: &[Value], last: &[Value]) -> Value {
        let range = |subnet: &str| json!([{ "subnet": subnet }]);
        let real = [
            json!({
                "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": self.folder.join("leases"),
                    "ranges": [range("10.214.0.0/24"), range("fd00:c214::/64")],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            }),
            json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "321" } }),
            json!({ "type": "firewall", "backend": "iptables" }),
            json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } }),
            json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
        ];
        let plugins: Vec<_> = first.iter().chain(&real).chain(last).cloned().collect();
        json!({ "cniVersion": "1.0.0", "name": "podnet", "plugins": plugins })
    }

    /// A list of plugins of the tests' own, the first of which gives every pod one and the same address.
    pub(crate) fn fake(&self, names: &[&str]) -> Result<Value> {
        let plugins: Vec<_> = names.iter().map(|name| self.plugins.config(name, None)).collect();
        let first = names.first().context("no plugin")?;
        self.plugins.tell(first, "ADD", Some("address 10.9.8.7/24"))?;
        Ok(json!({ "cniVersion": "1.1.0", "name": "fake", "plugins": plugins }))
    }

    /// Addresses that host-local has given out.
    pub(crate) fn leases(&self) -> BTreeSet<IpAddr> {
        let entries = fs::read_dir(self.folder.join("leases/podnet")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
    }

    /// The daemon as it was, no bridge, no rule of a plugin's.
    pub(crate) fn end(self, node: &mut Node) -> Result<()> {
        fs::write(node.config(), &self.before)?;
        node.stop()?;
        clean()?;
        node.serve()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // After a failed test: the next one must find a clean host.
        let _ = clean();
    }
}

/// Takes away what plugins leave on a host on purpose: their bridge, and chains that all pods share.
fn clean() -> Result<()> {
    let _ = command::run(Command::new("ip").args(["link", "del", BRIDGE]))?;
    for family in ["ip", "ip6"] {
        for table in ["nat", "filter", "mangle"] {
            let _ = command::run(Command::new("nft").args(["delete", "table", family, table]))?;
        }
    }
    Ok(())
}

/// What is in the ledger of the daemon.
pub(crate) fn ledger(node: &Node) -> Result<Vec<String>> {
    let entries = fs::read_dir(node.root().join("cni"))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// The condition NetworkReady: whether it holds, its reason and its message.
fn network_ready(node: &Node) -> Result<(bool, String, String)> {
    let status = node.cri().status(cri::StatusRequest::default())?.status.context("no status")?;
    let mut conditions = status.conditions.into_iter();
    let found = conditions.find(|condition| condition.r#type == "NetworkReady").context("no NetworkReady")?;
    Ok((found.status, found.reason, found.message))
}

fn wait_for_ready(node: &Node, wanted: bool, text: &str) -> Result<()> {
    wait::until("the condition NetworkReady", wait::LONG, || {
        let seen = network_ready(node).map_err(|error| format!("{error:#}"))?;
        if seen.0 == wanted && seen.2.contains(text) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
}

fn serve(node: &Node, pod: &Pod, text: &str) -> Result<String> {
    let line = format!("mkdir /www; echo {text} >/www/index.html; exec httpd -f -p 8080 -h /www");
    node.launch(pod, "web", "busybox", &["sh", "-c", &line])
}

fn chain(node: &mut Node) -> Result<()> {
    let world = World::begin(node, "mode = \"auto\"", &[])?;
    world.write(&world.chain(&[], &[]))?;
    let mut config = node.pod_config("server");
    config.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "50M".to_owned());
    config.annotations.insert("kubernetes.io/ingress-bandwidth".to_owned(), "50M".to_owned());
    config.port_mappings =
        vec![cri::PortMapping { container_port: 8080, host_port: 18080, ..Default::default() }];
    let server = node.run_pod_as(config)?;
    let web = serve(node, &server, "here-i-am")?;
    let client = node.run_pod("client")?;
    let id = node.launch(&client, "c", "busybox", &["sleep", "3600"])?;
    let ips = crate::network::ips(node, &server.id)?;
    let all: BTreeSet<IpAddr> = ips.iter().copied().chain(crate::network::ips(node, &client.id)?).collect();
    ensure!(all == world.leases(), "{all:?} and {:?}", world.leases());
    for ip in &ips {
        ensure!(crate::network::http(*ip, 8080)?.contains("here-i-am"), "from the host, {ip}");
        let url = SocketAddr::new(*ip, 8080);
        let answer = node.cri().shell(&id, &format!("wget -q -O - http://{url}/"))?;
        ensure!(answer == "here-i-am\n", "from a pod, {ip}: {answer}");
    }
    ensure!(crate::network::http("10.214.0.1".parse()?, 18080)?.contains("here-i-am"), "host port");
    ensure!(
        node.cri().shell(&id, "cat /proc/sys/net/core/somaxconn")? == "321\n",
        "sysctl of the plugin tuning"
    );
    let hosts = node.cri().shell(&id, "cat /etc/hosts")?;
    ensure!(hosts.contains(&crate::network::ips(node, &client.id)?[0].to_string()), "{hosts}");
    let shaped = command::run(Command::new("tc").args(["qdisc", "show"]))?.ok()?;
    ensure!(shaped.matches("qdisc tbf").count() == 2, "{shaped}");
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: server.id.clone() };
    let linux = node.cri().pod_sandbox_stats(request)?.stats.context("stats")?.linux.context("linux")?;
    let interface = linux.network.context("network")?.default_interface.context("interface")?;
    ensure!(
        interface.name == "eth0" && interface.rx_bytes.is_some_and(|bytes| bytes.value > 0),
        "{interface:?}"
    );
    crate::port_forward::carries(node, &client)?;
    in_a_user_namespace(node)?;
    // The same after a kill, and with the list gone.
    world.unwrite()?;
    node.kill_and_restart()?;
    ensure!(crate::network::ips(node, &server.id)? == ips, "addresses have changed");
    ensure!(crate::network::http(ips[0], 8080)?.contains("here-i-am"));
    node.cri().stop(&web, 0)?;
    node.end_pod(&server)?;
    node.end_pod(&client)?;
    ensure!(
        world.leases().is_empty() && ledger(node)?.is_empty(),
        "{:?} {:?}",
        world.leases(),
        ledger(node)?
    );
    let shaped = command::run(Command::new("tc").args(["qdisc", "show"]))?.ok()?;
    ensure!(!shaped.contains("qdisc tbf"), "{shaped}");
    let rules = command::run(Command::new("nft").args(["list", "ruleset"]))?.ok()?;
    ensure!(!rules.contains("18080") && !ips.iter().any(|ip| rules.contains(&ip.to_string())), "{rules}");
    world.end(node)
}

/// The network namespace belongs to another user namespace, and plugins work there all the same.
fn in_a_user_namespace(node: &Node) -> Result<()> {
    let options = crate::userns::options(crate::userns::HOST, cri::NamespaceMode::Container);
    let pod = node.run_pod_as(crate::userns::sandbox(node, "mapped", options.clone())?)?;
    let container = crate::userns::container("c", &["sleep", "3600"], &options)?;
    let id = node.launch_as(&pod, &container)?;
    let shown = node.cri().shell(&id, "ip addr show eth0")?;
    for ip in crate::network::ips(node, &pod.id)? {
        ensure!(shown.contains(&ip.to_string()), "{shown}");
    }
    node.end_pod(&pod)
}

fn later(node: &mut Node) -> Result<()> {
    let world = World::begin(node, "mode = \"cni\"", &["main"])?;
    let (ready, reason, message) = network_ready(node)?;
    ensure!(!ready && reason == "NetworkPluginNotReady", "{reason}");
    ensure!(message.contains("no CNI network list in") && message.contains("*.conflist"), "{message}");
    let said = refused(node.cri().run_pod(&node.pod_config("early")), Code::Unknown)?;
    ensure!(said.contains("network: network.mode is cni, and no CNI network list"), "{said}");
    // A pod with the host's network needs none.
    let mut config = node.pod_config("host");
    let security =
        config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).context("security")?;
    let network = cri::NamespaceMode::Node.into();
    security.namespace_options = Some(cri::NamespaceOption { network, ..Default::default() });
    let host = node.run_pod_as(config)?;
    world.write(&world.fake(&["main"])?)?;
    wait_for_ready(node, true, "")?;
    let pod = node.run_pod("late")?;
    let network = node.cri().pod(&pod.id)?.network.context("network")?;
    ensure!(network.ip == "10.9.8.7" && network.additional_ips.is_empty(), "{network:?}");
    // The list goes while the pod lives.
    world.unwrite()?;
    wait_for_ready(node, false, "no CNI network list in")?;
    ensure!(node.cri().pod(&pod.id)?.network.context("network")?.ip == "10.9.8.7");
    node.end_pod(&pod)?;
    node.end_pod(&host)?;
    let calls: Vec<_> = world.plugins.calls().into_iter().filter(|call| call.contains(&pod.id)).collect();
    let verbs: Vec<_> = calls.iter().filter_map(|call| call.split(' ').next()).collect();
    ensure!(verbs == ["ADD", "DEL"] && world.plugins.held()?.is_empty(), "{calls:?}");
    ensure!(!calls[1].contains(" - "), "DEL without the namespace: {calls:?}");
    world.end(node)
}

fn status(node: &mut Node) -> Result<()> {
    let world = World::begin(node, "mode = \"auto\"", &["main", "second"])?;
    world.plugins.tell("second", "STATUS", Some("error 50 no leases left"))?;
    world.write(&world.fake(&["main", "second"])?)?;
    wait_for_ready(node, false, "STATUS of plugin crisp-test-plugin-second: no leases left (code 50)")?;
    world.plugins.tell("second", "STATUS", None)?;
    wait_for_ready(node, true, "")?;
    let pod = node.run_pod("live")?;
    // One that hangs is not waited for: each of these calls is over while it hangs.
    world.plugins.tell("main", "STATUS", Some("hang"))?;
    let asked = || {
        world
            .plugins
            .calls()
            .iter()
            .filter(|call| call.starts_with("STATUS") && call.ends_with("Hang"))
            .count()
    };
    wait::until("STATUS to hang", wait::LONG, || {
        let seen = network_ready(node).map_err(|error| format!("{error:#}"))?;
        if asked() > 0 { Ok(()) } else { Err(format!("{seen:?}")) }
    })?;
    for _ in 0..20 {
        ensure!(network_ready(node)?.0 && node.cri().pods()?.len() == 1);
    }
    ensure!(asked() == 1, "it is asked while it has not answered");
    world.plugins.tell("main", "STATUS", None)?;
    // What lives is what GC is told at the next start, which ends the one that hangs.
    node.kill_and_restart()?;
    let file = world.plugins.bin().with_file_name("crisp-test-plugin-second.GC.input");
    let told =
        wait::until("GC", wait::LONG, || fs::read_to_string(&file).map_err(|error| error.to_string()))?;
    let told: Value = serde_json::from_str(&told)?;
    let valid = json!([{ "containerID": pod.id, "ifname": "eth0" }]);
    ensure!(told["cni.dev/valid-attachments"] == valid && told["cni.dev/attachments"] == valid, "{told}");
    wait_for_ready(node, true, "")?;
    node.end_pod(&pod)?;
    world.end(node)
}

fn auto(node: &mut Node) -> Result<()> {
    let world = World::begin(node, "mode = \"auto\"", &["main"])?;
    let bridged = node.run_pod("bridged")?;
    let ips = crate::network::ips(node, &bridged.id)?;
    world.write(&world.fake(&["main"])?)?;
    let attached = node.run_pod("attached")?;
    ensure!(node.cri().pod(&attached.id)?.network.context("network")?.ip == "10.9.8.7");
    node.kill_and_restart()?;
    ensure!(crate::network::ips(node, &bridged.id)? == ips);
    ensure!(node.cri().pod(&attached.id)?.network.context("network")?.ip == "10.9.8.7");
    // Each gives back what it has, whatever the mode is by then.
    world.configure(node, "mode = \"bridge\"")?;
    let other = node.run_pod("other")?;
    crate::network::ips(node, &other.id)?;
    for pod in [&attached, &bridged, &other] {
        node.end_pod(pod)?;
    }
    ensure!(world.plugins.held()?.is_empty() && ledger(node)?.is_empty());
    world.end(node)
}

fn hostile(node: &mut Node) -> Result<()> {
    let world = World::begin(node, "mode = \"cni\"", &["main"])?;
    let at = |name: &str| world.lists().join(name);
    let list = world.fake(&["main"])?.to_string();
    let outside = node.folder().join("outside.conflist");
    fs::write(&outside, &list)?;
    std::os::unix::fs::symlink(&outside, at("1.conflist"))?;
    fs::write(at("2.conflist"), &list)?;
    fs::set_permissions(at("2.conflist"), std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    fs::write(at("3.conflist"), vec![b' '; 2 << 20])?;
    nix::unistd::mkfifo(&at("4.conflist"), nix::sys::stat::Mode::S_IRWXU)?;
    fs::write(at("5.conflist"), list.replace("crisp-test-plugin-main", "../../bin/sh"))?;
    let (ready, _, message) = network_ready(node)?;
    ensure!(!ready);
    for reason in [
        "1.conflist: it is a symbolic link that leads out of the folder",
        "2.conflist: everybody may write to it",
        "3.conflist: it is larger than",
        "4.conflist: it is no regular file",
        "5.conflist: plugins[0].type \"../../bin/sh\" is no plain file name",
    ] {
        ensure!(message.contains(reason), "{message}");
    }
    ensure!(world.plugins.calls().is_empty());
    world.end(node)
}

fn told(node: &mut Node) -> Result<()> {
    let world = World::begin(node, "mode = \"auto\"", &["main", "second"])?;
    let mut list = world.fake(&["main", "second"])?;
    list["plugins"][1]["capabilities"] =
        json!({ "portMappings": true, "dns": true, "cgroupPath": true, "podAnnotations": true, "mac": true });
    world.write(&list)?;
    let mut config = node.pod_config("told");
    config.annotations.insert("k".to_owned(), "v;w".to_owned());
    config.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "1M".to_owned());
    config.dns_config = Some(cri::DnsConfig { servers: vec!["192.0.2.53".to_owned()], ..Default::default() });
    let port = |host_port| cri::PortMapping { container_port: 80, host_port, ..Default::default() };
    config.port_mappings = vec![port(0), port(18081)];
    let pod = node.run_pod_as(config.clone())?;
    let file = |name: &str| world.plugins.bin().with_file_name(format!("crisp-test-plugin-{name}.ADD.input"));
    let first: Value = serde_json::from_str(&fs::read_to_string(file("main"))?)?;
    ensure!(first.get("runtimeConfig").is_none(), "{first}");
    let second: Value = serde_json::from_str(&fs::read_to_string(file("second"))?)?;
    let runtime = &second["runtimeConfig"];
    let keys: Vec<_> = runtime.as_object().context("runtimeConfig")?.keys().map(String::as_str).collect();
    ensure!(keys == ["cgroupPath", "dns", "podAnnotations", "portMappings"], "{keys:?}");
    let ports = json!([{ "hostPort": 18081, "containerPort": 80, "protocol": "tcp", "hostIP": "" }]);
    ensure!(runtime["portMappings"] == ports && runtime["podAnnotations"]["k"] == "v;w", "{runtime}");
    node.end_pod(&pod)?;
    // A name that would say more than a name.
    let metadata = config.metadata.as_mut().context("metadata")?;
    metadata.name = "x;K8S_POD_NAMESPACE=kube-system".to_owned();
    let said = refused(node.cri().run_pod(&config), Code::Unknown)?;
    ensure!(said.contains("CNI argument K8S_POD_NAME") && said.contains("it must hold no ;"), "{said}");
    world.end(node)
}
