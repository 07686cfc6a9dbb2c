//! Requests at and beyond the limits of what the daemon and a monitor tell each other: nothing is cut short. `r13_` of
//! the adversarial cases.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::{bind, container_config, refused};
use crisp_tests::node::{Node, Pod};
use crisp_tests::untouched::{self, Untouched};
use tonic::Code;

use crate::case::Case;
use crate::userns;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case { name: "r13_mounts_are_all_there_or_refused", needs: &[], images: &["busybox"], run: mounts },
    Case { name: "r13_what_is_too_long_is_named", needs: &[], images: &["busybox"], run: too_long },
    Case {
        name: "r13_a_pod_of_many_containers_outlives_the_daemon",
        needs: &[],
        images: &["busybox"],
        run: many_containers,
    },
];

/// Nearly the longest path that there is.
const PATH: usize = 4000;
/// A message between daemon and monitor holds 64 KiB.
const MORE_THAN_A_MESSAGE: usize = 70_000;

/// A path of [`PATH`] bytes below `top`.
fn long(top: &str) -> String {
    let mut path = top.to_owned();
    while path.len() < PATH {
        let rest = PATH - path.len() - 1;
        path.push('/');
        path.push_str(&"d".repeat(rest.clamp(1, 200)));
    }
    path
}

/// A container with this many mounts, whose paths are as long as paths can be.
fn with_mounts(count: usize, source: &str) -> cri::ContainerConfig {
    let mut config = container_config("c", "busybox", &["sleep", "3600"]);
    let mount = |number: usize| bind(source.as_ref(), &long(&format!("/mount-{number}")));
    config.mounts = (0..count).map(mount).collect();
    config
}

fn mounts(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let source = long(&node.folder().join("source").display().to_string());
        fs::create_dir_all(&source)?;
        fs::write(format!("{source}/mark"), "whole\n")?;
        let pod = node.run_pod("mounts")?;
        let create = |count| node.cri().create(&pod.id, &with_mounts(count, &source), &pod.config);
        let text = refused(create(2000), Code::InvalidArgument)?;
        // It says how many there may be, and so it is.
        let most = text.split("than the ").nth(1).and_then(|rest| rest.split(' ').next());
        let most: usize = most.with_context(|| text.clone())?.parse()?;
        ensure!(text.contains("mounts: 2000 ") && most > 100, "{text}");
        refused(create(most + 1), Code::InvalidArgument)?;
        let id = create(most)?;
        node.cri().start(&id)?;
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", node.cri().pid(&id)?))?;
        let places = table.lines().filter_map(|line| line.split(' ').nth(4));
        let places: BTreeSet<_> = places.filter(|place| place.starts_with("/mount-")).collect();
        let wanted: Vec<_> = (0..most).map(|number| long(&format!("/mount-{number}"))).collect();
        ensure!(places == wanted.iter().map(String::as_str).collect(), "{} of {most} mounts", places.len());
        let said =
            node.cri().shell(&id, "find /mount-* -name mark | wc -l; cat $(find /mount-0 -name mark)")?;
        ensure!(said == format!("{most}\nwhole\n"), "{said}");
        node.end_pod(&pod)
    })
}

fn too_long(node: &mut Node) -> Result<()> {
    untouched::around(node, |node, _| {
        let before = node.snapshot()?;
        let mapping = |at: u32| cri::IdMapping { container_id: at, host_id: userns::HOST + at, length: 1 };
        let mappings: Vec<_> = (0..10_000).map(mapping).collect();
        let mut config = node.pod_config("mappings");
        let mut options = userns::options(userns::HOST, cri::NamespaceMode::Pod);
        let userns = options.userns_options.as_mut().context("userns_options")?;
        (userns.uids, userns.gids) = (mappings.clone(), mappings.clone());
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options = Some(options);
        let text = refused(node.cri().run_pod(&config), Code::InvalidArgument)?;
        ensure!(text.contains("userns_options"), "{text}");
        let mut config = node.pod_config("directory");
        config.log_directory = format!("/{}", "d/".repeat(MORE_THAN_A_MESSAGE / 2));
        ensure!(node.cri().run_pod(&config).is_err());
        node.wait_for_return(&before)?;

        let pod = node.run_pod("too-long")?;
        let volume = node.folder().join("volume");
        fs::create_dir(&volume)?;
        let mut config = container_config("c", "busybox", &["true"]);
        let mount =
            cri::Mount { uid_mappings: mappings.clone(), gid_mappings: mappings, ..bind(&volume, "/v") };
        config.mounts = vec![mount];
        let text = refused(node.cri().create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        ensure!(text.contains("mounts[0]") && text.contains("Mappings"), "{text}");
        let mut config = container_config("c", "busybox", &["true"]);
        config.log_path = "l".repeat(MORE_THAN_A_MESSAGE);
        let error = node.cri().create(&pod.id, &config, &pod.config).err().context("a container was made")?;
        ensure!(error.message().contains("log_path"), "{error:?}");
        whole(node, &pod)?;
        node.end_pod(&pod)
    })
}

/// What is longer than a message and allowed arrives whole.
fn whole(node: &Node, pod: &Pod) -> Result<()> {
    let id = node.launch(pod, "whole", "busybox", &["sleep", "3600"])?;
    let words: Vec<String> = (0..1000).map(|number| format!("{number}-{}", "w".repeat(1000))).collect();
    let mut command = vec!["sh", "-c", "echo $#; for word; do echo $word; done"];
    command.extend(words.iter().map(String::as_str));
    let said = node.cri().exec(&id, &command)?;
    // The first word is the shell's name.
    let lines: Vec<_> = said.stdout.lines().collect();
    ensure!(lines.first() == Some(&"999") && lines[1..] == words[1..], "{} lines", lines.len());
    Ok(())
}

fn many_containers(node: &mut Node) -> Result<()> {
    let mut watch = Untouched::before(node)?;
    let pod = node.run_pod("many")?;
    let id = node.launch(&pod, "lives", "busybox", &["sleep", "3600"])?;
    let mut config = container_config("c", "busybox", &["true"]);
    config.log_path.clear();
    // As many as there may be: a monitor tells of all of them in one message.
    let mut ended = Vec::new();
    let refusal = loop {
        config.metadata.get_or_insert_default().attempt += 1;
        match node.cri().launch(&pod.id, &config, &pod.config) {
            Ok(id) => ended.push(id),
            Err(status) => break status,
        }
    };
    ensure!(refusal.message().contains("remove ended ones first") && ended.len() > 100, "{refusal:?}");
    for id in &ended {
        node.wait_for_exit(id)?;
    }
    node.cri().remove(&ended.swap_remove(0))?;
    let last = node.launch(&pod, "last", "busybox", &["sleep", "3600"])?;
    node.kill_and_restart()?;
    watch.daemon_was_replaced(node)?;
    let states: BTreeSet<_> = node
        .cri()
        .containers()?
        .into_iter()
        .filter(|container| container.pod_sandbox_id == pod.id)
        .map(|container| (container.id.clone(), container.state().as_str_name()))
        .collect();
    let running = [&id, &last].map(|id| (id.clone(), "CONTAINER_RUNNING"));
    let exited = ended.iter().map(|id| (id.clone(), "CONTAINER_EXITED"));
    ensure!(states == running.into_iter().chain(exited).collect(), "{states:?}\n{}", node.daemon_said());
    // Not only remembered: the monitor is asked and answers.
    for id in [&id, &last] {
        ensure!(node.cri().shell(id, "echo here")? == "here\n");
    }
    node.cri().stop(&last, 0)?;
    ensure!(node.cri().container(&last)?.exit_code == 137);
    node.end_pod(&pod)?;
    watch.after(node)
}
