//! A pod as a picture (SVG): what is in the same box sees the same.
//!
//! ```text
//! host ┬ what of it the pod uses directly
//!      └ pod ┬ sandbox ┬ what all containers share
//!            │         ├ containers side by side, each with what is its own
//!            │         └ files that several see, below and joined to them
//!            └ containers that do not run
//! ```
//!
//! Each part is a [`Drawing`] that knows its height, so whatever a pod has pushes down what is below it and covers nothing.
//! Must not know where the facts come from.

mod canvas;
mod cards;
mod container;
mod font;
mod limits;
mod style;
#[cfg(test)]
mod tests;
mod volumes;
mod words;

use canvas::{Drawing, Ink, Paint};
use font::Font;
use style::{
    CONTAINER, GAP, GROUND, HOST, HOST_INK, HOST_JOINT, IDLE, MARGIN, OF_HOST, OF_ONE, OF_POD, OF_SOME, PAD,
    POD, POD_INK, SANDBOX, SOFT, TEXT,
};

use super::{facts::Pod, mounts, sharing::Scope};
use crate::target;

/// Width of the picture, and of that of a pod with at most one container: such that two, three and four boxes side by side
/// fill what is inside of the host and of the sandbox to the pixel.
const WIDTH: i32 = 1076;
const WIDTH_OF_ONE: i32 = 764;

/// Height of the lines between the host's and the pod.
const JOINTED: i32 = 16;

const INTRODUCTION: &str = "The kernel gives containers views of their own of the machine: of its network, its files, its \
    processes. Each such view is a namespace. Containers in the same namespace see the same; what is in another one \
    they do not see.";

/// The whole picture as a file.
pub(super) fn render(pod: &Pod) -> String {
    let width = if pod.containers.len() > 1 { WIDTH } else { WIDTH_OF_ONE };
    let inner = width - 2 * MARGIN;
    let name = format!("{}/{}", pod.namespace, pod.name);
    let mut page = Drawing::default();
    page.gap(MARGIN);
    page.line(MARGIN, inner, Font::Title, TEXT, &format!("Pod {name}"));
    page.gap(6);
    page.paragraph(MARGIN, inner, Font::Body, SOFT, INTRODUCTION);
    page.gap(GAP);
    page.stack(MARGIN, host(pod, inner));
    page.gap(GAP);
    page.stack(MARGIN, legend(inner));
    page.gap(MARGIN);
    page.svg(width, &format!("How pod {name} is isolated"), GROUND)
}

fn host(pod: &Pod, width: i32) -> Drawing {
    let inner = width - 2 * PAD;
    let mut host = Drawing::default();
    head(&mut host, inner, ("Host", HOST_INK), &pod.host_name);
    host.gap(6);
    let cards = cards::rows(pod, Scope::Host, inner);
    if cards.is_empty() {
        host.paragraph(0, inner, Font::Body, TEXT, "The pod uses none of the host's own namespaces.");
        host.gap(GAP);
    } else {
        host.paragraph(0, inner, Font::Body, TEXT, "Not kept apart: the pod uses the host's own.");
        host.gap(6);
        let last = cards.last().map_or(1, |(_, count)| *count);
        stacked(&mut host, cards.into_iter().map(|(row, _)| row).collect());
        let width = column_width(last, inner);
        for column in (0..).take(last) {
            let middle = column * (width + GAP) + width / 2;
            host.vertical(middle, host.height, host.height + JOINTED, HOST_JOINT);
        }
        host.gap(JOINTED);
    }
    host.stack(0, the_pod(pod, inner));
    host.framed(width, 0, PAD, HOST).group("host", vec![("name", pod.host_name.clone())])
}

/// A word for what a box is, and its name.
fn head(drawing: &mut Drawing, width: i32, (word, ink): (&str, Ink), name: &str) {
    let label = Font::Heading.width(word) + 8;
    let mut name_line = Drawing::default();
    name_line.line(0, width - label, Font::Heading, TEXT, name);
    drawing.put(label, drawing.height, name_line);
    drawing.line(0, width, Font::Heading, ink, word);
}

/// Rows below each other with gaps between them.
fn stacked(drawing: &mut Drawing, rows: Vec<Drawing>) {
    for (index, row) in rows.into_iter().enumerate() {
        if index > 0 {
            drawing.gap(GAP);
        }
        drawing.stack(0, row);
    }
}

fn the_pod(pod: &Pod, width: i32) -> Drawing {
    let inner = width - 2 * PAD;
    let mut drawing = Drawing::default();
    head(&mut drawing, inner, ("Pod", POD_INK), &format!("{}/{}", pod.namespace, pod.name));
    drawing.gap(8);
    drawing.stack(0, sandbox(pod, inner));
    if !pod.idle.is_empty() {
        drawing.gap(GAP);
        drawing.line(0, inner, Font::Label, SOFT, "Not running: no program, so nothing to share");
        drawing.gap(4);
        let columns = columns(pod.containers.len().max(pod.idle.len()), inner);
        let width = column_width(columns, inner);
        let rows = pod.idle.chunks(columns).map(|chunk| {
            let mut row = Drawing::default();
            row.row(0, width, GAP, chunk.iter().map(|idle| container::idle(idle, width)).collect());
            row
        });
        stacked(&mut drawing, rows.collect());
    }
    drawing.framed(width, 0, PAD, POD).group("pod", vec![("name", pod.name.clone()), ("id", pod.id.clone())])
}

fn sandbox(pod: &Pod, width: i32) -> Drawing {
    let inner = width - 2 * PAD;
    let mut drawing = Drawing::default();
    head(&mut drawing, inner, ("Sandbox", POD_INK), target::short(&pod.id));
    drawing.gap(2);
    let stopped = !pod.ready && pod.containers.is_empty();
    let words = match (stopped, &pod.sandbox) {
        (true, _) => {
            "It is stopped: its namespaces are gone, and with them its network and its addresses.".to_owned()
        }
        (false, Some(holder)) => format!("Ready; process {} on the host holds it open.", holder.pid),
        (false, None) => "Ready.".to_owned(),
    };
    drawing.paragraph(0, inner, Font::Body, TEXT, &words);
    let cards = cards::rows(pod, Scope::Pod, inner);
    if !cards.is_empty() {
        drawing.gap(GAP);
        drawing.line(0, inner, Font::Label, POD_INK, "Shared by all containers of the pod");
        drawing.gap(4);
        stacked(&mut drawing, cards.into_iter().map(|(row, _)| row).collect());
    }
    if let Some(cgroup) = pod.cgroup.as_ref().filter(|cgroup| limits::limits(cgroup)) {
        drawing.gap(GAP);
        let mut together = Drawing::default();
        let room = inner - 2 * style::INNER;
        together.line(0, room, Font::Label, POD_INK, "All containers together may use");
        together.gap(4);
        together.stack(0, limits::draw(cgroup, room.min(400)));
        drawing.stack(0, together.framed(inner, 0, style::INNER, OF_POD).group("together", Vec::new()));
    }
    if !pod.containers.is_empty() {
        drawing.stack(0, containers(pod, inner));
    } else if !stopped {
        drawing.gap(GAP);
        drawing.paragraph(0, inner, Font::Body, SOFT, "No container is running in it.");
    }
    drawing.framed(width, 0, PAD, if stopped { IDLE } else { SANDBOX }).group("sandbox", Vec::new())
}

/// Rows of containers, the files that several see below each.
fn containers(pod: &Pod, inner: i32) -> Drawing {
    let contents = mounts::contents(pod.containers.iter().map(|container| &container.mounts[..]));
    let columns = columns(pod.containers.len(), inner);
    let width = column_width(columns, inner);
    let mut drawing = Drawing::default();
    for first in (0..pod.containers.len()).step_by(columns) {
        let row = first..(first + columns).min(pod.containers.len());
        let inside = |index| container::draw(pod, index, &contents, width - 2 * style::INNER);
        let insides: Vec<Drawing> = row.clone().map(inside).collect();
        let height = insides.iter().map(|inside| inside.height).max().unwrap_or(0) + 2 * style::INNER;
        let boxes = insides.into_iter().zip(&pod.containers[row.clone()]);
        drawing.gap(GAP);
        drawing.row(
            0,
            width,
            GAP,
            boxes.map(|(inside, of)| container::framed(inside, of, width, height)).collect(),
        );
        drawing.stack(0, volumes::below(&row, &pod.containers, &contents, width));
    }
    drawing
}

/// How many boxes stand side by side: up to three, and two rows of two for four.
fn columns(boxes: usize, width: i32) -> usize {
    match boxes {
        _ if width < WIDTH_OF_ONE => 1,
        4 => 2,
        boxes => boxes.clamp(1, 3),
    }
}

fn column_width(columns: usize, width: i32) -> i32 {
    let columns = i32::try_from(columns).unwrap_or(1);
    (width + GAP) / columns - GAP
}

fn legend(width: i32) -> Drawing {
    let entries: [(Paint, &str); 6] = [
        (OF_HOST, "the host's: nothing keeps the pod apart"),
        (OF_SOME, "files that several containers see, joined to each of them"),
        (OF_POD, "the pod's: all its containers see the same"),
        (CONTAINER, "a container: processes that have one view of the machine"),
        (OF_ONE, "a container's own: no other container sees it"),
        (IDLE, "not there any more, or not yet"),
    ];
    let columns = if width < WIDTH_OF_ONE { 1 } else { 2 };
    let column = column_width(columns, width);
    let mut legend = Drawing::default();
    for chunk in entries.chunks(columns) {
        let entry = |(paint, words): &(Paint, &str)| {
            let mut entry = Drawing::default();
            entry.area((1, 2), (22, 14), *paint);
            entry.line(32, column - 32, Font::Body, TEXT, words);
            entry
        };
        legend.row(0, column, GAP, chunk.iter().map(entry).collect());
        legend.gap(4);
    }
    let numbers = "Numbers like net:[4026531840] are the kernel's names of namespaces: the same number is the same namespace.";
    legend.paragraph(0, width, Font::Body, SOFT, numbers);
    legend
}
