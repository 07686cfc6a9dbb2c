//! User namespaces: which ids stand for which, and the short-lived process that makes a namespace.
//!
//! A mapping says that `length` ids from `container` on, as seen inside, are those from `host` on outside
//! (user_namespaces(7), "User and group ID mappings").
//!
//! Must not know: pods, what is mounted or started with a namespace.

mod holder;

pub use holder::{HOLD, Holder, HolderError, hold};

/// Most extents that the kernel takes (`UID_GID_MAP_MAX_EXTENTS`).
pub const MAX_EXTENTS: usize = 340;
/// What the kernel shows for an id that has no place in a namespace (`/proc/sys/kernel/overflowuid`).
pub const NOBODY: u32 = 65534;

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// Why a list of ranges is no mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// No range at all: nobody could live in such a namespace.
    #[error("no mapping")]
    Empty,
    /// More ranges than the kernel takes.
    #[error("{0} mappings are more than the {MAX_EXTENTS} that the kernel takes")]
    TooMany(usize),
    /// A range of nothing.
    #[error("[{0}]: length 0")]
    Length(usize),
    /// A range that leaves the 32-bit ids; the last of them is no id but stands for "none".
    #[error("[{0}]: goes beyond the last id")]
    Beyond(usize),
    /// Two ranges share ids inside or outside.
    #[error("[{0}] and [{1}] overlap")]
    Overlap(usize, usize),
}

/// Checks a list of ranges as the kernel would, so that an error can name its place.
///
/// # Errors
/// The first rule that is broken.
pub fn check(list: &[IdMapping]) -> Result<(), MappingError> {
    match list.len() {
        0 => return Err(MappingError::Empty),
        count if count > MAX_EXTENTS => return Err(MappingError::TooMany(count)),
        _ => {}
    }
    let overlap = |a: u32, b: u32, one: &IdMapping, other: &IdMapping| {
        u64::from(a) < u64::from(b) + u64::from(other.length)
            && u64::from(b) < u64::from(a) + u64::from(one.length)
    };
    for (index, one) in list.iter().enumerate() {
        if one.length == 0 {
            return Err(MappingError::Length(index));
        }
        if one.container.checked_add(one.length).is_none() || one.host.checked_add(one.length).is_none() {
            return Err(MappingError::Beyond(index));
        }
        for (before, other) in list.iter().enumerate().take(index) {
            if overlap(one.container, other.container, one, other)
                || overlap(one.host, other.host, one, other)
            {
                return Err(MappingError::Overlap(before, index));
            }
        }
    }
    Ok(())
}

/// The mapping of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMappings {
    /// Of users.
    pub uids: Vec<IdMapping>,
    /// Of groups.
    pub gids: Vec<IdMapping>,
}

impl IdMappings {
    /// The user outside that `uid` inside stands for.
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        host(&self.uids, uid)
    }

    /// The group outside that `gid` inside stands for.
    pub fn host_gid(&self, gid: u32) -> Option<u32> {
        host(&self.gids, gid)
    }
}

fn host(list: &[IdMapping], id: u32) -> Option<u32> {
    list.iter().find_map(|range| {
        let offset = id.checked_sub(range.container)?;
        (offset < range.length).then(|| range.host + offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container: u32, host: u32, length: u32) -> IdMapping {
        IdMapping { container, host, length }
    }

    #[test]
    fn r35_what_is_no_mapping_is_named() {
        let many: Vec<_> = (0..341).map(|at| range(at, at + 1000, 1)).collect();
        for (list, error) in [
            (vec![], MappingError::Empty),
            (many.clone(), MappingError::TooMany(341)),
            (vec![range(0, 1000, 0)], MappingError::Length(0)),
            (vec![range(0, 1000, 1), range(u32::MAX, 2000, 1)], MappingError::Beyond(1)),
            (vec![range(0, 4_294_967_290, 6)], MappingError::Beyond(0)),
            (vec![range(0, 1000, u32::MAX)], MappingError::Beyond(0)),
            (vec![range(0, 1000, 10), range(9, 2000, 10)], MappingError::Overlap(0, 1)),
            (vec![range(0, 1000, 10), range(10, 990, 11)], MappingError::Overlap(0, 1)),
        ] {
            assert_eq!(check(&list), Err(error), "{list:?}");
        }
        assert_eq!(check(&many[..340]), Ok(()));
        assert_eq!(check(&[range(0, 100_000, 65536), range(70_000, 200_000, 1)]), Ok(()));
        assert_eq!(check(&[range(0, 0, u32::MAX)]), Ok(()));
    }

    #[test]
    fn ids_are_translated_or_have_no_place() {
        let mappings = IdMappings { uids: vec![range(0, 100_000, 10), range(50, 7, 1)], gids: vec![] };
        assert_eq!(mappings.host_uid(9), Some(100_009));
        assert_eq!(mappings.host_uid(50), Some(7));
        assert_eq!((mappings.host_uid(10), mappings.host_uid(u32::MAX)), (None, None));
        assert_eq!(mappings.host_gid(0), None);
    }
}
