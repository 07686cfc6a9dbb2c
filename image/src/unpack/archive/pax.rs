//! PAX extended headers (POSIX.1-2001 pax, "pax Header Block"). Purpose: records become typed values, and
//! records that contradict each other are refused. Reads nothing itself.

use super::sparse::Records;
use super::{ArchiveError, bad};

/// What PAX records say about an entry.
#[derive(Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Records,
}

impl Pax {
    pub(super) fn parse(mut data: &[u8], start: u64) -> Result<Self, ArchiveError> {
        let mut out = Self::default();
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or_else(|| bad(start, "malformed PAX record"))?;
            out.set(key, value).map_err(|reason| bad(start, &reason))?;
            data = rest;
        }
        Ok(out)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let shown = || String::from_utf8_lossy(&key[..key.len().min(80)]).into_owned();
        let invalid = || format!("PAX record {:?} is no number", shown());
        match key {
            b"path" => self.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => self.link = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => {
                let size = decimal(value).filter(|n| *n < u64::MAX / 4).ok_or_else(invalid)?;
                if self.size.replace(size).is_some_and(|earlier| earlier != size) {
                    return Err("two PAX sizes that differ".to_owned());
                }
            }
            b"uid" | b"gid" => {
                let id = decimal(value).and_then(|n| u32::try_from(n).ok()).filter(|n| *n != u32::MAX);
                let id = id.ok_or_else(|| format!("PAX {} is out of range", shown()))?;
                *(if key == b"uid" { &mut self.uid } else { &mut self.gid }) = Some(id);
            }
            b"mtime" => self.mtime = Some(time(value).ok_or_else(invalid)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.set(key, value);
                }
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) || name.len() > 255 {
                        return Err(format!("extended attribute name {:?}", shown()));
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// `length key=value\n`, where length counts the whole record.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(12).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    let body = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=').filter(|at| *at > 0)?;
    Some((&body[..equals], &body[equals + 1..], &data[length..]))
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]` as seconds and the nanoseconds that come on top of them.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &text[text.len()..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0_u32, |sum, b| sum * 10 + u32::from(b - b'0'));
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}
