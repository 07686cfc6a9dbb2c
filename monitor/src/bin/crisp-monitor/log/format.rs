//! Bytes of a container's output become lines of the CRI log format (cri-api, `runtime/v1`, "log format"):
//!
//! ```text
//! 2026-08-22T10:11:12.123456789Z stdout F content
//! ```
//!
//! `F` ends a line, `P` is a piece of one that goes on. Pure: knows no files, no descriptors, no clock.

/// Longest content of one log line when the daemon names none, in bytes.
pub(crate) const DEFAULT_LINE_BYTES: usize = 16 * 1024;
/// Length of a timestamp: `YYYY-MM-DDThh:mm:ss.nnnnnnnnnZ`.
const STAMP_BYTES: usize = 30;
const NANOS: i64 = 1_000_000_000;

/// Writes timestamps: RFC 3339, UTC, nine digits of fraction. Keeps the text of the last second it saw.
#[derive(Debug)]
pub(crate) struct Stamp {
    second: i64,
    text: [u8; STAMP_BYTES],
}

impl Stamp {
    pub(crate) fn new() -> Self {
        let mut stamp = Stamp { second: 0, text: *b"1970-01-01T00:00:00.000000000Z" };
        stamp.set_second(0);
        stamp
    }

    /// The text for `nanos` nanoseconds since the epoch.
    pub(crate) fn at(&mut self, nanos: i64) -> &[u8; STAMP_BYTES] {
        let second = nanos.div_euclid(NANOS);
        if second != self.second {
            self.set_second(second);
        }
        put(&mut self.text[20..29], nanos.rem_euclid(NANOS));
        &self.text
    }

    fn set_second(&mut self, second: i64) {
        self.second = second;
        let (days, rest) = (second.div_euclid(86_400), second.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        put(&mut self.text[0..4], year);
        put(&mut self.text[5..7], month);
        put(&mut self.text[8..10], day);
        put(&mut self.text[11..13], rest / 3600);
        put(&mut self.text[14..16], rest / 60 % 60);
        put(&mut self.text[17..19], rest % 60);
    }
}

/// Fills `field` with the decimal digits of `value`, zeros in front.
fn put(field: &mut [u8], mut value: i64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01. Counts in 400-year cycles whose years begin on
/// 1 March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    const CYCLE: i64 = 146_097;
    let from_march = days + 719_468;
    let (cycle, day) = (from_march.div_euclid(CYCLE), from_march.rem_euclid(CYCLE));
    let year = (day - day / 1460 + day / 36_524 - day / (CYCLE - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + carry, month, day)
}

/// Which output a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        }
    }
}

/// Cuts one stream into log lines. Keeps at most one line limit of bytes: the unterminated rest.
#[derive(Debug)]
pub(crate) struct Splitter {
    stream: Stream,
    limit: usize,
    rest: Vec<u8>,
}

impl Splitter {
    /// A splitter for `stream` whose lines hold at most `limit` bytes of content (0: the default).
    pub(crate) fn new(stream: Stream, limit: usize) -> Self {
        Splitter { stream, limit: if limit == 0 { DEFAULT_LINE_BYTES } else { limit }, rest: Vec::new() }
    }

    /// Takes `bytes` as read at `stamp`; appends every line and every full piece to `out`.
    pub(crate) fn push(&mut self, mut bytes: &[u8], stamp: &[u8; STAMP_BYTES], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            // A newline right behind a full piece ends it: the piece is `F`, not `P` and an empty `F`.
            let room = self.limit - self.rest.len();
            let window = &bytes[..bytes.len().min(room + 1)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.line(&bytes[..end], b"F ", stamp, out);
                    bytes = &bytes[end + 1..];
                }
                None if window.len() > room => {
                    self.line(&bytes[..room], b"P ", stamp, out);
                    bytes = &bytes[room..];
                }
                None => {
                    self.rest.extend_from_slice(bytes);
                    return;
                }
            }
        }
    }

    /// The stream has ended: what is left goes out as a `P` piece.
    pub(crate) fn finish(&mut self, stamp: &[u8; STAMP_BYTES], out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            self.line(b"", b"P ", stamp, out);
        }
    }

    fn line(&mut self, tail: &[u8], tag: &[u8], stamp: &[u8; STAMP_BYTES], out: &mut Vec<u8>) {
        out.extend_from_slice(stamp);
        out.extend_from_slice(self.stream.name());
        out.extend_from_slice(tag);
        out.extend_from_slice(&self.rest);
        out.extend_from_slice(tail);
        out.push(b'\n');
        // Freed, not cleared: a container that is silent from now on shall cost nothing.
        self.rest = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: i64 = 1_787_393_472_123_456_789;

    fn split(limit: usize, pieces: &[&str]) -> String {
        let mut stamp = Stamp::new();
        let mut splitter = Splitter::new(Stream::Stdout, limit);
        let mut out = Vec::new();
        for piece in pieces {
            splitter.push(piece.as_bytes(), stamp.at(AT), &mut out);
        }
        splitter.finish(stamp.at(AT + 1), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn timestamps_are_rfc_3339_in_utc_with_nine_digits() {
        let mut stamp = Stamp::new();
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
            (951_782_399 * NANOS, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400 * NANOS + 7, "2000-02-29T00:00:00.000000007Z"),
            (951_868_800 * NANOS, "2000-03-01T00:00:00.000000000Z"),
            (1_735_689_599 * NANOS, "2024-12-31T23:59:59.000000000Z"),
            (1_735_689_600 * NANOS, "2025-01-01T00:00:00.000000000Z"),
            (4_107_542_400 * NANOS, "2100-03-01T00:00:00.000000000Z"),
            (AT, "2026-08-22T10:11:12.123456789Z"),
            (AT + 1, "2026-08-22T10:11:12.123456790Z"),
        ] {
            assert_eq!(std::str::from_utf8(stamp.at(nanos)).unwrap(), text);
        }
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let days_in = |year: i64, month: i64| match month {
            2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for count in 0..146_097 {
            assert_eq!(civil(count), (year, month, day));
            day += 1;
            if day > days_in(year, month) {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }

    #[test]
    fn whole_lines_are_f_and_an_empty_line_keeps_its_space() {
        assert_eq!(
            split(0, &["one\n\ntw", "o\r\n"]),
            "2026-08-22T10:11:12.123456789Z stdout F one\n\
             2026-08-22T10:11:12.123456789Z stdout F \n\
             2026-08-22T10:11:12.123456789Z stdout F two\r\n"
        );
    }

    #[test]
    fn an_unterminated_rest_is_p_and_an_empty_one_nothing() {
        assert_eq!(split(0, &["no newline"]), "2026-08-22T10:11:12.123456790Z stdout P no newline\n");
        assert_eq!(split(0, &["line\n"]), "2026-08-22T10:11:12.123456789Z stdout F line\n");
        assert_eq!(split(0, &[]), "");
    }

    #[test]
    fn long_lines_are_cut_at_the_limit() {
        let p = "2026-08-22T10:11:12.123456789Z stdout P ";
        let f = "2026-08-22T10:11:12.123456789Z stdout F ";
        assert_eq!(split(4, &["abcdefghij\n"]), format!("{p}abcd\n{p}efgh\n{f}ij\n"));
        assert_eq!(split(4, &["abcd\n"]), format!("{f}abcd\n"), "exactly the limit is a full line");
        assert_eq!(split(4, &["abcd", "\n"]), format!("{f}abcd\n"));
        assert_eq!(split(4, &["abcd", "e\n"]), format!("{p}abcd\n{f}e\n"));
    }

    #[test]
    fn the_same_bytes_in_any_pieces_make_the_same_log() {
        let text: String = (0..200).map(|i| format!("{}\n", "x".repeat(i * 7 % 23))).collect();
        let whole = split(10, &[&text]);
        for size in 1..40 {
            let pieces: Vec<&str> =
                text.as_bytes().chunks(size).map(|c| std::str::from_utf8(c).unwrap()).collect();
            assert_eq!(split(10, &pieces), whole, "pieces of {size}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_go_through_unchanged() {
        let mut out = Vec::new();
        let mut splitter = Splitter::new(Stream::Stderr, 0);
        splitter.push(b"\0\xff\xfe\n", Stamp::new().at(0), &mut out);
        assert_eq!(out, b"1970-01-01T00:00:00.000000000Z stderr F \0\xff\xfe\n");
    }
}
