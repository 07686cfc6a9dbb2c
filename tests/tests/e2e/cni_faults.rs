//! CNI plugins that fail, hang, die and lie, and a daemon that dies under them: nothing is lost, nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{container_config, refused};
use crisp_tests::host::{self, Snapshot};
use crisp_tests::node::{Node, Pod};
use crisp_tests::place::{self, Need};
use crisp_tests::random::Random;
use crisp_tests::wait;
use tonic::Code;

use crate::case::Case;
use crate::cni::{World, ledger};

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "cni_c21_whatever_a_plugin_does_nothing_is_left",
        needs: &[Need::CniPlugins],
        images: &[],
        run: dice,
    },
    Case {
        name: "cni_a_killed_daemon_leaves_as_many_leases_as_live_pods",
        needs: &[Need::CniPlugins],
        images: &[],
        run: kills,
    },
    Case { name: "cni_c21_a_plugin_ends_with_all_it_has_started", needs: &[], images: &[], run: hangs },
    Case { name: "cni_a_failing_del_is_named_and_tried_again", needs: &[], images: &[], run: retried },
    Case { name: "cni_what_a_lost_pod_held_is_given_back", needs: &[], images: &[], run: lost },
];

/// Whether an error says which plugin failed at what.
fn names_plugin(text: &str, verb: &str) -> bool {
    text.contains("CNI network ") && text.contains(&format!(": {verb} of plugin "))
}

fn dice(node: &mut Node) -> Result<()> {
    let mut random = Random::announced("cni_c21_whatever_a_plugin_does_nothing_is_left");
    let keys = format!("mode = \"auto\"\ncni_timeout_seconds = {}", seconds(5, 90));
    let world = World::begin(node, &keys, &["a", "b"])?;
    // What plugins leave on a host on purpose is there after the first pod.
    world.write(&world.chain(&[], &[]))?;
    let mut config = node.pod_config("first");
    config.port_mappings = vec![host_port(19_999)];
    let first = node.run_pod_as(config)?;
    node.end_pod(&first)?;
    let before = node.snapshot()?;
    let faulty = |name: &str| world.plugins.config(name, Some(random.seed));
    let lists = [
        world.chain(&[], &[faulty("a")]),
        world.chain(&[faulty("a")], &[]),
        world.chain(&[faulty("a")], &[faulty("b")]),
        in_the_middle(world.chain(&[], &[]), faulty("a"))?,
    ];
    let (mut failed, mut stuck) = (0, 0);
    for round in 0..place::rounds(40, 12) {
        world.write(random.one_of(&lists))?;
        let mut config = node.pod_config(&format!("p{round}"));
        config.port_mappings = vec![host_port(i32::try_from(20_000 + round % 20_000)?)];
        config.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "10M".to_owned());
        match node.cri().run_pod(&config) {
            Err(status) => {
                ensure!(names_plugin(status.message(), "ADD"), "round {round}: {status:?}");
                failed += 1;
            }
            Ok(id) => {
                crate::network::ips(node, &id)?;
                stuck += end_in_the_end(node, &Pod { id, config })?;
            }
        }
    }
    // What could not be undone at once is undone by the daemon, without being asked.
    node.wait_for_return(&before).with_context(|| format!("{failed} failed, {stuck} stops were refused"))?;
    let left = || Ok::<_, anyhow::Error>((world.leases(), world.plugins.held()?, ledger(node)?));
    ensure!(left()? == Default::default(), "left: {:?}", left()?);
    ensure!(failed > 0, "the dice made nothing fail");
    world.end(node)
}

/// A time limit that plugins that do well keep to: natively, and in a virtual machine without hardware support.
fn seconds(natively: u64, emulated: u64) -> u64 {
    if std::env::var_os("CRISP_VM").is_some() { emulated } else { natively }
}

fn host_port(port: i32) -> cri::PortMapping {
    cri::PortMapping { container_port: 80, host_port: port, ..Default::default() }
}

/// Between the plugin that makes the interface and those that need it.
fn in_the_middle(mut list: serde_json::Value, plugin: serde_json::Value) -> Result<serde_json::Value> {
    list["plugins"].as_array_mut().context("plugins")?.insert(1, plugin);
    Ok(list)
}

/// Stops and removes a pod, as often as it takes; how often Stop was refused.
fn end_in_the_end(node: &Node, pod: &Pod) -> Result<u32> {
    let mut refusals = 0;
    wait::until("the pod to stop", wait::LONG, || match node.cri().stop_pod(&pod.id) {
        Ok(()) => Ok(Ok(())),
        Err(status) if names_plugin(status.message(), "DEL") => {
            refusals += 1;
            Err(status.to_string())
        }
        Err(status) => Ok(Err(status)),
    })?
    .context("StopPodSandbox")?;
    node.cri().remove_pod(&pod.id).context("RemovePodSandbox")?;
    Ok(refusals)
}

fn kills(node: &mut Node) -> Result<()> {
    let mut random = Random::announced("cni_a_killed_daemon_leaves_as_many_leases_as_live_pods");
    let world = World::begin(node, "mode = \"auto\"", &["a", "b"])?;
    let own = |name: &str| world.plugins.config(name, None);
    world.write(&world.chain(&[own("a")], &[own("b")]))?;
    let first = node.run_pod("first")?;
    node.end_pod(&first)?;
    let before = node.snapshot()?;
    let mut live: Vec<(Pod, Vec<IpAddr>)> = Vec::new();
    for round in 0..place::rounds(20, 6) {
        // ADD of a new pod, or DEL of one that lives, is cut off when one of the plugins has been called.
        let ending = !live.is_empty() && random.below(2) == 0;
        let calls = world.plugins.calls().len() + random.below(2);
        let spins = random.below(200_000);
        let cri = node.cri().clone();
        let config = node.pod_config(&format!("p{round}"));
        let victim = ending.then(|| live.swap_remove(random.below(live.len())).0);
        let answer = thread::scope(|scope| {
            let asked = scope.spawn(|| match &victim {
                Some(pod) => cri.stop_pod(&pod.id).map(|()| String::new()),
                None => cri.run_pod(&config),
            });
            let cut =
                wait::until_true("a plugin to be called", wait::LONG, || world.plugins.calls().len() > calls);
            for _ in 0..spins {
                std::hint::spin_loop();
            }
            let killed = cut.and_then(|()| node.kill());
            asked
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))
                .and_then(|answer| killed.map(|()| answer))
        })?;
        node.serve()?;
        match (&victim, answer) {
            (Some(pod), _) => drop(end_in_the_end(node, pod)?),
            (None, Ok(id)) => live.push((Pod { id: id.clone(), config }, crate::network::ips(node, &id)?)),
            // Built, and its client not told: a repeated request finds it. Or undone, and made anew.
            (None, Err(_)) => {
                let id = node.cri().run_pod(&config).context("the same once more")?;
                live.push((Pod { id: id.clone(), config }, crate::network::ips(node, &id)?));
            }
        }
        wait::until("as many leases as pods", wait::LONG, || balanced(node, &world, &live))?;
    }
    for (pod, ips) in &live {
        ensure!(crate::network::ips(node, &pod.id)? == *ips, "addresses have changed");
        node.end_pod(pod)?;
    }
    ensure!(world.leases().is_empty() && world.plugins.held()?.is_empty() && ledger(node)?.is_empty());
    node.wait_for_return(&before)?;
    world.end(node)
}

fn balanced(node: &Node, world: &World, live: &[(Pod, Vec<IpAddr>)]) -> Result<(), String> {
    let wanted: BTreeSet<IpAddr> = live.iter().flat_map(|(_, ips)| ips).copied().collect();
    let leases = world.leases();
    let entries = ledger(node).map_err(|error| error.to_string())?.len();
    let held = world.plugins.held().map_err(|error| error.to_string())?.len();
    if leases == wanted && entries == live.len() && held == 2 * live.len() {
        return Ok(());
    }
    Err(format!("leases {leases:?} for {wanted:?}; {entries} entries, {held} held by plugins"))
}

/// Processes whose command line says `text`.
fn running(text: &str) -> Vec<i32> {
    let says = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(text) && host::lives(*pid)
    };
    host::all_pids().into_iter().filter(says).collect()
}

fn hangs(node: &mut Node) -> Result<()> {
    let limit = seconds(2, 30);
    let keys = format!("mode = \"auto\"\ncni_timeout_seconds = {limit}");
    let late = format!("it has not ended after {limit} s and was killed");
    let world = World::begin(node, &keys, &["main", "second"])?;
    world.write(&world.fake(&["main", "second"])?)?;
    for (what, reason) in [
        ("hang", late.as_str()),
        ("flood", "it printed more than 1048576 bytes and was killed"),
        ("garbage 0", "its result: invalid type"),
        ("garbage 4", "exit status: 4: \"this is no result\""),
        ("address x", "ips[0].address \"x\" is no address"),
        ("die", "signal: 9"),
        ("error 11 try again", "try again (code 11)"),
    ] {
        world.plugins.tell("second", "ADD", Some(what))?;
        let said = refused(node.cri().run_pod(&node.pod_config("hung")), Code::Unknown)?;
        ensure!(
            said.contains("network: CNI network fake: ADD of plugin crisp-test-plugin-second: "),
            "{said}"
        );
        ensure!(said.contains(reason), "{what}: {said}");
        ensure!(running("sleep 100000").is_empty(), "left: {:?}", running("sleep 100000"));
        ensure!(world.plugins.held()?.is_empty() && ledger(node)?.is_empty(), "{what}");
    }
    // No address at all.
    world.plugins.tell("second", "ADD", None)?;
    world.plugins.tell("main", "ADD", None)?;
    let said = refused(node.cri().run_pod(&node.pod_config("hung")), Code::Unknown)?;
    ensure!(said.contains("there is no address for eth0"), "{said}");
    world.end(node)
}

fn retried(node: &mut Node) -> Result<()> {
    let world = World::begin(node, "mode = \"auto\"", &["main", "second"])?;
    world.write(&world.fake(&["main", "second"])?)?;
    let pod = node.run_pod("kept")?;
    let pin = crate::port_forward::pin(node, &pod)?;
    world.plugins.tell("main", "DEL", Some("error 7 not now"))?;
    for _ in 0..2 {
        let said = refused(node.cri().stop_pod(&pod.id), Code::Unknown)?;
        ensure!(
            said.contains("CNI network fake: DEL of plugin crisp-test-plugin-main: not now (code 7)"),
            "{said}"
        );
        ensure!(pin.exists() && ledger(node)?.len() == 1);
        unusable(node, &pod)?;
    }
    // Also by a daemon that was killed meanwhile, and without anybody's asking.
    node.kill_and_restart()?;
    ensure!(pin.exists() && node.cri().pods()?.len() == 1);
    unusable(node, &pod)?;
    world.plugins.tell("main", "DEL", None)?;
    wait::until_true("what it held to be given back", wait::LONG, || !pin.exists())?;
    node.end_pod(&pod)?;
    ensure!(ledger(node)?.is_empty() && world.plugins.held()?.is_empty());
    // An ADD that fails and cannot be undone: what is left is listed, and its name taken, until it is undone, for which
    // nobody has to ask.
    world.plugins.tell("second", "ADD", Some("error 7 no"))?;
    world.plugins.tell("main", "DEL", Some("error 7 not now"))?;
    let said = refused(node.cri().run_pod(&node.pod_config("failed")), Code::Unknown)?;
    ensure!(
        said.contains("ADD of plugin crisp-test-plugin-second: no (code 7); then, giving back"),
        "{said}"
    );
    let pods = node.cri().pods()?;
    let [left] = pods.as_slice() else { anyhow::bail!("one is left: {pods:?}") };
    ensure!(left.state() == cri::PodSandboxState::SandboxNotready && ledger(node)?.len() == 1, "{left:?}");
    refused(node.cri().run_pod(&node.pod_config("failed")), Code::AlreadyExists)?;
    world.plugins.tell("main", "DEL", None)?;
    wait::until("what is left to be undone", wait::LONG, || match node.cri().pods() {
        Ok(pods) if pods.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(ledger(node)?.is_empty() && world.plugins.held()?.is_empty());
    world.end(node)
}

/// A sandbox whose end has begun is NOTREADY, has no address and takes no container, whatever it still holds.
fn unusable(node: &Node, pod: &Pod) -> Result<()> {
    let status = node.cri().pod(&pod.id)?;
    let address = status.network.as_ref().map(|network| network.ip.as_str()).unwrap_or_default();
    ensure!(status.state() == cri::PodSandboxState::SandboxNotready && address.is_empty(), "{status:?}");
    let config = container_config("late", "busybox", &["true"]);
    let said = refused(node.cri().create(&pod.id, &config, &pod.config), Code::FailedPrecondition)?;
    ensure!(said.contains("is not ready"), "{said}");
    Ok(())
}

/// Everything that lives on a tmpfs goes, as with a reboot.
fn lost(node: &mut Node) -> Result<()> {
    let world = World::begin(node, "mode = \"auto\"", &["main"])?;
    world.write(&world.fake(&["main"])?)?;
    let before = node.snapshot()?;
    let pod = node.run_pod("lost")?;
    let pin = crate::port_forward::pin(node, &pod)?;
    node.kill()?;
    end_by_force(node, &before, &pin)?;
    world.unwrite()?;
    node.serve()?;
    wait::until("DEL of what nobody claims", wait::LONG, || match ledger(node) {
        Ok(entries) if entries.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let calls = world.plugins.calls();
    let last = calls.last().context("no call")?;
    ensure!(last.starts_with("DEL ") && last.contains(&format!("{} - ", pod.id)), "{calls:?}");
    ensure!(world.plugins.held()?.is_empty());
    world.end(node)
}

fn end_by_force(node: &Node, before: &Snapshot, pin: &Path) -> Result<()> {
    let now = node.snapshot()?;
    for fact in before.difference(&now) {
        if let Some(pid) = fact.strip_prefix("left: process ").and_then(|rest| rest.split(' ').next()) {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.parse()?),
                nix::sys::signal::Signal::SIGKILL,
            )?;
        }
    }
    let detach = nix::mount::MntFlags::MNT_DETACH;
    nix::mount::umount2(pin, detach)?;
    fs::remove_file(pin)?;
    for cgroup in before.difference(&now).iter().filter_map(|fact| fact.strip_prefix("left: cgroup ")).rev() {
        wait::until("an empty cgroup", wait::LONG, || match fs::remove_dir(cgroup) {
            // systemd has been faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        })?;
    }
    let pods = node.state().join("pods");
    for entry in fs::read_dir(&pods)?.flatten() {
        nix::mount::umount2(&entry.path().join("shm"), detach)?;
        fs::remove_dir_all(entry.path())?;
    }
    for entry in fs::read_dir(node.state().join("ns"))?.flatten() {
        let _ = nix::mount::umount2(&entry.path(), detach);
        fs::remove_file(entry.path())?;
    }
    Ok(())
}
