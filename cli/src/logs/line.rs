//! The lines of a CRI log file: `time stream tags content`. Must not know where the file is.

use std::borrow::Cow;

/// Where a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One line of the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    /// RFC 3339, as it stands.
    pub(crate) time: &'a str,
    pub(crate) stream: Stream,
    /// More of the same line follows: no line break here.
    pub(crate) partial: bool,
    pub(crate) content: &'a [u8],
}

/// A line that is not of the format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no line of a CRI log: {0:?}")]
pub(crate) struct NoLogLine(String);

/// The lines of `text`. What comes after the last line break is a line as well.
pub(crate) fn entries(text: &[u8]) -> impl Iterator<Item = Result<Entry<'_>, NoLogLine>> {
    text.split_inclusive(|byte| *byte == b'\n').map(parse)
}

/// Takes one line apart.
///
/// # Errors
/// It lacks a part, or a part has a value that the format does not know.
pub(crate) fn parse(raw: &[u8]) -> Result<Entry<'_>, NoLogLine> {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    read(raw).ok_or_else(|| {
        let shown: Cow<'_, str> = String::from_utf8_lossy(&raw[..raw.len().min(80)]);
        NoLogLine(shown.into_owned())
    })
}

fn read(raw: &[u8]) -> Option<Entry<'_>> {
    let mut parts = raw.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok().filter(|time| time.contains('T'))?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    Some(Entry { time, stream, partial, content: parts.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_four_parts() {
        let entry = parse(b"2026-08-22T10:11:12.123456789+02:00 stderr P:x a  b \xff\n").unwrap();
        assert_eq!(
            entry,
            Entry {
                time: "2026-08-22T10:11:12.123456789+02:00",
                stream: Stream::Stderr,
                partial: true,
                content: b"a  b \xff"
            }
        );
        assert_eq!(parse(b"2026-08-22T10:11:12Z stdout F \n").unwrap().content, b"");
    }

    #[test]
    fn other_text_is_refused_by_name() {
        for bad in
            [&b"hello"[..], b"T stdout F", b"2026T stdin F x", b"2026T stdout X x", b"noon stdout F x", b""]
        {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        assert!(parse(b"hello").unwrap_err().to_string().contains("hello"));
    }
}
