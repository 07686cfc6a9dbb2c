//! Lines of passwd(5) and group(5).
//!
//! Must not know: who is looked up.

use super::MAX_ID;

/// A line of the passwd file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passwd {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: String,
}

/// A line of the group file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) gid: u32,
    members: Vec<String>,
}

/// Something that is written as one line; `None`: the line makes no sense.
pub(super) trait Line: Sized {
    fn parse(line: &str) -> Option<Self>;
}

impl Line for Passwd {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let _password = fields.next()?;
        let uid = number(fields.next()?)?;
        let gid = number(fields.next()?)?;
        let _comment = fields.next()?;
        let home = fields.next()?.to_owned();
        Some(Self { name, uid, gid, home })
    }
}

impl Line for Group {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let _password = fields.next()?;
        let gid = number(fields.next()?)?;
        let members = fields.next().unwrap_or_default();
        let members = members.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect();
        Some(Self { name, gid, members })
    }
}

/// An id in digits, no sign, no blanks, in range: 2^32 in a file must not become 0.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= MAX_ID)
}

fn lines<T: Line>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.split(|&byte| byte == b'\n').filter_map(|line| T::parse(std::str::from_utf8(line).ok()?))
}

/// The first line that fits.
pub(super) fn find<T: Line>(bytes: &[u8], fits: impl Fn(&T) -> bool) -> Option<T> {
    lines(bytes).find(fits)
}

/// The ids of the groups that list a user.
pub(super) fn memberships(bytes: &[u8], user: &str) -> Vec<u32> {
    let lists = |group: &Group| group.members.iter().any(|member| member == user);
    // The kernel's own bound on supplementary groups.
    lines(bytes).filter(lists).map(|group| group.gid).take(65_536).collect()
}
