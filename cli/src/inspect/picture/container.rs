//! The box of a container: who it is, what it may use, and what is its own alone.

use super::{
    canvas::{Drawing, Ink, Paint},
    font::Font,
    limits,
    style::{CONTAINER, GAP, HOST_INK, IDLE, INNER, OF_HOST, OF_ONE, OF_POD, OWN_INK, POD_INK, SOFT, TEXT},
    words,
};
use crate::inspect::{
    facts::{Container, Idle, Pod},
    identity::Identity,
    mounts::{Content, Mount},
    namespaces::KINDS,
    sharing::{self, Scope},
};

/// Inside of the panels.
const PAD: i32 = 10;

/// The inside of container `index` without its frame, so that boxes side by side can be made equally high.
pub(super) fn draw(pod: &Pod, index: usize, contents: &[Content<'_>], width: i32) -> Drawing {
    let container = &pod.containers[index];
    let mut drawing = Drawing::default();
    drawing.line(0, width, Font::Heading, TEXT, &container.name);
    drawing.path_line(0, width, Font::Code, SOFT, &container.image);
    drawing.gap(4);
    drawing.paragraph(0, width, Font::Body, TEXT, &process(container));
    drawing.gap(GAP);
    drawing.line(0, width, Font::Label, SOFT, "What it may use");
    drawing.gap(2);
    drawing.stack(0, limits::draw(&container.cgroup, width));
    for whose in [Whose::Host, Whose::Others, Whose::Own] {
        let mut panel = kinds(pod, index, whose, width - 2 * PAD);
        if whose == Whose::Own {
            panel.stack(0, files(index, contents, width - 2 * PAD));
        }
        if panel.height > 0 {
            drawing.gap(8);
            drawing.stack(0, titled(panel, whose, width));
        }
    }
    drawing
}

/// The frame of a running container around its inside.
pub(super) fn framed(inside: Drawing, container: &Container, width: i32, height: i32) -> Drawing {
    inside.framed(width, height, INNER, CONTAINER).group("container", vec![("name", container.name.clone())])
}

/// A container that is not running.
pub(super) fn idle(idle: &Idle, width: i32) -> Drawing {
    let inner = width - 2 * INNER;
    let mut drawing = Drawing::default();
    drawing.line(0, inner, Font::Label, SOFT, &idle.name);
    drawing.line(0, inner, Font::Body, TEXT, &idle.state);
    drawing.path_line(0, inner, Font::Code, SOFT, &idle.image);
    drawing.framed(width, 0, INNER, IDLE).group("idle", vec![("name", idle.name.clone())])
}

/// Which process it is, and as whom it runs, inside and outside.
fn process(container: &Container) -> String {
    let Identity { pid_inside, user, user_inside, .. } = container.identity;
    let number = match container.pid {
        pid if pid == pid_inside => format!("Process {pid}"),
        pid => format!("Process {pid} on the host, {pid_inside} inside"),
    };
    let name = |user: u32| if user == 0 { "root".to_owned() } else { format!("user {user}") };
    match user_inside {
        Some(inside) if inside == user => format!("{number}; runs as {}.", name(user)),
        Some(inside) => format!("{number}; runs as {} inside, {} on the host.", name(inside), name(user)),
        None => format!("{number}; runs as {} on the host, who has no number inside.", name(user)),
    }
}

/// Whose a container's namespace is, where it is not the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Host,
    Others,
    Own,
}

impl Whose {
    fn title(self) -> &'static str {
        match self {
            Whose::Host => "The host's",
            Whose::Others => "Shared with some containers",
            Whose::Own => "Its own, seen by no other",
        }
    }

    fn colours(self) -> (Paint, Ink) {
        match self {
            Whose::Host => (OF_HOST, HOST_INK),
            Whose::Others => (OF_POD, POD_INK),
            Whose::Own => (OF_ONE, OWN_INK),
        }
    }
}

fn titled(panel: Drawing, whose: Whose, width: i32) -> Drawing {
    let (paint, ink) = whose.colours();
    let mut titled = Drawing::default();
    titled.line(0, width - 2 * PAD, Font::Label, ink, whose.title());
    titled.stack(0, panel);
    titled.framed(width, 0, PAD, paint)
}

/// The kinds of a container that are `whose`; files come last, so that what is mounted can follow.
fn kinds(pod: &Pod, index: usize, whose: Whose, width: i32) -> Drawing {
    let mut rows = Drawing::default();
    let (files, others): (Vec<&str>, Vec<&str>) =
        KINDS.iter().map(|(kind, _)| *kind).partition(|kind| *kind == "mnt");
    for kind in others.into_iter().chain(files) {
        if matches!(sharing::scope(pod, kind), Some(Scope::Own | Scope::Mixed)) {
            let (number, sharers) = sharers(pod, index, kind);
            let found = match sharers.len() {
                _ if pod.host.get(kind) == Some(&number) => Whose::Host,
                0 => Whose::Own,
                _ => Whose::Others,
            };
            if found == whose {
                rows.stack(0, row((kind, number), whose, &sharers, width));
            }
        }
    }
    rows
}

/// A container's namespace of a kind, and the names of the others that are in it.
fn sharers<'a>(pod: &'a Pod, index: usize, kind: &str) -> (u64, Vec<&'a str>) {
    let number = |container: &Container| container.namespaces.get(kind).copied().unwrap_or_default();
    let own = number(&pod.containers[index]);
    let others = pod.containers.iter().enumerate().filter(|(other, _)| *other != index);
    (own, others.filter(|(_, other)| number(other) == own).map(|(_, other)| other.name.as_str()).collect())
}

fn row((kind, number): (&str, u64), whose: Whose, sharers: &[&str], width: i32) -> Drawing {
    let (words, (_, ink)) = (words::of(kind), whose.colours());
    let mut row = Drawing::default();
    row.gap(5);
    row.sides(width, (Font::Label, TEXT, words.title), (Font::Code, ink, &format!("{kind}:[{number}]")));
    match whose {
        Whose::Host => row.paragraph(0, width, Font::Body, TEXT, words.host),
        Whose::Own => row.paragraph(0, width, Font::Body, TEXT, words.own),
        Whose::Others => {
            row.line(0, width, Font::Body, TEXT, &format!("the same as of {}", sharers.join(", ")))
        }
    }
    let of = match whose {
        Whose::Host => "host",
        Whose::Others => "some",
        Whose::Own => "container",
    };
    row.group("namespace", vec![("kind", kind.to_owned()), ("of", of.to_owned())])
}

/// What only this container sees.
fn files(index: usize, contents: &[Content<'_>], width: i32) -> Drawing {
    let mut drawing = Drawing::default();
    for content in contents.iter().filter(|content| content.containers() == 1) {
        for mount in content.of(index) {
            drawing.gap(5);
            drawing.stack(0, file(mount, width));
        }
    }
    drawing
}

fn file(mount: &Mount, width: i32) -> Drawing {
    let mut drawing = Drawing::default();
    drawing.path_line(INNER, width - INNER, Font::Code, TEXT, &place(mount));
    drawing.path_line(2 * INNER, width - 2 * INNER, Font::Body, SOFT, &source(mount));
    drawing.group("mount", vec![("target", mount.target.clone())])
}

/// Where a mount is in a container.
pub(super) fn place(mount: &Mount) -> String {
    if mount.read_only { format!("{} (read-only)", mount.target) } else { mount.target.clone() }
}

/// What a mount shows, seen from the host.
pub(super) fn source(mount: &Mount) -> String {
    match (mount.asked, mount.source.as_str()) {
        (false, "overlay") if mount.target == "/" => "its image, and what it has written".to_owned(),
        (false, kind) => format!("made by the runtime ({kind})"),
        (true, path) if path.starts_with('/') => format!("{path} on the host"),
        (true, image) => image.to_owned(),
    }
}
