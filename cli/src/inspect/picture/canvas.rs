//! Shapes, and how they become SVG. Everything is placed by whole pixels from the top left, so the same facts give the
//! same bytes.
//!
//! Must not know what the shapes mean.

use std::fmt::{self, Display, Formatter};

use super::font::{Font, visible};

/// Colour of text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ink(pub(super) &'static str);

/// How an area is painted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    pub(super) fill: &'static str,
    pub(super) edge: &'static str,
    pub(super) edge_width: i32,
    pub(super) dashed: bool,
    /// Radius of the corners.
    pub(super) round: i32,
}

/// Where a text's x is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    End,
}

#[derive(Clone, Debug)]
enum Shape {
    Area {
        x: i32,
        y: i32,
        width: i32,
        height: i32,
        paint: Paint,
    },
    /// `y` is the base line.
    Text {
        x: i32,
        y: i32,
        anchor: Anchor,
        font: Font,
        ink: Ink,
        text: String,
        whole: Option<String>,
    },
    /// Vertical.
    Line {
        x: i32,
        from: i32,
        to: i32,
        ink: Ink,
    },
    Open {
        class: &'static str,
        data: Vec<(&'static str, String)>,
    },
    Close,
}

/// Shapes with the room they take from the top. It grows as things are added below.
#[derive(Clone, Debug, Default)]
pub(super) struct Drawing {
    shapes: Vec<Shape>,
    pub(super) height: i32,
}

impl Drawing {
    pub(super) fn gap(&mut self, height: i32) {
        self.height += height;
    }

    /// A line of text that fits `width`, cut at its end where it does not.
    pub(super) fn line(&mut self, x: i32, width: i32, font: Font, ink: Ink, text: &str) {
        let shown = font.fit(text, width);
        self.text(x, Anchor::Start, (font, ink), shown, text);
        self.height += font.line();
    }

    /// The same for a path, whose end says more than its beginning.
    pub(super) fn path_line(&mut self, x: i32, width: i32, font: Font, ink: Ink, path: &str) {
        let shown = font.fit_end(path, width);
        self.text(x, Anchor::Start, (font, ink), shown, path);
        self.height += font.line();
    }

    /// Lines of whole words.
    pub(super) fn paragraph(&mut self, x: i32, width: i32, font: Font, ink: Ink, text: &str) {
        for line in font.wrap(text, width) {
            self.line(x, width, font, ink, &line);
        }
    }

    /// Text on the left and on the right of one line. The right one is ours and short; the left one gives way.
    pub(super) fn sides(&mut self, width: i32, left: (Font, Ink, &str), right: (Font, Ink, &str)) {
        let room = width - right.0.width(right.2) - left.0.size();
        self.text(0, Anchor::Start, (left.0, left.1), left.0.fit(left.2, room), left.2);
        self.text(width, Anchor::End, (right.0, right.1), right.0.fit(right.2, width), right.2);
        self.height += left.0.line().max(right.0.line());
    }

    fn text(&mut self, x: i32, anchor: Anchor, (font, ink): (Font, Ink), shown: String, whole: &str) {
        let y = self.height + font.size();
        let whole = (shown != whole).then(|| visible(whole));
        self.shapes.push(Shape::Text { x, y, anchor, font, ink, text: shown, whole });
    }

    /// An area; takes no room.
    pub(super) fn area(&mut self, (x, y): (i32, i32), (width, height): (i32, i32), paint: Paint) {
        self.shapes.push(Shape::Area { x, y, width, height, paint });
    }

    /// A vertical line; takes no room.
    pub(super) fn vertical(&mut self, x: i32, from: i32, to: i32, ink: Ink) {
        self.shapes.push(Shape::Line { x, from, to, ink });
    }

    /// Another drawing with its top left at a place; takes no room.
    pub(super) fn put(&mut self, dx: i32, dy: i32, other: Drawing) {
        self.shapes.extend(other.shapes.into_iter().map(|shape| match shape {
            Shape::Area { x, y, width, height, paint } => {
                Shape::Area { x: x + dx, y: y + dy, width, height, paint }
            }
            Shape::Text { x, y, anchor, font, ink, text, whole } => {
                Shape::Text { x: x + dx, y: y + dy, anchor, font, ink, text, whole }
            }
            Shape::Line { x, from, to, ink } => Shape::Line { x: x + dx, from: from + dy, to: to + dy, ink },
            group => group,
        }));
    }

    /// Another drawing below everything so far.
    pub(super) fn stack(&mut self, x: i32, other: Drawing) {
        let height = other.height;
        self.put(x, self.height, other);
        self.height += height;
    }

    /// Drawings side by side below everything so far, with `gap` between them.
    pub(super) fn row(&mut self, x: i32, width: i32, gap: i32, drawings: Vec<Drawing>) {
        let height = drawings.iter().map(|drawing| drawing.height).max().unwrap_or(0);
        for (index, drawing) in (0_i32..).zip(drawings) {
            self.put(x + index * (width + gap), self.height, drawing);
        }
        self.height += height;
    }

    /// This drawing in a box with `pad` around it, at least `height` high.
    pub(super) fn framed(self, width: i32, height: i32, pad: i32, paint: Paint) -> Drawing {
        let height = height.max(self.height + 2 * pad);
        let mut framed = Drawing { shapes: Vec::new(), height };
        framed.area((0, 0), (width, height), paint);
        framed.put(pad, pad, self);
        framed
    }

    /// This drawing as a group that programs find by its class and data.
    pub(super) fn group(mut self, class: &'static str, data: Vec<(&'static str, String)>) -> Drawing {
        self.shapes.insert(0, Shape::Open { class, data });
        self.shapes.push(Shape::Close);
        self
    }

    /// The drawing as a file of SVG on a ground of its own.
    pub(super) fn svg(&self, width: i32, title: &str, ground: Paint) -> String {
        use std::fmt::Write;

        let height = self.height;
        let title = Escaped(&visible(title)).to_string();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>{title}</title>\n<style>\n"
        );
        for font in Font::ALL {
            let family = match font {
                Font::Code => "Menlo, Consolas, 'Liberation Mono', 'DejaVu Sans Mono', monospace",
                _ => "Arial, Helvetica, 'Liberation Sans', 'DejaVu Sans', sans-serif",
            };
            let weight = if font.is_bold() { "bold" } else { "normal" };
            // Writing to a String cannot fail.
            let _ = writeln!(svg, ".{} {{ font: {weight} {}px {family} }}", font.class(), font.size());
        }
        svg += "text { white-space: pre }\n</style>\n";
        let all = Shape::Area { x: 0, y: 0, width, height, paint: ground };
        for shape in std::iter::once(&all).chain(&self.shapes) {
            let _ = writeln!(svg, "{shape}");
        }
        svg + "</svg>\n"
    }
}

impl Display for Shape {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Area { x, y, width, height, paint } => {
                let Paint { fill, edge, edge_width, dashed, round } = paint;
                write!(
                    f,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{round}\" fill=\"{fill}\""
                )?;
                if *edge_width > 0 {
                    write!(f, " stroke=\"{edge}\" stroke-width=\"{edge_width}\"")?;
                }
                f.write_str(if *dashed { " stroke-dasharray=\"6 4\"/>" } else { "/>" })
            }
            Shape::Text { x, y, anchor, font, ink, text, whole } => {
                let anchor = if *anchor == Anchor::End { " text-anchor=\"end\"" } else { "" };
                write!(
                    f,
                    "<text x=\"{x}\" y=\"{y}\" class=\"{}\" fill=\"{}\"{anchor}>",
                    font.class(),
                    ink.0
                )?;
                if let Some(whole) = whole {
                    write!(f, "<title>{}</title>", Escaped(whole))?;
                }
                write!(f, "{}</text>", Escaped(text))
            }
            Shape::Line { x, from, to, ink } => {
                write!(
                    f,
                    "<line x1=\"{x}\" y1=\"{from}\" x2=\"{x}\" y2=\"{to}\" stroke=\"{}\" stroke-width=\"4\"/>",
                    ink.0
                )
            }
            Shape::Open { class, data } => {
                write!(f, "<g class=\"{class}\"")?;
                for (name, value) in data {
                    write!(f, " data-{name}=\"{}\"", Escaped(&visible(value)))?;
                }
                f.write_str(">")
            }
            Shape::Close => f.write_str("</g>"),
        }
    }
}

/// Text as XML has it. All of it went through [`visible`], so no character is left that XML does not allow.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            other => write!(f, "{other}"),
        })
    }
}
