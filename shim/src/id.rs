//! Ids of sandboxes and containers, and the look-up of one by a unique prefix of it.
//!
//! An id that a client sends is only ever looked up here; no path is built from what a client sent.

use std::{collections::BTreeMap, fmt, ops::Bound, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::error::RequestError;

/// A sandbox or container id: 64 lower-case hex digits from the kernel's random source.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Id(Arc<str>);

impl Id {
    /// A new id, unique for all practical purposes (256 random bits).
    ///
    /// # Errors
    /// The kernel's random source does not answer.
    pub fn random() -> Result<Id, RequestError> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes)
            .map_err(|error| RequestError::unknown(format!("make an id: random source: {error}")))?;
        Ok(Id(hex(&bytes).into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first `length` digits: for names that must be short.
    #[must_use]
    pub fn short(&self, length: usize) -> &str {
        &self.0[..length.min(self.0.len())]
    }
}

/// Bytes as lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short(12))
    }
}

#[cfg(test)]
impl From<&str> for Id {
    fn from(text: &str) -> Id {
        Id(text.into())
    }
}

impl std::borrow::Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Finds the entry whose id is `wanted` or starts with it.
///
/// # Errors
/// `NotFound` when there is none, `Invalid` when `wanted` is empty or fits several.
pub fn find<'a, V>(
    map: &'a BTreeMap<Id, V>,
    kind: &'static str,
    wanted: &str,
) -> Result<(&'a Id, &'a V), RequestError> {
    if wanted.is_empty() {
        return Err(RequestError::invalid(format!("{kind} id is empty")));
    }
    let mut hits = map
        .range::<str, _>((Bound::Included(wanted), Bound::Unbounded))
        .take_while(|(id, _)| id.as_str().starts_with(wanted));
    let Some(first) = hits.next() else {
        return Err(RequestError::not_found(kind, wanted));
    };
    if first.0.as_str() != wanted && hits.next().is_some() {
        return Err(RequestError::invalid(format!("{kind} id {wanted:?} fits more than one {kind}")));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn map() -> BTreeMap<Id, u8> {
        [("aa11", 1), ("aa22", 2), ("bb", 3), ("bbcc", 4)].map(|(k, v)| (k.into(), v)).into()
    }

    #[test]
    fn a_unique_prefix_finds_its_object() {
        assert_eq!(*find(&map(), "container", "aa1").unwrap().1, 1);
    }

    #[test]
    fn a_whole_id_wins_over_a_longer_one_that_starts_with_it() {
        assert_eq!(*find(&map(), "container", "bb").unwrap().1, 3);
    }

    #[test]
    fn an_ambiguous_prefix_is_an_error_not_the_first_match() {
        let error = find(&map(), "container", "aa").unwrap_err();
        assert_eq!(error.class, Class::Invalid);
    }

    #[test]
    fn unknown_and_empty_ids_are_told_apart() {
        assert_eq!(find(&map(), "sandbox", "../x").unwrap_err().class, Class::NotFound);
        assert_eq!(find(&map(), "sandbox", "").unwrap_err().class, Class::Invalid);
    }

    #[test]
    fn ids_are_64_hex_digits() {
        let id = Id::random().unwrap();
        assert_eq!(id.as_str().len(), 64);
        assert!(id.as_str().bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
    }
}
