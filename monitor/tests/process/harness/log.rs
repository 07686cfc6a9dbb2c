//! Reading CRI logs.

/// A line of a CRI log.
#[derive(Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) stream: String,
    pub(crate) tag: String,
    pub(crate) content: Vec<u8>,
}

pub(crate) fn line(stream: &str, tag: &str, content: &str) -> Line {
    Line { stream: stream.into(), tag: tag.into(), content: content.as_bytes().to_vec() }
}

/// Reads a log file; every line must be one of the CRI format.
pub(crate) fn parse_log(bytes: &[u8]) -> Vec<Line> {
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "the last line is not whole");
    bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| {
            let mut parts = line[..line.len() - 1].splitn(4, |byte| *byte == b' ');
            let mut text = || String::from_utf8(parts.next().expect("four fields").to_vec()).unwrap();
            let (stamp, stream, tag) = (text(), text(), text());
            assert_eq!((stamp.len(), &stamp[29..]), (30, "Z"), "timestamp {stamp}");
            assert!(stream == "stdout" || stream == "stderr", "stream {stream}");
            assert!(tag == "F" || tag == "P", "tag {tag}");
            Line { stream, tag, content: parts.next().expect("four fields").to_vec() }
        })
        .collect()
}

/// What the program wrote to `stream`, put together again.
pub(crate) fn written(lines: &[Line], stream: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        out.extend_from_slice(&line.content);
        if line.tag == "F" {
            out.push(b'\n');
        }
    }
    out
}
