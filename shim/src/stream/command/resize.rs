//! Sizes of a client's window, as they come on the resize channel: JSON objects, one behind the other.
//!
//! Must not know: whose terminal it is.

use serde_json::{Map, Value};

/// Most bytes of an object that has not arrived whole.
const PART_MAX: usize = 1024;

/// Columns and rows, where an object tells them and there are any.
fn size(object: &Map<String, Value>) -> Option<(u16, u16)> {
    let number = |name| object.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    Some((number("Width")?, number("Height")?))
}

/// Collects what arrives.
#[derive(Debug, Default)]
pub(in crate::stream) struct Sizes {
    part: Vec<u8>,
}

impl Sizes {
    /// The last size, columns and rows, that has arrived whole with `bytes`; sizes of nothing are left out, and so is
    /// what is no size.
    pub(in crate::stream) fn push(&mut self, bytes: &[u8]) -> Option<(u16, u16)> {
        self.part.extend_from_slice(bytes);
        let mut objects = serde_json::Deserializer::from_slice(&self.part).into_iter::<Map<_, _>>();
        let (mut last, mut used) = (None, 0);
        let whole = loop {
            match objects.next() {
                Some(Ok(object)) => {
                    used = objects.byte_offset();
                    last = size(&object).or(last);
                }
                Some(Err(error)) => break error.is_eof(),
                None => break true,
            }
        };
        self.part.drain(..used);
        if !whole || self.part.len() > PART_MAX {
            self.part.clear();
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_sizes_counts_whatever_the_pieces() {
        let text = br#"{"Width":80,"Height":24}{"Width":100,"Height":40}
            {"Width":0,"Height":0}"#;
        assert_eq!(Sizes::default().push(text), Some((100, 40)));
        let mut sizes = Sizes::default();
        let each: Vec<_> = text.iter().filter_map(|byte| sizes.push(&[*byte])).collect();
        assert_eq!(each, [(80, 24), (100, 40)]);
    }

    #[test]
    fn what_is_no_size_is_dropped_and_the_next_one_counts() {
        let mut sizes = Sizes::default();
        for nonsense in [&b"[1,2]"[..], b"nonsense", br#"{"Width":-1,"Height":70000}"#] {
            assert_eq!(sizes.push(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(sizes.push(br#"{"Width":1,"Height":2}"#), Some((1, 2)));
        for _ in 0..10_000 {
            assert_eq!(sizes.push(b"                   "), None);
            assert!(sizes.part.len() <= PART_MAX);
        }
        assert_eq!(sizes.push(br#"{"Width":3,"Height":4}"#), Some((3, 4)));
    }
}
