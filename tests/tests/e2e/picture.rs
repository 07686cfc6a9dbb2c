//! `crisp inspect POD -o svg`: the picture of a pod says what the kernel says.

use std::fs;

use anyhow::{Context, Result, ensure};
use crisp_proto::runtime::v1 as cri;
use crisp_tests::cri::secured;
use crisp_tests::node::Node;
use crisp_tests::place::{self, Need};
use roxmltree::{Document, Node as Element};

use crate::case::Case;
use crate::network;
use crate::play::Play;
use crate::userns;

/// The tests of this file.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "a_picture_shows_what_two_containers_share",
        needs: &[],
        images: &["python:3.9", "busybox"],
        run: shared,
    },
    Case { name: "a_picture_shows_what_is_the_hosts", needs: &[], images: &["busybox"], run: hosts },
    Case { name: "a_picture_shows_whose_users_are_inside", needs: &[], images: &["busybox"], run: users },
    Case { name: "a_picture_shows_limits", needs: &[Need::Controllers], images: &["busybox"], run: limits },
    Case { name: "a_picture_shows_what_has_ended", needs: &[], images: &["busybox"], run: ended },
];

/// The groups of a class; `data` is the name and the value of one of its attributes.
fn groups<'a>(svg: &'a Document<'_>, class: &str, data: Option<(&str, &str)>) -> Vec<Element<'a, 'a>> {
    let has =
        |element: &Element<'_, '_>| data.is_none_or(|(name, value)| element.attribute(name) == Some(value));
    let of_class = |element: &Element<'_, '_>| element.attribute("class") == Some(class);
    svg.descendants()
        .filter(|element| {
            element.has_tag_name(("http://www.w3.org/2000/svg", "g")) && of_class(element) && has(element)
        })
        .collect()
}

/// The one group of a class with some data.
fn group<'a>(svg: &'a Document<'_>, class: &str, data: Option<(&str, &str)>) -> Result<Element<'a, 'a>> {
    let found = groups(svg, class, data);
    ensure!(found.len() == 1, "{} groups {class} {data:?}", found.len());
    Ok(found[0])
}

/// The text in a group.
fn said(group: Element<'_, '_>) -> String {
    group.descendants().filter(Element::is_text).filter_map(|text| text.text()).collect::<Vec<_>>().join("\n")
}

/// A process's namespace as the kernel names it, `net:[4026531840]`.
fn namespace(pid: impl ToString, kind: &str) -> Result<String> {
    let path = format!("/proc/{}/ns/{kind}", pid.to_string());
    Ok(fs::read_link(&path).context(path)?.display().to_string())
}

fn shared(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "03-two-containers.yaml")?;
    let running = [("main-app", play.running("main-app")?), ("helper", play.running("helper")?)];
    let picture = node.crisp(&["inspect", "multi-container-demo", "-o", "svg"])?.ok()?;
    let svg = Document::parse(&picture)?;
    let pids = [node.cri().pid(&running[0].1)?, node.cri().pid(&running[1].1)?];
    for kind in ["net", "ipc", "uts"] {
        let shown = groups(&svg, "namespace", Some(("data-kind", kind)));
        ensure!(shown.len() == 1 && shown[0].attribute("data-of") == Some("pod"), "{kind}: {picture}");
        ensure!(said(shown[0]).contains(&namespace(pids[0], kind)?), "{kind}: {}", said(shown[0]));
    }
    let network_card = said(group(&svg, "namespace", Some(("data-kind", "net")))?);
    let addresses = network::ips(node, &play.sandbox()?)?;
    let told = |ip: &std::net::IpAddr| network_card.lines().any(|line| line == ip.to_string());
    ensure!(addresses.len() == 2 && addresses.iter().all(told), "{network_card}\n{addresses:?}");
    ensure!(said(group(&svg, "namespace", Some(("data-kind", "uts")))?).contains("multi-container-demo"));
    for ((name, _), pid) in running.iter().zip(pids) {
        let container = group(&svg, "container", Some(("data-name", name)))?;
        let text = said(container);
        for kind in ["pid", "mnt", "cgroup"] {
            ensure!(text.contains(&namespace(pid, kind)?), "{kind} of {name}: {text}");
        }
        ensure!(text.contains(&format!("Process {pid} on the host, 1 inside")), "{text}");
        let words = if place::has_controllers() { ", no limit" } else { "neither limits nor counts" };
        ensure!(text.contains(words), "{text}");
    }
    let volumes = groups(&svg, "volume", None);
    let data = volumes
        .iter()
        .find(|volume| volume.attribute("data-source").is_some_and(|path| path.ends_with("/shared-data")));
    let data = said(*data.context(picture.clone())?);
    ensure!(data.lines().filter(|line| *line == "/data").count() == 2, "{data}");
    play.end()
}

fn hosts(node: &mut Node) -> Result<()> {
    let options = cri::NamespaceOption {
        network: cri::NamespaceMode::Node.into(),
        pid: cri::NamespaceMode::Node.into(),
        ..Default::default()
    };
    let mut config = node.pod_config("agent");
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    security.context("security context")?.namespace_options = Some(options.clone());
    let pod = node.run_pod_as(config)?;
    let container =
        secured("c", "busybox", &["sleep", "3600"], |security| security.namespace_options = Some(options));
    node.launch_as(&pod, &container)?;
    let picture = node.crisp(&["inspect", &pod.id, "-o", "svg"])?.ok()?;
    let svg = Document::parse(&picture)?;
    for (kind, of) in
        [("net", "host"), ("pid", "host"), ("ipc", "pod"), ("mnt", "container"), ("user", "host")]
    {
        let shown = group(&svg, "namespace", Some(("data-kind", kind)))?;
        ensure!(shown.attribute("data-of") == Some(of), "{kind} is not of the {of}: {picture}");
        let inside = shown.ancestors().any(|above| above.attribute("class") == Some("pod"));
        ensure!(inside == (of != "host"), "{kind}: {picture}");
        if of == "host" {
            ensure!(said(shown).contains(&namespace(1, kind)?), "{}", said(shown));
        }
    }
    node.end_pod(&pod)
}

fn users(node: &mut Node) -> Result<()> {
    let options = userns::options(userns::HOST, cri::NamespaceMode::Pod);
    let pod = node.run_pod_as(userns::sandbox(node, "users", options.clone())?)?;
    let id = node.launch_as(&pod, &userns::container("c", &["sleep", "3600"], &options)?)?;
    let picture = node.crisp(&["inspect", &pod.id, "-o", "svg"])?.ok()?;
    let svg = Document::parse(&picture)?;
    let pid = node.cri().pid(&id)?;
    // One container alone, and still these are the pod's.
    for kind in ["net", "ipc", "uts", "pid", "user"] {
        let card = group(&svg, "namespace", Some(("data-kind", kind)))?;
        ensure!(card.attribute("data-of") == Some("pod"), "{kind}: {picture}");
        ensure!(said(card).contains(&namespace(pid, kind)?), "{}", said(card));
    }
    let card = said(group(&svg, "namespace", Some(("data-kind", "user")))?);
    ensure!(card.contains(&format!("user 0 is {} outside", userns::HOST)), "{card}");
    let container = said(group(&svg, "container", Some(("data-name", "c")))?).replace('\n', " ");
    ensure!(container.contains(&format!("root inside, user {} on the host", userns::HOST)), "{container}");
    node.end_pod(&pod)
}

fn limits(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "06-limits.yaml")?;
    play.running("spinner")?;
    let picture = node.crisp(&["inspect", "limits", "-o", "svg"])?.ok()?;
    let svg = Document::parse(&picture)?;
    let spinner = said(group(&svg, "container", Some(("data-name", "spinner")))?);
    ensure!(spinner.contains("at most 0.2 CPUs") && spinner.contains(" of 256Mi"), "{spinner}");
    play.end()
}

fn ended(node: &mut Node) -> Result<()> {
    let mut play = Play::example(node, "01-hello.yaml")?;
    play.ended("busybox")?;
    let said_instead = node.crisp(&["inspect", "busybox", "-o", "table"])?.refused()?;
    ensure!(said_instead.contains("no container of pod busybox is running"), "{said_instead}");
    let picture = node.crisp(&["inspect", "busybox", "-o", "svg"])?.ok()?;
    let svg = Document::parse(&picture)?;
    ensure!(groups(&svg, "container", None).is_empty(), "{picture}");
    let idle = said(group(&svg, "idle", Some(("data-name", "busybox")))?);
    ensure!(idle.contains("Completed (0)"), "{idle}");
    let unknown = node.crisp(&["inspect", "busybox", "-o", "png"])?.refused()?;
    ensure!(unknown.contains("'png'") && unknown.contains("svg"), "{unknown}");
    play.wait_for_end()?;
    play.down()
}
