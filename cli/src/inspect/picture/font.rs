//! How wide text is, and text that fits a width.
//!
//! The fonts are those of whoever looks at the picture, so widths are estimates for the widest of the usual ones. Must not
//! know what is written.

/// The fonts of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Font {
    Title,
    Heading,
    Label,
    Body,
    Code,
}

/// Characters that are not as wide as most, 640 thousandths of the font's size.
const WIDTHS: [(&str, i64); 6] = [
    ("ijlI'| .,", 320),
    ("!()-/:;[]\\frt", 410),
    ("sz", 530),
    ("ckvxy", 600),
    ("ABCDEFGHJKLNOPQRSTUVXYZ", 790),
    ("mwMW%@#&+<=>^~", 1000),
];

impl Font {
    pub(super) const ALL: [Font; 5] = [Font::Title, Font::Heading, Font::Label, Font::Body, Font::Code];

    /// Name of its class in the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Font::Title => "t",
            Font::Heading => "h",
            Font::Label => "l",
            Font::Body => "b",
            Font::Code => "c",
        }
    }

    /// Pixels.
    pub(super) fn size(self) -> i32 {
        match self {
            Font::Title => 22,
            Font::Heading => 15,
            Font::Label | Font::Body => 13,
            Font::Code => 12,
        }
    }

    /// Height of a line in pixels.
    pub(super) fn line(self) -> i32 {
        self.size() * 4 / 3
    }

    pub(super) fn is_bold(self) -> bool {
        matches!(self, Font::Title | Font::Heading | Font::Label)
    }

    /// Width of harmless text in pixels, rounded up.
    pub(super) fn width(self, text: &str) -> i32 {
        let thousandths: i64 = text.chars().map(|character| self.advance(character)).sum();
        i32::try_from((thousandths * i64::from(self.size()) + 999) / 1000).unwrap_or(i32::MAX)
    }

    /// Thousandths of the font's size.
    fn advance(self, character: char) -> i64 {
        let plain = match character {
            '\u{1f000}'.. => 1400,
            _ if !character.is_ascii() => 1000,
            _ if self == Font::Code => return 610,
            _ => WIDTHS.iter().find(|(some, _)| some.contains(character)).map_or(640, |(_, width)| *width),
        };
        if self.is_bold() { plain * 112 / 100 } else { plain }
    }

    /// The beginning of a text, with an ellipsis where something is left out.
    pub(super) fn fit(self, text: &str, width: i32) -> String {
        let text = visible(text);
        match self.width(&text) <= width {
            true => text,
            false => self.first(text.chars(), width - self.width("…")) + "…",
        }
    }

    /// The end of a path, with an ellipsis in front where something is left out: from a whole component on if that
    /// leaves anything.
    pub(super) fn fit_end(self, path: &str, width: i32) -> String {
        let path = visible(path);
        if self.width(&path) <= width {
            return path;
        }
        let backwards = self.first(path.chars().rev(), width - self.width("…"));
        let end: String = backwards.chars().rev().collect();
        format!("…{}", end.find('/').map_or(end.as_str(), |at| &end[at..]))
    }

    /// As many characters as fit.
    fn first(self, characters: impl Iterator<Item = char>, width: i32) -> String {
        let mut left = i64::from(width) * 1000;
        let fits = characters.take_while(|character| {
            left -= self.advance(*character) * i64::from(self.size());
            left >= 0
        });
        fits.collect()
    }

    /// Lines of whole words; a word that is too long for a line is cut.
    pub(super) fn wrap(self, text: &str, width: i32) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            let word = self.fit(word, width);
            match lines.last_mut() {
                Some(line) if self.width(&format!("{line} {word}")) <= width => {
                    line.push(' ');
                    line.push_str(&word);
                }
                _ => lines.push(word),
            }
        }
        lines
    }
}

/// Text with nothing in it that cannot be seen: what would be is written out. A pod's names are not ours, and a character
/// that turns the direction of writing would turn our words, too.
pub(super) fn visible(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' | '\'' | '"' => result.push(character),
            other => result.extend(other.escape_debug()),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_written_out() {
        assert_eq!(
            visible("a\u{202e}b\0\n\u{7f}\u{200b}\u{fffe}"),
            "a\\u{202e}b\\0\\n\\u{7f}\\u{200b}\\u{fffe}"
        );
        assert_eq!(visible("\"ü 'x' \\ 漢字"), "\"ü 'x' \\ 漢字");
    }

    #[test]
    fn what_is_left_out_is_marked_where_it_was() {
        for font in Font::ALL {
            for text in ["a/name/that/is/far/too/long/for/the/place", &"漢".repeat(50), &"\u{1}".repeat(50)]
            {
                let (head, tail) = (font.fit(text, 120), font.fit_end(text, 120));
                assert!(head.ends_with('…') && tail.starts_with('…'), "{head} {tail}");
                assert!(font.width(&head) <= 120 && font.width(&tail) <= 120, "{head} {tail}");
                assert!(font.width(&head) > 80, "{head}");
            }
        }
        assert_eq!(Font::Code.fit_end("/var/lib/pods/volumes/data", 120), "…/volumes/data");
        assert_eq!(Font::Code.fit("short", 120), "short");
    }

    #[test]
    fn lines_are_of_whole_words() {
        let lines = Font::Body.wrap("the quick brown fox jumps", 80);
        assert_eq!(lines, ["the quick", "brown fox", "jumps"]);
        assert_eq!(Font::Body.wrap(&"x".repeat(99), 110).len(), 1);
        assert!(Font::Body.wrap(" ", 110).is_empty());
    }
}
