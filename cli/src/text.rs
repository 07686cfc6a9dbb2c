//! Tables, ages and sizes as people read them. Must not know what they are of.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch, now.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// How long ago a time in nanoseconds since the epoch was: 42s, 3m12s, 5h2m, 8d.
pub(crate) fn age(then: i64, now: i64) -> String {
    let seconds = now.saturating_sub(then).max(0) / 1_000_000_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m{}s", seconds / 60, seconds % 60),
        7200..172_800 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes with a binary unit and at most one decimal: 512, 64Mi, 1.5Gi.
pub(crate) fn bytes(count: u64) -> String {
    let mut unit = 0;
    while unit < 4 && count >= 1 << (10 * (unit + 1)) {
        unit += 1;
    }
    let tenths = (u128::from(count) * 10) >> (10 * unit);
    let name = ["", "Ki", "Mi", "Gi", "Ti"][unit];
    if tenths % 10 == 0 {
        format!("{}{name}", tenths / 10)
    } else {
        format!("{}.{}{name}", tenths / 10, tenths % 10)
    }
}

/// The first digits of a digest, which tell images and layers of one host apart.
pub(crate) fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

/// Columns padded to their widest cell, two blanks apart; no blanks at line ends.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Text of a container for a terminal: control characters are written out. Lines after the first are indented, so none
/// of them looks like a line of ours.
pub(crate) fn harmless(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => result.push_str("\n    "),
            '\t' => result.push('\t'),
            control if control.is_control() => result.extend(control.escape_debug()),
            other => result.push(other),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let at = |seconds: i64| age(0, seconds * 1_000_000_000);
        assert_eq!([at(5), at(192), at(18_130), at(700_000)], ["5s", "3m12s", "5h2m", "8d"]);
        assert_eq!(age(10, 0), "0s", "clocks may differ");
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1 << 10), bytes(64 << 20), bytes(3 << 29), bytes(u64::MAX)],
            ["0", "1023", "1Ki", "64Mi", "1.5Gi", "16777215.9Ti"]
        );
    }

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(harmless("a\u{1b}[31m\r\0\u{7f}\tü\nb"), "a\\u{1b}[31m\\r\\0\\u{7f}\tü\n    b");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["A".into(), "B".into()], vec!["long".into(), "x".into()]];
        assert_eq!(columns(&rows), "A     B\nlong  x\n");
    }
}
