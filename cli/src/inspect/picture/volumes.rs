//! Files that several containers see: a bar below a row of containers, joined to each that sees them.

use std::{collections::BTreeSet, ops::Range};

use super::{
    canvas::Drawing,
    container::{place, source},
    font::Font,
    style::{FILES_INK, GAP, JOINT, OF_SOME, PLACE, SOFT, TEXT},
};
use crate::inspect::{
    facts::Container,
    mounts::{Content, Mount},
};

/// Between a container and a bar, and between bars: where the joints show.
const JOINTED: i32 = 14;
/// Inside of a bar, and around the places in it.
const PAD: i32 = 8;
/// Inside of a place.
const PLACE_PAD: i32 = 5;

/// What every pod has at the same places: names of hosts and name servers, and what IPC is seen by.
const USUAL: [&str; 5] = ["/dev/mqueue", "/dev/shm", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// Contents that are drawn as one.
struct Bar<'a> {
    /// Nothing for the usual ones.
    source: Option<&'a str>,
    contents: Vec<&'a Content<'a>>,
}

impl Bar<'_> {
    fn mounts(&self, container: usize) -> Vec<&Mount> {
        self.contents.iter().flat_map(|content| content.of(container)).collect()
    }

    fn is_seen_by(&self, container: usize) -> bool {
        self.contents.iter().any(|content| content.of(container).next().is_some())
    }

    /// First and last column of a row of containers in which it is.
    fn columns(&self, row: &Range<usize>) -> Option<(i32, i32)> {
        let mut seen =
            (0..).zip(row.clone()).filter(|(_, index)| self.is_seen_by(*index)).map(|(column, _)| column);
        let first = seen.next()?;
        Some((first, seen.last().unwrap_or(first)))
    }
}

/// The bars below containers `row` (indexes), each `width` wide and [`GAP`] apart.
pub(super) fn below(
    row: &Range<usize>,
    containers: &[Container],
    contents: &[Content<'_>],
    width: i32,
) -> Drawing {
    let bars = bars(contents);
    let here: Vec<_> = bars.iter().filter_map(|bar| Some((bar, bar.columns(row)?))).collect();
    let mut drawing = Drawing::default();
    for (number, (bar, (first, last))) in here.iter().enumerate() {
        let drawn = draw(bar, row, (*first, *last), containers, width);
        for (column, index) in (0..).zip(row.clone()) {
            if here[number..].iter().any(|(later, _)| later.is_seen_by(index)) {
                // It goes on beside a bar, and behind one.
                let beside = column < *first || column > *last;
                let end = JOINTED + if beside { drawn.height } else { 0 };
                let middle = column * (width + GAP) + width / 2;
                drawing.vertical(middle, drawing.height, drawing.height + end, JOINT);
            }
        }
        drawing.gap(JOINTED);
        drawing.stack(first * (width + GAP), drawn);
    }
    drawing
}

/// A bar for each content that several containers see. The usual ones are one for all that the same containers see, at
/// the end.
fn bars<'a>(contents: &'a [Content<'a>]) -> Vec<Bar<'a>> {
    let is_usual =
        |content: &Content<'_>| content.seen.iter().all(|(_, mount)| USUAL.contains(&mount.target.as_str()));
    let shared = contents.iter().filter(|content| content.containers() > 1);
    let (usual, others): (Vec<_>, Vec<_>) = shared.partition(|content| is_usual(content));
    let mut bars: Vec<Bar<'_>> = Vec::new();
    bars.extend(
        others.into_iter().map(|content| Bar { source: Some(content.source), contents: vec![content] }),
    );
    let who = |content: &Content<'_>| content.seen.iter().map(|(index, _)| *index).collect::<BTreeSet<_>>();
    for content in usual {
        match bars.iter_mut().find(|bar| bar.source.is_none() && who(bar.contents[0]) == who(content)) {
            Some(bar) => bar.contents.push(content),
            None => bars.push(Bar { source: None, contents: vec![content] }),
        }
    }
    bars
}

/// A bar over the columns `first` to `last`.
fn draw(
    bar: &Bar<'_>,
    row: &Range<usize>,
    (first, last): (i32, i32),
    containers: &[Container],
    width: i32,
) -> Drawing {
    let whole = (last - first + 1) * (width + GAP) - GAP;
    let inner = whole - 2 * PAD;
    let mut drawing = Drawing::default();
    title(&mut drawing, bar, inner);
    let elsewhere: Vec<&str> = (0..containers.len())
        .filter(|index| !row.contains(index) && bar.is_seen_by(*index))
        .map(|index| containers[index].name.as_str())
        .collect();
    if !elsewhere.is_empty() {
        drawing.line(0, inner, Font::Body, SOFT, &format!("also seen by {}", elsewhere.join(", ")));
    }
    drawing.gap(4);
    let seen = (0..).zip(row.clone()).filter(|(_, index)| bar.is_seen_by(*index));
    let places: Vec<(i32, Drawing)> = seen
        .map(|(column, index)| ((column - first) * (width + GAP), places(bar, index, width - 4 * PAD)))
        .collect();
    let height = places.iter().map(|(_, place)| place.height).max().unwrap_or(0) + 2 * PLACE_PAD;
    for (x, place) in places {
        drawing.put(x, drawing.height, place.framed(width - 2 * PAD, height, PLACE_PAD, PLACE));
    }
    drawing.gap(height);
    let source = bar.source.unwrap_or("usual").to_owned();
    drawing.framed(whole, 0, PAD, OF_SOME).group("volume", vec![("source", source)])
}

fn title(drawing: &mut Drawing, bar: &Bar<'_>, width: i32) {
    let first = bar.contents.iter().find_map(|content| content.seen.first());
    let (Some(_), Some((_, mount))) = (bar.source, first) else {
        return drawing.line(0, width, Font::Label, FILES_INK, "Shared files that every pod has");
    };
    let words = "Shared files";
    let label = Font::Label.width(words) + PAD;
    let mut path = Drawing::default();
    path.path_line(0, width - label, Font::Code, TEXT, &source(mount));
    drawing.put(label, drawing.height + 1, path);
    drawing.line(0, width, Font::Label, FILES_INK, words);
}

/// Where a container sees it.
fn places(bar: &Bar<'_>, container: usize, width: i32) -> Drawing {
    let words = "seen at";
    let label = Font::Body.width(words) + 2;
    let mounts = bar.mounts(container);
    let mut paths = Drawing::default();
    if bar.source.is_some() {
        for mount in mounts {
            paths.path_line(0, width - label, Font::Code, TEXT, &place(mount));
        }
    } else {
        // Known and short: several fit a line.
        let all: Vec<String> = mounts.into_iter().map(place).collect();
        paths.paragraph(0, width - label, Font::Code, TEXT, &all.join(" "));
    }
    let height = paths.height;
    let mut drawing = Drawing::default();
    drawing.put(label, 1, paths);
    drawing.line(0, label, Font::Body, SOFT, words);
    drawing.gap((height - drawing.height).max(0));
    drawing
}
