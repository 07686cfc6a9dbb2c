//! What a picture says, and that nothing in it covers anything else.

use roxmltree::{Document, Node};

use super::{super::samples, *};

/// Pixels from the left and the top: `left`, `top`, `right`, `bottom`.
#[derive(Clone, Copy, Debug)]
struct Extent([i32; 4]);

impl Extent {
    fn holds(self, other: Extent) -> bool {
        let (Extent([left, top, right, bottom]), Extent(inner)) = (self, other);
        left <= inner[0] && top <= inner[1] && right >= inner[2] && bottom >= inner[3]
    }

    fn is_apart_from(self, other: Extent) -> bool {
        let (Extent([left, top, right, bottom]), Extent(other)) = (self, other);
        right <= other[0] || bottom <= other[1] || left >= other[2] || top >= other[3]
    }
}

fn number(node: Node<'_, '_>, name: &str) -> i32 {
    node.attribute(name).unwrap().parse().unwrap()
}

fn elements<'a>(svg: &'a Document<'_>, name: &str) -> Vec<Node<'a, 'a>> {
    svg.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", name))).collect()
}

fn area(node: Node<'_, '_>) -> Extent {
    let (x, y) = (number(node, "x"), number(node, "y"));
    Extent([x, y, x + number(node, "width"), y + number(node, "height")])
}

/// What a text shows: not what it says when pointed at.
fn shown(node: Node<'_, '_>) -> String {
    node.children().filter(Node::is_text).filter_map(|part| part.text()).collect()
}

fn extent_of_text(node: Node<'_, '_>) -> Extent {
    let font = Font::ALL.into_iter().find(|font| node.attribute("class") == Some(font.class())).unwrap();
    let (x, y, width) = (number(node, "x"), number(node, "y"), font.width(&shown(node)));
    let left = if node.attribute("text-anchor") == Some("end") { x - width } else { x };
    Extent([left, y - font.size() * 3 / 4, left + width, y + font.size() / 4])
}

fn line(node: Node<'_, '_>) -> Extent {
    let (x, half) = (number(node, "x1"), number(node, "stroke-width") / 2);
    Extent([x - half, number(node, "y1"), x + half, number(node, "y2")])
}

/// The picture as XML, after a look at every pair of what is in it: areas hold each other or are apart, texts are inside
/// of areas and apart from each other, lines run between areas.
fn check(svg: &str) -> Document<'_> {
    let parsed = Document::parse(svg).unwrap();
    let areas: Vec<Extent> = elements(&parsed, "rect").into_iter().map(area).collect();
    let texts: Vec<_> =
        elements(&parsed, "text").into_iter().map(|node| (shown(node), extent_of_text(node))).collect();
    let lines: Vec<Extent> = elements(&parsed, "line").into_iter().map(line).collect();
    for (index, one) in areas.iter().enumerate() {
        assert!(areas[0].holds(*one), "{one:?} is outside of the picture");
        for other in &areas[..index] {
            let nested = one.holds(*other) || other.holds(*one);
            assert!(nested || one.is_apart_from(*other), "{one:?} and {other:?} overlap");
        }
        for (text, extent) in &texts {
            assert!(one.holds(*extent) || one.is_apart_from(*extent), "{text:?} {extent:?} leaves {one:?}");
        }
        for line in &lines {
            assert!(one.holds(*line) || one.is_apart_from(*line), "{line:?} crosses {one:?}");
        }
    }
    for (index, (text, extent)) in texts.iter().enumerate() {
        for (other, place) in &texts[..index] {
            assert!(extent.is_apart_from(*place), "{text:?} {extent:?} covers {other:?} {place:?}");
        }
        for line in &lines {
            assert!(extent.is_apart_from(*line), "{line:?} crosses {text:?}");
        }
    }
    parsed
}

/// The groups of a class with some data, as `name=value`.
fn groups<'a>(svg: &'a Document<'_>, class: &str, data: &[(&str, &str)]) -> Vec<Node<'a, 'a>> {
    let fits = |node: &Node<'_, '_>| {
        node.attribute("class") == Some(class)
            && data.iter().all(|(name, value)| node.attribute(format!("data-{name}").as_str()) == Some(value))
    };
    elements(svg, "g").into_iter().filter(fits).collect()
}

/// All text in a group, a line each.
fn said(group: Node<'_, '_>) -> String {
    let texts = group.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "text")));
    texts.map(shown).collect::<Vec<_>>().join("\n")
}

/// The kinds whose cards are the pod's, or the host's.
fn kinds(svg: &Document<'_>, of: &str) -> Vec<String> {
    let all = groups(svg, "namespace", &[("of", of)]);
    all.into_iter().map(|group| group.attribute("data-kind").unwrap().to_owned()).collect()
}

#[test]
fn pictures_are_as_they_were_looked_at() {
    let all = [
        ("inspect.svg", samples::example(), include_str!("../../../../docs/inspect.svg")),
        ("inspect-hosts.svg", samples::hosts(), include_str!("../../../tests/data/inspect-hosts.svg")),
        ("inspect-users.svg", samples::users(), include_str!("../../../tests/data/inspect-users.svg")),
        ("inspect-hostile.svg", samples::hostile(), include_str!("../../../tests/data/inspect-hostile.svg")),
    ];
    let mut changed = Vec::new();
    for (name, pod, expected) in all {
        let svg = render(&pod);
        check(&svg);
        if svg != expected {
            // Beside the test program, to be looked at and copied.
            let new = std::env::current_exe().unwrap().with_file_name(name);
            std::fs::write(&new, svg).unwrap();
            changed.push(new);
        }
    }
    assert!(changed.is_empty(), "these pictures are not as they were: {changed:?}");
}

#[test]
fn words_of_ours_are_never_cut() {
    for pod in [
        samples::pod(0),
        samples::pod(1),
        samples::pod(2),
        samples::pod(3),
        samples::users(),
        samples::mixed(),
        samples::stopped(),
    ] {
        assert!(!render(&pod).contains('…'));
    }
}

#[test]
fn what_containers_share_is_theirs_and_what_they_own_is_each_ones() {
    let svg = render(&samples::example());
    let svg = check(&svg);
    assert_eq!(kinds(&svg, "pod"), ["net", "ipc", "uts"]);
    assert_eq!(kinds(&svg, "host"), ["user"]);
    assert_eq!(kinds(&svg, "container"), ["pid", "cgroup", "mnt", "pid", "cgroup", "mnt"]);
    let network = said(groups(&svg, "namespace", &[("kind", "net")])[0]);
    assert!(network.contains("10.88.0.7\nfd00::7") && network.contains("localhost"), "{network}");
    let main = said(groups(&svg, "container", &[("name", "main-app")])[0]);
    for words in ["at most 0.2 CPUs", "21Mi of 64Mi", "1, no limit", "held back 7 times", "4119 on the host"]
    {
        assert!(main.contains(words), "no {words} in {main}");
    }
    let volumes = groups(&svg, "volume", &[]);
    assert_eq!(volumes.len(), 2, "the volume, and what every pod has");
    assert_eq!(said(volumes[0]).matches("/data").count(), 2, "{}", said(volumes[0]));
}

#[test]
fn what_is_the_hosts_is_outside_of_the_pod() {
    let svg = render(&samples::hosts());
    let svg = check(&svg);
    assert_eq!(kinds(&svg, "host"), ["net", "ipc", "uts", "pid", "user"]);
    assert_eq!(kinds(&svg, "pod"), [""; 0]);
    let pod = groups(&svg, "pod", &[])[0];
    for card in groups(&svg, "namespace", &[("of", "host")]) {
        assert!(card.ancestors().all(|ancestor| ancestor != pod), "{}", said(card));
    }
    let network = said(groups(&svg, "namespace", &[("kind", "net")])[0]);
    assert!(network.contains("192.0.2.4\nand 4 more"), "{network}");
}

#[test]
fn users_and_processes_of_a_pod_are_explained() {
    let svg = render(&samples::users());
    let svg = check(&svg);
    assert_eq!(kinds(&svg, "pod"), ["net", "ipc", "uts", "pid", "user"]);
    assert_eq!(kinds(&svg, "host"), [""; 0]);
    assert!(said(groups(&svg, "namespace", &[("kind", "user")])[0]).contains("user 0 is 196608 outside"));
    let second = said(groups(&svg, "container", &[("name", "c1")])[0]);
    assert!(second.contains("4001 on the host, 3 inside"), "{second}");
    assert!(second.contains("user 1 inside, user 196609"), "{second}");
    assert!(said(groups(&svg, "together", &[])[0]).contains("1.5Mi of 128Mi"));
}

#[test]
fn containers_in_different_places_say_whose_each_is() {
    let svg = render(&samples::mixed());
    let svg = check(&svg);
    let of = |of: &str| {
        let all = groups(&svg, "namespace", &[("kind", "pid"), ("of", of)]);
        all.into_iter().map(said).collect::<Vec<_>>()
    };
    assert_eq!((of("some").len(), of("host").len(), of("container").len()), (2, 1, 1));
    assert!(of("some")[0].contains("the same as of debugger"), "{:?}", of("some"));
    assert!(of("host")[0].contains("all processes of the host"), "{:?}", of("host"));
}

#[test]
fn what_does_not_run_is_outside_of_the_sandbox() {
    let svg = render(&samples::stopped());
    let svg = check(&svg);
    assert!(said(groups(&svg, "sandbox", &[])[0]).contains("stopped"));
    let idle: Vec<String> = groups(&svg, "idle", &[]).into_iter().map(said).collect();
    assert_eq!(idle.len(), 3);
    assert!(idle[1].contains("web") && idle[1].contains("OOMKilled (137)"), "{idle:?}");
    assert!(kinds(&svg, "pod").is_empty() && groups(&svg, "container", &[]).is_empty());
}

#[test]
fn a_sandbox_without_containers_has_its_namespaces() {
    let svg = render(&samples::pod(0));
    let svg = check(&svg);
    assert_eq!(kinds(&svg, "pod"), ["net", "ipc", "uts"]);
    assert!(said(groups(&svg, "sandbox", &[])[0]).contains("No container is running"));
}

#[test]
fn hostile_text_is_only_text() {
    let svg = render(&samples::hostile());
    let parsed = check(&svg);
    let known = ["svg", "title", "style", "rect", "text", "line", "g"];
    for node in parsed.descendants().filter(Node::is_element) {
        assert!(known.contains(&node.tag_name().name()), "{node:?}");
        assert!(node.attributes().all(|attribute| !attribute.name().starts_with("on")), "{node:?}");
    }
    for character in svg.chars() {
        assert!(character == '\n' || !character.is_control(), "{character:?}");
        assert!(!['\u{202e}', '\u{feff}', '\u{fffe}', '\u{ffff}'].contains(&character), "{character:?}");
    }
    let texts: Vec<String> = elements(&parsed, "text").into_iter().map(shown).collect();
    let title = texts.iter().find(|text| text.starts_with("Pod ")).unwrap();
    assert!(title.starts_with("Pod \"'><rect onload=\"alert(1)\"") && title.ends_with('…'), "{title}");
}

#[test]
fn nothing_covers_anything_whatever_a_pod_has() {
    for containers in [0, 1, 2, 3, 4, 7, 20] {
        for mounts in [0, if containers < 20 { 40 } else { 5 }] {
            let mut pod = samples::pod(containers);
            pod.addresses = (0..containers)
                .map(|number| format!("fd00:1111:2222:3333:4444:5555:6666:{number}"))
                .collect();
            pod.cgroup = samples::users().cgroup.filter(|_| containers % 2 == 0);
            pod.idle = samples::stopped().idle;
            for (index, container) in pod.containers.iter_mut().enumerate() {
                container.name = "n".repeat(1 << index);
                container.cgroup.memory_max = Some((1_u64 << (20 + index)).to_string());
                container.identity.pid_inside = u32::MAX;
                // Each volume is one's own or that of its neighbours, also in the next row.
                container.mounts.extend((0..mounts).map(|number| {
                    let owner = if number % 3 == 0 {
                        index.to_string()
                    } else {
                        (index / (number % 7 + 1)).to_string()
                    };
                    let volume = format!("/volumes/{number}-{owner}");
                    samples::mount(
                        &format!("/mnt/{}", "m".repeat(number * 3)),
                        &volume,
                        &volume,
                        number % 2 == 0,
                    )
                }));
            }
            let svg = render(&pod);
            let parsed = check(&svg);
            assert_eq!(groups(&parsed, "container", &[]).len(), containers);
            assert_eq!(svg, render(&pod), "the same facts are the same picture");
        }
    }
}
